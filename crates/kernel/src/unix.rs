//! Unix sockets: what rustix does not ask of one, and does not set.

use crate::{
    error::{Named, Result},
    sys,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// An option of SOL_SOCKET that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Number {
    /// SO_REUSEADDR.
    ReuseAddress = 2,
    /// SO_DONTROUTE.
    DontRoute = 5,
    /// SO_BROADCAST.
    Broadcast = 6,
    /// SO_SNDBUF; twice what is set.
    SendBuffer = 7,
    /// SO_RCVBUF; twice what is set.
    ReceiveBuffer = 8,
    /// SO_KEEPALIVE.
    KeepAlive = 9,
    /// SO_OOBINLINE.
    OobInline = 10,
    /// SO_PRIORITY.
    Priority = 12,
    /// SO_PASSCRED.
    PassCred = 16,
    /// SO_RCVLOWAT.
    LowWater = 18,
    /// SO_TIMESTAMP_OLD.
    Timestamp = 29,
    /// SO_SNDBUFFORCE: SO_SNDBUF beyond what the system allows.
    SendBufferForce = 32,
    /// SO_RCVBUFFORCE.
    ReceiveBufferForce = 33,
    /// SO_PASSSEC.
    PassSec = 34,
    /// SO_TIMESTAMPNS_OLD.
    TimestampNanos = 35,
    /// SO_MARK.
    Mark = 36,
    /// SO_RXQ_OVFL.
    QueueOverflow = 40,
    /// SO_PEEK_OFF.
    PeekOffset = 42,
    /// SO_LOCK_FILTER.
    LockFilter = 44,
    /// SO_SELECT_ERR_QUEUE.
    SelectErrorQueue = 45,
    /// SO_TIMESTAMP_NEW.
    TimestampNew = 63,
    /// SO_TIMESTAMPNS_NEW.
    TimestampNanosNew = 64,
    /// SO_PASSPIDFD (Linux 6.5).
    PassPidfd = 76,
    /// SO_PASSRIGHTS (Linux 6.16).
    PassRights = 83,
    /// SO_INQ (Linux 6.17).
    Inq = 84,
}

impl Number {
    /// Asks for it (getsockopt(2)).
    pub fn get(self, socket: impl AsFd) -> Result<i32> {
        let (mut value, mut len) = (0i32, size_of::<i32>() as libc::socklen_t);
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: `value` is a live int of the length passed, which is live, too.
        let done = unsafe {
            libc::getsockopt(fd, libc::SOL_SOCKET, self as i32, (&raw mut value).cast(), &raw mut len)
        };
        sys::check(done.into()).named("getsockopt")?;
        Ok(value)
    }

    /// Sets it (setsockopt(2)).
    pub fn set(self, socket: impl AsFd, value: i32) -> Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        let len = size_of::<i32>() as libc::socklen_t;
        // SAFETY: `value` is a live int of the length passed.
        let done =
            unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, self as i32, (&raw const value).cast(), len) };
        sys::check(done.into()).named("setsockopt")?;
        Ok(())
    }
}

/// Whether a filter is attached to it (SO_ATTACH_FILTER, SO_ATTACH_BPF).
pub fn has_filter(socket: impl AsFd) -> Result<bool> {
    const SO_GET_FILTER: i32 = 26;
    let (fd, mut len) = (socket.as_fd().as_raw_fd(), 0 as libc::socklen_t);
    // SAFETY: with a length of 0 the kernel gives back how many instructions there are, and writes nowhere else.
    let done =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_GET_FILTER, std::ptr::null_mut(), &raw mut len) };
    match sys::check(done.into()) {
        // An eBPF program, which is not shown.
        Err(Errno::ACCESS) => Ok(true),
        other => other.named("getsockopt(SO_GET_FILTER)").map(|_| len != 0),
    }
}

/// The name in the file system that a socket is bound to, as a place (O_PATH), also when the name is gone (SIOCUNIXFILE, Linux
/// 4.12, CAP_NET_ADMIN). ENOENT: it has none.
pub fn name(socket: impl AsFd) -> Result<OwnedFd> {
    const SIOCUNIXFILE: libc::c_ulong = 0x89e0;
    // SAFETY: SIOCUNIXFILE takes no argument.
    let fd = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCUNIXFILE, 0) };
    let fd = sys::check(fd.into()).named("ioctl(SIOCUNIXFILE)")?;
    // SAFETY: a descriptor the kernel has just made, owned by nobody.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
