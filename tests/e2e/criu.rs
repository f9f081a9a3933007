//! The front end `criu`, called as a container engine calls it: dump and restore.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::find_program;
use ckpt_tests::runner::criu::RESTORE;
use ckpt_tests::sys;
use ckpt_tests::target::{Ended, field_of_stat};
use ckpt_tests::tool::{Outcome, Run};
use ckpt_tests::tree::{Tree, family};

use crate::common::{Program, Test, ensure, names_in, nothing_runs_in};

pub(crate) const TESTS: &[Test] = &[
    ("leave_running", leave_running),
    ("leave_stopped", leave_stopped),
    ("restored_stopped", restored_stopped),
    ("foreground", foreground),
    ("foreground_signal", foreground_signal),
    ("sibling", sibling),
    ("sibling_fails", sibling_fails),
    ("dump_scripts", dump_scripts),
    ("dump_script_fails", dump_script_fails),
    ("restore_scripts", restore_scripts),
    ("restore_script_fails", restore_script_fails),
    ("status_fd", status_fd),
    ("unsupported", unsupported),
    ("unsupported_by_restore", unsupported_by_restore),
    ("nothing_to_do", nothing_to_do),
    ("ghost_limit", ghost_limit),
    ("no_directory", no_directory),
    ("old_image", old_image),
    ("pidfile_exists", pidfile_exists),
    ("pid_in_use", pid_in_use),
    ("timeout", timeout),
];

/// A program that `criu` is used on, with a directory for its image.
pub(crate) struct Case<'a> {
    pub(crate) ctx: &'a Context,
    pub(crate) program: Program,
}

impl<'a> Case<'a> {
    pub(crate) fn start(ctx: &'a Context, helper: &str, args: &[&str]) -> Result<Case<'a>> {
        Case::of(ctx, Program::start(ctx, helper, args)?)
    }

    pub(crate) fn of(ctx: &'a Context, program: Program) -> Result<Case<'a>> {
        std::fs::create_dir(program.path("img"))?;
        Ok(Case { ctx, program })
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.program.path("img")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.images().join(name)
    }

    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn dump(&self, args: &[&str]) -> Run {
        let run = self.ctx.criu(&["dump", "-v4", "-o", "dump.log", "-D"]).arg(self.images());
        run.arg("-t").arg(self.program.pid()).args(args)
    }

    pub(crate) fn restore(&self, args: &[&str]) -> Run {
        self.ctx.criu(&["restore", "-v4", "-o", "restore.log", "-D"]).arg(self.images()).args(args)
    }

    /// Exit code 0, or what the log says.
    pub(crate) fn done(&self, run: Run, log: &str) -> Result<Outcome> {
        let outcome = run.finish()?;
        outcome.expect_code(0).with_context(|| self.log(log))?;
        Ok(outcome)
    }

    /// Dumped and gone.
    pub(crate) fn dump_and_kill(&mut self, args: &[&str]) -> Result<()> {
        let mut members = self.program.target.members();
        self.done(self.dump(args), "dump.log")?;
        let gone = self.program.target.wait()?;
        members.retain(|(pid, _)| *pid != self.program.target.pid());
        self.program.target.all_gone(&members)?;
        ensure(gone == Ended::Signal(libc::SIGKILL), format!("it ended with {gone:?}"))
    }

    /// Restored, and taken over as a child of ours.
    pub(crate) fn back(&mut self, args: &[&str]) -> Result<()> {
        self.done(self.restore(&["-d"]).args(args), "restore.log")?;
        self.program.adopt()
    }

    /// A dump that fails: exit 1, nothing touched, no image, all of `words` in the error before the last.
    pub(crate) fn dump_fails(&mut self, args: &[&str], words: &[&str]) -> Result<()> {
        let before = Tree::of(self.program.target.pid())?;
        let outcome = self.dump(args).finish()?;
        self.failed(&outcome, "dump.log", "Dumping FAILED.", words)?;
        ensure(!self.path("checkpoint.img").exists(), "a failed dump left an image")?;
        let found = before.differences(&Tree::of(self.program.target.pid())?, true, Clone::clone);
        ensure(found.is_empty(), format!("the tree was touched: {found:?}"))?;
        self.program.unharmed()
    }

    /// A restore that fails: exit 1, nothing is left.
    pub(crate) fn restore_fails(&self, args: &[&str], words: &[&str]) -> Result<()> {
        let outcome = self.restore(&["-d"]).args(args).finish()?;
        self.failed(&outcome, "restore.log", "Restoring FAILED.", words)?;
        nothing_runs_in(self.program.dir.path())
    }

    pub(crate) fn failed(&self, outcome: &Outcome, log: &str, last: &str, words: &[&str]) -> Result<()> {
        let log = self.log(log);
        ensure(!log.contains("(os error"), &*log)?;
        outcome.expect_code(1).with_context(|| log.clone())?;
        let errors: Vec<&str> = log.lines().filter(|line| line.contains(" Error (")).collect();
        let [.., why, end] = errors.as_slice() else { bail!("want two errors, have {log}") };
        ensure(end.ends_with(last), format!("the last error is {end}"))?;
        match words.iter().find(|word| !why.contains(**word)) {
            Some(word) => bail!("the error does not say {word:?}: {why}"),
            None => Ok(()),
        }
    }
}

/// `-R`: it goes on, the image is there; beside it statistics and the log, nothing else.
fn leave_running(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let outcome = case.done(case.dump(&["--leave-running"]), "dump.log")?;
    ensure(outcome.stdout.is_empty() && outcome.stderr.is_empty(), "it is not silent")?;
    case.program.unharmed()?;
    let names = names_in(&case.images())?;
    ensure(names == ["checkpoint.img", "dump.log", "stats-dump"], format!("there are {names:?}"))?;
    let stats = std::fs::read(case.path("stats-dump"))?;
    ensure(stats.starts_with(&[0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57]), "stats-dump is none")?;
    case.program.ends_with(7)?;
    std::fs::remove_file(case.program.path("go"))?;
    case.back(&["--pidfile", "pid"])?;
    ensure(case.log("pid") == case.program.pid(), "the pidfile is wrong")?;
    ensure(case.path("stats-restore").exists(), "no stats-restore")?;
    case.program.ends_with(7)
}

/// `-s`: every thread is stopped as by SIGSTOP, and goes on by SIGCONT.
fn leave_stopped(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "kin", &["plain"])?;
    case.done(case.dump(&["--leave-stopped"]), "dump.log")?;
    stopped(case.program.target.pid())?;
    case.program.ends_with(7)
}

/// `restore -s`: likewise; nothing of the program has run.
fn restored_stopped(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "kin", &["plain"])?;
    case.dump_and_kill(&[])?;
    std::fs::write(case.program.path("go"), "")?;
    case.back(&["--leave-stopped"])?;
    stopped(case.program.target.pid())?;
    case.program.ends_with(7)
}

