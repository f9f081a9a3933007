//! What waits in a unix socket: taken by a look (MSG_PEEK), sent again by who sent it.
//!
//! A look does not take anything out, nor does it wake anybody. A stream is looked at in one go, from outside. Behind the first
//! of several messages only SO_PEEK_OFF leads, which is the socket's own. So a process that has the socket looks for us, in
//! one program: if we end meanwhile, even by SIGKILL, it runs on to its last call, which puts SO_PEEK_OFF back.
//! An error that waits would be taken by a look: where one does, nobody looks. Out-of-band data (MSG_OOB) would end a look, and is
//! refused.

use super::{SOCK_SEQPACKET, SOCK_STREAM, polled};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    tree::Held,
    visiting::visit_again,
};
use ckpt_image::{
    Object, Objref,
    model::{self, to_details},
    record::{UnixMessage, UnixSocket, inode_kind, unix_options},
};
use ckpt_kernel::{
    Errno,
    program::{Arg, Outcome, Program},
    unix::Number,
    visit::Visit,
};
use rustix::{
    event::PollFlags,
    fs::MemfdFlags,
    net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, SocketAddrUnix, recvmsg},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{IoSliceMut, Seek, Write},
    os::fd::{AsFd, OwnedFd},
};

/// What a look from outside tells.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing waits.
    Nothing,
    /// This does, in a stream.
    All(Waiting),
    /// Something does, or may: it takes a process that has the socket to see it.
    Some,
}

/// What waits in one socket.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    bytes: Vec<u8>,
    /// None of a stream.
    messages: Vec<UnixMessage>,
    /// The last message is not seen to its end yet.
    in_midst: bool,
}

/// More than this of a stream is not looked at from outside.
const LONGEST: usize = 16 << 20;
const LOOK: RecvFlags =
    RecvFlags::PEEK.union(RecvFlags::DONTWAIT).union(RecvFlags::TRUNC).union(RecvFlags::CMSG_CLOEXEC);
/// Looks of one program, which must fit the bay of a leader.
const LOOKS: usize = 12;
/// How much one of them sees.
const ROOM: usize = 4096;

/// Looks at what waits, from outside.
pub(super) fn look(socket: &OwnedFd, details: &UnixSocket) -> Result<Seen> {
    let first = rustix::io::ioctl_fionread(socket).doing(|| "what waits in a socket".to_owned())? as usize;
    if details.kind == SOCK_STREAM {
        refuse_urgent(socket)?;
        return Ok(match first {
            0 => Seen::Nothing,
            1..=LONGEST if details.peek_offset < 0 => Seen::All(look_at_once(socket, details, first)?),
            _ => Seen::Some,
        });
    }
    match (polled(socket)?, first) {
        (events, 0) if events.contains(PollFlags::ERR) => Ok(Seen::Nothing),
        (events, _) if events.contains(PollFlags::ERR) => {
            Err(Error::unsupported("messages and an error wait in a unix socket: they cannot be carried yet")
                .advice("checkpoint when the program has read them"))
        }
        (events, _) if events.contains(PollFlags::IN) => Ok(Seen::Some),
        _ => Ok(Seen::Nothing),
    }
}

/// Refuses what overtakes the rest of a stream.
fn refuse_urgent(socket: &OwnedFd) -> Result<()> {
    let how = RecvFlags::OOB | RecvFlags::PEEK | RecvFlags::DONTWAIT;
    if rustix::net::recv(socket, &mut [0u8], how).is_err() {
        return Ok(());
    }
    let what = "out-of-band data (MSG_OOB) waits in a unix socket: it cannot be carried yet";
    Err(Error::unsupported(what).advice("checkpoint when the program has received it").passing())
}

/// All of a stream in which `len` bytes wait.
fn look_at_once(socket: &OwnedFd, details: &UnixSocket, len: usize) -> Result<Waiting> {
    let mut room = vec![0; len];
    let mut none = RecvAncillaryBuffer::new(&mut []);
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut room)], &mut none, LOOK);
    let message = message.doing(|| "look at what waits in a socket".to_owned())?;
    refuse(message.flags, details)?;
    if message.bytes != len {
        let what = format!("only {} of {len} bytes that wait in a unix socket can be seen", message.bytes);
        return Err(Error::unsupported(what).advice("checkpoint when the program has read them").passing());
    }
    Ok(Waiting { bytes: room, ..Waiting::default() })
}

