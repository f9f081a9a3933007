//! Process trees: errors that name the right member, nothing left of half a tree, tasks being born meanwhile.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::{compile_c, find_program};
use ckpt_tests::image::metadata;
use ckpt_tests::sys;
use ckpt_tests::target::{Ended, Target, field_of_stat, reap_strays};
use ckpt_tests::tool::Run;
use ckpt_tests::tree::{Tree, children, family};

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};

pub(crate) const TESTS: &[Test] = &[
    ("refusal_names_the_member", refusal_names_the_member),
    ("child_pid_taken", child_pid_taken),
    ("child_file_missing", child_file_missing),
    ("inherit_fd_of_a_child", inherit_fd_of_a_child),
    ("new_pids", new_pids),
    ("cpu_timers", cpu_timers),
    ("stop_and_continue", stop_and_continue),
    ("forks_meanwhile", forks_meanwhile),
    ("fork_bomb", fork_bomb),
];

/// A `kin` helper and the pid of its child, as text.
fn kin(ctx: &Context, kind: &str) -> Result<(Program, String)> {
    let program = Program::start(ctx, "kin", &[kind])?;
    let child = child_of(&program)?;
    Ok((program, child))
}

fn child_of(program: &Program) -> Result<String> {
    sys::poll("the child's pid", || Ok(std::fs::read_to_string(program.path("child")).ok()))
}

/// `restart -W` fails with exit 1 and a line with all of `words`, and nothing is left.
fn fails(ctx: &Context, program: &Program, image: &Path, words: &[&str]) -> Result<()> {
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(image).finish()?;
    expect_line(&outcome, "restart", &[1], words)?;
    ensure(outcome.stdout.is_empty(), "restart printed a pid")?;
    nothing_runs_in(program.dir.path())
}

/// A child that is traced by somebody else: the error names the child and the tracer, and both live on.
fn refusal_names_the_member(ctx: &Context) -> Result<()> {
    let (mut program, child) = kin(ctx, "plain")?;
    let mut tracer = Program::start(ctx, "ptracer", &[&child])?;
    let before = Tree::of(program.target.pid())?;
    let outcome =
        ctx.run("checkpoint", &["--kill", "-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[1, 3, 4], &[&child, "kin-child", &tracer.pid(), "trac"])?;
    ensure(!program.path("image").exists(), "a refused checkpoint left an image")?;
    tracer.target.must_live()?;
    let found = before.differences(&Tree::of(program.target.pid())?, false, Clone::clone);
    ensure(found.is_empty(), format!("the tree was touched: {found:?}"))?;
    tracer.target.kill();
    program.unharmed()?;
    program.ends_with(7)
}

/// Another process has the child's pid: the error says which pid and who has it; afterwards the image still works.
fn child_pid_taken(ctx: &Context) -> Result<()> {
    let (mut program, child) = kin(ctx, "plain")?;
    let image = program.save_and_kill(ctx)?;
    let mut squatter = Program::start(ctx, "squatter", &[&child]).context("the child's pid is not free")?;
    fails(ctx, &program, &image, &[&child, "squatter"])?;
    squatter.unharmed()?;
    squatter.target.kill();
    program.back_from(ctx, &image).context("the image still works")?;
    ensure(children(program.target.pid()) == [child.parse::<i32>()?], "the child is not back")?;
    program.ends_with(7)
}

/// A file that only the child has open is gone: named, and the parent is not left behind.
fn child_file_missing(ctx: &Context) -> Result<()> {
    let (mut program, _) = kin(ctx, "file")?;
    let image = program.save_and_kill(ctx)?;
    let (here, away) = (program.path("precious"), program.path("moved"));
    std::fs::rename(&here, &away)?;
    fails(ctx, &program, &image, &["/precious"])?;
    std::fs::rename(&away, &here)?;
    program.back_from(ctx, &image).context("the image still works")?;
    program.ends_with(7)
}

/// A pipe from outside that only a child has: the restart without --inherit-fd names it, with it the child goes on.
fn inherit_fd_of_a_child(ctx: &Context) -> Result<()> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let binary = compile_c(ctx, &ctx.helpers.join("kin.c"), &["-pthread".to_owned()])?;
    let shell = find_program("sh").context("sh")?.into_os_string();
    let argv = [shell, "-c".into(), "exec \"$0\" outside 7<&0 </dev/null".into(), binary.into_os_string()];
    let mut program = Program::start_argv(&argv, tempfile::tempdir()?, Some(read.try_clone()?))?;
    child_of(&program)?;
    let image = program.save_and_kill(ctx)?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1, 2, 3], &["fd 7", "--inherit-fd"])?;
    nothing_runs_in(program.dir.path())?;
    let run = ctx.run("restart", &["-W", "--inherit-fd", "7", "-i"]).arg(&image);
    run.pass(read.try_clone()?, 7).finish()?.expect_code(0)?;
    program.adopt()?;
    rustix::io::write(&write, b"to the child\n")?;
    sys::poll("the child to repeat what it was told", || {
        Ok(std::fs::read_to_string(program.path("out"))?.contains("to the child\n").then_some(()))
    })?;
    program.ends_with(7)
}