/// A parent and a child, each thread stopped as by SIGSTOP; they are let go on.
fn stopped(root: i32) -> Result<()> {
    let members = family(root);
    ensure(members.len() == 2, format!("members: {members:?}"))?;
    for pid in &members {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let status = std::fs::read_to_string(task.path().join("status"))?;
            let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
            ensure(state.starts_with("State:\tT"), format!("{}: {state}", task.path().display()))?;
        }
    }
    for pid in members {
        let pid = rustix::process::Pid::from_raw(pid).context("pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    }
    Ok(())
}

/// In the foreground it waits for the root, and ends with 0 whatever that ends with.
fn foreground(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    case.dump_and_kill(&[])?;
    let mut running = case.restore(&[]).start()?;
    sys::poll("it to be restored", || {
        Ok(field_of_stat(case.program.target.pid(), 4).is_some().then_some(()))
    })?;
    let parent = sys::poll("the root's parent", || Ok(field_of_stat(case.program.target.pid(), 4)))?;
    ensure(parent == i64::from(running.pid()), format!("its parent is {parent}, not {}", running.pid()))?;
    std::fs::write(case.program.path("go"), "")?;
    let outcome = running_end(&mut running)?;
    ensure(outcome == Some(0), format!("it ended with {outcome:?}"))?;
    let log = case.log("restore.log");
    ensure(log.contains("exit status: 7"), format!("the log does not say how it ended: {log}"))?;
    nothing_runs_in(case.program.dir.path())
}

/// The exit code of a run, once it has ended.
fn running_end(running: &mut ckpt_tests::tool::Running) -> Result<Option<i32>> {
    sys::poll("it to end", || Ok(running.ended()?.map(|status| status.code())))
}

/// In the foreground signals reach the program.
fn foreground_signal(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    case.dump_and_kill(&[])?;
    let mut running = case.restore(&[]).start()?;
    sys::poll("it to be restored", || Ok(case.log("restore.log").contains("Tasks resumed").then_some(())))?;
    running.signal(libc::SIGTERM)?;
    let outcome = running_end(&mut running)?;
    ensure(outcome == Some(0), format!("it ended with {outcome:?}"))?;
    ensure(case.log("restore.log").contains("exit status: 115"), "SIGTERM did not reach it")
}

/// A parent that starts `criu restore -d -S` with `args` and says how that ended, and then each child that ends.
fn parent(case: &Case<'_>, args: &[&str]) -> Result<ckpt_tests::tool::Running> {
    let python = find_program("python3").context("no python3")?;
    let mut command = std::process::Command::new(python);
    let code = "
import os, subprocess, sys
said = open(sys.argv[1], 'a', buffering=1)
print('criu', subprocess.call(sys.argv[2:]), file=said)
while True:
    try: pid, status = os.wait()
    except ChildProcessError: break
    print('child', pid, status, file=said)
print('none', file=said)
";
    command.args(["-c", code]).arg(case.path("said")).arg(case.ctx.criu_link());
    command.args(["restore", "-v4", "-o", "restore.log", "-d", "-S", "-D"]).arg(case.images()).args(args);
    Run::new(command).start()
}

/// `-S`: the root is a child of whoever started criu, who waits for it.
fn sibling(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    case.dump_and_kill(&[])?;
    let running = parent(&case, &["--pidfile", "pid"])?;
    sys::poll("criu to end", || Ok(case.log("said").contains('\n').then_some(())))?;
    ensure(case.log("said") == "criu 0\n", format!("{} {}", case.log("said"), case.log("restore.log")))?;
    ensure(case.log("pid") == case.program.pid(), "the pidfile is wrong")?;
    let ppid = field_of_stat(case.program.target.pid(), 4);
    ensure(ppid == Some(i64::from(running.pid())), format!("its parent is {ppid:?}"))?;
    std::fs::write(case.program.path("go"), "")?;
    running.finish()?.expect_code(0)?;
    let want = format!("criu 0\nchild {} {}\nnone\n", case.program.pid(), 7 << 8);
    ensure(case.log("said") == want, case.log("said"))
}

/// A sibling that fails late: of the tree nothing is left; the parent is told of one child, killed by SIGKILL.
fn sibling_fails(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "kin", &["plain"])?;
    case.dump_and_kill(&[])?;
    let script = "test $CRTOOLS_SCRIPT_ACTION != post-restore";
    let running = parent(&case, &["--pidfile", "pid", "--action-script", script])?;
    running.finish()?.expect_code(0)?;
    let want = format!("criu 1\nchild {} {}\nnone\n", case.program.pid(), libc::SIGKILL);
    ensure(case.log("said") == want, format!("{} {}", case.log("said"), case.log("restore.log")))?;
    ensure(!case.path("pid").exists(), "the pidfile is left")?;
    nothing_runs_in(case.program.dir.path())?;
    let alone = case.restore(&["-S"]).finish()?;
    case.failed(&alone, "restore.log", "Restoring FAILED.", &["--restore-sibling", "--restore-detached"])
}

