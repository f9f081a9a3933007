//! Names that a restart makes in the file system: for a moment, or only if it succeeds.
//!
//! A file that was unlinked, a directory that was removed must once more have had its name, so that
//! what the kernel shows of it is what it showed. Between making a name and taking it away nobody may
//! die: so it is done by a *scribe*, a servant that finishes what it has begun even when we are killed
//! (SIGKILL). A file that is to stay it takes away again unless it is told that the restart succeeds; should we be
//! killed then, while tasks are let go, it looks whether they live.
//!
//! Names come from an image, and directories may belong to somebody else: no link is followed on the
//! way to a name, and nothing that exists is touched (openat2(2), O_EXCL, mkdirat, linkat).

pub(crate) mod socket;

use crate::{
    advice::Means,
    error::{Error, Result},
    task::show,
};
use ckpt_image::model;
use ckpt_kernel::{
    Errno,
    servant::{Line, Request, Servant},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    cell::OnceCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// What a scribe can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// A regular file without a name.
    File,
    /// A FIFO without a name.
    Fifo,
    /// A directory that is removed.
    Directory,
    /// Another name of an existing file, which is taken away again.
    Link,
    /// A regular file whose name stays if all goes well.
    Lasting,
    /// The name of a socket, which stays if all goes well.
    Socket,
    /// The name of a socket, which is taken away again.
    BriefSocket,
    /// All went well.
    Keep,
    /// It did not, after all.
    Discard,
}

const TASKS: [Task; 9] = [
    Task::File,
    Task::Fifo,
    Task::Directory,
    Task::Link,
    Task::Lasting,
    Task::Socket,
    Task::BriefSocket,
    Task::Keep,
    Task::Discard,
];

/// The scribe, forked when there is something to do.
#[derive(Debug, Default)]
pub(crate) struct Scribe(OnceCell<Servant>);

impl Scribe {
    /// A new file, once `path`, open for reading and writing; its directory is made if it was removed, too
    /// ([`model::removed`]).
    pub(crate) fn file(&self, path: &[u8]) -> Result<OwnedFd> {
        self.ask(Task::File, &[path]).map_err(|e| self.trouble("make the unlinked file", path, e))
    }

    /// A new FIFO, once `path`, open at both ends.
    pub(crate) fn fifo(&self, path: &[u8]) -> Result<OwnedFd> {
        self.ask(Task::Fifo, &[path]).map_err(|e| self.trouble("make the unlinked FIFO", path, e))
    }

    /// A new directory, once `path`, open as a place (O_PATH).
    pub(crate) fn directory(&self, path: &[u8]) -> Result<OwnedFd> {
        self.ask(Task::Directory, &[path]).map_err(|e| self.trouble("make the removed directory", path, e))
    }

    /// The file `other` as it looks when it was opened as `path` and that name is gone (O_PATH).
    pub(crate) fn link(&self, other: &[u8], path: &[u8]) -> Result<OwnedFd> {
        let advice = |e: Error| e.advice(format!("it has the name {} now", show(other)));
        self.ask(Task::Link, &[path, other])
            .map_err(|e| advice(self.trouble("make the former name", path, e)))
    }

    /// A new file at `path`, open for reading and writing, none if there is one already. It is taken away
    /// again unless [`Scribe::keep`] is called.
    pub(crate) fn lasting(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        match self.ask(Task::Lasting, &[path]) {
            Err(Errno::EXIST) => Ok(None),
            other => other.map(Some).map_err(|e| self.trouble("make the file", path, e)),
        }
    }

    /// Binds `socket` to a name. If that is `lasting`, it is taken away again unless [`Scribe::keep`] is called; a dead socket
    /// that was left there makes place. Else it is taken away at once.
    pub(crate) fn bind(&self, socket: BorrowedFd<'_>, name: &socket::Name<'_>, lasting: bool) -> Result<()> {
        let task = if lasting { Task::Socket } else { Task::BriefSocket };
        let path = show(name.path);
        match self.request(task, &name.request(), Some(socket)) {
            Ok(_) => Ok(()),
            Err(Errno::EXIST) => {
                let what = format!("{path} is there, and is not what the socket had left behind");
                Err(Error::failed(what).advice("remove it"))
            }
            Err(Errno::ADDRINUSE) => {
                let what = format!("{path}: a program has a socket of that name");
                Err(Error::failed(what).advice("end that program first"))
            }
            Err(Errno::XDEV) => {
                let what = format!("{} leads to another place than {path} now", show(name.address));
                Err(Error::failed(what).advice("put the directories back"))
            }
            Err(error) => Err(self.trouble("make the socket", name.path, error)),
        }
    }

