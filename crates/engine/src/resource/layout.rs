//! Building the areas of an address space in a puppet.

use crate::error::{Error, Result};
use ckpt_image::{
    Objref, model,
    record::{self, PAGE_SIZE, Vma, vma_flags, vma_kind},
};
use ckpt_kernel::{
    memory::Span,
    program::{Arg, Program},
};
use std::collections::BTreeMap;

/// One past the highest address of a 64-bit process with four-level page tables.
pub(crate) const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Where free addresses are looked for first: between the heap and the mmap area of most programs.
const PREFERRED: u64 = 0x6000_0000_0000;
/// Lowest address worth using (vm.mmap_min_addr).
const LOWEST: u64 = 0x1_0000;
const ARCH_MAP_VDSO_64: u64 = 0x2003;
const MADV_POPULATE_WRITE: i32 = 23;
const MLOCK_ONFAULT: u64 = 1;
const SYS_MSEAL: i64 = 462;
const PR_SET_VMA: i32 = 0x5356_4d41;

/// madvise(2) advice for each flag that has one.
const ADVICE: &[(u64, i32)] = &[
    (vma_flags::DONTFORK, libc::MADV_DONTFORK),
    (vma_flags::DONTDUMP, libc::MADV_DONTDUMP),
    (vma_flags::WIPEONFORK, libc::MADV_WIPEONFORK),
    (vma_flags::HUGEPAGE, libc::MADV_HUGEPAGE),
    (vma_flags::NOHUGEPAGE, libc::MADV_NOHUGEPAGE),
    (vma_flags::MERGEABLE, libc::MADV_MERGEABLE),
    (vma_flags::SEQUENTIAL, libc::MADV_SEQUENTIAL),
    (vma_flags::RANDOM, libc::MADV_RANDOM),
];

/// Finds `len` free bytes outside all of `taken`: high up, where no small number looks like an
/// address, if possible.
pub(crate) fn free_range(taken: &mut Vec<Span>, len: usize) -> Result<u64> {
    taken.sort_by_key(|s| s.start);
    let found = [PREFERRED, LOWEST].into_iter().find_map(|from| free_from(taken, from, len as u64));
    let start = found.ok_or_else(|| Error::failed("no free addresses beside those in use"))?;
    taken.push(Span { start, len });
    Ok(start)
}

fn free_from(taken: &[Span], from: u64, len: u64) -> Option<u64> {
    let mut at = from;
    for span in taken {
        // A page of distance keeps areas from being merged.
        if span.start >= at && span.start - at >= len + 2 * PAGE_SIZE as u64 {
            break;
        }
        at = at.max(span.start + span.len as u64);
    }
    let start = at + PAGE_SIZE as u64;
    (start + len <= TASK_SIZE).then_some(start)
}

/// The addresses an image's areas take, a growing stack's gap included.
pub(crate) fn taken(mm: &model::Mm) -> Vec<Span> {
    let span = |v: &model::Vma| {
        let gap = if v.record.flags & vma_flags::GROWSDOWN != 0 { 8 << 20 } else { 0 };
        let start = v.record.start.saturating_sub(gap);
        Span { start, len: (v.record.end - start) as usize }
    };
    mm.vmas.iter().map(span).collect()
}

/// Where the coordinator and, until they are done, the puppets have each object that is shared
/// anonymously: one mapping of all of it.
pub(crate) type Staging = BTreeMap<Objref, Span>;

/// Empties an address space: everything but `kept` and the slot goes.
pub(crate) fn strip(program: &mut Program, kept: &[Span], slot: Span) {
    let mut kept: Vec<Span> = kept.iter().copied().chain([slot]).collect();
    kept.sort_by_key(|span| span.start);
    let ends = kept.iter().map(|span| span.start + span.len as u64);
    let gaps = std::iter::once(0).chain(ends).zip(kept.iter().map(|span| span.start).chain([TASK_SIZE]));
    for (start, end) in gaps.filter(|(start, end)| start < end) {
        program.call("munmap of what is ours", start, libc::SYS_munmap, [start.into(), (end - start).into()]);
    }
}

/// Begins a new address space: vvar and vdso come first.
pub(crate) fn vdso(program: &mut Program, mm: &model::Mm) {
    let kernel = |v: &&model::Vma| [vma_kind::VDSO, vma_kind::VVAR].contains(&v.record.kind);
    if let Some(first) = mm.vmas.iter().find(kernel) {
        let args = [ARCH_MAP_VDSO_64.into(), first.record.start.into()];
        program.call("arch_prctl(ARCH_MAP_VDSO_64)", first.record.start, libc::SYS_arch_prctl, args);
    }
}

/// Maps every area. `files` gives the puppet's descriptor of a file.
pub(crate) fn map(
    program: &mut Program,
    mm: &model::Mm,
    staging: &Staging,
    files: &dyn Fn(Objref) -> Result<i32>,
) -> Result<()> {
    for vma in &mm.vmas {
        match vma.record.kind {
            vma_kind::VDSO | vma_kind::VVAR => {}
            vma_kind::ANON_SHARED => map_shared(program, &vma.record, staging)?,
            _ => map_one(program, &vma.record, files)?,
        }
        dress(program, vma);
    }
    Ok(())
}

/// The protection an area is mapped with first: one that makes the kernel account it as it was.
fn first_prot(vma: &Vma) -> u64 {
    let accounted = vma.flags & vma_flags::ACCOUNTED != 0;
    u64::from(vma.prot) | if accounted { libc::PROT_WRITE as u64 } else { 0 }
}

