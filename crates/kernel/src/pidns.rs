//! Pid namespaces below ours: a task in one has an id there and another one here.

use crate::{
    error::{Error, Named, Result},
    sys,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The pid namespace of the process behind a pidfd (include/uapi/linux/pidfd.h, Linux 6.11).
const PIDFD_GET_PID_NAMESPACE: u64 = 0xff05;
/// The id here of the task with an id there (include/uapi/linux/nsfs.h, Linux 6.11).
const NS_GET_PID_FROM_PIDNS: u64 = 0x8004_b706;

/// The id there of the task with an id here (include/uapi/linux/nsfs.h, Linux 6.11).
const NS_GET_PID_IN_PIDNS: u64 = 0x8004_b708;

/// The ids of a task as it sees them itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Of its process (getpid(2)).
    pub pid: i32,
    /// Its own (gettid(2)).
    pub tid: i32,
}

/// A pid namespace.
#[derive(Debug)]
pub struct PidNamespace(OwnedFd);

impl PidNamespace {
    /// That of the process behind `pidfd`.
    pub fn of(pidfd: impl AsFd) -> Result<PidNamespace> {
        let args = [pidfd.as_fd().as_raw_fd() as u64, PIDFD_GET_PID_NAMESPACE, 0, 0, 0];
        let fd = sys::numbers(libc::SYS_ioctl, args).named("ioctl(PIDFD_GET_PID_NAMESPACE)")?;
        // SAFETY: the kernel just made this descriptor; nobody else owns it.
        Ok(PidNamespace(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// That behind a descriptor of a file in /proc/PID/ns.
    pub fn behind(fd: OwnedFd) -> PidNamespace {
        PidNamespace(fd)
    }

    /// The id here of the task that has `id` there.
    pub fn ours(&self, id: i32) -> Result<i32> {
        self.translate(NS_GET_PID_FROM_PIDNS, id)
            .named("ioctl(NS_GET_PID_FROM_PIDNS)")?
            .ok_or(Error::Gone { tid: id })
    }

    /// The id there of the task that has `id` here.
    pub fn theirs(&self, id: i32) -> Result<i32> {
        self.translate(NS_GET_PID_IN_PIDNS, id)
            .named("ioctl(NS_GET_PID_IN_PIDNS)")?
            .ok_or(Error::Gone { tid: id })
    }

    /// The other id of a task; `None` if there is none.
    fn translate(&self, request: u64, id: i32) -> Result<Option<i32>, Errno> {
        match sys::numbers(libc::SYS_ioctl, [self.0.as_raw_fd() as u64, request, id as u64, 0, 0]) {
            Err(Errno::SRCH) => Ok(None),
            other => other.map(|pid| Some(pid as i32)),
        }
    }

    /// Runs `make` such that the processes it makes are in this namespace.
    pub fn inside<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let own =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
                .named("pidfd_open")?;
        let own = PidNamespace::of(own)?;
        enter(self.0.as_fd())?;
        let made = make();
        enter(own.0.as_fd())?;
        made
    }
}

/// setns(2) of the namespace our children are born in.
fn enter(namespace: BorrowedFd<'_>) -> Result<()> {
    let args = [namespace.as_raw_fd() as u64, libc::CLONE_NEWPID as u64, 0, 0, 0];
    sys::numbers(libc::SYS_setns, args).named("setns").map(drop)
}
