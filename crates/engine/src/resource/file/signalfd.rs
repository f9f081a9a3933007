//! signalfd(2).
//!
//! The kernel has a set of signals, which fdinfo shows; whose signals are read depends on who reads.
//! *Saved*: the set, flags. *Restored*: a new one. Signals that wait to be read are pending ones: see
//! `signal.rs`. An epoll that watches it does so for the process that added it: see `epoll.rs`.

use super::{Descriptor, FileKind, OpenContext, detail, settle_flags};
use crate::{
    error::{Error, Result},
    objects::Objects,
};
use ckpt_image::{
    model,
    record::{self, file_kind},
};
use ckpt_kernel::anon;
use ckpt_proc::link::FdLink;
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct Signalfd;

impl FileKind for Signalfd {
    fn kind(&self) -> u32 {
        file_kind::SIGNALFD
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place() && descriptor.target() == FdLink::AnonInode(b"signalfd")
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let mask =
            descriptor.info()?.signalfd().ok_or_else(|| Error::failed("its fdinfo is not a signalfd's"))?;
        descriptor.detailed(file_kind::SIGNALFD, &[record::Signalfd { mask }])
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let record::Signalfd { mask } = detail(file)?;
        let fd = anon::signalfd(mask)?;
        settle_flags(&fd, file)?;
        Ok(Some(fd))
    }
}