    /// What lasts is to stay if process `root` does, until [`Scribe::discard`].
    pub(crate) fn keep(&self, root: i32) -> Result<()> {
        self.tell(Task::Keep, root)
    }

    /// What lasts is not to stay after all.
    pub(crate) fn discard(&self) -> Result<()> {
        self.tell(Task::Discard, 0)
    }

    fn trouble(&self, what: &str, path: &[u8], cause: Errno) -> Error {
        let path = model::removed(path).unwrap_or(path);
        let error = Error::os(format!("{what} {} again", show(path)), cause);
        let advice = match cause {
            Errno::PIPE | Errno::CONNRESET => return self.silent(cause),
            Errno::LOOP => {
                "replace the symbolic link that leads to its directory: nothing is made beyond one"
            }
            Errno::NOENT | Errno::NOTDIR => "make its directory",
            _ => "make its directory one that can be written to",
        };
        error.advice(advice).or(Means::MapFiles)
    }

    fn silent(&self, cause: Errno) -> Error {
        let pid = self.0.get().map_or(0, Servant::pid);
        Error::os(format!("pid {pid}, which makes names for restart, does not answer"), cause)
    }

    fn tell(&self, task: Task, pid: i32) -> Result<()> {
        let Some(servant) = self.0.get() else { return Ok(()) };
        let told = servant.ask(&[&[task as u8][..], &pid.to_le_bytes()].concat(), None).map(drop);
        told.map_err(|e| self.silent(e))
    }

    fn ask(&self, task: Task, paths: &[&[u8]]) -> Result<OwnedFd, Errno> {
        self.request(task, &paths.join(&0), None)
    }

    fn request(&self, task: Task, what: &[u8], with: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
        let servant = match self.0.get() {
            Some(servant) => servant,
            None => {
                let servant = Servant::start(work).map_err(|e| e.errno().unwrap_or(Errno::AGAIN))?;
                self.0.get_or_init(|| servant)
            }
        };
        match servant.ask(&[&[task as u8], what].concat(), with)? {
            (_, Some(fd)) => Ok(fd),
            (answer, None) => {
                let code = answer.first_chunk().map_or(0, |code| i32::from_le_bytes(*code));
                Err(Errno::from_raw_os_error(if code > 0 { code } else { libc::EIO }))
            }
        }
    }
}

/// A file that is to stay.
#[derive(Debug)]
struct Lasting {
    dir: OwnedFd,
    name: Vec<u8>,
    /// Its device and inode.
    dev_ino: (u64, u64),
    /// The name of what was put aside for it, which is not to stay then.
    aside: Option<Vec<u8>>,
}

impl Lasting {
    fn forget(&self, name: &[u8]) {
        let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
    }

    /// It stays.
    fn keep(&self) {
        self.aside.iter().for_each(|aside| self.forget(aside));
    }

