//! Files with a name: changed, moved, embedded, missing; unlinked ones and their limit; what a restart makes in the file
//! system is gone again when it fails.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::sys;
use ckpt_tests::target::Ended;
use ckpt_tests::tool::{Outcome, Run};
use serde_json::Value;

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};

pub(crate) const TESTS: &[Test] = &[
    ("ghost_limit", ghost_limit),
    ("embedded", embedded),
    ("embedded_by_pattern", embedded_by_pattern),
    ("embedded_but_there", embedded_but_there),
    ("embedded_restart_fails", embedded_restart_fails),
    ("embedded_restart_killed", embedded_restart_killed),
    ("no_link_is_followed", no_link_is_followed),
    ("moved", moved),
    ("moved_nothing", moved_nothing),
    ("data_changed", data_changed),
    ("log_grew", log_grew),
    ("truncated_back", truncated_back),
    ("written_to_meanwhile", written_to_meanwhile),
    ("replaced_by_another", replaced_by_another),
    ("table_full", table_full),
    ("table_full_and_watched", table_full_and_watched),
    ("ten_thousand_watched", ten_thousand_watched),
    ("on_other_mounts", on_other_mounts),
    ("hidden_by_a_mount", hidden_by_a_mount),
    ("other_name_elsewhere", other_name_elsewhere),
    ("kernel_files_by_new_ids", kernel_files_by_new_ids),
    ("tail_follows", tail_follows),
    ("python_log", python_log),
];

/// A `holder` of files that exist, with these contents.
fn holder(ctx: &Context, files: &[(&str, &str)], what: &[&str]) -> Result<Program> {
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text)?;
    }
    let binary = compile_c(ctx, &ctx.helpers.join("holder.c"), &["-pthread".to_owned()])?;
    let argv: Vec<OsString> = std::iter::once(binary.into()).chain(what.iter().map(OsString::from)).collect();
    Program::start_argv(&argv, dir, None)
}

fn checkpoint(ctx: &Context, program: &mut Program, args: &[&str]) -> Result<Outcome> {
    let mut all = vec!["--kill"];
    all.extend(args);
    all.push("-o");
    let outcome = ctx.run("checkpoint", &all).arg(program.path("image")).arg(program.pid()).finish()?;
    outcome.expect_code(0)?;
    program.target.wait()?;
    Ok(outcome)
}

fn restart(ctx: &Context, program: &Program, args: &[&str]) -> Result<Outcome> {
    let mut all = vec!["-W"];
    all.extend(args);
    all.push("-i");
    ctx.run("restart", &all).arg(program.path("image")).finish()
}

/// It restarts, and says this of its files.
fn goes_on(ctx: &Context, program: &mut Program, args: &[&str], said: &str) -> Result<Outcome> {
    let outcome = restart(ctx, program, args)?;
    outcome.expect_code(0)?;
    program.adopt()?;
    program.ends_with(7)?;
    let told = std::fs::read_to_string(program.path("said"))?;
    std::fs::remove_file(program.path("said"))?;
    std::fs::remove_file(program.path("go"))?;
    ensure(told == said, format!("it found {told:?}, not {said:?}"))?;
    Ok(outcome)
}

/// The restart is an error that says all of this; no task and no file is left of it.
fn fails(ctx: &Context, program: &Program, args: &[&str], words: &[&str]) -> Result<()> {
    let before = program.files()?;
    let outcome = restart(ctx, program, args)?;
    expect_line(&outcome, "restart", &[1], words)?;
    nothing_runs_in(program.dir.path())?;
    let after = program.files()?;
    ensure(after == before, format!("its directory held {before:?} and holds {after:?}"))
}

fn report(outcome: &Outcome) -> Result<Value> {
    let value: Value = serde_json::from_slice(&outcome.stdout)?;
    Ok(value["checkpoint"].clone())
}