/// How much private memory is asked for at once. More than RAM and swap in one piece is refused (vm.overcommit_memory is 0); an
/// area may have grown to that, and does so again.
fn at_once() -> u64 {
    let info = rustix::system::sysinfo();
    let all = (info.totalram + info.totalswap) * u64::from(info.mem_unit);
    (all / 2).next_multiple_of(PAGE_SIZE as u64).max(PAGE_SIZE as u64)
}

fn map_one(program: &mut Program, vma: &Vma, files: &dyn Fn(Objref) -> Result<i32>) -> Result<()> {
    let (sharing, fd) = match vma.kind {
        vma_kind::ANON_PRIVATE => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        vma_kind::FILE_PRIVATE => (libc::MAP_PRIVATE, files(vma.object)?),
        _ => (libc::MAP_SHARED, files(vma.object)?),
    };
    let mut flags = sharing | libc::MAP_FIXED_NOREPLACE;
    if vma.flags & vma_flags::GROWSDOWN != 0 {
        flags |= libc::MAP_GROWSDOWN;
    }
    if vma.flags & vma_flags::NORESERVE != 0 {
        flags |= libc::MAP_NORESERVE;
    }
    let (prot, flags) = (first_prot(vma), flags as u64);
    let counts = vma_flags::ACCOUNTED | vma_flags::GROWSDOWN;
    let grown = vma.kind == vma_kind::ANON_PRIVATE && vma.flags & counts == vma_flags::ACCOUNTED;
    let piece = if grown { at_once() } else { u64::MAX };
    let mut start = vma.start;
    while start < vma.end {
        let len = piece.min(vma.end - start);
        let args = [start.into(), len.into(), prot.into(), flags.into(), fd.into(), vma.offset.into()];
        program.call("mmap", start, libc::SYS_mmap, args);
        start += len;
    }
    if first_prot(vma) != u64::from(vma.prot) {
        // An area that was never written to would lose its account when it is write-protected.
        let args = [vma.start.into(), 4096u64.into(), MADV_POPULATE_WRITE.into()];
        program.try_call("madvise(MADV_POPULATE_WRITE)", libc::SYS_madvise, args);
    }
    protect(program, vma, first_prot(vma));
    Ok(())
}

/// Another view of a shared object: mremap of zero bytes duplicates a shared mapping.
fn map_shared(program: &mut Program, vma: &Vma, staging: &Staging) -> Result<()> {
    let len = vma.end - vma.start;
    let source = staging
        .get(&vma.object)
        .filter(|span| vma.offset.checked_add(len).is_some_and(|end| end <= span.len as u64))
        .ok_or_else(|| {
            Error::bad_image(format!("mapping {:x} is not inside its shared object", vma.start))
        })?;
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let args = [(source.start + vma.offset).into(), 0u64.into(), len.into(), flags.into(), vma.start.into()];
    program.call("mremap of shared memory", vma.start, libc::SYS_mremap, args);
    protect(program, vma, (libc::PROT_READ | libc::PROT_WRITE) as u64);
    Ok(())
}

fn protect(program: &mut Program, vma: &Vma, now: u64) {
    if now != u64::from(vma.prot) {
        let args = [vma.start.into(), (vma.end - vma.start).into(), vma.prot.into()];
        program.call("mprotect", vma.start, libc::SYS_mprotect, args);
    }
}

/// Gives an area its advice and its name.
fn dress(program: &mut Program, vma: &model::Vma) {
    let record = &vma.record;
    let len = record.end - record.start;
    for (_, advice) in ADVICE.iter().filter(|(flag, _)| record.flags & flag != 0) {
        program.call(
            "madvise",
            record.start,
            libc::SYS_madvise,
            [record.start.into(), len.into(), (*advice).into()],
        );
    }
    if !vma.anon_name.is_empty() {
        let mut name = vma.anon_name.clone();
        name.push(0);
        let args = [PR_SET_VMA.into(), 0u64.into(), record.start.into(), len.into(), Arg::In(name)];
        program.try_call("prctl(PR_SET_VMA_ANON_NAME)", libc::SYS_prctl, args);
    }
}

/// What is done to areas once their contents are in place.
pub(crate) fn finish(program: &mut Program, mm: &model::Mm, staging: &Staging) {
    for span in staging.values() {
        let args = [span.start.into(), (span.len as u64).into()];
        program.call("munmap of the staging area", span.start, libc::SYS_munmap, args);
    }
    for record::Vma { start, end, flags, .. } in mm.vmas.iter().map(|v| v.record) {
        let (at, len) = (Arg::from(start), Arg::from(end - start));
        if flags & vma_flags::LOCKED != 0 {
            // This locks, or tells that RLIMIT_MEMLOCK is too low; it touches no page.
            program.call("mlock2", start, libc::SYS_mlock2, [at.clone(), len.clone(), MLOCK_ONFAULT.into()]);
            if flags & vma_flags::LOCK_ON_FAULT == 0 {
                // Locked it is; what can still fail is to make all of it present: guard pages of stacks, mappings past
                // the end of a file. To mlockall(2) that was all the same.
                program.try_call("mlock2", libc::SYS_mlock2, [at.clone(), len.clone(), 0u64.into()]);
            }
        }
        if flags & vma_flags::SEALED != 0 {
            program.call("mseal", start, SYS_MSEAL, [at, len, 0u64.into()]);
        }
    }
    let future = mm.record.mlock_future & (libc::MCL_FUTURE | libc::MCL_ONFAULT) as u32;
    if future != 0 {
        program.call("mlockall", future.into(), libc::SYS_mlockall, [future.into()]);
    }
}