pub(crate) const RECORD: &str =
    "echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID $(ls $CRTOOLS_IMAGE_DIR | grep -c img) >> said";

/// What [`RECORD`] wrote, where criu was started: one line a stage.
pub(crate) fn said(path: &std::path::Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    std::fs::remove_file(path)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Scripts are run at every stage of a dump, with the pid of the root; the image is there at post-dump.
fn dump_scripts(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let (path, pid) = (case.program.path("said"), case.program.pid());
    let script = RECORD.replace("said", path.to_str().context("path")?);
    let stages = |stages: &[(&str, u32)]| -> Vec<String> {
        stages.iter().map(|(stage, images)| format!("{stage} {pid} {images}")).collect()
    };
    case.done(case.dump(&["-R", "--action-script", &script]), "dump.log")?;
    let want = stages(&[("pre-dump", 0), ("network-lock", 0), ("post-dump", 1), ("network-unlock", 1)]);
    let found = said(&path)?;
    ensure(found == want, format!("{found:?}"))?;
    std::fs::remove_file(case.path("checkpoint.img"))?;
    case.dump_and_kill(&["--action-script", &script, "--action-script", &script])?;
    let once = stages(&[("pre-dump", 0), ("network-lock", 0), ("post-dump", 1)]);
    let twice: Vec<String> = once.iter().flat_map(|line| [line.clone(), line.clone()]).collect();
    let found = said(&path)?;
    ensure(found == twice, format!("{found:?}"))
}

/// A script that fails at any stage of a dump fails the dump, and the tree goes on, with its network.
fn dump_script_fails(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let path = case.program.path("said");
    let record = RECORD.replace("said", path.to_str().context("path")?);
    for stage in ["pre-dump", "network-lock", "post-dump", "network-unlock"] {
        let script = format!("{record}; test $CRTOOLS_SCRIPT_ACTION != {stage}");
        case.dump_fails(&["-R", "--action-script", &script], &[stage, "action script", "exit status: 1"])
            .with_context(|| stage.to_owned())?;
        let found = said(&path)?;
        let unlocked = found.last().is_some_and(|line| line.starts_with("network-unlock"));
        ensure(unlocked == (stage != "pre-dump"), format!("{stage}: {found:?}"))?;
    }
    case.program.ends_with(7)
}

/// Scripts are run at every stage of a restore.
fn restore_scripts(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let (path, pid) = (case.program.path("said"), case.program.pid());
    case.dump_and_kill(&[])?;
    let state = format!("echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID >> {}", path.display());
    case.back(&["--action-script", &state])?;
    let found = said(&path)?;
    let want: Vec<String> = RESTORE.iter().map(|stage| format!("{stage} {pid}")).collect();
    ensure(found == want, format!("{found:?}"))?;
    case.program.ends_with(7)
}

/// A script that fails at any stage of a restore but the last: nothing is left, no pidfile either.
fn restore_script_fails(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "kin", &["plain"])?;
    case.dump_and_kill(&[])?;
    for stage in RESTORE.iter().copied().filter(|stage| *stage != "post-resume") {
        let script = format!("test $CRTOOLS_SCRIPT_ACTION != {stage}");
        case.restore_fails(
            &["--pidfile", "pid", "--action-script", &script],
            &[stage, "action script", "exit status: 1"],
        )
        .with_context(|| stage.to_owned())?;
        ensure(!case.path("pid").exists(), format!("{stage}: the pidfile is left"))?;
    }
    case.back(&["--pidfile", "pid", "--action-script", "test $CRTOOLS_SCRIPT_ACTION != post-resume"])?;
    ensure(case.log("restore.log").contains("Warn  "), "post-resume is not warned of")?;
    case.program.ends_with(7)
}

