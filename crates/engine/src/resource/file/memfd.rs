//! memfd_create(2): files in memory that never had a name.
//!
//! *Saved*: as an inode of the image: name, mode (with it whether it may be executed: MFD_NOEXEC_SEAL), owner, seals
//! (F_GET_SEALS), contents with holes as holes; descriptions with flags and offset, also one that is only mapped or
//! is the exe. *Restored*: memfd_create again; it is sealed when it has its contents and its mappings, as a seal may
//! forbid both. *Lost*: inode number, timestamps, whether a memfd with all its seals was made with MFD_ALLOW_SEALING,
//! which nobody can tell. *Refused*: huge pages (MFD_HUGETLB), which can only be filled through a mapping;
//! memfd_secret(2), which not even the kernel reads. Linux 3.17; MFD_EXEC 6.3.

use super::{Descriptor, FileKind, Made, OpenContext, seek};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    task::show,
};
use ckpt_image::{
    Image, Object, Objref,
    model::{self, details},
    record::{self, file_kind, inode_kind},
};
use ckpt_kernel::procfs;
use ckpt_proc::link::FdLink;
use rustix::{
    fs::{FileType, Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{OnceLock, atomic::Ordering},
};
use zerocopy::IntoBytes;

/// See the module.
pub(crate) struct Memfd;

/// Says that it may be executed, to kernels that want that to be said.
const MFD_EXEC: u32 = 0x10;
/// How /proc shows every memfd: this, its name, " (deleted)".
const PREFIX: &[u8] = b"/memfd:";

/// The device of all memfds.
fn device() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let own = rustix::fs::memfd_create("own", MemfdFlags::CLOEXEC).ok()?;
        Some(rustix::fs::fstat(own).ok()?.st_dev)
    })
}

impl FileKind for Memfd {
    fn kind(&self) -> u32 {
        file_kind::MEMFD
    }

    /// Those of huge pages are on another device.
    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.file_type() == FileType::RegularFile
            && matches!(descriptor.target(), FdLink::Memfd(_))
            && Some(descriptor.stat.st_dev) == device()
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        let stat = &descriptor.stat;
        let FdLink::Memfd(name) = descriptor.target() else {
            return Err(Error::failed("a memfd without a name"));
        };
        let path = [PREFIX, name].concat();
        let source = descriptor.process.proc.open(&descriptor.name, OFlags::RDONLY)?;
        let seals = rustix::fs::fcntl_get_seals(&source).doing(|| format!("the seals of {}", show(&path)))?;
        let inode = model::Inode {
            record: record::Inode {
                kind: inode_kind::MEMFD,
                mode: stat.st_mode,
                uid: stat.st_uid,
                gid: stat.st_gid,
                size: stat.st_size.max(0) as u64,
                capacity: 0,
            },
            path: path.clone(),
            details: record::Memfd { seals: seals.bits(), pad: 0 }.as_bytes().to_vec(),
        };
        let (inode, new) = objects.inode((stat.st_dev, stat.st_ino), || Object::Inode(inode));
        if new {
            objects.contents.push((inode, source.into()));
        }
        let mut file = descriptor.record(file_kind::MEMFD)?;
        file.record.inode = inode;
        file.path = path;
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let path = show(&file.path);
        let inode = context
            .inodes
            .get(&file.record.inode)
            .ok_or_else(|| Error::bad_image(format!("{path}: a memfd without contents")))?;
        let flags = OFlags::from_bits_retain(file.record.flags);
        let doing = || format!("open {path}");
        // What memfd_create gives does not count as open for writing, so that it can be executed; what is opened
        // through /proc does.
        let as_made = flags & (OFlags::RWMODE | OFlags::APPEND) == OFlags::RDWR;
        let fd = if as_made && !inode.taken.swap(true, Ordering::Relaxed) {
            let fd = rustix::io::dup(&inode.fd).doing(doing)?;
            rustix::fs::fcntl_setfl(&fd, flags).doing(doing)?;
            fd
        } else {
            let flags = flags & !(OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::NOFOLLOW);
            procfs::reopen(&inode.fd, flags).doing(doing)?
        };
        seek(&fd, &file.record, &file.path)?;
        Ok(Some(fd))
    }
}

/// Makes a memfd again, empty but of its size, with no seal on it yet.
pub(crate) fn make(inode: &model::Inode) -> Result<Made> {
    let path = show(&inode.path);
    let name = inode
        .path
        .strip_prefix(PREFIX)
        .ok_or_else(|| Error::bad_image(format!("{path} is not the name of a memfd")))?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::from_bits_retain(MFD_EXEC)) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        // vm.memfd_noexec=2 allows no other.
        Err(Errno::ACCESS) if inode.record.mode & 0o111 == 0 => {
            rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        }
        other => other,
    };
    let fd = fd.doing(|| format!("make {path} again"))?;
    let ready = (|| {
        rustix::fs::ftruncate(&fd, inode.record.size)?;
        rustix::fs::fchown(
            &fd,
            Some(Uid::from_raw(inode.record.uid)),
            Some(Gid::from_raw(inode.record.gid)),
        )?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(inode.record.mode & 0o7777))
    })();
    ready.doing(|| format!("prepare {path}"))?;
    Ok(Made::new(fd))
}

/// Seals all memfds of an image.
pub(crate) fn seal(image: &Image, inodes: &BTreeMap<Objref, Made>) -> Result<()> {
    for (objref, made) in inodes {
        let Some(inode) = image.inode(*objref).filter(|i| i.record.kind == inode_kind::MEMFD) else {
            continue;
        };
        let wanted = details::<record::Memfd>(&inode.details).unwrap_or_default();
        let wanted = wanted.first().map_or(0, |memfd| memfd.seals);
        let doing = || format!("seal {}", show(&inode.path));
        let there = rustix::fs::fcntl_get_seals(&made.fd).doing(doing)?.bits();
        if wanted & !there != 0 {
            rustix::fs::fcntl_add_seals(&made.fd, SealFlags::from_bits_retain(wanted)).doing(doing)?;
        }
    }
    Ok(())
}
