//! Descriptions that can only be made when all processes are there: pidfds.
//!
//! Puppets get the coordinator's descriptors when they are forked. For what is made later each has a number that is
//! taken until then by a placeholder, and the coordinator hands the description over through a pair of sockets
//! that both have (SCM_RIGHTS), before the puppet puts descriptors in their places: it then has it under the same number as
//! the coordinator, as if it had been there from the start. No right to trace or to see anybody is needed for
//! that, and it works across pid and user namespaces; see docs/adr/0018.

use crate::{
    error::{Doing, Result},
    restart::Opened,
};
use ckpt_image::Objref;
use ckpt_kernel::{
    program::{Arg, Program},
    puppet::Puppet,
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};
use std::{
    collections::BTreeSet,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// Descriptors in one message; the kernel takes 253.
const AT_ONCE: usize = 128;
const SYS_CLOSE_RANGE: i64 = 436;

/// The way descriptions are handed over.
#[derive(Debug)]
pub(crate) struct Late {
    ours: OwnedFd,
    theirs: OwnedFd,
    /// The lowest number of a descriptor of ours that a puppet needs.
    lowest: i32,
}

impl Late {
    /// Made before there are puppets. `park` moves a descriptor to a number from `lowest` on.
    pub(crate) fn new(lowest: i32, park: &dyn Fn(OwnedFd) -> Result<OwnedFd>) -> Result<Late> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .doing(|| "make a pair of sockets".to_owned())?;
        Ok(Late { ours: park(ours)?, theirs: park(theirs)?, lowest })
    }

    /// Gives `files` to a puppet.
    pub(crate) fn hand_over(
        &self,
        puppet: &mut Puppet,
        files: &BTreeSet<Objref>,
        opened: &Opened,
    ) -> Result<()> {
        let files: Vec<BorrowedFd<'_>> =
            files.iter().filter_map(|file| opened.files.get(file)).map(AsFd::as_fd).collect();
        for some in files.chunks(AT_ONCE) {
            self.send(some)?;
            self.receive(puppet, some)?;
        }
        Ok(())
    }

    fn send(&self, files: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(files));
        sendmsg(&self.ours, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)
            .doing(|| "hand descriptors over".to_owned())?;
        Ok(())
    }

    /// Has a puppet receive `files`: they come at the lowest free numbers, which are those from 0 on.
    fn receive(&self, puppet: &mut Puppet, files: &[BorrowedFd<'_>]) -> Result<()> {
        let close = |program: &mut Program, last: i32| {
            let args = [0u64.into(), last.into(), 0u64.into()];
            program.call("close_range", 0, SYS_CLOSE_RANGE, args);
        };
        let mut program = Program::new();
        close(&mut program, self.lowest - 1);
        let args = [self.theirs.as_raw_fd().into(), message(files.len()), libc::MSG_CMSG_CLOEXEC.into()];
        program.call("recvmsg", 0, libc::SYS_recvmsg, args);
        for (at, file) in files.iter().enumerate() {
            let args = [(at as i32).into(), file.as_raw_fd().into(), libc::O_CLOEXEC.into()];
            program.call("dup3", at as u64, libc::SYS_dup3, args);
        }
        close(&mut program, self.lowest - 1);
        puppet.run(0, program)?;
        Ok(())
    }
}

/// struct msghdr with room for a byte and `count` descriptors.
fn message(count: usize) -> Arg {
    const IOV: usize = 56;
    const BYTE: usize = 72;
    const CONTROL: usize = 80;
    let control = 16 + (count * size_of::<i32>()).next_multiple_of(8);
    let mut bytes = vec![0; CONTROL + control];
    for (at, word) in [(24, 1), (40, control as u64), (IOV + 8, 1)] {
        bytes.iter_mut().skip(at).zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    Arg::Linked(bytes, vec![(16, IOV), (32, CONTROL), (IOV, BYTE)])
}
