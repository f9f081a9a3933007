//! Unix sockets that are not connected to the outside.
//!
//! **What the kernel knows.** A unix socket may have an address (a path, whose name in the file system bind(2) makes, or
//! an abstract name), may listen, and may be connected to another. One made by accept(2) has the address of the
//! one that listened. What is sent waits in the receiver. Who is connected to whom only sock_diag(7) tells.
//!
//! *Saved*: type, address, name (SIOCUNIXFILE, Linux 4.12), peer, halves that are shut down, backlog, options, and what waits,
//! by MSG_PEEK, which leaves it there: [`queue`]. *Restored*: names by the [`Scribe`], where a dead socket that this one
//! left behind makes place; pairs by socketpair(2), or by connect(2) and accept(2) where the one that listened is here; a peer
//! that is closed by one that is closed. *Refused*: a name below another root directory; after the freeze: connections that
//! nobody has accepted yet, descriptors and credentials on their way, what waits from a sender that is gone, filters.
//! *Lost*: SO_PEERCRED, which tells of `restart`; inode numbers; when what waits came (SO_TIMESTAMP); the address of one that was accepted by a socket that is gone,
//! when another has that now.
//! A connection to the outside is `external.rs`; but a socket for datagrams that only sends there (to /dev/log, say) is
//! connected again by address. *Lost*, with a warning: that it is, when nobody has that address any more.
//!
//! [`Scribe`]: crate::scribe::Scribe

mod make;
pub(crate) mod queue;

pub(crate) use make::{Sockets, collect, make, reserve, settle, taken};
use queue::Seen;

use super::{Descriptor, FileKind, OpenContext};
use crate::{
    advice::Means,
    error::{Context, Doing, Error, Result},
    objects::Objects,
    scribe::socket::Name,
    task::{Process, show},
};
use ckpt_image::{
    Object, Objref,
    model::{self, to_details},
    record::{self, UnixSocket, file_kind, inode_kind, unix_flags, unix_options},
};
use ckpt_kernel::{
    Errno,
    unix::{self, Number},
};
use ckpt_proc::{
    link::FdLink,
    unix_diag::{self, parse_unix_diag, unix_request},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FileType,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    time::Duration,
};

/// See the module.
pub(crate) struct Socket;

pub(crate) const SOCK_STREAM: u32 = 1;
pub(crate) const SOCK_DGRAM: u32 = 2;
pub(crate) const SOCK_SEQPACKET: u32 = 5;

/// Options that are on or off.
const SWITCHES: [(Number, u32); 16] = [
    (Number::PassCred, unix_options::PASSCRED),
    (Number::PassSec, unix_options::PASSSEC),
    (Number::PassPidfd, unix_options::PASSPIDFD),
    (Number::KeepAlive, unix_options::KEEPALIVE),
    (Number::ReuseAddress, unix_options::REUSEADDR),
    (Number::Broadcast, unix_options::BROADCAST),
    (Number::OobInline, unix_options::OOBINLINE),
    (Number::DontRoute, unix_options::DONTROUTE),
    (Number::Timestamp, unix_options::TIMESTAMP),
    (Number::TimestampNanos, unix_options::TIMESTAMPNS),
    (Number::TimestampNew, unix_options::TIMESTAMP_NEW),
    (Number::TimestampNanosNew, unix_options::TIMESTAMPNS_NEW),
    (Number::QueueOverflow, unix_options::RXQ_OVFL),
    (Number::SelectErrorQueue, unix_options::SELECT_ERR_QUEUE),
    (Number::LockFilter, unix_options::LOCK_FILTER),
    (Number::Inq, unix_options::INQ),
];

impl FileKind for Socket {
    fn kind(&self) -> u32 {
        file_kind::UNIX
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        descriptor.file_type() == FileType::Socket && !descriptor.is_place() && is_unix(descriptor)
    }

    /// Whether a peer is inside is known only when all descriptors are: see [`adopt`].
    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let connected = rustix::net::getpeername(descriptor.copy()?).is_ok();
        descriptor.record(if connected { file_kind::EXTERNAL_SOCKET } else { file_kind::UNIX })
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let socket = context.sockets.get(file.record.ino);
        let socket = socket.ok_or_else(|| Error::bad_image("a unix socket that is not made"))?;
        let fd = rustix::io::dup(socket).doing(|| "dup of a socket".to_owned())?;
        super::settle_flags(&fd, file)?;
        Ok(Some(fd))
    }
}

