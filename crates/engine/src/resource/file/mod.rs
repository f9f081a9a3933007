//! Descriptors and open file descriptions.
//!
//! A descriptor is a number, FD_CLOEXEC and a reference to an open description, which holds
//! offset and flags and may be shared by several descriptors. Which of a process's descriptors
//! share one is asked with kcmp(2), only among those of one inode with equal flags. Each kind of
//! file is a module with both directions and a line in `registry.rs`; a descriptor that no kind
//! claims is refused before the process is touched.

pub(crate) mod chardev;
pub(crate) mod directory;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod external;
pub(crate) mod inotify;
pub(crate) mod late;
pub(crate) mod owner;
pub(crate) mod path;
pub(crate) mod pidfd;
pub(crate) mod pipe;
pub(crate) mod regular;
pub(crate) mod signalfd;
pub(crate) mod timerfd;
pub(crate) mod unlinked;

use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    options::RestartOptions,
    registry::FILE_KINDS,
    task::{Process, show},
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{self, FileDesc},
};
use ckpt_proc::{
    fdinfo::{FdInfo, parse_fdinfo},
    link::FdLink,
};
use rustix::{
    fs::{FileType, Mode, OFlags, Stat},
    process::Resource,
};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::AtomicBool,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What is known of a descriptor before anybody looks inside.
#[derive(Debug)]
pub(crate) struct Descriptor<'a> {
    /// Its process.
    pub(crate) process: &'a Process,
    /// Its name below /proc/PID: `fd/3`, or `map_files/7f..-7f..` for a mapped file.
    pub(crate) name: String,
    /// Target of the link.
    pub(crate) link: Vec<u8>,
    /// The file.
    pub(crate) stat: Stat,
    /// /proc/PID/fdinfo/N.
    pub(crate) info: FdInfo,
}

impl Descriptor<'_> {
    /// The link, taken apart.
    pub(crate) fn target(&self) -> FdLink<'_> {
        FdLink::parse(&self.link)
    }

    /// Its path, when it has one.
    pub(crate) fn path(&self) -> &[u8] {
        match self.target() {
            FdLink::Path { path, .. } => path,
            _ => &self.link,
        }
    }

    /// open(2) flags without O_CLOEXEC, which is the descriptor's.
    pub(crate) fn flags(&self) -> u32 {
        self.info.flags & !OFlags::CLOEXEC.bits()
    }

    /// S_IFMT of the file.
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether the path leads to this very file.
    pub(crate) fn path_leads_here(&self) -> bool {
        rustix::fs::stat(self.path())
            .is_ok_and(|s| (s.st_dev, s.st_ino) == (self.stat.st_dev, self.stat.st_ino))
    }

    /// The record all kinds share.
    pub(crate) fn record(&self, kind: u32) -> model::File {
        let stat = &self.stat;
        let record = record::File {
            kind,
            flags: self.flags(),
            pos: self.info.pos.max(0) as u64,
            inode: 0,
            mode: stat.st_mode,
            dev: stat.st_dev,
            ino: stat.st_ino,
            rdev: stat.st_rdev,
            size: stat.st_size.max(0) as u64,
            mtime_sec: stat.st_mtime,
            mtime_nsec: stat.st_mtime_nsec as u32,
            ..record::File::default()
        };
        model::File { record, path: self.path().to_vec(), ..model::File::default() }
    }

    /// The same with what only its kind has.
    pub(crate) fn detailed<T: IntoBytes + Immutable>(&self, kind: u32, details: &[T]) -> model::File {
        model::File { details: model::to_details(details), ..self.record(kind) }
    }

    /// A descriptor of ours for the same open description.
    pub(crate) fn copy(&self) -> Result<OwnedFd> {
        let number = self.name.strip_prefix("fd/").and_then(|number| number.parse().ok());
        self.process.descriptor(number.ok_or_else(|| Error::failed("it is no descriptor"))?)
    }
}

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
    /// An unlinked file, open for reading and writing; of a pipe the write end.
    pub(crate) fd: OwnedFd,
    /// Of a pipe: the read end.
    pub(crate) read: Option<OwnedFd>,
    /// `fd` itself is somebody's description already.
    pub(crate) taken: AtomicBool,
}

/// What opening a file again may need.
pub(crate) struct OpenContext<'a> {
    /// The image.
    pub(crate) image: &'a Image,
    /// What the caller asked for.
    pub(crate) options: &'a RestartOptions,
    /// Inodes without a name, made again.
    pub(crate) inodes: &'a BTreeMap<Objref, Made>,
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

/// The descriptor table of a process.
pub(crate) fn checkpoint(process: &Process, objects: &mut Objects) -> Result<model::FileTable> {
    let mut descs = Vec::new();
    for fd in process.proc.numbers("fd")? {
        let descriptor = look(process, fd).object(|| format!("fd {fd}"))?;
        let file = object(&descriptor, fd, objects).object(|| format!("fd {fd}"))?;
        let cloexec = u32::from(descriptor.info.flags & OFlags::CLOEXEC.bits() != 0);
        descs.push(FileDesc { fd, flags: cloexec, file, pad: 0 });
    }
    Ok(model::FileTable { descs })
}

/// What can be told of files only when all descriptors of the tree are known. `tables` are its processes, with the
/// objrefs of their descriptor tables.
pub(crate) fn adopt(
    tables: &[(&Process, Objref)],
    certainty: epoll::Certainty,
    objects: &mut Objects,
) -> Result<()> {
    pipe::adopt(tables.iter().copied(), objects)?;
    epoll::adopt(tables.iter().copied(), certainty, objects)
}

