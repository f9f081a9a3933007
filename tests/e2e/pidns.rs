//! Restart in other surroundings: a pid namespace, a mount namespace, another root directory.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::sys;
use ckpt_tests::target::{Ended, Target, all_pids, field_of_stat, reap_strays};
use ckpt_tests::tree::{Tree, children, family};

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};

pub(crate) const TESTS: &[Test] = &[
    ("copies_status", copies_status),
    ("sends_signals", sends_signals),
    ("lives_on_alone", lives_on_alone),
    ("lives_as_long_as_anybody", lives_as_long_as_anybody),
    ("two_copies", two_copies),
    ("killed", killed),
    ("group_left", group_left),
    ("nested_new_pids", nested_new_pids),
    ("nested_process_one", nested_process_one),
    ("nested_restart_killed", nested_restart_killed),
    ("nested_checkpoint_killed", nested_checkpoint_killed),
    ("mount_namespace", mount_namespace),
    ("process_one", process_one),
    ("root_directory", root_directory),
    ("root_directory_missing", root_directory_missing),
    ("inspect", inspect),
];

/// A line of /proc/PID/status.
pub(crate) fn line(pid: i32, key: &str) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    Ok(line.context("no such line")?.trim().to_owned())
}

fn parent(pid: i32) -> Option<i32> {
    field_of_stat(pid, 4).and_then(|ppid| i32::try_from(ppid).ok())
}

/// Whether nobody traces it.
pub(crate) fn is_free(pid: &i32) -> bool {
    line(*pid, "TracerPid").is_ok_and(|tracer| tracer == "0")
}

/// The one process that works in `dir`, once it is let go.
fn the_one_in(dir: &Path) -> Result<i32> {
    sys::poll("a restarted process", || Ok(working_in(dir).into_iter().find(is_free)))
}

/// A waiting `restart --pidns`.
fn waiting(ctx: &Context, program: &Program, image: &Path, args: &[&str]) -> Result<Target> {
    ctx.run("restart", &["--pidns", "--copy-status"])
        .args(args)
        .arg("-i")
        .arg(image)
        .stand_in(program.dir.path())
}

/// The command ends as the program does, and the namespace with it.
fn copies_status(ctx: &Context) -> Result<()> {
    for (signal, want) in [(None, 7), (Some(libc::SIGKILL), 128 + 9)] {
        let mut program = Program::start(ctx, "exits", &["7"])?;
        let image = program.save_and_kill(ctx)?;
        let mut restart = waiting(ctx, &program, &image, &[])?;
        let pid = the_one_in(program.dir.path())?;
        let init = parent(pid).context("its parent")?;
        ensure(line(pid, "NSpid")? == format!("{pid}\t{}", program.pid()), "it has another pid")?;
        ensure(line(init, "Name")? == "ckpt-init", "its parent is not an init")?;
        ensure(line(init, "NSpid")? == format!("{init}\t1"), "the init is not process 1")?;
        ensure(parent(init) == Some(restart.pid()), "the init is not a child of restart")?;
        match signal {
            None => std::fs::write(program.path("go"), "")?,
            Some(_) => kill(pid)?,
        }
        let ended = restart.wait()?;
        ensure(ended == Ended::Exit(want), format!("restart ended with {ended:?}, not {want}"))?;
        gone(&[pid, init])?;
    }
    Ok(())
}

fn kill(pid: i32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).context("pid")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

fn gone(pids: &[i32]) -> Result<()> {
    sys::poll("the namespace to be gone", || {
        reap_strays();
        Ok((!pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists())).then_some(()))
    })
}

/// Signals to the command reach the program; with --signal, another one than what came.
fn sends_signals(ctx: &Context) -> Result<()> {
    for (args, want) in [(&[][..], 100 + libc::SIGTERM), (&["--signal", "int"], 100 + libc::SIGINT)] {
        let mut program = Program::start(ctx, "exits", &["7"])?;
        let image = program.save_and_kill(ctx)?;
        let mut restart = waiting(ctx, &program, &image, args)?;
        the_one_in(program.dir.path())?;
        restart.signal(libc::SIGTERM)?;
        let ended = restart.wait()?;
        ensure(ended == Ended::Exit(want), format!("{args:?}: restart ended with {ended:?}, not {want}"))?;
    }
    Ok(())
}

