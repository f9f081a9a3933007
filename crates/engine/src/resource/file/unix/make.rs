//! Unix sockets, made again.

use super::{SOCK_DGRAM, SOCK_STREAM, SWITCHES, queue};
use crate::{
    error::{Context, Doing, Error, Result},
    options::Observer,
    resource::file::{Made, detail, rights::Holders},
    scribe::{
        Scribe,
        socket::{is_taken, to_address},
    },
    task::show,
};
use ckpt_image::{
    Image, Object, Objref,
    model::{self, details},
    record::{UnixMessage, UnixSocket, file_kind, inode_kind, unix_flags, unix_options},
};
use ckpt_kernel::{
    Errno,
    unix::{self, Number},
};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, socket_with, socketpair, sockopt,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::PoisonError,
    time::Duration,
};

/// The sockets of an image, by the inode they had.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    made: BTreeMap<u64, OwnedFd>,
    /// What takes the place of peers that were closed, until what they had sent is there.
    peers: BTreeMap<u64, OwnedFd>,
}

impl Sockets {
    /// That of one inode.
    pub(crate) fn get(&self, ino: u64) -> Option<&OwnedFd> {
        self.made.get(&ino)
    }
}

/// One socket of an image.
struct Wanted<'a> {
    objref: Objref,
    file: &'a model::File,
    socket: UnixSocket,
    inode: Option<&'a model::Inode>,
}

/// The unix sockets of an image, by inode.
fn all(image: &Image) -> Result<BTreeMap<u64, Wanted<'_>>> {
    let mut all = BTreeMap::new();
    for (objref, object) in &image.objects {
        let Object::File(file) = object else { continue };
        if file.record.kind == file_kind::UNIX {
            let objref = *objref;
            let wanted =
                Wanted { objref, file, socket: detail(file)?, inode: image.inode(file.record.inode) };
            all.insert(file.record.ino, wanted);
        }
    }
    Ok(all)
}

/// Whether a program has the address of a socket of an image, which may be the original.
pub(crate) fn taken(image: &Image) -> bool {
    let bound = |wanted: &Wanted<'_>| {
        let address = match wanted.inode {
            // The address may lead there from elsewhere.
            Some(inode) if !inode.path.is_empty() => place(&inode.path).ok(),
            _ => Some((wanted.socket.address().to_vec(), None)),
        };
        let address = address.filter(|(address, _)| !address.is_empty());
        !wanted.socket.is(unix_flags::REMOVED)
            && address.is_some_and(|(address, _place)| is_taken(&address) == Ok(true))
    };
    all(image).is_ok_and(|all| all.values().any(bound))
}

/// An address that leads to a path, which may be longer than addresses are, for as long as that is kept open.
fn place(path: &[u8]) -> Result<(Vec<u8>, Option<OwnedFd>), Errno> {
    if path.len() < UnixSocket::MAX_ADDRESS {
        return Ok((path.to_vec(), None));
    }
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    Ok((format!("/proc/self/fd/{}", place.as_raw_fd()).into_bytes(), Some(place)))
}

/// Makes all unix sockets of an image.
pub(crate) fn make(
    image: &Image,
    scribe: &Scribe,
    park: &dyn Fn(OwnedFd) -> Result<OwnedFd>,
) -> Result<Sockets> {
    let all = all(image)?;
    let mut making = Making { all: &all, scribe, park, sockets: Sockets::default(), bound: BTreeSet::new() };
    // Others may be accepted by these.
    for (ino, wanted) in all.iter().filter(|(_, wanted)| wanted.socket.is(unix_flags::LISTENING)) {
        making.listen(*ino, wanted).object(|| show(&wanted.file.path))?;
    }
    for (ino, wanted) in &all {
        if !making.sockets.made.contains_key(ino) {
            making.one(*ino, wanted).object(|| show(&wanted.file.path))?;
        }
    }
    making.one_way()?;
    Ok(making.sockets)
}

struct Making<'a> {
    all: &'a BTreeMap<u64, Wanted<'a>>,
    scribe: &'a Scribe,
    park: &'a dyn Fn(OwnedFd) -> Result<OwnedFd>,
    sockets: Sockets,
    /// Addresses that are in use: those of sockets that accept are those of who listens.
    bound: BTreeSet<Vec<u8>>,
}

