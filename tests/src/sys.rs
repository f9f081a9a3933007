//! The few raw system calls the harness needs, and waiting with a deadline.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::pty::OpenptFlags;

use crate::diagnose::diagnose;

/// How long anything is waited for before it is said not to come. It decides how long a failing test takes, never whether it fails:
/// some kernels let a program that spins keep others from the CPU for many seconds.
pub const PATIENCE: Duration = Duration::from_secs(100);

/// Polls `ready` every few milliseconds until it gives a value or our patience ends.
///
/// # Errors
/// What `ready` fails with, or that `what` did not happen in time.
pub fn poll<T>(what: &str, ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    poll_saying(what, String::new, ready)
}

/// The same, for something process `pid` does: when it does not, the error tells what it is doing instead.
///
/// # Errors
/// As [`poll`].
pub fn poll_task<T>(what: &str, pid: i32, ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    poll_saying(what, || format!(":{}", diagnose(pid)), ready)
}

fn poll_saying<T>(
    what: &str,
    instead: impl FnOnce() -> String,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} for {what}{}", instead());
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Makes the child start in a session of its own (`own_session`) and with no descriptors above 2 but those in
/// `pass`, each under the number given.
pub fn prepare(command: &mut Command, own_session: bool, pass: Vec<(OwnedFd, RawFd)>) {
    let setup = move || -> io::Result<()> {
        if own_session {
            rustix::process::setsid()?;
        }
        // Started in the background, or by nohup, we ignore some, and so would they.
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            // SAFETY: SIG_DFL is a disposition, no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // SAFETY: close_range takes plain numbers; with CLOEXEC nothing is closed before the exec.
        if unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for (from, to) in &pass {
            // SAFETY: dup2 on a descriptor this closure owns; the target number belongs to the child alone.
            let done = unsafe {
                if from.as_raw_fd() == *to {
                    libc::fcntl(*to, libc::F_SETFD, 0)
                } else {
                    libc::dup2(from.as_raw_fd(), *to)
                }
            };
            if done < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and only makes system calls; it neither allocates nor locks.
    unsafe { command.pre_exec(setup) };
}

/// Lets others go before the session of process `pid`, if it is another one than ours: where sessions have a share of the CPU
/// each (sched(7), "The autogroup feature"), two that spin can keep all others from it for many seconds, on Linux 6.18 at least.
pub fn give_way(pid: i32) {
    let session = |pid| rustix::process::getsid(pid).ok();
    if session(rustix::process::Pid::from_raw(pid)) != session(None) {
        let _ = std::fs::write(format!("/proc/{pid}/autogroup"), "19"); // not every kernel has such a thing
    }
}

/// A pty: its master, and the path of its slave.
///
/// # Errors
/// There is none to be had.
pub fn pty() -> Result<(OwnedFd, PathBuf)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    Ok((master, name.to_str()?.into()))
}

/// Opens a terminal, which does not become ours.
///
/// # Errors
/// It cannot be opened.
pub fn open_terminal(path: &Path) -> Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)?.into())
}

/// The head of a thread's robust futex list and its length, as text.
#[must_use]
pub fn robust_list(tid: i32) -> String {
    let (mut head, mut len) = (0usize, 0usize);
    // SAFETY: both pointers are to live locals of the size the call writes.
    let done = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    if done == 0 { format!("{head:#x} {len}") } else { io::Error::last_os_error().to_string() }
}

/// A thread's I/O priority.
#[must_use]
pub fn io_priority(tid: i32) -> i64 {
    // SAFETY: plain numbers only. 1 is IOPRIO_WHO_PROCESS.
    unsafe { libc::syscall(libc::SYS_ioprio_get, 1, tid) }
}

/// Scheduling policy and priority of a thread, with the reset-on-fork bit that /proc does not show.
#[must_use]
pub fn scheduler(tid: i32) -> String {
    // SAFETY: sched_param is plain data; the pointer is to a live local.
    let (policy, priority) = unsafe {
        let mut param: libc::sched_param = std::mem::zeroed();
        let policy = libc::sched_getscheduler(tid);
        libc::sched_getparam(tid, &raw mut param);
        (policy, param.sched_priority)
    };
    format!("policy {policy:#x} priority {priority}")
}

/// What two tasks may have in common, by the numbers of kcmp(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kcmp {
    File = 0,
    Vm = 1,
    Files = 2,
    Fs = 3,
    Sighand = 4,
}

/// Whether two tasks share something; for [`Kcmp::File`], whether two descriptors are one open file.
#[must_use]
pub fn same(what: Kcmp, a: i32, b: i32, fd_a: u32, fd_b: u32) -> bool {
    // SAFETY: plain numbers only.
    unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as i32, u64::from(fd_a), u64::from(fd_b)) == 0 }
}

/// A random number below `bound`, good enough for choosing moments and bits.
#[must_use]
pub fn random_below(bound: u64) -> u64 {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("getrandom");
    u64::from_le_bytes(bytes) % bound.max(1)
}
