//! Descriptors opened with O_PATH: places in the file system, of any file type, symbolic links and nodes of
//! sockets and devices too.
//!
//! *Saved*: path, flags. *Restored*: opened by path, O_NOFOLLOW where the file is a symbolic link. Places of
//! directories and of unlinked regular files are kinds like other descriptions of them. *Refused*: when the path does not
//! lead there any more.

use super::{Descriptor, FileKind, OpenContext, proc::is_kernel_file, reopen};
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
        let found = rustix::fs::lstat(descriptor.path()).is_ok_and(|stat| descriptor.is(&stat));
        if !found && !descriptor.path_leads_here() {
            let what = format!("the O_PATH descriptor of {} leads nowhere any more", show(descriptor.path()));
            return Err(Error::unsupported(what).advice("let the program close it"));
        }
        let mut file = descriptor.record(file_kind::PATH);
        if descriptor.file_type() == FileType::Symlink {
            file.record.flags |= OFlags::NOFOLLOW.bits();
        }
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = reopen(&file.path, &file.record, context.rights)?;
        let stat = rustix::fs::fstat(&fd).doing(|| format!("stat {}", show(&file.path)))?;
        if stat.st_rdev != file.record.rdev {
            return Err(Error::failed(format!("{} is another device than it was", show(&file.path))));
        }
        Ok(Some(fd))
    }
}