fn ghost_limit(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[], &["u:ghost:1048576"])?;
    let image = program.path("image");
    let outcome =
        ctx.run("checkpoint", &["--ghost-limit", "1023K", "-o"]).arg(&image).arg(program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[3], &["fd 50", "/ghost", "1048576", "--ghost-limit"])?;
    program.unharmed()?;
    ensure(!image.exists(), "a refused checkpoint left an image")?;
    let outcome = checkpoint(ctx, &mut program, &["--ghost-limit=1M", "--json"])?;
    let told = report(&outcome)?;
    ensure(told["unlinked_bytes"] == 1 << 20 && told["unlinked_files"] == 1, format!("{told}"))?;
    let info = ctx.run("info", &[]).arg(&image).finish()?;
    let shown = String::from_utf8_lossy(&info.stdout).into_owned();
    ensure(shown.contains("unlinked file, once /"), shown)?;
    goes_on(ctx, &mut program, &[], "u 1048576 600 uuuuuuuuuuuuuuuu\n").map(drop)
}

fn embedded(ctx: &Context) -> Result<()> {
    let mut program =
        holder(ctx, &[("data", "some data"), ("state", "state")], &["r:data", "w:state", "m:state"])?;
    std::fs::set_permissions(program.path("data"), PermissionsExt::from_mode(0o604))?;
    let outcome = checkpoint(ctx, &mut program, &["--embed-files", "--json"])?;
    let modified = std::fs::metadata(program.path("data"))?.modified()?;
    // out and err, data and state.
    let told = report(&outcome)?;
    ensure(told["embedded_files"] == 4, format!("{told}"))?;
    let info = ctx.run("info", &[]).arg(program.path("image")).finish()?;
    let shown = String::from_utf8_lossy(&info.stdout).into_owned();
    ensure(shown.contains("embedded file ") && shown.contains("/state"), shown)?;
    for name in ["data", "state", "err"] {
        std::fs::remove_file(program.path(name))?;
    }
    goes_on(ctx, &mut program, &[], "r 9 604 some data\nw 5 644 state\nm 0 0 state\n")?;
    let made = std::fs::metadata(program.path("data"))?;
    ensure(made.modified()? == modified && made.nlink() == 1, "it has another time")?;
    ensure(program.path("state").exists() && program.path("err").exists(), "a file was not made")?;
    // Now they are there, and are what they were.
    goes_on(ctx, &mut program, &[], "r 9 604 some data\nw 5 644 state\nm 0 0 state\n").map(drop)
}

fn embedded_by_pattern(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("a.dat", "aa"), ("b.txt", "bb")], &["r:a.dat", "r:b.txt"])?;
    let outcome = checkpoint(ctx, &mut program, &["--embed-files=*.d?t", "--json"])?;
    let told = report(&outcome)?;
    ensure(told["embedded_files"] == 1 && told["embedded_bytes"] == 4096, format!("{told}"))?;
    std::fs::remove_file(program.path("a.dat"))?;
    goes_on(ctx, &mut program, &[], "r 2 644 aa\nr 2 644 bb\n")?;
    std::fs::remove_file(program.path("b.txt"))?;
    fails(ctx, &program, &[], &["/b.txt", "No such file", "--map-file"])
}

/// Another file is in its place: it is not overwritten, and not taken without being asked.
fn embedded_but_there(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("data", "some data")], &["r:data"])?;
    checkpoint(ctx, &mut program, &["--embed-files"])?;
    std::fs::remove_file(program.path("data"))?;
    // It may get the inode's number: then the time tells, which file systems know by ticks.
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(program.path("data"), "something else")?;
    fails(ctx, &program, &[], &["/data has changed", "14 bytes", "--force-files"])?;
    goes_on(ctx, &mut program, &["--force-files"], "r 14 644 something else\n").map(drop)
}

fn embedded_restart_fails(ctx: &Context) -> Result<()> {
    let mut program =
        holder(ctx, &[("data", "some data"), ("other", "x")], &["r:data", "r:other", "u:gone:9"])?;
    checkpoint(ctx, &mut program, &["--embed-files=data"])?;
    for name in ["data", "other"] {
        std::fs::rename(program.path(name), program.path(&format!("{name}.away")))?;
    }
    fails(ctx, &program, &[], &["/other"])?;
    std::fs::rename(program.path("other.away"), program.path("other"))?;
    // Late: the last of the image is missing.
    let (image, whole) = (program.path("image"), std::fs::read(program.path("image"))?);
    std::fs::write(&image, &whole[..whole.len() - 100])?;
    let before = program.files()?;
    expect_line(&restart(ctx, &program, &[])?, "restart", &[5], &[])?;
    nothing_runs_in(program.dir.path())?;
    ensure(program.files()? == before, "a restart that failed late left a file")?;
    std::fs::write(&image, &whole)?;
    goes_on(ctx, &mut program, &[], "r 9 644 some data\nr 1 644 x\nu 9 600 uuuuuuuuu\n").map(drop)
}

