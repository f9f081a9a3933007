//! A program and the terminal of the shell it was started from.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::{compile_c, find_program};
use ckpt_tests::sys;
use ckpt_tests::target::{Ended, reap_strays};
use ckpt_tests::tool::{LIMIT, Run};

use crate::common::{Program, Test, ensure};
use crate::sweep::kill_within;

pub(crate) const TESTS: &[Test] = &[
    ("shell_job", shell_job),
    ("tmux", tmux),
    ("killed_cooked", |ctx| killed(ctx, "cooked")),
    ("killed_raw", |ctx| killed(ctx, "raw")),
    ("killed_packet", |ctx| killed(ctx, "packet")),
];

/// `checkpoint` killed at random instants: what waits in a pty of the program is there once, and in order.
fn killed(ctx: &Context, case: &str) -> Result<()> {
    let binary = compile_c(ctx, &ctx.fixtures.join("pty_pair.c"), &[])?;
    let argv = [binary.into(), case.into()];
    let mut program = Program::start_argv(&argv, tempfile::tempdir()?, None)?;
    let image = program.path("image");
    let pid = program.pid();
    let save = || ctx.run("checkpoint", &["-f", "-o"]).arg(&image).arg(&pid).start();
    let begin = Instant::now();
    save()?.finish(LIMIT)?.expect_code(0)?;
    let span = begin.elapsed();
    let kills = std::env::var("CKPT_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let mut hits = 0;
    for round in 0..kills {
        hits += u32::from(kill_within(save()?, span)?);
        program.target.must_live().with_context(|| {
            let said = std::fs::read_to_string(program.path("out")).unwrap_or_default();
            format!("after kill {round}; it said: {said}")
        })?;
        sys::poll("it to be let go", Duration::from_secs(5), || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", program.target.pid()))?;
            Ok(status.contains("TracerPid:\t0\n").then_some(()))
        })?;
    }
    println!("    {hits} of {kills} checkpoints were killed before they ended");
    save()?.finish(LIMIT)?.expect_code(0)?;
    std::fs::write(program.path("go.1"), "0 0")?;
    let ended = program.target.wait(Duration::from_secs(10))?;
    let said = std::fs::read_to_string(program.path("out"))?;
    ensure(ended == Ended::Exit(0) && said.ends_with("\nok\n"), format!("it ended with {ended:?}: {said}"))
}

/// Its settings, window, foreground group, Ctrl-C, Ctrl-Z, fg and bg; see the helper.
fn shell_job(ctx: &Context) -> Result<()> {
    helper(ctx, "shell_job.py")
}

/// A server with a shell and an editor in its panes, three times; see the helper.
fn tmux(ctx: &Context) -> Result<()> {
    find_program("tmux").and(find_program("vim")).context("no tmux, or no vim")?;
    helper(ctx, "tmux.py")
}

fn helper(ctx: &Context, name: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut script = Command::new(find_program("python3").context("no python3")?);
    script.arg(ctx.helpers.join(name)).arg(ctx.ckpt.as_ref().context("binary")?);
    script.current_dir(dir.path());
    let outcome = Run::new(script).finish()?;
    reap_strays();
    let said = String::from_utf8_lossy(&outcome.stdout);
    ensure(said.trim() == "ok", format!("the helper says: {said} {}", outcome.stderr))
}