/// With -W it prints the pid by which we know the program, which goes on when restart has ended.
fn lives_on_alone(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let outcome = ctx.run("restart", &["-p", "-W", "-i"]).arg(&image).finish()?;
    outcome.expect_code(0)?;
    let pid: i32 = String::from_utf8_lossy(&outcome.stdout).trim().parse()?;
    ensure(pid == the_one_in(program.dir.path())?, "it printed another pid")?;
    let init = parent(pid).context("its parent")?;
    ensure(line(init, "Name")? == "ckpt-init", "its parent is not an init")?;
    let fds = std::fs::read_dir(format!("/proc/{init}/fd"))?.count();
    let maps = std::fs::read_to_string(format!("/proc/{init}/maps"))?;
    let areas = maps.lines().filter(|line| !line.ends_with("[vsyscall]")).count();
    ensure(fds == 1 && areas == 1, format!("the init keeps {fds} descriptors and {areas} areas:\n{maps}"))?;
    std::fs::write(program.path("go"), "")?;
    gone(&[pid, init])
}

/// The namespace is there until the last of its processes has ended, though the root and restart have.
fn lives_as_long_as_anybody(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "kin", &["plain"])?;
    let image = program.save_and_kill(ctx)?;
    let mut restart = waiting(ctx, &program, &image, &[])?;
    let child = sys::poll("the child", || {
        let is_child = |pid: &i32| line(*pid, "Name").is_ok_and(|name| name == "kin-child");
        Ok(working_in(program.dir.path()).into_iter().find(|pid| is_child(pid) && is_free(pid)))
    })?;
    let root = parent(child).context("the root")?;
    let init = parent(root).context("the init")?;
    kill(root)?;
    let ended = restart.wait()?;
    ensure(ended == Ended::Exit(128 + 9), format!("restart ended with {ended:?}"))?;
    sys::poll("the child to be the init's", || Ok((parent(child) == Some(init)).then_some(())))?;
    kill(child)?;
    gone(&[child, init])
}

/// One image, twice at the same time.
fn two_copies(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let mut both = [waiting(ctx, &program, &image, &[])?, waiting(ctx, &program, &image, &[])?];
    let own = |pid: &i32| Some(line(*pid, "NSpid").ok()?.split_once('\t')?.1.to_owned());
    let found = sys::poll("both copies", || {
        let there: Vec<String> = working_in(program.dir.path()).iter().filter_map(own).collect();
        Ok((there.len() == 2).then_some(there))
    })?;
    ensure(found == [program.pid(), program.pid()], format!("they are {found:?}"))?;
    std::fs::write(program.path("go"), "")?;
    for restart in &mut both {
        let ended = restart.wait()?;
        ensure(ended == Ended::Exit(7), format!("restart ended with {ended:?}"))?;
    }
    Ok(())
}

/// A namespace's own process 1, checkpointed from outside as a container: it comes back only where pid 1 is free.
fn process_one(ctx: &Context) -> Result<()> {
    let binary = compile_c(ctx, &ctx.helpers.join("exits.c"), &["-pthread".to_owned()])?;
    let (unshare, sh) = (OsString::from("unshare"), OsString::from("sh"));
    // Descriptors of its own: what it shared with unshare would be a leak.
    let line = "exec \"$0\" 7 </dev/null >inner 2>&1";
    let argv = vec![unshare, "-p".into(), "-f".into(), sh, "-c".into(), line.into(), binary.into()];
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::write(dir.path().join("out"), "ready 1\n")?;
    let mut program = Program::start_argv(&argv, dir, None)?;
    let inner = program.path("inner");
    sys::poll("it to be ready", || {
        Ok(std::fs::read_to_string(&inner).is_ok_and(|said| said == "ready 1\n").then_some(()))
    })?;
    let pid = *children(program.target.pid()).first().context("its child")?;
    ensure(line_of(pid)? == "1", "it is not process 1")?;
    let image = program.path("image");
    let run = ctx.run("checkpoint", &["-c", "--kill", "-o"]).arg(&image).arg(pid.to_string());
    run.finish()?.expect_code(0)?;
    program.target.wait()?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1], &["pid 1", "taken", "--pidns"])?;
    let mut restart = waiting(ctx, &program, &image, &[])?;
    let pid = the_one_in(program.dir.path())?;
    ensure(line_of(pid)? == "1", "it is not process 1 any more")?;
    ensure(parent(pid) == Some(restart.pid()), "it is not the child of restart")?;
    std::fs::write(program.path("go"), "")?;
    let ended = restart.wait()?;
    ensure(ended == Ended::Exit(7), format!("restart ended with {ended:?}"))?;
    gone(&[pid])
}

