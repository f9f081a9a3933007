//! An address space: its areas and what the kernel keeps beside them.
//!
//! *Saved*: areas from /proc/PID/smaps (kind, protection, VmFlags), brk and argument addresses
//! from stat, auxv, exe link, dumpable, coredump filter, THP flag, membarrier registrations. *Restored*: a puppet unmaps everything but its slot, maps vvar and vdso where they
//! were, then every area at its place; PR_SET_MM_MAP sets the rest. Contents are in `pages.rs`.
//! mlockall(MCL_FUTURE) cannot be asked for, but shows in the flags of our slot during a visit.
//! *Refused*: guard pages, protection keys, hugetlb, device mappings, SysV shared memory, memfd_secret,
//! userfaultfd ranges, aio rings, shadow stacks. PAGEMAP_SCAN Linux 6.7.

use super::file::{Descriptor, kind_of};
use crate::{
    error::{Context, Doing, Error, ErrorKind, Result},
    objects::{FileKey, Objects},
    task::{Process, show},
};
use ckpt_image::{
    Object, Objref, model,
    record::{self, inode_kind, vma_flags, vma_kind},
};
use ckpt_kernel::{
    memory::Span,
    procfs,
    program::{Arg, Outcome, Program},
};
use ckpt_proc::{
    maps::{Mapping, Special},
    smaps::{VmFlags, parse_smaps},
    stat::Stat,
};
use rustix::fs::OFlags;
use std::{cell::OnceCell, os::unix::fs::FileExt};

const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
const PR_SET_THP_DISABLE: i32 = 41;
const PR_GET_THP_DISABLE: i32 = 42;

/// The VmFlags letters and what they are in an image.
const FLAGS: &[(VmFlags, u64)] = &[
    (VmFlags::GROWS_DOWN, vma_flags::GROWSDOWN),
    (VmFlags::NO_RESERVE, vma_flags::NORESERVE),
    (VmFlags::ACCOUNT, vma_flags::ACCOUNTED),
    (VmFlags::LOCKED, vma_flags::LOCKED),
    (VmFlags::LOCK_ON_FAULT, vma_flags::LOCK_ON_FAULT),
    (VmFlags::DONT_COPY, vma_flags::DONTFORK),
    (VmFlags::DONT_DUMP, vma_flags::DONTDUMP),
    (VmFlags::WIPE_ON_FORK, vma_flags::WIPEONFORK),
    (VmFlags::HUGE_PAGE, vma_flags::HUGEPAGE),
    (VmFlags::NO_HUGE_PAGE, vma_flags::NOHUGEPAGE),
    (VmFlags::MERGEABLE, vma_flags::MERGEABLE),
    (VmFlags::SEQ_READ, vma_flags::SEQUENTIAL),
    (VmFlags::RAND_READ, vma_flags::RANDOM),
    (VmFlags::SEALED, vma_flags::SEALED),
];

/// VmFlags of areas that cannot be carried, with their names.
const REFUSED: &[(VmFlags, &str)] = &[
    (VmFlags::HUGETLB, "hugetlb memory"),
    (VmFlags::UFFD_MISSING, "memory watched by a userfaultfd"),
    (VmFlags::UFFD_WP, "memory watched by a userfaultfd"),
    (VmFlags::UFFD_MINOR, "memory watched by a userfaultfd"),
    (VmFlags::SHADOW_STACK, "a shadow stack"),
    (VmFlags::DROPPABLE, "droppable memory"),
    (VmFlags::IO, "device memory"),
    (VmFlags::PFN_MAP, "device memory"),
];

/// How many answers [`questions`] asks for.
pub(crate) const QUESTIONS: usize = 4;

/// Asks for what only the process knows of its memory.
pub(crate) fn questions(program: &mut Program) {
    let prctl = libc::SYS_prctl;
    program.call("prctl(PR_GET_DUMPABLE)", 0, prctl, [libc::PR_GET_DUMPABLE.into()]);
    let args = [PR_GET_THP_DISABLE.into(), 0u64.into(), 0u64.into(), 0u64.into(), 0u64.into()];
    program.call("prctl(PR_GET_THP_DISABLE)", 0, prctl, args);
    let args = [MEMBARRIER_CMD_GET_REGISTRATIONS.into(), 0u64.into(), 0u64.into()];
    program.try_call("membarrier", libc::SYS_membarrier, args);
    program.call("brk", 0, libc::SYS_brk, [0u64.into()]);
}

