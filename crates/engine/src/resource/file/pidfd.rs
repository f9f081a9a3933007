//! pidfd_open(2), and CLONE_PIDFD.
//!
//! *Saved*: the task (fdinfo), whether it is a thread's (PIDFD_THREAD, which is O_EXCL among the flags). *Restored*: opened by
//! the coordinator when all tasks are there, and handed to the processes that have it: see `late.rs`. One of a
//! process that has ended and been waited for is of a process made for it in the tree, which ends and is waited for; those
//! that were of one process still are. *Refused*: of a task outside the tree. *Lost*: inode numbers; what
//! PIDFD_GET_INFO tells of one that has been waited for.

use super::{
    Descriptor, FileKind, Files, OpenContext, detail,
    late::{self, Tasks},
    settle_flags,
};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    puppets::Puppets,
    task::Process,
};
use ckpt_image::{
    Image, Objref, model,
    record::{self, file_kind},
};
use ckpt_kernel::procfs;
use ckpt_proc::{link::FdLink, status::parse_status};
use rustix::{
    fs::OFlags,
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{collections::BTreeMap, os::fd::OwnedFd};

/// See the module.
pub(crate) struct Pidfd;

impl FileKind for Pidfd {
    fn kind(&self) -> u32 {
        file_kind::PIDFD
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place() && descriptor.target() == FdLink::AnonInode(b"pidfd")
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        let pid =
            match descriptor.info()?.pidfd().ok_or_else(|| Error::failed("its fdinfo is not a pidfd's"))? {
                -1 => 0,
                0 => return Err(outside("a pidfd of a process in another pid namespace".to_owned())),
                tid => {
                    let status =
                        procfs::read(&format!("{tid}/status")).ok().and_then(|s| parse_status(&s).ok());
                    if !status.is_some_and(|status| objects.members.contains(&status.tgid)) {
                        let who = Process::open(tid).map_or_else(|_| format!("task {tid}"), |p| p.label());
                        return Err(outside(format!("a pidfd of {who}")));
                    }
                    tid
                }
            };
        descriptor.detailed(file_kind::PIDFD, &[record::Pidfd { pid, pad: 0 }])
    }

    /// A placeholder: see [`open_late`].
    fn open(&self, _: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        late::placeholder().map(Some)
    }
}

fn outside(what: String) -> Error {
    Error::unsupported(format!("{what}, which is not in the tree, cannot be carried"))
        .advice("let the program close it, or checkpoint a tree with both")
}

/// Gives every task that a pidfd refers to its own name.
pub(crate) fn rename(file: &mut model::File, own: impl Fn(i32) -> i32) {
    if file.record.kind == file_kind::PIDFD
        && let Ok(record::Pidfd { pid, pad }) = detail(file)
        && pid != 0
    {
        file.details = model::to_details(&[record::Pidfd { pid: own(pid), pad }]);
    }
}

/// Opens the pidfds of an image in place of what `files` has for them.
pub(crate) fn open_late(
    image: &Image,
    tasks: &Tasks,
    puppets: &mut Puppets,
    files: &mut Files,
) -> Result<()> {
    // Of processes that are no more: by their inode, which says which are of the same.
    let mut dead: BTreeMap<u64, Vec<(Objref, &model::File)>> = BTreeMap::new();
    for (objref, file) in late::of_kind(image, file_kind::PIDFD) {
        match detail::<record::Pidfd>(file)?.pid {
            0 => dead.entry(file.record.ino).or_default().push((objref, file)),
            pid => {
                let unknown =
                    || Error::bad_image(format!("pidfd {objref} is of {pid}, which is not in the image"));
                let (tid, _) = tasks.get(&pid).copied().ok_or_else(unknown)?;
                put(open(tid, file)?, objref, file, files)?;
            }
        }
    }
    for same in dead.into_values() {
        let open =
            |pid: i32| same.iter().map(|(objref, file)| Ok((*objref, *file, open(pid, file)?))).collect();
        let fds: Vec<_> = puppets.pass(open)?;
        fds.into_iter().try_for_each(|(objref, file, fd)| put(fd, objref, file, files))?;
    }
    Ok(())
}

/// A pidfd of a task, as we know it: with PIDFD_THREAD or not.
fn open(tid: i32, file: &model::File) -> Result<OwnedFd> {
    let flags = PidfdFlags::from_bits_retain(file.record.flags & OFlags::EXCL.bits());
    let id = Pid::from_raw(tid).ok_or_else(|| Error::bad_image("a pidfd of no task"))?;
    pidfd_open(id, flags).doing(|| format!("pidfd_open({tid})"))
}

fn put(fd: OwnedFd, objref: Objref, file: &model::File, files: &mut Files) -> Result<()> {
    settle_flags(&fd, file)?;
    late::put(&fd, objref, files)
}
