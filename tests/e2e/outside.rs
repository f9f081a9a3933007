//! What is outside: locks that somebody else has by then, descriptors that the caller says are not the program's own.

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::{compile_c, find_program};
use ckpt_tests::sys;

use crate::common::{Program, Test, ensure, expect_line, names_in, nothing_runs_in};
use crate::files::Mounts;

pub(crate) const TESTS: &[Test] = &[
    ("lock_taken", lock_taken),
    ("fifo_gone", fifo_gone),
    ("fifo_by_name", fifo_by_name),
    ("queue_gone", queue_gone),
    ("watched_is_a_file", watched_is_a_file),
    ("external_file", external_file),
    ("external_pipe", external_pipe),
    ("external_unknown", external_unknown),
];

/// A lock that another program has by the time of the restart: named, with who has it; nothing stays behind.
fn lock_taken(ctx: &Context) -> Result<()> {
    for (how, words) in [("lock", "bytes 10 to 14"), ("flock", "lock on")] {
        let shared = tempfile::tempdir()?;
        let path = shared.path().join("shared").into_os_string().into_string().ok().context("path")?;
        let mut program = Program::start(ctx, "holds", &[how, &path])?;
        let image = program.save_and_kill(ctx)?;
        let mut other = Program::start(ctx, "holds", &[how, &path])?;
        let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
        expect_line(
            &outcome,
            "restart",
            &[1],
            &[&path, words, &format!("pid {} (holds)", other.pid()), "again"],
        )
        .with_context(|| how.to_owned())?;
        nothing_runs_in(program.dir.path())?;
        other.unharmed()?;
        other.ends_with(7)?;
        program.back_from(ctx, &image).context("the image still works")?;
        let taken = Program::start(ctx, "holds", &[how, &path]).is_err();
        ensure(taken, "the restarted program does not hold its lock")?;
        program.ends_with(7)?;
    }
    Ok(())
}

/// A FIFO that is gone by the time of the restart, another file, or in use: an error that names it.
fn fifo_gone(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "holder", &["p:fifo"])?;
    let image = program.save_and_kill(ctx)?;
    let (fifo, away) = (program.path("fifo"), program.path("away"));
    let fails = |word: &str| {
        let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
        expect_line(&outcome, "restart", &[1], &["/fifo", word]).with_context(|| word.to_owned())?;
        nothing_runs_in(program.dir.path())
    };
    std::fs::rename(&fifo, &away)?;
    fails("mkfifo")?;
    std::fs::write(&fifo, "")?;
    fails("not a FIFO")?;
    std::fs::rename(&away, &fifo)?;
    let mut other = std::fs::OpenOptions::new().read(true).write(true).open(&fifo)?;
    std::io::Write::write_all(&mut other, b"another's")?;
    fails("9 bytes")?;
    drop(other);
    program.back_from(ctx, &image)?;
    program.ends_with(7)?;
    let said = std::fs::read_to_string(program.path("said"))?;
    ensure(said == "p 0 600 in it\n", format!("it said {said:?}"))
}

/// A FIFO of which the program has one end is the same FIFO afterwards: what is in it stays, who has the other end talks on.
fn fifo_by_name(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "holder", &["n:fifo"])?;
    let image = program.save_and_kill(ctx)?;
    program.back_from(ctx, &image)?;
    let mut writer = std::fs::OpenOptions::new().write(true).open(program.path("fifo"))?;
    std::io::Write::write_all(&mut writer, b"kept, ")?;
    std::fs::remove_file(&image)?;
    let image = program.save_and_kill(ctx)?;
    // Another of that name is not it.
    std::fs::rename(program.path("fifo"), program.path("away"))?;
    rustix::fs::mkfifoat(rustix::fs::CWD, program.path("fifo"), rustix::fs::Mode::RUSR)?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1], &["fd 50", "/fifo", "--inherit-fd 50=FD"])?;
    nothing_runs_in(program.dir.path())?;
    std::fs::rename(program.path("away"), program.path("fifo"))?;
    program.back_from(ctx, &image)?;
    std::io::Write::write_all(&mut writer, b"new")?;
    program.ends_with(7)?;
    let said = std::fs::read_to_string(program.path("said"))?;
    ensure(said == "n 0 600 kept, new\n", format!("it said {said:?}"))
}

/// A regular file is given in place of a pipe that an epoll watches: it cannot be watched, which is said.
fn watched_is_a_file(ctx: &Context) -> Result<()> {
    let (theirs, _ours) = rustix::pipe::pipe()?;
    let mut program = Program::start_with(ctx, "holder", &["i:"], Some(theirs.try_clone()?))?;
    let image = program.save_and_kill(ctx)?;
    let restart = || ctx.run("restart", &["-W", "-i"]).arg(&image);
    let outcome = restart().stdin_fd(std::fs::File::open(&image)?.into()).finish()?;
    expect_line(&outcome, "restart", &[1], &["epoll", "no regular files", "a pipe or a terminal"])?;
    nothing_runs_in(program.dir.path())?;
    restart().stdin_fd(theirs).finish()?.expect_code(0)?;
    program.adopt()?;
    program.ends_with(7)
}