/// What mlockall(2) has said of mappings to come, MCL_FUTURE and MCL_ONFAULT: `slot` is one that came.
pub(crate) fn future_locks(process: &Process, slot: Option<Span>) -> Result<u32> {
    if process.status()?.vm_lck_kib.unwrap_or(0) == 0 {
        return Ok(0);
    }
    let mappings = process.proc.parse_long("smaps", parse_smaps)?;
    let slot = mappings.iter().find(|m| slot.is_some_and(|s| s.start == m.start));
    let said = [(VmFlags::LOCKED, libc::MCL_FUTURE), (VmFlags::LOCK_ON_FAULT, libc::MCL_ONFAULT)];
    let has = |flag| slot.is_some_and(|m| m.flags.contains(flag));
    Ok(said.iter().filter(|(flag, _)| has(*flag)).map(|(_, mcl)| *mcl as u32).sum())
}

/// The mappings of a process, those of the kernel left out.
pub(crate) fn mappings(process: &Process) -> Result<Vec<Mapping>> {
    let mut mappings = process.proc.parse_long("smaps", parse_smaps)?;
    mappings.retain(|m| m.special() != Some(Special::Vsyscall));
    Ok(mappings)
}

/// The areas of a process as records, their files added to `objects`.
pub(crate) fn areas(
    process: &Process,
    mappings: &[Mapping],
    objects: &mut Objects,
) -> Result<Vec<model::Vma>> {
    let area =
        |m| area(process, m, objects).object(|| format!("mapping {:x}-{:x}", mappings_start(m), m.end));
    let areas = mappings.iter().map(area).collect::<Result<Vec<_>>>()?;
    check_kernel_areas(&areas)?;
    Ok(areas)
}

fn mappings_start(mapping: &Mapping) -> u64 {
    mapping.start
}

fn area(process: &Process, mapping: &Mapping, objects: &mut Objects) -> Result<model::Vma> {
    let special = mapping.special();
    let kernel = match special {
        Some(Special::Vdso) => Some(vma_kind::VDSO),
        Some(Special::Vvar | Special::VvarVclock) => Some(vma_kind::VVAR),
        _ => None,
    };
    let mut vma = record::Vma {
        start: mapping.start,
        end: mapping.end,
        prot: [
            (mapping.read, libc::PROT_READ),
            (mapping.write, libc::PROT_WRITE),
            (mapping.exec, libc::PROT_EXEC),
        ]
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, bit)| *bit as u32)
        .sum(),
        ..record::Vma::default()
    };
    if let Some(kind) = kernel {
        vma.kind = kind;
        return Ok(model::Vma { record: vma, anon_name: Vec::new() });
    }
    if let Some((_, what)) = REFUSED.iter().find(|(flag, _)| mapping.flags.contains(*flag)) {
        return Err(Error::unsupported(format!("{what} cannot be carried yet")));
    }
    if mapping.usage.protection_key != 0 {
        return Err(Error::unsupported("memory with a protection key cannot be carried yet"));
    }
    if mapping.flags.contains(VmFlags::GUARD) {
        return Err(Error::unsupported("guard pages (MADV_GUARD_INSTALL) cannot be carried yet"));
    }
    vma.flags = FLAGS.iter().filter(|(flag, _)| mapping.flags.contains(*flag)).map(|(_, bit)| *bit).sum();
    let mut anon_name = Vec::new();
    if mapping.is_anonymous() {
        vma.kind = vma_kind::ANON_PRIVATE;
        if let Some(Special::Anon(name)) = special {
            anon_name = name.to_vec();
        }
    } else {
        vma.offset = mapping.offset;
        vma.object = mapped_object(process, mapping, objects)?;
        vma.kind = match (mapping.shared, objects.table.get(&vma.object)) {
            (_, Some(Object::Inode(_))) => vma_kind::ANON_SHARED,
            (true, _) => vma_kind::FILE_SHARED,
            (false, _) => vma_kind::FILE_PRIVATE,
        };
    }
    Ok(model::Vma { record: vma, anon_name })
}

