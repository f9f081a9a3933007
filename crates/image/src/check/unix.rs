//! Rules for unix sockets.

use super::{Check, Refs, of_kind, rule};
use crate::model::{File, Inode, Object};
use crate::record::{UnixMessage, UnixSocket, inode_kind, unix_flags, unix_options};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const SOCK_SEQPACKET: u32 = 5;

/// A socket.
pub(super) fn check(file: &File, refs: &Refs<'_>) -> Check {
    let (socket, to) = match of_kind::<UnixSocket>(&file.details)?[..] {
        [socket] => (socket, None),
        [socket, to] => (socket, Some(to)),
        _ => return Err("a unix socket without its details"),
    };
    rule([SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET].contains(&socket.kind), "a socket of an unknown type")?;
    rule(socket.flags & !unix_flags::ALL == 0, "a socket has unknown flags")?;
    rule(socket.options & !unix_options::ALL == 0, "a socket has unknown options")?;
    rule(socket.shutdown <= 3, "a socket has more halves than two")?;
    let listening = socket.is(unix_flags::LISTENING);
    rule(!listening || socket.kind != SOCK_DGRAM, "a socket for datagrams listens")?;
    rule(!listening || socket.peer == 0 && !socket.is(unix_flags::CLOSED), "a connected socket listens")?;
    rule(socket.peer == 0 || !socket.is(unix_flags::CLOSED), "a socket is connected to a closed one")?;
    rule(!socket.is(unix_flags::RESET) || socket.is(unix_flags::CLOSED), "a socket was reset by nobody")?;
    let padded = |socket: &UnixSocket| socket.with_address(socket.address()) == Some(*socket);
    rule(padded(&socket), "a socket's address is too long, or its padding not zero")?;
    rule(
        socket.is(unix_flags::OUTSIDE) == to.is_some(),
        "whether a socket sends to the outside is not clear",
    )?;
    let alone = socket.peer == 0 && !socket.is(unix_flags::CLOSED);
    rule(
        to.is_none() || socket.kind == SOCK_DGRAM && alone,
        "a socket that sends to the outside is connected",
    )?;
    let is_address = |to: &UnixSocket| {
        !to.address().is_empty() && UnixSocket::default().with_address(to.address()) == Some(*to)
    };
    rule(to.as_ref().is_none_or(is_address), "where a socket sends to is no address")?;
    match refs.objects.get(&file.record.inode) {
        None => rule(file.record.inode == 0, "refers to an object that is not in the image"),
        Some(Object::Inode(inode)) if inode.record.kind == inode_kind::UNIX => Ok(()),
        Some(_) => Err("what waits in a socket is something else"),
    }
}

/// What waits in one.
pub(super) fn check_waiting(inode: &Inode) -> Check {
    let mut left = inode.record.size;
    for message in of_kind::<UnixMessage>(&inode.details)? {
        rule(message.pad == 0, "padding of a message is not zero")?;
        left = left.checked_sub(message.len.into()).ok_or("messages beyond the contents")?;
    }
    rule(inode.details.is_empty() || left == 0, "contents that are no message")
}
