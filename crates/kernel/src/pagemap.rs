//! Which pages of a process hold contents of its own (PAGEMAP_SCAN, Linux 6.7; otherwise
//! /proc/PID/pagemap itself).

use crate::{
    error::{Error, Result},
    sys,
};
use rustix::io::Errno;
use std::{fs::File, os::fd::AsRawFd, os::unix::fs::FileExt};

/// Bytes per page.
const PAGE: u64 = 4096;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_GUARD: u64 = 1 << 8;

/// Consecutive pages with contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// They are guard pages (MADV_GUARD_INSTALL): no contents, any access faults.
    pub guard: bool,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anonymous pages that are not the zero page: private memory that was written to.
    Private,
    /// Any page present, for memory shared anonymously.
    Shared,
}

/// Runs of pages in `[start, end)` of the process whose /proc/PID/pagemap is `pagemap`.
pub fn scan(pagemap: &File, start: u64, end: u64, kind: Kind) -> Result<Vec<PageRun>> {
    for guard in [PAGE_IS_GUARD, 0] {
        match scan_ioctl(pagemap, start, end, kind, guard) {
            Err(Errno::INVAL) => {}
            Err(Errno::NOTTY) => break,
            other => return other.map_err(|errno| Error::Os { call: "ioctl(PAGEMAP_SCAN)", errno }),
        }
    }
    scan_words(pagemap, start, end, kind)
}

fn scan_ioctl(pagemap: &File, start: u64, end: u64, kind: Kind, guard: u64) -> Result<Vec<PageRun>, Errno> {
    let mut runs: Vec<PageRun> = Vec::new();
    let mut regions = vec![PageRegion::default(); 512];
    let (inverted, mask) = match kind {
        Kind::Private => (PAGE_IS_FILE | PAGE_IS_PFNZERO, PAGE_IS_FILE | PAGE_IS_PFNZERO),
        Kind::Shared => (0, 0),
    };
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: inverted,
        category_mask: mask,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED | guard,
        return_mask: PAGE_IS_PRESENT | guard,
        ..ScanArg::default()
    };
    while arg.start < end {
        // SAFETY: `arg` is a live pm_scan_arg of the size it states; `vec` and `vec_len` describe
        // `regions`, which is not touched during the call.
        let n = sys::check(unsafe {
            libc::c_long::from(libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg))
        })?;
        for region in regions.iter().take(n as usize) {
            push(&mut runs, region.start, region.end, guard != 0 && region.categories & guard != 0);
        }
        if arg.walk_end <= arg.start {
            break;
        }
        arg.start = arg.walk_end;
    }
    Ok(runs)
}

/// Appends pages, joined to the last run where they continue it.
fn push(runs: &mut Vec<PageRun>, start: u64, end: u64, guard: bool) {
    match runs.last_mut() {
        Some(last) if last.end == start && last.guard == guard => last.end = end,
        _ => runs.push(PageRun { start, end, guard }),
    }
}

/// The same from the 8-byte words of pagemap: bit 63 present, 62 swapped, 61 file or shared. The
/// zero page cannot be told apart; whoever reads it drops it.
fn scan_words(pagemap: &File, start: u64, end: u64, kind: Kind) -> Result<Vec<PageRun>> {
    let mut runs = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut at = start;
    while at < end {
        let want = (((end - at) / PAGE * 8) as usize).min(buffer.len());
        let Some(part) = buffer.get_mut(..want) else { break };
        let n = pagemap.read_at(part, at / PAGE * 8).map_err(|e| Error::Os {
            call: "read(/proc/PID/pagemap)",
            errno: Errno::from_io_error(&e).unwrap_or(Errno::IO),
        })?;
        if n < 8 {
            break;
        }
        for word in part.chunks_exact(8).take(n / 8) {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            let own = kind == Kind::Shared || word >> 61 & 1 == 0;
            if word >> 62 != 0 && own {
                push(&mut runs, at, at + PAGE, false);
            }
            at += PAGE;
        }
    }
    Ok(runs)
}