/// Looks that processes of the tree are to take.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    pub(super) looks: Vec<Look>,
    /// The sockets of the tree that have an address, by that.
    pub(super) names: BTreeMap<Vec<u8>, u64>,
}

/// A socket that a process is to look at.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) pid: i32,
    pub(super) fd: i32,
    pub(super) file: Objref,
    pub(super) details: UnixSocket,
}

impl Looks {
    /// Lets processes of a tree that stands still look.
    pub(crate) fn take(self, held: &mut Held, objects: &mut Objects) -> Result<()> {
        let Looks { looks, names } = self;
        for (process, threads) in held.iter_mut() {
            let own: Vec<&Look> = looks.iter().filter(|look| look.pid == process.pid).collect();
            if own.is_empty() {
                continue;
            }
            let look = |visit: &mut Visit| {
                let look = |look: &&Look| look.run(visit, &names).object(|| format!("fd {}", look.fd));
                own.iter().map(look).collect::<Result<Vec<_>>>()
            };
            let looked = visit_again(process, std::mem::take(threads), look).task(|| process.label())?;
            *threads = looked.0;
            for (look, waiting) in own.iter().zip(looked.1) {
                keep(look.file, waiting, objects)?;
            }
        }
        Ok(())
    }
}

impl Look {
    fn run(&self, visit: &mut Visit, names: &BTreeMap<Vec<u8>, u64>) -> Result<Waiting> {
        let mut waiting = Waiting::default();
        loop {
            let outcomes = visit.run(0, self.program(waiting.bytes.len()))?;
            if let [first, looks @ .., last] = outcomes.as_slice() {
                [first, last]
                    .into_iter()
                    .try_for_each(|set| result(set, "setsockopt(SO_PEEK_OFF)").map(drop))?;
                for look in looks {
                    if !self.add(look, &mut waiting, names)? {
                        return Ok(waiting);
                    }
                }
            }
        }
    }

    /// Looks from byte `at` on. No failure ends it.
    fn program(&self, at: usize) -> Program {
        let mut program = Program::whole();
        let set = |program: &mut Program, offset: i32| {
            let offset = Arg::In(offset.to_le_bytes().to_vec());
            let option = Number::PeekOffset as i32;
            let args = [self.fd.into(), libc::SOL_SOCKET.into(), option.into(), offset, 4u64.into()];
            program.try_call("setsockopt", libc::SYS_setsockopt, args);
        };
        set(&mut program, at as i32);
        for _ in 0..LOOKS {
            let args = [self.fd.into(), message::empty(), LOOK.bits().into()];
            program.try_call("recvmsg", libc::SYS_recvmsg, args);
        }
        set(&mut program, self.details.peek_offset);
        program
    }

    /// Adds what one look has seen. Gives whether there may be more.
    fn add(&self, look: &Outcome, all: &mut Waiting, names: &BTreeMap<Vec<u8>, u64>) -> Result<bool> {
        if look.result == -i64::from(Errno::AGAIN.raw_os_error()) {
            return Ok(false);
        }
        let len = result(look, "look at what waits in a socket")?;
        let message = look.bytes(0);
        refuse(message::flags(message), &self.details)?;
        let stream = self.details.kind == SOCK_STREAM;
        let ended = stream || self.details.kind == SOCK_SEQPACKET && self.details.shutdown & 1 != 0;
        if len == 0 && ended {
            return Ok(false);
        }
        let seen = len.min(ROOM);
        all.bytes.extend_from_slice(message::data(message).get(..seen).unwrap_or_default());
        let goes_on = std::mem::replace(&mut all.in_midst, seen < len);
        if !stream && !goes_on {
            let sender = sender(message::address(message), &self.details, names)?;
            all.messages.push(UnixMessage { sender, len: len as u32, pad: 0 });
        }
        Ok(true)
    }
}

/// What a call gave.
fn result(outcome: &Outcome, what: &str) -> Result<usize> {
    let errno = i32::try_from(-outcome.result).unwrap_or(libc::EIO);
    usize::try_from(outcome.result).map_err(|_| Error::os(what.to_owned(), Errno::from_raw_os_error(errno)))
}

/// A `struct msghdr` with room for an address and [`ROOM`] bytes, but for no descriptors.
mod message {
    use super::{Arg, ROOM, ReturnFlags};

    const IOV: usize = 56;
    const ADDRESS: usize = 72;
    /// `struct sockaddr_un`: a family and a path.
    const FAMILY: usize = 2;
    const PATH: usize = 108;
    const DATA: usize = 192;

