//! The character devices without state: null, zero, full, random, urandom.
//!
//! *Saved*: path, flags. *Restored*: by path, if it leads to the same device. *Refused*: any other
//! device.

use super::{Descriptor, FileKind, OpenContext, reopen};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    task::show,
};
use ckpt_image::{model, record::file_kind};
use rustix::fs::{FileType, major, minor};
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct CharDevice;

/// Major number of the memory devices.
const MEM_MAJOR: u32 = 1;
/// null, zero, full, random, urandom.
const MINORS: [u32; 5] = [3, 5, 7, 8, 9];

impl FileKind for CharDevice {
    fn kind(&self) -> u32 {
        file_kind::CHARDEV
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        let device = descriptor.stat.st_rdev;
        !descriptor.is_place()
            && descriptor.file_type() == FileType::CharacterDevice
            && major(device) == MEM_MAJOR
            && MINORS.contains(&minor(device))
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        if !descriptor.path_leads_here() {
            return Err(Error::unsupported(format!(
                "{} is not that device any more",
                show(descriptor.path())
            )));
        }
        Ok(descriptor.record(file_kind::CHARDEV))
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = reopen(&file.path, &file.record)?;
        let stat = rustix::fs::fstat(&fd).doing(|| format!("stat {}", show(&file.path)))?;
        if stat.st_rdev != file.record.rdev {
            return Err(Error::failed(format!("{} is another device than it was", show(&file.path))));
        }
        Ok(Some(fd))
    }
}
