//! Time and waiting: the real sleep, exit statuses, forwarded signals, shell pipelines, --stop.

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::{compile_c, find_program};
use ckpt_tests::sys;
use ckpt_tests::target::{Ended, Session, Start, Target};
use ckpt_tests::tool::{Run, Running};

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};

pub(crate) const TESTS: &[Test] = &[
    ("sleep_ten", sleep_ten),
    ("waits_and_copies_status", waits_and_copies_status),
    ("forwards_signals", forwards_signals),
    ("shows_status", shows_status),
    ("pipeline_kill", pipeline_kill),
    ("pipeline_new_pids", pipeline_new_pids),
    ("stop_leaves_it_stopped", stop_leaves_it_stopped),
    ("stopped_before", stopped_before),
    ("signal_while_stopped", signal_while_stopped),
    ("output_fd", output_fd),
    ("inherit_fd", inherit_fd),
    ("standard_pipes", standard_pipes),
    ("same_session", same_session),
    ("timeout_unseen", timeout_unseen),
    ("ends_at_once", ends_at_once),
    ("stopped_job", |ctx| stopped_job(ctx, "own", "exec \"$@\"")),
    ("stopped_job_in_pipeline", |ctx| stopped_job(ctx, "joined", "set -m; \"$@\"; true")),
    ("parent_death_signal", parent_death_signal),
    ("sigchld_ignored", sigchld_ignored),
];

/// `sleep 10`, checkpointed at 3 s, restarted 5 s later, ends 7 s after the restart. A machine with other things to do may
/// end it later than that, but not each time.
fn sleep_ten(ctx: &Context) -> Result<()> {
    for _ in 0..5 {
        let late = sleeps_ten(ctx)?;
        ensure(late > -TOLERANCE, format!("it ended {:.3} s too early", -late))?;
        if late < TOLERANCE {
            return Ok(());
        }
    }
    bail!("it ended too late after each restart")
}

/// Seconds by which a `sleep` may be late, or early.
const TOLERANCE: f64 = 0.1;

/// By how many seconds it was late.
fn sleeps_ten(ctx: &Context) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let sleep = find_program("sleep").context("no sleep")?;
    let argv = [sleep.into_os_string(), "10".into()];
    let mut target = Target::start(Start {
        argv: &argv,
        dir: dir.path(),
        stdin: None,
        stdout: None,
        session: Session::Own,
    })?;
    let (start, pid, image) = (Instant::now(), target.pid(), dir.path().join("image"));
    std::thread::sleep(Duration::from_secs(3).saturating_sub(start.elapsed()));
    let before = start.elapsed();
    ctx.run("checkpoint", &["--kill", "-o"]).arg(&image).arg(pid.to_string()).finish()?.expect_code(0)?;
    target.wait()?;
    std::thread::sleep(Duration::from_secs(5));
    ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?.expect_code(0)?;
    let back = Instant::now();
    target.come_back()?;
    let ended = target.wait()?;
    let took = back.elapsed();
    ensure(ended == Ended::Exit(0), format!("sleep ended with {ended:?}"))?;
    let want = Duration::from_secs(10) - before;
    println!("    checkpointed after {before:.3?}, ended {took:.3?} after the restart, want {want:.3?}");
    Ok(took.as_secs_f64() - want.as_secs_f64())
}

/// A program that ends while its last threads and processes are yet to be let go has ended by itself.
fn ends_at_once(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "hasty", &[])?;
    let image = program.save_and_kill(ctx)?;
    std::fs::write(program.path("go"), "")?;
    for round in 0..20 {
        let outcome = ctx.run("restart", &["--copy-status", "-i"]).arg(&image).finish()?;
        outcome.expect_code(7).with_context(|| format!("restart {round}"))?;
    }
    Ok(())
}

