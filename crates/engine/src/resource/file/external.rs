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
    Image, Object, Objref, model,
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

/// What takes the place of external descriptors.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// Descriptors of ours.
    sources: Vec<OwnedFd>,
    /// Which of them, by descriptor table and number in it.
    places: BTreeMap<(Objref, i32), usize>,
    /// Which of them, by file.
    by_object: BTreeMap<Objref, usize>,
}

impl Inherited {
    /// What takes the place of descriptor `fd` of a table.
    pub(crate) fn get(&self, table: Objref, fd: i32) -> Option<&OwnedFd> {
        self.places.get(&(table, fd)).and_then(|source| self.sources.get(*source))
    }

    /// What takes the place of a file, wherever it is.
    pub(crate) fn of(&self, file: Objref) -> Option<&OwnedFd> {
        self.by_object.get(&file).and_then(|source| self.sources.get(*source))
    }
}

/// An external descriptor: its table, itself, its file.
type External<'a> = (Objref, &'a FileDesc, &'a model::File);

/// Finds what takes the place of all external descriptors of an image.
pub(crate) fn inherit(
    image: &Image,
    given: &[(i32, OwnedFd)],
    park: &dyn Fn(OwnedFd) -> Result<OwnedFd>,
) -> Result<Inherited> {
    let tables = image.objects.iter().filter_map(|(objref, object)| match object {
        Object::Files(table) => Some((*objref, table)),
        _ => None,
    });
    let external: Vec<External<'_>> = tables
        .flat_map(|(objref, table)| table.descs.iter().map(move |desc| (objref, desc)))
        .filter_map(|(objref, desc)| Some((objref, desc, image.file(desc.file)?)))
        .filter(|(.., file)| is_external(file))
        .collect();
    if let Some((fd, _)) = given.iter().find(|(fd, _)| !external.iter().any(|(_, d, _)| d.fd == *fd)) {
        let what = format!("--inherit-fd {fd}: the image has no external descriptor {fd}");
        return Err(Error::failed(what).advice("`ckptinfo IMAGE` lists them"));
    }
    let mut inherited = Inherited::default();
    let mut by_number: BTreeMap<i32, usize> = BTreeMap::new();
    for (table, desc, _) in &external {
        let own = match (given.iter().find(|(fd, _)| *fd == desc.fd), desc.fd) {
            (Some((_, fd)), _) => fd.as_fd(),
            (None, 0) => rustix::stdio::stdin(),
            (None, 1) => rustix::stdio::stdout(),
            (None, 2) => rustix::stdio::stderr(),
            _ => continue,
        };
        let source = match by_number.get(&desc.fd) {
            Some(source) => *source,
            None => {
                let copy =
                    dup(own).map_err(|e| Error::os(format!("our own descriptor for {}", desc.fd), e))?;
                inherited.sources.push(park(copy)?);
                inherited.sources.len() - 1
            }
        };
        by_number.insert(desc.fd, source);
        inherited.by_object.entry(desc.file).or_insert(source);
        inherited.places.insert((*table, desc.fd), source);
    }
    for (table, desc, file) in &external {
        let place = (*table, desc.fd);
        if inherited.places.contains_key(&place) {
            continue;
        }
        let Some(twin) = inherited.by_object.get(&desc.file).copied() else {
            let what = format!("{} was connected to the outside", crate::task::show(&file.path));
            let advice = format!("give what takes its place with --inherit-fd {}=FD", desc.fd);
            return Err(Error::failed(what).object(format!("fd {}", desc.fd)).advice(advice));
        };
        inherited.places.insert(place, twin);
    }
    Ok(inherited)
}
