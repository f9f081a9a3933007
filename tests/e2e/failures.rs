//! Restarts that fail: by the end of a process being made, an id that is taken, a signal, a limit, at whatever moment.
//! Each ends with one line that says why; nothing is left of it, and the image is as good as before.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::sys::{self, random_below};
use ckpt_tests::target::{own_children, reap_strays};
use ckpt_tests::tool::{Outcome, Run, Running};
use ckpt_tests::tree::family;
use ckpt_tests::view::living_threads;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};

pub(crate) const TESTS: &[Test] = &[
    ("puppet_killed_tree", |ctx| puppet_killed(ctx, "clan", &[], 20)),
    ("puppet_killed_nested", |ctx| puppet_killed(ctx, "nest", &[], 10)),
    ("puppet_killed_threads", |ctx| puppet_killed(ctx, "spinner", &["5"], 10)),
    ("scribe_killed", scribe_killed),
    ("id_taken", id_taken),
    ("interrupted", interrupted),
    ("interrupted_while_it_waits", interrupted_while_it_waits),
    ("limits", limits),
];

/// A program that has been checkpointed and is gone.
pub(crate) struct Scene {
    pub(crate) program: Program,
    pub(crate) image: PathBuf,
    /// The pids and tids it had.
    pub(crate) ids: Vec<i32>,
    files: Vec<String>,
    /// How long a restart takes.
    wall: Duration,
}

impl Scene {
    pub(crate) fn new(ctx: &Context, helper: &str, args: &[&str]) -> Result<Scene> {
        Scene::of(ctx, Program::start(ctx, helper, args)?, &[])
    }

    /// Of a program that is checkpointed with such options.
    fn of(ctx: &Context, mut program: Program, options: &[&str]) -> Result<Scene> {
        let members = family(program.target.pid());
        let tids = members.iter().flat_map(|pid| living_threads(*pid));
        let ids: BTreeSet<i32> = members.iter().copied().chain(tids).collect();
        let image = program.save_and_kill_with(ctx, options)?;
        let wall = program.back_from(ctx, &image)?.wall;
        program.target.kill();
        let files = program.files()?;
        Ok(Scene { program, image, ids: ids.into_iter().collect(), files, wall })
    }

    /// `restart -W` of an image.
    pub(crate) fn restart(&self, ctx: &Context, image: &Path) -> Run {
        ctx.run("restart", &["-W", "-i"]).arg(image)
    }

    /// After a failure: one line with all of `words`, and nothing is left.
    pub(crate) fn failed(&self, outcome: &Outcome, words: &[&str]) -> Result<()> {
        expect_line(outcome, "restart", &[1, 3, 4, 5], words)?;
        ensure(outcome.stdout.is_empty(), "restart printed a pid")?;
        self.nothing_left(&[])
    }

    /// No task with an id of the image but `others`, no process in the program's directory and no new file there.
    pub(crate) fn nothing_left(&self, others: &[i32]) -> Result<()> {
        sys::poll("what was made to be gone", || {
            reap_strays();
            // A root whose midwife was killed is ours to wait for, and no stray: the target had its pid.
            let _ = waitpid(Pid::from_raw(self.program.target.pid()), WaitOptions::NOHANG);
            let there = |id: &&i32| !others.contains(*id) && Path::new(&format!("/proc/{id}")).exists();
            Ok((!self.ids.iter().any(|id| there(&id))).then_some(()))
        })
        .with_context(|| format!("of {:?}; children: {:?}", self.ids, own_children()))?;
        nothing_runs_in(self.program.dir.path())?;
        let files = self.program.files()?;
        ensure(files == self.files, format!("its directory held {:?} and holds {files:?}", self.files))
    }

    /// A restart that was over before anything could happen to it.
    pub(crate) fn clear(&mut self) -> Result<()> {
        let _ = self.program.adopt(); // one of its processes may have been killed: its first one, say
        self.program.target.kill();
        self.nothing_left(&[])
    }

