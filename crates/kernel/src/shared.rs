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

/// A shared anonymous mapping of the coordinator, gone from it when dropped.
#[derive(Debug)]
pub struct SharedArea(Span);

impl SharedArea {
    /// Maps zeros at `span`, where nothing is.
    pub fn map(span: Span) -> Result<SharedArea> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new anonymous mapping; NOREPLACE makes it fail instead of touching another.
        let at = unsafe { libc::mmap(span.start as *mut libc::c_void, span.len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(sys::check(-1).err().unwrap_or(Errno::NOMEM)).named("mmap of shared memory");
        }
        let area = SharedArea(Span { start: at as u64, len: span.len });
        if area.0 == span { Ok(area) } else { Err(Errno::EXIST).named("mmap of shared memory") }
    }

    /// Where it is, here and in the puppets.
    pub fn span(&self) -> Span {
        self.0
    }

    /// Writes `data` at byte `offset`. The pages leave our own page tables again, so that what is
    /// resident here stays small.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        const PAGE: usize = 4096;
        let at = usize::try_from(offset)
            .ok()
            .filter(|at| at.checked_add(data.len()).is_some_and(|end| end <= self.0.len) && at % PAGE == 0);
        let at = at.ok_or(Error::TooBig { need: data.len(), have: self.0.len })?;
        let place = (self.0.start as usize + at) as *mut u8;
        // SAFETY: the range was just found to be inside the mapping, which is ours as long as
        // `self` is; no reference to it exists. Other processes may map the same memory, but none
        // of them runs yet. DONTNEED on a shared mapping drops page table entries, not contents.
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
        unsafe { libc::munmap(self.0.start as *mut libc::c_void, self.0.len) };
    }
}
