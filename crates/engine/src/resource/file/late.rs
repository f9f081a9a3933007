//! Descriptions that can only be made when all processes are there: pidfds, files of /proc.
//!
//! Puppets get the coordinator's descriptors when they are forked. What is made later the coordinator hands over through
//! a pair of sockets that both have (SCM_RIGHTS). No right to trace or to see anybody is needed for that, and it works
//! across pid and user namespaces; see docs/adr/0018. There are two moments for it:
//!
//! | moment | what | to which numbers |
//! |---|---|---|
//! | before descriptors are in their places | pidfds: epolls may watch them | where a placeholder has been, above all that the program uses: then it is as if they had been there from the start |
//! | afterwards | files of /proc, which may show descriptors (fdinfo/7) | their places |
//!
//! What a message brings gets the lowest number that is free, which is known at both of them.

use super::placement;
use crate::{
    error::{Doing, Error, Result},
    opened::Opened,
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{FileDesc, file_kind},
};
use ckpt_kernel::{
    program::{Arg, Program},
    puppet::Puppet,
    servant::Line,
};
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

/// Whether a file is opened when all descriptors are in their places.
pub(crate) fn is_last(image: &Image, objref: Objref) -> bool {
    image.file(objref).is_some_and(|file| file.record.kind == file_kind::PROC)
}

/// Whether a file is opened when all tasks are there, and handed over in place of a placeholder.
fn is_replaced(image: &Image, objref: Objref) -> bool {
    image.file(objref).is_some_and(|file| file.record.kind == file_kind::PIDFD)
}

/// The way descriptions are handed over: our end, and that of the puppets.
#[derive(Debug)]
pub(crate) struct Late {
    ours: Line,
    theirs: OwnedFd,
    /// Below it the coordinator has nothing that a puppet needs before its descriptors are in their places.
    lowest: i32,
}

/// A description and the numbers it is to have, with FD_CLOEXEC or not.
type Handed<'a> = (&'a OwnedFd, Vec<(i32, bool)>);

impl Late {
    /// Made before there are puppets, if the image has something for it. Their end is at a number above `top`, which is
    /// nobody's place.
    pub(crate) fn of(image: &Image, top: i32, lowest: i32) -> Result<Option<Late>> {
        if !image.objects.keys().any(|file| is_last(image, *file) || is_replaced(image, *file)) {
            return Ok(None);
        }
        let (ours, theirs) = Line::pair().doing(|| "make a pair of sockets".to_owned())?;
        let lowest_free = lowest.max(top.saturating_add(1));
        let theirs = rustix::io::fcntl_dupfd_cloexec(&theirs, lowest_free).map_err(|e| {
            Error::os(format!("a descriptor above {}", lowest_free - 1), e)
                .advice("raise the limit of open files (ulimit -n)")
        })?;
        Ok(Some(Late { ours, theirs, lowest }))
    }

    /// The number of the puppets' end, if a table needs it when it is in place.
    pub(crate) fn kept(&self, image: &Image, table: &model::FileTable) -> Option<i32> {
        table.descs.iter().any(|desc| is_last(image, desc.file)).then(|| self.theirs.as_raw_fd())
    }

    /// Replaces the placeholders of those of `files` that have them, in a puppet whose descriptors are not in place.
    pub(crate) fn replace(
        &self,
        puppet: &mut Puppet,
        image: &Image,
        files: impl Iterator<Item = Objref>,
        opened: &Opened,
    ) -> Result<()> {
        let files: BTreeSet<Objref> = files.filter(|file| is_replaced(image, *file)).collect();
        let handed: Vec<Handed<'_>> = files
            .iter()
            .filter_map(|file| opened.files.get(file))
            .map(|fd| (fd, vec![(fd.as_raw_fd(), true)]))
            .collect();
        if handed.is_empty() {
            return Ok(());
        }
        let mut program = Program::new();
        placement::close(&mut program, 0, (self.lowest - 1) as u32);
        puppet.run(0, program)?;
        self.hand_over(puppet, &handed, BTreeSet::new())
    }

    /// Completes a table that is in place but for what is opened last. The puppet's end is closed then.
    pub(crate) fn complete(
        &self,
        puppet: &mut Puppet,
        image: &Image,
        table: &model::FileTable,
        opened: &Opened,
    ) -> Result<()> {
        let Some(end) = self.kept(image, table) else { return Ok(()) };
        let (last, there): (Vec<&FileDesc>, Vec<&FileDesc>) =
            table.descs.iter().partition(|desc| is_last(image, desc.file));
        let mut places: BTreeMap<Objref, Vec<(i32, bool)>> = BTreeMap::new();
        for desc in last {
            places.entry(desc.file).or_default().push((desc.fd, desc.flags & 1 != 0));
        }
        let missing = || Error::bad_image("a file that was not opened");
        let handed =
            places.into_iter().map(|(file, to)| Ok((opened.files.get(&file).ok_or_else(missing)?, to)));
        let handed: Vec<Handed<'_>> = handed.collect::<Result<_>>()?;
        self.hand_over(puppet, &handed, there.iter().map(|desc| desc.fd).chain([end]).collect())?;
        let mut program = Program::new();
        placement::close(&mut program, end, end as u32);
        puppet.run(0, program)?;
        Ok(())
    }

    /// Hands descriptions over to a puppet that has something under the numbers in `taken`, and nothing below or between
    /// them.
    fn hand_over(&self, puppet: &mut Puppet, files: &[Handed<'_>], mut taken: BTreeSet<i32>) -> Result<()> {
        for some in files.chunks(AT_ONCE) {
            let mut program = Program::new();
            for (file, to) in some {
                self.ours.send(b"f", Some(file.as_fd())).doing(|| "hand a descriptor over".to_owned())?;
                let free = (0..).find(|number| !taken.contains(number)).unwrap_or(i32::MAX);
                let args = [self.theirs.as_raw_fd().into(), message(), libc::MSG_CMSG_CLOEXEC.into()];
                program.call("recvmsg", free as u64, libc::SYS_recvmsg, args);
                let moves = to.iter().map(|&(to, cloexec)| placement::Move { from: free, to, cloexec });
                moves.for_each(|one| placement::put(&mut program, one));
                if to.iter().all(|(to, _)| *to != free) {
                    placement::close(&mut program, free, free as u32);
                }
                taken.extend(to.iter().map(|(to, _)| *to));
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
