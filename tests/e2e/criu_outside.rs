//! The front end `criu` and the outside: what is refused without the caller's word, what is given back, cgroups, roots.

use std::ffi::OsString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::sys;
use ckpt_tests::target::{Ended, Session, Start, Target};
use ckpt_tests::tree::{children, ended, family};

use crate::common::{Program, Test, ensure};
use crate::criu::{Case, RECORD, said};
use crate::frozen::{Group, Kind, V1, V2};
use crate::pidns::other_root;

pub(crate) const TESTS: &[Test] = &[
    ("shell_job", shell_job),
    ("file_locks", file_locks),
    ("freeze_cgroup_v1", |ctx| freeze_cgroup(ctx, V1)),
    ("freeze_cgroup_v2", |ctx| freeze_cgroup(ctx, V2)),
    ("freeze_cgroup_fails_v1", |ctx| freeze_cgroup_fails(ctx, V1)),
    ("freeze_cgroup_fails_v2", |ctx| freeze_cgroup_fails(ctx, V2)),
    ("inherit_path", inherit_path),
    ("external_file", external_file),
    ("external_file_by_mount", external_file_by_mount),
    ("ext_mount_map", ext_mount_map),
    ("mount_namespace", mount_namespace),
    ("inherit_unknown", inherit_unknown),
    ("unix_socket", unix_socket),
    ("tcp_connection", tcp_connection),
    ("external_tty", external_tty),
    ("root_directory", root_directory),
];

/// A program in our session is a shell job: refused without `-j`.
fn shell_job(ctx: &Context) -> Result<()> {
    let binary = compile_c(ctx, &ctx.helpers.join("exits.c"), &["-pthread".to_owned()])?;
    let dir = tempfile::tempdir()?;
    let argv: Vec<OsString> = vec![binary.into(), "7".into()];
    let start = Start { argv: &argv, dir: dir.path(), stdin: None, stdout: None, session: Session::Job };
    let program = Program { target: Target::start(start)?, dir };
    sys::poll("the helper to be ready", || {
        Ok(std::fs::read_to_string(program.path("out"))?.starts_with("ready 1\n").then_some(()))
    })?;
    let mut case = Case::of(ctx, program)?;
    case.dump_fails(&[], &["session", "outside the tree", "--shell-job"])?;
    case.dump_and_kill(&["-j"])?;
    case.back(&["-j"])?;
    case.program.ends_with(7)
}

/// A lock is refused without `--file-locks`, naming the file.
fn file_locks(ctx: &Context) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("locked");
    let name = path.to_str().context("path")?;
    let mut case = Case::start(ctx, "holds", &["flock", name])?;
    case.dump_fails(&[], &["lock", name, "--file-locks"])?;
    case.dump_and_kill(&["--file-locks"])?;
    case.back(&["--file-locks"])?;
    ensure(Program::start(ctx, "holds", &["flock", name]).is_err(), "it does not hold its lock")?;
    case.program.ends_with(7)
}

