//! Descriptors opened with O_PATH: places in the file system, of any file type, symbolic links and nodes of
//! sockets and devices too.
//!
//! *Saved*: path, flags, another name in the same directory where that one is gone. *Restored*: opened by path, O_NOFOLLOW where
//! the file is a symbolic link, or as a regular file of another name is. Places of directories and of unlinked regular files are
//! kinds like other descriptions of them. *Refused*: when no name leads there any more, or it is one of a symbolic link.

use super::{
    Descriptor, FileKind, OpenContext,
    proc::is_kernel_file,
    regular::{open_by_other_name, other_name},
    reopen,
};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    task::show,
};
use ckpt_image::{model, record::file_kind};
use ckpt_proc::link::FdLink;
use rustix::fs::{FileType, OFlags};
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct Path;

impl FileKind for Path {
    fn kind(&self) -> u32 {
        file_kind::PATH
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.is_place()
            && matches!(descriptor.target(), FdLink::Path { .. })
            && !is_kernel_file(descriptor)
            && descriptor.file_type() != FileType::Directory
            && !(descriptor.file_type() == FileType::RegularFile && descriptor.is_unlinked())
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let is_link = descriptor.file_type() == FileType::Symlink;
        let found = rustix::fs::lstat(descriptor.path()).is_ok_and(|stat| descriptor.is(&stat));
        let mut file = descriptor.record(file_kind::PATH)?;
        if !found && !descriptor.path_leads_here() {
            file.details = other_name(descriptor).filter(|_| !is_link).ok_or_else(|| {
                let what = format!("the O_PATH descriptor of {} leads nowhere any more", show(&file.path));
                Error::unsupported(what).advice("let the program close it")
            })?;
        }
        if is_link {
            file.record.flags |= OFlags::NOFOLLOW.bits();
        }
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = match file.details.is_empty() {
            true => reopen(&file.path, &file.record, context.rights)?,
            false => open_by_other_name(file, context)?,
        };
        let stat = rustix::fs::fstat(&fd).doing(|| format!("stat {}", show(&file.path)))?;
        if stat.st_rdev != file.record.rdev {
            return Err(Error::failed(format!("{} is another device than it was", show(&file.path))));
        }
        Ok(Some(fd))
    }
}
