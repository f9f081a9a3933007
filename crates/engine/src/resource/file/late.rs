//! Descriptions that can only be made when all processes are there: pidfds, files of /proc.
//!
//! Puppets get the coordinator's descriptors when they are forked. What is made later the coordinator hands over through
//! a pair of sockets that both have (SCM_RIGHTS). No right to trace or to see anybody is needed for that, and it works
//! across pid and user namespaces; see docs/adr/0018. There are two moments for it:
//!
//! | moment | what | to which numbers |
//! |---|---|---|
//! | before descriptors are in their places | pidfds, and files of /proc that epolls watch | where a placeholder has been: then it is as if they had been there from the start |
//! | afterwards | other files of /proc, which may show descriptors (fdinfo/7), each other's, too | their places, where placeholders are until then |
//!
//! What a message brings gets the lowest number that is free, which is known at both of them.

use super::{Files, epoll, placement};
use crate::{
    error::{Doing, Error, Result},
    opened::Opened,
};
use ckpt_image::{Image, Object, Objref, model, record::file_kind};
use ckpt_kernel::{
    program::{Arg, Program},
    puppet::Puppet,
    servant::Line,
};
use rustix::{event::EventfdFlags, io::DupFlags};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

/// Messages under way at a time; a socket takes more than 200.
const AT_ONCE: usize = 64;

/// The tasks there are now: by their id in the image, the ids we and they know them by.
pub(crate) type Tasks = BTreeMap<i32, (i32, i32)>;

/// The files of a kind.
pub(crate) fn of_kind(image: &Image, kind: u32) -> impl Iterator<Item = (Objref, &model::File)> {
    image.objects.iter().filter_map(move |(objref, object)| match object {
        Object::File(file) if file.record.kind == kind => Some((*objref, file)),
        _ => None,
    })
}

/// What has the number of a description until that is opened.
pub(crate) fn placeholder() -> Result<OwnedFd> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC).doing(|| "make a placeholder".to_owned())
}

/// Puts a description in the place of its placeholder.
pub(crate) fn put(fd: &OwnedFd, objref: Objref, files: &mut Files) -> Result<()> {
    let Some(place) = files.get_mut(&objref) else { return Ok(()) };
    rustix::io::dup3(fd, place, DupFlags::CLOEXEC).doing(|| "dup3".to_owned())
}

/// The way descriptions are handed over: our end, and that of the puppets.
#[derive(Debug)]
pub(crate) struct Late {
    ours: Line,
    theirs: OwnedFd,
    /// Files that are opened when all tasks are there, before descriptors are in their places.
    early: BTreeSet<Objref>,
    /// Files that are opened when they are.
    last: BTreeSet<Objref>,
}

/// A description and the numbers it is to have, with FD_CLOEXEC or not.
type Handed<'a> = (&'a OwnedFd, Vec<(i32, bool)>);

impl Late {
    /// Made before there are puppets, if the image has something for it. Their end is none of `numbers`,
    /// which are somebody's places.
    pub(crate) fn of(image: &Image, numbers: &BTreeSet<i32>) -> Result<Option<Late>> {
        let kind = |kind| of_kind(image, kind).map(|(objref, _)| objref);
        let watched = epoll::watched(image);
        let (watched, last): (BTreeSet<_>, BTreeSet<_>) =
            kind(file_kind::PROC).partition(|file| watched.contains(file));
        let early: BTreeSet<_> = kind(file_kind::PIDFD).chain(watched).collect();
        if early.is_empty() && last.is_empty() {
            return Ok(None);
        }
        let (ours, theirs) = Line::pair().doing(|| "make a pair of sockets".to_owned())?;
        let mut free = (3..).filter(|number| !numbers.contains(number));
        let theirs = loop {
            let number = free.next().unwrap_or(i32::MAX);
            let end = rustix::io::fcntl_dupfd_cloexec(&theirs, number).map_err(|e| {
                Error::os(format!("a descriptor with the number {number} or above"), e)
                    .advice("raise the limit of open files (ulimit -n)")
            })?;
            if !numbers.contains(&end.as_raw_fd()) {
                break end;
            }
        };
        Ok(Some(Late { ours, theirs, early, last }))
    }

