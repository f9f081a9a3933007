//! Terminals, pipes and sockets whose other end is outside.
//!
//! *Saved*: kind and name. *Restored*: descriptors 0, 1 and 2 of these kinds are the restarter's
//! own 0, 1 and 2; others come from `--inherit-fd`, or share the description of one that does.
//! *Lost*: what was in flight, which belongs to the outside. *Refused*: sockets without another
//! end (listening, not connected) and socket pairs made by the process itself. A pipe with both
//! ends inside is not outside at all: see `pipe.rs`.

use super::{Descriptor, FileKind, OpenContext};
use crate::{
    error::{Error, Result},
    objects::Objects,
};
use ckpt_image::{
    Image, Objref, model,
    record::{FileDesc, file_kind},
};
use rustix::{
    fs::{FileType, major},
    io::dup,
    net::sockopt,
};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};

/// A terminal.
pub(crate) struct Terminal;
/// A pipe or FIFO.
pub(crate) struct Pipe;
/// A socket.
pub(crate) struct Socket;

/// Majors of terminals: virtual consoles and serial ports, /dev/tty and console, ptys.
const TTY_MAJORS: [u32; 19] =
    [4, 5, 3, 136, 137, 138, 139, 140, 141, 142, 143, 204, 188, 166, 229, 207, 208, 205, 206];

/// Defines the kind's two directions: the record, and nothing to open.
macro_rules! external {
    ($name:ident, $kind:expr, $claims:expr, $outside:expr) => {
        impl FileKind for $name {
            fn kind(&self) -> u32 {
                $kind
            }

            fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
                let claims: fn(&Descriptor<'_>) -> bool = $claims;
                claims(descriptor)
            }

            fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
                let outside: fn(&Descriptor<'_>, &Objects) -> Result<()> = $outside;
                outside(descriptor, objects)?;
                Ok(descriptor.record($kind))
            }

            fn open(&self, _: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
                Ok(None)
            }
        }
    };
}

external!(
    Terminal,
    file_kind::EXTERNAL_TTY,
    |d| {
        // /dev/ptmx (5:2) is the master side: its terminal would be inside.
        d.file_type() == FileType::CharacterDevice
            && TTY_MAJORS.contains(&major(d.stat.st_rdev))
            && d.stat.st_rdev != rustix::fs::makedev(5, 2)
    },
    |_, _| Ok(())
);
external!(Pipe, file_kind::EXTERNAL_PIPE, |d| d.file_type() == FileType::Fifo, |_, _| Ok(()));
external!(Socket, file_kind::EXTERNAL_SOCKET, |d| d.file_type() == FileType::Socket, connected_to_outside);

/// Refuses sockets that have no other end, or have it inside.
fn connected_to_outside(descriptor: &Descriptor<'_>, objects: &Objects) -> Result<()> {
    let number = descriptor.name.strip_prefix("fd/").and_then(|n| n.parse().ok()).unwrap_or(-1);
    let socket = descriptor.process.descriptor(number)?;
    let refused = |what: &str| Err(Error::unsupported(format!("{what} cannot be carried yet")));
    if sockopt::socket_acceptconn(&socket).unwrap_or(false) {
        return refused("a listening socket");
    }
    if rustix::net::getpeername(&socket).is_err() {
        return refused("a socket that is not connected");
    }
    let inside = sockopt::socket_peercred(&socket)
        .is_ok_and(|c| objects.members.contains(&c.pid.as_raw_nonzero().get()));
    if inside && sockopt::socket_domain(&socket) == Ok(rustix::net::AddressFamily::UNIX) {
        return refused("a socket pair with both ends inside");
    }
    Ok(())
}

/// Whether a file comes from outside.
pub(crate) fn is_external(file: &model::File) -> bool {
    [file_kind::EXTERNAL_TTY, file_kind::EXTERNAL_PIPE, file_kind::EXTERNAL_SOCKET]
        .contains(&file.record.kind)
}

/// The descriptors that take the place of external ones, by the task's descriptor number.
pub(crate) fn inherit(
    image: &Image,
    table: &model::FileTable,
    given: &[(i32, OwnedFd)],
    park: &dyn Fn(OwnedFd) -> Result<OwnedFd>,
) -> Result<BTreeMap<i32, OwnedFd>> {
    let external: Vec<(&FileDesc, &model::File)> = table
        .descs
        .iter()
        .filter_map(|d| Some((d, image.file(d.file)?)))
        .filter(|(_, f)| is_external(f))
        .collect();
    if let Some((fd, _)) = given.iter().find(|(fd, _)| !external.iter().any(|(d, _)| d.fd == *fd)) {
        let what = format!("--inherit-fd {fd}: the image has no external descriptor {fd}");
        return Err(Error::failed(what).advice("`ckptinfo IMAGE` lists them"));
    }
    let mut sources: BTreeMap<i32, OwnedFd> = BTreeMap::new();
    let mut by_object: BTreeMap<Objref, i32> = BTreeMap::new();
    let keep = |fd: std::os::fd::BorrowedFd<'_>, number: i32| {
        let copy = dup(fd).map_err(|e| Error::os(format!("our own descriptor {number}"), e))?;
        park(copy)
    };
    for (desc, _) in &external {
        let own = match (given.iter().find(|(fd, _)| *fd == desc.fd), desc.fd) {
            (Some((_, fd)), _) => keep(fd.as_fd(), desc.fd)?,
            (None, 0) => keep(rustix::stdio::stdin(), 0)?,
            (None, 1) => keep(rustix::stdio::stdout(), 1)?,
            (None, 2) => keep(rustix::stdio::stderr(), 2)?,
            _ => continue,
        };
        sources.insert(desc.fd, own);
        by_object.entry(desc.file).or_insert(desc.fd);
    }
    for (desc, file) in &external {
        if sources.contains_key(&desc.fd) {
            continue;
        }
        let Some(twin) = by_object.get(&desc.file).and_then(|fd| sources.get(fd)) else {
            let what = format!("{} was connected to the outside", crate::task::show(&file.path));
            let advice = format!("give what takes its place with --inherit-fd {}=FD", desc.fd);
            return Err(Error::failed(what).object(format!("fd {}", desc.fd)).advice(advice));
        };
        let copy = keep(twin.as_fd(), desc.fd)?;
        sources.insert(desc.fd, copy);
    }
    Ok(sources)
}