/// `--freeze-cgroup`: frozen while it is dumped, thawed afterwards if it was not frozen before.
fn freeze_cgroup(ctx: &Context, kind: Kind) -> Result<()> {
    let mut case = Case::start(ctx, "kin", &["plain"])?;
    let name = format!("criu-{}-{}", case.program.pid(), kind.1);
    let Some(group) = Group::new(kind, &name)? else {
        return ctx.skip("criu::freeze_cgroup", &format!("this kernel has no {}", kind.0));
    };
    for pid in family(case.program.target.pid()) {
        group.take(pid)?;
    }
    let path = group.path.to_str().context("path")?.to_owned();
    // Told so itself: while it is looked at, it is thawed with its tasks stopped.
    let told = if kind.1 == V1.1 { "freezer.self_freezing" } else { "cgroup.freeze" };
    let look = format!("cat {path}/{told} >> {}", case.program.path("said").display());
    case.done(case.dump(&["-R", "--freeze-cgroup", &path, "--action-script", &look]), "dump.log")?;
    ensure(!group.is_set() && !group.is_frozen(), "it is still frozen")?;
    case.program.unharmed()?;
    case.done(case.dump(&["-s", "--freeze-cgroup", &path]), "dump.log")?;
    ensure(!group.is_set(), "it is still frozen")?;
    let state = std::fs::read_to_string(format!("/proc/{}/status", case.program.pid()))?;
    ensure(state.contains("State:\tT (stopped)"), format!("not stopped: {state}"))?;
    for pid in family(case.program.target.pid()) {
        let pid = rustix::process::Pid::from_raw(pid).context("pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    }
    // Frozen before, it stays so; killed, it ends all the same.
    group.freeze()?;
    case.done(case.dump(&["-R", "--freeze-cgroup", &path]), "dump.log")?;
    ensure(group.is_set() && group.is_frozen(), "it was thawed, and had been frozen")?;
    group.set(false)?;
    case.dump_and_kill(&["--freeze-cgroup", &path])?;
    ensure(!group.is_set(), "it is still frozen")?;
    drop(group);
    case.back(&[])?;
    case.program.ends_with(7)
}

/// A dump that fails thaws what it froze; so does one that is killed.
fn freeze_cgroup_fails(ctx: &Context, kind: Kind) -> Result<()> {
    let mut case = Case::start(ctx, "kin", &["plain"])?;
    let name = format!("criu-fails-{}-{}", case.program.pid(), kind.1);
    let Some(group) = Group::new(kind, &name)? else {
        return ctx.skip("criu::freeze_cgroup_fails", &format!("this kernel has no {}", kind.0));
    };
    for pid in family(case.program.target.pid()) {
        group.take(pid)?;
    }
    let path = group.path.to_str().context("path")?.to_owned();
    let script = "test $CRTOOLS_SCRIPT_ACTION != post-dump";
    case.dump_fails(&["--freeze-cgroup", &path, "--action-script", script], &["post-dump"])?;
    ensure(!group.is_set() && !group.is_frozen(), "it is still frozen")?;
    let slow = "test $CRTOOLS_SCRIPT_ACTION != network-lock || exec sleep 30";
    let mut running = case.dump(&["--freeze-cgroup", &path, "--action-script", slow]).start()?;
    sys::poll("the stage network-lock", || Ok(case.log("dump.log").contains("network-lock").then_some(())))?;
    // The guardian is a child, too, and must live.
    let sleeps = |pid: &i32| std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == b"sleep\n");
    let sleeper = sys::poll("the script", || Ok(children(running.pid()).into_iter().find(sleeps)))?;
    ensure(running.kill(), "it ended by itself")?;
    if let Some(pid) = rustix::process::Pid::from_raw(sleeper) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    sys::poll("the cgroup to be thawed", || Ok((!group.is_set() && !group.is_frozen()).then_some(())))?;
    sys::poll("the tree to go on", || Ok(case.program.unharmed().ok()))?;
    ensure(!ended(case.program.target.pid()), "it ended")?;
    drop(group);
    case.program.ends_with(7)
}

/// A file with a name is replaced by a descriptor of the restorer's, by its path without the first slash.
fn inherit_path(ctx: &Context) -> Result<()> {
    let shared = tempfile::tempdir()?;
    let (log, new) = (shared.path().join("log"), shared.path().join("new"));
    let path = log.to_str().context("path")?;
    let mut case = Case::start(ctx, "holds", &["log", path])?;
    case.dump_and_kill(&[])?;
    let inherit = format!("fd[5]:{}", path.trim_start_matches('/'));
    goes_on_with(&mut case, &inherit, &new, &log)
}

/// It is restored with another file, supplied as `inherit` says, in the place of an old one, and writes to that.
fn goes_on_with(case: &mut Case<'_>, inherit: &str, new: &Path, old: &Path) -> Result<()> {
    let file = std::fs::OpenOptions::new().append(true).create(true).open(new)?;
    case.done(case.restore(&["-d", "--inherit-fd", inherit]).pass(OwnedFd::from(file), 5), "restore.log")?;
    case.program.adopt()?;
    case.program.ends_with(7)?;
    ensure(std::fs::read_to_string(new)? == "line\n", "it did not write to the new file")?;
    ensure(std::fs::read_to_string(old)?.is_empty(), "it wrote to the old file")
}

/// A file that is external by mount and number is missed without a supply, and replaced with one.
fn external_file(ctx: &Context) -> Result<()> {
    let shared = tempfile::tempdir()?;
    let (log, new) = (shared.path().join("log"), shared.path().join("new"));
    let path = log.to_str().context("path")?;
    let mut case = Case::start(ctx, "holds", &["log", path])?;
    let word = word_of(case.program.target.pid(), 9)?;
    case.dump_and_kill(&["--external", &word])?;
    std::fs::remove_file(&log)?;
    case.restore_fails(&[], &["fd 9", &word])?;
    let file = std::fs::OpenOptions::new().append(true).create(true).open(&new)?;
    let inherit = format!("fd[5]:{word}");
    case.done(case.restore(&["-d", "--inherit-fd", &inherit]).pass(OwnedFd::from(file), 5), "restore.log")?;
    case.program.adopt()?;
    case.program.ends_with(7)?;
    ensure(std::fs::read_to_string(&new)? == "line\n", "it did not write to the new file")
}

/// A directory that is bound on another, as long as this lives.
struct Bound {
    dir: tempfile::TempDir,
}

impl Bound {
    fn new() -> Result<Bound> {
        let bound = Bound { dir: tempfile::tempdir()? };
        std::fs::create_dir(bound.path("real"))?;
        std::fs::create_dir(bound.path("bound"))?;
        bound.mount()?;
        Ok(bound)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&self) -> Result<()> {
        let mut mount = Command::new("mount");
        mount.arg("--bind").arg(self.path("real")).arg(self.path("bound"));
        ensure(mount.status()?.success(), "mount --bind failed")
    }

    fn unmount(&self) -> Result<()> {
        ensure(Command::new("umount").arg(self.path("bound")).status()?.success(), "umount failed")
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-lq").arg(self.path("bound")).stderr(Stdio::null()).status();
    }
}

/// The word by which a descriptor is external as a file: its mount and its number, both hexadecimal.
fn word_of(pid: i32, fd: i32) -> Result<String> {
    let (info, link) = (format!("/proc/{pid}/fdinfo/{fd}"), format!("/proc/{pid}/fd/{fd}"));
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(link)?);
    Ok(format!("file[{:x}:{inode:x}]", mount_of(&std::fs::read_to_string(info)?)?))
}