    pub(super) fn empty() -> Arg {
        let mut bytes = vec![0; DATA + ROOM];
        for (at, word) in [(8, (FAMILY + PATH) as u64), (24, 1), (IOV + 8, ROOM as u64)] {
            bytes.iter_mut().skip(at).zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
        Arg::LinkedOut(bytes, vec![(0, ADDRESS), (16, IOV), (IOV, DATA)])
    }

    fn number(message: &[u8], at: usize) -> u32 {
        message.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    pub(super) fn flags(message: &[u8]) -> ReturnFlags {
        ReturnFlags::from_bits_retain(number(message, 48))
    }

    /// Who sent it: a path, an abstract name behind a zero, or nothing.
    pub(super) fn address(message: &[u8]) -> &[u8] {
        let address = message.get(ADDRESS..ADDRESS + number(message, 8) as usize);
        match address.and_then(|address| address.get(FAMILY..)).unwrap_or_default() {
            name @ [0, ..] => name,
            path => path.split(|byte| *byte == 0).next().unwrap_or_default(),
        }
    }

    pub(super) fn data(message: &[u8]) -> &[u8] {
        message.get(DATA..).unwrap_or_default()
    }
}

/// Makes what waits part of the image.
pub(super) fn keep(file: Objref, waiting: Waiting, objects: &mut Objects) -> Result<()> {
    let Waiting { bytes, messages, .. } = waiting;
    if bytes.is_empty() && messages.is_empty() {
        return Ok(());
    }
    let contents =
        rustix::fs::memfd_create("socket", MemfdFlags::CLOEXEC).doing(|| "memfd_create".to_owned())?;
    let mut contents = File::from(contents);
    contents.write_all(&bytes).and_then(|()| contents.rewind()).doing(|| "copy a socket".to_owned())?;
    let Some(Object::File(known)) = objects.table.get(&file) else { return Ok(()) };
    let identity = (known.record.dev, known.record.ino);
    let mut new = model::Inode::default();
    new.record.kind = inode_kind::UNIX;
    let (objref, _) = objects.inode(identity, || Object::Inode(new));
    if let Some(Object::Inode(inode)) = objects.table.get_mut(&objref) {
        inode.record.size = bytes.len() as u64;
        inode.details = to_details(&messages);
    }
    if let Some(Object::File(known)) = objects.table.get_mut(&file) {
        known.record.inode = objref;
    }
    objects.contents.push((objref, contents));
    Ok(())
}

/// Who sent a message from `address`.
fn sender(address: &[u8], details: &UnixSocket, names: &BTreeMap<Vec<u8>, u64>) -> Result<u64> {
    if address.is_empty() {
        return Ok(details.peer);
    }
    names.get(address).copied().ok_or_else(|| {
        Error::unsupported(
            "a message waits in a unix socket whose sender is outside, or gone: it cannot be carried yet",
        )
        .advice("checkpoint when the program has read it")
        .passing()
    })
}

/// Refuses what comes with a message: descriptors, credentials.
fn refuse(flags: ReturnFlags, details: &UnixSocket) -> Result<()> {
    if !flags.contains(ReturnFlags::CTRUNC) {
        return Ok(());
    }
    let credentials = unix_options::PASSCRED | unix_options::PASSPIDFD | unix_options::PASSSEC;
    let what = match details.options & credentials {
        0 => "descriptors on their way through a unix socket (SCM_RIGHTS) cannot be carried yet",
        _ => "what waits in a unix socket with credentials (SO_PASSCRED) cannot be carried yet",
    };
    Err(Error::unsupported(what).advice("checkpoint when the program has received them").passing())
}

/// Sends all of `data`, a message if `whole`.
pub(super) fn send(sender: impl AsFd, data: &[u8], whole: bool, to: Option<&SocketAddrUnix>) -> Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let mut rest = data;
    loop {
        let sent = match to {
            Some(address) => rustix::net::sendto(&sender, rest, flags, address),
            None => rustix::net::send(&sender, rest, flags),
        };
        let sent = match sent {
            Err(Errno::AGAIN) => {
                return Err(Error::failed("a unix socket has no room for what waited in it"));
            }
            other => other.doing(|| "fill a unix socket".to_owned())?,
        };
        rest = rest.get(sent..).unwrap_or_default();
        if whole || rest.is_empty() {
            return Ok(());
        }
    }
}