/// SIGKILL at any moment: an embedded file is there if the program is, and nothing else is left.
fn embedded_restart_killed(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("data", "some data")], &["r:data", "u:gone:100000", "w:state"])?;
    checkpoint(ctx, &mut program, &["--embed-files=data"])?;
    std::fs::remove_file(program.path("data"))?;
    let before = program.files()?;
    let wall = {
        let outcome = restart(ctx, &program, &[])?;
        outcome.expect_code(0)?;
        program.adopt()?;
        program.target.kill();
        std::fs::remove_file(program.path("data"))?;
        outcome.wall
    };
    let (mut killed, rounds) = (0, ctx.kills.min(40));
    for _ in 0..rounds {
        let mut run = ctx.run("restart", &["-W", "-i"]).arg(program.path("image")).start()?;
        std::thread::sleep(Duration::from_nanos(sys::random_below(wall.as_nanos() as u64)));
        let was_running = run.kill();
        drop(run);
        let settled = sys::poll("it to be gone or to be there", || {
            ckpt_tests::target::reap_strays();
            let lives = program.adopt().is_ok();
            Ok((nothing_runs_in(program.dir.path()).is_ok() != lives).then_some(lives))
        })?;
        if settled {
            program.target.kill();
            let _ = std::fs::remove_file(program.path("data"));
        } else {
            killed += u32::from(was_running);
            let gone = || Ok((program.files()? == before).then_some(()));
            sys::poll("its files to be gone", gone).with_context(|| format!("{:?}", program.files()))?;
        }
    }
    println!("    {killed} of {rounds} killed on their way");
    Ok(())
}

/// The directory of an embedded and of an unlinked file is replaced by a link to another: nothing is made there.
fn no_link_is_followed(ctx: &Context) -> Result<()> {
    let outside = tempfile::tempdir()?;
    let binary = compile_c(ctx, &ctx.helpers.join("holder.c"), &["-pthread".to_owned()])?;
    for what in ["r:sub/data", "u:sub/ghost:9"] {
        let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
        std::fs::create_dir(dir.path().join("sub"))?;
        std::fs::write(dir.path().join("sub/data"), "some data")?;
        let mut program = Program::start_argv(&[binary.clone().into(), what.into()], dir, None)?;
        checkpoint(ctx, &mut program, &["--embed-files"])?;
        std::fs::remove_file(program.path("sub/data"))?;
        std::fs::remove_dir(program.path("sub"))?;
        symlink(outside.path(), program.path("sub"))?;
        fails(ctx, &program, &[], &["symbolic link", "--map-file"])?;
        ensure(std::fs::read_dir(outside.path())?.next().is_none(), "something was made beyond a link")?;
        // Said where it is, it goes there.
        let map = format!("{}={}", program.path("sub").display(), outside.path().display());
        let said = if what.starts_with('r') { "r 9 644 some data\n" } else { "u 9 600 uuuuuuuuu\n" };
        goes_on(ctx, &mut program, &["--map-file", &map], said)?;
        let _ = std::fs::remove_file(outside.path().join("data"));
    }
    Ok(())
}

