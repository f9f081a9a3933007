//! The head of an image: when and where it was taken, and what a machine must offer to go on from it.

use crate::{
    error::{Doing, Result},
    machine,
    resource::signal,
};
use ckpt_image::{
    model,
    record::{self, vma_kind},
};
use ckpt_kernel::memory;
use std::time::SystemTime;

/// Identity, time and place.
pub(crate) fn header() -> Result<record::Header> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .doing(|| "getrandom".to_owned())?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let mut kernel = [0; 3];
    let uname = rustix::system::uname();
    let numbers = uname.release().to_bytes().split(|b| !b.is_ascii_digit());
    for (word, digits) in kernel.iter_mut().zip(numbers) {
        *word = str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).unwrap_or(0);
    }
    let clock = |id| {
        let t = rustix::time::clock_gettime(id);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    };
    let mut header = record::Header {
        magic: record::HEADER_MAGIC,
        rev: record::REV,
        arch: record::ARCH_X86_64,
        kernel,
        comm_len: 16,
        page_size: record::PAGE_SIZE as u32,
        nr_signals: signal::SIGNALS as u16,
        nr_rlimits: 16,
        time: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64),
        uflags: 0,
        id,
        parent: [0; 16],
        clocks: [clock(rustix::time::ClockId::Monotonic), clock(rustix::time::ClockId::Boottime)],
        boot_id: machine::boot_id(),
        ..record::Header::default()
    };
    header.set_nodename(uname.nodename().to_bytes());
    Ok(header)
}

/// Release, version and machine of the kernel.
pub(crate) fn uts() -> [Vec<u8>; 3] {
    let uname = rustix::system::uname();
    [uname.release(), uname.version(), uname.machine()].map(|name| name.to_bytes().to_vec())
}

/// What the processor and kernel must offer: xsave components, and the same vdso.
pub(crate) fn arch(pid: i32, mm: &model::Mm, processes: &[model::Process]) -> Result<record::HeaderArch> {
    const XSTATE_BV: usize = 512;
    let threads = || processes.iter().flat_map(|p| &p.threads);
    let in_use = |t: &model::Thread| {
        t.xstate.get(XSTATE_BV..XSTATE_BV + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let size = |kind| {
        mm.vmas.iter().map(|v| v.record).filter(move |r| r.kind == kind).map(|r| r.end - r.start).sum()
    };
    let vdso_len: u64 = size(vma_kind::VDSO);
    let mut vdso = vec![0; vdso_len as usize];
    if let Some(vma) = mm.vmas.iter().find(|v| v.record.kind == vma_kind::VDSO) {
        memory::read(pid, vma.record.start, &mut vdso)?;
    }
    let vvar_len: u64 = size(vma_kind::VVAR);
    Ok(record::HeaderArch {
        xsave_size: threads().map(|t| t.xstate.len()).max().unwrap_or(0) as u32,
        vvar_len: vvar_len as u32,
        vdso_sum: twox_hash::XxHash3_64::oneshot(&vdso),
        vdso_len,
        xfeatures_used: threads().map(in_use).fold(0, |all, one| all | one),
        ..machine::processor()
    })
}