/// `--status-fd`: one NUL byte, then its end; nothing before the image is complete, or the tasks run.
fn status_fd(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let ends = |run: Run, code: i32| -> Result<Vec<u8>> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        run.args(&["--status-fd", "7"]).pass(write, 7).finish()?.expect_code(code)?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(read), &mut bytes)?;
        Ok(bytes)
    };
    let (told, fails) = (|run| ends(run, 0), |run| ends(run, 1));
    let failed = fails(case.dump(&["--action-script", "test $CRTOOLS_SCRIPT_ACTION != post-dump"]))?;
    ensure(failed.is_empty(), format!("a dump that failed: {failed:?}"))?;
    let dumped = told(case.dump(&[]))?;
    ensure(dumped == [0], format!("dump: {dumped:?}"))?;
    case.program.target.wait()?;
    let script = ["-d", "--action-script", "test $CRTOOLS_SCRIPT_ACTION != pre-resume"];
    let failed = fails(case.restore(&script))?;
    ensure(failed.is_empty(), format!("a restore that failed: {failed:?}"))?;
    let restored = told(case.restore(&["-d"]))?;
    ensure(restored == [0], format!("restore: {restored:?}"))?;
    case.program.adopt()?;
    case.program.ends_with(7)
}

/// What cannot be carried is refused before the tree is touched.
fn unsupported(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let pid = case.program.pid();
    for (args, word) in [
        (&["--external", "net[1]:other"][..], "--external net[1]:other"),
        (&["--empty-ns", "net"], "--empty-ns net"),
        (&["--join-ns", "net:1"], "--join-ns"),
        (&["--external", "pid[1]:other"], "--external pid[1]:other"),
        (&["--external", "dev[8/1]:disk"], "--external dev[8/1]:disk"),
        (&["--external", "veth[a]:b"], "--external veth[a]:b"),
        (&["--manage-cgroups"], "--manage-cgroups=soft"),
        (&["--manage-cgroups=none"], "--manage-cgroups=none"),
        (&["--manage-cgroups=props"], "--manage-cgroups=props"),
        (&["--manage-cgroups=full"], "--manage-cgroups=full"),
        (&["--manage-cgroups=strict"], "--manage-cgroups=strict"),
        (&["--freeze-cgroup", "/nowhere"], "/nowhere"),
        (&["--external", "pipe[1]"], "--external pipe[1]: "),
        (&["--external", "file[1:1]"], "--external file[1:1]: "),
        (&["--external", "tty[1:1]"], "--external tty[1:1]: "),
        (&["--ext-unix-sk=1"], "--external unix[1]: "),
    ] {
        case.dump_fails(args, &[word])?;
    }
    // A kernel thread, and nobody.
    for (pid, word) in [("2", "kernel thread"), ("999999999", "999999999")] {
        let run = ctx.criu(&["dump", "-o", "dump.log", "-t", pid, "-D"]).arg(case.images());
        case.failed(&run.finish()?, "dump.log", "Dumping FAILED.", &[word])?;
    }
    ensure(case.program.pid() == pid, "another pid")?;
    case.program.ends_with(7)
}

