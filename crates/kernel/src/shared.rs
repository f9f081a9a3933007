//! Memory shared between the coordinator and the puppets that inherit it.
//!
//! What the tasks of an image share anonymously (MAP_SHARED | MAP_ANONYMOUS) has no name by which
//! each of them could map it. So the coordinator maps it, before the first puppet, at an address
//! that is free in all of them; puppets inherit the mapping, duplicate it into place (mremap(2)
//! with an old size of zero) and unmap it.

use crate::{
    error::{Error, Named, Result},
    memory::Span,
    sys,
};
use rustix::io::Errno;
use std::sync::{Mutex, PoisonError};

/// A shared anonymous mapping of the coordinator, gone from it when dropped.
#[derive(Debug)]
pub struct SharedArea {
    span: Span,
    /// Bytes of the object; what the span has beyond them nobody can touch.
    size: usize,
    /// Held while it is written to.
    writing: Mutex<()>,
}

impl SharedArea {
    /// Maps `size` bytes of zeros at `span`, where nothing is; all of it, if that is more (mremap(2) grows a mapping, but
    /// not its object). `noreserve`: with MAP_NORESERVE, which the puppets' areas get from this one.
    pub fn map(span: Span, size: usize, noreserve: bool) -> Result<SharedArea> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let reserve = if noreserve { libc::MAP_NORESERVE } else { 0 };
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | reserve;
        // SAFETY: a new anonymous mapping; NOREPLACE makes it fail instead of touching another.
        let at = unsafe { libc::mmap(span.start as *mut libc::c_void, size, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(sys::check(-1).err().unwrap_or(Errno::NOMEM)).named("mmap of shared memory");
        }
        let found = Span { start: at as u64, len: size };
        let mut area = SharedArea { span: found, size, writing: Mutex::default() };
        if found.start != span.start {
            return Err(Errno::EXIST).named("mmap of shared memory");
        }
        if size < span.len {
            // SAFETY: the mapping just made, grown where it is; without MAYMOVE no other is touched.
            if unsafe { libc::mremap(at, size, span.len, 0) } == libc::MAP_FAILED {
                return Err(sys::check(-1).err().unwrap_or(Errno::NOMEM)).named("mremap of shared memory");
            }
            area.span = span;
        }
        Ok(area)
    }

    /// Where it is, here and in the puppets.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Writes `data` at byte `offset`. The pages leave our own page tables again, so that what is
    /// resident here stays small.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        const PAGE: usize = 4096;
        let at = usize::try_from(offset)
            .ok()
            .filter(|at| at.checked_add(data.len()).is_some_and(|end| end <= self.size) && at % PAGE == 0);
        let at = at.ok_or(Error::TooBig { need: data.len(), have: self.size })?;
        let place = (self.span.start as usize + at) as *mut u8;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the range was just found to be inside the object and so the mapping, which is ours as long as
        // `self` is; no reference to it exists, and nobody else writes here: the lock is held, and of
        // the processes that may map the same memory none runs yet. DONTNEED on a shared mapping
        // drops page table entries, not contents.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), place, data.len());
            libc::madvise(place.cast(), data.len(), libc::MADV_DONTNEED);
        }
        Ok(())
    }
}

impl Drop for SharedArea {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping `map` made; nobody else knows its address.
        unsafe { libc::munmap(self.span.start as *mut libc::c_void, self.span.len) };
    }
}
