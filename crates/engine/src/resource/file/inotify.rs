//! inotify(7).
//!
//! The kernel has watches: a number, an inode, a mask; fdinfo shows them, with a file handle of the inode, which leads to
//! a path (open_by_handle_at(2), CAP_DAC_READ_SEARCH). Without that right, or on a file system that has no such handles, the
//! inode is looked for in the working directory, those above it, and those that are watched. *Saved*: number,
//! mask, path of each watch, flags. *Restored*: watches are added last of all, as restarting opens files, with their numbers
//! (INOTIFY_IOC_SETNEXTWD, CONFIG_CHECKPOINT_RESTORE). *Refused*: events that wait to be read: reading them would take
//! them from the program, and nothing can put any into an inotify; a watch whose inode no path leads to. *Lost*: what happens to
//! watched files between checkpoint and restart; that numbers above the highest have been given before.

use super::{
    Descriptor, FileKind, Files, OpenContext,
    descriptor::record_of,
    details_of,
    rights::{Holders, Rights},
    settle_flags,
};
use crate::{
    error::{Context, Doing, Error, ErrorKind, Result},
    objects::Objects,
    task::{ProcDir, Process, show},
};
use ckpt_image::{
    Image, Object, model,
    record::{InotifyWatch, file_kind},
};
use ckpt_kernel::{Errno, anon};
use ckpt_proc::{
    anon::InotifyWatch as Found,
    link::FdLink,
    mountinfo::{Mount, parse_mountinfo},
};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, inotify, major, minor};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, OwnedFd},
};

/// See the module.
pub(crate) struct Inotify;

impl FileKind for Inotify {
    fn kind(&self) -> u32 {
        file_kind::INOTIFY
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place() && descriptor.target() == FdLink::AnonInode(b"inotify")
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        let mut found =
            descriptor.info()?.inotify().ok_or_else(|| Error::failed("its fdinfo is not an inotify's"))?;
        let waiting = rustix::io::ioctl_fionread(descriptor.copy()?).doing(|| "FIONREAD".to_owned())?;
        if waiting != 0 {
            let what =
                format!("an inotify with {waiting} bytes of events that are not read yet cannot be carried");
            return Err(Error::unsupported(what).advice("try again when the program has read them"));
        }
        found.sort_unstable_by_key(|watch| watch.wd);
        let mut search = Search::new(descriptor.process)?;
        let mut watches = Vec::with_capacity(found.len());
        for watch in &found {
            let (path, stat) = search.path(watch).ok_or_else(|| lost(watch))?;
            let file =
                objects.mapped((stat.st_dev, stat.st_ino, WATCHED.bits()), |_| Ok(place(path, &stat)))?;
            watches.push(InotifyWatch { wd: watch.wd, mask: watch.mask, file, pad: 0 });
        }
        descriptor.detailed(file_kind::INOTIFY, &watches)
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC).doing(|| "make an inotify".to_owned())?;
        settle_flags(&fd, file)?;
        Ok(Some(fd))
    }
}

/// How what is watched is opened: not at all, but its place in the file system.
const WATCHED: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);

/// The record of what is watched.
fn place(path: Vec<u8>, stat: &Stat) -> Object {
    let record = record_of(file_kind::PATH, WATCHED.bits(), stat);
    Object::File(model::File { record, path, ..model::File::default() })
}

fn lost(watch: &Found) -> Error {
    let (major, minor) = watch.dev;
    let what = format!(
        "the path of inode {} of device {major}:{minor}, which its inotify watches, cannot be found",
        watch.ino
    );
    Error::unsupported(what).advice("it was removed, is hidden, or CAP_DAC_READ_SEARCH is missing")
}

/// Looks for the paths of inodes.
struct Search {
    mounts: Vec<Mount>,
    /// A directory of each device, to open handles with.
    roots: BTreeMap<(u32, u32), Vec<OwnedFd>>,
    /// Directories to look into for what handles do not lead to.
    directories: BTreeSet<Vec<u8>>,
    /// What was found in them: by device and inode.
    seen: BTreeMap<(u64, u64), Vec<u8>>,
    /// Those of them that have been looked into.
    listed: BTreeSet<Vec<u8>>,
}

