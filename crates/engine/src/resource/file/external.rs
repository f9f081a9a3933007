//! Terminals, pipes and sockets whose other end is outside, and whatever the caller says is outside (`--external`).
//!
//! *Saved*: kind and path, and the name the caller gave it; of a terminal its settings and window. *Restored*: what has
//! a name is what `--inherit-fd` gives by that name; else descriptors 0, 1 and 2 are the restarter's own 0, 1 and 2, and
//! others come from `--inherit-fd` by number, or share the description of one that does. A FIFO that is still where it was
//! is opened by its path. Of a terminal any other number
//! becomes the restarter's terminal, too: the one that took the place of the same terminal at 0, 1 or 2, else any of those
//! that is one; of /dev/tty the restarter's own. Its settings: see `terminal.rs`. *Lost*: what was in flight, which
//! belongs to the outside; flags and offset, which are those of what takes its place. *Refused*: network sockets without
//! another end (listening, not connected), unless they are named. A pipe with both ends inside is not outside at all, unless
//! it is named: see `pipe.rs`; nor is a terminal whose master is inside: `pty.rs`; or a unix socket that is not connected, or to
//! another one inside: `unix.rs`.

use super::{Descriptor, FileKind, OpenContext, pty};
use crate::{
    advice::Means,
    error::{Doing, Error, Result},
    objects::Objects,
    options::{External, Identity, Outside, Place},
    task::show,
};
use ckpt_image::{
    Image, Object, Objref,
    model::{self, details},
    record::{ExternalName, FileDesc, Tty, file_kind},
};
use ckpt_kernel::{Errno, procfs, tty};
use rustix::{
    fs::{FileType, Mode, OFlags, Stat, major, minor},
    io::dup,
    net::{AddressFamily, SocketType, sockopt},
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
/// Anything else, if the caller said so.
pub(crate) struct Named;

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
            && !descriptor.is_place()
            && ![(5, 0), (5, 2)].contains(&(major(descriptor.stat.st_rdev), minor(descriptor.stat.st_rdev)))
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        match tty::settings(descriptor.copy()?) {
            Ok(settings) => {
                pty::refuse_discipline(&settings)?;
                let details = settings.as_bytes().to_vec();
                Ok(model::File { details, ..descriptor.record(file_kind::EXTERNAL_TTY)? })
            }
            Err(e) if e.errno() == Some(Errno::IO) && major(descriptor.stat.st_rdev) == pty::SLAVE_MAJOR => {
                pty::hung_up(descriptor, objects)
            }
            Err(_) => descriptor.record(file_kind::EXTERNAL_TTY),
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

/// Defines the kind's two directions: the record, and nothing to open.
macro_rules! external {
    ($name:ident, $kind:expr, $claims:expr, $outside:expr) => {
        impl FileKind for $name {
            fn kind(&self) -> u32 {
                $kind
            }

            fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
                let claims: fn(&Descriptor<'_>) -> bool = $claims;
                !descriptor.is_place() && claims(descriptor)
            }

            fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
                let outside: fn(&Descriptor<'_>, &Objects) -> Result<()> = $outside;
                outside(descriptor, objects)?;
                descriptor.record($kind)
            }

            fn open(&self, _: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
                Ok(None)
            }
        }
    };
}

external!(Pipe, file_kind::EXTERNAL_PIPE, |d| d.file_type() == FileType::Fifo, |_, _| Ok(()));
external!(Named, file_kind::EXTERNAL_FILE, |_| false, |_, _| Ok(()));
external!(
    Socket,
    file_kind::EXTERNAL_SOCKET,
    |d| d.file_type() == FileType::Socket && !super::unix::is_unix(d),
    connected_to_outside
);

/// Refuses sockets that have no other end.
fn connected_to_outside(descriptor: &Descriptor<'_>, objects: &Objects) -> Result<()> {
    let socket = descriptor.copy()?;
    let refused = |what: &str| Err(Error::unsupported(format!("{what} cannot be carried yet")));
    if sockopt::socket_acceptconn(socket).unwrap_or(false) {
        return refused("a listening socket");
    }
    if rustix::net::getpeername(socket).is_err() {
        return refused("a socket that is not connected");
    }
    let domain = sockopt::socket_domain(socket);
    let of_tcp = [Ok(AddressFamily::INET), Ok(AddressFamily::INET6)].contains(&domain)
        && sockopt::socket_type(socket) == Ok(SocketType::STREAM);
    if of_tcp && objects.policy.refuses(|allowed| allowed.tcp_established) {
        let error = Error::unsupported("an established TCP connection cannot be carried yet");
        return Err(error.advice("let the program close it"));
    }
    Ok(())
}

/// Whether a file comes from outside.
pub(crate) fn is_external(file: &model::File) -> bool {
    match file.record.kind {
        file_kind::EXTERNAL_TTY
        | file_kind::EXTERNAL_PIPE
        | file_kind::EXTERNAL_SOCKET
        | file_kind::EXTERNAL_FILE => true,
        file_kind::TTY_CURRENT => file.record.inode == 0,
        _ => false,
    }
}

/// The record of a descriptor that the caller said is outside, whatever it is.
pub(crate) fn named(descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<Option<model::File>> {
    let Some((external, used)) = objects.external.iter_mut().find(|(e, _)| is_meant(e, descriptor)) else {
        return Ok(None);
    };
    *used = true;
    let mut file = descriptor.record(match external.kind {
        Outside::Pipe => file_kind::EXTERNAL_PIPE,
        Outside::Socket => file_kind::EXTERNAL_SOCKET,
        Outside::Tty => file_kind::EXTERNAL_TTY,
        Outside::File => file_kind::EXTERNAL_FILE,
    })?;
    let name = ExternalName::new(&external.name).ok_or_else(|| {
        Error::failed(format!("--external {}: the name is too long", external.word))
            .advice("take a shorter one")
    })?;
    file.details = name.as_bytes().to_vec();
    Ok(Some(file))
}

/// Whether `external` is of this descriptor: by path, or by what /proc shows between brackets.
fn is_meant(external: &External, descriptor: &Descriptor<'_>) -> bool {
    let kind = descriptor.file_type();
    let of_kind = match external.kind {
        Outside::Pipe => kind == FileType::Fifo,
        Outside::Socket => kind == FileType::Socket,
        Outside::Tty => kind == FileType::CharacterDevice,
        Outside::File => true,
    };
    let id = match &external.id {
        Identity::Name(id) => id.as_slice(),
        Identity::Device { rdev, dev } => {
            return of_kind && (descriptor.stat.st_rdev, descriptor.stat.st_dev) == (*rdev, *dev);
        }
        Identity::Inode { mount, ino } => {
            let is_there = || descriptor.info().is_ok_and(|info| info.mnt_id == *mount);
            return of_kind && descriptor.stat.st_ino == *ino && is_there();
        }
    };
    let bracketed = || {
        let (_, id) = descriptor.link.split_at_checked(descriptor.link.iter().position(|b| *b == b'[')?)?;
        id.strip_prefix(b"[")?.strip_suffix(b"]")
    };
    of_kind && (descriptor.path() == id || external.kind != Outside::File && bracketed() == Some(id))
}

/// An error if the caller said something is outside that no descriptor is.
pub(crate) fn check_used(objects: &Objects) -> Result<()> {
    match objects.external.iter().find(|(_, used)| !used) {
        Some((external, _)) => {
            let what = format!("--external {}: the program has no such descriptor open", external.word);
            Err(Error::failed(what).advice("`ls -l /proc/PID/fd` shows what it has"))
        }
        None => Ok(()),
    }
}

/// The name the caller gave it at the checkpoint.
pub(crate) fn name(file: &model::File) -> Option<Vec<u8>> {
    details::<ExternalName>(&file.details).and_then(|all| all.first().map(|name| name.bytes().to_vec()))
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

    /// Those that take the place of terminals, each with the settings that one had.
    pub(crate) fn terminals<'a>(&'a self, image: &'a Image) -> impl Iterator<Item = (&'a OwnedFd, Tty)> {
        self.places.iter().filter_map(|((table, fd), source)| {
            let desc = image.files(*table)?.descs.iter().find(|desc| desc.fd == *fd)?;
            let settings = model::details::<Tty>(&image.file(desc.file)?.details)?;
            Some((self.sources.get(*source)?, *settings.first()?))
        })
    }

    /// What takes the place of a file, wherever it is.
    pub(crate) fn of(&self, file: Objref) -> Option<&OwnedFd> {
        self.by_object.get(&file).and_then(|source| self.sources.get(*source))
    }
}

/// An external descriptor: its table, itself, its file.
type Held<'a> = (Objref, &'a FileDesc, &'a model::File);

/// Finds what takes the place of all external descriptors of an image.
pub(crate) fn inherit(
    image: &Image,
    given: &[(Place, OwnedFd)],
    park: &dyn Fn(OwnedFd) -> Result<OwnedFd>,
) -> Result<Inherited> {
    let external = externals(image);
    check_given(image, &external, given)?;
    let mut inherited = Inherited::default();
    let mut known: BTreeMap<Place, usize> = BTreeMap::new();
    for (table, desc, file) in &external {
        let by_number = Place::Number(desc.fd);
        let others = given.iter().filter(|(place, _)| *place != by_number);
        let meant = |(place, _): &&(Place, OwnedFd)| is_place(place, desc, file);
        let found = others.chain(given).find(meant);
        let place = found.map_or(by_number, |(place, _)| place.clone());
        let own = match (found, desc.fd, name(file)) {
            (Some((_, fd)), ..) => fd.as_fd(),
            (None, 0, None) => rustix::stdio::stdin(),
            (None, 1, None) => rustix::stdio::stdout(),
            (None, 2, None) => rustix::stdio::stderr(),
            _ => continue,
        };
        let source = match known.get(&place) {
            Some(source) => *source,
            None => {
                let copy =
                    dup(own).map_err(|e| Error::os(format!("our own descriptor for {}", desc.fd), e))?;
                inherited.sources.push(park(copy)?);
                inherited.sources.len() - 1
            }
        };
        known.insert(place, source);
        inherited.by_object.entry(desc.file).or_insert(source);
        inherited.places.insert((*table, desc.fd), source);
    }
    for (table, desc, file) in &external {
        let place = (*table, desc.fd);
        if inherited.places.contains_key(&place) {
            continue;
        }
        let opened = match inherited.by_object.contains_key(&desc.file) {
            true => None,
            false => terminal(&inherited, &external, file)?.or(fifo(file)?),
        };
        if let Some(opened) = opened {
            inherited.sources.push(park(opened)?);
            let last = inherited.sources.len() - 1;
            inherited.by_object.insert(desc.file, last);
        }
        let Some(twin) = inherited.by_object.get(&desc.file).copied() else {
            return Err(missing(desc, file));
        };
        inherited.places.insert(place, twin);
    }
    Ok(inherited)
}

/// An error if something is given in the place of nothing; a warning where it is meant by what /proc shows, as whoever does
/// that gives all he has.
fn check_given(image: &Image, external: &[Held<'_>], given: &[(Place, OwnedFd)]) -> Result<()> {
    let supplied = supplied(image, given);
    for (place, fd) in given {
        let used = supplied.values().any(|other| std::ptr::eq(*other, fd))
            || external.iter().any(|(_, desc, file)| is_place(place, desc, file));
        let what = match place {
            _ if used => continue,
            Place::Number(fd) => format!("--inherit-fd {fd}: the image has no external descriptor {fd}"),
            Place::Name(name) => {
                format!("--inherit-fd :{}: the image has no external of that name", show(name))
            }
            Place::Link(name) => {
                tracing::warn!("nothing in the image is {}: what is given for it is not used", show(name));
                continue;
            }
            Place::Tty { rdev, dev } => {
                tracing::warn!("no terminal is {rdev:x}:{dev:x}: what is given for it is not used");
                continue;
            }
        };
        return Err(Error::failed(what).advice("`ckptinfo IMAGE` lists them"));
    }
    Ok(())
}

/// Whether `place` is that of an external descriptor.
fn is_place(place: &Place, desc: &FileDesc, file: &model::File) -> bool {
    match place {
        Place::Number(fd) => desc.fd == *fd,
        Place::Name(wanted) => name(file).as_ref() == Some(wanted),
        Place::Link(link) => is_link(link, file) || name(file).as_ref() == Some(link),
        Place::Tty { rdev, dev } => {
            file.record.kind == file_kind::EXTERNAL_TTY
                && (file.record.rdev, file.record.dev) == (*rdev, *dev)
        }
    }
}

/// Whether /proc/PID/fd showed a file as `link`, its first slash left out.
fn is_link(link: &[u8], file: &model::File) -> bool {
    let bare = |path: &[u8]| path.strip_prefix(b"/").unwrap_or(path).to_vec();
    bare(&file.path) == bare(link)
}

/// The files with a name that are not opened again, with what takes their place: those the caller means by
/// [`Place::Link`].
pub(crate) fn supplied<'a>(image: &Image, given: &'a [(Place, OwnedFd)]) -> BTreeMap<Objref, &'a OwnedFd> {
    let links = |(place, fd): &'a (Place, OwnedFd)| match place {
        Place::Link(link) => Some((link, fd)),
        _ => None,
    };
    let links: Vec<_> = given.iter().filter_map(links).collect();
    let mut supplied = BTreeMap::new();
    for (_, object) in image.objects.iter().filter(|_| !links.is_empty()) {
        let Object::Files(table) = object else { continue };
        for desc in &table.descs {
            let Some(file) = image.file(desc.file) else { continue };
            let with_name = [file_kind::REGULAR, file_kind::CHARDEV].contains(&file.record.kind);
            let found = links.iter().find(|(link, _)| with_name && is_link(link, file));
            supplied.extend(found.map(|(_, fd)| (desc.file, *fd)));
        }
    }
    supplied
}

