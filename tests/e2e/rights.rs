//! Root restarts a user's program: it gets no more than the user had.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixDatagram;
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
    ("working_directory_became_a_link", |ctx| replaced(ctx, "cwd", true)),
    ("working_directory_dropped_and_replaced", |ctx| replaced(ctx, "cwd", false)),
    ("fifo_became_a_link", |ctx| replaced(ctx, "fifo", true)),
    ("watch_became_a_link", |ctx| replaced(ctx, "watch", true)),
    ("watch_dropped_and_replaced", |ctx| replaced(ctx, "watch", false)),
    ("socket_became_a_link", socket),
    ("with_more", with_more),
];

const USER: u32 = 65534;

fn start(ctx: &Context, how: &str) -> Result<Program> {
    start_with(ctx, how, &[]).map(|(program, _)| program)
}

/// The program, and a socket that it may send to.
fn start_with(ctx: &Context, how: &str, more: &[&str]) -> Result<(Program, UnixDatagram)> {
    let binary = compile_c(ctx, &ctx.helpers.join("rights.c"), &[])?;
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::create_dir(dir.path().join("dir"))?;
    for path in [dir.path(), &dir.path().join("dir")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    }
    let socket = UnixDatagram::bind(dir.path().join("socket"))?;
    std::fs::set_permissions(dir.path().join("socket"), std::fs::Permissions::from_mode(0o777))?;
    let mut argv: Vec<OsString> = vec![binary.into(), how.into()];
    argv.extend(more.iter().map(OsString::from));
    Ok((Program::start_argv(&argv, dir, None)?, socket))
}

/// A directory of root's, which only root may look into, with a file like that.
fn of_root() -> Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700))?;
    for name in ["log", "out", "err", "secret"] {
        std::fs::write(dir.path().join(name), "of root alone\n")?;
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o600))?;
    }
    std::fs::create_dir(dir.path().join("watch"))?;
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), rustix::fs::Mode::RUSR)?;
    Ok(dir)
}

fn refused(ctx: &Context, program: &Program, image: &Path, words: &[&str]) -> Result<()> {
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(image).finish()?;
    expect_line(&outcome, "restart", &[1, 4], words)?;
    nothing_runs_in(program.dir.path())
}

/// What the program had open is a link to something of root's by then, or (`user`: not) another file of root's.
fn replaced(ctx: &Context, name: &str, user: bool) -> Result<()> {
    let more = [name].into_iter().filter(|name| ["cwd", "fifo", "watch"].contains(name));
    let more: Vec<&str> = more.collect();
    let (mut program, _) = start_with(ctx, if user { "user" } else { "dropped" }, &more)?;
    let image = program.save_and_kill(ctx)?;
    let (path, other) = (program.path(if name == "watch" { "deep" } else { name }), of_root()?);
    let target = match name {
        "dir" | "cwd" | "watch" => other.path().to_owned(),
        "fifo" => other.path().join("fifo"),
        _ => other.path().join("secret"),
    };
    if target == other.path() {
        std::fs::remove_dir_all(&path)?;
    } else {
        std::fs::remove_file(&path)?;
    }
    symlink(target, &path)?;
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

/// What it sent to is a link to what only root may send to: it is connected to nothing, and that is said.
fn socket(ctx: &Context) -> Result<()> {
    let ((mut program, _own), other) = (start_with(ctx, "user", &["socket"])?, of_root()?);
    let image = program.save_and_kill(ctx)?;
    let roots = UnixDatagram::bind(other.path().join("socket"))?;
    roots.set_nonblocking(true)?;
    std::fs::remove_file(program.path("socket"))?;
    symlink(other.path().join("socket"), program.path("socket"))?;
    let outcome = program.back_from(ctx, &image)?;
    ensure(outcome.stderr.contains("is not any more"), format!("it said {:?}", outcome.stderr))?;
    program.ends_with(8)?;
    ensure(roots.recv(&mut [0; 8]).is_err(), "root's socket was sent to")
}

/// Nothing was replaced: directories, FIFOs and watches come back to who opened them as root, too.
fn with_more(ctx: &Context) -> Result<()> {
    for how in ["user", "dropped"] {
        for more in ["cwd", "fifo", "watch", "socket"] {
            let (mut program, first) = start_with(ctx, how, &[more])?;
            let image = program.save_and_kill(ctx)?;
            std::fs::remove_file(program.path("socket"))?;
            let socket = UnixDatagram::bind(program.path("socket"))?;
            std::fs::set_permissions(program.path("socket"), std::fs::Permissions::from_mode(0o777))?;
            program
                .back_from(ctx, &image)
                .and_then(|_| program.ends_with(7))
                .context(format!("{how} {more}"))?;
            drop((first, socket));
        }
    }
    Ok(())
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
