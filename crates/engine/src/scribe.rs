//! Names that a restart makes in the file system: for a moment, or only if it succeeds.
//!
//! A file that was unlinked, a directory that was removed must once more have had its name, so that
//! what the kernel shows of it is what it showed. Between making a name and taking it away nobody may
//! die: so it is done by a *scribe*, a servant that finishes what it has begun even when we are killed
//! (SIGKILL). A file that is to stay it takes away again unless it is told that the restart succeeds; should we be
//! killed then, while tasks are let go, it looks whether they live. Should the scribe be killed, we do the same by the
//! [`journal`] of what it has made.
//!
//! Names come from an image, and directories may belong to somebody else: no link is followed on the
//! way to a name, and nothing that exists is touched (openat2(2), O_EXCL, mkdirat, linkat).

mod journal;
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
use journal::{Journal, Likeness, Step};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat},
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{
    cell::{Cell, OnceCell, RefCell},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
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

/// The scribe, forked when there is something to do. Dropped, it has left what is to stay, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Scribe {
    servant: OnceCell<Servant>,
    /// What it has told of its own.
    journal: RefCell<Journal>,
    /// Whether it knows that what lasts is to stay.
    kept: Cell<bool>,
}

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
        self.tell(Task::Keep, root)?;
        self.kept.set(true);
        Ok(())
    }

    /// What lasts is not to stay after all.
    pub(crate) fn discard(&self) -> Result<()> {
        self.kept.set(false);
        self.tell(Task::Discard, 0)
    }

    fn trouble(&self, what: &str, path: &[u8], cause: Errno) -> Error {
        let path = model::removed(path).unwrap_or(path);
        let error = Error::os(format!("{what} {} again", show(path)), cause);
        let advice = match cause {
            Errno::PIPE => return self.dead(),
            Errno::LOOP => {
                "replace the symbolic link that leads to its directory: nothing is made beyond one"
            }
            Errno::NOENT | Errno::NOTDIR => "make its directory",
            _ => "make its directory one that can be written to",
        };
        error.advice(advice).or(Means::MapFiles)
    }

    fn dead(&self) -> Error {
        let pid = self.servant.get().map_or(0, Servant::pid);
        Error::failed(format!("pid {pid}, which makes names for restart, was killed")).advice("try again")
    }

    fn tell(&self, task: Task, pid: i32) -> Result<()> {
        let Some(servant) = self.servant.get() else { return Ok(()) };
        let request = [&[task as u8][..], &pid.to_le_bytes()].concat();
        self.exchange(servant, &request, None).map(drop).map_err(|_| self.dead())
    }

    fn ask(&self, task: Task, paths: &[&[u8]]) -> Result<OwnedFd, Errno> {
        self.request(task, &paths.join(&0), None)
    }

    fn request(&self, task: Task, what: &[u8], with: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Errno> {
        let servant = match self.servant.get() {
            Some(servant) => servant,
            None => {
                let servant = Servant::start(work).map_err(|e| e.errno().unwrap_or(Errno::AGAIN))?;
                self.servant.get_or_init(|| servant)
            }
        };
        self.exchange(servant, &[&[task as u8], what].concat(), with)?
    }

    /// Gets an answer, unless the scribe dies.
    fn exchange(
        &self,
        servant: &Servant,
        request: &[u8],
        with: Option<BorrowedFd<'_>>,
    ) -> Result<Result<OwnedFd, Errno>, Errno> {
        let mut journal = self.journal.borrow_mut();
        servant.ask(request, with, |message, fd| journal.hear(message, fd))
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        let finished = self.servant.take().is_none_or(Servant::dismiss);
        if !finished {
            self.journal.get_mut().settle(self.kept.get());
        }
    }
}

/// The scribe's life.
fn work(line: Line) {
    // As when the original made it: who may use it is set afterwards.
    rustix::process::umask(Mode::empty());
    let mut desk = Desk { line: &line, journal: Journal::default() };
    // The root of the tasks for which it is to stay.
    let mut kept = None;
    let dismissed = loop {
        let (request, with) = match line.request() {
            Request::Some(request, with) => (request, with),
            other => break matches!(other, Request::Dismissed),
        };
        let Some((code, what)) = request.split_first() else { break false };
        let task = TASKS.into_iter().find(|task| *task as u8 == *code).unwrap_or(Task::Discard);
        if let Task::Keep | Task::Discard = task {
            let pid = what.first_chunk().map_or(0, |pid| i32::from_le_bytes(*pid));
            let root = Pid::from_raw(pid).filter(|_| task == Task::Keep);
            kept = root.and_then(|root| pidfd_open(root, PidfdFlags::empty()).ok());
        }
        let before = desk.journal.len();
        let mut made = desk.make_for(task, what, with);
        if made.is_err() || !matches!(task, Task::Lasting | Task::Socket) {
            let undone = desk.journal.undo(before);
            made = made.and_then(|fd| undone.map(|()| fd));
        }
        if desk.journal.answer(&made, &line).is_err() {
            break false;
        }
    };
    desk.journal.settle(kept.is_some_and(|root| dismissed || outlives(&root)));
}