/// The error for what nobody gave.
fn missing(desc: &FileDesc, file: &model::File) -> Error {
    let what = format!("{} was connected to the outside", show(&file.path));
    let means = Means::Inherit { fd: desc.fd, name: name(file), link: file.path.clone() };
    Error::failed(what).object(format!("fd {}", desc.fd)).advice(means)
}

/// All external descriptors of an image.
fn externals(image: &Image) -> Vec<Held<'_>> {
    let tables = image.objects.iter().filter_map(|(objref, object)| match object {
        Object::Files(table) => Some((*objref, table)),
        _ => None,
    });
    tables
        .flat_map(|(objref, table)| table.descs.iter().map(move |desc| (objref, desc)))
        .filter_map(|(objref, desc)| Some((objref, desc, image.file(desc.file)?)))
        .filter(|(.., file)| is_external(file))
        .collect()
}

/// An end of a FIFO, if that is where it was.
fn fifo(file: &model::File) -> Result<Option<OwnedFd>> {
    let is_it = |stat: Stat| (stat.st_dev, stat.st_ino) == (file.record.dev, file.record.ino);
    if file.record.kind != file_kind::EXTERNAL_PIPE
        || !file.details.is_empty()
        || !rustix::fs::lstat(file.path.as_slice()).is_ok_and(is_it)
    {
        return Ok(None);
    }
    let kept = OFlags::RWMODE | OFlags::NONBLOCK | OFlags::LARGEFILE | OFlags::DIRECT;
    let flags = OFlags::from_bits_retain(file.record.flags) & kept;
    let how = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = || format!("open the FIFO {}", show(&file.path));
    let end = match rustix::fs::open(file.path.as_slice(), flags | how, Mode::empty()) {
        // Nobody reads from it, and it is not opened for writing then but by who does so, too.
        Err(Errno::NXIO) => {
            let both = rustix::fs::open(file.path.as_slice(), OFlags::RDWR | how, Mode::empty());
            procfs::reopen(both.doing(failed)?, flags | OFlags::NONBLOCK)
        }
        other => other,
    };
    let end = end.doing(failed)?;
    rustix::fs::fcntl_setfl(&end, flags).doing(failed)?;
    Ok(Some(end))
}

/// What takes the place of a terminal that is not at 0, 1 or 2: a description of ours.
fn terminal(inherited: &Inherited, external: &[Held<'_>], file: &model::File) -> Result<Option<OwnedFd>> {
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