    /// The image still works, whatever happened.
    pub(crate) fn still_works(mut self, ctx: &Context) -> Result<()> {
        self.program.back_from(ctx, &self.image).context("the image still works")?;
        match self.program.dir.path().join("count").exists() {
            true => self.program.unharmed(), // a spinner: it never ends
            false => self.program.ends_with(7),
        }
    }
}

/// So many of the failures that are asked for in all.
fn share(ctx: &Context, percent: u32) -> u32 {
    (ctx.failures * percent).div_ceil(100)
}

/// Waits a random part of `span`, to the microsecond.
fn wait_within(span: Duration) {
    let until = Instant::now() + Duration::from_nanos(random_below(span.as_nanos() as u64));
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Runs `attempt` until it has given so many of the failures; it says whether it was one.
fn until_failed(ctx: &Context, percent: u32, mut attempt: impl FnMut(u32) -> Result<bool>) -> Result<()> {
    let (wanted, mut failures, mut attempts) = (share(ctx, percent), 0, 0);
    while failures < wanted {
        ensure(attempts < wanted * 10 + 50, format!("only {failures} failures in {attempts} attempts"))?;
        failures += u32::from(attempt(attempts).with_context(|| format!("attempt {attempts}"))?);
        attempts += 1;
    }
    ctx.ledger.failed(failures as usize);
    println!("    {failures} failures in {attempts} restarts");
    Ok(())
}

/// Any of the processes that a running `restart` has made is killed.
fn puppet_killed(ctx: &Context, helper: &str, args: &[&str], percent: u32) -> Result<()> {
    let mut scene = Scene::new(ctx, helper, args)?;
    until_failed(ctx, percent, |_| {
        let run = scene.restart(ctx, &scene.image).start()?;
        let killed = kill_descendant(run.pid(), scene.wall, |_| true)?;
        let outcome = run.finish()?;
        if outcome.status.success() {
            scene.clear()?;
            return Ok(false);
        }
        let pid = killed.context("restart failed though nothing was killed")?;
        let context = || format!("{pid} of {:?} was killed", scene.ids);
        // Process 1 of a namespace takes others along, which may be found first.
        let words = if helper == "nest" { "restart" } else { &pid.to_string() };
        scene.failed(&outcome, &[words]).with_context(context)?;
        Ok(true)
    })?;
    scene.still_works(ctx)
}

/// A process is killed that works for `restart`, most often the one that makes names: those it made are gone, those it put
/// aside are back, and nothing else is touched.
fn scribe_killed(ctx: &Context) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let embedded: Vec<PathBuf> = (0..10).map(|i| dir.path().join(format!("data.{i}"))).collect();
    embedded.iter().try_for_each(|path| std::fs::write(path, "held"))?;
    let binary = compile_c(ctx, &ctx.helpers.join("names.c"), &[])?;
    let program = Program::start_argv(&[binary.into()], dir, None)?;
    let mut scene = Scene::of(ctx, program, &["--embed-files=data.*"])?;
    let without_them = |scene: &mut Scene| {
        embedded.iter().try_for_each(std::fs::remove_file)?;
        scene.files = scene.program.files()?;
        stats(&scene.program)
    };
    let mut before = without_them(&mut scene)?;
    until_failed(ctx, 60, |attempt| {
        // By the end of it the restart sees other paths than the scribe.
        let mut run = ctx.run("restart", &["-W", "-i"]).arg(&scene.image);
        if attempt % 3 == 0 {
            run = run.arg("--mntns");
        }
        let run = run.start()?;
        let span = scene.wall / (1 << (attempt % 4));
        let killed = kill_descendant(run.pid(), span, |pid| !scene.ids.contains(&pid))?;
        let outcome = run.finish()?;
        if outcome.status.success() {
            scene.program.adopt()?;
            scene.program.target.kill();
            before = without_them(&mut scene)?;
            return Ok(false);
        }
        let pid = killed.context("restart failed though nothing was killed")?;
        scene.failed(&outcome, &[&format!("pid {pid}, which makes "), " for restart, was killed"])?;
        let after = stats(&scene.program)?;
        ensure(after == before, format!("there was {before:?} and is {after:?}"))?;
        Ok(true)
    })?;
    scene.still_works(ctx)
}

