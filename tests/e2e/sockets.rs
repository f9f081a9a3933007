//! Unix sockets: their names in the file system when a restart fails, and what kills leave.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::sys;
use ckpt_tests::target::{Ended, reap_strays};

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};
use crate::frozen::{Group, Kind, V1, V2};
use crate::sweep::program_untouched;
use crate::waiting::pipeline;

pub(crate) const TESTS: &[Test] = &[
    ("name_after_failure", name_after_failure),
    ("name_after_kill", name_after_kill),
    ("pipeline", piped),
    ("log", log),
    ("frozen_v1", |ctx| frozen(ctx, V1)),
    ("frozen_v2", |ctx| frozen(ctx, V2)),
    ("killed", |ctx| program_untouched(ctx, "unix_sockets.c", "crowd")),
];

/// A client is answered.
fn answers(program: &Program) -> Result<()> {
    let mut client = UnixStream::connect(program.path("sock")).context("connect")?;
    client.set_read_timeout(Some(sys::PATIENCE))?;
    client.write_all(b"?")?;
    let mut answer = [0];
    client.read_exact(&mut answer).context("no answer")?;
    ensure(answer == *b"?", "another answer")
}

/// What tells one name of a socket from another.
fn name(program: &Program) -> Result<(u64, i64, i64, u32)> {
    let stat = std::fs::symlink_metadata(program.path("sock")).context("the name of the socket")?;
    Ok((stat.ino(), stat.mtime(), stat.mtime_nsec(), stat.mode()))
}

/// A restart that fails, early or late, leaves the name of the dead socket, that very one, and no other.
fn name_after_failure(ctx: &Context) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::write(dir.path().join("data"), "some data")?;
    let mut program = start(ctx, dir)?;
    let image = program.save_and_kill(ctx)?;
    let (dead, whole) = (name(&program)?, std::fs::read(&image)?);
    std::fs::rename(program.path("data"), program.path("away"))?;
    let fails = |program: &Program, code| {
        let before = program.files()?;
        let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
        expect_line(&outcome, "restart", &[code], &[])?;
        nothing_runs_in(program.dir.path())?;
        ensure(program.files()? == before, format!("it left {:?}", program.files()?))?;
        ensure(name(program)? == dead, format!("the name was {dead:?} and is {:?}", name(program)?))
    };
    fails(&program, 1)?;
    std::fs::rename(program.path("away"), program.path("data"))?;
    std::fs::write(&image, &whole[..whole.len() - 100])?;
    fails(&program, 5)?;
    std::fs::write(&image, &whole)?;
    program.back_from(ctx, &image)?;
    answers(&program)?;
    program.ends_with(7)
}

fn start(ctx: &Context, dir: tempfile::TempDir) -> Result<Program> {
    let binary = ckpt_tests::fixture::compile_c(ctx, &ctx.helpers.join("serves.c"), &[])?;
    Program::start_argv(&[binary.into()], dir, None)
}

/// SIGKILL of `restart` at any moment: the dead socket's name is there, or the program serves.
fn name_after_kill(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "serves", &[])?;
    let image = program.save_and_kill(ctx)?;
    let files = program.files()?;
    let wall = program.back_from(ctx, &image)?.wall;
    program.target.kill();
    let mut dead = name(&program)?;
    let (mut killed, rounds) = (0, ctx.kills.min(40));
    for round in 0..rounds {
        let mut run = ctx.run("restart", &["-W", "-i"]).arg(&image).start()?;
        std::thread::sleep(Duration::from_nanos(sys::random_below(
            (wall / (1 << (round % 4))).as_nanos() as u64
        )));
        let was_running = run.kill();
        drop(run);
        let lives = sys::poll("it to be gone or to be there", || {
            reap_strays();
            // What is on its way to its end may be there for a moment yet.
            let lives = program.adopt().is_ok();
            let gone = !lives && nothing_runs_in(program.dir.path()).is_ok();
            Ok((gone || lives && answers(&program).is_ok()).then_some(lives))
        })?;
        if lives {
            program.target.kill();
            dead = name(&program)?;
        } else {
            killed += u32::from(was_running);
            // By the scribe, which outlives it for a moment.
            let back = || Ok((program.files()? == files && name(&program).ok() == Some(dead)).then_some(()));
            sys::poll("the dead name to be back", back).with_context(|| {
                format!("round {round}: {:?}, {dead:?}, {:?}", program.files(), name(&program))
            })?;
        }
    }
    println!("    {killed} of {rounds} killed on their way");
    ensure(killed * 10 > rounds, "hardly any kill found restart running: the test tests nothing")?;
    program.back_from(ctx, &image).context("the image still works")?;
    answers(&program)?;
    ensure(program.files()? == files, format!("beside the socket there is {:?}", program.files()?))?;
    program.ends_with(7)
}

