//! A process seen from outside: its pidfd and its directories in /proc.
//!
//! Memory, descriptors and directories belong to threads, and a leader that has ended while others
//! live (pthread_exit in main) has none any more: /proc/PID shows nothing of them. So they are
//! looked at through a *witness*, a thread that has them: the leader if it lives, else any other.

use crate::error::{Context, Doing, Error, Result};
use ckpt_image::record::PAGE_SIZE;
use ckpt_kernel::procfs;
use ckpt_proc::{
    ParseError,
    stat::{Stat, parse_stat},
    status::{Status, parse_status},
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat as FileStat, StatFs, StatxFlags},
    io::Errno,
    process::{Pid, PidfdFlags},
};
use std::{
    ffi::OsStr,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

/// More than the longest record of most files: a descriptor's target of epoll, a timer, a line of status.
const RECORD: usize = 512;

/// A directory of /proc that belongs to a process or to one of its threads.
#[derive(Debug)]
pub(crate) struct ProcDir(OwnedFd);

impl ProcDir {
    /// The directory `name` below /proc.
    fn find(name: &str) -> Result<ProcDir, Errno> {
        procfs::open(name, OFlags::PATH | OFlags::DIRECTORY).map(ProcDir)
    }

    /// Our own.
    pub(crate) fn own() -> Result<ProcDir> {
        ProcDir::find("self").doing(|| "open /proc/self".to_owned())
    }

    /// The directory `name` below the directory.
    pub(crate) fn dir(&self, name: &str) -> Result<ProcDir> {
        self.open(name, OFlags::PATH | OFlags::DIRECTORY).map(ProcDir)
    }

    /// Opens the file `name` below the directory.
    pub(crate) fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        rustix::fs::openat(&self.0, name, flags | OFlags::CLOEXEC, Mode::empty())
            .doing(|| format!("open {name}"))
    }

    /// The whole contents of the file `name`, none of whose records is longer than [`RECORD`].
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.read_records(name, RECORD)
    }

    /// The same of any file, such as one with paths in it.
    pub(crate) fn read_long(&self, name: &str) -> Result<Vec<u8>> {
        self.read_records(name, PAGE_SIZE)
    }

    /// The kernel fills a page, or our buffer, with whole records (seq_file.c): where one more would
    /// have had room, there are no more.
    fn read_records(&self, name: &str, longest: usize) -> Result<Vec<u8>> {
        const PIECE: usize = 16 << 10;
        let file = self.open(name, OFlags::RDONLY)?;
        let mut text = Vec::with_capacity(PIECE);
        // Their sizes are not known before: no use asking, as read_to_end would.
        loop {
            text.reserve(PIECE / 4);
            match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)) {
                Ok(some) if some + longest > PAGE_SIZE => {}
                Ok(_) => return Ok(text),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::os(format!("read {name}"), error)),
            }
        }
    }

    /// The file `name`, read by [`ProcDir::read`], through one of the parsers of `ckpt_proc`.
    pub(crate) fn parse<T>(
        &self,
        name: &str,
        parser: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<T> {
        parsed(name, &self.read(name)?, parser)
    }

    /// The same of any file, such as one with paths in it.
    pub(crate) fn parse_long<T>(
        &self,
        name: &str,
        parser: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<T> {
        parsed(name, &self.read_long(name)?, parser)
    }

    /// How many entries the directory `name` has, if they are directories.
    pub(crate) fn count(&self, name: &str) -> Result<usize> {
        Ok(usize::try_from(self.stat(name)?.st_nlink).unwrap_or(0).saturating_sub(2))
    }

    /// The target of the link `name`.
    pub(crate) fn readlink(&self, name: &str) -> Result<Vec<u8>> {
        // procfs has no longer ones.
        let mut room = [MaybeUninit::uninit(); PAGE_SIZE];
        let target = rustix::fs::readlinkat_raw(&self.0, name, room.as_mut_slice())
            .doing(|| format!("readlink {name}"))?;
        Ok(target.0.to_vec())
    }

    /// What the link `name` leads to.
    pub(crate) fn stat(&self, name: &str) -> Result<FileStat> {
        rustix::fs::statat(&self.0, name, AtFlags::empty()).doing(|| format!("stat {name}"))
    }

    /// The file system of what the link `name` leads to.
    pub(crate) fn statfs(&self, name: &str) -> Result<StatFs> {
        let there = self.open(name, OFlags::PATH)?;
        rustix::fs::fstatfs(there).doing(|| format!("statfs {name}"))
    }

    /// Whether there is a link `name`.
    pub(crate) fn has_link(&self, name: &str) -> bool {
        rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Device and inode of what the link `name` leads to; no file system is asked anything for it that it
    /// does not know at once.
    pub(crate) fn identity(&self, name: &str) -> Result<(u64, u64)> {
        let found = rustix::fs::statx(&self.0, name, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)
            .doing(|| format!("statx {name}"))?;
        Ok((rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino))
    }

    /// The numbers that name the entries of the directory `name`, ascending.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<i32>> {
        let dir = self.open(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        procfs::numbers_in(dir).doing(|| format!("list {name}"))
    }
}

fn parsed<T>(name: &str, text: &[u8], parser: impl FnOnce(&[u8]) -> Result<T, ParseError>) -> Result<T> {
    parser(text).map_err(|e| Error::failed(format!("parse /proc/PID/{name}")).why(e.to_string()))
}

/// A process, by pidfd and /proc directory, so that a recycled pid is never mistaken for it.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its pid.
    pub(crate) pid: i32,
    /// Its name, for messages.
    pub(crate) comm: Vec<u8>,
    /// /proc/PID: its ids, its threads, and the leader itself, even one that has ended.
    pub(crate) leader: Arc<ProcDir>,
    /// The thread through which memory, descriptors and directories are looked at.
    pub(crate) witness: i32,
    /// /proc/TID of the witness: whatever /proc shows of a process.
    pub(crate) proc: Arc<ProcDir>,
    pidfd: OwnedFd,
}

impl Process {
    /// Opens process `pid`.
    pub(crate) fn open(pid: i32) -> Result<Process> {
        Process::look(pid).map(|(process, _)| process)
    }

    /// Opens process `pid`, and has a first look at it.
    pub(crate) fn look(pid: i32) -> Result<(Process, Stat)> {
        let gone = || {
            Error::failed(format!("no process has the pid {pid}")).advice("see `ps -e` for those that run")
        };
        let id = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(gone)?;
        let pidfd = match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Err(gone()),
            Err(Errno::INVAL | Errno::NOENT) => {
                let what = format!("{pid} is a thread of another process");
                return Err(Error::failed(what).advice("give the pid of the process"));
            }
            other => other.doing(|| format!("pidfd_open({pid})"))?,
        };
        let proc = Arc::new(match ProcDir::find(&pid.to_string()) {
            Err(Errno::NOENT) => return Err(gone()),
            other => other.doing(|| format!("open /proc/{pid}"))?,
        });
        let leader = Arc::clone(&proc);
        let mut process = Process { pid, comm: Vec::new(), leader, witness: pid, proc, pidfd };
        let stat = process.stat()?;
        if stat.state.has_ended()
            && let Some(tid) = process.tids()?.into_iter().find(|tid| !process.thread_has_ended(*tid))
        {
            process.look_through(tid)?;
        }
        process.comm.clone_from(&stat.comm);
        Ok((process, stat))
    }

    /// Makes thread `tid` the witness.
    pub(crate) fn look_through(&mut self, tid: i32) -> Result<()> {
        if tid != self.witness {
            self.proc = Arc::new(ProcDir::find(&tid.to_string()).doing(|| format!("open /proc/{tid}"))?);
            self.witness = tid;
        }
        Ok(())
    }

    /// How messages name it: `pid 7 (bash)`.
    pub(crate) fn label(&self) -> String {
        format!("pid {} ({})", self.pid, OsStr::from_bytes(&self.comm).display())
    }

    /// /proc/PID/stat: its ids, and how the leader is.
    pub(crate) fn stat(&self) -> Result<Stat> {
        let read = || self.leader.parse("stat", parse_stat).task(|| format!("pid {}", self.pid));
        let stat = read()?;
        // One that has just been replaced by a thread that executes a program looks as if it were the last.
        if stat.process_has_ended() { read() } else { Ok(stat) }
    }

    /// The same of the witness: how it is, and what its memory is like.
    pub(crate) fn witness_stat(&self) -> Result<Stat> {
        self.proc.parse("stat", parse_stat).task(|| format!("pid {}", self.pid))
    }

    /// /proc/TID/status of the witness.
    pub(crate) fn status(&self) -> Result<Status> {
        self.proc.parse("status", parse_status)
    }

    /// /proc/TID/status of thread `tid`.
    pub(crate) fn thread_status(&self, tid: i32) -> Result<Status> {
        self.leader.parse(&format!("task/{tid}/status"), parse_status)
    }

    /// Its threads, the leader first.
    pub(crate) fn tids(&self) -> Result<Vec<i32>> {
        let mut tids = self.leader.numbers("task")?;
        tids.sort_by_key(|tid| (*tid != self.pid, *tid));
        Ok(tids)
    }

    /// The same, known from `stat` if it has only one.
    pub(crate) fn tids_at(&self, stat: &Stat) -> Result<Vec<i32>> {
        if stat.num_threads == 1 { Ok(vec![self.pid]) } else { self.tids() }
    }

    /// How many threads it has, a leader that has ended among them.
    pub(crate) fn nr_threads(&self) -> Result<usize> {
        self.leader.count("task")
    }

    /// Whether thread `tid` has ended, though it may be there yet.
    pub(crate) fn thread_has_ended(&self, tid: i32) -> bool {
        let stat = self.leader.parse(&format!("task/{tid}/stat"), parse_stat);
        stat.map_or(true, |stat| stat.state.has_ended())
    }

    /// A copy of its descriptor `fd`, sharing the open description.
    pub(crate) fn descriptor(&self, fd: i32) -> Result<OwnedFd> {
        const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let copy =
            |of: &OwnedFd| rustix::process::pidfd_getfd(of, fd, flags).doing(|| "pidfd_getfd".to_owned());
        let thread = Pid::from_raw(self.witness).filter(|_| self.witness != self.pid);
        let Some(thread) = thread else { return copy(&self.pidfd) };
        let pidfd = rustix::process::pidfd_open(thread, PIDFD_THREAD).map_err(|e| {
            let what = format!("pidfd_open({}, PIDFD_THREAD)", self.witness);
            Error::os(what, e).advice("its main thread has ended: that needs Linux 6.9")
        })?;
        copy(&pidfd)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        rustix::process::pidfd_send_signal(&self.pidfd, signal).doing(|| "send a signal".to_owned())
    }

    /// Waits until it has ended (its pidfd becomes readable), at most `ms` milliseconds.
    pub(crate) fn wait_end(&self, ms: i64) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
        matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(n) if n > 0)
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// /proc/TID/stat, if there is such a task.
pub(crate) fn stat_of(tid: i32) -> Option<Stat> {
    parse_stat(&procfs::read(&format!("{tid}/stat")).ok()?).ok()
}

/// Bytes as text for a message.
pub(crate) fn show(bytes: &[u8]) -> String {
    OsStr::from_bytes(bytes).display().to_string()
}