/// --new-pids beside the original, which goes on: a tree of the same shape, its session and group by its own new pid.
fn new_pids(ctx: &Context) -> Result<()> {
    let (mut program, child) = kin(ctx, "plain")?;
    let image = program.path("image");
    ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    let outcome = ctx.run("restart", &["--new-pids", "-W", "-i"]).arg(&image).finish()?;
    outcome.expect_code(0)?;
    let copy: i32 = String::from_utf8_lossy(&outcome.stdout).trim().parse()?;
    let mut copy = Target::adopt(copy)?;
    let young = children(copy.pid());
    ensure(young.len() == 1, format!("the copy has the children {young:?}"))?;
    let pids = [program.target.pid(), child.parse()?, copy.pid(), young[0]];
    let mut different = pids.to_vec();
    different.sort_unstable();
    different.dedup();
    ensure(different.len() == 4, format!("the pids are {pids:?}"))?;
    for pid in [copy.pid(), young[0]] {
        for field in [5, 6] {
            let leader = field_of_stat(pid, field);
            ensure(leader == Some(copy.pid().into()), format!("field {field} of {pid} is {leader:?}"))?;
        }
    }
    program.unharmed()?;
    copy.kill();
    program.ends_with(7)
}

/// --new-pids: timers of CPU time are of the same tasks, whose ids are new.
fn cpu_timers(ctx: &Context) -> Result<()> {
    let binary = compile_c(ctx, &ctx.helpers.join("cpu_timers.c"), &["-pthread".to_owned()])?;
    let mut program = Program::start_argv(&[binary.into_os_string()], tempfile::tempdir()?, None)?;
    let image = program.path("image");
    ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    let outcome = ctx.run("restart", &["--new-pids", "-W", "-i"]).arg(&image).finish()?;
    outcome.expect_code(0)?;
    let mut copy = Target::adopt(String::from_utf8_lossy(&outcome.stdout).trim().parse()?)?;
    std::fs::write(program.path("go"), "")?;
    let ended = copy.wait()?;
    ensure(ended == Ended::Exit(7), format!("the copy ended with {ended:?}"))?;
    program.ends_with(7)
}