fn moved(ctx: &Context) -> Result<()> {
    let mut program =
        holder(ctx, &[("data", "some data"), ("state", "state")], &["r:data", "w:state", "m:state"])?;
    checkpoint(ctx, &mut program, &[])?;
    let elsewhere = tempfile::tempdir()?;
    std::fs::rename(program.path("data"), elsewhere.path().join("renamed"))?;
    fails(ctx, &program, &[], &["/data", "No such file", "--map-file"])?;
    let one = format!("{}={}", program.path("data").display(), elsewhere.path().join("renamed").display());
    goes_on(ctx, &mut program, &["--map-file", &one], "r 9 644 some data\nw 5 644 state\nm 0 0 state\n")?;
    // A whole directory, and one file in it that is elsewhere still.
    for name in ["state", "out", "err"] {
        std::fs::copy(program.path(name), elsewhere.path().join(name))?;
    }
    std::fs::rename(program.path("state"), program.path("state.away"))?;
    let all = format!("{}={}", program.dir.path().display(), elsewhere.path().display());
    let outcome = restart(ctx, &program, &["--map-file", &all, "--map-file", &one])?;
    outcome.expect_code(0)?;
    program.adopt()?;
    // It works there now.
    std::fs::write(elsewhere.path().join("go"), "")?;
    let ended = program.target.wait()?;
    ensure(ended == Ended::Exit(7), format!("it ended with {ended:?}"))?;
    let said = std::fs::read_to_string(elsewhere.path().join("said"))?;
    ensure(said == "r 9 644 some data\nw 5 644 state\nm 0 0 state\n", said)
}

fn moved_nothing(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("data", "some data")], &["r:data"])?;
    checkpoint(ctx, &mut program, &[])?;
    fails(ctx, &program, &["--map-file", "/no/such/file=/tmp"], &["/no/such/file=/tmp", "ckptinfo"])?;
    let outcome = restart(ctx, &program, &["--map-file", "data=/tmp"])?;
    outcome.expect_error("ckpt", 2).map(drop)
}

/// What it only reads has become shorter, or longer in another file.
fn data_changed(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("data", "some data")], &["r:data"])?;
    checkpoint(ctx, &mut program, &[])?;
    std::fs::write(program.path("data"), "some")?;
    fails(ctx, &program, &[], &["/data has changed", "4 bytes and had 9", "--force-files"])?;
    goes_on(ctx, &mut program, &["--force-files"], "r 4 644 some\n").map(drop)
}

fn log_grew(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("log", "begin")], &["a:log", "r:log"])?;
    checkpoint(ctx, &mut program, &[])?;
    std::fs::write(program.path("log"), "begin and more")?;
    let outcome = goes_on(ctx, &mut program, &["-v"], "a 18 644 \nr 18 644 begin and moremo\n")?;
    ensure(outcome.stderr.contains("/log has grown by 9 bytes"), outcome.stderr)
}

fn truncated_back(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("log", "begin"), ("data", "data")], &["a:log", "r:data", "r:log"])?;
    checkpoint(ctx, &mut program, &[])?;
    std::fs::write(program.path("log"), "begin and more")?;
    std::fs::rename(program.path("data"), program.path("data.away"))?;
    // Not if it fails.
    fails(ctx, &program, &["--truncate-files"], &["/data"])?;
    ensure(
        std::fs::read(program.path("log"))? == b"begin and more",
        "a restart that failed truncated a file",
    )?;
    // And never what is only read.
    std::fs::rename(program.path("data.away"), program.path("data"))?;
    std::io::Write::write_all(
        &mut std::fs::OpenOptions::new().append(true).open(program.path("data"))?,
        b"grew",
    )?;
    goes_on(ctx, &mut program, &["--truncate-files"], "a 9 644 \nr 8 644 datagrew\nr 9 644 beginmore\n")
        .map(drop)
}

/// Of the same size, written to since: it goes on, with a warning.
fn written_to_meanwhile(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("data", "some data")], &["r:data"])?;
    checkpoint(ctx, &mut program, &[])?;
    let file = std::fs::OpenOptions::new().write(true).open(program.path("data"))?;
    std::os::unix::fs::FileExt::write_all_at(&file, b"SOME", 0)?;
    file.set_modified(SystemTime::now() + Duration::from_secs(5))?;
    drop(file);
    let outcome = goes_on(ctx, &mut program, &[], "r 9 644 SOME data\n")?;
    let line = outcome.stderr.trim_end();
    ensure(line.starts_with("restart: warning: modified since") && line.ends_with("/data"), line)
}

fn replaced_by_another(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("data", "some data")], &["r:data"])?;
    checkpoint(ctx, &mut program, &[])?;
    std::fs::write(program.path("new"), "SOME DATA")?;
    let file = std::fs::File::open(program.path("new"))?;
    file.set_modified(SystemTime::now() + Duration::from_secs(5))?;
    std::fs::rename(program.path("new"), program.path("data"))?;
    fails(ctx, &program, &[], &["/data has changed", "another file", "--force-files"])?;
    goes_on(ctx, &mut program, &["--force-files"], "r 9 644 SOME DATA\n").map(drop)
}

