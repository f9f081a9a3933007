//! eventfd(2).
//!
//! The kernel has a counter and whether it is a semaphore; fdinfo shows both, the latter since Linux 6.5.
//! *Saved*: both, flags. *Restored*: a new one with that count. *Lost*: its id in fdinfo. *Refused*: on older
//! kernels, as reading it would tell but take from the count; a count that has overflown (only the kernel
//! itself makes it do so).

use super::{Descriptor, FileKind, OpenContext, detail, settle_flags};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
};
use ckpt_image::{
    model,
    record::{self, file_kind},
};
use ckpt_proc::link::FdLink;
use rustix::event::EventfdFlags;
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct Eventfd;

impl FileKind for Eventfd {
    fn kind(&self) -> u32 {
        file_kind::EVENTFD
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place() && descriptor.target() == FdLink::AnonInode(b"eventfd")
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let found =
            descriptor.info()?.eventfd().ok_or_else(|| Error::failed("its fdinfo is not an eventfd's"))?;
        let semaphore = found.semaphore.ok_or_else(|| {
            Error::unsupported("whether an eventfd is a semaphore cannot be told")
                .advice("that needs Linux 6.5")
        })?;
        if found.count == u64::MAX {
            return Err(Error::unsupported("an eventfd that has overflown cannot be carried"));
        }
        let eventfd = record::Eventfd { count: found.count, semaphore: semaphore.into(), pad: 0 };
        descriptor.detailed(file_kind::EVENTFD, &[eventfd])
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let eventfd: record::Eventfd = detail(file)?;
        let semaphore = if eventfd.semaphore == 0 { EventfdFlags::empty() } else { EventfdFlags::SEMAPHORE };
        let failed = || "make an eventfd".to_owned();
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | semaphore).doing(failed)?;
        if eventfd.count != 0 {
            rustix::io::write(&fd, &eventfd.count.to_ne_bytes()).doing(failed)?;
        }
        settle_flags(&fd, file)?;
        Ok(Some(fd))
    }
}
