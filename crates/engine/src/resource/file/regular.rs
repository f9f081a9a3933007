//! Regular files that have a name.
//!
//! *Saved*: path, flags, offset, size, mtime. *Restored*: opened by path with the same flags and
//! put at the offset. *Lost*: contents: the file system has them; a file that became shorter than
//! it was is refused unless forced. Files of /proc and /sys are refused: they are views of a
//! kernel that does not know the task yet when they are opened.

use super::{
    Descriptor, FileKind, OpenContext, mqueue, refuse, refuse_kernel_file_systems, reopen, seek,
    unlinked::is_unlinked,
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
pub(crate) struct Regular;

impl FileKind for Regular {
    fn kind(&self) -> u32 {
        file_kind::REGULAR
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.file_type() == FileType::RegularFile
            && matches!(descriptor.target(), FdLink::Path { .. })
            && !is_unlinked(descriptor)
            && !mqueue::is_queue(descriptor)
            && !refuse::is_secret(descriptor)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let path = show(descriptor.path());
        if !descriptor.path_leads_here() {
            let what = format!("{path} does not lead to the file any more");
            return Err(Error::unsupported(what).advice("it was replaced or is hidden by a mount"));
        }
        refuse_kernel_file_systems(descriptor)?;
        Ok(descriptor.record(file_kind::REGULAR))
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = reopen(&file.path, &file.record)?;
        let path = show(&file.path);
        let size = rustix::fs::fstat(&fd).doing(|| format!("stat {path}"))?.st_size.max(0) as u64;
        if size < file.record.size && !context.options.force_files {
            let what = format!("{path} has {size} bytes and had {} at the checkpoint", file.record.size);
            return Err(Error::failed(what).advice("put the original back, or go on with --force-files"));
        }
        if OFlags::from_bits_retain(file.record.flags).contains(OFlags::APPEND) && file.record.pos > size {
            return Ok(Some(fd));
        }
        seek(&fd, &file.record, &file.path)?;
        Ok(Some(fd))
    }
}
