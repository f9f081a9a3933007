//! A servant: a forked process that does what it is asked through a socket, and outlives the
//! coordinator for as long as it takes to finish. It has the root directory and the mounts that the
//! calling thread has, and a session of its own.

use crate::{
    error::{Named, Result},
    guardian::stand_apart,
    procfs, sys,
};
use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
    process::{Pid, WaitOptions, waitpid},
};
use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

/// Longest message: two paths and some words.
const LONGEST: usize = 16 << 10;
/// The message that dismisses a servant. The end of the line may come later: whoever was forked
/// meanwhile has a copy of our end.
const DISMISSED: &[u8] = b"\0";

/// What a servant hears.
#[derive(Debug)]
pub enum Request {
    /// What it is to do, and with what.
    Some(Vec<u8>, Option<OwnedFd>),
    /// There is nothing more to do.
    Dismissed,
    /// The master has died.
    Abandoned,
}

/// One end of the socket between a servant and its master. Each message is a whole one, with a
/// descriptor or none.
#[derive(Debug)]
pub struct Line(OwnedFd);

impl Line {
    /// The two ends of a new one.
    pub fn pair() -> Result<(Line, Line), Errno> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (a, b) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Line(a), Line(b)))
    }

    /// Sends a message.
    pub fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        loop {
            match rustix::net::sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                other => return other.map(drop),
            }
        }
    }

    /// The next request.
    pub fn request(&self) -> Request {
        match self.receive() {
            Ok((request, _)) if request == DISMISSED => Request::Dismissed,
            Ok((request, fd)) if !request.is_empty() => Request::Some(request, fd),
            _ => Request::Abandoned,
        }
    }

    /// The next message; an empty one when the other end is closed.
    pub fn receive(&self) -> Result<(Vec<u8>, Option<OwnedFd>), Errno> {
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let n = loop {
            match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                other => break other?.bytes,
            }
        };
        bytes.truncate(n);
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok((bytes, fd))
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A servant at work. Dropped, it is dismissed, and waited for.
#[derive(Debug)]
pub struct Servant {
    pid: i32,
    line: Line,
}

impl Servant {
    /// Forks a servant that does `work` with its end of the line.
    pub fn start(work: impl FnOnce(Line)) -> Result<Servant> {
        Servant::start_after(|_| (), work)
    }

    /// The same after it has done something while it has yet all that we have.
    pub(crate) fn start_after(first: impl FnOnce(&Line), work: impl FnOnce(Line)) -> Result<Servant> {
        let proc = procfs::root().named("open(/proc)")?.as_raw_fd();
        let (ours, theirs) = Line::pair().named("socketpair")?;
        // SAFETY: the child, a copy of this process with the calling thread alone, does its work and leaves
        // by _exit. It uses the allocator, which glibc keeps usable across fork, and no lock that
        // another thread might have held.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(ours);
            first(&theirs);
            stand_apart([theirs.as_fd().as_raw_fd(), proc]);
            work(theirs);
            // SAFETY: ends this process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        sys::check(libc::c_long::from(pid)).named("fork")?;
        Ok(Servant { pid, line: ours })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What it says unasked.
    pub(crate) fn hear(&self) -> Result<(Vec<u8>, Option<OwnedFd>), Errno> {
        self.line.receive()
    }

    /// Asks for something, to be done with `fd` if that is given, and waits for the answer: the first message of which `hear`
    /// makes something. Those before it are heard even if the servant dies over the request.
    pub fn ask<T>(
        &self,
        request: &[u8],
        fd: Option<BorrowedFd<'_>>,
        mut hear: impl FnMut(&[u8], Option<OwnedFd>) -> Option<T>,
    ) -> Result<T, Errno> {
        self.line.send(request, fd)?;
        loop {
            match self.line.receive() {
                // It died with a request unread. What it has sent comes behind that error, which is told once.
                Err(Errno::CONNRESET) => {}
                Err(error) => return Err(error),
                Ok((message, _)) if message.is_empty() => return Err(Errno::PIPE),
                Ok((message, fd)) => {
                    if let Some(answer) = hear(&message, fd) {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    /// Dismisses it and waits for it. Whether it finished, and was not killed.
    pub fn dismiss(mut self) -> bool {
        let finished = self.end();
        self.pid = 0;
        finished
    }

    fn end(&self) -> bool {
        let _ = self.line.send(DISMISSED, None);
        let wait = || waitpid(Pid::from_raw(self.pid), WaitOptions::empty());
        matches!(retry_on_intr(wait), Ok(Some((_, status))) if status.exited())
    }
}

impl Drop for Servant {
    fn drop(&mut self) {
        if self.pid != 0 {
            self.end();
        }
    }
}
