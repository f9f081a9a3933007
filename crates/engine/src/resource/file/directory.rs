//! Directories opened for reading, or as a place (O_PATH).
//!
//! *Saved*: path, flags, offset. *Restored*: by path; the offset is the file system's cookie and
//! holds as long as the directory is the same. One that was removed is made again at its place, with those above
//! it that are gone, opened, and removed. *Lost*: of a removed one, owner and mode, that it was another than
//! one removed from the same place.

use super::{Descriptor, FileKind, OpenContext, proc::is_kernel_file, reopen, seek};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    scribe::Scribe,
    task::show,
};
use ckpt_image::{model, record::file_kind};
use ckpt_kernel::procfs;
use rustix::fs::{FileType, OFlags};
use std::{cell::RefCell, collections::BTreeMap, os::fd::OwnedFd, rc::Rc};

/// See the module.
pub(crate) struct Directory;

impl FileKind for Directory {
    fn kind(&self) -> u32 {
        file_kind::DIRECTORY
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.file_type() == FileType::Directory
            && descriptor.link.starts_with(b"/")
            && !is_kernel_file(descriptor)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let mut file = descriptor.record(file_kind::DIRECTORY)?;
        if !descriptor.path_leads_here() {
            if !descriptor.is_unlinked() {
                let what = format!("the directory {} is hidden by a mount", show(descriptor.path()));
                return Err(Error::unsupported(what));
            }
            file.path = model::as_removed(descriptor.path());
        }
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = match model::removed(&file.path) {
            Some(path) => {
                let place = context.removed.get(path, context.scribe)?;
                let flags = OFlags::from_bits_retain(file.record.flags) & !OFlags::NOFOLLOW;
                procfs::reopen(place.as_ref(), flags).doing(|| format!("open the removed {}", show(path)))?
            }
            None => reopen(&file.path, &file.record, context.rights)?,
        };
        if file.record.flags & OFlags::PATH.bits() == 0 {
            seek(&fd, &file.record, &file.path)?;
        }
        Ok(Some(fd))
    }
}

/// Directories that are removed, made again, by the paths they had.
#[derive(Debug, Default)]
pub(crate) struct Removed(RefCell<BTreeMap<Vec<u8>, Rc<OwnedFd>>>);

impl Removed {
    /// The one that was at `path`.
    pub(crate) fn get(&self, path: &[u8], scribe: &Scribe) -> Result<Rc<OwnedFd>> {
        if let Some(known) = self.0.borrow().get(path) {
            return Ok(Rc::clone(known));
        }
        let made = Rc::new(scribe.directory(path)?);
        self.0.borrow_mut().insert(path.to_vec(), Rc::clone(&made));
        Ok(made)
    }
}
