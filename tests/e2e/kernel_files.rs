//! Open files of the file systems that show the kernel's state, mounted anywhere: cgroup, debugfs, tracefs, securityfs; what
//! the kernel gives only to who has a capability.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::tool::Run;

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};
use crate::files::Mounts;
use crate::frozen::{Group, Kind, V1, V2};

pub(crate) const TESTS: &[Test] = &[
    ("cgroup_v1", |ctx| of_cgroup(ctx, V1, "notify_on_release", "freezer.state")),
    ("cgroup_v2", |ctx| of_cgroup(ctx, V2, "cgroup.max.depth", "cgroup.events")),
    ("debugfs", |ctx| mounted(ctx, "debugfs", &["sched/debug", "sleep_time"], &["bdi"])),
    ("tracefs", |ctx| mounted(ctx, "tracefs", &["trace_clock", "trace"], &["options", "events"])),
    ("securityfs", |ctx| mounted(ctx, "securityfs", &["lsm"], &[""])),
    ("alarm_clocks", alarm_clocks),
    ("ended_and_new_proc", ended_and_new_proc),
];

/// What /proc shows of the files that a holder has: path, offset, flags.
fn seen(program: &Program) -> Result<Vec<String>> {
    let numbers = (50..).take_while(|fd| Path::new(&format!("/proc/{}/fd/{fd}", program.pid())).is_symlink());
    let one = |fd: i32| {
        let link = std::fs::read_link(format!("/proc/{}/fd/{fd}", program.pid()))?;
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", program.pid()))?;
        let lines = info.lines().take(2).collect::<Vec<_>>().join(" ");
        Ok(format!("{} {lines}", link.display()))
    };
    numbers.map(one).collect()
}

/// Two generations: the same files at the same offsets, from which it reads on.
fn comes_back(ctx: &Context, what: &[String]) -> Result<()> {
    let words: Vec<&str> = what.iter().map(String::as_str).collect();
    let mut program = Program::start(ctx, "holder", &words)?;
    let before = seen(&program)?;
    ensure(before.len() == what.len(), format!("{before:?}"))?;
    for _ in 0..2 {
        // None of them is contents of the program's that an image may take along.
        let image = program.path("image");
        let run = ctx.run("checkpoint", &["--kill", "--embed-files", "--json", "-f", "-o"]);
        let outcome = run.arg(&image).arg(program.pid()).finish()?;
        outcome.expect_code(0)?;
        program.target.wait()?;
        let told: serde_json::Value = serde_json::from_slice(&outcome.stdout)?;
        // out and err.
        ensure(told["checkpoint"]["embedded_files"] == 2, format!("{told}"))?;
        let outcome = program.back_from(ctx, &image)?;
        ensure(outcome.stderr.is_empty(), outcome.stderr)?;
        let after = seen(&program)?;
        ensure(after == before, format!("{after:?}, and before {before:?}"))?;
    }
    program.ends_with(7)?;
    let said = std::fs::read_to_string(program.path("said"))?;
    for path in what.iter().filter_map(|what| what.strip_prefix("s:")) {
        let whole = std::fs::read_to_string(path)?;
        let rest = whole.get(3..).unwrap_or_default();
        let rest = &rest[..rest.len().min(16)];
        ensure(said.contains(&format!(" {rest}")), format!("it said {said}, and {path} holds {whole}"))?;
    }
    Ok(())
}

/// Files and the directory of a cgroup; removed, they are refused, and missed by a restart.
fn of_cgroup(ctx: &Context, kind: Kind, number: &str, state: &str) -> Result<()> {
    let name = format!("open-{}", std::process::id());
    let Some(group) = Group::new(kind, &name)? else {
        return ctx.skip("kernel_files::of_cgroup", "no cgroups are mounted where they are looked for");
    };
    let file = |name: &str| group.path.join(name).display().to_string();
    let (number, state) = (file(number), file(state));
    let what = [format!("w:{number}"), format!("s:{state}"), format!("d:{}", group.path.display())];
    comes_back(ctx, &what)?;
    let mut program = Program::start(ctx, "holder", &[&what[1]])?;
    let image = program.path("image");
    ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    drop(group);
    let second = program.path("second");
    let outcome = ctx.run("checkpoint", &["-o"]).arg(&second).arg(program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[3], &["fd 50", &state, "was removed"])?;
    program.unharmed()?;
    program.target.kill();
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[1], &[&state, "No such file"])?;
    nothing_runs_in(program.dir.path())
}

/// Files and directories of a file system that is mounted for this.
fn mounted(ctx: &Context, kind: &str, files: &[&str], directories: &[&str]) -> Result<()> {
    let (place, mut mounts) = (tempfile::tempdir()?, Mounts::default());
    if !mounts.mount(&place.path().join("fs"), &["-t", kind, "none"])? {
        return ctx.skip(&format!("kernel_files::{kind}"), &format!("this kernel has no {kind}"));
    }
    let path = |name: &&str| place.path().join("fs").join(name).display().to_string();
    // A kernel may lack one of them, or be locked down.
    let files = files.iter().map(path).filter(|path| std::fs::read(path).is_ok_and(|text| text.len() > 3));
    let files: Vec<String> = files.map(|path| format!("s:{path}")).collect();
    if files.is_empty() {
        return ctx.skip(&format!("kernel_files::{kind}"), "this kernel lets none of these files be read");
    }
    let what: Vec<String> =
        files.into_iter().chain(directories.iter().map(|name| format!("d:{}", path(name)))).collect();
    comes_back(ctx, &what)
}

/// The file of a task that had ended has no place in a /proc of the restarted tree's own.
fn ended_and_new_proc(ctx: &Context) -> Result<()> {
    let binary = compile_c(ctx, &ctx.fixtures.join("files_proc.c"), &["-pthread".to_owned()])?;
    let mut program = Program::start_argv(&[binary.into()], tempfile::tempdir()?, None)?;
    let image = program.save_and_kill(ctx)?;
    let outcome = ctx.run("restart", &["--pidns", "--mntns", "-i"]).arg(&image).finish()?;
    expect_line(&outcome, "restart", &[3], &["/proc/", "is of a task that had ended", "leave --mntns out"])?;
    nothing_runs_in(program.dir.path())
}

/// Timers that wake the machine: whoever may not make them cannot restart the program, and is told what it takes.
fn alarm_clocks(ctx: &Context) -> Result<()> {
    for clock in ["c:8", "c:9"] {
        let mut program = Program::start(ctx, "holder", &[clock])?;
        let image = program.save_and_kill(ctx)?;
        let mut without = Command::new("setpriv");
        without.args(["--inh-caps=-wake_alarm", "--bounding-set=-wake_alarm"]);
        without.arg(ctx.ckpt.as_ref().context("binary")?);
        let outcome = Run::new(without).args(&["restart", "-W", "-i"]).arg(&image).finish()?;
        expect_line(&outcome, "restart", &[4], &["make a timerfd", "CAP_WAKE_ALARM"])?;
        nothing_runs_in(program.dir.path())?;
        program.back_from(ctx, &image)?;
        program.ends_with(7)?;
        let said = std::fs::read_to_string(program.path("said"))?;
        ensure(said.starts_with("c 0 ") && said.ends_with(" runs\n"), said)?;
    }
    Ok(())
}