/// A waiting `restart` of `image`, with its program up and running.
fn waiting(ctx: &Context, program: &Program, args: &[&str], image: &std::path::Path) -> Result<Running> {
    let run = ctx.run("restart", args).arg("-i").arg(image).start()?;
    let (pid, parent) = (program.target.pid(), i64::from(run.pid()));
    sys::poll("the restarted program", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let up = ckpt_tests::target::field_of_stat(pid, 4) == Some(parent);
        Ok((up && status.contains("TracerPid:\t0\n") && status.contains("Name:\texits")).then_some(()))
    })?;
    Ok(run)
}

fn waits_and_copies_status(ctx: &Context) -> Result<()> {
    for (args, want) in [(&[][..], 0), (&["-w"], 0), (&["--copy-status"], 7)] {
        let mut program = Program::start(ctx, "exits", &["7"])?;
        let image = program.save_and_kill(ctx)?;
        let run = waiting(ctx, &program, args, &image)?;
        std::fs::write(program.path("go"), "")?;
        let outcome = run.finish()?;
        outcome.expect_code(want).with_context(|| format!("{args:?}"))?;
        ensure(
            outcome.stdout.is_empty() && outcome.stderr.is_empty(),
            format!("{args:?}: not silent: {}", outcome.stderr),
        )?;
    }
    Ok(())
}

fn forwards_signals(ctx: &Context) -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut program = Program::start(ctx, "exits", &["7"])?;
        let image = program.save_and_kill(ctx)?;
        let run = waiting(ctx, &program, &["--copy-status"], &image)?;
        run.signal(signal)?;
        run.finish()?.expect_code(100 + signal).with_context(|| format!("signal {signal}"))?;
    }
    Ok(())
}

fn shows_status(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let run = waiting(ctx, &program, &["--show-status"], &image)?;
    std::fs::write(program.path("go"), "")?;
    let outcome = run.finish()?;
    ensure(outcome.stderr.contains('7'), format!("--show-status says: {}", outcome.stderr))?;
    let mut killed = Program::start(ctx, "exits", &["7"])?;
    let image = killed.save_and_kill(ctx)?;
    let run = waiting(ctx, &killed, &["--copy-status"], &image)?;
    let pid = rustix::process::Pid::from_raw(killed.target.pid()).context("pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    run.finish()?.expect_code(128 + 9)?;
    Ok(())
}

pub(crate) fn pipeline(ctx: &Context, line: &str, pid: &str) -> Result<Run> {
    let mut shell = Command::new("bash");
    shell.args(["-o", "pipefail", "-c", line]).arg(ctx.ckpt.as_ref().context("binary")?).arg(pid);
    Ok(Run::new(shell))
}

/// `checkpoint --kill PID | restart -W`: the old process must be gone (and reaped, by us) before its pid is free.
fn pipeline_kill(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let run = pipeline(ctx, "\"$0\" checkpoint --kill $1 | \"$0\" restart -W", &program.pid())?.start()?;
    program.target.wait()?;
    let outcome = run.finish()?;
    outcome.expect_code(0)?;
    ensure(
        String::from_utf8_lossy(&outcome.stdout).trim() == program.pid(),
        "restart -W printed another pid",
    )?;
    program.adopt()?;
    program.ends_with(7)
}

/// `checkpoint PID | restart --new-pids -W`: a copy beside the original.
fn pipeline_new_pids(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let line = "\"$0\" checkpoint $1 | \"$0\" restart --new-pids -W";
    let outcome = pipeline(ctx, line, &program.pid())?.finish()?;
    outcome.expect_code(0)?;
    let copy: i32 =
        String::from_utf8_lossy(&outcome.stdout).trim().parse().context("restart -W prints the pid")?;
    ensure(copy != program.target.pid(), "the copy has the original's pid")?;
    let mut copy = Target::adopt(copy)?;
    copy.must_live()?;
    program.unharmed()?;
    program.ends_with(7)?;
    let ended = copy.wait()?;
    ensure(ended == Ended::Exit(7), format!("the copy ended with {ended:?}"))
}

fn stop_leaves_it_stopped(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.path("image");
    ctx.run("checkpoint", &["--stop", "-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    ensure(
        status.contains("State:\tT (stopped)") && status.contains("TracerPid:\t0\n"),
        format!("not stopped: {status}"),
    )?;
    program.target.signal(libc::SIGCONT)?;
    program.ends_with(7)
}

fn output_fd(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let path = program.path("image");
    let file = std::fs::File::create(&path)?;
    let run = ctx.run("checkpoint", &["--kill", "--output-fd", "9"]).arg(program.pid()).pass(file.into(), 9);
    run.finish()?.expect_code(0)?;
    program.target.wait()?;
    let file = std::fs::File::open(&path)?;
    ctx.run("restart", &["-W", "--input-fd", "8"]).pass(file.into(), 8).finish()?.expect_code(0)?;
    program.adopt()?;
    program.ends_with(7)
}

/// A pipe from outside on a descriptor above 2: refused without --inherit-fd, works with it.
fn inherit_fd(ctx: &Context) -> Result<()> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let dir = tempfile::tempdir()?;
    let binary =
        ckpt_tests::fixture::compile_c(ctx, &ctx.helpers.join("outside.c"), &["-pthread".to_owned()])?;
    let shell = find_program("sh").context("sh")?.into_os_string();
    let argv = [shell, "-c".into(), "exec \"$0\" 7 7<&0 </dev/null".into(), binary.into_os_string()];
    let mut program = Program::start_argv(&argv, dir, Some(read.try_clone()?))?;
    let image = program.save_and_kill(ctx)?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1, 2, 3], &["fd 7", "--inherit-fd"])?;
    for option in ["7", "7=5"] {
        let mine = option.rsplit('=').next().context("fd")?.parse()?;
        let run = ctx.run("restart", &["-W", "--inherit-fd", option, "-i"]).arg(&image);
        run.pass(read.try_clone()?, mine)
            .finish()?
            .expect_code(0)
            .with_context(|| format!("--inherit-fd {option}"))?;
        program.adopt()?;
        rustix::io::write(&write, b"through the pipe\n")?;
        says(&program, "through the pipe\n")?;
        program.target.kill();
        std::fs::write(program.path("out"), "ready 1\n")?;
    }
    Ok(())
}