/// A message queue that is gone by the time of the restart, or another: an error that names it.
fn queue_gone(ctx: &Context) -> Result<()> {
    if !std::path::Path::new("/proc/sys/fs/mqueue").exists() {
        return ctx.skip("outside::queue_gone", "this kernel has no POSIX message queues");
    }
    let binary = compile_c(ctx, &ctx.fixtures.join("mqueues.c"), &["-lrt".to_owned()])?;
    let (place, mut mounts) = (tempfile::tempdir()?, Mounts::default());
    ensure(mounts.mount(place.path(), &["-t", "mqueue", "none"])?, "no mount of message queues")?;
    let mut program = Program::start_argv(&[binary.into()], tempfile::tempdir()?, None)?;
    let prefix = format!("ckpt-test-{}-", program.pid());
    let own: Vec<String> =
        names_in(place.path())?.into_iter().filter(|name| name.starts_with(&prefix)).collect();
    let [name, _] = &own[..] else { anyhow::bail!("it has {own:?}") };
    let image = program.save_and_kill(ctx)?;
    let fails = |words: &[&str]| {
        let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
        expect_line(&outcome, "restart", &[1], &[&[name.as_str()], words].concat())?;
        nothing_runs_in(program.dir.path())
    };
    std::fs::remove_file(place.path().join(name))?;
    fails(&["No such file", "make it again"])?;
    std::fs::File::create(place.path().join(name))?;
    fails(&["and was of 4 of 64", "--force-files"])?;
    ctx.run("restart", &["--force-files", "-W", "-i"]).arg(&image).finish()?.expect_code(0)?;
    program.adopt()?;
    program.unharmed()?;
    own.iter().try_for_each(|name| Ok(std::fs::remove_file(place.path().join(name))?))
}

/// A log that the caller says is outside: without a supply it is missed by its name, with one the program writes there.
fn external_file(ctx: &Context) -> Result<()> {
    let shared = tempfile::tempdir()?;
    let (log, new) = (shared.path().join("log"), shared.path().join("new"));
    let path = log.to_str().context("path")?;
    let mut program = Program::start(ctx, "holds", &["log", path])?;
    let image = program.path("image");
    let external = format!("file[{path}]:the-log");
    let save = ctx.run("checkpoint", &["--kill", "--external", &external, "-o"]).arg(&image);
    save.arg(program.pid()).finish()?.expect_code(0)?;
    program.target.wait()?;
    std::fs::remove_file(&log)?;
    let shown = ctx.run("info", &[]).arg(&image).finish()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = shown.lines().find(|l| l.contains("ext. file")).context("ckptinfo does not list it")?;
    ensure(
        line.trim_start().starts_with("9 ") && line.contains(path) && line.contains("the-log"),
        format!("ckptinfo says {line}"),
    )?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1], &["fd 9", "--inherit-fd FD:the-log"])?;
    let open = || std::fs::OpenOptions::new().append(true).create(true).open(&new);
    let wrong = ctx.run("restart", &["-W", "--inherit-fd", "5:another", "-i"]).arg(&image);
    expect_line(&wrong.pass(open()?.into(), 5).finish()?, "restart", &[1], &["another", "ckptinfo"])?;
    nothing_runs_in(program.dir.path())?;
    let run = ctx.run("restart", &["-W", "--inherit-fd", "5:the-log", "-i"]).arg(&image);
    run.pass(open()?.into(), 5).finish()?.expect_code(0)?;
    program.adopt()?;
    program.ends_with(7)?;
    ensure(std::fs::read_to_string(&new)? == "line\n", "it did not write to what it was given")
}

/// A pipe that the caller gave a name, supplied by that name or still by number.
fn external_pipe(ctx: &Context) -> Result<()> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let binary = compile_c(ctx, &ctx.helpers.join("outside.c"), &["-pthread".to_owned()])?;
    let shell = find_program("sh").context("sh")?.into_os_string();
    let argv = [shell, "-c".into(), "exec \"$0\" 7 7<&0 </dev/null".into(), binary.into_os_string()];
    let mut program = Program::start_argv(&argv, tempfile::tempdir()?, Some(read.try_clone()?))?;
    let link = std::fs::read_link(format!("/proc/{}/fd/7", program.pid()))?;
    let link = link.to_str().context("link")?.replace("pipe:", "pipe");
    let image = program.path("image");
    let save = ctx.run("checkpoint", &["--kill", "--external", &format!("{link}:feed"), "-o"]).arg(&image);
    save.arg(program.pid()).finish()?.expect_code(0)?;
    program.target.wait()?;
    for option in ["5:feed", "7=5"] {
        let run = ctx.run("restart", &["-W", "--inherit-fd", option, "-i"]).arg(&image);
        run.pass(read.try_clone()?, 5).finish()?.expect_code(0)?;
        program.adopt()?;
        rustix::io::write(&write, b"through the pipe\n")?;
        sys::poll("what it was told", || {
            Ok(std::fs::read_to_string(program.path("out"))?.contains("through the pipe\n").then_some(()))
        })?;
        program.target.kill();
        std::fs::write(program.path("out"), "ready 1\n")?;
    }
    Ok(())
}

/// --external of what the program does not have, or of a form that is none.
fn external_unknown(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.path("image");
    let run = ctx.run("checkpoint", &["--external", "pipe[1]:nothing", "-o"]).arg(&image).arg(program.pid());
    expect_line(&run.finish()?, "checkpoint", &[1], &["pipe[1]:nothing", "no such descriptor"])?;
    let run = ctx.run("checkpoint", &["--external", "file[/a]:b[c]", "-o"]).arg(&image).arg(program.pid());
    expect_line(&run.finish()?, "checkpoint", &[1], &["--external file[/a]:b[c]: ", "no such descriptor"])?;
    for wrong in ["pipe", "pope[1]:x", "pipe[1]:"] {
        ctx.run("checkpoint", &["--external", wrong]).arg(program.pid()).finish()?.expect_code(2)?;
    }
    program.unharmed()?;
    ensure(program.files()? == ["err", "out"], "something was left")?;
    program.ends_with(7)
}
