//! SIGKILL at random instants: of `checkpoint` (the target must not notice) and of `restart` (nothing may stay); and
//! SIGINT, of a `checkpoint` of many processes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::sys::{self, random_below};
use ckpt_tests::target::{Ended, Target, own_children, reap_strays};
use ckpt_tests::tool::Running;
use ckpt_tests::tree::{Tree, family};
use ckpt_tests::view::{View, living_threads, raw_maps, witness};

use crate::common::{Program, Test, ensure, expect_line};

pub(crate) const TESTS: &[Test] = &[
    ("checkpoint_killed_single", |ctx| checkpoint_killed(ctx, &["1"])),
    ("checkpoint_killed_threads", |ctx| checkpoint_killed(ctx, &["5"])),
    ("checkpoint_killed_leaderless", |ctx| checkpoint_killed(ctx, &["4", "leaderless"])),
    ("checkpoint_killed_tree", |ctx| checkpoint_killed(ctx, &["8", "fork"])),
    ("checkpoint_interrupted", checkpoint_interrupted),
    ("target_killed_threads", |ctx| target_killed(ctx, &["5"])),
    ("target_killed_tree", |ctx| target_killed(ctx, &["8", "fork"])),
    ("restart_killed_single", |ctx| restart_killed(ctx, &["1"])),
    ("restart_killed_threads", |ctx| restart_killed(ctx, &["5"])),
    ("restart_killed_leaderless", |ctx| restart_killed(ctx, &["4", "leaderless"])),
    ("restart_killed_tree", |ctx| restart_killed(ctx, &["8", "fork"])),
];

/// The spinner's shared lines: count, twin, wrong.
fn counts(dir: &Path, threads: usize) -> Result<Vec<[u64; 3]>> {
    let raw = std::fs::read(dir.join("count"))?;
    let word = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().expect("8 bytes"));
    Ok((0..threads).map(|t| [word(t * 64), word(t * 64 + 8), word(t * 64 + 16)]).collect())
}

/// Every thread counts on, and none has noticed anything.
fn counting(target: &mut Target, dir: &Path, threads: usize) -> Result<()> {
    counting_by(1000, target, dir, threads)
}

fn counting_by(least: u64, target: &mut Target, dir: &Path, threads: usize) -> Result<()> {
    let before = counts(dir, threads)?;
    sys::poll("every thread to count on", || {
        target.must_live()?;
        let now = counts(dir, threads)?;
        if let Some(t) = now.iter().position(|line| line[2] != 0) {
            bail!("thread {t} saw something wrong: code {}", now[t][2]);
        }
        Ok(now.iter().zip(&before).all(|(n, b)| n[0] > b[0] + least).then_some(()))
    })
}

/// The bytes of the target's vdso, where a visitor may put its first code.
fn vdso(pid: i32) -> Result<Vec<u8>> {
    let maps = raw_maps(pid)?;
    let line = maps.lines().find(|l| l.ends_with("[vdso]")).context("no vdso")?;
    let (start, end) = line.split_once(' ').and_then(|(r, _)| r.split_once('-')).context("maps")?;
    let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
    let mut bytes = vec![0; usize::try_from(end - start)?];
    let mem = std::fs::File::open(format!("/proc/{}/mem", witness(pid)))?;
    std::os::unix::fs::FileExt::read_exact_at(&mem, &mut bytes, start)?;
    Ok(bytes)
}

/// Lets it run for a random part of `span`, then SIGKILLs it. True when it was still running.
pub(crate) fn kill_within(mut run: Running, span: Duration) -> Result<bool> {
    let until = Instant::now() + Duration::from_nanos(random_below(u64::try_from(span.as_nanos())?));
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    Ok(run.kill())
}

/// The plain maps of a whole tree: the kernel may not even have merged two areas.
fn tree_maps(tree: &Tree) -> Result<String> {
    tree.pids().into_iter().map(raw_maps).collect()
}

fn tree_vdsos(tree: &Tree) -> Result<Vec<Vec<u8>>> {
    tree.pids().into_iter().map(vdso).collect()
}

