//! `checkpoint` refusing: each error is one line and an exit code, and the program goes on.

use std::os::fd::OwnedFd;
use std::process::Command;

use anyhow::Result;
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::tool::{Outcome, Run};

use crate::common::{Program, Test, ensure, expect_line};

pub(crate) const TESTS: &[Test] = &[
    ("usage", usage),
    ("pid_gone", pid_gone),
    ("kernel_thread", kernel_thread),
    ("itself", itself),
    ("other_user", other_user),
    ("already_traced", already_traced),
    ("output_exists", output_exists),
    ("output_nowhere", output_nowhere),
    ("disk_full", disk_full),
    ("device_full", device_full),
    ("closed_pipe", closed_pipe),
    ("unread_pipe", unread_pipe),
    ("zombie", zombie),
    ("log_unwritable", log_unwritable),
    ("ia32", ia32),
];

/// After the failure: one line, nothing left, the program ends as it should.
fn survives(mut program: Program, outcome: &Outcome, codes: &[i32], words: &[&str]) -> Result<()> {
    expect_line(outcome, "checkpoint", codes, words)?;
    ensure(outcome.stdout.is_empty(), "something was written to stdout")?;
    program.unharmed()?;
    let files = program.files()?;
    ensure(files == ["err", "out"], format!("its directory holds {files:?}"))?;
    program.ends_with(7)
}

fn usage(ctx: &Context) -> Result<()> {
    for args in [
        &[][..],
        &["abc"],
        &["0"],
        &["-5"],
        &["--nonsense", "1"],
        &["1", "2"],
        &["--kill", "--stop", "1"],
        &["-o"],
    ] {
        let outcome = ctx.run("checkpoint", args).finish()?;
        outcome.expect_code(2)?;
        ensure(
            !outcome.stderr.is_empty() && outcome.stdout.is_empty(),
            format!("{args:?}: says nothing on stderr"),
        )?;
    }
    for args in [&["-i", "a", "--input-fd", "3"][..], &["--inherit-fd", "x"], &["stray"]] {
        ctx.run("restart", args).finish()?.expect_code(2)?;
    }
    ctx.run("info", &[]).finish()?.expect_code(2)?;
    ctx.run("nonsense", &[]).finish()?.expect_code(2)?;
    for command in ["checkpoint", "restart", "info"] {
        let help = ctx.run(command, &["--help"]).finish()?;
        help.expect_code(0)?;
        ensure(!help.stdout.is_empty(), "no help on stdout")?;
    }
    Ok(())
}

fn pid_gone(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["0"])?;
    let (pid, image) = (program.pid(), program.path("image"));
    program.target.kill();
    let outcome = ctx.run("checkpoint", &["-o"]).arg(&image).arg(&pid).finish()?;
    expect_line(&outcome, "checkpoint", &[1], &[&pid])?;
    ensure(program.files()? == ["err", "out"], "something was left")
}

fn kernel_thread(ctx: &Context) -> Result<()> {
    if !std::fs::read_to_string("/proc/2/stat")?.contains("kthreadd") {
        return ctx.skip("kernel_thread", "pid 2 is not a kernel thread here");
    }
    expect_line(&ctx.run("checkpoint", &["2"]).finish()?, "checkpoint", &[1, 3], &["kernel thread", "2"])
}

fn itself(ctx: &Context) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("exec \"$0\" checkpoint $$").arg(ctx.ckpt.as_ref().expect("binary"));
    expect_line(&Run::new(shell).finish()?, "checkpoint", &[1, 3], &["itself"])
}

fn other_user(ctx: &Context) -> Result<()> {
    let program = Program::start(ctx, "exits", &["7"])?;
    // The build directory may be closed to others: use a copy.
    let open = tempfile::tempdir()?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(open.path(), mode)?;
    let copy = open.path().join("ckpt");
    std::fs::copy(ctx.ckpt.as_ref().expect("binary"), &copy)?;
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy).arg("checkpoint");
    nobody.arg("-o").arg(open.path().join("image")).arg(program.pid());
    let outcome = Run::new(nobody).finish()?;
    ensure(crate::common::names_in(open.path())? == ["ckpt"], "something was left")?;
    let pid = program.pid();
    survives(program, &outcome, &[4], &[&pid])
}