fn says(program: &Program, text: &str) -> Result<()> {
    sys::poll(&format!("{text:?} in its output"), || {
        Ok(std::fs::read_to_string(program.path("out"))?.contains(text).then_some(()))
    })
}

/// fds 0 and 1 that were pipes to and from outside take the restarter's.
fn standard_pipes(ctx: &Context) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let binary =
        ckpt_tests::fixture::compile_c(ctx, &ctx.helpers.join("outside.c"), &["-pthread".to_owned()])?;
    let argv = [binary.into_os_string(), "0".into()];
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let ((stdin, feed), (listen, stdout)) = (pipe()?, pipe()?);
    let start = Start {
        argv: &argv,
        dir: dir.path(),
        stdin: Some(stdin),
        stdout: Some(stdout),
        session: Session::Own,
    };
    let mut target = Target::start(start)?;
    let (pid, image, mut said) = (target.pid(), dir.path().join("image"), [0u8; 64]);
    ensure(rustix::io::read(&listen, &mut said)? == 8, "it did not say that it is ready")?;
    rustix::io::write(&feed, b"before\n")?;
    ensure(rustix::io::read(&listen, &mut said)? == 7, "it did not repeat what it was told")?;
    ctx.run("checkpoint", &["--kill", "-o"]).arg(&image).arg(pid.to_string()).finish()?.expect_code(0)?;
    target.wait()?;
    let run = ctx.run("restart", &["--copy-status", "-i"]).arg(&image);
    let outcome = run.stdin_bytes(b"fed to the restarter\n".to_vec()).finish()?;
    outcome.expect_code(0)?;
    let got = String::from_utf8_lossy(&outcome.stdout).into_owned();
    ensure(got == "fed to the restarter\n", format!("through the restarter's stdout came {got:?}"))
}

