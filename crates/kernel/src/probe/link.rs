//! Messages of netlink(7), as far as probes need them.

use super::errno;
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
};
use std::os::fd::OwnedFd;

/// NLM_F_REQUEST.
pub(super) const REQUEST: u16 = 1;
/// NLM_F_ACK.
pub(super) const ACK: u16 = 4;
/// NLM_F_DUMP.
pub(super) const DUMP: u16 = 0x300;
/// NLM_F_CREATE.
pub(super) const CREATE: u16 = 0x400;
/// NLMSG_ERROR.
const ERROR: u16 = 2;
/// NLMSG_DONE.
const DONE: u16 = 3;

/// A socket of netlink.
pub(super) struct Link(OwnedFd);

impl Link {
    pub(super) fn open(protocol: u32) -> Result<Link, Errno> {
        let protocol = rustix::net::RawProtocol::new(protocol).map(rustix::net::Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        let limit = Some(std::time::Duration::from_secs(5));
        rustix::net::sockopt::set_socket_timeout(&fd, rustix::net::sockopt::Timeout::Recv, limit)?;
        Ok(Link(fd))
    }

    /// Sends `messages`, one packet, and reads until one of them is answered: an answer other than an error, an
    /// acknowledgement, or the end of a list.
    pub(super) fn ask(&self, messages: &[u8]) -> Result<Vec<u8>, Errno> {
        rustix::net::send(&self.0, messages, SendFlags::empty())?;
        let mut buffer = vec![0; 64 << 10];
        let (got, _) = rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())?;
        buffer.truncate(got);
        let half =
            |at: usize| buffer.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
        let code = || buffer.get(16..20).and_then(|b| b.try_into().ok()).map_or(0, i32::from_le_bytes);
        match half(4) {
            ERROR if code() != 0 => Err(errno(&std::io::Error::from_raw_os_error(-code()))),
            DONE if code() < 0 => Err(errno(&std::io::Error::from_raw_os_error(-code()))),
            _ => Ok(buffer),
        }
    }
}

/// A message: its head, then `body`.
pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((16 + body.len() as u32).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend((flags | REQUEST).to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute, padded.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((4 + value.len() as u16).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