/// Every number up to the limit is taken, and `restart` has the same limit, but for the few files it works with.
fn table_full(ctx: &Context) -> Result<()> {
    full(ctx, "w:state")
}

/// What an epoll watches is put at its number while all that `restart` has opened is there, too.
fn table_full_and_watched(ctx: &Context) -> Result<()> {
    full(ctx, "e:")
}

fn full(ctx: &Context, file: &str) -> Result<()> {
    let binary = compile_c(ctx, &ctx.helpers.join("holder.c"), &["-pthread".to_owned()])?;
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let limited: [OsString; 5] =
        ["prlimit".into(), "--nofile=500:500".into(), binary.into(), file.into(), "f:500".into()];
    let mut program = Program::start_argv(&limited, dir, None)?;
    checkpoint(ctx, &mut program, &[])?;
    let mut command = Command::new("prlimit");
    command.arg("--nofile=540:540").arg(ctx.ckpt.as_ref().context("binary")?).args(["restart", "-W", "-i"]);
    Run::new(command).arg(program.path("image")).finish()?.expect_code(0)?;
    program.adopt()?;
    let open = std::fs::read_dir(format!("/proc/{}/fd", program.pid()))?.count();
    ensure(open >= 497, format!("it has {open} descriptors"))?;
    program.ends_with(7)
}

/// Mounts below a directory, unmounted when dropped.
#[derive(Default)]
pub(crate) struct Mounts(Vec<std::path::PathBuf>);

impl Mounts {
    pub(crate) fn mount(&mut self, place: &Path, args: &[&str]) -> Result<bool> {
        std::fs::create_dir_all(place)?;
        let done =
            Command::new("mount").args(args).arg(place).stderr(std::process::Stdio::null()).status()?;
        if done.success() {
            self.0.push(place.to_owned());
        }
        Ok(done.success())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for place in self.0.iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(place).status();
        }
    }
}

/// An epoll with 10,000 entries, for which `restart` has few numbers more than the program.
fn ten_thousand_watched(ctx: &Context) -> Result<()> {
    let binary = compile_c(ctx, &ctx.fixtures.join("poll_many.c"), &[])?;
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let mut program = Program::start_argv(&[binary.into(), "10000".into()], dir, None)?;
    for _ in 0..3 {
        let image = program.save_and_kill(ctx)?;
        let mut command = Command::new("prlimit");
        command.arg("--nofile=10300:10300").arg(ctx.ckpt.as_ref().context("binary")?);
        let run = Run::new(command).args(&["restart", "-W", "-i"]).arg(&image);
        run.finish()?.expect_code(0)?;
        program.adopt()?;
        std::fs::remove_file(&image)?;
    }
    std::fs::write(program.path("go.1"), "0 0")?;
    let ended = program.target.wait()?;
    let said = std::fs::read_to_string(program.path("out"))?;
    ensure(ended == Ended::Exit(0) && said.ends_with("\nok\n"), format!("it ended with {ended:?}: {said}"))
}