/// A target that is no session leader: it goes back into the same session and group, ours.
fn same_session(ctx: &Context) -> Result<()> {
    let Program { mut target, dir } = in_our_session(ctx, "exits", "7")?;
    let ids = |pid| (ckpt_tests::target::field_of_stat(pid, 5), ckpt_tests::target::field_of_stat(pid, 6));
    let (pid, before, image) = (target.pid(), ids(target.pid()), dir.path().join("image"));
    ctx.run("checkpoint", &["--kill", "-o"]).arg(&image).arg(pid.to_string()).finish()?.expect_code(0)?;
    target.wait()?;
    ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?.expect_code(0)?;
    target.come_back()?;
    if ids(pid) != before {
        bail!("group and session were {before:?}, are {:?}", ids(pid));
    }
    std::fs::write(dir.path().join("go"), "")?;
    ensure(target.wait()? == Ended::Exit(7), "it did not exit with 7")
}

/// A program that job control has stopped is stopped after the restart, and goes on when told to.
fn stopped_before(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let pid = rustix::process::Pid::from_raw(program.target.pid()).context("pid")?;
    let stopped = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
        Ok(status.contains("State:\tT").then_some(()))
    };
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    sys::poll("it to stop", stopped)?;
    let image = program.path("image");
    ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    sys::poll("it to be stopped after the checkpoint", stopped)?;
    program.target.kill();
    program.back_from(ctx, &image)?;
    sys::poll("it to be stopped after the restart", stopped)?;
    std::fs::write(program.path("go"), "")?;
    std::thread::sleep(Duration::from_millis(100));
    sys::poll("it to stay stopped", stopped)?;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    program.ends_with(7)
}

/// A helper in the harness's session and group, ready.
fn in_our_session(ctx: &Context, helper: &str, arg: &str) -> Result<Program> {
    let source = ctx.helpers.join(format!("{helper}.c"));
    let binary = compile_c(ctx, &source, &["-pthread".to_owned()])?;
    let dir = tempfile::tempdir()?;
    let argv = [binary.into_os_string(), arg.into()];
    let session = Session::Ours;
    let target = Target::start(Start { argv: &argv, dir: dir.path(), stdin: None, stdout: None, session })?;
    let program = Program { target, dir };
    let out = program.path("out");
    sys::poll("ready", || Ok(std::fs::read_to_string(&out)?.contains("ready").then_some(())))?;
    Ok(program)
}

/// A shell's job that is stopped stays so and is sent nothing as `restart -W` ends, which leaves its process group without
/// anybody who could continue it.
fn stopped_job(ctx: &Context, group: &str, script: &str) -> Result<()> {
    let mut program = in_our_session(ctx, "job", group)?;
    program.target.signal(libc::SIGSTOP)?;
    let pid = program.target.pid();
    let state = || std::fs::read_to_string(format!("/proc/{pid}/status"));
    sys::poll("it to stop", || Ok(state()?.contains("State:\tT").then_some(())))?;
    let image = program.save_and_kill(ctx)?;
    let mut command = Command::new("setsid");
    command.args(["bash", "-c", script, "bash"]).arg(ctx.ckpt.as_ref().context("binary")?);
    command.args(["restart", "-W", "-i"]).arg(&image);
    Run::new(command).finish()?.expect_code(0)?;
    program.adopt()?;
    std::thread::sleep(Duration::from_millis(100));
    let got = || std::fs::read_to_string(program.path("got")).unwrap_or_default();
    ensure(state()?.contains("State:\tT"), format!("it goes on, and got {:?}", got()))?;
    program.target.signal(libc::SIGCONT)?;
    sys::poll("it to go on", || Ok((!got().is_empty()).then_some(())))?;
    ensure(got() == "c", format!("it got {:?}", got()))?;
    program.ends_with(7)
}

/// The end of `restart -W` is not that of the program's parent.
fn parent_death_signal(ctx: &Context) -> Result<()> {
    let mut program = in_our_session(ctx, "job", "own")?;
    let image = program.save_and_kill(ctx)?;
    for options in [&["-W"][..], &["-W", "--pidns"]] {
        ctx.run("restart", options).arg("-i").arg(&image).finish()?.expect_code(0)?;
        if options.len() == 1 {
            program.adopt()?;
            std::thread::sleep(Duration::from_millis(50));
            program.ends_with(7)?;
            std::fs::remove_file(program.path("go"))?;
        } else {
            std::thread::sleep(Duration::from_millis(50));
            std::fs::write(program.path("go"), "")?;
        }
        ensure(!program.path("got").exists(), format!("{options:?}: it was sent a signal"))?;
    }
    sys::poll("the other to end", || Ok(nothing_runs_in(program.dir.path()).is_ok().then_some(())))
}