/// Whether a socket is a unix socket.
pub(super) fn is_unix(descriptor: &Descriptor<'_>) -> bool {
    descriptor.copy().is_ok_and(|copy| sockopt::socket_domain(copy) == Ok(AddressFamily::UNIX))
}

/// A socket of the tree: who has it, by which number, its file.
#[derive(Clone, Copy)]
struct Held<'a> {
    process: &'a Process,
    fd: i32,
    file: Objref,
    /// It is connected to something.
    connected: bool,
}

/// Makes the unix sockets that are not connected to the outside part of the image. `tables` are the tree's processes, with
/// the objrefs of their descriptor tables. Before they are `frozen` connections to the outside are refused if they are to
/// be, and that is all. What only processes of the tree can see is yet to be looked at.
pub(crate) fn adopt(
    tables: &[(&Process, Objref)],
    frozen: bool,
    objects: &mut Objects,
) -> Result<queue::Looks> {
    let mut looks = queue::Looks::default();
    if !objects.has_file(&[file_kind::UNIX, file_kind::EXTERNAL_SOCKET]) {
        return Ok(looks);
    }
    let held = sockets(tables, objects);
    let refused = objects.policy.refuses(|allowed| allowed.ext_unix_sk);
    if held.is_empty() || !frozen && !refused {
        return Ok(looks);
    }
    let all = diagnosis()?;
    let inside = inside(&held, &all);
    let outside = held.iter().find(|(ino, held)| held.connected && !inside.contains(ino));
    if let Some((_, held)) = outside.filter(|_| refused) {
        let error = Error::unsupported("a connected unix socket whose other end is outside the tree");
        let error = error.advice(Means::ExtUnixSk);
        return Err(error.object(format!("fd {}", held.fd)).task(held.process.label()));
    }
    if !frozen {
        return Ok(looks);
    }
    let mut adopted_ones = BTreeSet::new();
    for (ino, held) in &held {
        let to = if held.connected && !inside.contains(ino) { sends_to(*ino, &all) } else { None };
        if held.connected && !inside.contains(ino) && to.is_none() {
            continue;
        }
        adopted_ones.insert(*ino);
        let adopted = match all.get(ino) {
            Some(socket) => adopt_one(*held, socket, to, &mut looks, objects),
            None => {
                Err(Error::unsupported("a unix socket of another network namespace cannot be carried yet")
                    .advice("let the program close it"))
            }
        };
        adopted.object(|| format!("fd {}", held.fd)).task(|| held.process.label())?;
    }
    for (ino, socket) in all.into_iter().filter(|(ino, _)| adopted_ones.contains(ino)) {
        if !socket.name.is_empty() {
            looks.names.entry(socket.name).or_insert(ino);
        }
    }
    Ok(looks)
}

/// The sockets of the tree that may be unix sockets, by inode; one that was given a name is outside.
fn sockets<'a>(tables: &[(&'a Process, Objref)], objects: &Objects) -> BTreeMap<u64, Held<'a>> {
    let mut held = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (process, table) in tables.iter().filter(|(_, table)| seen.insert(*table)) {
        let Some(Object::Files(table)) = objects.table.get(table) else { continue };
        for desc in &table.descs {
            let Some(Object::File(file)) = objects.table.get(&desc.file) else { continue };
            let connected = file.record.kind == file_kind::EXTERNAL_SOCKET;
            if file.details.is_empty() && (connected || file.record.kind == file_kind::UNIX) {
                let new = Held { process, fd: desc.fd, file: desc.file, connected };
                held.entry(file.record.ino).or_insert(new);
            }
        }
    }
    held
}

/// Inode numbers of what sockets of our network namespace are connected to, by theirs.
pub(crate) fn peers() -> Result<BTreeMap<u64, u64>> {
    let peer = |(ino, socket): (u64, unix_diag::UnixSocket)| {
        Some((ino, socket.peer.filter(|peer| *peer != 0)?.into()))
    };
    Ok(diagnosis()?.into_iter().filter_map(peer).collect())
}

/// All unix sockets of our network namespace, by inode.
fn diagnosis() -> Result<BTreeMap<u64, unix_diag::UnixSocket>> {
    const ROOM: usize = 64 << 10;
    let doing = || "ask for unix sockets (sock_diag)".to_owned();
    let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
    let netlink = rustix::net::socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::SOCK_DIAG))
        .doing(doing)?;
    rustix::net::send(&netlink, &unix_request(), SendFlags::empty()).doing(doing)?;
    let (mut all, mut answer) = (Vec::new(), vec![0; ROOM]);
    loop {
        let (n, _) = rustix::net::recv(&netlink, answer.as_mut_slice(), RecvFlags::empty()).doing(doing)?;
        let last = parse_unix_diag(answer.get(..n).unwrap_or_default(), &mut all);
        if last.map_err(|e| Error::failed(doing()).why(e.to_string()))? {
            break;
        }
    }
    Ok(all.into_iter().map(|socket| (socket.ino.into(), socket)).collect())
}

