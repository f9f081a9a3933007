//! A process under test: started or adopted, always killed and reaped at the end.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::sys;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Exit(i32),
    Signal(i32),
}

/// A running target, with its pidfd. The harness is its parent, or became it as the subreaper.
pub struct Target {
    pid: i32,
    pidfd: OwnedFd,
    ended: Option<Ended>,
    /// Kill what is left of its session on drop (it was started as a session leader).
    session: bool,
}

/// What a target is started with.
pub struct Start<'a> {
    pub argv: &'a [OsString],
    pub dir: &'a Path,
    /// /dev/null if none.
    pub stdin: Option<OwnedFd>,
    /// The file `out` if none.
    pub stdout: Option<OwnedFd>,
    /// A session of its own, as a batch job has; else it shares the harness's.
    pub own_session: bool,
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
        sys::prepare(&mut command, start.own_session, Vec::new());
        let child = command.spawn().with_context(|| format!("cannot start {:?}", start.argv[0]))?;
        let mut target = Target::adopt(i32::try_from(child.id())?)?;
        target.session = start.own_session;
        Ok(target)
    }

    /// Takes over a process that is, or has just become, a child of the harness.
    ///
    /// # Errors
    /// There is no such process.
    pub fn adopt(pid: i32) -> Result<Target> {
        let rpid = Pid::from_raw(pid).context("pid 0")?;
        let pidfd = rustix::process::pidfd_open(rpid, PidfdFlags::empty())
            .with_context(|| format!("no process {pid}"))?;
        Ok(Target { pid, pidfd, ended: None, session: false })
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Also kill, on drop, every process of the session this target leads.
    pub fn leads_session(&mut self) {
        self.session = true;
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
    /// It did not end within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<Ended> {
        let what = format!("process {} to end", self.pid);
        sys::poll(&what, limit, || self.ended())
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

    /// Kills it and reaps it.
    pub fn kill(&mut self) {
        if !matches!(self.ended(), Ok(Some(_))) {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = self.wait(Duration::from_secs(10));
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.kill();
        if self.session {
            for pid in session_members(self.pid) {
                if let Ok(mut left) = Target::adopt(pid) {
                    left.kill();
                }
            }
        }
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

fn session_members(session: i32) -> Vec<i32> {
    all_pids()
        .into_iter()
        .filter(|pid| field_of_stat(*pid, 6) == Some(i64::from(session)) && *pid != session)
        .collect()
}

/// Every pid in /proc.
#[must_use]
pub fn all_pids() -> Vec<i32> {
    let Ok(dir) = std::fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Field `n` (counted from 1 as in proc(5)) of /proc/PID/stat.
#[must_use]
pub fn field_of_stat(pid: i32, n: usize) -> Option<i64> {
    let raw = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&raw);
    text[text.rfind(')')? + 2..].split_whitespace().nth(n.checked_sub(3)?)?.parse().ok()
}

/// Reaps what the tool left to the subreaper, and gives what is still running after two seconds: there must be none.
#[must_use]
pub fn left_behind() -> Vec<(i32, String)> {
    let all_gone = || {
        for (pid, _) in own_children() {
            if let Ok(mut child) = Target::adopt(pid) {
                let _ = child.ended();
                std::mem::forget(child); // not to kill it: that it runs is the finding
            }
        }
        Ok(own_children().is_empty().then_some(()))
    };
    let _ = sys::poll("all children to end", Duration::from_secs(2), all_gone);
    own_children()
}

/// The processes that are children of the harness right now.
#[must_use]
pub fn own_children() -> Vec<(i32, String)> {
    let me = i64::from(std::process::id());
    let name =
        |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    all_pids().into_iter().filter(|p| field_of_stat(*p, 4) == Some(me)).map(|p| (p, name(p))).collect()
}

/// Opens a file for appending, as a shell's `>>` does.
///
/// # Errors
/// It cannot be opened.
pub fn append_to(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().append(true).create(true).open(path)?)
}