/// Who starts `checkpoint` and `restart` ignores SIGCHLD; the program does not.
fn sigchld_ignored(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let (pid, image) = (program.pid(), program.path("image"));
    let ignored = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("SigIgn:")).map(str::to_owned);
        line.context("no SigIgn")
    };
    let before = ignored()?;
    let run = |args: &[&str]| {
        let mut command = Command::new("env");
        command.arg("--ignore-signal=CHLD").arg(ctx.ckpt.as_ref().expect("binary")).args(args).arg(&image);
        Run::new(command)
    };
    run(&["checkpoint", "--kill", &pid, "-o"]).finish()?.expect_code(0)?;
    program.target.wait()?;
    run(&["restart", "-W", "-i"]).finish()?.expect_code(0)?;
    program.adopt()?;
    ensure(ignored()? == before, format!("it ignored {before}, and now {}", ignored()?))?;
    program.target.kill();
    let waiting = run(&["restart", "--copy-status", "-i"]).start()?;
    sys::poll("it to be back", || Ok(ignored().is_ok().then_some(())))?;
    std::fs::write(program.path("go"), "")?;
    waiting.finish()?.expect_code(7).map(drop)
}

/// A signal sent to a stopped program is still there after a checkpoint, and in the image.
fn signal_while_stopped(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "frost", &[])?;
    let pid = *ckpt_tests::tree::children(program.target.pid()).get(2).context("the third child")?;
    let pid = rustix::process::Pid::from_raw(pid).context("pid")?;
    for signal in [rustix::process::Signal::STOP, rustix::process::Signal::USR1] {
        rustix::process::kill_process(pid, signal)?;
    }
    let (image, mark) = (program.path("image"), program.path("usr1"));
    let handled = || {
        ensure(!mark.exists(), "it went on while it was stopped")?;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
        sys::poll("its handler to run", || Ok(mark.exists().then_some(())))?;
        Ok::<_, anyhow::Error>(std::fs::remove_file(&mark)?)
    };
    ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    handled().context("after the checkpoint")?;
    program.target.kill();
    program.back_from(ctx, &image)?;
    handled().context("after the restart")?;
    program.ends_with(7)
}

/// Without the right to see the machine's timers, what remains of a timeout is not known: that is said.
fn timeout_unseen(ctx: &Context) -> Result<()> {
    let (open, dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    for path in [open.path(), dir.path()] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    }
    let (copy, image) = (open.path().join("ckpt"), open.path().join("image"));
    std::fs::copy(ctx.ckpt.as_ref().context("binary")?, &copy)?;
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let polls = open.path().join("polls");
    std::fs::copy(compile_c(ctx, &ctx.helpers.join("polls.c"), &[])?, &polls)?;
    let mut argv: Vec<OsString> = nobody.iter().map(OsString::from).collect();
    argv.push(polls.into());
    let mut program = Program::start_argv(&argv, dir, None)?;
    let caps = "+checkpoint_restore,+sys_ptrace";
    let mut checkpoint = Command::new(nobody[0]);
    checkpoint.args(&nobody[1..]).args(["--inh-caps", caps, "--ambient-caps", caps]).arg(copy);
    checkpoint.args(["checkpoint", "-o"]).arg(&image).arg(program.pid());
    std::thread::sleep(Duration::from_millis(100));
    let outcome = Run::new(checkpoint).finish()?;
    outcome.expect_code(0)?;
    let line = outcome.stderr.trim_end();
    let words = format!("thread {}: what remains of its timeout", program.pid());
    ensure(line.contains(&words) && !line.contains('\n'), format!("it said: {line}"))?;
    program.unharmed()
}
