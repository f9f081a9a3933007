//! What a program may do, or be sent, just while it is stopped: it is none the worse, and the image is right.

use std::time::Duration;

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::sys;
use ckpt_tests::target::Ended;

use crate::common::{Program, Test, ensure};
use crate::criu::Case;
use crate::frozen::{Group, Kind, V1, V2};

pub(crate) const TESTS: &[Test] = &[
    ("executes", |ctx| executes(ctx, "0", 60)),
    ("executes_among_many", |ctx| executes(ctx, "60", 12)),
    ("enters_seccomp", enters_seccomp),
    ("no_signal_is_lost", no_signal_is_lost),
    ("parked_while_stopped", parked_while_stopped),
    ("epoll_is_interrupted", epoll_is_interrupted),
    ("stopped_meanwhile", stopped_meanwhile),
    ("continued_meanwhile", continued_meanwhile),
    ("thread_in_vfork", thread_in_vfork),
    ("chilled_and_killed_v1", |ctx| chilled_and_killed(ctx, V1)),
    ("chilled_and_killed_v2", |ctx| chilled_and_killed(ctx, V2)),
];

/// A thread that executes a program ends the others, and takes over the leader's id: a checkpoint comes before or after, or
/// says so. (That of the leader would get it the registers of the program before; that of 60 made both wait for ever.)
fn executes(ctx: &Context, beside: &str, rounds: u32) -> Result<()> {
    let mut program = Program::start(ctx, "execs", &[beside])?;
    let mut images = 0;
    for round in 0..rounds {
        let outcome =
            ctx.run("checkpoint", &["-f", "-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
        if outcome.status.success() {
            images += 1;
        } else {
            outcome.expect_code(1).with_context(|| format!("round {round}"))?;
        }
        program.target.must_live().with_context(|| format!("round {round}"))?;
    }
    println!("    {images} images in {rounds} rounds");
    ensure(images > 0, "there was no image at all")?;
    program.ends_with(7)
}

/// A child that enters seccomp after the survey must not run calls of ours: strict mode would kill it.
fn enters_seccomp(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "strict", &[])?;
    let mut refused = 0;
    for round in 0..40 {
        let outcome =
            ctx.run("checkpoint", &["-f", "-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
        if !outcome.status.success() {
            let line = outcome.expect_error("checkpoint", 3)?;
            ensure(line.contains("seccomp"), format!("refused for another reason: {line}"))?;
            refused += 1;
        } else {
            outcome.expect_code(0)?;
        }
        program.target.must_live().with_context(|| format!("round {round}"))?;
    }
    println!("    {refused} of 40 were refused");
    ensure(refused > 0, "no child was met in seccomp: the test tests nothing")?;
    program.ends_with(7)
}

/// What a program is sent while it is asked to stop, it gets.
fn no_signal_is_lost(ctx: &Context) -> Result<()> {
    let mut counts = Program::start(ctx, "counts", &[])?;
    let mut sends = Program::start(ctx, "counts", &[&counts.pid()])?;
    for _ in 0..200 {
        ctx.run("checkpoint", &["-f", "-o"])
            .arg(counts.path("image"))
            .arg(counts.pid())
            .finish()?
            .expect_code(0)?;
    }
    sends.ends_with(7)?;
    let count = |program: &Program| -> Result<String> {
        let out = std::fs::read_to_string(program.path("out"))?;
        Ok(out.lines().last().unwrap_or_default().to_owned())
    };
    let sent = count(&sends)?;
    // What is queued is delivered before it looks for the file.
    counts.ends_with(7)?;
    println!("    {sent}");
    let many = sent.strip_prefix("count ").is_some_and(|count| count.parse().is_ok_and(|n: u64| n > 1000));
    ensure(many, format!("hardly anything was sent: {sent}"))?;
    ensure(count(&counts)? == sent, format!("sent: {sent}, received: {}", count(&counts)?))
}

/// A stopped program is not parked by SIGCONT, which would let it go on.
fn parked_while_stopped(ctx: &Context) -> Result<()> {
    let checkpoint = |program: &Program| {
        ctx.run("checkpoint", &["-f", "-o"]).arg(program.path("image")).arg(program.pid()).finish()
    };
    let is_stopped = |program: &Program| state(program).map(|state| state == "T");
    for (args, code) in [(&["ignores"][..], 0), (&[], 3)] {
        let mut program = Program::start(ctx, "parks", args)?;
        program.target.signal(libc::SIGSTOP)?;
        sys::poll("it to be stopped", || Ok(is_stopped(&program)?.then_some(())))?;
        let outcome = checkpoint(&program)?;
        outcome.expect_code(code)?;
        ensure(
            code == 0 || outcome.stderr.contains("let it go on first"),
            format!("no advice: {}", outcome.stderr),
        )?;
        ensure(is_stopped(&program)?, "it was stopped, and goes on")?;
        program.target.signal(libc::SIGCONT)?;
        checkpoint(&program)?.expect_code(0)?;
        program.ends_with(7)?;
    }
    Ok(())
}

/// The letter of its state.
fn state(program: &Program) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("State:\t")).unwrap_or_default();
    Ok(line.chars().take(1).collect())
}

/// An action script that sends the tree's root a signal while it stands still.
fn sends(signal: &str) -> String {
    format!("test $CRTOOLS_SCRIPT_ACTION != network-lock || kill -{signal} $CRTOOLS_INIT_PID")
}

/// A call that no handler lets go on is ended by one that runs after the freeze, in the original and in the image.
fn epoll_is_interrupted(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "epolls", &[])?;
    let call = |case: &Case<'_>| std::fs::read_to_string(format!("/proc/{}/wchan", case.program.pid()));
    sys::poll("epoll_wait", || Ok(call(&case)?.contains("epoll").then_some(())))?;
    case.done(case.dump(&["-R", "--action-script", &sends("TERM")]), "dump.log")?;
    let ended = case.program.target.wait()?;
    ensure(ended == Ended::Exit(7), format!("it ended with {ended:?}"))?;
    // The image has the signal: it ends at once.
    ctx.run("restart", &["--copy-status", "-i"]).arg(case.path("checkpoint.img")).finish()?.expect_code(7)?;
    Ok(())
}

