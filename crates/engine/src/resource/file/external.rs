//! Terminals, pipes and sockets whose other end is outside.
//!
//! *Saved*: kind and name; of a terminal its settings and window. *Restored*: descriptors 0, 1 and 2 of
//! these kinds are the restarter's own 0, 1 and 2; others come from `--inherit-fd`, or share the description
//! of one that does. Of a terminal any other number becomes the restarter's terminal, too: the one that took
//! the place of the same terminal at 0, 1 or 2, else any of those that is one; of /dev/tty the restarter's
//! own. Its settings: see `terminal.rs`. *Lost*: what was in flight, which belongs to the outside. *Refused*:
//! sockets without another end (listening, not connected) and socket pairs made by the process itself. A pipe
//! with both ends inside is not outside at all: see `pipe.rs`; a terminal whose master is inside: `pty.rs`.

use super::{Descriptor, FileKind, OpenContext, pty};
use crate::{
    error::{Error, Result},
    objects::Objects,
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{FileDesc, Tty, file_kind},
};
use ckpt_kernel::{Errno, procfs, tty};
use rustix::{
    fs::{FileType, Mode, OFlags, major, minor},
    io::dup,
    net::sockopt,
};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};
use zerocopy::IntoBytes;

/// A terminal.
pub(crate) struct Terminal;
/// A pipe or FIFO.
pub(crate) struct Pipe;
/// A socket.
pub(crate) struct Socket;

/// Majors of terminals: virtual consoles and serial ports, /dev/tty and console, ptys.
const TTY_MAJORS: [u32; 19] =
    [4, 5, 3, 136, 137, 138, 139, 140, 141, 142, 143, 204, 188, 166, 229, 207, 208, 205, 206];

impl FileKind for Terminal {
    fn kind(&self) -> u32 {
        file_kind::EXTERNAL_TTY
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        // Masters and /dev/tty have kinds of their own.
        is_terminal(descriptor)
            && ![(5, 0), (5, 2)].contains(&(major(descriptor.stat.st_rdev), minor(descriptor.stat.st_rdev)))
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        match tty::settings(copy(descriptor)?) {
            Ok(settings) => {
                pty::refuse_discipline(&settings)?;
                let details = settings.as_bytes().to_vec();
                Ok(model::File { details, ..descriptor.record(file_kind::EXTERNAL_TTY) })
            }
            Err(e) if e.errno() == Some(Errno::IO) && major(descriptor.stat.st_rdev) == pty::SLAVE_MAJOR => {
                Ok(pty::hung_up(descriptor, objects))
            }
            Err(_) => Ok(descriptor.record(file_kind::EXTERNAL_TTY)),
        }
    }

    fn open(&self, _: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
}

/// Whether it is a terminal, or makes one.
pub(crate) fn is_terminal(descriptor: &Descriptor<'_>) -> bool {
    descriptor.file_type() == FileType::CharacterDevice
        && TTY_MAJORS.contains(&major(descriptor.stat.st_rdev))
}

/// A copy of a descriptor that is being looked at.
pub(crate) fn copy(descriptor: &Descriptor<'_>) -> Result<OwnedFd> {
    let number = descriptor.name.strip_prefix("fd/").and_then(|n| n.parse().ok()).unwrap_or(-1);
    descriptor.process.descriptor(number)
}

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

external!(Pipe, file_kind::EXTERNAL_PIPE, |d| d.file_type() == FileType::Fifo, |_, _| Ok(()));
external!(Socket, file_kind::EXTERNAL_SOCKET, |d| d.file_type() == FileType::Socket, connected_to_outside);

/// Refuses sockets that have no other end, or have it inside.
fn connected_to_outside(descriptor: &Descriptor<'_>, objects: &Objects) -> Result<()> {
    let socket = copy(descriptor)?;
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
    match file.record.kind {
        file_kind::EXTERNAL_TTY | file_kind::EXTERNAL_PIPE | file_kind::EXTERNAL_SOCKET => true,
        file_kind::TTY_CURRENT => file.record.inode == 0,
        _ => false,
    }
}

/// What takes the place of external descriptors.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// Descriptors of ours.
    sources: Vec<OwnedFd>,
    /// Which of them, by descriptor table and number in it.
    places: BTreeMap<(Objref, i32), usize>,
}

impl Inherited {
    /// What takes the place of descriptor `fd` of a table.
    pub(crate) fn get(&self, table: Objref, fd: i32) -> Option<&OwnedFd> {
        self.places.get(&(table, fd)).and_then(|source| self.sources.get(*source))
    }

    /// Those that take the place of terminals, each with the settings that one had.
    pub(crate) fn terminals<'a>(&'a self, image: &'a Image) -> impl Iterator<Item = (&'a OwnedFd, Tty)> {
        self.places.iter().filter_map(|((table, fd), source)| {
            let desc = image.files(*table)?.descs.iter().find(|desc| desc.fd == *fd)?;
            let settings = model::details::<Tty>(&image.file(desc.file)?.details)?;
            Some((self.sources.get(*source)?, *settings.first()?))
        })
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
    let mut inherited = Inherited { sources: Vec::new(), places: BTreeMap::new() };
    let mut by_number: BTreeMap<i32, usize> = BTreeMap::new();
    let mut by_object: BTreeMap<Objref, usize> = BTreeMap::new();
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
        by_object.entry(desc.file).or_insert(source);
        inherited.places.insert((*table, desc.fd), source);
    }
    for (table, desc, file) in &external {
        let place = (*table, desc.fd);
        if inherited.places.contains_key(&place) {
            continue;
        }
        if !by_object.contains_key(&desc.file)
            && let Some(terminal) = terminal(&inherited, &external, file)?
        {
            inherited.sources.push(park(terminal)?);
            by_object.insert(desc.file, inherited.sources.len() - 1);
        }
        let Some(twin) = by_object.get(&desc.file) else {
            let what = format!("{} was connected to the outside", crate::task::show(&file.path));
            let advice = format!("give what takes its place with --inherit-fd {}=FD", desc.fd);
            return Err(Error::failed(what).object(format!("fd {}", desc.fd)).advice(advice));
        };
        inherited.places.insert(place, *twin);
    }
    Ok(inherited)
}

/// What takes the place of a terminal that is not at 0, 1 or 2: a description of ours.
fn terminal(inherited: &Inherited, external: &[External<'_>], file: &model::File) -> Result<Option<OwnedFd>> {
    let kept = OFlags::RWMODE | OFlags::NONBLOCK | OFlags::LARGEFILE | OFlags::DSYNC | OFlags::SYNC;
    let flags = OFlags::from_bits_retain(file.record.flags) & kept | OFlags::NOCTTY;
    if file.record.kind == file_kind::TTY_CURRENT
        && let Ok(own) = rustix::fs::open("/dev/tty", flags | OFlags::CLOEXEC, Mode::empty())
    {
        return Ok(Some(own));
    }
    if ![file_kind::TTY_CURRENT, file_kind::EXTERNAL_TTY].contains(&file.record.kind) {
        return Ok(None);
    }
    let same = external.iter().filter(|(_, _, other)| other.record.rdev == file.record.rdev);
    let placed = same.filter_map(|(table, desc, _)| inherited.get(*table, desc.fd));
    let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let candidates = placed.map(AsFd::as_fd).chain(own);
    let Some(source) = candidates.into_iter().find(|fd| rustix::termios::isatty(fd)) else { return Ok(None) };
    let opened = procfs::reopen(source, flags).map_err(|e| Error::os("open our terminal", e))?;
    Ok(Some(opened))
}