/// Those of `held` that are connected to others of them, or to what is closed.
fn inside(held: &BTreeMap<u64, Held<'_>>, all: &BTreeMap<u64, unix_diag::UnixSocket>) -> BTreeSet<u64> {
    let is_known = |ino: &&u64| all.contains_key(*ino);
    let mut inside: BTreeSet<u64> = held.keys().filter(is_known).copied().collect();
    loop {
        let outside: Vec<u64> = inside
            .iter()
            .filter(|ino| match all.get(*ino).and_then(|socket| socket.peer.zip(Some(socket))) {
                Some((0, socket)) => !is_closed(socket),
                Some((peer, _)) => !inside.contains(&peer.into()),
                None => false,
            })
            .copied()
            .collect();
        if outside.is_empty() {
            return inside;
        }
        inside.retain(|ino| !outside.contains(ino));
    }
}

/// Where a socket for datagrams sends to, if that has an address and does not send back.
fn sends_to(ino: u64, all: &BTreeMap<u64, unix_diag::UnixSocket>) -> Option<&[u8]> {
    let socket = all.get(&ino).filter(|socket| u32::from(socket.kind) == SOCK_DGRAM)?;
    let peer = all.get(&socket.peer?.into()).filter(|peer| peer.peer != Some(socket.ino))?;
    Some(peer.name.as_slice()).filter(|name| matches!(name, [b'/' | 0, ..]))
}

/// Whether what a socket is connected to is closed; else nobody has accepted it yet.
fn is_closed(socket: &unix_diag::UnixSocket) -> bool {
    socket.peer == Some(0) && (socket.shutdown == 3 || u32::from(socket.kind) == SOCK_DGRAM)
}

fn adopt_one(
    held: Held<'_>,
    socket: &unix_diag::UnixSocket,
    to: Option<&[u8]>,
    looks: &mut queue::Looks,
    objects: &mut Objects,
) -> Result<()> {
    if socket.listening && socket.waiting != 0 {
        let what = format!("{} connections to a unix socket are not accepted yet", socket.waiting);
        return Err(Error::unsupported(what)
            .advice("checkpoint when the program has accepted them")
            .passing());
    }
    let copy = held.process.descriptor(held.fd)?;
    if unix::has_filter(&copy)? {
        return Err(Error::unsupported(
            "a unix socket with a filter (SO_ATTACH_FILTER) cannot be carried yet",
        )
        .advice("let the program detach it"));
    }
    let mut details = record::UnixSocket {
        kind: socket.kind.into(),
        shutdown: socket.shutdown.into(),
        peer: socket.peer.filter(|_| to.is_none()).unwrap_or(0).into(),
        ..options(&copy)?
    };
    details.flags |= if socket.listening { unix_flags::LISTENING } else { 0 };
    details.backlog = if socket.listening { socket.backlog } else { 0 };
    if is_closed(socket) {
        details.flags |= unix_flags::CLOSED | if has_error(&copy)? { unix_flags::RESET } else { 0 };
    }
    let long = || Error::failed("a unix socket of a longer address than there are");
    details = details.with_address(&socket.name).ok_or_else(long)?;
    details.flags |= if to.is_some() { unix_flags::OUTSIDE } else { 0 };
    let to = to.map(|to| UnixSocket::default().with_address(to).ok_or_else(long)).transpose()?;
    let inode = name(&copy, &mut details)?;
    let seen = if socket.listening { Seen::Nothing } else { queue::look(&copy, &details)? };
    let Some(Object::File(file)) = objects.table.get(&held.file) else { return Ok(()) };
    let identity = (file.record.dev, file.record.ino);
    let is_named = !inode.path.is_empty();
    let objref = if is_named { objects.inode(identity, || Object::Inode(inode)).0 } else { 0 };
    if let Some(Object::File(file)) = objects.table.get_mut(&held.file) {
        file.record.kind = file_kind::UNIX;
        file.record.inode = objref;
        file.details = to_details(&[Some(details), to].into_iter().flatten().collect::<Vec<_>>());
    }
    match seen {
        Seen::Nothing => {}
        Seen::All(waiting) => queue::keep(held.file, waiting, objects)?,
        Seen::Some => {
            let (pid, fd, file) = (held.process.pid, held.fd, held.file);
            looks.looks.push(queue::Look { pid, fd, file, details });
        }
    }
    Ok(())
}

