//! `ckptinfo`, `--json`, the names the binary answers to, logs and the demo.

use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::tool::Run;
use serde_json::Value;

use crate::common::{Program, Test, ensure};

pub(crate) const TESTS: &[Test] = &[
    ("shows_an_image", shows_an_image),
    ("json_everywhere", json_everywhere),
    ("names", names),
    ("logs", logs),
    ("error_of_an_image_without_one", no_error),
    ("demo", demo),
];

fn shows_an_image(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "spinner", &["4"])?;
    let pid = program.pid();
    let image = program.save_and_kill(ctx)?;
    let text = |args: &[&str]| -> Result<String> {
        let outcome = ctx.run("info", args).arg(&image).finish()?;
        outcome.expect_code(0).with_context(|| format!("{args:?}"))?;
        Ok(String::from_utf8(outcome.stdout)?)
    };
    let all = text(&[])?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    for word in [pid.as_str(), "spinner", "[heap]", "[stack]", "count", &format!("Host     {host}")] {
        ensure(all.contains(word), format!("ckptinfo does not show {word:?}:\n{all}"))?;
    }
    let tree = text(&["-p"])?;
    ensure(tree.contains(&pid) && tree.contains("spinner"), format!("ckptinfo -p shows: {tree}"))?;
    text(&["--verify"])?;
    let bytes = std::fs::read(&image)?;
    let outcome = ctx.run("info", &["--verify", "-"]).stdin_bytes(bytes).finish()?;
    outcome.expect_code(0).context("ckptinfo --verify of a stream")?;
    Ok(())
}

fn json_everywhere(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.path("image");
    let parse = |what: &str, bytes: &[u8]| -> Result<Value> {
        let text = String::from_utf8_lossy(bytes);
        serde_json::from_slice(bytes).with_context(|| format!("{what} gave: {text}"))
    };
    let outcome =
        ctx.run("checkpoint", &["--json", "--kill", "-o"]).arg(&image).arg(program.pid()).finish()?;
    outcome.expect_code(0)?;
    parse("checkpoint --json", &outcome.stdout)?;
    program.target.wait()?;
    for args in [&["--json"][..], &["--json", "-p"], &["--json", "--verify"]] {
        let outcome = ctx.run("info", args).arg(&image).finish()?;
        outcome.expect_code(0)?;
        parse(&format!("ckptinfo {args:?}"), &outcome.stdout)?;
    }
    let outcome = ctx.run("restart", &["-W", "--json", "-i"]).arg(&image).finish()?;
    outcome.expect_code(0)?;
    let report = parse("restart --json", &outcome.stdout)?;
    ensure(
        report.to_string().contains(&program.pid()),
        format!("restart --json does not tell the pid: {report}"),
    )?;
    program.adopt()?;
    let taken = ctx.run("restart", &["-W", "--json", "-i"]).arg(&image).finish()?;
    taken.expect_code(1)?;
    let said = if taken.stdout.is_empty() { taken.stderr.into_bytes() } else { taken.stdout };
    parse("a failing restart --json", &said)?;
    program.ends_with(7)
}

fn names(ctx: &Context) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let named = |name: &str| {
        let link = dir.path().join(name);
        symlink(ctx.ckpt.as_ref().expect("binary"), &link).map(|()| Command::new(link))
    };
    let (mut checkpoint, mut restart, mut info) =
        (named("checkpoint")?, named("restart")?, named("ckptinfo")?);
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.path("image");
    checkpoint.args(["--kill", "-o"]).arg(&image).arg(program.pid());
    Run::new(checkpoint).finish()?.expect_code(0)?;
    program.target.wait()?;
    info.arg("--verify").arg(&image);
    Run::new(info).finish()?.expect_code(0)?;
    restart.args(["-W", "-i"]).arg(&image);
    Run::new(restart).finish()?.expect_code(0)?;
    program.adopt()?;
    program.ends_with(7)
}

fn logs(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let (image, log) = (program.path("image"), program.path("log"));
    let run =
        ctx.run("checkpoint", &["-v", "--kill", "-l"]).arg(&log).arg("-o").arg(&image).arg(program.pid());
    let outcome = run.finish()?;
    outcome.expect_code(0)?;
    program.target.wait()?;
    ensure(outcome.stderr.is_empty(), format!("with -l the log also went to stderr: {}", outcome.stderr))?;
    ensure(std::fs::metadata(&log)?.len() > 0, "the log of checkpoint is empty")?;
    let run = ctx.run("restart", &["-W", "-v", "-l"]).arg(&log).arg("-i").arg(&image);
    run.finish()?.expect_code(0)?;
    program.adopt()?;
    ensure(std::fs::metadata(&log)?.len() > 0, "the log of restart is empty")?;
    program.ends_with(7)
}

fn no_error(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.save_and_kill(ctx)?;
    let outcome = ctx.run("info", &["-e"]).arg(&image).finish()?;
    outcome.expect_code(0)?;
    ensure(outcome.stdout.is_empty() && outcome.stderr.is_empty(), "ckptinfo -e said something")
}

fn demo(ctx: &Context) -> Result<()> {
    // It starts python3 twice, which where that is a shim (pyenv) is a hundred processes each, read from a disk that has
    // the images of all the other tests to write.
    let outcome = ctx.run("demo", &[]).start()?.finish()?;
    outcome.expect_code(0)?;
    ensure(outcome.stdout.len() > 200, "the demo says next to nothing")
}
