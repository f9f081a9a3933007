//! Descriptors opened with O_PATH: places in the file system, of any file type.
//!
//! *Saved*: path, flags. *Restored*: opened by path, O_NOFOLLOW where the file is a symbolic link.
//! *Refused*: when the path does not lead there any more.

use super::{Descriptor, FileKind, OpenContext, refuse_kernel_file_systems, reopen};
use crate::{
    error::{Error, Result},
    objects::Objects,
    task::show,
};
use ckpt_image::{model, record::file_kind};
use rustix::fs::{FileType, OFlags};
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct Path;

impl FileKind for Path {
    fn kind(&self) -> u32 {
        file_kind::PATH
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        OFlags::from_bits_retain(descriptor.flags()).contains(OFlags::PATH)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let here = (descriptor.stat.st_dev, descriptor.stat.st_ino);
        let found = rustix::fs::lstat(descriptor.path()).is_ok_and(|s| (s.st_dev, s.st_ino) == here);
        if !found && !descriptor.path_leads_here() {
            let what = format!("the O_PATH descriptor of {} leads nowhere any more", show(descriptor.path()));
            return Err(Error::unsupported(what));
        }
        refuse_kernel_file_systems(descriptor)?;
        let mut file = descriptor.record(file_kind::PATH);
        if descriptor.file_type() == FileType::Symlink {
            file.record.flags |= OFlags::NOFOLLOW.bits();
        }
        Ok(file)
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        reopen(&file.path, &file.record).map(Some)
    }
}