/// `checkpoint --kill -o - PID | restart -W`: the address is the original's until that has ended.
fn piped(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "serves", &[])?;
    for _ in 0..3 {
        answers(&program)?;
        let line = "\"$0\" checkpoint --kill -o - $1 | \"$0\" restart -W";
        let run = pipeline(ctx, line, &program.pid())?.start()?;
        program.target.wait()?;
        run.finish()?.expect_code(0)?;
        program.adopt()?;
    }
    answers(&program)?;
    ensure(program.files()? == ["err", "out", "sock"], format!("there is {:?}", program.files()?))?;
    program.ends_with(7)
}

/// A program that sends to a socket outside does so again, or is told that nobody is there.
fn log(ctx: &Context) -> Result<()> {
    let binary = ckpt_tests::fixture::compile_c(ctx, &ctx.helpers.join("logs.c"), &[])?;
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let log = UnixDatagram::bind(dir.path().join("log"))?;
    log.set_nonblocking(true)?;
    let says = |what: &str| {
        let mut said = [0; 16];
        let len = log.recv(&mut said).with_context(|| format!("waited for {what:?}"))?;
        ensure(&said[..len] == what.as_bytes(), format!("it said {:?}", &said[..len]))
    };
    let mut program = Program::start_argv(&[binary.into()], dir, None)?;
    says("before")?;
    for _ in 0..2 {
        let image = program.save_and_kill(ctx)?;
        let outcome = program.back_from(ctx, &image)?;
        ensure(outcome.stderr.is_empty(), format!("restart says {}", outcome.stderr))?;
        std::fs::remove_file(image)?;
    }
    let image = program.save_and_kill(ctx)?;
    program.back_from(ctx, &image)?;
    program.ends_with(7)?;
    says("after")?;
    std::fs::remove_file(program.path("go"))?;
    drop(log);
    let outcome = program.back_from(ctx, &image)?;
    ensure(outcome.stderr.contains("/log, and is not any more"), format!("restart says {}", outcome.stderr))?;
    program.ends_with(8)
}

/// A program that a cgroup freezes looks at its sockets all the same, and stays frozen.
fn frozen(ctx: &Context, kind: Kind) -> Result<()> {
    let binary = ckpt_tests::fixture::compile_c(ctx, &ctx.fixtures.join("unix_sockets.c"), &[])?;
    let mut program = Program::start_argv(&[binary.into(), "crowd".into()], tempfile::tempdir()?, None)?;
    let Some(group) = Group::new(kind, &format!("sockets-{}", program.pid()))? else {
        return ctx.skip(kind.1, &format!("no cgroups are mounted on {}", kind.0));
    };
    group.take(program.target.pid())?;
    group.freeze()?;
    let image = program.path("image");
    for _ in 0..2 {
        ctx.run("checkpoint", &["-f", "-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
        ensure(group.is_frozen() && group.is_set(), "its cgroup is not frozen")?;
    }
    group.set(false)?;
    std::fs::write(program.path("go.1"), "0 0")?;
    let ended = program.target.wait()?;
    let said = std::fs::read_to_string(program.path("out"))?;
    ensure(ended == Ended::Exit(0), format!("it ended with {ended:?}: {said}"))
}