/// --stop leaves every member stopped; SIGCONT to each lets all go on.
fn stop_and_continue(ctx: &Context) -> Result<()> {
    let (mut program, child) = kin(ctx, "plain")?;
    let image = program.path("image");
    ctx.run("checkpoint", &["--stop", "-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    for pid in [&program.pid(), &child] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let stopped = status.contains("State:\tT (stopped)") && status.contains("TracerPid:\t0\n");
        ensure(stopped, format!("{pid} is not stopped: {status}"))?;
    }
    for pid in family(program.target.pid()) {
        let pid = rustix::process::Pid::from_raw(pid).context("pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    }
    program.ends_with(7)
}

const WALKERS: usize = 60;

/// The words of a `bomb`: forks, and the steps of each walker.
fn counts(program: &Program) -> Result<Vec<u64>> {
    let raw = std::fs::read(program.path("count"))?;
    Ok(raw.chunks_exact(8).take(1 + WALKERS).map(|c| u64::from_ne_bytes(c.try_into().expect("8"))).collect())
}

/// Every walker walks on.
fn walking(program: &mut Program) -> Result<()> {
    let (pid, before) = (program.target.pid(), counts(program)?);
    sys::poll("all walkers to walk on", || {
        program.target.must_live()?;
        let now = counts(program)?;
        Ok(now.iter().zip(&before).skip(1).all(|(n, b)| *n > b + 1).then_some(()))
    })?;
    for pid in family(pid) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        ensure(!status.contains("State:\tT") && !status.contains("State:\tt"), format!("stopped: {status}"))?;
    }
    Ok(())
}

/// Processes that fork and end all the time, thousands a second: a checkpoint gets hold of all or fails cleanly, and they
/// go on; with --kill none escapes, and the restarted ones go on.
fn forks_meanwhile(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "bomb", &[&WALKERS.to_string(), "15", "12000"])?;
    walking(&mut program)?;
    let (image, mut done) = (program.path("image"), 0);
    for round in 0..4 {
        let outcome = ctx.run("checkpoint", &["-f", "-o"]).arg(&image).arg(program.pid()).finish()?;
        if outcome.status.success() {
            done += 1;
        } else {
            expect_line(&outcome, "checkpoint", &[1, 3], &[]).with_context(|| format!("round {round}"))?;
            println!("    round {round}: {}", outcome.stderr.trim());
        }
        walking(&mut program).with_context(|| format!("after checkpoint {round}: {}", outcome.stderr))?;
    }
    println!("    {done} of 4 checkpoints got hold of all, after {} forks", counts(&program)?[0]);
    let outcome = ctx.run("checkpoint", &["--kill", "-f", "-o"]).arg(&image).arg(program.pid()).finish()?;
    if !outcome.status.success() {
        walking(&mut program).context("after a checkpoint --kill that failed")?;
        bail!("a tree that forks could not be checkpointed: {}", outcome.stderr.trim());
    }
    program.target.wait()?;
    program.target.all_gone(&[]).context("after checkpoint --kill")?;
    program.back_from(ctx, &image)?;
    walking(&mut program).context("after the restart")?;
    program.ends_with(7)
}

/// A cgroup that holds no more than so many tasks. Dropped, it is emptied by SIGKILL and removed.
struct Pen(PathBuf);

impl Pen {
    /// `None` where there is no such controller.
    fn new(most: usize) -> Result<Option<Pen>> {
        let above = Path::new("/sys/fs/cgroup/pids");
        if !above.join("cgroup.procs").exists() {
            return Ok(None);
        }
        let path = above.join(format!("ckpt-test-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let pen = Pen(path);
        std::fs::write(pen.0.join("pids.max"), most.to_string())?;
        Ok(Some(pen))
    }

    /// A command that runs in it.
    fn within(&self, argv: &[OsString]) -> Vec<OsString> {
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.0.display());
        ["sh".into(), "-c".into(), enter.into(), "sh".into()]
            .into_iter()
            .chain(argv.iter().cloned())
            .collect()
    }

    fn tasks(&self) -> usize {
        std::fs::read_to_string(self.0.join("tasks")).map_or(0, |tasks| tasks.lines().count())
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("pids.max"), "0"); // whoever is missed now has no children
        let gone = || {
            let pids = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            reap_strays();
            Ok(std::fs::remove_dir(&self.0).is_ok().then_some(()))
        };
        let _ = sys::poll("the cgroup to be removed", gone);
    }
}

/// The words of a `fission`: processes, forks, how many there may be, steps.
fn words(program: &Program) -> Result<[u64; 4]> {
    let raw = std::fs::read(program.path("count"))?;
    let word = |at: usize| u64::from_ne_bytes(raw[at * 8..at * 8 + 8].try_into().expect("8 bytes"));
    Ok([word(0), word(1), word(2), word(3)])
}

/// A fork bomb of 1,000 tasks, in which all fork, is stopped while it grows and when it is full: it goes on each time; with --kill
/// none is left, and all go on after a restart.
fn fork_bomb(ctx: &Context) -> Result<()> {
    const MOST: usize = 1000;
    let Some(pen) = Pen::new(MOST + 50)? else {
        return ctx.skip("tree::fork_bomb", "no pids controller");
    };
    let binary = compile_c(ctx, &ctx.helpers.join("fission.c"), &[])?;
    let argv = pen.within(&[binary.into(), MOST.to_string().into(), "300000".into()]);
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let mut program = Program::start_argv(&argv, dir, None)?;
    let image = program.path("image");
    let wait = |what: &str, program: &mut Program, enough: &dyn Fn([u64; 4]) -> bool| {
        sys::poll(what, || {
            program.target.must_live()?;
            let now = words(program)?;
            Ok(enough(now).then_some(now))
        })
    };
    let goes_on = |program: &mut Program| -> Result<()> {
        let [_, forks, _, steps] = words(program)?;
        wait("all to go on", program, &|now| now[1] > forks + 20 && now[3] > steps + 2 * MOST as u64)?;
        for pid in family(program.target.pid()) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let stopped = status.contains("State:\tT") || status.contains("State:\tt");
            ensure(!stopped, format!("stopped: {status}"))?;
        }
        Ok(())
    };
    let mut sizes = Vec::new();
    for size in [60, MOST as u64 - 5] {
        wait("the bomb to grow", &mut program, &|now| now[0] >= size)?;
        let before = words(&program)?;
        let run = ctx.run("checkpoint", &["-f", "-o"]).arg(&image).arg(program.pid()).start()?;
        let outcome = run.finish().with_context(|| format!("of {before:?}"))?;
        outcome.expect_code(0).with_context(|| format!("of {before:?}, now {:?}", words(&program)))?;
        let held = metadata(&std::fs::read(&image)?)?.processes.len();
        // None ends before there are all; then some have and others are about to be born, or to end.
        let least = (before[0] as usize).min(MOST * 9 / 10);
        ensure((least..=MOST + 50).contains(&held), format!("{held} processes in the image of {before:?}"))?;
        sizes.push((before[0], held, outcome.wall));
        goes_on(&mut program)?;
    }
    let run = ctx.run("checkpoint", &["--kill", "-f", "-o"]).arg(&image).arg(program.pid()).start()?;
    run.finish()?.expect_code(0)?;
    let [alive, forks, ..] = words(&program)?;
    program.target.wait()?;
    sys::poll("all to be gone", || {
        reap_strays();
        Ok((pen.tasks() == 0).then_some(()))
    })?;
    println!(
        "    processes when asked for, in the image, time: {sizes:?}; killed at {alive}, after {forks} forks"
    );
    let ckpt = ctx.ckpt.as_ref().context("binary")?;
    let argv = pen.within(&[ckpt.into(), "restart".into(), "-W".into(), "-i".into(), image.into()]);
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]);
    Run::new(command).start()?.finish()?.expect_code(0)?;
    program.adopt()?;
    goes_on(&mut program).context("after the restart")?;
    program.ends_with(7)
}
