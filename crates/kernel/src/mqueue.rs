//! POSIX message queues: the calls rustix does not offer.

use crate::{
    error::{Named, Result},
    sys,
};
use rustix::io::Errno;
use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

/// What a queue can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Most messages.
    pub max_messages: u64,
    /// Most bytes of one.
    pub message_size: u64,
}

/// Opens the queue `name` (without its slash) with these open(2) flags and O_CLOEXEC.
pub fn open(name: &[u8], flags: u32) -> Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::INVAL).named("mq_open")?;
    let flags = flags as i32 | libc::O_CLOEXEC;
    // SAFETY: `name` is a live C string; without O_CREAT the kernel takes no attributes.
    let fd = sys::check(unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, 0) })
        .named("mq_open")?;
    // SAFETY: a descriptor the kernel has just made, owned by nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The attributes of a queue (mq_getattr(3)).
pub fn attributes(fd: impl AsFd) -> Result<Attributes> {
    let mut words = [0u64; 8];
    let none: *const u64 = std::ptr::null();
    // SAFETY: `words` is a live struct mq_attr (eight longs) for the kernel to write.
    let done =
        unsafe { libc::syscall(libc::SYS_mq_getsetattr, fd.as_fd().as_raw_fd(), none, words.as_mut_ptr()) };
    sys::check(done).named("mq_getattr")?;
    let [_, max_messages, message_size, ..] = words;
    Ok(Attributes { max_messages, message_size })
}
