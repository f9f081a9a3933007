//! Leaks: what of the tree has a user outside is named with `checkpoint -v`, and refused with `-c`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::{compile_c, find_program};
use ckpt_tests::sys;
use ckpt_tests::tool::{Outcome, Run};
use ckpt_tests::tree::children;

use crate::common::{Program, Test, ensure, expect_line};

pub(crate) const TESTS: &[Test] = &[
    ("pipe", |ctx| named(ctx, "pipe", "fd 50: its pipe", "fd 51")),
    ("description", |ctx| named(ctx, "description", "fd 52: its open file description of ", "fd 52")),
    ("unlinked_file", |ctx| named(ctx, "unlinked", "fd 53: its unlinked file ", "fd 54")),
    ("memfd", |ctx| named(ctx, "memfd", "fd 53: its memfd both ", "fd 54")),
    ("connection", |ctx| named(ctx, "connection", "fd 55: its connection over a unix socket", "fd 56")),
    ("socket", |ctx| named(ctx, "socket", "fd 57: its unix socket", "fd 57")),
    ("shared_memory", |ctx| named(ctx, "memory", ": its shared memory ", "mapping ")),
    ("address_space", |ctx| named(ctx, "vm", ": its memory ", "")),
    ("descriptor_table", |ctx| named(ctx, "files", ": its table of file descriptors ", "")),
    ("working_directory", |ctx| named(ctx, "fs", ": its working directory ", "")),
    ("no_false_alarm", no_false_alarm),
    ("not_looked_for", not_looked_for),
    ("report", report),
    ("not_a_container", not_a_container),
    ("container", container),
    ("container_leaks", container_leaks),
    ("container_connected", container_connected),
];

/// The pid of the child of a `sharer`.
fn child_of(program: &Program) -> Result<String> {
    sys::poll("the child's pid", || Ok(std::fs::read_to_string(program.path("child")).ok()))
}

/// Something a child shares with its parent is named once when the child alone is checkpointed, with both.
fn named(ctx: &Context, kind: &str, inside: &str, outside: &str) -> Result<()> {
    let mut program = Program::start(ctx, "sharer", &[kind])?;
    let (parent, child) = (program.pid(), child_of(&program)?);
    let image = program.path("image");
    let outcome = ctx.run("checkpoint", &["-v", "-o"]).arg(&image).arg(&child).finish()?;
    outcome.expect_code(0)?;
    let (task, place) = (format!("pid {child} (sharer)"), if outside.is_empty() { "" } else { ", " });
    let holder = format!(" is shared with pid {parent} (sharer){place}{outside}");
    let lines: Vec<&str> = outcome.stderr.lines().filter(|line| line.contains(inside)).collect();
    let [line] = lines[..] else { bail!("not one line says {inside:?}:\n{}", outcome.stderr) };
    let whole = line.contains(&task) && line.contains(&holder) && line.ends_with(", outside the tree");
    ensure(whole, format!("it says: {line}"))?;
    program.unharmed()?;
    program.ends_with(7)
}

/// A tree in which everything is shared, but inside: nothing is named.
fn no_false_alarm(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "sharer", &["all"])?;
    let outcome =
        ctx.run("checkpoint", &["-v", "-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
    outcome.expect_code(0)?;
    ensure(!outcome.stderr.contains("shared"), format!("false alarm: {}", outcome.stderr))?;
    ensure(outcome.stderr.contains("3 processes"), format!("-v does not say: {}", outcome.stderr))?;
    program.unharmed()?;
    program.ends_with(7)
}

/// Without -v nothing is said, and the JSON does not claim that anybody looked.
fn not_looked_for(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "sharer", &["pipe"])?;
    let child = child_of(&program)?;
    let outcome = ctx.run("checkpoint", &["--json", "-o"]).arg(program.path("image")).arg(&child).finish()?;
    outcome.expect_code(0)?;
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    ensure(outcome.stderr.is_empty() && !text.contains("shared"), format!("{} {text}", outcome.stderr))?;
    program.ends_with(7)
}

/// With --json the report lists what is shared.
fn report(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "sharer", &["pipe"])?;
    let (parent, child) = (program.target.pid(), child_of(&program)?);
    let run = ctx.run("checkpoint", &["-v", "--json", "-o"]).arg(program.path("image")).arg(&child);
    let outcome = run.finish()?;
    outcome.expect_code(0)?;
    let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).context("JSON")?;
    let list = report["checkpoint"]["shared_outside"].as_array().context("shared_outside")?;
    let found = list.iter().find(|leak| leak["what"] == "pipe").context("the pipe")?;
    let expected = serde_json::json!({
        "what": "pipe",
        "inside": {"pid": child.parse::<i32>()?, "comm": "sharer", "place": "fd 50"},
        "outside": {"pid": parent, "comm": "sharer", "place": "fd 51"},
    });
    ensure(*found == expected, format!("reported: {found}"))?;
    program.ends_with(7)
}

