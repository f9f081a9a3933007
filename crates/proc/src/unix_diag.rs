//! Unix sockets as the kernel tells of them over netlink: sock_diag(7), `UNIX_DIAG`.

use crate::{ParseError, Problem};

/// NLMSG_DONE, NLMSG_ERROR, SOCK_DIAG_BY_FAMILY.
const DONE: u16 = 3;
const ERROR: u16 = 2;
const BY_FAMILY: u16 = 20;
/// `struct nlmsghdr`, `struct unix_diag_msg`.
const HEADER: usize = 16;
const MESSAGE: usize = 16;

/// One socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// Inode number; 0 of one that nobody has accepted yet.
    pub ino: u32,
    /// SOCK_*.
    pub kind: u8,
    /// Whether it listens.
    pub listening: bool,
    /// Its address: a path without its NUL, or an abstract name behind a zero; empty if it has none.
    pub name: Vec<u8>,
    /// Inode number of what it is connected to; 0 if that is closed, or not accepted yet.
    pub peer: Option<u32>,
    /// Bytes that wait in it; of one that listens: how many wait to be accepted.
    pub waiting: u32,
    /// Of one that listens: how many may.
    pub backlog: u32,
    /// Halves that are shut down: 1 receiving, 2 sending.
    pub shutdown: u8,
}

/// The request for all unix sockets of a network namespace, with name, peer and length of queues.
pub fn unix_request() -> Vec<u8> {
    /// NLM_F_REQUEST and NLM_F_DUMP.
    const FLAGS: u16 = 1 | 0x300;
    const AF_UNIX: u8 = 1;
    /// UDIAG_SHOW_NAME, PEER, RQLEN.
    const SHOW: u32 = 1 | 4 | 0x10;
    let len = HEADER as u32 + 24;
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend([BY_FAMILY, FLAGS].iter().flat_map(|half| half.to_le_bytes()));
    bytes.extend([1u32, 0].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend([AF_UNIX, 0, 0, 0]);
    // States: all; inode: any; cookie: any.
    bytes.extend([u32::MAX, 0, SHOW, u32::MAX, u32::MAX].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// Takes apart one datagram of the answer, adding what it tells to `sockets`. Gives whether it was the last.
///
/// # Errors
/// A message that is not whole, or says that the kernel refused.
pub fn parse_unix_diag(bytes: &[u8], sockets: &mut Vec<UnixSocket>) -> Result<bool, ParseError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let malformed = || ParseError { file: "sock_diag", line: 0, what: Problem::Malformed("a message") };
        let len = number(rest, 0).ok_or_else(malformed)? as usize;
        let message = rest.get(HEADER..len).ok_or_else(malformed)?;
        match half(rest, 4).ok_or_else(malformed)? {
            DONE => return Ok(true),
            ERROR => return Err(malformed()),
            BY_FAMILY => sockets.push(socket(message).ok_or_else(malformed)?),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn socket(message: &[u8]) -> Option<UnixSocket> {
    const TCP_LISTEN: u8 = 10;
    let mut socket = UnixSocket {
        ino: number(message, 4)?,
        kind: *message.get(1)?,
        listening: *message.get(2)? == TCP_LISTEN,
        ..UnixSocket::default()
    };
    let mut rest = message.get(MESSAGE..)?;
    while !rest.is_empty() {
        let (len, kind) = (usize::from(half(rest, 0)?), half(rest, 2)?);
        let value = rest.get(4..len)?;
        match kind {
            // UNIX_DIAG_NAME: a path comes with its NUL.
            0 => {
                let abstract_name = value.first() == Some(&0);
                let path = || value.split(|byte| *byte == 0).next().unwrap_or_default();
                socket.name = if abstract_name { value.to_vec() } else { path().to_vec() };
            }
            // UNIX_DIAG_PEER.
            2 => socket.peer = Some(number(value, 0)?),
            // UNIX_DIAG_RQLEN.
            4 => (socket.waiting, socket.backlog) = (number(value, 0)?, number(value, 4)?),
            // UNIX_DIAG_SHUTDOWN.
            6 => socket.shutdown = *value.first()?,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}