/// The file or shared object behind a mapping.
fn mapped_object(process: &Process, mapping: &Mapping, objects: &mut Objects) -> Result<Objref> {
    let name = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
    let path = show(&mapping.path);
    if mapping.path.starts_with(b"/SYSV") && mapping.deleted {
        return Err(Error::unsupported(format!("System V shared memory ({path}) cannot be carried yet")));
    }
    if mapping.path.starts_with(b"/secretmem") && mapping.deleted {
        return Err(Error::unsupported("secret memory (memfd_secret) cannot be carried yet")
            .advice("nobody but its program can read it: let it unmap it"));
    }
    if mapping.path.starts_with(b"/[aio]")
        || mapping.path.starts_with(b"anon_inode:")
        || !mapping.path.starts_with(b"/")
    {
        return Err(Error::unsupported(format!("a mapping of {path} cannot be carried yet")));
    }
    if mapping.shared && mapping.deleted && mapping.path == b"/dev/zero" {
        return shared_anonymous(process, &name, objects);
    }
    let writable = mapping.shared && mapping.flags.contains(VmFlags::MAY_WRITE);
    let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
    // What maps says of the file (st_dev as major:minor, st_ino) names it without another call.
    let key = (rustix::fs::makedev(mapping.dev.0, mapping.dev.1), mapping.inode, flags.bits());
    objects.mapped(key, |objects| {
        // maps has \012 for a newline, and for these four characters, too.
        let exact = || process.proc.readlink(&name).ok();
        let newline = mapping.path.contains(&b'\n');
        let link = newline.then(exact).flatten().unwrap_or_else(|| mapping.path_as_shown());
        mapped_file(process, name, link, flags, key, objects)
            .map_err(|e| e.advice("its path must lead to it, or CAP_CHECKPOINT_RESTORE is needed"))
    })
}

/// The record of a file that is mapped, or is the exe.
fn mapped_file(
    process: &Process,
    name: String,
    link: Vec<u8>,
    flags: OFlags,
    (dev, ino, _): FileKey,
    objects: &mut Objects,
) -> Result<Object> {
    let stat = match process.proc.stat(&name) {
        // map_files is for the privileged; a path that leads to what maps says is as good.
        Err(e) if e.kind == ErrorKind::Permission => rustix::fs::stat(link.as_slice())
            .ok()
            .filter(|stat| (stat.st_dev, stat.st_ino) == (dev, ino))
            .ok_or(e)?,
        other => other?,
    };
    let statfs = || rustix::fs::statfs(link.as_slice()).doing(|| format!("statfs {}", show(&link)));
    let fs = objects.file_system(stat.st_dev, statfs);
    let (flags, info) = (flags.bits(), OnceCell::new());
    let (copy, by_path, pos) = (None, false, None);
    let descriptor = Descriptor { process, name, link, stat, flags, info, fs, copy, by_path, pos };
    let what =
        || Error::unsupported(format!("a mapping of {} cannot be carried yet", show(&descriptor.link)));
    let kind = kind_of(&descriptor).ok_or_else(what)?;
    let mut file = kind.checkpoint(&descriptor, objects)?;
    file.build_id = build_id(&file.path).unwrap_or_default();
    Ok(Object::File(file))
}

/// The build id of the ELF file at `path`.
pub(crate) fn build_id(path: &[u8]) -> Option<Vec<u8>> {
    let fd = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        rustix::fs::Mode::empty(),
    );
    let file = std::fs::File::from(fd.ok()?);
    ckpt_proc::elf::build_id_with(|offset, len| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    })
}

/// The object behind memory shared anonymously.
fn shared_anonymous(process: &Process, name: &str, objects: &mut Objects) -> Result<Objref> {
    let stat = process.proc.stat(name).map_err(|e| e.advice("shared memory needs CAP_CHECKPOINT_RESTORE"))?;
    let inode = model::Inode {
        record: record::Inode {
            kind: inode_kind::SHMEM,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size.max(0) as u64,
            capacity: 0,
        },
        ..model::Inode::default()
    };
    let (objref, new) = objects.inode((stat.st_dev, stat.st_ino), || Object::Inode(inode));
    if new {
        objects.contents.push((objref, process.proc.open(name, OFlags::RDONLY)?.into()));
    }
    Ok(objref)
}

/// vvar and vdso can only be mapped as one block, in the kernel's order.
fn check_kernel_areas(areas: &[model::Vma]) -> Result<()> {
    let kernel: Vec<&record::Vma> = areas
        .iter()
        .map(|a| &a.record)
        .filter(|r| [vma_kind::VDSO, vma_kind::VVAR].contains(&r.kind))
        .collect();
    let contiguous = kernel.windows(2).all(|w| matches!(w, [a, b] if a.end == b.start && a.kind >= b.kind));
    let vdsos = kernel.iter().filter(|r| r.kind == vma_kind::VDSO).count();
    if (contiguous && vdsos == 1) || kernel.is_empty() {
        return Ok(());
    }
    Err(Error::unsupported("vdso and vvar are not where the kernel put them"))
}