fn new(kind: u32) -> Result<OwnedFd> {
    let made = socket_with(AddressFamily::UNIX, SocketType::from_raw(kind), SocketFlags::CLOEXEC, None);
    made.doing(|| "make a unix socket".to_owned())
}

impl<'a> Making<'a> {
    fn keep(&mut self, ino: u64, socket: OwnedFd) -> Result<()> {
        let socket = (self.park)(socket)?;
        self.sockets.made.insert(ino, socket);
        Ok(())
    }

    /// Gives a socket its address, if no other has it.
    fn bind(&mut self, socket: &OwnedFd, wanted: &Wanted<'_>) -> Result<()> {
        let address = wanted.socket.address();
        if address.is_empty() || !self.bound.insert(address.to_vec()) {
            return Ok(());
        }
        match wanted.inode.filter(|inode| !inode.path.is_empty()) {
            Some(inode) => {
                let lasting = !wanted.socket.is(unix_flags::REMOVED);
                self.scribe.bind(socket.as_fd(), &super::wanted(&wanted.socket, inode), lasting)
            }
            None => {
                let bound = to_address(address).and_then(|address| rustix::net::bind(socket, &address));
                bound.map_err(|e| {
                    let error = Error::os(format!("the address {} of a unix socket", show(address)), e);
                    error.advice("end the program that has it")
                })
            }
        }
    }

    fn listen(&mut self, ino: u64, wanted: &Wanted<'_>) -> Result<()> {
        let socket = new(wanted.socket.kind)?;
        self.bind(&socket, wanted)?;
        let backlog = i32::try_from(wanted.socket.backlog).unwrap_or(i32::MAX);
        rustix::net::listen(&socket, backlog).doing(|| "listen".to_owned())?;
        self.keep(ino, socket)
    }

    /// One that does not listen, and its peer if they are a pair.
    fn one(&mut self, ino: u64, wanted: &Wanted<'a>) -> Result<()> {
        let all = self.all;
        let peer =
            all.get(&wanted.socket.peer).filter(|peer| peer.socket.peer == ino && ino != wanted.socket.peer);
        if let Some(peer) = peer {
            let (a, b) = self.pair(wanted, peer)?;
            self.keep(ino, a)?;
            return self.keep(wanted.socket.peer, b);
        }
        if wanted.socket.peer != 0 && wanted.socket.kind != SOCK_DGRAM {
            return Err(Error::bad_image("a unix socket is connected to one that is not connected to it"));
        }
        if wanted.socket.is(unix_flags::CLOSED) {
            let (socket, peer) = two(wanted.socket.kind)?;
            self.bind(&socket, wanted)?;
            let peer = (self.park)(peer)?;
            self.sockets.peers.insert(ino, peer);
            return self.keep(ino, socket);
        }
        let socket = new(wanted.socket.kind)?;
        self.bind(&socket, wanted)?;
        self.keep(ino, socket)
    }

    /// Two that are connected to each other.
    fn pair(&mut self, a: &Wanted<'_>, b: &Wanted<'_>) -> Result<(OwnedFd, OwnedFd)> {
        if let Some(listening) = self.who_accepted(b) {
            return self.accepted(a, listening);
        }
        if let Some(listening) = self.who_accepted(a) {
            return self.accepted(b, listening).map(|(b, a)| (a, b));
        }
        let (one, other) = two(a.socket.kind)?;
        self.bind(&one, a)?;
        self.bind(&other, b)?;
        Ok((one, other))
    }

    /// The inode of the socket that has accepted one: it has its address.
    fn who_accepted(&self, wanted: &Wanted<'_>) -> Option<u64> {
        let address = wanted.socket.address();
        let accepts = |other: &UnixSocket| {
            other.is(unix_flags::LISTENING) && other.kind == wanted.socket.kind && other.address() == address
        };
        let found = self.all.iter().find(|(_, other)| accepts(&other.socket));
        found.filter(|_| !address.is_empty()).map(|(ino, _)| *ino)
    }

    /// Connects to a socket that listens, and accepts that.
    fn accepted(&mut self, wanted: &Wanted<'_>, listening: u64) -> Result<(OwnedFd, OwnedFd)> {
        let socket = new(wanted.socket.kind)?;
        self.bind(&socket, wanted)?;
        let listening = self.sockets.get(listening).ok_or_else(|| Error::bad_image("nobody listens"))?;
        connect(&socket, listening)?;
        let accepted = rustix::net::accept_with(listening, SocketFlags::CLOEXEC);
        Ok((socket, accepted.doing(|| "accept".to_owned())?))
    }

