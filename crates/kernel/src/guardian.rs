//! A guardian: a forked process that does something when the coordinator dies.
//!
//! Tasks whose coordinator is killed go home by themselves, but the slot they ran in and the
//! stub's bytes stay. The guardian has a session of its own, so that signals to the coordinator's
//! group spare it; it hears through a pipe which processes to watch over, and acts when the pipe
//! ends without the word that dismisses it. Of the coordinator's descriptors it keeps procfs and
//! stderr, to say that it failed.

use crate::{
    error::{Named, Result},
    procfs, sys,
};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The word that dismisses it; every other is a pid.
const DISMISSED: i32 = 0;

/// A guardian on duty. Dropped, it is dismissed.
#[derive(Debug)]
pub struct Guardian {
    pid: i32,
    pipe: OwnedFd,
}

impl Guardian {
    /// Forks a guardian that runs `act`, with the pids given to [`Guardian::watch`], if this process
    /// dies before dismissing it.
    pub fn start(act: impl FnOnce(&[i32])) -> Result<Guardian> {
        let proc = procfs::root().named("open(/proc)")?.as_raw_fd();
        let mut ends: [RawFd; 2] = [-1; 2];
        // SAFETY: `ends` is a live array of two descriptors for the kernel to write.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
        sys::check(libc::c_long::from(made)).named("pipe2")?;
        // SAFETY: pipe2 just made both; nobody else owns them.
        let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: the child, a copy of this process with the calling thread alone, runs `watch`
        // and leaves by _exit. It uses the allocator, which glibc keeps usable across fork, and
        // no lock that another thread might have held.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            watch(read.as_raw_fd(), proc, act);
        }
        sys::check(libc::c_long::from(pid)).named("fork")?;
        Ok(Guardian { pid, pipe: write })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells it which processes to watch over.
    pub fn watch(&self, pids: &[i32]) -> Result<()> {
        let words: Vec<u8> = pids.iter().flat_map(|pid| pid.to_ne_bytes()).collect();
        let mut rest = words.as_slice();
        while !rest.is_empty() {
            let n = rustix::io::write(&self.pipe, rest).named("write to the guardian")?;
            rest = rest.get(n..).unwrap_or_default();
        }
        Ok(())
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.pipe, &DISMISSED.to_ne_bytes());
        let mut status = 0;
        // SAFETY: `status` is a live i32; `pid` is our child, not yet reaped.
        unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
    }
}

/// In a forked child: takes it out of reach of what is sent to its parent's group, and closes every
/// descriptor but stderr and `kept`.
pub(crate) fn stand_apart(kept: [RawFd; 2]) {
    // SAFETY: plain system calls on numbers. Closing descriptors that Rust values of the parent's
    // copy still name is harmless: no destructor of theirs runs in this process, which ends by
    // _exit.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        let [a, b] = kept;
        let mut kept = [libc::STDERR_FILENO, a, b, RawFd::MAX];
        kept.sort_unstable();
        let mut from = 0;
        for fd in kept {
            if from < fd {
                libc::syscall(libc::SYS_close_range, from, fd - 1, 0);
            }
            from = fd.saturating_add(1);
        }
    }
}

/// The guardian's life.
fn watch(pipe: RawFd, proc: RawFd, act: impl FnOnce(&[i32])) -> ! {
    stand_apart([pipe, proc]);
    let mut pids = Vec::new();
    loop {
        let mut word = [0u8; 4];
        // SAFETY: a read into a live buffer of four bytes. Words are written whole, and a pipe
        // gives back what is in it.
        let n = unsafe { libc::read(pipe, word.as_mut_ptr().cast(), word.len()) };
        match i32::from_ne_bytes(word) {
            _ if n != 4 => break act(&pids),
            DISMISSED => break,
            pid => pids.push(pid),
        }
    }
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}
