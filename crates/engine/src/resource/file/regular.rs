//! Regular files that have a name.
//!
//! *Saved*: path, flags, offset, size, time of modification. *Restored*: opened by path with the same flags and
//! put at the offset, if it is the file it was: see `identity.rs`. One whose name is gone while it lives on
//! by another name in the same directory is given the old name for a moment, opened, and is as before: one
//! file with the other name. *Lost*: contents: the file system has them, or, embedded, the image: see
//! `embedded.rs`. *Refused*: a name that leads elsewhere while the file lives on by a name that cannot be
//! found, or is hidden by a mount.

use super::{
    Descriptor, FileKind, OpenContext, identity, mqueue, open::reopen_now, proc::is_kernel_file, refuse,
    reopen, seek, unlinked::is_unlinked,
};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    task::show,
};
use ckpt_image::{model, record::file_kind};
use ckpt_kernel::procfs;
use ckpt_proc::link::FdLink;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct Regular;

impl FileKind for Regular {
    fn kind(&self) -> u32 {
        file_kind::REGULAR
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.file_type() == FileType::RegularFile
            && matches!(descriptor.target(), FdLink::Path { .. })
            && !descriptor.is_place()
            && !is_kernel_file(descriptor)
            && !is_unlinked(descriptor)
            && !mqueue::is_queue(descriptor)
            && !refuse::is_secret(descriptor)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let mut file = descriptor.record(file_kind::REGULAR)?;
        if !descriptor.path_leads_here() {
            let path = show(descriptor.path());
            let FdLink::Path { deleted: true, .. } = descriptor.target() else {
                let what = format!("{path} does not lead to the file any more");
                return Err(Error::unsupported(what).advice("it is hidden by a mount"));
            };
            file.details = other_name(descriptor).ok_or_else(|| {
                let (dev, ino) = (descriptor.stat.st_dev, descriptor.stat.st_ino);
                let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
                let what = format!("{path} was removed, but the file has another name elsewhere");
                Error::unsupported(what).advice(format!(
                    "`find -xdev -inum {ino}` on device {major}:{minor} finds it; link it to a name in the directory it was in"
                ))
            })?;
        }
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = if let Some(made) = context.inodes.get(&file.record.inode) {
            // Its own name leads there already, but this is certain.
            let flags = OFlags::from_bits_retain(file.record.flags) & !OFlags::NOFOLLOW;
            procfs::reopen(&made.fd, flags).doing(|| format!("open {}", show(&file.path)))?
        } else if file.details.is_empty() {
            reopen(&file.path, &file.record, context.rights)?
        } else {
            open_by_other_name(file, context)?
        };
        seek(&fd, &file.record, &file.path)?;
        Ok(Some(fd))
    }
}

/// Whether a file is opened by its name, with no more ado.
pub(super) fn is_plain(file: &model::File, context: &OpenContext<'_>) -> bool {
    file.record.kind == file_kind::REGULAR
        && file.details.is_empty()
        && !context.inodes.contains_key(&file.record.inode)
}

/// Opens such a file with our own rights, and says whether it is what it was for certain.
pub(super) fn open_plain(file: &model::File) -> Result<(OwnedFd, bool)> {
    let (fd, stat) = reopen_now(&file.path, &file.record)?;
    seek(&fd, &file.record, &file.path)?;
    Ok((fd, identity::is_same(&file.record, &stat)))
}

/// Opens a file by the name in its details, which for a moment has the name that is gone, too: as that it is shown.
pub(super) fn open_by_other_name(file: &model::File, context: &OpenContext<'_>) -> Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(file.record.flags) & !OFlags::NOFOLLOW;
    match context.scribe.link(&file.details, &file.path) {
        Ok(place) => procfs::reopen(&place, flags).doing(|| format!("open {}", show(&file.details))),
        // Whoever may not link it (fs.protected_hardlinks) can do without the name it is shown by.
        Err(error) => {
            tracing::info!("{error}");
            reopen(&file.details, &file.record, context.rights)
        }
    }
}

/// Another name of a file, in the directory where it had the one that is gone.
pub(super) fn other_name(descriptor: &Descriptor<'_>) -> Option<Vec<u8>> {
    let path = descriptor.path();
    let directory = path.get(..path.iter().rposition(|byte| *byte == b'/')? + 1)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty()).ok()?;
    let mut entries = Dir::read_from(&fd).ok()?;
    let is_it = |name: &std::ffi::CStr| {
        rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| descriptor.is(&stat))
    };
    let found = entries.find_map(|entry| {
        let entry = entry.ok()?;
        let may_be = entry.ino() == descriptor.stat.st_ino || entry.file_type() == FileType::Unknown;
        (may_be && is_it(entry.file_name())).then(|| entry.file_name().to_bytes().to_vec())
    })?;
    Some([directory, &found].concat())
}
