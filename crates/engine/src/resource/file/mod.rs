//! Descriptors and open file descriptions.
//!
//! A descriptor is a number, FD_CLOEXEC and a reference to an open description, which holds
//! offset and flags and may be shared by several descriptors. Which of a process's descriptors
//! share one is asked with kcmp(2), only among those of one inode with equal flags. Each kind of
//! file is a module with both directions and a line in `registry.rs`; a descriptor that no kind
//! claims is refused before the process is touched.

pub(crate) mod chardev;
pub(crate) mod current;
mod descriptor;
pub(crate) mod directory;
pub(crate) mod embedded;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod external;
pub(crate) mod flight;
pub(crate) mod identity;
pub(crate) mod inotify;
pub(crate) mod late;
pub(crate) mod lock;
pub(crate) mod memfd;
pub(crate) mod mqueue;
mod open;
pub(crate) mod owner;
pub(crate) mod path;
pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod placement;
pub(crate) mod private;
pub(crate) mod proc;
pub(crate) mod pty;
mod refuse;
pub(crate) mod regular;
pub(crate) mod rights;
pub(crate) mod signalfd;
pub(crate) mod timerfd;
pub(crate) mod unix;
pub(crate) mod unlinked;

pub(crate) use descriptor::{Descriptor, Numbers};
pub(crate) use open::{Files, open_some};
use open::{reopen, seek};

use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    options::RestartOptions,
    registry::FILE_KINDS,
    scribe::Scribe,
    task::Process,
};
use ckpt_image::{Image, Object, Objref, model, record::FileDesc};
use rights::{Holders, Rights};
use rustix::{
    fs::OFlags,
    process::{Resource, Rlimit},
};
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Mutex, atomic::AtomicBool},
};
use zerocopy::FromBytes;

/// What only the kind of a file has.
pub(crate) fn details_of<T: FromBytes>(file: &model::File) -> Result<Vec<T>> {
    model::details(&file.details).ok_or_else(|| Error::bad_image("a file's details are of the wrong size"))
}

/// The same of a kind that has one of it.
pub(crate) fn detail<T: FromBytes>(file: &model::File) -> Result<T> {
    let only = details_of(file)?.into_iter().next();
    only.ok_or_else(|| Error::bad_image("a file lacks its details"))
}

/// Gives a new description the flags that can be changed; O_ASYNC is not for here, see `owner.rs`.
pub(crate) fn settle_flags(fd: &OwnedFd, file: &model::File) -> Result<()> {
    let flags =
        OFlags::from_bits_retain(file.record.flags) & (OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOATIME);
    rustix::fs::fcntl_setfl(fd, flags).doing(|| "set the flags of a file".to_owned())
}

/// Contents without a name, made again.
#[derive(Debug)]
pub(crate) struct Made {
    /// An unlinked file, open for reading and writing; of a pipe the write end, of a pty the slave.
    pub(crate) fd: OwnedFd,
    /// Of a pipe: the read end; of a pty the master, if it has one.
    pub(crate) read: Option<OwnedFd>,
    /// `fd` itself is somebody's description already.
    pub(crate) taken: AtomicBool,
    /// Of a pipe with packets: as much of its contents as is known.
    pub(crate) packets: Mutex<Vec<u8>>,
}

impl Made {
    /// With nothing but a descriptor.
    pub(crate) fn new(fd: OwnedFd) -> Made {
        Made { fd, read: None, taken: AtomicBool::default(), packets: Mutex::default() }
    }
}

/// What opening a file again may need.
#[derive(Clone, Copy)]
pub(crate) struct OpenContext<'a> {
    /// The image.
    pub(crate) image: &'a Image,
    /// What the caller asked for.
    pub(crate) options: &'a RestartOptions,
    /// Makes names.
    pub(crate) scribe: &'a Scribe,
    /// Removed directories, made again.
    pub(crate) removed: &'a directory::Removed,
    /// Inodes without a name, made again.
    pub(crate) inodes: &'a BTreeMap<Objref, Made>,
    /// Unix sockets, made again.
    pub(crate) sockets: &'a unix::Sockets,
    /// Whose rights files are opened with.
    pub(crate) holders: &'a Holders,
    /// Those for the file that is opened, if they are not ours.
    pub(crate) rights: Option<&'a Rights>,
}

