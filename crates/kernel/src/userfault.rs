//! Filling missing pages of a puppet (userfaultfd(2), UFFDIO_COPY).
//!
//! A page written from outside by process_vm_writev(2) is first found missing, made, cleared,
//! mapped, pinned and only then overwritten. UFFDIO_COPY copies into a page not yet mapped, then maps
//! it: less than half the work, and the page's protection does not matter. It fills only what is
//! missing, in areas registered before and of the puppet alone. The user faults that userfaultfd was
//! made for never occur: the puppet runs nothing of its own until the descriptor is closed, and with
//! the descriptor goes every trace of it in the areas.

use crate::{
    error::{Named, Result},
    memory::Span,
    program::Program,
    puppet::Puppet,
    sys,
};
use rustix::{
    io::Errno,
    process::{PidfdGetfdFlags, pidfd_getfd},
};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xAA, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(0xAA, 0x03, struct uffdio_copy)`.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const MODE_DONTWAKE: u64 = 1;
/// Allowed without privileges; faults of the kernel itself on registered pages fail at once.
const UFFD_USER_MODE_ONLY: i32 = 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Default)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    /// Bytes copied, or -errno.
    copy: i64,
}

/// Fills missing pages of one process. Registered areas are as they were when it is dropped.
#[derive(Debug)]
pub struct Filler(OwnedFd);

impl Filler {
    /// Makes one for `puppet`, which must be between programs. `Err` where the kernel has no
    /// userfaultfd or does not let us: then pages are written by other means.
    pub fn new(puppet: &mut Puppet) -> Result<Filler> {
        let mut make = Program::new();
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        make.call("userfaultfd", 0, libc::SYS_userfaultfd, [flags.into()]);
        let theirs = puppet.run(0, make)?.first().map_or(-1, |o| o.result as RawFd);
        let ours = pidfd_getfd(puppet.pidfd(), theirs, PidfdGetfdFlags::empty());
        let mut close = Program::new();
        close.call("close", theirs as u64, libc::SYS_close, [theirs.into()]);
        puppet.run(0, close)?;
        let filler = Filler(ours.named("pidfd_getfd")?);
        filler.ioctl(UFFDIO_API, &mut Api { api: API, ..Api::default() }).named("ioctl(UFFDIO_API)")?;
        Ok(filler)
    }

    /// `request` with its own structure.
    fn ioctl<T>(&self, request: libc::c_ulong, argument: &mut T) -> Result<u64, Errno> {
        // SAFETY: `argument` is a live, exclusively borrowed `#[repr(C)]` structure of integers, of
        // the size encoded in `request` (the callers pair them). The only address in one of them is
        // `Copy::src`, whose `len` bytes `copy` borrows for the call.
        sys::check(unsafe {
            libc::c_long::from(libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)))
        })
    }

    /// Takes charge of a private anonymous area, all of it.
    pub fn register(&self, area: Span) -> Result<()> {
        let mut register =
            Register { start: area.start, len: area.len as u64, mode: MODE_MISSING, ..Register::default() };
        self.ioctl(UFFDIO_REGISTER, &mut register).named("ioctl(UFFDIO_REGISTER)").map(|_| ())
    }

    /// Puts `data` at `start`, both whole pages, as far as pages are missing there. Returns how many bytes
    /// that was: at the first page that is there already, or is outside the registered areas, it ends.
    pub fn copy(&self, start: u64, data: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let mut copy = Copy {
                dst: start + done as u64,
                src: rest.as_ptr() as u64,
                len: rest.len() as u64,
                mode: MODE_DONTWAKE,
                copy: 0,
            };
            // It also says EAGAIN with a count, when it got to a page it does not fill.
            let _ = self.ioctl(UFFDIO_COPY, &mut copy);
            match usize::try_from(copy.copy) {
                Ok(n) if n > 0 => done += n,
                _ => break,
            }
        }
        done
    }
}
