//! Character devices that are no terminals.
//!
//! *Saved*: path, flags. *Restored*: by path, if it leads to the same device. *Carried*: those without state of
//! their own: null, zero, full, random, urandom, hwrng, and kmsg that is only written to. All others are refused
//! by name (`refuse.rs`): what a driver keeps for a descriptor is known to it alone.

use super::{Descriptor, FileKind, OpenContext, reopen};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    task::show,
};
use ckpt_image::{model, record::file_kind};
use rustix::fs::{FileType, OFlags, major, minor};
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct CharDevice;

/// null, zero, full, random, urandom; hwrng.
const STATELESS: [(u32, u32); 6] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (10, 183)];
/// The kernel's log: who reads it has a place in it.
const KMSG: (u32, u32) = (1, 11);
impl FileKind for CharDevice {
    fn kind(&self) -> u32 {
        file_kind::CHARDEV
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        let device = (major(descriptor.stat.st_rdev), minor(descriptor.stat.st_rdev));
        let access = OFlags::from_bits_retain(descriptor.flags) & OFlags::RWMODE;
        !descriptor.is_place()
            && descriptor.file_type() == FileType::CharacterDevice
            && (STATELESS.contains(&device) || device == KMSG && access == OFlags::WRONLY)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let path = show(descriptor.path());
        if !descriptor.path_leads_here() {
            return Err(Error::unsupported(format!("{path} is not that device any more")));
        }
        descriptor.record(file_kind::CHARDEV)
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = reopen(&file.path, &file.record, None)?;
        let stat = rustix::fs::fstat(&fd).doing(|| format!("stat {}", show(&file.path)))?;
        if stat.st_rdev != file.record.rdev {
            return Err(Error::failed(format!("{} is another device than it was", show(&file.path))));
        }
        Ok(Some(fd))
    }
}