/// What a process calls itself.
fn line_of(pid: i32) -> Result<String> {
    Ok(line(pid, "NSpid")?.split_whitespace().last().context("NSpid")?.to_owned())
}

/// SIGKILL of restart at any instant: nothing of the namespace stays, or all of it has been let go.
fn killed(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "spinner", &["8", "fork"])?;
    let image = program.save_and_kill(ctx)?;
    let begun = Instant::now();
    let outcome = ctx.run("restart", &["-p", "-W", "-i"]).arg(&image).finish()?;
    outcome.expect_code(0)?;
    let whole = begun.elapsed();
    let (mut hits, mut finished) = (0, 0);
    end_of(program.dir.path())?;
    for round in 0..(ctx.kills / 4).max(20) {
        let mut run = ctx.run("restart", &["-p", "-W", "-i"]).arg(&image).start()?;
        let span = u64::try_from((whole * 5 / 4).as_nanos())? / (1 << (round % 3));
        std::thread::sleep(Duration::from_nanos(sys::random_below(span)));
        hits += u32::from(run.kill());
        drop(run);
        let context = || format!("kill {round}");
        // Either all eight run or, soon, none.
        let left = sys::poll("none or all", || {
            reap_strays();
            let there = working_in(program.dir.path());
            let whole = there.len() == 8 && there.iter().all(is_free);
            Ok((whole || there.is_empty()).then_some(there))
        });
        finished += u32::from(!left.with_context(context)?.is_empty());
        end_of(program.dir.path()).with_context(context)?;
        sys::poll("every init to be gone", || {
            reap_strays();
            Ok((!all_pids().into_iter().any(is_stray_init)).then_some(()))
        })
        .with_context(context)?;
    }
    println!("    {hits} kills while restart ran, {finished} had let the tasks go");
    ensure(hits > 5, "hardly any kill found restart running")
}

/// Whether it is a process 1 of a namespace that a restart which is dead has made.
fn is_stray_init(pid: i32) -> bool {
    let named = line(pid, "Name").is_ok_and(|name| name == "ckpt" || name == "ckpt-init");
    let first = line(pid, "NSpid").is_ok_and(|pids| pids.ends_with("\t1"));
    named && first && parent(pid).is_some_and(|parent| !line(parent, "Name").is_ok_and(|name| name == "ckpt"))
}

pub(crate) fn working_in(dir: &Path) -> Vec<i32> {
    let here = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir);
    all_pids().into_iter().filter(here).collect()
}

/// Kills what works in `dir`.
fn end_of(dir: &Path) -> Result<()> {
    sys::poll("all to be gone", || {
        reap_strays();
        let there = working_in(dir);
        for pid in &there {
            if let Ok(mut target) = Target::adopt(*pid) {
                let _ = target.signal(libc::SIGKILL);
                let _ = target.ended();
                target.release();
            }
        }
        Ok(there.is_empty().then_some(()))
    })
}

/// Ids of a process and its descendants but for the outermost, and what was the outermost.
fn inner_ids(root: i32) -> Result<(Vec<String>, Vec<String>)> {
    let mut ids = Vec::new();
    for pid in family(root) {
        let line = line(pid, "NSpid")?;
        let (outer, inner) = line.split_once('\t').unwrap_or((&line, ""));
        ids.push((inner.to_owned(), outer.to_owned()));
    }
    ids.sort();
    Ok(ids.into_iter().unzip())
}