/// What a restore cannot do is refused before anything is made.
fn unsupported_by_restore(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    case.dump_and_kill(&[])?;
    for (args, word) in [
        (&["--empty-ns", "net"][..], "--empty-ns net"),
        (&["--join-ns", "net:1"], "--join-ns"),
        (&["--cgroup-root", "/a"], "--cgroup-root"),
        (&["--manage-cgroups"], "--manage-cgroups=soft"),
        (&["--manage-cgroups=none"], "--manage-cgroups=none"),
        (&["--external", "veth[a]:b"], "--external veth[a]:b"),
        (&["--veth-pair", "a=b@c"], "--external veth[a]:b@c"),
        (&["--external", "macvlan[a]:b"], "--external macvlan[a]:b"),
        (&["--external", "netdev[a]:b"], "--external netdev[a]:b"),
        (&["--external", "dev[disk]:/dev/sda"], "--external dev[disk]:/dev/sda"),
    ] {
        case.restore_fails(args, &[word])?;
    }
    case.back(&[])?;
    case.program.ends_with(7)
}

/// What has nothing to do, as no image of ours has a use for it, does no harm, and a file that is gone comes back without advice
/// to use an option that there is not.
fn nothing_to_do(ctx: &Context) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let stdin = std::fs::File::open(file.path())?;
    let mut case = Case::of(ctx, Program::start_with(ctx, "exits", &["7"], Some(stdin.into()))?)?;
    let own = |kind: &str| -> Result<String> {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string();
        Ok(format!("{}:outside", link.replace(':', "")))
    };
    let (net, pid) = (own("net")?, own("pid")?);
    let both = &[
        "--tcp-established",
        "--tcp-close",
        "--network-lock",
        "skip",
        "--evasive-devices",
        "-M",
        "auto",
        "--external",
        "mnt[]:ms",
        "--external",
        "mnt[/data]:data",
        "--manage-cgroups=ignore",
        "--no-lazy-pages",
    ];
    let of_dump = [
        "--link-remap",
        "--skip-in-flight",
        "--enable-external-sharing",
        "--enable-external-masters",
        "--external",
        &net,
        "--external",
        &pid,
    ];
    case.dump_and_kill(&[&both[..], &of_dump].concat())?;
    let away = file.path().with_extension("away");
    std::fs::rename(file.path(), &away)?;
    case.restore_fails(both, &["No such file"])?;
    ensure(!case.log("restore.log").contains(" --"), case.log("restore.log"))?;
    std::fs::rename(&away, file.path())?;
    case.back(both)?;
    let now = std::fs::read_link(format!("/proc/{}/fd/0", case.program.pid()))?;
    ensure(now == file.path(), format!("its input is {}", now.display()))?;
    case.program.ends_with(7)
}