/// The mount that fdinfo names.
fn mount_of(info: &str) -> Result<u64> {
    Ok(info.lines().find_map(|l| l.strip_prefix("mnt_id:")).context("mnt_id")?.trim().parse()?)
}

/// One file is another through another mount: it is external by the one it was opened through, and by no other.
fn external_file_by_mount(ctx: &Context) -> Result<()> {
    let bound = Bound::new()?;
    let path = bound.path("bound/log");
    let mut case = Case::start(ctx, "holds", &["log", path.to_str().context("path")?])?;
    let here = std::fs::File::open(bound.path("real/log"))?;
    let (word, wrong) = (
        word_of(case.program.target.pid(), 9)?,
        word_of(i32::try_from(std::process::id())?, here.as_raw_fd())?,
    );
    ensure(word != wrong, "both are of one mount")?;
    case.dump_fails(&["--external", &wrong], &[&format!("--external {wrong}: "), "no such descriptor"])?;
    case.dump_and_kill(&["--external", &word])?;
    // Though it is there yet, it is not what is wanted.
    case.restore_fails(&[], &["fd 9", &word])?;
    let new = bound.path("new");
    goes_on_with(&mut case, &format!("fd[5]:{word}"), &new, &path)
}

/// `-M KEY:VALUE`: the tasks have our mounts, so what is mounted there when they come back is what they have.
fn ext_mount_map(ctx: &Context) -> Result<()> {
    let bound = Bound::new()?;
    let path = bound.path("bound/log");
    let point = bound.path("bound").to_str().context("path")?.to_owned();
    let mut case = Case::start(ctx, "holds", &["log", path.to_str().context("path")?])?;
    case.dump_and_kill(&["-M", &format!("{point}:data")])?;
    bound.unmount()?;
    case.restore_fails(&["-M", &format!("data:{point}")], &[path.to_str().context("path")?, "No such file"])?;
    bound.mount()?;
    case.back(&["--ext-mount-map", &format!("data:{point}"), "-M", "other:/"])?;
    let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/9", case.program.pid()))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let ours = mounts.lines().find(|line| line.split(' ').nth(4) == Some(&point)).context("mount")?;
    let number = mount_of(&info)?.to_string();
    ensure(ours.split(' ').next() == Some(&number), format!("it is of mount {number}, not {ours}"))?;
    case.program.ends_with(7)?;
    ensure(std::fs::read_to_string(bound.path("real/log"))? == "line\n", "it did not write there")
}

/// Tasks with mounts of their own are refused, whatever is said about these.
fn mount_namespace(ctx: &Context) -> Result<()> {
    let binary = compile_c(ctx, &ctx.helpers.join("exits.c"), &["-pthread".to_owned()])?;
    let argv = ["unshare".into(), "-m".into(), binary.into_os_string(), "7".into()];
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let mut case = Case::of(ctx, Program::start_argv(&argv, dir, None)?)?;
    for args in [&[][..], &["-M", "auto"], &["-M", "/:root"], &["--external", "mnt[]:ms"]] {
        case.dump_fails(args, &["mnt namespace"])?;
    }
    case.program.ends_with(7)
}

/// What nothing in the image is meant by is said in the log, and no reason to fail: engines give what they have.
fn inherit_unknown(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    case.dump_and_kill(&[])?;
    let null = || std::fs::File::open("/dev/null").map(OwnedFd::from);
    let wrong = case.restore(&["-d", "--inherit-fd", "fd[77]:pipe:[1]"]).finish()?;
    case.failed(&wrong, "restore.log", "Restoring FAILED.", &["--inherit-fd 77"])?;
    let run = case.restore(&["-d", "--inherit-fd", "fd[5]:pipe:[1]"]).pass(null()?, 5);
    case.done(run, "restore.log")?;
    let log = case.log("restore.log");
    let warned = log.lines().any(|line| line.contains("Warn  ") && line.contains("pipe:[1]"));
    ensure(warned, format!("the log does not mention it: {log}"))?;
    case.program.adopt()?;
    case.program.ends_with(7)
}