/// --new-pids: the outermost ids are new ones, those in nested namespaces are the old ones.
fn nested_new_pids(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "nest", &[])?;
    let image = program.path("image");
    ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    let outcome = ctx.run("restart", &["--new-pids", "-W", "-i"]).arg(&image).finish()?;
    outcome.expect_code(0)?;
    let mut copy = Target::adopt(String::from_utf8_lossy(&outcome.stdout).trim().parse()?)?;
    let (was, is) = (inner_ids(program.target.pid())?, inner_ids(copy.pid())?);
    ensure(was.0.len() == 6 && was.0.contains(&"4\t1".to_owned()), format!("they were {was:?}"))?;
    ensure(was.0 == is.0, format!("the ids are {is:?}, were {was:?}"))?;
    ensure(!was.1.iter().any(|pid| is.1.contains(pid)), format!("the ids are {is:?}, were {was:?}"))?;
    program.ends_with(7)?;
    let ended = copy.wait()?;
    ensure(ended == Ended::Exit(7), format!("the copy ended with {ended:?}"))
}

/// A helper below a shell that `wrap` says how to begin, and its pid.
fn wrapped(ctx: &Context, helper: &str, wrap: &[&str], line: &str) -> Result<(Program, i32)> {
    let binary = compile_c(ctx, &ctx.helpers.join(format!("{helper}.c")), &["-pthread".to_owned()])?;
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let words = [wrap, &["sh", "-c", line]].concat();
    let argv: Vec<OsString> = words.into_iter().map(OsString::from).chain([binary.into()]).collect();
    std::fs::write(dir.path().join("out"), "ready 1\n")?;
    let program = Program::start_argv(&argv, dir, None)?;
    let inner = program.path("inner");
    sys::poll("it to be ready", || {
        Ok(std::fs::read_to_string(&inner).is_ok_and(|said| said == "ready 1\n").then_some(()))
    })?;
    let pid = *children(program.target.pid()).first().context("its child")?;
    Ok((program, pid))
}

/// Processes that stay in the group of the surroundings, which cannot be joined from inside of a namespace.
fn group_left(ctx: &Context) -> Result<()> {
    let (mut program, pid) = wrapped(ctx, "left", &[], "\"$0\" </dev/null >inner 2>&1; true")?;
    let image = program.path("image");
    let run = ctx.run("checkpoint", &["--kill", "-o"]).arg(&image).arg(pid.to_string());
    run.finish()?.expect_code(0)?;
    program.target.wait()?;
    nothing_runs_in(program.dir.path())?;
    for args in [&[][..], &["--pidns"]] {
        let _ = std::fs::remove_file(program.path("go"));
        let run = ctx.run("restart", args).args(&["--copy-status", "-i"]).arg(&image);
        let mut restart = run.stand_in(program.dir.path())?;
        the_one_in(program.dir.path())?;
        std::fs::write(program.path("go"), "")?;
        let ended = restart.wait()?;
        let said = std::fs::read_to_string(program.path("restart.err"))?;
        ensure(ended == Ended::Exit(7), format!("{args:?}: restart ended with {ended:?}: {said}"))?;
    }
    Ok(())
}

/// A container with containers in it: its process 1 as the root, killed when all others have ended.
fn nested_process_one(ctx: &Context) -> Result<()> {
    let line = "exec \"$0\" </dev/null >inner 2>&1";
    let (mut program, pid) = wrapped(ctx, "nest", &["unshare", "-p", "-f"], line)?;
    let was = inner_ids(pid)?.0;
    let image = program.path("image");
    let run = ctx.run("checkpoint", &["--kill", "-o"]).arg(&image).arg(pid.to_string());
    run.finish()?.expect_code(0)?;
    program.target.wait()?;
    nothing_runs_in(program.dir.path())?;
    let mut restart = waiting(ctx, &program, &image, &[])?;
    let there = sys::poll("all of it", || {
        // A zombie works nowhere.
        let root = children(restart.pid()).first().copied();
        let there = working_in(program.dir.path());
        Ok(root.filter(|_| there.len() + 1 == was.len() && there.iter().all(is_free)))
    })?;
    let is = inner_ids(there)?.0;
    ensure(was == is, format!("the ids are {is:?}, were {was:?}"))?;
    std::fs::write(program.path("go"), "")?;
    let ended = restart.wait()?;
    ensure(ended == Ended::Exit(7), format!("restart ended with {ended:?}"))
}

