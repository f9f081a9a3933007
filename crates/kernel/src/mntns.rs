//! Mount namespaces of the calling thread.

use crate::{
    error::{Named, Result},
    sys,
};
use rustix::{
    mount::{MountPropagationFlags, mount_change},
    process::{PidfdFlags, getpid, pidfd_open},
};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The mount namespace of the process behind a pidfd (include/uapi/linux/pidfd.h, Linux 6.11).
const PIDFD_GET_MNT_NAMESPACE: u64 = 0xff03;

/// A mount namespace.
#[derive(Debug)]
pub struct MountNamespace(OwnedFd);

impl MountNamespace {
    /// Gives the calling thread a mount namespace of its own, of which no mount gets out; returns
    /// the one it had.
    pub fn unshare() -> Result<MountNamespace> {
        let own = pidfd_open(getpid(), PidfdFlags::empty()).named("pidfd_open")?;
        let args = [own.as_raw_fd() as u64, PIDFD_GET_MNT_NAMESPACE, 0, 0, 0];
        let fd = sys::numbers(libc::SYS_ioctl, args).named("ioctl(PIDFD_GET_MNT_NAMESPACE)")?;
        // SAFETY: the kernel just made this descriptor; nobody else owns it.
        let before = MountNamespace(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
        sys::numbers(libc::SYS_unshare, [libc::CLONE_NEWNS as u64, 0, 0, 0, 0]).named("unshare")?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        match mount_change("/", private).named("mount(MS_PRIVATE)") {
            Ok(()) => Ok(before),
            Err(error) => before.enter().and(Err(error)),
        }
    }

    /// Goes (back) there.
    pub fn enter(&self) -> Result<()> {
        let args = [self.0.as_raw_fd() as u64, libc::CLONE_NEWNS as u64, 0, 0, 0];
        sys::numbers(libc::SYS_setns, args).named("setns").map(drop)
    }
}

/// Gives the calling thread a root and working directory of its own (unshare(CLONE_FS)).
pub fn unshare_directories() -> Result<()> {
    sys::numbers(libc::SYS_unshare, [libc::CLONE_FS as u64, 0, 0, 0, 0]).named("unshare").map(drop)
}

/// Gives the calling thread a descriptor table of its own (unshare(CLONE_FILES)), a copy: what it opens from here on is
/// nobody else's to use or to close, and it waits for no other thread.
pub fn unshare_descriptors() -> Result<()> {
    sys::numbers(libc::SYS_unshare, [libc::CLONE_FILES as u64, 0, 0, 0, 0]).named("unshare").map(drop)
}