/// What is in a program's directory, each file with what tells it from another.
fn stats(program: &Program) -> Result<Vec<(String, [i64; 4])>> {
    let stat = |name: String| {
        let stat = std::fs::symlink_metadata(program.path(&name))?;
        Ok((name, [stat.ino() as i64, stat.mode().into(), stat.mtime(), stat.mtime_nsec()]))
    };
    program.files()?.into_iter().map(stat).collect()
}

/// SIGKILL to a descendant of `pid` that is `wanted`, some time after there is one; `None` when `pid` ended before.
fn kill_descendant(pid: i32, span: Duration, wanted: impl Fn(i32) -> bool) -> Result<Option<i32>> {
    let running = || living_threads(pid).contains(&pid);
    let below = || family(pid).into_iter().skip(1).filter(|pid| wanted(*pid)).collect::<Vec<i32>>();
    while below().is_empty() {
        if !running() {
            return Ok(None);
        }
    }
    wait_within(span);
    let below = below();
    let Some(victim) = below.get(random_below(below.len() as u64) as usize) else { return Ok(None) };
    let Ok(pidfd) = pidfd_open(Pid::from_raw(*victim).context("pid 0")?, PidfdFlags::empty()) else {
        return Ok(None);
    };
    // It is what we meant, and not another that was given its pid.
    if running() && family(pid).contains(victim) && pidfd_send_signal(pidfd, Signal::KILL).is_ok() {
        return Ok(Some(*victim));
    }
    Ok(None)
}

/// Any pid or tid of the image is somebody else's.
fn id_taken(ctx: &Context) -> Result<()> {
    let mut scene = Scene::new(ctx, "clan", &[])?;
    until_failed(ctx, 15, |_| {
        let id = scene.ids[random_below(scene.ids.len() as u64) as usize];
        let mut squatter = Program::start(ctx, "squatter", &[&id.to_string()])?;
        let outcome = scene.restart(ctx, &scene.image).finish()?;
        expect_line(&outcome, "restart", &[1], &[&format!("pid {id} is taken by squatter")])?;
        scene.nothing_left(&[id])?;
        squatter.unharmed()?;
        drop(squatter);
        // Also when it had the root's pid, which only the program's owner waits for.
        scene.clear()?;
        Ok(true)
    })?;
    scene.still_works(ctx)
}

/// A signal that asks `restart` to end comes at any moment: it ends by it.
fn interrupted(ctx: &Context) -> Result<()> {
    let mut scene = Scene::new(ctx, "clan", &[])?;
    until_failed(ctx, 20, |_| {
        let signal = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP][random_below(3) as usize];
        let run = scene.restart(ctx, &scene.image).start()?;
        wait_within(scene.wall);
        run.signal(signal)?;
        let outcome = run.finish()?;
        if outcome.status.success() {
            scene.clear()?;
            return Ok(false);
        }
        let by = std::os::unix::process::ExitStatusExt::signal(&outcome.status);
        ensure(by == Some(signal), format!("signal {signal}: {}, {}", outcome.status, outcome.stderr))?;
        // Nothing, if it came before anybody could catch it.
        let lines = outcome.stderr.lines().count();
        ensure(lines <= 1 && outcome.stdout.is_empty(), format!("it said {:?}", outcome.stderr))?;
        scene.nothing_left(&[])?;
        Ok(true)
    })?;
    scene.still_works(ctx)
}