/// SIGKILL of restart at any instant: nothing of the namespaces stays, or all of it has been let go.
fn nested_restart_killed(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "nest", &[])?;
    let count = family(program.target.pid()).len();
    let image = program.save_and_kill(ctx)?;
    let whole = program.back_from(ctx, &image)?.wall;
    program.target.kill();
    end_of(program.dir.path())?;
    let mut hits = 0;
    for round in 0..(ctx.kills / 4).max(20) {
        let mut run = ctx.run("restart", &["-W", "-i"]).arg(&image).start()?;
        let span = u64::try_from((whole * 5 / 4).as_nanos())? / (1 << (round % 3));
        std::thread::sleep(Duration::from_nanos(sys::random_below(span)));
        hits += u32::from(run.kill());
        drop(run);
        let left = sys::poll("none or all", || {
            reap_strays();
            let there = working_in(program.dir.path());
            // A zombie works nowhere.
            let whole = there.len() + 1 == count && there.iter().all(is_free);
            Ok((whole || there.is_empty()).then_some(()))
        });
        left.with_context(|| format!("kill {round}"))?;
        end_of(program.dir.path()).with_context(|| format!("kill {round}"))?;
    }
    println!("    {hits} kills while restart ran");
    ensure(hits > 5, "hardly any kill found restart running")
}

/// SIGKILL of checkpoint at any instant: the program looks as before, and goes on.
fn nested_checkpoint_killed(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "nest", &[])?;
    let (pid, image) = (program.target.pid(), program.path("image"));
    let view = Tree::of(pid)?;
    let whole = ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?;
    whole.expect_code(0)?;
    for round in 0..(ctx.kills / 4).max(20) {
        let _ = std::fs::remove_file(&image);
        let mut run = ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).start()?;
        std::thread::sleep(Duration::from_nanos(sys::random_below(u64::try_from(whole.wall.as_nanos())?)));
        run.kill();
        drop(run);
        let same = || Ok(view.differences(&Tree::of(pid)?, false, Clone::clone).is_empty().then_some(()));
        sys::poll("the target to look as before", same).with_context(|| format!("kill {round}"))?;
    }
    program.ends_with(7)
}

/// --mntns: the tasks see the processes of their pid namespace below /proc; nobody else does.
fn mount_namespace(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let before = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut restart = waiting(ctx, &program, &image, &["--mntns"])?;
    let pid = the_one_in(program.dir.path())?;
    let of = |pid: i32, name: &str| std::fs::read_link(format!("/proc/{pid}/{name}"));
    ensure(
        of(pid, "ns/mnt")? != std::fs::read_link("/proc/self/ns/mnt")?,
        "it has no mount namespace of its own",
    )?;
    let comm = |id: &str| std::fs::read_to_string(format!("/proc/{pid}/root/proc/{id}/comm"));
    ensure(comm("1")? == "ckpt-init\n", "its /proc does not show its namespace")?;
    ensure(comm(&program.pid())? == "exits\n", "its /proc does not show itself")?;
    ensure(of(pid, "cwd")? == program.dir.path(), "its directory is elsewhere")?;
    ensure(std::fs::read_to_string("/proc/self/mountinfo")? == before, "our mounts changed")?;
    std::fs::write(program.path("go"), "")?;
    let ended = restart.wait()?;
    ensure(ended == Ended::Exit(7), format!("restart ended with {ended:?}"))
}

/// A directory with all that a static `exits` with the working directory `dir` needs.
pub(crate) fn other_root(binary: &Path, dir: &Path) -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    let below = |path: &Path| -> Result<PathBuf> { Ok(root.path().join(path.strip_prefix("/")?)) };
    for path in [binary, Path::new("/dev/null")] {
        std::fs::create_dir_all(below(path.parent().context("parent")?)?)?;
        let copied = Command::new("cp").arg("-a").arg(path).arg(below(path)?).status()?;
        ensure(copied.success(), "cp failed")?;
    }
    std::fs::create_dir_all(below(dir)?)?;
    std::fs::create_dir(below(Path::new("/proc"))?)?;
    for name in ["out", "err"] {
        std::fs::copy(dir.join(name), below(&dir.join(name))?)?;
    }
    Ok(root)
}