fn checkpoint_killed(ctx: &Context, args: &[&str]) -> Result<()> {
    let mut program = Program::start(ctx, "spinner", args)?;
    let (pid, threads) = (program.target.pid(), args[0].parse()?);
    counting(&mut program.target, program.dir.path(), threads)?;
    let view = Tree::of(pid)?;
    let (maps, code) = (tree_maps(&view)?, tree_vdsos(&view)?);
    let (mut hits, mut code_left) = (0, 0);
    let image = program.path("image");
    let whole = ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?;
    whole.expect_code(0)?;
    let mut span = whole.wall * 5 / 4;
    let (least, mut kills) = (ctx.kills / 2, 0);
    // More of them if too few find it running.
    for round in 0..least * 4 {
        if round >= least && hits * 3 > least {
            break;
        }
        kills += 1;
        let _ = std::fs::remove_file(&image);
        let run = ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).start()?;
        let hit = kill_within(run, span / (1 << (round % 3)))?;
        hits += u32::from(hit);
        // It was measured on a machine that may have had more to do, or less.
        span = if hit { (span * 9 / 8).min(whole.wall * 2) } else { span * 3 / 4 };
        let context = || format!("kill {round}");
        counting(&mut program.target, program.dir.path(), threads).with_context(context)?;
        let differ = || Ok::<_, anyhow::Error>(view.differences(&Tree::of(pid)?, false, View::clone));
        let check = || Ok((differ()?.is_empty() && tree_maps(&view)? == maps).then_some(()));
        if sys::poll("the target to look as before", check).is_err() {
            let left: Vec<String> =
                tree_maps(&view)?.lines().filter(|l| !maps.contains(*l)).map(str::to_owned).collect();
            bail!("kill {round} left: {:?}; mappings: {left:?}", differ()?);
        }
        code_left += u32::from(tree_vdsos(&view)? != code);
        if image.exists() {
            ctx.run("info", &["--verify"]).arg(&image).finish()?.expect_code(0).with_context(context)?;
        }
    }
    println!(
        "    {kills} kills, {hits} while it ran; code of a dead visitor found (harmless) after {code_left}"
    );
    ensure(hits * 3 > least, format!("only {hits} kills found checkpoint running: the test tests nothing"))?;
    let _ = std::fs::remove_file(&image);
    ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    ensure(tree_vdsos(&view)? == code, "the next visit did not clean the vdso")?;
    std::fs::remove_file(&image)?;
    let image = program.save_and_kill(ctx)?;
    program.back_from(ctx, &image).context("a full checkpoint and restart after the kills")?;
    counting(&mut program.target, program.dir.path(), threads)
}

/// SIGINT while 200 processes are found, stopped, looked at, written: it ends by that, they go on, no file is left.
fn checkpoint_interrupted(ctx: &Context) -> Result<()> {
    const CROWD: usize = 200;
    let mut program = Program::start(ctx, "spinner", &[&CROWD.to_string(), "fork", "calm"])?;
    let pid = program.target.pid();
    counting_by(1, &mut program.target, program.dir.path(), CROWD)?;
    let (view, files, image) = (Tree::of(pid)?, program.files()?, program.path("image"));
    let run = ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).start()?;
    let whole = run.finish()?;
    whole.expect_code(0)?;
    let (rounds, mut hits, mut span) = ((ctx.kills / 6).max(5), 0, whole.wall);
    for round in 0..rounds * 10 {
        let _ = std::fs::remove_file(&image);
        if hits >= rounds {
            break;
        }
        let run = ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).start()?;
        std::thread::sleep(Duration::from_nanos(random_below(u64::try_from(span.as_nanos())?)));
        let _ = run.signal(libc::SIGINT); // it may be over
        let outcome = run.finish()?;
        let context = || format!("interrupt {round}: {}, {}", outcome.status, outcome.stderr);
        // It was measured on a machine that may have had more to do, or less.
        span = if outcome.status.success() { span / 2 } else { (span * 9 / 8).min(whole.wall * 2) };
        if !outcome.status.success() {
            hits += 1;
            let by = std::os::unix::process::ExitStatusExt::signal(&outcome.status);
            ensure(by == Some(libc::SIGINT) && outcome.stderr.lines().count() <= 1, context())?;
            ensure(program.files()? == files, format!("{}: it left {:?}", context(), program.files()?))?;
        }
        program.unharmed().with_context(context)?;
        counting_by(1, &mut program.target, program.dir.path(), CROWD).with_context(context)?;
    }
    ensure(hits >= rounds, format!("only {hits} signals found checkpoint running"))?;
    let found = view.differences(&Tree::of(pid)?, false, View::clone);
    ensure(found.is_empty(), format!("the tree was touched: {found:?}"))
}

/// A process is killed by somebody else while it is being checkpointed: an error, or an image from before.
fn target_killed(ctx: &Context, args: &[&str]) -> Result<()> {
    let (mut failures, mut span) = (0, Duration::from_millis(20));
    for round in 0..(ctx.kills / 3).max(10) {
        let program = Program::start(ctx, "spinner", args)?;
        let (files, image, pids) = (program.files()?, program.path("image"), family(program.target.pid()));
        let victim = pids[random_below(pids.len() as u64) as usize];
        let run = ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).start()?;
        std::thread::sleep(Duration::from_nanos(random_below(u64::try_from(span.as_nanos())?)));
        let victim = rustix::process::Pid::from_raw(victim).context("pid 0")?;
        rustix::process::kill_process(victim, rustix::process::Signal::KILL)?;
        let outcome = run.finish().with_context(|| format!("round {round}: {victim:?} of {pids:?}"))?;
        span = (span + outcome.wall) / 2;
        if outcome.status.success() {
            ctx.run("info", &["--verify"]).arg(&image).finish()?.expect_code(0)?;
        } else {
            expect_line(&outcome, "checkpoint", &[1, 3, 4], &["pid "])?;
            ensure(program.files()? == files, format!("it left {:?}", program.files()?))?;
            failures += 1;
        }
    }
    println!("    {failures} checkpoints failed");
    Ok(())
}