fn already_traced(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let mut tracer = Program::start(ctx, "ptracer", &[&program.pid()])?;
    let outcome = ctx.run("checkpoint", &["-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[1, 3, 4], &[&tracer.pid(), "trac"])?;
    tracer.target.must_live()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    ensure(
        status.contains(&format!("TracerPid:\t{}\n", tracer.pid())),
        "it is no longer traced by its debugger",
    )?;
    program.target.must_live()?;
    tracer.target.kill();
    survives(program, &outcome, &[1, 3, 4], &[])
}

fn output_exists(ctx: &Context) -> Result<()> {
    let mut program = Program::start(ctx, "exits", &["7"])?;
    let image = program.path("image");
    std::fs::write(&image, "precious")?;
    let outcome = ctx.run("checkpoint", &["-o"]).arg(&image).arg(program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[1], &["image", "-f"])?;
    ensure(std::fs::read(&image)? == b"precious", "the file was touched")?;
    ensure(program.files()? == ["err", "image", "out"], "something was left")?;
    ctx.run("checkpoint", &["-f", "-o"]).arg(&image).arg(program.pid()).finish()?.expect_code(0)?;
    ctx.run("info", &["--verify"]).arg(&image).finish()?.expect_code(0)?;
    ensure(program.files()? == ["err", "image", "out"], "something was left")?;
    program.unharmed()?;
    program.ends_with(7)
}

fn output_nowhere(ctx: &Context) -> Result<()> {
    for place in ["no/such/dir/image", "out/image", "."] {
        let program = Program::start(ctx, "exits", &["7"])?;
        let outcome =
            ctx.run("checkpoint", &["--kill", "-o"]).arg(program.path(place)).arg(program.pid()).finish()?;
        survives(program, &outcome, &[1], &[])?;
    }
    let program = Program::start(ctx, "exits", &["7"])?;
    let outcome = ctx.run("checkpoint", &["--output-fd", "77"]).arg(program.pid()).finish()?;
    survives(program, &outcome, &[1, 2], &["77"])
}

/// A mounted tmpfs of a few pages, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Result<Option<Small>> {
        let dir = tempfile::tempdir()?;
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "small"])
            .arg(dir.path())
            .output()?;
        Ok(mount.status.success().then(|| Small(dir)))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn disk_full(ctx: &Context) -> Result<()> {
    let Some(small) = Small::mount()? else { return ctx.skip("disk_full", "cannot mount a tmpfs") };
    let program = Program::start(ctx, "exits", &["7"])?;
    let image = small.0.path().join("image");
    let outcome = ctx.run("checkpoint", &["--kill", "-o"]).arg(&image).arg(program.pid()).finish()?;
    let left = crate::common::names_in(small.0.path())?;
    ensure(left.is_empty(), format!("left on the full disk: {left:?}"))?;
    survives(program, &outcome, &[1], &["space"])
}

fn device_full(ctx: &Context) -> Result<()> {
    let program = Program::start(ctx, "exits", &["7"])?;
    let full: OwnedFd = std::fs::OpenOptions::new().write(true).open("/dev/full")?.into();
    let outcome =
        ctx.run("checkpoint", &["--kill", "--output-fd", "5"]).arg(program.pid()).pass(full, 5).finish()?;
    survives(program, &outcome, &[1], &["space"])
}

fn closed_pipe(ctx: &Context) -> Result<()> {
    let program = Program::start(ctx, "exits", &["7"])?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    drop(read);
    let outcome = ctx.run("checkpoint", &["--kill"]).arg(program.pid()).stdout_fd(write).finish()?;
    survives(program, &outcome, &[1], &["pipe"])
}

/// Nobody reads the image: the first signal ends it, and the program goes on.
fn unread_pipe(ctx: &Context) -> Result<()> {
    let program = Program::start(ctx, "exits", &["7"])?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let run = ctx.run("checkpoint", &["--output-fd", "1"]).arg(program.pid()).stdout_fd(write).start()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    run.signal(libc::SIGTERM)?;
    let outcome = run.finish()?;
    let by = std::os::unix::process::ExitStatusExt::signal(&outcome.status);
    ensure(by == Some(libc::SIGTERM), format!("{}, {}", outcome.status, outcome.stderr))?;
    drop(read);
    let mut program = program;
    program.unharmed()?;
    program.ends_with(7)
}

fn zombie(ctx: &Context) -> Result<()> {
    let program = Program::start(ctx, "exits", &["3"])?;
    std::fs::write(program.path("go"), "")?;
    let status = format!("/proc/{}/status", program.pid());
    ckpt_tests::sys::poll("a zombie", || {
        Ok(std::fs::read_to_string(&status)?.contains("State:\tZ").then_some(()))
    })?;
    let outcome = ctx.run("checkpoint", &["-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[1, 3], &[&program.pid()])
}

fn log_unwritable(ctx: &Context) -> Result<()> {
    let program = Program::start(ctx, "exits", &["7"])?;
    let outcome = ctx.run("checkpoint", &["-l", "/no/such/dir/log"]).arg(program.pid()).finish()?;
    survives(program, &outcome, &[1, 2], &["log"])
}

/// A 32-bit program, which needs no 32-bit C library to be compiled.
fn ia32(ctx: &Context) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let binary = dir.path().join("program");
    let flags = ["-m32", "-nostdlib", "-static", "-fno-pie", "-no-pie", "-fno-stack-protector", "-o"];
    let mut cc = Command::new("cc");
    cc.args(flags).arg(&binary).arg(ctx.helpers.join("ia32.c"));
    if !cc.output()?.status.success() {
        return ctx.skip("ia32", "cc cannot make 32-bit programs");
    }
    let argv = [binary.clone().into_os_string()];
    let Ok(mut program) = Program::start_argv(&argv, dir, None) else {
        return ctx.skip("ia32", "this kernel does not run 32-bit programs");
    };
    let outcome = ctx.run("checkpoint", &["-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[3], &[&program.pid(), "32-bit"])?;
    program.unharmed()
}

/// Compiles `helpers/exits.c` anew into `dir`, with a shared library of its own next to it.
pub(crate) fn private_program(ctx: &Context, dir: &std::path::Path) -> Result<std::path::PathBuf> {
    compile_c(ctx, &ctx.helpers.join("exits.c"), &["-pthread".to_owned()])?; // says why if there is no compiler
    let cc = |args: &[&str]| Command::new("cc").args(args).current_dir(dir).status();
    std::fs::write(dir.join("extra.c"), "int extra(void) { return 1; }")?;
    ensure(cc(&["-shared", "-fPIC", "-o", "libextra.so", "extra.c"])?.success(), "cc libextra.so")?;
    let source = ctx.helpers.join("exits.c");
    let source = source.to_str().expect("path");
    let linked = ["-o", "program", source, "-Wl,--no-as-needed", "-L.", "-lextra", "-Wl,-rpath,$ORIGIN"];
    ensure(cc(&linked)?.success(), "cc program")?;
    Ok(dir.join("program"))
}
