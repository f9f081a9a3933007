//! Reading and writing another process's memory (process_vm_readv(2), proc_pid_mem(5)).

use crate::{
    error::{Error, Result},
    sys,
};
use rustix::io::Errno;

/// Most iovecs one call takes (IOV_MAX).
const IOV_MAX: usize = 1024;

/// A piece of foreign memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: usize,
}

/// One process_vm_* call: `local` against `spans`.
fn transfer(
    call: &'static str,
    nr: libc::c_long,
    pid: i32,
    local: *mut u8,
    len: usize,
    spans: &[libc::iovec],
) -> Result<usize> {
    let iov = libc::iovec { iov_base: local.cast(), iov_len: len };
    // SAFETY: `iov` covers a buffer the callers borrow for the whole call (exclusively for
    // readv); `spans` is a live slice; its addresses are only interpreted in the other process.
    let done = sys::check(unsafe {
        libc::syscall(nr, pid, &raw const iov, 1usize, spans.as_ptr(), spans.len(), 0u64)
    });
    match done {
        Ok(n) => Ok(n as usize),
        Err(Errno::SRCH) => Err(Error::Gone { tid: pid }),
        Err(errno) => Err(Error::Os { call, errno }),
    }
}

/// Refuses our own pid: then the "foreign" addresses would be ours.
fn foreign(pid: i32) -> Result<()> {
    if u32::try_from(pid).is_ok_and(|pid| pid != std::process::id() && pid != 0) {
        Ok(())
    } else {
        Err(Error::Os { call: "process_vm_readv", errno: Errno::INVAL })
    }
}

/// The spans as iovecs.
fn iovecs(spans: &[Span]) -> Vec<libc::iovec> {
    spans.iter().map(|s| libc::iovec { iov_base: s.start as *mut libc::c_void, iov_len: s.len }).collect()
}

/// Reads the concatenation of `spans` of process `pid` into `out`, whose length is their sum.
pub fn read_spans(pid: i32, spans: &[Span], out: &mut [u8]) -> Result<()> {
    foreign(pid)?;
    let mut rest = out;
    for group in spans.chunks(IOV_MAX) {
        let len: usize = group.iter().map(|s| s.len).sum();
        let (now, later) = rest.split_at_mut_checked(len).ok_or(Error::TooBig { need: len, have: 0 })?;
        let (call, nr) = ("process_vm_readv", libc::SYS_process_vm_readv);
        let done = transfer(call, nr, pid, now.as_mut_ptr(), len, &iovecs(group))?;
        if done != len {
            return Err(Error::Os { call: "process_vm_readv", errno: Errno::FAULT });
        }
        rest = later;
    }
    Ok(())
}

/// Reads `out.len()` bytes at `start`.
pub fn read(pid: i32, start: u64, out: &mut [u8]) -> Result<()> {
    let len = out.len();
    read_spans(pid, &[Span { start, len }], out)
}

/// Reads one little-endian word at `start`.
pub fn read_u64(pid: i32, start: u64) -> Result<u64> {
    let mut word = [0; 8];
    read(pid, start, &mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// Writes `data` over the concatenation of `spans`; how many bytes the kernel took, which is less
/// than all when a span is not writable.
pub fn write_spans(pid: i32, spans: &[Span], data: &[u8]) -> Result<usize> {
    foreign(pid)?;
    let mut done = 0;
    for group in spans.chunks(IOV_MAX) {
        let len: usize = group.iter().map(|s| s.len).sum();
        let now = data.get(done..done + len).ok_or(Error::TooBig { need: done + len, have: data.len() })?;
        let (call, nr) = ("process_vm_writev", libc::SYS_process_vm_writev);
        let n = transfer(call, nr, pid, now.as_ptr().cast_mut(), len, &iovecs(group))?;
        done += n;
        if n != len {
            break;
        }
    }
    Ok(done)
}

/// Writes all of `data` at `start`.
pub fn write(pid: i32, start: u64, data: &[u8]) -> Result<()> {
    let done = write_spans(pid, &[Span { start, len: data.len() }], data)?;
    if done == data.len() {
        Ok(())
    } else {
        Err(Error::Os { call: "process_vm_writev", errno: Errno::FAULT })
    }
}