/// overlayfs (a file of the lower layer, one copied up, a new one, unlinked, without a name), tmpfs, a bind mount.
fn on_other_mounts(ctx: &Context) -> Result<()> {
    let base = tempfile::Builder::new().prefix("ckpt-mounts-").tempdir()?;
    let path = |name: &str| base.path().join(name);
    let mut mounts = Mounts::default();
    ensure(mounts.mount(&path("layers"), &["-t", "tmpfs", "none"])?, "tmpfs")?;
    for name in ["lower", "upper", "work"] {
        std::fs::create_dir(path("layers").join(name))?;
    }
    for name in ["low", "both"] {
        std::fs::write(path("layers/lower").join(name), name)?;
    }
    let layers = path("layers");
    let layer = |name: &str| layers.join(name).display().to_string();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", layer("lower"), layer("upper"), layer("work"));
    if !mounts.mount(&path("overlay"), &["-t", "overlay", "none", "-o", &options])? {
        return ctx.skip("files::on_other_mounts", "this kernel has no overlayfs");
    }
    std::fs::create_dir(path("real"))?;
    ensure(mounts.mount(&path("bound"), &["--bind", &path("real").display().to_string()])?, "bind mount")?;
    for name in ["overlay", "bound", "layers"] {
        let work = path(name).join("cwd");
        std::fs::create_dir(&work)?;
        if name == "overlay" {
            for file in ["low", "both"] {
                symlink(path("overlay").join(file), work.join(file))?;
            }
        } else {
            std::fs::write(work.join("low"), "low")?;
            std::fs::write(work.join("both"), "both")?;
        }
        // "both" is opened for reading first, and then copied up.
        let binary = compile_c(ctx, &ctx.helpers.join("holder.c"), &["-pthread".to_owned()])?;
        let what =
            ["r:low", "r:both", "a:both", "m:both", "u:ghost:5000", "w:new", "t:."].map(OsString::from);
        let argv: Vec<OsString> = std::iter::once(binary.into()).chain(what).collect();
        let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir_in(&work)?;
        for file in ["low", "both"] {
            symlink(work.join(file), dir.path().join(file))?;
        }
        let mut program = Program::start_argv(&argv, dir, None)?;
        checkpoint(ctx, &mut program, &[]).context(name)?;
        let said = "r 3 644 low\nr 4 644 both\na 8 644 \nm 0 0 bothmore\nu 5000 600 uuuuuuuuuuuuuuuu\nw 0 640 \nt 7 600 unnamed\n";
        goes_on(ctx, &mut program, &[], said).context(name)?;
    }
    Ok(())
}

fn hidden_by_a_mount(ctx: &Context) -> Result<()> {
    for (what, words) in [("w:over/there", "over/there does not lead"), ("d:over", "the directory /")] {
        let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
        std::fs::create_dir(dir.path().join("over"))?;
        let binary = compile_c(ctx, &ctx.helpers.join("holder.c"), &["-pthread".to_owned()])?;
        let mut program = Program::start_argv(&[binary.into(), what.into()], dir, None)?;
        let size = std::fs::metadata(program.path("over"))?.len();
        let mut mounts = Mounts::default();
        ensure(mounts.mount(&program.path("over"), &["-t", "tmpfs", "none"])?, "tmpfs")?;
        let outcome =
            ctx.run("checkpoint", &["-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
        expect_line(&outcome, "checkpoint", &[3], &["fd 50", words, "hidden by a mount"])?;
        program.unharmed()?;
        drop(mounts);
        checkpoint(ctx, &mut program, &[])?;
        let said = if what.starts_with('w') { "w 0 640 \n" } else { &format!("d {size} 755 \n") };
        goes_on(ctx, &mut program, &[], said)?;
    }
    Ok(())
}

/// Its name is gone, and its other name is in another directory: refused, with what is known.
fn other_name_elsewhere(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[("data", "some data")], &["r:data"])?;
    std::fs::create_dir(program.path("sub"))?;
    std::fs::hard_link(program.path("data"), program.path("sub/other"))?;
    let ino = std::fs::metadata(program.path("data"))?.ino().to_string();
    std::fs::remove_file(program.path("data"))?;
    let outcome = ctx.run("checkpoint", &["-o"]).arg(program.path("image")).arg(program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[3], &["fd 50", "/data", "another name", &ino])?;
    program.unharmed()?;
    std::fs::hard_link(program.path("sub/other"), program.path("third"))?;
    checkpoint(ctx, &mut program, &[])?;
    goes_on(ctx, &mut program, &[], "r 9 644 some data\n")?;
    ensure(!program.path("data").exists(), "the old name is back")
}

/// /proc/PID files are of the restarted process, by whatever pid their /proc knows it.
fn kernel_files_by_new_ids(ctx: &Context) -> Result<()> {
    let mut program = holder(ctx, &[], &["r:/proc/self/stat", "r:/proc/sys/kernel/ostype"])?;
    checkpoint(ctx, &mut program, &[])?;
    let said = |pid: &str| -> Result<()> {
        let told = std::fs::read_to_string(program.path("said"))?;
        std::fs::remove_file(program.path("said"))?;
        let (stat, rest) = told.split_once('\n').context("two lines")?;
        ensure(
            stat.starts_with(&format!("r 0 444 {pid} (holder")) && rest == "r 0 444 Linux\n\n",
            told.clone(),
        )
    };
    // Its old pid is somebody else's.
    let outcome = restart(ctx, &program, &["--new-pids"])?;
    outcome.expect_code(0)?;
    let pid = String::from_utf8_lossy(&outcome.stdout).trim().to_owned();
    let mut target = ckpt_tests::target::Target::adopt(pid.parse()?)?;
    std::fs::write(program.path("go"), "")?;
    let ended = target.wait()?;
    ensure(ended == Ended::Exit(7), format!("it ended with {ended:?}"))?;
    said(&pid)?;
    let namespace = ["--pidns", "--copy-status", "-i"];
    ctx.run("restart", &namespace).arg(program.path("image")).finish()?.expect_code(7)?;
    let told = std::fs::read_to_string(program.path("said"))?;
    ensure(!told.contains(&format!(" {} (", program.pid())), "not its pid in our /proc")?;
    std::fs::remove_file(program.path("said"))?;
    let own_proc = ["--pidns", "--mntns", "--copy-status", "-i"];
    ctx.run("restart", &own_proc).arg(program.path("image")).finish()?.expect_code(7)?;
    said(&program.pid())
}

/// tail -f goes on with what was written while it was not there.
fn tail_follows(ctx: &Context) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    std::fs::write(dir.path().join("log"), "ready 1\n")?;
    // Polling, as inotify descriptors are another matter.
    let argv = ["tail", "---disable-inotify", "-s", "0.05", "-f", "log"].map(OsString::from);
    let mut program = Program::start_argv(&argv, dir, None)?;
    checkpoint(ctx, &mut program, &[])?;
    let append = |text: &str| -> Result<()> {
        let mut log = std::fs::OpenOptions::new().append(true).open(program.path("log"))?;
        Ok(std::io::Write::write_all(&mut log, text.as_bytes())?)
    };
    append("meanwhile\n")?;
    restart(ctx, &program, &[])?.expect_code(0)?;
    append("afterwards\n")?;
    let out = program.path("out");
    program.adopt()?;
    sys::poll("tail to follow", || {
        Ok((std::fs::read(&out)? == b"ready 1\nmeanwhile\nafterwards\n").then_some(()))
    })
    .with_context(|| format!("it wrote {:?}", std::fs::read_to_string(&out)))
}