/// -c is about containers: a process that is not the init of a pid namespace is not taken for one.
fn not_a_container(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let outcome =
        ctx.run("checkpoint", &["-c", "-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
    expect_line(
        &outcome,
        "checkpoint",
        &[1],
        &[&program.pid(), "init (pid 1) of a pid namespace", "leave -c out"],
    )?;
    program.unharmed()?;
    ensure(program.files()? == ["err", "out"], "something was left in its directory")?;
    program.ends_with(7)
}

/// A `sharer` that is the init of a pid namespace, with standard descriptors of its own, and its pid. It has `more` under
/// number 8.
fn init(ctx: &Context, kind: &str, more: Option<OwnedFd>) -> Result<(Program, String)> {
    let binary = compile_c(ctx, &ctx.helpers.join("sharer.c"), &["-pthread".to_owned()])?;
    let unshare = find_program("unshare").context("unshare")?.into_os_string();
    let words = ["-p", "-f", "--mount-proc", "--kill-child", "sh", "-c"];
    let mut argv: Vec<OsString> = vec![unshare];
    argv.extend(words.map(OsString::from));
    let line = r#"exec "$0" "$1" </dev/null >>out 2>>err"#;
    argv.push(if more.is_some() { line.replace("</dev", "8<&0 </dev").into() } else { line.into() });
    argv.extend([binary.into_os_string(), kind.into()]);
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let program = Program::start_argv(&argv, dir, more)?;
    let init = children(program.target.pid()).first().context("unshare has no child")?.to_string();
    Ok((program, init))
}

/// Words of a command that enters the mount and pid namespaces of `init`.
fn enter(init: &str) -> Result<Vec<OsString>> {
    let nsenter = find_program("nsenter").context("nsenter")?.into_os_string();
    Ok([nsenter].into_iter().chain(["-t", init, "-m", "-p", "--"].map(OsString::from)).collect())
}

/// `checkpoint -c` of pid 1, inside the namespaces of `init`.
fn checkpoint_inside(ctx: &Context, init: &str, image: &Path) -> Result<Outcome> {
    let words = enter(init)?;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(ctx.ckpt.as_ref().context("no binary")?);
    command.args(["checkpoint", "-c", "-o"]).arg(image).arg("1");
    Run::new(command).finish()
}

/// A container with nothing shared is checkpointed.
fn container(ctx: &Context) -> Result<()> {
    let (mut program, init) = init(ctx, "all", None)?;
    let image = program.path("image");
    let outcome = checkpoint_inside(ctx, &init, &image)?;
    outcome.expect_code(0)?;
    ensure(outcome.stderr.is_empty(), format!("it says: {}", outcome.stderr))?;
    let outcome = ctx.run("info", &["-p"]).arg(&image).finish()?;
    outcome.expect_code(0)?;
    let tree = String::from_utf8_lossy(&outcome.stdout).into_owned();
    ensure(tree.matches("sharer").count() == 3, format!("ckptinfo -p shows: {tree}"))?;
    program.unharmed()?;
    program.ends_with(7)
}

/// A process in the namespace that does not come from its init has an end of a pipe of it: refused,
/// with both named; when it is gone, the container is checkpointed.
fn container_leaks(ctx: &Context) -> Result<()> {
    let (mut program, init) = init(ctx, "all", None)?;
    let image = program.path("image");
    let mut argv = enter(&init)?;
    argv.extend(["sh", "-c", "exec 9</proc/1/fd/50; echo ready 1; read line"].map(OsString::from));
    let (keep, stdin) = {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        (write, read)
    };
    let mut stranger = Program::start_argv(&argv, tempfile::tempdir()?, Some(stdin))?;
    let outcome = checkpoint_inside(ctx, &init, &image)?;
    let words =
        ["pid 1 (sharer), fd 50: its pipe is shared with pid ", " (sh), fd 9, outside the tree", "-c"];
    expect_line(&outcome, "checkpoint", &[3], &words)?;
    ensure(!image.exists(), "a refused checkpoint left an image")?;
    program.unharmed()?;
    stranger.unharmed()?;
    drop(keep);
    stranger.target.wait()?;
    checkpoint_inside(ctx, &init, &image)?.expect_code(0)?;
    program.unharmed()?;
    program.ends_with(7)
}

/// The same of the other end of a unix socket that the init has.
fn container_connected(ctx: &Context) -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let (mut program, init) = init(ctx, "sleeper", Some(ours.into()))?;
    let image = program.path("image");
    let mut argv = enter(&init)?;
    argv.extend(["sh", "-c", "echo ready 1; read line"].map(OsString::from));
    let mut stranger = Program::start_argv(&argv, tempfile::tempdir()?, Some(theirs.into()))?;
    let outcome = checkpoint_inside(ctx, &init, &image)?;
    let words = [
        "pid 1 (sharer), fd 8: its connection over a unix socket is shared with pid ",
        " (sh), fd 0, outside the tree",
    ];
    expect_line(&outcome, "checkpoint", &[3], &words)?;
    ensure(!image.exists(), "a refused checkpoint left an image")?;
    program.unharmed()?;
    stranger.unharmed()?;
    drop(stranger);
    checkpoint_inside(ctx, &init, &image)?.expect_code(0)?;
    program.unharmed()?;
    program.ends_with(7)
}
