//! Regular files without a name: unlinked while open or mapped, or made without one (O_TMPFILE).
//!
//! *Saved*: the contents, as an inode of the image, holes as holes; mode, owner, time of modification.
//! `--ghost-limit` bounds what is allocated of one. *Restored*: one made without a name is made so again:
//! it may be given one yet (linkat(2)). Any other is made under the old name, or one derived from it when
//! that is taken, and unlinked at once by the [`Scribe`](crate::scribe::Scribe), its directory too if that
//! is gone; descriptions of it have the old flags, O_PATH and O_TMPFILE too, and offsets. *Lost*: inode number, other
//! timestamps, extended attributes; that it may be given no name (O_TMPFILE with O_EXCL); O_NOFOLLOW and O_TMPFILE, which have
//! no effect on an open file, of all descriptions but one. *Refused*: those of huge pages (hugetlbfs), which can only be filled
//! through a mapping.

use super::{Descriptor, FileKind, Made, OpenContext, mqueue, proc::is_kernel_file, refuse, seek};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    scribe::Scribe,
    task::show,
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{self, file_kind, inode_kind},
};
use ckpt_kernel::procfs;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use std::{collections::BTreeMap, os::fd::OwnedFd, sync::atomic::Ordering};

/// See the module.
pub(crate) struct Unlinked;

/// Unit of st_blocks.
const BLOCK: u64 = 512;

/// Whether it is an unlinked file of a file system that has names.
pub(crate) fn is_unlinked(descriptor: &Descriptor<'_>) -> bool {
    descriptor.is_unlinked()
        && !is_kernel_file(descriptor)
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
        const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
        let stat = &descriptor.stat;
        if descriptor.fs == HUGETLBFS_MAGIC {
            let what =
                format!("the unlinked {} of huge pages cannot be carried yet", show(descriptor.path()));
            return Err(Error::unsupported(what).advice("let the program use a file of small pages"));
        }
        let allocated = stat.st_blocks.max(0) as u64 * BLOCK;
        if let Some(limit) = objects.ghost_limit.filter(|limit| allocated > *limit) {
            let what = format!("the unlinked {} holds {allocated} bytes", show(descriptor.path()));
            let error = Error::unsupported(what).why(format!("--ghost-limit is {limit}"));
            return Err(error.advice("raise it, or let the program close the file"));
        }
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
                path: if has_directory(descriptor.path()) {
                    descriptor.path().to_vec()
                } else {
                    model::as_removed(descriptor.path())
                },
                ..model::Inode::default()
            })
        };
        let (inode, new) = objects.inode((stat.st_dev, stat.st_ino), inode);
        if new {
            let source = descriptor.process.proc.open(&descriptor.name, OFlags::RDONLY)?;
            objects.contents.push((inode, source.into()));
        }
        let mut file = descriptor.record(file_kind::UNLINKED)?;
        file.record.inode = inode;
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let inode = context.inodes.get(&file.record.inode).ok_or_else(|| {
            Error::bad_image(format!("{}: an unlinked file without contents", show(&file.path)))
        })?;
        let flags =
            OFlags::from_bits_retain(file.record.flags) & !(OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC);
        let doing = || format!("open the unlinked {}", show(&file.path));
        let fd = if is_as_made(flags, &inode.fd) && !inode.taken.swap(true, Ordering::Relaxed) {
            let fd = rustix::io::dup(&inode.fd).doing(doing)?;
            rustix::fs::fcntl_setfl(&fd, flags).doing(doing)?;
            fd
        } else {
            // O_NOFOLLOW would not let us through /proc, O_TMPFILE is for directories; neither has an effect
            // afterwards.
            procfs::reopen(&inode.fd, flags & !(OFlags::NOFOLLOW | OFlags::TMPFILE)).doing(doing)?
        };
        if !flags.contains(OFlags::PATH) {
            seek(&fd, &file.record, &file.path)?;
        }
        Ok(Some(fd))
    }
}

/// Whether the directory of a path is there.
fn has_directory(path: &[u8]) -> bool {
    let directory = path.iter().rposition(|byte| *byte == b'/').and_then(|at| path.get(..=at));
    directory.is_some_and(|directory| rustix::fs::stat(directory).is_ok())
}

/// Whether a description of these flags is what [`make`] has made anyway: that of mkstemp(3), or of
/// O_TMPFILE. With O_APPEND it would not take the contents.
fn is_as_made(flags: OFlags, made: &OwnedFd) -> bool {
    const FIXED: OFlags = OFlags::RWMODE.union(OFlags::NOFOLLOW).union(OFlags::TMPFILE);
    let as_made = rustix::fs::fcntl_getfl(made).is_ok_and(|made| made & FIXED == flags & FIXED);
    as_made && !flags.intersects(OFlags::APPEND | OFlags::PATH)
}

/// Makes the file of an inode again, empty but of its size, without a name, open read-write.
pub(crate) fn make(inode: &model::Inode, scribe: &Scribe) -> Result<Made> {
    let path = show(&inode.path);
    let fd = match tmpfile(&inode.path) {
        Some(fd) => fd,
        None => scribe.file(&inode.path)?,
    };
    prepare(&fd, &inode.record).doing(|| format!("prepare the unlinked {path}"))?;
    Ok(Made::new(fd))
}

/// Gives a new file its size, owner and mode.
pub(crate) fn prepare(fd: &OwnedFd, record: &record::Inode) -> rustix::io::Result<()> {
    rustix::fs::ftruncate(fd, record.size)?;
    rustix::fs::fchown(fd, Some(Uid::from_raw(record.uid)), Some(Gid::from_raw(record.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(record.mode & 0o7777))
}

/// A file that never has a name, if `path` says that it had none: the kernel calls such a file by its
/// inode number.
fn tmpfile(path: &[u8]) -> Option<OwnedFd> {
    let path = model::removed(path).unwrap_or(path);
    let at = path.iter().rposition(|byte| *byte == b'/')?;
    let number = path.get(at + 1..)?.strip_prefix(b"#")?;
    if number.is_empty() || !number.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(path.get(..=at)?, flags, Mode::RUSR | Mode::WUSR).ok()
}

/// Gives what was made anew the time it was last modified, now that nothing is written to it any more.
pub(crate) fn set_times(image: &Image, inodes: &BTreeMap<Objref, Made>) {
    for object in image.objects.values() {
        let Object::File(file) = object else { continue };
        let record = &file.record;
        let Some(made) = inodes.get(&record.inode).filter(|_| record.kind != file_kind::PIPE) else {
            continue;
        };
        let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
        let times = rustix::fs::Timestamps {
            last_access: time(0, rustix::fs::UTIME_OMIT),
            last_modification: time(record.mtime_sec, record.mtime_nsec.into()),
        };
        // Only its owner may; nothing but stat(2) tells.
        let _ = rustix::fs::futimens(&made.fd, &times);
    }
}