/// A signal comes while `restart` waits for an image that is not written, or not to its end.
fn interrupted_while_it_waits(ctx: &Context) -> Result<()> {
    let scene = Scene::new(ctx, "clan", &[])?;
    let (whole, fifo) = (std::fs::read(&scene.image)?, tempfile::tempdir()?);
    let fifo = fifo.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    let pipe = |bytes: &[u8]| {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (mut write, bytes) = (std::fs::File::from(write), bytes.to_vec());
        let writer = std::thread::spawn(move || {
            let _ = std::io::Write::write_all(&mut write, &bytes);
            write
        });
        Ok::<_, anyhow::Error>((read, writer))
    };
    let mut failures = 0;
    for (bytes, options) in
        [(0, &["-W"][..]), (100, &["-W"]), (whole.len() - 100, &["-W"]), (whole.len() / 2, &[])]
    {
        for inspect in [&[][..], &["--inspect"]] {
            let (input, writer) = pipe(&whole[..bytes])?;
            let run = ctx.run("restart", options).args(inspect).stdin_fd(input).start()?;
            ends_by(run, libc::SIGTERM).with_context(|| format!("{bytes} bytes, {options:?} {inspect:?}"))?;
            drop(writer.join());
            scene.nothing_left(&[])?;
            failures += 1;
        }
    }
    ends_by(ctx.run("restart", &["-W", "-i"]).arg(&fifo).start()?, libc::SIGINT).context("FIFO")?;
    // Once there is a writer all is well.
    let run = ctx.run("restart", &["-W", "-i"]).arg(&fifo).start()?;
    std::fs::write(&fifo, &whole)?;
    run.finish()?.expect_code(0)?;
    let mut scene = scene;
    scene.clear()?;
    ctx.ledger.failed(failures + 1);
    scene.still_works(ctx)
}

/// A command that waits for something ends by a signal, the first one.
fn ends_by(run: Running, signal: i32) -> Result<()> {
    std::thread::sleep(Duration::from_millis(300));
    run.signal(signal)?;
    let outcome = run.finish()?;
    let by = std::os::unix::process::ExitStatusExt::signal(&outcome.status);
    ensure(by == Some(signal), format!("signal {signal}: {}, {}", outcome.status, outcome.stderr))?;
    ensure(outcome.stderr.lines().count() == 1, format!("it said {:?}", outcome.stderr))
}

/// `restart` under a limit that it can live with, but not bring the program back.
fn limits(ctx: &Context) -> Result<()> {
    let mut scene = Scene::new(ctx, "clan", &[])?;
    let open_files: Vec<String> = (10..40).map(|n| format!("--nofile={n}")).collect();
    // The program has a gigabyte of addresses, and a file without a name of a megabyte.
    let others = ["--as=700000000", "--as=1000000000", "--fsize=500000"];
    // Soft limits alone are in nobody's way.
    for limit in others {
        let mut command = Command::new("prlimit");
        command.arg(format!("{limit}:unlimited")).arg(ctx.ckpt.as_ref().expect("binary"));
        command.args(["restart", "-W", "-i"]);
        Run::new(command).arg(&scene.image).finish()?.expect_code(0).context(limit)?;
        scene.clear()?;
    }
    let others = others.iter().map(|&limit| limit.to_owned());
    let limits: Vec<String> = others.chain(open_files).collect();
    let mut failures = Vec::new();
    for limit in limits {
        let mut command = Command::new("prlimit");
        command.arg(&limit).arg(ctx.ckpt.as_ref().expect("binary")).args(["restart", "-W", "-i"]);
        let outcome = Run::new(command).arg(&scene.image).finish()?;
        if outcome.status.success() {
            scene.clear()?;
            bail!("{limit} did not keep restart from anything");
        }
        scene.failed(&outcome, &[]).with_context(|| limit.clone())?;
        failures.push(outcome.stderr);
    }
    ctx.ledger.failed(failures.len());
    println!("    {} failures, {} different", failures.len(), failures.iter().collect::<BTreeSet<_>>().len());
    scene.still_works(ctx)
}