/// How many of `pids` are processes that a dead `restart` left to us.
fn stayed(pids: &[i32]) -> usize {
    let ours = own_children();
    pids.iter().filter(|pid| ours.iter().any(|(child, _)| child == *pid)).count()
}

fn restart_killed(ctx: &Context, args: &[&str]) -> Result<()> {
    let mut program = Program::start(ctx, "spinner", args)?;
    let (pid, threads) = (program.target.pid(), args[0].parse()?);
    counting(&mut program.target, program.dir.path(), threads)?;
    let tasks = |pid| -> usize { family(pid).into_iter().map(|pid| living_threads(pid).len()).sum() };
    let pids = family(pid);
    let image = program.save_and_kill(ctx)?;
    let whole = program.back_from(ctx, &image)?;
    program.target.kill();
    let (mut hits, mut finished) = (0, 0);
    let rounds = (ctx.kills / 3).max(10);
    for round in 0..rounds * 10 {
        if round >= rounds && hits > 3 {
            break;
        }
        let run = ctx.run("restart", &["-W", "-i"]).arg(&image).start()?;
        // The first restart may have been a slow one: every other round aims at an earlier part.
        hits += u32::from(kill_within(run, whole.wall * 5 / 4 / (1 << (round % 4)))?);
        // Gone, or (killed after it had let the program go) wholly there.
        let verdict = sys::poll("restart's tasks to be gone or running", || {
            reap_strays();
            let Ok(mut target) = Target::adopt(pid) else {
                return Ok((stayed(&pids) == 0).then_some(false)); // and nobody without it
            };
            if target.ended().is_err() || target.ended()?.is_some() {
                target.release(); // somebody else was given the pid, or it has ended
                return Ok((stayed(&pids) == 0).then_some(false));
            }
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let whole = status.contains("TracerPid:\t0\n") && tasks(pid) == threads;
            if whole && counting(&mut target, program.dir.path(), threads).is_ok() {
                return Ok(Some(true)); // dropping the target kills it, and its family
            }
            target.release();
            Ok(None)
        });
        finished += u32::from(verdict.with_context(|| format!("kill {round}"))?);
    }
    println!("    {hits} kills while restart ran, {finished} restarts had already let the program go");
    ensure(hits > 3, "no kill found restart running: the test tests nothing")?;
    program.back_from(ctx, &image).context("the image still works")?;
    counting(&mut program.target, program.dir.path(), threads)
}

/// `checkpoint` killed at random instants: what waits in the ptys or sockets of a fixture, which looks at it itself, is there
/// once, in order, and nothing else of them has changed.
pub(crate) fn program_untouched(ctx: &Context, fixture: &str, case: &str) -> Result<()> {
    let binary = compile_c(ctx, &ctx.fixtures.join(fixture), &[])?;
    let argv = [binary.into(), case.into()];
    let mut program = Program::start_argv(&argv, tempfile::tempdir()?, None)?;
    let image = program.path("image");
    let pid = program.pid();
    let save = || ctx.run("checkpoint", &["-f", "-o"]).arg(&image).arg(&pid).start();
    let begin = Instant::now();
    save()?.finish()?.expect_code(0)?;
    let span = begin.elapsed();
    let mut hits = 0;
    for round in 0..ctx.kills {
        hits += u32::from(kill_within(save()?, span)?);
        program.target.must_live().with_context(|| {
            let said = std::fs::read_to_string(program.path("out")).unwrap_or_default();
            format!("after kill {round}; it said: {said}")
        })?;
        sys::poll("it to be let go", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", program.target.pid()))?;
            Ok(status.contains("TracerPid:\t0\n").then_some(()))
        })?;
    }
    println!("    {hits} of {} checkpoints were killed before they ended", ctx.kills);
    ensure(hits * 10 > ctx.kills, "hardly any kill found checkpoint running: the test tests nothing")?;
    save()?.finish()?.expect_code(0)?;
    std::fs::write(program.path("go.1"), "0 0")?;
    let ended = program.target.wait()?;
    let said = std::fs::read_to_string(program.path("out"))?;
    ensure(ended == Ended::Exit(0) && said.ends_with("\nok\n"), format!("it ended with {ended:?}: {said}"))
}
