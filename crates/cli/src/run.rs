//! Running this very binary, and the programs it works on, from `demo` and `bench`.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Seek},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
        set_child_subreaper, waitid,
    },
};
use serde_json::Value;
use wait4::Wait4;

use crate::{
    failure::{Failure, Outcome},
    signals::Cancel,
};

/// A command that ran to its end.
#[derive(Debug)]
pub(crate) struct Ran {
    /// From before it was started until after it was waited for.
    pub(crate) wall: Duration,
    /// Most memory it had in core, bytes.
    pub(crate) max_rss: u64,
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// What it wrote to stdout.
    pub(crate) stdout: String,
    /// What it wrote to stderr.
    pub(crate) stderr: String,
}

impl Ran {
    /// The JSON report it printed under `key`; its failure if it failed.
    pub(crate) fn report(&self, key: &str) -> Outcome<Value> {
        self.check(key)?;
        let parsed: Option<Value> = serde_json::from_str(self.stdout.trim()).ok();
        let report = parsed.as_ref().and_then(|all| all.get(key));
        report
            .cloned()
            .ok_or_else(|| Failure::failed(format!("{key}: no report in {:?}", self.stdout.trim())))
    }

    /// An error unless it ended with exit code 0.
    pub(crate) fn check(&self, name: &str) -> Outcome<()> {
        if self.status.success() {
            return Ok(());
        }
        let said = self.stderr.trim().lines().last().unwrap_or("it said nothing");
        Err(Failure::failed(format!("{name} ended with {}: {said}", self.status)))
    }
}

/// Runs `command` to its end. Its output goes through files and not through pipes: whoever
/// inherits those (a restarted program, say) cannot keep us waiting.
pub(crate) fn run(mut command: Command) -> Outcome<Ran> {
    let name = command.get_program().display().to_string();
    let trouble = |cause: std::io::Error| Failure::os(name.as_str(), cause);
    let (mut out, mut err) = (tempfile::tempfile().map_err(trouble)?, tempfile::tempfile().map_err(trouble)?);
    command.stdin(Stdio::null());
    command.stdout(out.try_clone().map_err(trouble)?).stderr(err.try_clone().map_err(trouble)?);
    let begun = Instant::now();
    let mut child = command.spawn().map_err(trouble)?;
    let used = child.wait4().map_err(trouble)?;
    let wall = begun.elapsed();
    Ok(Ran {
        wall,
        max_rss: used.rusage.maxrss,
        status: used.status,
        stdout: contents(&mut out).map_err(trouble)?,
        stderr: contents(&mut err).map_err(trouble)?,
    })
}

fn contents(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A command line of this binary.
pub(crate) fn ourselves<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Outcome<Command> {
    let path = std::env::current_exe().map_err(|cause| Failure::os("our own executable", cause))?;
    let mut command = Command::new(path);
    command.arg0("ckpt").args(args);
    Ok(command)
}

/// Makes programs whose parent ends our children, so that we can wait for them.
pub(crate) fn adopt_orphans() -> Outcome<()> {
    set_child_subreaper(Some(rustix::process::getpid())).map_err(|cause| Failure::os("subreaper", cause))
}

/// Waits for all children, our own and orphans, which are about to end.
pub(crate) fn reap_all() {
    while !matches!(waitid(WaitId::All, WaitIdOptions::EXITED), Err(Errno::CHILD)) {}
}

/// Sleeps; a signal ends it early, as a failure.
pub(crate) fn sleep(time: Duration, cancel: &Cancel) -> Outcome<()> {
    let end = Instant::now() + time;
    loop {
        if cancel.signal().is_some() {
            return Err(cancel.blame(Failure::failed("interrupted")));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}

/// A child of ours that is killed and waited for when this goes out of scope.
#[derive(Debug)]
pub(crate) struct Target {
    pid: i32,
    pidfd: OwnedFd,
    ended: bool,
}

impl Target {
    /// Starts `command`.
    pub(crate) fn start(mut command: Command) -> Outcome<Target> {
        let name = command.get_program().display().to_string();
        let child = command.spawn().map_err(|cause| Failure::os(name, cause))?;
        Target::adopt(i32::try_from(child.id()).unwrap_or(0))
    }

    /// Takes over the child `pid`.
    pub(crate) fn adopt(pid: i32) -> Outcome<Target> {
        let trouble = |cause: Errno| Failure::os(format!("pid {pid}"), cause);
        let raw = Pid::from_raw(pid).ok_or_else(|| trouble(Errno::SRCH))?;
        Ok(Target { pid, pidfd: pidfd_open(raw, PidfdFlags::empty()).map_err(trouble)?, ended: false })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome<()> {
        pidfd_send_signal(&self.pidfd, signal)
            .map_err(|cause| Failure::os(format!("signal to pid {}", self.pid), cause))
    }

    /// Waits for its end; `None` if that does not come in time.
    pub(crate) fn wait(&mut self, patience: Duration) -> Outcome<Option<WaitIdStatus>> {
        let trouble = |cause: Errno| Failure::os(format!("wait for pid {}", self.pid), cause);
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let limit = Timespec::try_from(left).map_err(|_| trouble(Errno::INVAL))?;
            let mut ready = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut ready, Some(&limit)) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(cause) => return Err(trouble(cause)),
            }
        }
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED).map_err(trouble)?;
        self.ended = true;
        Ok(status)
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(&mut self) {
        if !self.ended {
            // It may have ended by itself; and all that is left then is to wait.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = self.wait(Duration::from_secs(10));
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The number `key` of a report.
pub(crate) fn number(report: &Value, key: &str) -> f64 {
    report.get(key).and_then(Value::as_f64).unwrap_or(0.0)
}

/// The time `key` of a report, which is in milliseconds.
pub(crate) fn time(report: &Value, key: &str) -> Duration {
    Duration::try_from_secs_f64(number(report, key) / 1000.0).unwrap_or_default()
}
