//! What this kernel can do, found by doing it: nothing is concluded from a version.
//!
//! What a probe makes is in a child that ends with it (namespaces, devices, mounts, filters), or goes with a
//! descriptor. Names and meanings are those of the features of CRIU's command `check`.

pub mod file;
mod link;
pub mod memory;
pub mod network;
pub mod process;

use crate::{
    error::{Error, Result},
    sys,
};
use rustix::io::Errno;

/// What the kernel answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has it.
    Present,
    /// It does not; what it said instead.
    Missing(String),
}

/// Errors by which a kernel says that it does not know what it was asked for.
const UNKNOWN: [Errno; 12] = [
    Errno::NOSYS,
    Errno::INVAL,
    Errno::NOTTY,
    Errno::OPNOTSUPP,
    Errno::NOPROTOOPT,
    Errno::PROTONOSUPPORT,
    Errno::AFNOSUPPORT,
    Errno::NODEV,
    Errno::NOENT,
    Errno::NXIO,
    Errno::IO,
    Errno::SOCKTNOSUPPORT,
];

/// The answer of `call`: an error that no kernel gives for lack of the feature (a privilege missing, a limit) is one.
fn answer<T>(call: &'static str, result: Result<T, Errno>) -> Result<Answer> {
    match result {
        Ok(_) => Ok(Answer::Present),
        Err(errno) if UNKNOWN.contains(&errno) => Ok(Answer::Missing(format!("{call}: {errno}"))),
        Err(errno) => Err(Error::Os { call, errno }),
    }
}

/// Present if `there`.
fn found(there: bool, missing: &str) -> Answer {
    if there { Answer::Present } else { Answer::Missing(missing.to_owned()) }
}

/// The errno of an I/O error.
fn errno(cause: &std::io::Error) -> Errno {
    Errno::from_io_error(cause).unwrap_or(Errno::IO)
}

/// A system call; addresses among `args` are those of what the caller holds alive and of the size the call takes.
fn call(nr: libc::c_long, args: [u64; 6]) -> Result<u64, Errno> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: only called from this module's probes, which hand over numbers, and addresses of live structures
    // of the size that the call reads or writes; what is mapped or unmapped is the probe's own.
    sys::check(unsafe { libc::syscall(nr, a, b, c, d, e, f) })
}

/// ioctl(2), with a number or the address of a live structure.
fn ioctl(fd: &impl std::os::fd::AsRawFd, request: u64, argument: u64) -> Result<u64, Errno> {
    call(libc::SYS_ioctl, [fd.as_raw_fd() as u64, request, argument, 0, 0, 0])
}

/// setsockopt(2) and getsockopt(2) of an int option: what is there after `value` was set.
fn option(fd: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: i32) -> Result<i32, Errno> {
    let fd = fd.as_raw_fd() as u64;
    let (mut now, mut len) = (value, 4u32);
    let at = (&raw mut now) as u64;
    call(libc::SYS_setsockopt, [fd, level as u64, name as u64, at, 4, 0])?;
    now = 0;
    call(libc::SYS_getsockopt, [fd, level as u64, name as u64, at, (&raw mut len) as u64, 0])?;
    Ok(now)
}

/// Gives the calling child namespaces of its own.
fn unshare(flags: i32) -> Result<(), Errno> {
    call(libc::SYS_unshare, [flags as u64, 0, 0, 0, 0, 0]).map(drop)
}

/// Does `work` in a child, and waits for its end.
///
/// # Errors
/// What `work` said, or that there could be no child; IO if it was killed.
fn in_child(work: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    // SAFETY: the child runs `work` and ends by _exit; of what other threads may hold it uses malloc's lock
    // alone, which glibc gives a forked child free.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = work().err().map_or(0, Errno::raw_os_error);
        // SAFETY: ends the child, without what is to be done at the end of its parent.
        unsafe { libc::_exit(code) };
    }
    let pid = sys::check(pid.into())? as i32;
    let status = wait(pid, 0)?;
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, code) => Err(Errno::from_raw_os_error(code)),
        _ => Err(Errno::IO),
    }
}

/// waitpid(2).
fn wait(pid: i32, flags: i32) -> Result<i32, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a live int.
        match sys::check(unsafe { libc::waitpid(pid, &raw mut status, flags) }.into()) {
            Err(Errno::INTR) => {}
            done => return done.map(|_| status),
        }
    }
}