    /// Connects sockets for datagrams to those that are not connected to them.
    fn one_way(&self) -> Result<()> {
        for (ino, wanted) in self.all {
            let mutual = |peer: &Wanted<'_>| peer.socket.peer == *ino && wanted.socket.peer != *ino;
            let lonely = self.all.get(&wanted.socket.peer).is_some_and(|peer| !mutual(peer));
            if let Some((socket, peer)) = self.sockets.get(*ino).zip(self.sockets.get(wanted.socket.peer))
                && lonely
            {
                connect(socket, peer).object(|| show(&wanted.file.path))?;
            }
        }
        Ok(())
    }
}

fn two(kind: u32) -> Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::from_raw(kind), SocketFlags::CLOEXEC, None);
    pair.doing(|| "make a pair of sockets".to_owned())
}

/// A way to a socket: its address, or, as that may lead to it no more, the place it is bound to.
fn way(to: &OwnedFd) -> Result<(SocketAddrUnix, Option<OwnedFd>)> {
    let doing = || "the address of a socket".to_owned();
    let own = rustix::net::getsockname(to).doing(doing)?;
    let own = SocketAddrUnix::try_from(own).doing(doing)?;
    if own.path_bytes().is_none() {
        return Ok((own, None));
    }
    let place = unix::name(to)?;
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    Ok((SocketAddrUnix::new(path).doing(doing)?, Some(place)))
}

fn connect(socket: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let (address, _place) = way(to)?;
    rustix::net::connect(socket, &address).doing(|| "connect a unix socket".to_owned())
}

/// Sends what waited, then gives sockets what ends the talk: halves that are shut down, peers that are closed; and their options,
/// that may have been in the way. Those connected to the outside are so with the rights of who has them.
pub(crate) fn settle(
    image: &Image,
    sockets: &mut Sockets,
    inodes: &BTreeMap<Objref, Made>,
    holders: &Holders,
    observer: &mut dyn Observer,
) -> Result<()> {
    let all = all(image)?;
    for (ino, wanted) in &all {
        fill(*ino, wanted, sockets, inodes).object(|| show(&wanted.file.path))?;
    }
    for (ino, wanted) in all.iter().filter(|(_, wanted)| wanted.socket.is(unix_flags::OUTSIDE)) {
        let to = details::<UnixSocket>(&wanted.file.details).unwrap_or_default();
        let Some((socket, to)) = sockets.get(*ino).zip(to.get(1)) else { continue };
        let connect = || to_address(to.address()).and_then(|to| rustix::net::connect(socket, &to));
        let connected = match holders.get(&wanted.objref).and_then(Option::as_ref) {
            Some(rights) => rights.lend(connect)?,
            None => connect(),
        };
        if let Err(error) = connected {
            let (own, to) = (show(&wanted.file.path), show(to.address()));
            observer.warn(&format!("{own} was connected to {to}, and is not any more: {error}"));
        }
    }
    for (ino, wanted) in &all {
        let Some(socket) = sockets.get(*ino) else { continue };
        end(socket, &wanted.socket, sockets.peers.get(ino)).object(|| show(&wanted.file.path))?;
    }
    // The puppets' copies go when their descriptors take their places.
    sockets.peers.clear();
    sockets.made.clear();
    Ok(())
}

