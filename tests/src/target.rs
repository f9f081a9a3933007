//! A process under test: started or adopted, always killed and reaped at the end.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions};

use crate::diagnose::diagnose;
use crate::sys;
use crate::tree::{self, Member};
use crate::view::working_directory;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
}

/// A running target, with its pidfd. The harness is its parent, or became it as the subreaper.
///
/// To it belong its descendants, and whatever else works in its directory or is in the session it leads.
pub struct Target {
    pid: i32,
    pidfd: OwnedFd,
    ended: Option<Ended>,
    home: Option<PathBuf>,
    session: bool,
    spared: bool,
}

/// The pids of all targets (as often as they are held): their owners wait for them.
static TARGETS: Mutex<Vec<i32>> = Mutex::new(Vec::new());

fn targets() -> MutexGuard<'static, Vec<i32>> {
    TARGETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a target is started with.
pub struct Start<'a> {
    pub argv: &'a [OsString],
    pub dir: &'a Path,
    /// /dev/null if none.
    pub stdin: Option<OwnedFd>,
    /// The file `out` if none.
    pub stdout: Option<OwnedFd>,
    pub session: Session,
}

/// Where a target stands among sessions and process groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Session {
    /// It leads a session, as a batch job does.
    Own,
    /// It leads a process group of the harness's session, as the job of a shell does.
    Job,
    /// It is in the harness's session and group.
    Ours,
}

impl Target {
    /// Starts a program with stdout and stderr appended to `out` and `err` in `dir` and a small, fixed environment.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(start: Start<'_>) -> Result<Target> {
        let append = |name: &str| OpenOptions::new().append(true).create(true).open(start.dir.join(name));
        let mut command = Command::new(&start.argv[0]);
        command.args(&start.argv[1..]).current_dir(start.dir);
        command.env_clear().envs(environment(start.dir));
        command.stdin(start.stdin.map_or_else(Stdio::null, Stdio::from));
        let stdout = append("out")?;
        command.stdout(start.stdout.map_or_else(|| Stdio::from(stdout), Stdio::from)).stderr(append("err")?);
        if start.session == Session::Job {
            command.process_group(0);
        }
        let own = start.session == Session::Own;
        sys::prepare(&mut command, own, Vec::new());
        let child = spawn(&mut command).with_context(|| format!("cannot start {:?}", start.argv[0]))?;
        let pid = i32::try_from(child.id())?;
        let home = Some(start.dir.to_owned());
        let pidfd = pidfd(pid)?;
        sys::give_way(pid);
        Ok(Target { pid, pidfd, ended: None, home, session: own, spared: false })
    }

    /// Takes over a process that is, or has just become, a child of the harness.
    ///
    /// # Errors
    /// There is no such process.
    pub fn adopt(pid: i32) -> Result<Target> {
        let pidfd = pidfd(pid)?;
        sys::give_way(pid);
        targets().push(pid);
        Ok(Target { pid, pidfd, ended: None, home: None, session: false, spared: false })
    }

    /// Takes over a child that runs what works in `dir`.
    ///
    /// # Errors
    /// There is no such process.
    pub fn stand_in(pid: i32, dir: &Path) -> Result<Target> {
        let pidfd = pidfd(pid)?;
        Ok(Target { pid, pidfd, ended: None, home: Some(dir.to_owned()), session: false, spared: false })
    }

    /// Takes over the process that has its pid now, after a restart.
    ///
    /// # Errors
    /// There is none, or it is not a child of the harness.
    pub fn come_back(&mut self) -> Result<()> {
        self.pidfd = pidfd(self.pid)?;
        sys::give_way(self.pid);
        self.ended = None;
        self.must_live()
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets go of it without killing anything.
    pub fn release(mut self) {
        self.spared = true;
    }

    /// Reaps it if it has ended.
    ///
    /// # Errors
    /// It is not our child.
    pub fn ended(&mut self) -> Result<Option<Ended>> {
        if self.ended.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
                .with_context(|| format!("process {} is not our child", self.pid))?;
            self.ended = status.and_then(|s| {
                s.exit_status().map(Ended::Exit).or_else(|| s.terminating_signal().map(Ended::Signal))
            });
        }
        Ok(self.ended)
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(&mut self) -> Result<Ended> {
        let what = format!("process {} to end", self.pid);
        sys::poll_task(&what, self.pid, || self.ended())
    }

    /// # Errors
    /// It has ended, or it is zombie.
    pub fn must_live(&mut self) -> Result<()> {
        match self.ended()? {
            Some(ended) => bail!("process {} is gone: {ended:?}", self.pid),
            None => Ok(()),
        }
    }

    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let signal = Signal::from_named_raw(signal).context("signal number")?;
        Ok(rustix::process::pidfd_send_signal(&self.pidfd, signal)?)
    }

    /// It and its descendants.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        tree::members(self.pid)
    }

    /// Waits until nothing is left of `members` and nothing else that belongs to it, reaping what comes to us.
    ///
    /// # Errors
    /// Something stays.
    pub fn all_gone(&self, members: &[Member]) -> Result<()> {
        let still = |(pid, start): &&Member| field_of_stat(*pid, 22) == Some(*start);
        let gone = sys::poll("the tree to be gone", || {
            reap_strays();
            Ok((!members.iter().any(|m| still(&m)) && self.belongings().is_empty()).then_some(()))
        });
        gone.with_context(|| {
            let mut left: Vec<i32> = members.iter().filter(still).map(|(pid, _)| *pid).collect();
            left.extend(self.belongings());
            left.sort_unstable();
            left.dedup();
            let told: Vec<String> = left.iter().take(5).map(|pid| diagnose(*pid)).collect();
            format!("left behind: {left:?}{}", told.concat())
        })
    }

    /// What belongs to it and lives, but for itself; once it has ended, also what was brought back under its pid.
    fn belongings(&self) -> Vec<i32> {
        let below = if self.ended.is_none() { tree::family(self.pid) } else { Vec::new() };
        let owned = |pid: &i32| below.contains(pid) || self.owns(*pid);
        let other = |pid: &i32| *pid != self.pid || self.ended.is_some();
        all_pids().into_iter().filter(|pid| other(pid) && owned(pid) && !tree::ended(*pid)).collect()
    }

    fn owns(&self, pid: i32) -> bool {
        let works_here = |home: &PathBuf| working_directory(pid).is_some_and(|cwd| cwd.starts_with(home));
        (self.session && field_of_stat(pid, 6) == Some(i64::from(self.pid)))
            || self.home.as_ref().is_some_and(works_here)
    }

    /// Kills and reaps it and all that belongs to it.
    pub fn kill(&mut self) {
        let _ = sys::poll("the tree to be gone", || {
            let mut pids = self.belongings();
            match self.ended() {
                Ok(Some(_)) => {}
                Ok(None) => pids.push(self.pid),
                // Not our child: it may be a stranger that was given the pid.
                Err(_) if self.owns(self.pid) && !tree::ended(self.pid) => pids.push(self.pid),
                Err(_) => {}
            }
            for pid in &pids {
                if let Ok(pidfd) = pidfd(*pid) {
                    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                }
            }
            reap_strays();
            Ok(pids.is_empty().then_some(()))
        });
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.spared {
            self.kill();
        }
        forget(self.pid);
    }
}