impl Search {
    fn new(process: &Process) -> Result<Search> {
        let cwd = process.proc.readlink("cwd")?;
        let ends = cwd.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at.max(1));
        let above = ends.filter_map(|end| cwd.get(..end)).map(<[u8]>::to_vec);
        Ok(Search {
            mounts: process.proc.parse("mountinfo", parse_mountinfo)?,
            roots: BTreeMap::new(),
            directories: above.chain([cwd.clone()]).collect(),
            seen: BTreeMap::new(),
            listed: BTreeSet::new(),
        })
    }

    /// A path that leads to what is watched, without following a link at its end.
    fn path(&mut self, watch: &Found) -> Option<(Vec<u8>, Stat)> {
        let (path, stat) = self.by_handle(watch).or_else(|| self.by_looking(watch))?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            self.directories.insert(path.clone());
        }
        Some((path, stat))
    }

    fn by_handle(&mut self, watch: &Found) -> Option<(Vec<u8>, Stat)> {
        let (kind, handle) = watch.handle.as_ref()?;
        let own = ProcDir::own().ok()?;
        let mounts = &self.mounts;
        let roots = self.roots.entry(watch.dev).or_insert_with(|| {
            let here = mounts.iter().filter(|mount| mount.dev == watch.dev);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            here.filter_map(|m| rustix::fs::open(m.mount_point.as_slice(), flags, Mode::empty()).ok())
                .collect()
        });
        roots.iter().find_map(|root| {
            let fd = anon::open_by_handle(root, *kind, handle).ok()?;
            let path = own.readlink(&format!("fd/{}", fd.as_raw_fd())).ok()?;
            let (here, there) = (rustix::fs::fstat(&fd).ok()?, rustix::fs::lstat(path.as_slice()).ok()?);
            ((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)).then_some((path, there))
        })
    }

    fn by_looking(&mut self, watch: &Found) -> Option<(Vec<u8>, Stat)> {
        let wanted = |(dev, ino): &(u64, u64)| (major(*dev), minor(*dev)) == watch.dev && *ino == watch.ino;
        for directory in &self.directories {
            if self.listed.insert(directory.clone()) {
                look_into(directory, &mut self.seen);
            }
        }
        let (key, path) = self.seen.iter().find(|(key, _)| wanted(key))?;
        let stat = rustix::fs::lstat(path.as_slice()).ok()?;
        ((stat.st_dev, stat.st_ino) == *key).then(|| (path.clone(), stat))
    }
}

/// Adds a directory and what is in it.
fn look_into(directory: &[u8], seen: &mut BTreeMap<(u64, u64), Vec<u8>>) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(directory, flags, Mode::empty()) else { return };
    if let Ok(stat) = rustix::fs::fstat(&fd) {
        seen.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| directory.to_vec());
    }
    let Ok(entries) = rustix::fs::Dir::read_from(&fd) else { return };
    for entry in
        entries.flatten().filter(|entry| ![b".".as_slice(), b".."].contains(&entry.file_name().to_bytes()))
    {
        if let Ok(stat) = rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            let slash = if directory == b"/" { b"".as_slice() } else { b"/" };
            let path = [directory, slash, entry.file_name().to_bytes()].concat();
            seen.entry((stat.st_dev, stat.st_ino)).or_insert(path);
        }
    }
}

/// Adds the watches of an image.
pub(crate) fn settle(image: &Image, files: &Files, holders: &Holders) -> Result<()> {
    for (objref, object) in &image.objects {
        if let Object::File(file) = object
            && file.record.kind == file_kind::INOTIFY
            && let Some(fd) = files.get(objref)
        {
            for watch in details_of::<InotifyWatch>(file)? {
                let watched =
                    image.file(watch.file).ok_or_else(|| Error::bad_image("a watch without a file"))?;
                let rights = holders.get(objref).and_then(Option::as_ref);
                let added = match rights {
                    Some(rights) => add_with(rights, fd, &watch, watched),
                    None => add(fd, &watch, &watched.path, &watched.path),
                };
                added.object(|| format!("inotify {objref}"))?;
            }
        }
    }
    Ok(())
}

/// With the rights of who has the inotify, or, if it is what was watched, with ours.
fn add_with(rights: &Rights, fd: &OwnedFd, watch: &InotifyWatch, watched: &model::File) -> Result<()> {
    let path = watched.path.as_slice();
    rights.or_ours(
        || add(fd, watch, path, path),
        || {
            let open = || rustix::fs::open(path, WATCHED | OFlags::CLOEXEC, Mode::empty());
            let Some(place) = rights.same(&watched.record, open().ok()) else { return Ok(None) };
            let way = format!("/proc/self/fd/{}", place.as_raw_fd());
            add(fd, watch, path, way.as_bytes()).map(Some)
        },
    )
}

/// Adds a watch of `path` by a `way` that leads there.
fn add(fd: &OwnedFd, watch: &InotifyWatch, path: &[u8], way: &[u8]) -> Result<()> {
    // Without it the number may still be the right one.
    if let Err(error) = anon::set_inotify_next(fd, watch.wd)
        && error.errno() != Some(Errno::NOTTY)
    {
        return Err(error.into());
    }
    let own = if way == path { inotify::WatchFlags::DONT_FOLLOW } else { inotify::WatchFlags::empty() };
    let mask = inotify::WatchFlags::from_bits_retain(watch.mask) | own | inotify::WatchFlags::MASK_CREATE;
    let wd = match inotify::add_watch(fd, way, mask) {
        Err(Errno::EXIST) => {
            let what = format!("{} is the same file as another that is watched", show(path));
            return Err(Error::failed(what).advice("put the original back"));
        }
        other => other.map_err(|e| Error::os(format!("watch {}", show(path)), e).advice("put it back"))?,
    };
    if wd == watch.wd {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Permission, format!("watch {} by number {}", show(path), watch.wd))
        .advice("the kernel needs CONFIG_CHECKPOINT_RESTORE"))
}