/// A python program that logs, and works on a temporary file without a name.
fn python_log(ctx: &Context) -> Result<()> {
    const SCRIPT: &str = r#"
import logging, os, sys, tempfile, time
logging.basicConfig(filename="app.log", level=logging.INFO, format="%(message)s")
temporary = tempfile.TemporaryFile()
unlinked = tempfile.NamedTemporaryFile(dir=".")
os.unlink(unlinked.name); unlinked._closer.delete = False
for i in range(3):
    logging.info("line %d", i); temporary.write(b"t%d" % i); unlinked.write(b"u%d" % i)
temporary.flush(); unlinked.flush()
print("ready 1", flush=True)
while not os.path.exists("go"): time.sleep(0.01)
for i in range(3, 6):
    logging.info("line %d", i); temporary.write(b"t%d" % i); unlinked.write(b"u%d" % i)
temporary.seek(0); unlinked.seek(0)
assert temporary.read() == b"t0t1t2t3t4t5", "temporary"
assert unlinked.read() == b"u0u1u2u3u4u5", "unlinked"
sys.exit(7)
"#;
    if ckpt_tests::fixture::find_program("python3").is_none() {
        return ctx.skip("files::python_log", "no python3");
    }
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let argv = ["python3", "-c", SCRIPT].map(OsString::from);
    let mut program = Program::start_argv(&argv, dir, None)?;
    for _ in 0..3 {
        checkpoint(ctx, &mut program, &["-f"])?;
        restart(ctx, &program, &[])?.expect_code(0)?;
        program.adopt()?;
    }
    program.ends_with(7)?;
    let log = std::fs::read_to_string(program.path("app.log"))?;
    ensure(log.lines().eq((0..6).map(|i| format!("line {i}"))), log)
}
