//! Raw system calls that rustix does not offer.
#![allow(clippy::cast_sign_loss)]

use rustix::io::Errno;

/// Turns a libc return value into a result.
pub(crate) fn check(result: libc::c_long) -> Result<u64, Errno> {
    if result == -1 {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(result as u64)
    }
}

/// ptrace(2) whose `data` is a plain number.
pub(crate) fn ptrace(request: libc::c_uint, tid: i32, addr: u64, data: u64) -> Result<u64, Errno> {
    // SAFETY: the requests passed here take numbers; none makes the kernel use `addr` or `data`
    // as an address of our own memory (callers with buffers use `ptrace_buffer`).
    check(unsafe { libc::ptrace(request, tid, addr, data) })
}

/// ptrace(2) whose `data` points to `buffer`, read or written by the kernel.
pub(crate) fn ptrace_buffer<T: zerocopy::FromBytes + zerocopy::IntoBytes>(
    request: libc::c_uint,
    tid: i32,
    addr: u64,
    buffer: &mut T,
) -> Result<u64, Errno> {
    // SAFETY: `buffer` is a live exclusive reference; the requests used write at most
    // `size_of::<T>()` bytes (the caller passes that size in `addr` where the request wants it)
    // and any bytes are valid for `T` (FromBytes).
    check(unsafe { libc::ptrace(request, tid, addr, std::ptr::from_mut(buffer)) })
}

/// ptrace(2) with a register set; returns how many bytes the kernel used.
pub(crate) fn ptrace_regset(
    request: libc::c_uint,
    tid: i32,
    set: u64,
    bytes: &mut [u8],
) -> Result<usize, Errno> {
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: `iov` describes exactly `bytes`, exclusively borrowed for the call.
    check(unsafe { libc::ptrace(request, tid, set, &raw mut iov) })?;
    Ok(iov.iov_len)
}

/// A system call that takes only numbers.
pub(crate) fn numbers(nr: libc::c_long, args: [u64; 5]) -> Result<u64, Errno> {
    // SAFETY: only called with system calls that take no pointers (kcmp, tgkill, setns, unshare, close_range, ioctls that take a number).
    check(unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3], args[4]) })
}

/// Gives SIGCHLD its default disposition. Whoever has started us may ignore it, and that is inherited: the ends of our
/// children would be kept from us.
pub fn hear_of_children() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Sets the calling thread's signal mask; returns the old one.
pub(crate) fn set_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: both words are live and of the 8 bytes passed as sigsetsize.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut old, 8usize)
    };
    old
}