/// Both directions of one kind of file.
pub(crate) trait FileKind: Sync {
    /// [`record::file_kind`] values this module restores.
    fn kind(&self) -> u32;
    /// Whether a descriptor is of this kind.
    fn claims(&self, descriptor: &Descriptor<'_>) -> bool;
    /// The record of a new open description, or why it cannot be carried.
    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File>;
    /// The open description, made again; `None` when it comes from outside.
    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>>;
}

/// The descriptor table of a process, whose descriptors are `numbers`: they remember the names that are seen.
pub(crate) fn checkpoint(
    process: &Process,
    numbers: &mut Numbers,
    objects: &mut Objects,
) -> Result<model::FileTable> {
    let mut descs = Vec::new();
    descriptor::look_at_all(process, numbers, objects, |fd, flags, descriptor, objects| {
        let file = object(descriptor, fd, objects)?;
        descs.push(FileDesc { fd, flags, file, pad: 0 });
        Ok(())
    })?;
    Ok(model::FileTable { descs })
}

/// What can be told of files only when all descriptors of the tree are known. `tables` are its processes, with the
/// objrefs of their descriptor tables; they stand still, or not. What waits in sockets and can only be seen by the
/// processes themselves is yet to be looked at.
pub(crate) fn adopt(
    tables: &[(&Process, Objref)],
    frozen: bool,
    objects: &mut Objects,
) -> Result<unix::queue::Looks> {
    let certainty = if frozen { epoll::Certainty::Exact } else { epoll::Certainty::Likely };
    pipe::adopt(tables.iter().copied(), frozen, objects)?;
    let looks = unix::adopt(tables, frozen, objects)?;
    epoll::adopt(tables.iter().copied(), certainty, objects)?;
    Ok(looks)
}

/// What is done to files last of all: from then on time passes for them, and they notice what happens.
pub(crate) fn settle(image: &Image, files: &Files, holders: &Holders) -> Result<()> {
    inotify::settle(image, files, holders)?;
    timerfd::settle(image, files)
}

/// The objref of the open description behind a descriptor.
fn object(descriptor: &Descriptor<'_>, fd: i32, objects: &mut Objects) -> Result<Objref> {
    let named = external::named(descriptor, objects)?;
    let kind = kind_of(descriptor);
    let key = (descriptor.stat.st_dev, descriptor.stat.st_ino, descriptor.flags);
    let file = objects.description(descriptor.process.witness, fd, key, |objects| {
        let mut file = match (named, kind) {
            (Some(file), _) => file,
            (None, Some(kind)) => kind.checkpoint(descriptor, objects)?,
            (None, None) => return Err(refuse::refusal(descriptor)),
        };
        owner::checkpoint(descriptor, &mut file, &objects.members)?;
        Ok(Object::File(file))
    })?;
    lock::checkpoint(descriptor, file, objects)?;
    Ok(file)
}

/// The kinds that claim a descriptor: no more than one.
pub(crate) fn claimants(descriptor: &Descriptor<'_>) -> impl Iterator<Item = &'static dyn FileKind> {
    FILE_KINDS.iter().copied().filter(|kind| kind.claims(descriptor))
}

/// The kind of a descriptor.
pub(crate) fn kind_of(descriptor: &Descriptor<'_>) -> Option<&'static dyn FileKind> {
    claimants(descriptor).next()
}

/// Raises our own limit of open files as far as allowed, beyond the hard limit only if more than that is wanted;
/// gives the limit.
pub(crate) fn raise_nofile(wanted: u64) -> u64 {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < wanted) {
        let more = Rlimit { current: Some(wanted), maximum: Some(wanted) };
        if rustix::process::setrlimit(Resource::Nofile, more).is_ok() {
            return wanted;
        }
    }
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    }
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::show;
    use ckpt_image::record::file_kind;
    use descriptor::look;
    use rustix::fs::{MemfdFlags, Mode, memfd_create, open};
    use std::os::fd::AsRawFd;

    /// A kind takes each of these, one alone: that the list is ordered is of no consequence.
    #[test]
    fn one_kind_claims_each_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let of = |path: std::path::PathBuf, flags: OFlags| {
            open(&path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::RUSR | Mode::WUSR).unwrap()
        };
        let create = OFlags::RDWR | OFlags::CREATE;
        std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let gone = of(path("gone"), create);
        std::fs::remove_file(path("gone")).unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let huge = memfd_create("huge", MemfdFlags::HUGETLB);
        let named = [
            (of(path("file"), create), file_kind::REGULAR),
            (of(path(""), OFlags::RDONLY), file_kind::DIRECTORY),
            (gone, file_kind::UNLINKED),
            (of(path(""), OFlags::TMPFILE | OFlags::RDWR), file_kind::UNLINKED),
            (of(path("fifo"), OFlags::RDWR), file_kind::EXTERNAL_PIPE),
            (read, file_kind::EXTERNAL_PIPE),
            (write, file_kind::EXTERNAL_PIPE),
            (socket.into(), file_kind::UNIX),
            (peer.into(), file_kind::UNIX),
            (listener.into(), file_kind::UNIX),
            (std::os::unix::net::UnixDatagram::unbound().unwrap().into(), file_kind::UNIX),
            (std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(), file_kind::EXTERNAL_SOCKET),
            (of("/dev/null".into(), OFlags::RDWR), file_kind::CHARDEV),
            (memfd_create("a", MemfdFlags::CLOEXEC).unwrap(), file_kind::MEMFD),
        ];
        let places =
            ["file", "link", "fifo", "socket"].map(|name| of(path(name), OFlags::PATH | OFlags::NOFOLLOW));
        let places = places.into_iter().chain([of("/dev/null".into(), OFlags::PATH)]);
        let places = places.map(|fd| (fd, file_kind::PATH));
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let others = [
            (of(path(""), OFlags::PATH), file_kind::DIRECTORY),
            (of("/proc/self/status".into(), OFlags::RDONLY), file_kind::PROC),
            (of("/dev/ptmx".into(), OFlags::RDWR | OFlags::NOCTTY), file_kind::PTY),
            (epoll, file_kind::EPOLL),
            (eventfd, file_kind::EVENTFD),
        ];
        let places = places.chain(others);
        let files: Vec<_> = named.into_iter().chain(places).collect();
        let own = Process::open(std::process::id() as i32).unwrap();
        let claimed = |fd: i32| {
            let descriptor = look(&own, fd, &mut Objects::default()).unwrap();
            let kinds: Vec<u32> = claimants(&descriptor).map(|kind| kind.kind()).collect();
            (show(&descriptor.link), kinds)
        };
        for (fd, want) in &files {
            let (link, kinds) = claimed(fd.as_raw_fd());
            assert_eq!(kinds, [*want], "{link}");
        }
        assert!(huge.is_err() || huge.is_ok_and(|fd| claimed(fd.as_raw_fd()).1.is_empty()));
        // Whatever this test has besides: no kind takes what another does.
        for fd in own.proc.numbers("fd").unwrap() {
            if let Ok(descriptor) = look(&own, fd, &mut Objects::default()) {
                assert!(claimants(&descriptor).count() <= 1, "{}", show(&descriptor.link));
            }
        }
        // Nor of what the engine cannot open without privilege or unsafe code: by other programs' descriptors.
        for pid in ckpt_kernel::procfs::numbers(".").unwrap() {
            let Ok(process) = Process::open(pid) else { continue };
            for fd in process.proc.numbers("fd").unwrap_or_default() {
                if let Ok(descriptor) = look(&process, fd, &mut Objects::default()) {
                    assert!(claimants(&descriptor).count() <= 1, "{}", show(&descriptor.link));
                }
            }
        }
    }
}