/// Builds the record of an address space; `mlock_future` is from [`future_locks`], `stat` of the witness.
pub(crate) fn checkpoint(
    process: &Process,
    stat: &Stat,
    answers: &[Outcome],
    mlock_future: u32,
    vmas: Vec<model::Vma>,
    objects: &mut Objects,
) -> Result<model::Mm> {
    let [dumpable, thp, membarrier, brk] = answers else {
        return Err(Error::failed("the process answered fewer questions than asked"));
    };
    let filter = String::from_utf8(process.proc.read("coredump_filter")?).unwrap_or_default();
    let filter = u32::from_str_radix(filter.trim(), 16);
    let link = process.proc.readlink("exe")?;
    let exe_stat = process.proc.stat("exe")?;
    let key = (exe_stat.st_dev, exe_stat.st_ino, OFlags::RDONLY.bits());
    let exe = objects
        .mapped(key, |objects| mapped_file(process, "exe".to_owned(), link, OFlags::RDONLY, key, objects))?;
    let record = record::Mm {
        nr_vmas: vmas.len() as u32,
        exe,
        start_code: stat.start_code,
        end_code: stat.end_code,
        start_data: stat.start_data,
        end_data: stat.end_data,
        start_brk: stat.start_brk,
        brk: brk.result as u64,
        start_stack: stat.start_stack,
        arg_start: stat.arg_start,
        arg_end: stat.arg_end,
        env_start: stat.env_start,
        env_end: stat.env_end,
        dumpable: dumpable.result as u32,
        coredump_filter: filter.map_err(|_| Error::failed("parse /proc/PID/coredump_filter"))?,
        thp_disable: thp.result as u32,
        membarrier: if membarrier.ok() { membarrier.result as u32 } else { 0 },
        pad: 0,
        mlock_future,
    };
    Ok(model::Mm { record, auxv: process.proc.read("auxv")?, vmas })
}

/// Sets what belongs to the address space but not to an area. `exe` is the number of a descriptor
/// of the exe in the puppet.
pub(crate) fn restore(program: &mut Program, mm: &model::Mm, exe: i32) {
    const AUXV_POINTER: usize = 11 * 8;
    let r = &mm.record;
    let words = [
        r.start_code,
        r.end_code,
        r.start_data,
        r.end_data,
        r.start_brk,
        r.brk,
        r.start_stack,
        r.arg_start,
        r.arg_end,
        r.env_start,
        r.env_end,
        0,
    ];
    let mut map: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    map.extend_from_slice(&(mm.auxv.len() as u32).to_le_bytes());
    map.extend_from_slice(&exe.to_le_bytes());
    let size = map.len();
    map.extend_from_slice(&mm.auxv);
    let args = [
        libc::PR_SET_MM.into(),
        libc::PR_SET_MM_MAP.into(),
        Arg::Linked(map, vec![(AUXV_POINTER, size)]),
        (size as u64).into(),
        0u64.into(),
    ];
    program.call("prctl(PR_SET_MM_MAP)", 0, libc::SYS_prctl, args);
    // A puppet begins with the coordinator's. Beside the switch it tells PR_THP_DISABLE_EXCEPT_ADVISED (Linux 6.18).
    let (switch, flags) = (r.thp_disable & 1, r.thp_disable & !1);
    let args = [PR_SET_THP_DISABLE.into(), switch.into(), flags.into(), 0u64.into(), 0u64.into()];
    program.call("prctl(PR_SET_THP_DISABLE)", r.thp_disable.into(), libc::SYS_prctl, args);
    for bit in (0..32).map(|b| 1u32 << b).filter(|bit| r.membarrier & bit != 0) {
        program.call("membarrier", bit.into(), libc::SYS_membarrier, [bit.into(), 0u64.into(), 0u64.into()]);
    }
}

/// The last of an address space: what credentials reset.
pub(crate) fn restore_after_cred(program: &mut Program, mm: &model::Mm) {
    // 2 (only root may dump) cannot be asked for; 0 is the nearest that can.
    let dumpable = u64::from(mm.record.dumpable == 1);
    let args = [libc::PR_SET_DUMPABLE.into(), dumpable.into()];
    program.call("prctl(PR_SET_DUMPABLE)", dumpable, libc::SYS_prctl, args);
}

/// Sets what the coordinator sets from outside, through a thread that lives.
pub(crate) fn restore_coredump_filter(tid: i32, mm: &model::Mm) -> Result<()> {
    let filter = format!("{:#x}", mm.record.coredump_filter);
    procfs::write(&format!("{tid}/coredump_filter"), &filter).doing(|| "coredump_filter".to_owned())
}