/// What is done to files last of all: from then on time passes for them, and they notice what happens.
pub(crate) fn settle(image: &Image, files: &BTreeMap<Objref, OwnedFd>) -> Result<()> {
    inotify::settle(image, files)?;
    timerfd::settle(image, files)
}

/// Looks at descriptor `fd`.
fn look(process: &Process, fd: i32) -> Result<Descriptor<'_>> {
    const ATTEMPTS: u32 = 100;
    let name = format!("fd/{fd}");
    for _ in 0..ATTEMPTS {
        let link = process.proc.readlink(&name)?;
        let stat = process.proc.stat(&name)?;
        let info = process.proc.parse(&format!("fdinfo/{fd}"), parse_fdinfo)?;
        // During the survey the process runs: the three must be of one file.
        if process.proc.readlink(&name)? == link {
            return Ok(Descriptor { process, name, link, stat, info });
        }
    }
    Err(Error::failed("it is another file at every look").advice("try again"))
}

/// The objref of the open description behind a descriptor.
fn object(descriptor: &Descriptor<'_>, fd: i32, objects: &mut Objects) -> Result<Objref> {
    if !descriptor.info.locks.is_empty() {
        let what = format!("a lock or lease on {} cannot be carried yet", show(&descriptor.link));
        return Err(Error::unsupported(what).advice("checkpoint when the program does not hold it"));
    }
    let kind = FILE_KINDS.iter().find(|kind| kind.claims(descriptor)).ok_or_else(|| refusal(descriptor))?;
    let key = (descriptor.stat.st_dev, descriptor.stat.st_ino, descriptor.flags());
    objects.description(descriptor.process.witness, fd, key, |objects| {
        let mut file = kind.checkpoint(descriptor, objects)?;
        owner::checkpoint(descriptor, fd, &mut file, &objects.members)?;
        Ok(Object::File(file))
    })
}

/// The error for a descriptor that no kind claims.
fn refusal(descriptor: &Descriptor<'_>) -> Error {
    let what = match descriptor.target() {
        FdLink::AnonInode(name) => format!("{} descriptors cannot be carried yet", show(name)),
        FdLink::Memfd(name) => format!("the memfd {} cannot be carried yet", show(name)),
        FdLink::Namespace(kind, _) => {
            format!("descriptors of {} namespaces cannot be carried yet", show(kind))
        }
        _ => format!("{} is of a kind that cannot be carried yet", show(&descriptor.link)),
    };
    Error::unsupported(what).advice("let the program close it, or checkpoint at another moment")
}

/// Opens all files of the image. `park` moves a descriptor out of the way of the task's own.
pub(crate) fn open_all(
    context: &OpenContext<'_>,
    park: &dyn Fn(OwnedFd) -> Result<OwnedFd>,
) -> Result<BTreeMap<Objref, OwnedFd>> {
    let mut open = BTreeMap::new();
    for (objref, object) in &context.image.objects {
        let Object::File(file) = object else { continue };
        let kind = FILE_KINDS.iter().find(|kind| kind.kind() == file.record.kind).ok_or_else(|| {
            Error::bad_image(format!("file {objref} is of unknown kind {}", file.record.kind))
        })?;
        if let Some(fd) = kind.open(file, context)? {
            open.insert(*objref, park(fd)?);
        }
    }
    Ok(open)
}

/// statfs(2) f_type of the file systems that show kernel state: proc, sysfs, debugfs, tracefs, cgroup,
/// cgroup2.
const KERNEL_FILE_SYSTEMS: [i64; 6] =
    [0x9fa0, 0x6265_6572, 0x6462_6720, 0x7472_6163, 0x0027_e0eb, 0x6367_7270];

/// Refuses files that are views of a kernel which, when they are opened again, does not know the
/// task yet.
pub(crate) fn refuse_kernel_file_systems(descriptor: &Descriptor<'_>) -> Result<()> {
    let path = show(descriptor.path());
    let fs = rustix::fs::statfs(descriptor.path()).map_err(|e| Error::os(format!("statfs {path}"), e))?;
    if KERNEL_FILE_SYSTEMS.contains(&(fs.f_type as i64)) {
        return Err(Error::unsupported(format!(
            "{path}: files of the kernel's file systems cannot be carried yet"
        )));
    }
    Ok(())
}

/// Opens `path` as an image wants it and checks that it got that.
pub(crate) fn reopen(path: &[u8], record: &record::File) -> Result<OwnedFd> {
    // O_ASYNC given to open(2) would only look as if it were set: see owner.rs.
    let forbidden =
        OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::from_bits_retain(libc::O_ASYNC as u32);
    let flags = OFlags::from_bits_retain(record.flags) & !forbidden;
    let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
        .map_err(|e| Error::os(format!("open {}", show(path)), e).advice("put it back and try again"))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::os(format!("stat {}", show(path)), e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::from_raw_mode(record.mode) {
        let what = format!("{} is not the kind of file it was", show(path));
        return Err(Error::failed(what).advice("put the original back"));
    }
    Ok(fd)
}

/// Sets the offset of a new description.
pub(crate) fn seek(fd: impl AsFd, record: &record::File, path: &[u8]) -> Result<()> {
    if record.pos != 0 {
        rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(record.pos))
            .map_err(|e| Error::os(format!("seek in {}", show(path)), e))?;
    }
    Ok(())
}

/// Raises our own limit of open files as far as allowed; gives the limit.
pub(crate) fn raise_nofile() -> u64 {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    }
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
