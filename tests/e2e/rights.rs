//! Root restarts a user's program: it gets no more than the user had.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};

pub(crate) const TESTS: &[Test] = &[
    ("log_became_a_link", |ctx| replaced(ctx, "log", true)),
    ("directory_became_a_link", |ctx| replaced(ctx, "dir", true)),
    ("directory_above_became_a_link", above),
    ("log_became_a_fifo", fifo),
    ("user", |ctx| comes_back(ctx, "user")),
    ("dropped", |ctx| comes_back(ctx, "dropped")),
    ("dropped_and_replaced", |ctx| replaced(ctx, "log", false)),
];

const USER: u32 = 65534;

fn start(ctx: &Context, how: &str) -> Result<Program> {
    let binary = compile_c(ctx, &ctx.helpers.join("rights.c"), &[])?;
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::create_dir(dir.path().join("dir"))?;
    for path in [dir.path(), &dir.path().join("dir")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    }
    Program::start_argv(&[binary.into(), how.into()], dir, None)
}

/// A directory of root's, which only root may look into, with a file like that.
fn of_root() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700))?;
    for name in ["log", "out", "err", "secret"] {
        std::fs::write(dir.path().join(name), "of root alone\n")?;
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(dir)
}

fn refused(ctx: &Context, program: &Program, image: &Path, words: &[&str]) -> Result<()> {
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(image).finish()?;
    expect_line(&outcome, "restart", &[1, 4], words)?;
    nothing_runs_in(program.dir.path())
}

/// What the program had open is a link to something of root's by then, or (`user`: not) another file of root's.
fn replaced(ctx: &Context, name: &str, user: bool) -> Result<()> {
    let mut program = start(ctx, if user { "user" } else { "dropped" })?;
    let image = program.save_and_kill(ctx)?;
    let (path, other) = (program.path(name), of_root()?);
    if name == "dir" {
        std::fs::remove_dir(&path)?;
        symlink(other.path(), &path)?;
    } else {
        std::fs::remove_file(&path)?;
        symlink(other.path().join("secret"), &path)?;
    }
    refused(ctx, &program, &image, &[name, "user 65534 may not", "--force-files"])?;
    ensure(std::fs::read_to_string(other.path().join("secret"))? == "of root alone\n", "it was written to")
}

/// A directory on the way leads elsewhere.
fn above(ctx: &Context) -> Result<()> {
    let outer = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::set_permissions(outer.path(), std::fs::Permissions::from_mode(0o777))?;
    let mut program = start(ctx, "user")?;
    let image = program.save_and_kill(ctx)?;
    let kept = outer.path().join("image");
    std::fs::copy(&image, &kept)?;
    let (home, aside, other) = (program.dir.path().to_owned(), outer.path().join("aside"), of_root()?);
    std::fs::create_dir(other.path().join("dir"))?;
    std::fs::rename(&home, &aside)?;
    symlink(other.path(), &home)?;
    let done = refused(ctx, &program, &kept, &["user 65534 may not"]);
    std::fs::remove_file(&home)?;
    std::fs::rename(&aside, &home)?;
    done?;
    let whole =
        |name| Ok::<_, anyhow::Error>(std::fs::read_to_string(other.path().join(name))? == "of root alone\n");
    ensure(whole("log")? && whole("out")?, "it was written to")
}

/// A FIFO is there instead: nobody waits for who would open it, too.
fn fifo(ctx: &Context) -> Result<()> {
    let mut program = start(ctx, "user")?;
    let image = program.save_and_kill(ctx)?;
    let path = program.path("log");
    std::fs::remove_file(&path)?;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    chown(&path, Some(USER), Some(USER))?;
    refused(ctx, &program, &image, &["log is not the kind of file it was"])
}

/// All is as it was: what root alone may see is shown to whoever opened it as root.
fn comes_back(ctx: &Context, how: &str) -> Result<()> {
    let mut program = start(ctx, how)?;
    let image = program.save_and_kill(ctx)?;
    program.back_from(ctx, &image)?;
    program.ends_with(7)?;
    let said = std::fs::read_to_string(program.path("out"))?;
    let seen = said.lines().nth(1).context("it said nothing")?;
    if how == "user" {
        ensure(seen == "symbols hidden pages hidden", format!("a user sees: {seen}"))?;
    }
    let log = std::fs::read_to_string(program.path("log"))?;
    ensure(log == "begun\nended\n", format!("its log: {log}"))
}
