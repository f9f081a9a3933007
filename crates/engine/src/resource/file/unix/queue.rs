//! What waits in a unix socket: taken by a look (MSG_PEEK), sent again by who sent it.
//!
//! A look does not take anything out, nor does it wake anybody. A stream is looked at in one go. To see messages behind the
//! first, SO_PEEK_OFF goes over them, and is put back; if we are killed in between (some microseconds), the program's own
//! looks, should it ever look, begin where ours ended. An error that waits would be taken by a look: where one does,
//! nobody looks.

use super::{SOCK_STREAM, has_error};
use crate::error::{Doing, Error, Result};
use ckpt_image::record::{UnixMessage, UnixSocket, unix_options};
use ckpt_kernel::{Errno, unix::Number};
use rustix::{
    fs::MemfdFlags,
    net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, SocketAddrUnix, recvmsg},
};
use std::{
    fs::File,
    io::{IoSliceMut, Seek, Write},
    os::fd::{AsFd, OwnedFd},
};

/// What waits in one socket.
pub(super) struct Waiting {
    pub(super) contents: OwnedFd,
    pub(super) size: u64,
    /// None of a stream.
    pub(super) messages: Vec<UnixMessage>,
}

/// Longest message that is looked at.
const LONGEST: usize = 16 << 20;
const LOOK: RecvFlags =
    RecvFlags::PEEK.union(RecvFlags::DONTWAIT).union(RecvFlags::TRUNC).union(RecvFlags::CMSG_CLOEXEC);

/// Looks at what waits. `by_name` knows the sockets of the tree by address.
pub(super) fn peek(
    socket: &OwnedFd,
    details: &UnixSocket,
    by_name: &dyn Fn(&[u8]) -> Option<u64>,
) -> Result<Option<Waiting>> {
    let first = rustix::io::ioctl_fionread(socket).doing(|| "what waits in a socket".to_owned())?;
    if details.kind == SOCK_STREAM && first == 0 {
        return Ok(None);
    }
    if details.kind != SOCK_STREAM && has_error(socket)? {
        if first == 0 {
            return Ok(None);
        }
        return Err(Error::unsupported(
            "messages and an error wait in a unix socket: they cannot be carried yet",
        )
        .advice("checkpoint when the program has read them"));
    }
    let first = first as usize;
    let (bytes, messages) = if details.kind == SOCK_STREAM && details.peek_offset < 0 && first <= LONGEST {
        (look_at_once(socket, details, first)?, Vec::new())
    } else {
        Number::PeekOffset.set(socket, 0)?;
        let looked = look(socket, details, first, by_name);
        Number::PeekOffset.set(socket, details.peek_offset)?;
        looked?
    };
    if bytes.is_empty() && messages.is_empty() {
        return Ok(None);
    }
    let contents =
        rustix::fs::memfd_create("socket", MemfdFlags::CLOEXEC).doing(|| "memfd_create".to_owned())?;
    let mut contents = File::from(contents);
    contents.write_all(&bytes).and_then(|()| contents.rewind()).doing(|| "copy a socket".to_owned())?;
    Ok(Some(Waiting { contents: contents.into(), size: bytes.len() as u64, messages }))
}

/// All of a stream in which `len` bytes wait.
fn look_at_once(socket: &OwnedFd, details: &UnixSocket, len: usize) -> Result<Vec<u8>> {
    let mut room = vec![0; len];
    let mut none = RecvAncillaryBuffer::new(&mut []);
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut room)], &mut none, LOOK);
    let message = message.doing(|| "look at what waits in a socket".to_owned())?;
    refuse(message.flags, details)?;
    if message.bytes != len {
        let what = format!("only {} of {len} bytes that wait in a unix socket can be seen", message.bytes);
        return Err(Error::unsupported(what).advice("checkpoint when the program has read them").passing());
    }
    Ok(room)
}

/// All messages, or all of a stream whose program has set SO_PEEK_OFF itself.
fn look(
    socket: &OwnedFd,
    details: &UnixSocket,
    first: usize,
    by_name: &dyn Fn(&[u8]) -> Option<u64>,
) -> Result<(Vec<u8>, Vec<UnixMessage>)> {
    let (mut bytes, mut messages) = (Vec::new(), Vec::new());
    let mut room = vec![0; first.clamp(256 << 10, LONGEST)];
    loop {
        if details.kind == SOCK_STREAM && bytes.len() >= first {
            return Ok((bytes, messages));
        }
        let mut none = RecvAncillaryBuffer::new(&mut []);
        let message = match recvmsg(socket, &mut [IoSliceMut::new(&mut room)], &mut none, LOOK) {
            Err(Errno::AGAIN) => return Ok((bytes, messages)),
            other => other.doing(|| "look at what waits in a socket".to_owned())?,
        };
        refuse(message.flags, details)?;
        // A stream has nothing more, or a socket for packets is at its end.
        let ended = details.kind == SOCK_STREAM || details.shutdown & 1 != 0;
        if message.bytes == 0 && ended {
            return Ok((bytes, messages));
        }
        let sent = room.get(..message.bytes).ok_or_else(|| {
            Error::unsupported("a message that is too long waits in a unix socket")
                .advice("checkpoint when the program has read it")
        })?;
        bytes.extend_from_slice(sent);
        if details.kind == SOCK_STREAM {
            continue;
        }
        let address = message.address.and_then(|a| SocketAddrUnix::try_from(a).ok());
        let address = address.map(|a| match (a.path_bytes(), a.abstract_name()) {
            (Some(path), _) => path.to_vec(),
            (_, Some(name)) => [&[0], name].concat(),
            _ => Vec::new(),
        });
        let sender = sender(&address.unwrap_or_default(), details, by_name)?;
        messages.push(UnixMessage { sender, len: sent.len() as u32, pad: 0 });
    }
}

/// Who sent a message from `address`.
fn sender(address: &[u8], details: &UnixSocket, by_name: &dyn Fn(&[u8]) -> Option<u64>) -> Result<u64> {
    if address.is_empty() {
        return Ok(details.peer);
    }
    by_name(address).ok_or_else(|| {
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
