//! Memory: pages that change, faults handled elsewhere, rings of asynchronous I/O.

use super::{Answer, answer, call, errno, found, in_child, ioctl};
use crate::{
    error::{Named, Result},
    pagemap,
};
use rustix::io::Errno;
use std::{
    fs::File,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

const PAGE: u64 = 4096;

/// A private anonymous page of our own, gone when dropped.
struct Page(u64);

impl Page {
    fn map() -> Result<Page, Errno> {
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        call(libc::SYS_mmap, [0, PAGE, prot, flags, u64::MAX, 0]).map(Page)
    }

    fn touch(&self) {
        // SAFETY: the page is ours, writable, and nobody refers to it.
        unsafe { (self.0 as *mut u8).write_volatile(1) };
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = call(libc::SYS_munmap, [self.0, PAGE, 0, 0, 0, 0]);
    }
}

/// mem_dirty_track: a page that was written since /proc/PID/clear_refs was, and only that, is soft-dirty in pagemap.
pub fn dirty_tracking() -> Result<Answer> {
    let work = || {
        let page = Page::map()?;
        page.touch();
        let pagemap = File::open("/proc/self/pagemap").map_err(|e| errno(&e))?;
        let dirty = || -> Result<bool, Errno> {
            let mut word = [0; 8];
            pagemap.read_exact_at(&mut word, page.0 / PAGE * 8).map_err(|e| errno(&e))?;
            Ok(u64::from_le_bytes(word) >> 55 & 1 != 0)
        };
        std::fs::write("/proc/self/clear_refs", "4").map_err(|e| errno(&e))?;
        let before = dirty()?;
        page.touch();
        if !before && dirty()? { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    };
    answer("soft-dirty bit of a page written to", in_child(work))
}

/// What userfaultfd(2) offers (UFFDIO_API).
fn userfault_features() -> Result<u64, Errno> {
    let fd = call(libc::SYS_userfaultfd, [(libc::O_CLOEXEC | libc::O_NONBLOCK) as u64, 0, 0, 0, 0, 0])?;
    // SAFETY: a descriptor the kernel has just made, owned by nobody.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut api = [0xaa_u64, 0, 0];
    ioctl(&fd, 0xc018_aa3f, api.as_mut_ptr() as u64)?;
    Ok(api[1])
}

/// uffd: page faults can be handled by another (userfaultfd(2)).
pub fn userfault() -> Result<Answer> {
    answer("userfaultfd", userfault_features())
}

/// uffd-noncoop: of a process that knows nothing of it: fork, mremap, madvise and munmap are told.
pub fn userfault_noncooperative() -> Result<Answer> {
    const EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
    match userfault_features() {
        Ok(features) => Ok(found(
            features & EVENTS == EVENTS,
            "userfaultfd has not all of EVENT_FORK, REMAP, REMOVE, UNMAP",
        )),
        refused => answer("userfaultfd", refused),
    }
}

/// aio_remap: a ring of asynchronous I/O that was moved (mremap(2)) is known by its new address.
pub fn aio_remap() -> Result<Answer> {
    let work = || {
        let mut ring = 0u64;
        call(libc::SYS_io_setup, [1, (&raw mut ring) as u64, 0, 0, 0, 0])?;
        // SAFETY: io_setup mapped the ring there; its second word is the number of its entries.
        let entries = unsafe { (ring as *const u32).add(1).read_volatile() };
        let len = (32 + u64::from(entries) * 32).next_multiple_of(PAGE);
        let (prot, flags) = (libc::PROT_NONE as u64, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64);
        let place = call(libc::SYS_mmap, [0, len, prot, flags, u64::MAX, 0])?;
        let fixed = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let moved = call(libc::SYS_mremap, [ring, len, len, fixed, place, 0])?;
        let (mut event, now) = ([0u64; 4], [0u64; 2]);
        let args = [moved, 0, 1, event.as_mut_ptr() as u64, now.as_ptr() as u64, 0];
        call(libc::SYS_io_getevents, args).map(drop)
    };
    answer("io_getevents of a ring that was moved", in_child(work))
}

/// memfd_hugetlb: memfd_create(2) with MFD_HUGETLB.
pub fn memfd_hugetlb() -> Result<Answer> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
    answer("memfd_create(MFD_HUGETLB)", rustix::fs::memfd_create("probe", flags))
}

/// PAGEMAP_SCAN: pages are found without reading a word for each.
pub fn pagemap_scan() -> Result<Answer> {
    let page = Page::map().named("mmap")?;
    page.touch();
    let pagemap = open_pagemap()?;
    let mut region = [0u64; 3];
    // struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, return.
    let at = region.as_mut_ptr() as u64;
    let mut arg = [96, 0, page.0, page.0 + PAGE, 0, at, 1, 0, 0, 0, 1 << 3, 1 << 3];
    match ioctl(&pagemap, 0xc060_6610, arg.as_mut_ptr() as u64) {
        Ok(n) => Ok(found(n == 1 && region[0] == page.0, "PAGEMAP_SCAN does not see a page that is there")),
        refused => answer("ioctl(PAGEMAP_SCAN)", refused),
    }
}

/// pagemap_scan_guard_pages: PAGEMAP_SCAN tells guard pages (MADV_GUARD_INSTALL) from others.
pub fn guard_pages() -> Result<Answer> {
    const MADV_GUARD_INSTALL: u64 = 102;
    let page = Page::map().named("mmap")?;
    if let refused @ Err(_) = call(libc::SYS_madvise, [page.0, PAGE, MADV_GUARD_INSTALL, 0, 0, 0]) {
        return answer("madvise(MADV_GUARD_INSTALL)", refused);
    }
    let runs = pagemap::scan(&open_pagemap()?, page.0, page.0 + PAGE, pagemap::Kind::Private)?;
    Ok(found(runs.iter().any(|run| run.guard), "PAGEMAP_SCAN does not see a guard page"))
}

fn open_pagemap() -> Result<File> {
    File::open("/proc/self/pagemap").map_err(|e| errno(&e)).named("open(/proc/self/pagemap)")
}