/// What /proc shows as descriptor 0 of a program.
fn stdin_of(pid: i32) -> Result<String> {
    Ok(std::fs::read_link(format!("/proc/{pid}/fd/0"))?.display().to_string())
}

/// A unix socket whose other end is outside: refused without `--ext-unix-sk`, given back by what /proc showed.
fn unix_socket(ctx: &Context) -> Result<()> {
    let (peer, own) = std::os::unix::net::UnixStream::pair()?;
    let mut case = Case::of(ctx, Program::start_with(ctx, "exits", &["7"], Some(own.into()))?)?;
    case.dump_fails(&[], &["unix socket", "outside the tree", "--ext-unix-sk"])?;
    let shown = stdin_of(case.program.target.pid())?;
    case.dump_and_kill(&["--ext-unix-sk"])?;
    let (other, new) = std::os::unix::net::UnixStream::pair()?;
    let want = std::fs::read_link(format!("/proc/self/fd/{}", new.as_raw_fd()))?;
    let run = case.restore(&["-d", "--ext-unix-sk", "--inherit-fd", &format!("fd[5]:{shown}")]);
    case.done(run.pass(new.into(), 5), "restore.log")?;
    case.program.adopt()?;
    let now = stdin_of(case.program.target.pid())?;
    ensure(want == std::path::Path::new(&now), format!("it has {now}, not {}", want.display()))?;
    drop((peer, other));
    case.program.ends_with(7)
}

/// An established TCP connection is refused, with and without `--tcp-established`, which says that it cannot be had yet.
fn tcp_connection(ctx: &Context) -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let peer = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (own, _) = listener.accept()?;
    let mut case = Case::of(ctx, Program::start_with(ctx, "exits", &["7"], Some(own.into()))?)?;
    for args in [&[][..], &["--tcp-established"]] {
        case.dump_fails(args, &["fd 0", "TCP connection", "cannot be carried yet"])?;
    }
    drop(peer);
    case.program.ends_with(7)
}

/// A terminal from outside: refused, unless it is a shell job's or external; then `--inherit-fd` gives another by its word.
fn external_tty(ctx: &Context) -> Result<()> {
    let ((_old, path), (_new, other)) = (sys::pty()?, sys::pty()?);
    let mut case =
        Case::of(ctx, Program::start_with(ctx, "exits", &["7"], Some(sys::open_terminal(&path)?))?)?;
    case.dump_fails(&[], &["fd 0", "terminal", "outside the tree", "--shell-job"])?;
    let stat = std::fs::metadata(&path)?;
    let (rdev, dev) =
        (std::os::unix::fs::MetadataExt::rdev(&stat), std::os::unix::fs::MetadataExt::dev(&stat));
    let word = format!("tty[{rdev:x}:{dev:x}]");
    case.dump_and_kill(&["--external", &word])?;
    let run = case.restore(&["-d", "--inherit-fd", &format!("fd[5]:{word}")]);
    case.done(run.pass(sys::open_terminal(&other)?, 5), "restore.log")?;
    case.program.adopt()?;
    let now = stdin_of(case.program.target.pid())?;
    ensure(other == std::path::Path::new(&now), format!("it has {now}, not {}", other.display()))?;
    case.program.ends_with(7)
}

/// `--root`: the tasks have another root directory; scripts, at every stage, that of criu.
fn root_directory(ctx: &Context) -> Result<()> {
    let binary = compile_c(ctx, &ctx.helpers.join("exits.c"), &["-static".to_owned()])?;
    let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
    let argv: Vec<OsString> = vec![binary.clone().into(), "7".into()];
    let mut case = Case::of(ctx, Program::start_argv(&argv, dir, None)?)?;
    case.dump_and_kill(&[])?;
    let root = other_root(&binary, case.program.dir.path())?;
    let path = case.program.path("said");
    let script = RECORD.replace("said", path.to_str().context("path")?);
    let run = case.restore(&["-d", "--action-script", &script, "--pidfile", "pid", "--root"]);
    case.done(run.arg(root.path()), "restore.log")?;
    case.program.adopt()?;
    ensure(said(&path)?.len() == 7, "not every stage was seen")?;
    let now = std::fs::read_link(format!("/proc/{}/root", case.program.pid()))?;
    ensure(now == root.path(), format!("its root is {}", now.display()))?;
    std::fs::write(root.path().join(case.program.dir.path().strip_prefix("/")?).join("go"), "")?;
    let end = case.program.target.wait()?;
    ensure(end == Ended::Exit(7), format!("it ended with {end:?}"))
}