/// Whether a process lives on though its tracer, who was to let it go, has died.
fn outlives(root: &OwnedFd) -> bool {
    const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut polled = [PollFd::new(root, PollFlags::IN)];
    poll(&mut polled, Some(&PATIENCE)) == Ok(0)
}

/// The scribe at work: it takes no step that is not in its journal, by which the step is undone.
struct Desk<'a> {
    line: &'a Line,
    journal: Journal,
}

impl Desk<'_> {
    /// Makes what a request is for.
    fn make_for(&mut self, task: Task, what: &[u8], with: Option<OwnedFd>) -> Result<OwnedFd, Errno> {
        let mut paths = what.split(|byte| *byte == 0);
        let (path, other) = (paths.next().unwrap_or_default(), paths.next().unwrap_or_default());
        let new = Likeness::new;
        match task {
            Task::File => {
                let (path, making) = model::removed(path).map_or((path, false), |path| (path, true));
                self.fresh(path, making, new(FileType::RegularFile), create)
            }
            Task::Fifo => self.fresh(path, true, new(FileType::Fifo), fifo),
            Task::Directory => self.fresh(path, true, new(FileType::Directory), directory),
            Task::Link => self.link(path, other),
            Task::Lasting => self.lasting(path),
            Task::Socket | Task::BriefSocket => {
                let (name, with) = socket::Name::of_request(what).zip(with).ok_or(Errno::INVAL)?;
                match task {
                    Task::Socket => socket::last(self, with.as_fd(), &name),
                    _ => socket::briefly(self, with.as_fd(), &name),
                }
            }
            Task::Keep | Task::Discard => Err(Errno::CANCELED),
        }
    }

    /// Takes a step by which a name comes into being that is not there.
    fn take<T>(&mut self, step: Step, make: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        match step.look() {
            Err(Errno::NOENT) => {}
            other => return Err(other.err().unwrap_or(Errno::EXIST)),
        }
        self.journal.note(step, self.line)?;
        make().inspect_err(|error| {
            // Somebody else was faster.
            if let Errno::EXIST | Errno::ADDRINUSE = *error {
                self.journal.withdraw();
            }
        })
    }

    /// What the last step has made is known now, for as long as it lasts.
    fn know(&mut self, likeness: Likeness) -> Result<(), Errno> {
        let mut step = self.journal.withdraw().ok_or(Errno::INVAL)?;
        step.likeness = likeness;
        self.journal.note(step, self.line)
    }

    /// The directory part of a path, open, without going through any link, and the name in it. Directories
    /// that are missing are made if `making`.
    fn parent(&mut self, path: &[u8], making: bool) -> Result<(Rc<OwnedFd>, Vec<u8>), Errno> {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        let (last, above) = names.split_last().ok_or(Errno::INVAL)?;
        if names.iter().any(|name| [&b"."[..], b".."].contains(name)) {
            return Err(Errno::INVAL);
        }
        let mut dir = Rc::new(open_dir(CWD, b"/")?);
        for name in above {
            let next = match open_dir(dir.as_fd(), name) {
                Err(Errno::NOENT) if making => {
                    let step = Step::new(&dir, name, Likeness::new(FileType::Directory));
                    self.take(step, || directory(dir.as_fd(), name))
                }
                other => other,
            };
            dir = Rc::new(next?);
        }
        Ok((dir, last.to_vec()))
    }

    /// Makes something at `path`, or under a name derived from it when that is taken.
    fn fresh(
        &mut self,
        path: &[u8],
        making: bool,
        likeness: Likeness,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<OwnedFd, Errno>,
    ) -> Result<OwnedFd, Errno> {
        let (dir, name) = self.parent(path, making)?;
        fresh_name(&name, |name| self.take(Step::new(&dir, name, likeness), || make(dir.as_fd(), name)))
    }

    fn link(&mut self, path: &[u8], other: &[u8]) -> Result<OwnedFd, Errno> {
        let (from, old) = self.parent(other, false)?;
        let stat = rustix::fs::statat(&from, old.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        let made = self.fresh(path, false, Likeness::of(&stat), |dir, name| {
            rustix::fs::linkat(&from, old.as_slice(), dir, name, AtFlags::empty())?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, Mode::empty())
        })?;
        // Where directories are laid over one another, a link makes it another file.
        self.know(Likeness::of(&fstat(&made)?))?;
        Ok(made)
    }

    fn lasting(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let (dir, name) = self.parent(path, false)?;
        let step = Step::new(&dir, &name, Likeness::new(FileType::RegularFile));
        let fd = self.take(step, || create(dir.as_fd(), &name))?;
        self.know(Likeness::of(&fstat(&fd)?))?;
        Ok(fd)
    }
}

fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)
}

/// Calls `make` with names derived from one until one is not taken.
fn fresh_name<T>(name: &[u8], mut make: impl FnMut(&[u8]) -> Result<T, Errno>) -> Result<T, Errno> {
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
    rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn directory(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(dir, name, Mode::RWXU)?;
    open_dir(dir, name)
}