    /// Whether a file is opened when all descriptors are in their places.
    pub(crate) fn is_last(&self, file: Objref) -> bool {
        self.last.contains(&file)
    }

    /// The number of the puppets' end, if a table needs it when it is in place.
    pub(crate) fn kept(&self, table: &model::FileTable) -> Option<i32> {
        table.descs.iter().any(|desc| self.is_last(desc.file)).then(|| self.theirs.as_raw_fd())
    }

    /// Replaces the placeholders of those of `files` that have them, in a puppet whose descriptors are not in place.
    pub(crate) fn replace(
        &self,
        puppet: &mut Puppet,
        files: impl Iterator<Item = Objref>,
        opened: &Opened,
    ) -> Result<()> {
        let files: BTreeSet<Objref> = files.filter(|file| self.early.contains(file)).collect();
        let handed: Vec<Handed<'_>> = files
            .iter()
            .filter_map(|file| opened.files.get(file))
            .map(|fd| (fd, vec![(fd.as_raw_fd(), true)]))
            .collect();
        if handed.is_empty() {
            return Ok(());
        }
        let mut program = Program::new();
        // It needs none of our standard descriptors: what is received comes at the first of them.
        placement::close(&mut program, 0, 0);
        puppet.run(0, program)?;
        self.hand_over(puppet, &handed, &BTreeSet::new())
    }

    /// Completes a table in which placeholders are in place of what is opened last. The puppet's end is closed then.
    pub(crate) fn complete(
        &self,
        puppet: &mut Puppet,
        table: &model::FileTable,
        opened: &Opened,
    ) -> Result<()> {
        let Some(end) = self.kept(table) else { return Ok(()) };
        let mut places: BTreeMap<Objref, Vec<(i32, bool)>> = BTreeMap::new();
        for desc in table.descs.iter().filter(|desc| self.is_last(desc.file)) {
            places.entry(desc.file).or_default().push((desc.fd, desc.flags & 1 != 0));
        }
        let missing = || Error::bad_image("a file that was not opened");
        let handed =
            places.into_iter().map(|(file, to)| Ok((opened.files.get(&file).ok_or_else(missing)?, to)));
        let handed: Vec<Handed<'_>> = handed.collect::<Result<_>>()?;
        self.hand_over(puppet, &handed, &table.descs.iter().map(|desc| desc.fd).chain([end]).collect())?;
        let mut program = Program::new();
        placement::close(&mut program, end, end as u32);
        puppet.run(0, program)?;
        Ok(())
    }

    /// Hands descriptions over to a puppet that has something under the numbers in `taken`, their places among them, and
    /// nothing below or between them; or nothing under 0.
    fn hand_over(&self, puppet: &mut Puppet, files: &[Handed<'_>], taken: &BTreeSet<i32>) -> Result<()> {
        let free = (0..).find(|number| !taken.contains(number)).unwrap_or(i32::MAX);
        for some in files.chunks(AT_ONCE) {
            let mut program = Program::new();
            for (file, to) in some {
                self.ours.send(b"f", Some(file.as_fd())).doing(|| "hand a descriptor over".to_owned())?;
                let args = [self.theirs.as_raw_fd().into(), message(), libc::MSG_CMSG_CLOEXEC.into()];
                program.call("recvmsg", free as u64, libc::SYS_recvmsg, args);
                let moves = to.iter().map(|&(to, cloexec)| placement::Move { from: free, to, cloexec });
                moves.for_each(|one| placement::put(&mut program, one));
                placement::close(&mut program, free, free as u32);
            }
            puppet.run(0, program)?;
        }
        Ok(())
    }
}

/// A `struct msghdr` with room for a byte and a descriptor.
fn message() -> Arg {
    const IOV: usize = 56;
    const BYTE: usize = 72;
    const CONTROL: usize = 80;
    const CONTROL_LEN: usize = 24;
    let mut bytes = vec![0; CONTROL + CONTROL_LEN];
    for (at, word) in [(24, 1), (40, CONTROL_LEN as u64), (IOV + 8, 1)] {
        bytes.iter_mut().skip(at).zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    Arg::Linked(bytes, vec![(16, IOV), (32, CONTROL), (IOV, BYTE)])
}