/// --root: every file is the one below the directory, and no link leads out of it.
fn root_directory(ctx: &Context) -> Result<()> {
    let binary = compile_c(ctx, &ctx.helpers.join("exits.c"), &["-static".to_owned()])?;
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let argv: Vec<OsString> = vec![binary.clone().into(), "7".into()];
    let mut program = Program::start_argv(&argv, dir, None)?;
    let image = program.save_and_kill(ctx)?;
    let root = other_root(&binary, program.dir.path())?;
    let below = root.path().join(program.dir.path().strip_prefix("/")?);
    // A link to a file outside: inside of the new root there is no such file.
    let (out, outside) = (below.join("out"), program.path("outside"));
    std::fs::rename(&out, below.join("kept"))?;
    std::fs::copy(below.join("kept"), &outside)?;
    symlink(&outside, &out)?;
    let run = |args: &[&str]| ctx.run("restart", args).arg("-r").arg(root.path()).arg("-i").arg(&image);
    expect_line(&run(&["-p", "-W"]).finish()?, "restart", &[1, 4], &["/out"])?;
    std::fs::remove_file(&out)?;
    std::fs::rename(below.join("kept"), &out)?;
    for args in [&["--copy-status"][..], &["--copy-status", "--pidns", "--mntns"]] {
        let mut restart = run(args).stand_in(program.dir.path())?;
        let pid = the_one_in(&below)?;
        let of = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}"));
        ensure(of("root")? == root.path(), format!("{args:?}: its root is {:?}", of("root")))?;
        ensure(of("fd/1")? == out, format!("{args:?}: its stdout is {:?}", of("fd/1")))?;
        std::fs::write(below.join("go"), "")?;
        let ended = restart.wait()?;
        ensure(ended == Ended::Exit(7), format!("{args:?}: restart ended with {ended:?}"))?;
        std::fs::remove_file(below.join("go"))?;
    }
    nothing_runs_in(root.path())
}

fn root_directory_missing(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    for (root, word) in [("/no/such/place", "/no/such/place"), ("/dev/null", "directory")] {
        let outcome = ctx.run("restart", &["-W", "--root", root, "-i"]).arg(&image).finish()?;
        expect_line(&outcome, "restart", &[1], &["--root", word])?;
    }
    // A file of the image that is not there below it.
    let empty = tempfile::tempdir()?;
    let outcome = ctx.run("restart", &["-W", "--root"]).arg(empty.path()).arg("-i").arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1], &["exits"])?;
    program.back_from(ctx, &image).context("the image still works")?;
    program.ends_with(7)
}

/// --inspect: a damaged end is found before there is any task; a whole image restarts from file and pipe.
fn inspect(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let whole = std::fs::read(&image)?;
    let mut bytes = whole.clone();
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    let damaged = program.path("damaged");
    std::fs::write(&damaged, &bytes)?;
    // The pid is taken: with --inspect the image is what is complained about, without it the pid.
    let mut squatter = Program::start(ctx, "squatter", &[&program.pid()])?;
    let run = |args: &[&str]| ctx.run("restart", args).arg("-i").arg(&damaged).finish();
    expect_line(&run(&["-W"])?, "restart", &[1], &["taken"])?;
    expect_line(&run(&["-W", "--inspect"])?, "restart", &[5], &["byte"])?;
    let outcome = ctx.run("restart", &["-W", "--inspect"]).stdin_bytes(bytes).finish()?;
    expect_line(&outcome, "restart", &[5], &["byte"])?;
    squatter.target.kill();
    Target::adopt(program.target.pid())?.kill(); // its child, which has come to us
    for piped in [false, true] {
        let run = ctx.run("restart", &["-W", "--inspect"]);
        let run = if piped { run.stdin_bytes(whole.clone()) } else { run.arg("-i").arg(&image) };
        run.finish()?.expect_code(0)?;
        program.adopt()?;
        program.target.kill();
    }
    Ok(())
}
