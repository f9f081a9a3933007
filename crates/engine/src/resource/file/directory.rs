//! Directories opened for reading.
//!
//! *Saved*: path, flags, offset. *Restored*: by path; the offset is the file system's cookie and
//! holds as long as the directory is the same. *Refused*: a directory that was removed.

use super::{Descriptor, FileKind, OpenContext, refuse_kernel_file_systems, reopen, seek};
use crate::{
    error::{Error, Result},
    objects::Objects,
    task::show,
};
use ckpt_image::{model, record::file_kind};
use rustix::fs::FileType;
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct Directory;

impl FileKind for Directory {
    fn kind(&self) -> u32 {
        file_kind::DIRECTORY
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.file_type() == FileType::Directory
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        if !descriptor.path_leads_here() {
            let what = format!("the directory {} was removed or is hidden", show(descriptor.path()));
            return Err(Error::unsupported(what));
        }
        refuse_kernel_file_systems(descriptor)?;
        Ok(descriptor.record(file_kind::DIRECTORY))
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = reopen(&file.path, &file.record)?;
        seek(&fd, &file.record, &file.path)?;
        Ok(Some(fd))
    }
}
