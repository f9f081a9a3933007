//! Regular files without a name: unlinked while open or mapped.
//!
//! *Saved*: the contents, as an inode of the image, holes as holes; mode and owner. *Restored*: a
//! new file under the old name, or a name derived from it when that is taken, unlinked at once; a
//! description of it with the old flags and offset. *Lost*: inode number, timestamps, extended
//! attributes, that it never had a name (O_TMPFILE, which includes O_DIRECTORY, among the flags); O_NOFOLLOW,
//! which has no effect on an open file, of all descriptions but one.

use super::{Descriptor, FileKind, Made, OpenContext, mqueue, refuse, seek};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    task::show,
};
use ckpt_image::{
    Object, model,
    record::{self, file_kind, inode_kind},
};
use ckpt_kernel::procfs;
use rustix::{
    fs::{FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use std::{os::fd::OwnedFd, sync::atomic::Ordering};

/// See the module.
pub(crate) struct Unlinked;

/// Whether it is an unlinked file of a file system that has names.
pub(crate) fn is_unlinked(descriptor: &Descriptor<'_>) -> bool {
    descriptor.stat.st_nlink == 0
        && matches!(descriptor.target(), ckpt_proc::link::FdLink::Path { deleted: true, .. })
        && !mqueue::is_queue(descriptor)
        && !refuse::is_secret(descriptor)
}

impl FileKind for Unlinked {
    fn kind(&self) -> u32 {
        file_kind::UNLINKED
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.file_type() == FileType::RegularFile && is_unlinked(descriptor)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        let stat = &descriptor.stat;
        let inode = || {
            Object::Inode(model::Inode {
                record: record::Inode {
                    kind: inode_kind::UNLINKED,
                    mode: stat.st_mode,
                    uid: stat.st_uid,
                    gid: stat.st_gid,
                    size: stat.st_size.max(0) as u64,
                    capacity: 0,
                },
                path: descriptor.path().to_vec(),
                ..model::Inode::default()
            })
        };
        let (inode, new) = objects.inode((stat.st_dev, stat.st_ino), inode);
        if new {
            let source = descriptor.process.proc.open(&descriptor.name, OFlags::RDONLY)?;
            objects.contents.push((inode, source.into()));
        }
        let mut file = descriptor.record(file_kind::UNLINKED);
        file.record.inode = inode;
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let inode = context.inodes.get(&file.record.inode).ok_or_else(|| {
            Error::bad_image(format!("{}: an unlinked file without contents", show(&file.path)))
        })?;
        let flags = OFlags::from_bits_retain(file.record.flags)
            & !(OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::TMPFILE);
        let doing = || format!("open the unlinked {}", show(&file.path));
        let fd = if is_as_made(flags) && !inode.taken.swap(true, Ordering::Relaxed) {
            let fd = rustix::io::dup(&inode.fd).doing(doing)?;
            rustix::fs::fcntl_setfl(&fd, flags).doing(doing)?;
            fd
        } else {
            // O_NOFOLLOW would not let us through /proc, and has no effect afterwards.
            procfs::reopen(&inode.fd, flags & !OFlags::NOFOLLOW).doing(doing)?
        };
        seek(&fd, &file.record, &file.path)?;
        Ok(Some(fd))
    }
}

/// Whether a description of these flags is what [`make`] makes anyway: mkstemp(3)'s. With O_APPEND
/// it would not take the contents.
fn is_as_made(flags: OFlags) -> bool {
    flags & (OFlags::RWMODE | OFlags::NOFOLLOW | OFlags::APPEND) == OFlags::RDWR | OFlags::NOFOLLOW
}

/// Makes the file of an inode again, empty but of its size, without a name, open read-write.
pub(crate) fn make(inode: &model::Inode) -> Result<Made> {
    let path = show(&inode.path);
    let (fd, name) = create(&inode.path)?;
    // At once: whatever ends us from here on leaves no file.
    rustix::fs::unlink(name.as_slice()).doing(|| format!("unlink {path}"))?;
    let ready = (|| {
        rustix::fs::ftruncate(&fd, inode.record.size)?;
        rustix::fs::fchown(
            &fd,
            Some(Uid::from_raw(inode.record.uid)),
            Some(Gid::from_raw(inode.record.gid)),
        )?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(inode.record.mode & 0o7777))
    })();
    ready.doing(|| format!("prepare the unlinked {path}"))?;
    Ok(Made::new(fd))
}

/// Creates a file under the old name or one derived from it.
fn create(path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
    for attempt in 0..100 {
        let mut name = path.to_vec();
        if attempt > 0 {
            name.extend_from_slice(format!(".{attempt}").as_bytes());
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(name.as_slice(), flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => {}
            Ok(fd) => return Ok((fd, name)),
            Err(e) => {
                let what = format!("make the unlinked file {} again", show(path));
                return Err(Error::os(what, e).advice("its directory must exist and be writable"));
            }
        }
    }
    Err(Error::failed(format!("make the unlinked file {} again: all names are taken", show(path))))
}