    /// It does not stay, if it is still the one that was made.
    fn undo(&self) {
        let same = rustix::fs::statat(&self.dir, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        if same.is_ok_and(|s| (s.st_dev, s.st_ino) == self.dev_ino) {
            self.forget(&self.name);
        }
        if let Some(aside) = &self.aside {
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            let _ = rustix::fs::renameat_with(&self.dir, aside, &self.dir, &self.name, flags);
        }
    }
}

/// The scribe's life.
fn work(line: Line) {
    // As when the original made it: who may use it is set afterwards.
    rustix::process::umask(Mode::empty());
    let mut lasting: Vec<Lasting> = Vec::new();
    // The root of the tasks for which it is to stay.
    let mut kept = None;
    let dismissed = loop {
        let (request, with) = match line.request() {
            Request::Some(request, with) => (request, with),
            other => break matches!(other, Request::Dismissed),
        };
        let Some((code, paths)) = request.split_first() else { break false };
        let pid = paths.first_chunk().map_or(0, |pid| i32::from_le_bytes(*pid));
        let mut paths = paths.split(|byte| *byte == 0);
        let (path, other) = (paths.next().unwrap_or_default(), paths.next().unwrap_or_default());
        let made = match TASKS.iter().find(|task| **task as u8 == *code) {
            Some(Task::File) => {
                let (path, making) = model::removed(path).map_or((path, false), |path| (path, true));
                briefly(path, making, create)
            }
            Some(Task::Fifo) => briefly(path, true, fifo),
            Some(Task::Directory) => directory(path),
            Some(Task::Link) => briefly(path, false, |dir, name| link(other, dir, name)),
            Some(Task::Lasting) => last(path, &mut lasting),
            Some(task @ (Task::Socket | Task::BriefSocket)) => {
                let name = request.get(1..).and_then(socket::Name::of_request).zip(with.as_ref());
                name.ok_or(Errno::INVAL).and_then(|(name, with)| match task {
                    Task::Socket => socket::last(with.as_fd(), &name, &mut lasting),
                    _ => socket::briefly(with.as_fd(), &name),
                })
            }
            told => {
                let root = Pid::from_raw(pid).filter(|_| told == Some(&Task::Keep));
                kept = root.and_then(|root| pidfd_open(root, PidfdFlags::empty()).ok());
                Err(Errno::CANCELED)
            }
        };
        let (code, fd) = match &made {
            Ok(fd) => (0, Some(fd.as_fd())),
            Err(error) => (error.raw_os_error(), None),
        };
        if line.send(&code.to_le_bytes(), fd).is_err() {
            break false;
        }
    };
    if kept.is_some_and(|root| dismissed || outlives(&root)) {
        lasting.iter().for_each(Lasting::keep);
    } else {
        lasting.iter().for_each(Lasting::undo);
    }
}

/// Whether a process lives on though its tracer, who was to let it go, has died.
fn outlives(root: &OwnedFd) -> bool {
    const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut polled = [PollFd::new(root, PollFlags::IN)];
    poll(&mut polled, Some(&PATIENCE)) == Ok(0)
}

/// The directory part of a path, open, without going through any link, and the name in it. Directories
/// that are missing are made if `making`; those that were.
fn parent(path: &[u8], making: bool) -> Result<(OwnedFd, Vec<u8>, Vec<Made>), Errno> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let (last, above) = names.split_last().ok_or(Errno::INVAL)?;
    if names.iter().any(|name| [&b"."[..], b".."].contains(name)) {
        return Err(Errno::INVAL);
    }
    let mut made = Vec::new();
    let mut dir = open_dir(CWD, b"/")?;
    for name in above {
        dir = match open_dir(dir.as_fd(), name) {
            Err(Errno::NOENT) if making => {
                let fresh =
                    rustix::fs::mkdirat(&dir, *name, Mode::RWXU).and_then(|()| open_dir(dir.as_fd(), name));
                let fresh = fresh.inspect_err(|_| unmake(&mut made))?;
                made.push((std::mem::replace(&mut dir, fresh), name.to_vec()));
                continue;
            }
            other => other.inspect_err(|_| unmake(&mut made))?,
        };
    }
    Ok((dir, last.to_vec(), made))
}

/// A directory that was made: the one it is in, and its name.
type Made = (OwnedFd, Vec<u8>);

/// Removes directories that were made, the last first.
fn unmake(made: &mut Vec<Made>) {
    while let Some((dir, name)) = made.pop() {
        let _ = rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
    }
}

fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)
}

/// Makes something at `path`, or under a name derived from it when that is taken, and takes the name
/// away.
fn briefly(
    path: &[u8],
    making: bool,
    make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    let (dir, name, mut above) = parent(path, making)?;
    let made = fresh_name(&name, |name| {
        let made = make(dir.as_fd(), name)?;
        rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
        Ok(made)
    });
    drop(dir);
    unmake(&mut above);
    made
}

/// Calls `make` with names derived from one until one is not taken.
fn fresh_name(name: &[u8], mut make: impl FnMut(&[u8]) -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    const ATTEMPTS: u32 = 100;
    let derived = |attempt: u32| [name, format!(".{attempt}").as_bytes()].concat();
    let names = std::iter::once(name.to_vec()).chain((1..ATTEMPTS).map(derived));
    names.map(|name| make(&name)).find(|made| !matches!(made, Err(Errno::EXIST))).unwrap_or(Err(Errno::EXIST))
}

fn create(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
}

fn fifo(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::mknodat(dir, name, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, name, flags, Mode::empty()).inspect_err(|_| forget(dir, name))
}

fn link(other: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let (from, old, _) = parent(other, false)?;
    rustix::fs::linkat(&from, old, dir, name, AtFlags::empty())?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).inspect_err(|_| forget(dir, name))
}

fn forget(dir: BorrowedFd<'_>, name: &[u8]) {
    let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
}

fn directory(path: &[u8]) -> Result<OwnedFd, Errno> {
    let (dir, name, mut above) = parent(path, true)?;
    let made = fresh_name(&name, |name| {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU)?;
        let made = open_dir(dir.as_fd(), name);
        rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?;
        made
    });
    drop(dir);
    unmake(&mut above);
    made
}

fn last(path: &[u8], lasting: &mut Vec<Lasting>) -> Result<OwnedFd, Errno> {
    let (dir, name, _) = parent(path, false)?;
    let fd = create(dir.as_fd(), &name)?;
    let stat = rustix::fs::fstat(&fd)?;
    lasting.push(Lasting { dir, name, dev_ino: (stat.st_dev, stat.st_ino), aside: None });
    Ok(fd)
}
