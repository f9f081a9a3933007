//! What rustix does not offer of signalfd, timerfd, inotify and file handles.

use crate::{
    error::{Named, Result},
    sys,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Longest file handle (MAX_HANDLE_SZ).
pub const MAX_HANDLE: usize = 128;

/// A signalfd for the signals in `mask`; bit 0 is signal 1.
pub fn signalfd(mask: u64) -> Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC;
    // SAFETY: `mask` is a live kernel sigset of the size passed.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), flags) };
    let fd = sys::check(fd).named("signalfd4")?;
    // SAFETY: signalfd4 just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets how often a timerfd has expired without being read (CONFIG_CHECKPOINT_RESTORE).
pub fn set_timerfd_ticks(fd: impl AsFd, ticks: u64) -> Result<()> {
    /// TFD_IOC_SET_TICKS: _IOW('T', 0, u64).
    const SET_TICKS: libc::Ioctl = 0x4008_5400;
    // SAFETY: the ioctl reads the eight bytes of `ticks`, which lives.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SET_TICKS, &raw const ticks) };
    sys::check(done.into()).named("ioctl(TFD_IOC_SET_TICKS)").map(drop)
}

/// Sets which number an inotify gives to its next watch (CONFIG_CHECKPOINT_RESTORE).
pub fn set_inotify_next(fd: impl AsFd, wd: i32) -> Result<()> {
    /// INOTIFY_IOC_SETNEXTWD: _IOW('I', 0, i32).
    const SET_NEXT: u64 = 0x4004_4900;
    let args = [fd.as_fd().as_raw_fd() as u64, SET_NEXT, wd as u64, 0, 0];
    sys::numbers(libc::SYS_ioctl, args).named("ioctl(INOTIFY_IOC_SETNEXTWD)").map(drop)
}

/// The file a handle names (O_PATH), through any descriptor of its file system (open_by_handle_at(2)).
pub fn open_by_handle(mount: impl AsFd, kind: i32, handle: &[u8]) -> Result<OwnedFd, Errno> {
    let mut file_handle = [0u32; 2 + MAX_HANDLE / 4];
    let [len, its_kind, words @ ..] = &mut file_handle;
    if handle.len() > MAX_HANDLE {
        return Err(Errno::INVAL);
    }
    (*len, *its_kind) = (handle.len() as u32, kind as u32);
    for (word, bytes) in words.iter_mut().zip(handle.chunks(4)) {
        let mut whole = [0; 4];
        whole.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        *word = u32::from_ne_bytes(whole);
    }
    let (mount, flags) = (mount.as_fd().as_raw_fd(), libc::O_PATH | libc::O_CLOEXEC);
    // SAFETY: `file_handle` is a live struct file_handle with room for the bytes it says it has.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount, file_handle.as_mut_ptr(), flags) };
    let fd = sys::check(fd)?;
    // SAFETY: the kernel just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