fn fill(ino: u64, wanted: &Wanted<'_>, sockets: &Sockets, inodes: &BTreeMap<Objref, Made>) -> Result<()> {
    const ROOM: i32 = 1 << 28;
    let Some(inode) = wanted.inode else { return Ok(()) };
    let Some(made) = inodes.get(&wanted.file.record.inode) else { return Ok(()) };
    let known = made.packets.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() as u64 != inode.record.size {
        return Err(Error::bad_image("a unix socket holds less than was said"));
    }
    let peer = if wanted.socket.is(unix_flags::CLOSED) {
        sockets.peers.get(&ino)
    } else {
        sockets.get(wanted.socket.peer)
    };
    let roomy = |sender: &OwnedFd| {
        // Without CAP_NET_ADMIN as much as the system allows.
        if Number::SendBufferForce.set(sender, ROOM).is_err() {
            let _ = Number::SendBuffer.set(sender, ROOM);
        }
    };
    if wanted.socket.kind == SOCK_STREAM {
        let Some(sender) = peer.filter(|_| !known.is_empty()) else { return Ok(()) };
        roomy(sender);
        return queue::send(sender, &known, false, None);
    }
    let mut rest = known.as_slice();
    for message in details::<UnixMessage>(&inode.details).unwrap_or_default() {
        let (data, later) = rest.split_at_checked(message.len as usize).unwrap_or_default();
        rest = later;
        let nameless;
        let sender = match (message.sender == wanted.socket.peer, sockets.get(message.sender)) {
            (true, _) if peer.is_some() => peer,
            (_, Some(sender)) => Some(sender),
            _ => {
                nameless = new(wanted.socket.kind)?;
                Some(&nameless)
            }
        };
        let Some(sender) = sender else { continue };
        roomy(sender);
        let connected = peer.is_some_and(|peer| std::ptr::eq(peer, sender));
        let receiver = sockets.get(ino).filter(|_| !connected).map(way).transpose()?;
        queue::send(sender, data, true, receiver.as_ref().map(|(address, _)| address))?;
    }
    Ok(())
}

fn end(socket: &OwnedFd, wanted: &UnixSocket, peer: Option<&OwnedFd>) -> Result<()> {
    let set = |number: Number, value: u32| number.set(socket, value as i32);
    if let (true, Some(_)) = (wanted.is(unix_flags::RESET), peer) {
        // Closed before this is read, the peer tells.
        queue::send(socket, b".", true, None)?;
    }
    for (force, number, value) in [
        (Number::SendBufferForce, Number::SendBuffer, wanted.send_buffer),
        (Number::ReceiveBufferForce, Number::ReceiveBuffer, wanted.receive_buffer),
    ] {
        if number.get(socket)? as u32 != value && set(force, value / 2).is_err() {
            set(number, value / 2)?;
        }
    }
    for (switch, _) in SWITCHES.iter().filter(|(_, bit)| wanted.options & bit != 0) {
        set(*switch, 1)?;
    }
    if wanted.options & unix_options::NO_RIGHTS != 0 {
        set(Number::PassRights, 0)?;
    }
    // Which some values need a capability for, and hardly a socket has.
    for (number, value) in [(Number::Priority, wanted.priority), (Number::Mark, wanted.mark)] {
        if value != 0 {
            set(number, value)?;
        }
    }
    set(Number::LowWater, wanted.low_water)?;
    set(Number::PeekOffset, wanted.peek_offset as u32)?;
    let doing = || "set an option of a unix socket".to_owned();
    if let Ok(seconds) = u64::try_from(wanted.linger) {
        sockopt::set_socket_linger(socket, Some(Duration::from_secs(seconds))).doing(doing)?;
    }
    for (id, micros) in
        [(sockopt::Timeout::Recv, wanted.receive_timeout), (sockopt::Timeout::Send, wanted.send_timeout)]
    {
        if micros != 0 {
            sockopt::set_socket_timeout(socket, id, Some(Duration::from_micros(micros))).doing(doing)?;
        }
    }
    let how = match wanted.shutdown {
        _ if wanted.is(unix_flags::CLOSED) && wanted.kind != SOCK_DGRAM => return Ok(()),
        0 => return Ok(()),
        1 => Shutdown::Read,
        2 => Shutdown::Write,
        _ => Shutdown::Both,
    };
    match rustix::net::shutdown(socket, how) {
        // Its peer has ended it already.
        Err(Errno::NOTCONN) => Ok(()),
        other => other.doing(|| "shut a socket down".to_owned()),
    }
}

/// What the contents of an inode are kept in until all of them are known.
pub(crate) fn reserve(inode: &model::Inode) -> Result<Option<Made>> {
    if inode.record.kind != inode_kind::UNIX || inode.record.size == 0 && inode.details.is_empty() {
        return Ok(None);
    }
    new(SOCK_STREAM).map(|placeholder| Some(Made::new(placeholder)))
}

/// Keeps a part of what waited.
pub(crate) fn collect(made: &Made, data: &[u8]) {
    made.packets.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
}