/// A SIGSTOP that comes while it stands still takes effect afterwards, and in the image.
fn stopped_meanwhile(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    case.done(case.dump(&["-R", "--action-script", &sends("STOP")]), "dump.log")?;
    let stopped =
        |case: &Case<'_>| sys::poll("it to be stopped", || Ok((state(&case.program)? == "T").then_some(())));
    stopped(&case)?;
    case.program.target.signal(libc::SIGCONT)?;
    case.program.ends_with(7)?;
    case.back(&[])?;
    stopped(&case)?;
    case.program.target.signal(libc::SIGCONT)?;
    case.program.ends_with(7)
}

/// A SIGCONT after it has the last word.
fn continued_meanwhile(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let script = format!(
        "{}; test $CRTOOLS_SCRIPT_ACTION != post-dump || kill -CONT $CRTOOLS_INIT_PID",
        sends("STOP")
    );
    case.done(case.dump(&["-R", "--action-script", &script]), "dump.log")?;
    case.program.unharmed()?;
    case.program.ends_with(7)
}

/// A thread that waits for its vfork child is refused by name, as a main thread is.
fn thread_in_vfork(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "vforks", &[])?;
    let outcome = ctx.run("checkpoint", &["-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
    let line = outcome.expect_error("checkpoint", 3)?;
    ensure(line.contains("vfork"), format!("refused for another reason: {line}"))?;
    program.target.must_live()?;
    program.ends_with(7)
}

/// A cgroup that is frozen for a dump is thawed when the dump is killed, at whatever moment.
fn chilled_and_killed(ctx: &Context, kind: Kind) -> Result<()> {
    let mut case = Case::start(ctx, "kin", &["plain"])?;
    let name = format!("chilled-{}-{}", case.program.pid(), kind.1);
    let Some(group) = Group::new(kind, &name)? else {
        return ctx.skip("races::chilled_and_killed", &format!("this kernel has no {}", kind.0));
    };
    for pid in ckpt_tests::tree::family(case.program.target.pid()) {
        group.take(pid)?;
    }
    let path = group.path.to_str().context("path")?.to_owned();
    let mut hits = 0;
    for _ in 0..30 {
        let mut running = case.dump(&["-R", "--freeze-cgroup", &path]).start()?;
        std::thread::sleep(Duration::from_micros(sys::random_below(30_000)));
        hits += u32::from(running.kill());
        sys::poll("the cgroup to be thawed", || Ok((!group.is_set() && !group.is_frozen()).then_some(())))?;
        sys::poll("the tree to go on", || Ok(case.program.unharmed().ok()))?;
        let _ = std::fs::remove_file(case.path("checkpoint.img"));
    }
    println!("    {hits} of 30 kills while it ran");
    ensure(hits > 3, "no kill found the dump running: the test tests nothing")?;
    drop(group);
    case.program.ends_with(7)
}