/// What getsockopt(2) tells.
fn options(socket: &OwnedFd) -> Result<UnixSocket> {
    let micros = |id| {
        let timeout = sockopt::socket_timeout(socket, id).doing(|| "the timeout of a socket".to_owned())?;
        Ok::<u64, Error>(timeout.unwrap_or(Duration::ZERO).as_micros() as u64)
    };
    let mut options = 0;
    for (switch, bit) in SWITCHES {
        options |= if switch.get(socket).unwrap_or(0) != 0 { bit } else { 0 };
    }
    // It is on in a new socket.
    options |=
        if Number::PassRights.get(socket).is_ok_and(|on| on == 0) { unix_options::NO_RIGHTS } else { 0 };
    let linger = sockopt::socket_linger(socket).doing(|| "SO_LINGER".to_owned())?;
    Ok(UnixSocket {
        options,
        send_buffer: Number::SendBuffer.get(socket)? as u32,
        receive_buffer: Number::ReceiveBuffer.get(socket)? as u32,
        low_water: Number::LowWater.get(socket)? as u32,
        peek_offset: Number::PeekOffset.get(socket)?,
        linger: linger.map_or(-1, |time| time.as_secs() as i32),
        priority: Number::Priority.get(socket)? as u32,
        mark: Number::Mark.get(socket)? as u32,
        receive_timeout: micros(sockopt::Timeout::Recv)?,
        send_timeout: micros(sockopt::Timeout::Send)?,
        ..UnixSocket::default()
    })
}

/// Whether an error waits for whoever uses a socket next; asking leaves it there.
fn has_error(socket: &OwnedFd) -> Result<bool> {
    Ok(polled(socket)?.contains(PollFlags::ERR))
}

/// What poll(2) says of a socket.
fn polled(socket: &OwnedFd) -> Result<PollFlags> {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).doing(|| "poll a socket".to_owned())?;
    let [polled] = polled;
    Ok(polled.revents())
}

/// The inode of a socket: its name in the file system, if it has one; the rest of it is put into its details.
fn name(socket: &OwnedFd, details: &mut UnixSocket) -> Result<model::Inode> {
    let mut inode = model::Inode::default();
    inode.record.kind = inode_kind::UNIX;
    if details.address().first().is_none_or(|byte| *byte == 0) {
        return Ok(inode);
    }
    let place = match unix::name(socket) {
        Err(e) if e.errno() == Some(Errno::NOENT) => return Ok(inode),
        other => other?,
    };
    let stat = rustix::fs::fstat(&place).doing(|| "stat the name of a socket".to_owned())?;
    let link = ckpt_kernel::procfs::link(&place).doing(|| "the name of a socket".to_owned())?;
    let path = match FdLink::parse(&link) {
        FdLink::Path { path, .. } => path.to_vec(),
        _ => link.clone(),
    };
    let there =
        rustix::fs::lstat(path.as_slice()).is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino));
    (details.name_dev, details.name_ino) = (stat.st_dev, stat.st_ino);
    (details.name_mtime_sec, details.name_mtime_nsec) = (stat.st_mtime, stat.st_mtime_nsec as u32);
    details.flags |= if there { 0 } else { unix_flags::REMOVED };
    (inode.record.mode, inode.record.uid, inode.record.gid) = (stat.st_mode, stat.st_uid, stat.st_gid);
    inode.path = path;
    let known = wanted(details, &inode);
    let absolute = details.address().starts_with(b"/");
    let leads =
        rustix::fs::stat(details.address()).is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino));
    if there && if absolute { !leads } else { known.base().is_none() } {
        let what = format!(
            "the unix socket {} has another path ({}) as its address",
            show(&inode.path),
            show(details.address())
        );
        let why = "it was bound below another root directory, or through links from its working directory";
        return Err(Error::unsupported(what).why(why).advice("let the program close it"));
    }
    Ok(inode)
}

/// The name that a socket is to have.
fn wanted<'a>(details: &'a UnixSocket, inode: &'a model::Inode) -> Name<'a> {
    Name {
        path: &inode.path,
        address: details.address(),
        mode: inode.record.mode,
        uid: inode.record.uid,
        gid: inode.record.gid,
        mtime: (details.name_mtime_sec, details.name_mtime_nsec),
        dev_ino: (details.name_dev, details.name_ino),
    }
}
