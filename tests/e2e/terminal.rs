//! A program and the terminal of the shell it was started from.

use std::process::Command;

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::find_program;
use ckpt_tests::target::reap_strays;
use ckpt_tests::tool::Run;

use crate::common::{Test, ensure};
use crate::sweep::program_untouched;

pub(crate) const TESTS: &[Test] = &[
    ("shell_job", |ctx| helper(ctx, "shell_job.py", &[])),
    ("shell_job_of_criu", |ctx| helper(ctx, "shell_job.py", &["criu"])),
    ("tmux", tmux),
    ("screen", screen),
    ("killed_cooked", |ctx| program_untouched(ctx, "pty_pair.c", "cooked")),
    ("killed_raw", |ctx| program_untouched(ctx, "pty_pair.c", "raw")),
    ("killed_packet", |ctx| program_untouched(ctx, "pty_pair.c", "packet")),
];

/// A server with a shell and an editor in its panes, three times; see the helper.
fn tmux(ctx: &Context) -> Result<()> {
    find_program("tmux").and(find_program("vim")).context("no tmux, or no vim")?;
    helper(ctx, "tmux.py", &[])
}

/// The same of screen, with a pager, to which a terminal attaches.
fn screen(ctx: &Context) -> Result<()> {
    find_program("screen").and(find_program("less")).context("no screen, or no less")?;
    helper(ctx, "screen.py", &[])
}

/// Runs a helper, which says `ok`.
fn helper(ctx: &Context, name: &str, args: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut script = Command::new(find_program("python3").context("no python3")?);
    script.arg(ctx.helpers.join(name)).arg(ctx.ckpt.as_ref().context("binary")?).args(args);
    script.current_dir(dir.path());
    let outcome = Run::new(script).finish()?;
    reap_strays();
    let said = String::from_utf8_lossy(&outcome.stdout);
    ensure(said.trim() == "ok", format!("the helper says: {said} {}", outcome.stderr))
}