/// `--ghost-limit`: an unlinked file of so many bytes is carried, one of more is refused.
fn ghost_limit(ctx: &Context) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    std::io::Write::write_all(&mut file, &[1; 8192])?;
    let mut case = Case::of(ctx, Program::start_with(ctx, "exits", &["7"], Some(file.into()))?)?;
    case.dump_fails(&["--ghost-limit", "8191"], &["fd 0", "--ghost-limit is 8191"])?;
    case.dump_and_kill(&["--ghost-limit", "8K"])?;
    case.back(&[])?;
    case.program.ends_with(7)
}

/// The directory of images must be there, and one that can be written to.
fn no_directory(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let work = case.images();
    let nowhere = case.program.path("nowhere");
    for dir in [nowhere.as_os_str(), case.program.path("out").as_os_str(), "/proc".as_ref()] {
        let run = ctx.criu(&["dump", "-v4", "-o", "dump.log", "-W"]).arg(&work).arg("-D").arg(dir);
        let outcome = run.arg("-t").arg(case.program.pid()).finish()?;
        let shown = dir.to_str().context("path")?;
        case.failed(&outcome, "dump.log", "Dumping FAILED.", &[shown])?;
        case.program.unharmed()?;
        let run = ctx.criu(&["restore", "-d", "-v4", "-o", "restore.log", "-W"]).arg(&work);
        let outcome = run.arg("-D").arg(dir).finish()?;
        case.failed(&outcome, "restore.log", "Restoring FAILED.", &[shown])?;
    }
    ensure(!nowhere.exists(), "it was made")?;
    case.program.ends_with(7)
}

/// An older image is replaced by a dump that succeeds, and only by that.
fn old_image(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    std::fs::write(case.path("checkpoint.img"), "old")?;
    let outcome = case.dump(&["--action-script", "test $CRTOOLS_SCRIPT_ACTION != network-lock"]).finish()?;
    case.failed(&outcome, "dump.log", "Dumping FAILED.", &["network-lock"])?;
    ensure(case.log("checkpoint.img") == "old", "the old image is gone")?;
    case.dump_and_kill(&[])?;
    case.back(&[])?;
    case.program.ends_with(7)
}

/// A pidfile that exists is not touched, and nothing is made.
fn pidfile_exists(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    case.dump_and_kill(&[])?;
    std::fs::write(case.path("pid"), "mine")?;
    case.restore_fails(&["--pidfile", "pid"], &["--pidfile", "exists"])?;
    ensure(case.log("pid") == "mine", "the pidfile was touched")?;
    // Nowhere to make it: that shows before anything is made.
    for place in ["/nowhere/pid", "/dev/null/pid", "pid/pid"] {
        case.restore_fails(&["-v4", "--pidfile", place], &["--pidfile", place])?;
        ensure(!case.log("restore.log").contains("Stage"), case.log("restore.log"))?;
    }
    std::os::unix::fs::symlink("elsewhere", case.path("link"))?;
    case.restore_fails(&["--pidfile", "link"], &["--pidfile", "exists"])?;
    ensure(!case.path("elsewhere").exists(), "it was written through a link")?;
    case.back(&[])?;
    case.program.ends_with(7)
}

/// A pid that is in use: an error that says by whom, who is left alone.
fn pid_in_use(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    case.done(case.dump(&["-R"]), "dump.log")?;
    let outcome = case.restore(&["-d", "--pidfile", "pid"]).finish()?;
    case.failed(
        &outcome,
        "restore.log",
        "Restoring FAILED.",
        &[&format!("pid {} ", case.program.pid()), "exits"],
    )?;
    ensure(!case.path("pid").exists(), "a pidfile was made")?;
    case.program.unharmed()?;
    case.program.ends_with(7)
}

/// A thread that cannot be stopped: the dump ends when the timeout is over, which it names.
fn timeout(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "vforks", &[])?;
    let begun = Instant::now();
    let outcome = case.dump(&["--timeout", "1"]).finish()?;
    let took = begun.elapsed();
    case.failed(
        &outcome,
        "dump.log",
        "Dumping FAILED.",
        &["timeout of 1 s", "--timeout", "cannot be stopped"],
    )?;
    ensure(took > Duration::from_millis(900), format!("it took {took:?}"))?;
    ensure(!case.path("checkpoint.img").exists(), "it left an image")?;
    case.program.ends_with(7)
}
