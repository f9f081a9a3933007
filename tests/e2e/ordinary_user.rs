//! Without any privilege.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::sys;
use ckpt_tests::target::Ended;
use ckpt_tests::tool::Run;

use crate::common::{Program, Test, ensure, expect_line};
use crate::pidns::{is_free, line, working_in};

pub(crate) const TESTS: &[Test] = &[("tree", tree), ("closed_directory", closed_directory), ("demo", demo)];

/// A copy of the binary and a directory that everybody may use.
fn for_everybody(ctx: &Context) -> Result<(tempfile::TempDir, PathBuf)> {
    let open = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o777))?;
    let copy = open.path().join("ckpt");
    std::fs::copy(ctx.ckpt.as_ref().context("binary")?, &copy)?;
    Ok((open, copy))
}

const NOBODY: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

fn as_nobody(copy: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(NOBODY[0]);
    command.args(&NOBODY[1..]).arg(copy).args(args);
    command
}

/// Without any privilege: checkpoint of a tree, restart in a namespace; what is missing without that is said.
fn tree(ctx: &Context) -> Result<()> {
    let (open, copy) = for_everybody(ctx)?;
    let kin = open.path().join("kin");
    std::fs::copy(compile_c(ctx, &ctx.helpers.join("kin.c"), &["-pthread".to_owned()])?, &kin)?;
    let mut argv: Vec<OsString> = NOBODY.iter().map(OsString::from).collect();
    argv.extend([kin.into(), "plain".into()]);
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))?;
    let mut program = Program::start_argv(&argv, dir, None)?;
    let child = sys::poll("the child", || Ok(std::fs::read_to_string(program.path("child")).ok()))?;
    for name in ["out", "err"] {
        // We opened them for it; now it opens them itself.
        std::fs::set_permissions(program.path(name), std::fs::Permissions::from_mode(0o666))?;
    }
    let image = open.path().join("image");
    let image = image.to_str().context("path")?;
    let mut members = program.target.members();
    Run::new(as_nobody(&copy, &["checkpoint", "--kill", "-o", image, &program.pid()]))
        .finish()?
        .expect_code(0)?;
    program.target.wait()?;
    members.retain(|(pid, _)| *pid != program.target.pid());
    program.target.all_gone(&members)?;
    let outcome = Run::new(as_nobody(&copy, &["restart", "-W", "-i", image])).finish()?;
    expect_line(&outcome, "restart", &[4], &["CAP_CHECKPOINT_RESTORE", "--pidns"])?;
    for (option, value, capability) in
        [("--mntns", None, "CAP_SYS_ADMIN"), ("--root", Some("/"), "CAP_SYS_CHROOT")]
    {
        let args: Vec<&str> =
            ["restart", "-p", "-W", option].into_iter().chain(value).chain(["-i", image]).collect();
        let outcome = Run::new(as_nobody(&copy, &args)).finish()?;
        expect_line(&outcome, "restart", &[4], &[option, capability])?;
    }
    let restart = as_nobody(&copy, &["restart", "--pidns", "--copy-status", "-i", image]);
    let mut restart = Run::new(restart).stand_in(program.dir.path())?;
    let there = sys::poll("both processes", || {
        let there = working_in(program.dir.path());
        Ok((there.len() == 2 && there.iter().all(is_free)).then_some(there))
    })?;
    let own = |pid: &i32| Ok(line(*pid, "NSpid")?.split_once('\t').context("NSpid")?.1.to_owned());
    let mut own = there.iter().map(own).collect::<Result<Vec<String>>>()?;
    own.sort();
    let mut want = vec![program.pid(), child];
    want.sort();
    ensure(own == want, format!("they are {own:?}, not {want:?}"))?;
    for pid in &there {
        ensure(line(*pid, "Uid")? == "65534\t65534\t65534\t65534", "it has another user")?;
        ensure(line(*pid, "CapEff")? == "0000000000000000", "it has capabilities")?;
    }
    std::fs::write(program.path("go"), "")?;
    let ended = restart.wait()?;
    ensure(ended == Ended::Exit(7), format!("restart ended with {ended:?}"))?;
    let said = std::fs::read_to_string(program.path("restart.err"))?;
    let words = "restart: warning: without CAP_SYS_ADMIN";
    ensure(said.starts_with(words) && said.lines().count() == 1, format!("it said: {said}"))
}

/// A working directory that is not for it any more.
fn closed_directory(ctx: &Context) -> Result<()> {
    let (open, copy) = for_everybody(ctx)?;
    let inner = open.path().join("inner");
    std::fs::create_dir(&inner)?;
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let mut argv: Vec<OsString> = NOBODY.iter().map(OsString::from).collect();
    let script = "cd \"$0\" && echo ready 1 && exec sleep 600";
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    mode(dir.path(), 0o777)?;
    argv.extend(["sh", "-c", script].map(OsString::from));
    argv.push(inner.clone().into());
    let mut program = Program::start_argv(&argv, dir, None)?;
    for name in ["out", "err"] {
        mode(&program.path(name), 0o666)?;
    }
    let image = open.path().join("image");
    let image = image.to_str().context("path")?;
    let save = as_nobody(&copy, &["checkpoint", "--kill", "-o", image, &program.pid()]);
    Run::new(save).finish()?.expect_code(0)?;
    program.target.wait()?;
    mode(&inner, 0o700)?;
    let outcome = Run::new(as_nobody(&copy, &["restart", "-p", "-W", "-i", image])).finish()?;
    let words = ["working directory", "Permission denied", "restart it as a user who may", "--map-file"];
    expect_line(&outcome, "restart", &[4], &words)
}

fn demo(ctx: &Context) -> Result<()> {
    let (_open, copy) = for_everybody(ctx)?;
    let demo = Run::new(as_nobody(&copy, &["demo", "--seconds", "0.3", "--shell"]));
    let outcome = demo.start()?.finish()?;
    outcome.expect_code(0)?;
    ensure(String::from_utf8_lossy(&outcome.stdout).contains("exactly where it was"), "no proof")
}