fn pidfd(pid: i32) -> Result<OwnedFd> {
    let rpid = Pid::from_raw(pid).context("pid 0")?;
    rustix::process::pidfd_open(rpid, PidfdFlags::empty()).with_context(|| format!("no process {pid}"))
}

/// Reaps what came to us as the subreaper: the kernel gives it to our first thread, and what tests start themselves, in
/// other threads or known as targets, they wait for.
pub fn reap_strays() {
    let known = targets();
    let me = std::process::id();
    let adopted = std::fs::read_to_string(format!("/proc/self/task/{me}/children")).unwrap_or_default();
    for pid in adopted.split_whitespace().filter_map(|p| p.parse().ok()) {
        if !known.contains(&pid) && tree::ended(pid) {
            let _ = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
        }
    }
}

/// Starts a child that its starter will wait for: it is registered before anyone can take it for a stray.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let mut known = targets();
    let child = command.spawn()?;
    known.push(child.id() as i32);
    Ok(child)
}

/// Its starter has waited for it.
pub(crate) fn forget(pid: i32) {
    let mut known = targets();
    if let Some(at) = known.iter().position(|known| *known == pid) {
        known.swap_remove(at);
    }
}

/// The fixed environment of targets.
fn environment(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    vec![
        ("FIXTURE_PADDING", PathBuf::from("a variable that a program may overwrite")),
        ("HOME", dir.to_owned()),
        ("LC_ALL", PathBuf::from("C")),
        ("PATH", PathBuf::from("/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")),
    ]
}

/// Every pid in /proc.
#[must_use]
pub fn all_pids() -> Vec<i32> {
    let Ok(dir) = std::fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Field `n` (counted from 1 as in proc(5)) of /proc/PID/stat; 0 is the harness.
#[must_use]
pub fn field_of_stat(pid: i32, n: usize) -> Option<i64> {
    let raw = std::fs::read(format!("{}/stat", tree::proc_dir(pid))).ok()?;
    let text = String::from_utf8_lossy(&raw);
    text[text.rfind(')')? + 2..].split_whitespace().nth(n.checked_sub(3)?)?.parse().ok()
}

/// Reaps what the tool left to the subreaper, and gives what stays: there must be none.
#[must_use]
pub fn left_behind() -> Vec<(i32, String)> {
    let all_gone = || {
        for (pid, _) in own_children() {
            let _ = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
        }
        Ok(own_children().is_empty().then_some(()))
    };
    let _ = sys::poll("all children to end", all_gone);
    own_children()
}

/// The processes that are children of the harness right now.
#[must_use]
pub fn own_children() -> Vec<(i32, String)> {
    let name =
        |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    tree::children(0).into_iter().map(|pid| (pid, name(pid))).collect()
}

/// Opens a file for appending, as a shell's `>>` does.
///
/// # Errors
/// It cannot be opened.
pub fn append_to(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().append(true).create(true).open(path)?)
}
