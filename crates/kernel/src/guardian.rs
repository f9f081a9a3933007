//! A guardian: a forked process that does something when the coordinator dies.
//!
//! Tasks whose coordinator is killed go home by themselves, but the slot they ran in and the
//! stub's bytes stay. The guardian has a session of its own, so that signals to the coordinator's
//! group spare it; it waits for a word through a pipe, and acts when the pipe ends without one. Of the
//! coordinator's descriptors it keeps stderr alone, to say that it failed.

use crate::{
    error::{Named, Result},
    sys,
};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The one word: all is clean.
const DISMISSED: [u8; 1] = *b"d";

/// A guardian on duty. Dropped, it is dismissed.
#[derive(Debug)]
pub struct Guardian {
    pid: i32,
    pipe: OwnedFd,
}

impl Guardian {
    /// Forks a guardian that runs `act` if this process dies before dismissing it.
    pub fn start(act: impl FnOnce()) -> Result<Guardian> {
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
            watch(read.as_raw_fd(), act);
        }
        sys::check(libc::c_long::from(pid)).named("fork")?;
        Ok(Guardian { pid, pipe: write })
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.pipe, &DISMISSED);
        let mut status = 0;
        // SAFETY: `status` is a live i32; `pid` is our child, not yet reaped.
        unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
    }
}

/// The guardian's life.
fn watch(pipe: RawFd, act: impl FnOnce()) -> ! {
    let mut word = [0u8; 1];
    // SAFETY: plain system calls on numbers, and a read into a live buffer of one byte. Closing
    // descriptors that Rust values of the parent's copy still name is harmless: no destructor of
    // theirs runs in this process, which ends by _exit.
    let dismissed = unsafe {
        libc::setsid();
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        // 0 to 2 were open when the pipe was made: the standard library sees to that.
        for (from, to) in [(0, 1), (3, pipe - 1), (pipe + 1, libc::c_int::MAX)] {
            if from <= to {
                libc::syscall(libc::SYS_close_range, from, to, 0);
            }
        }
        libc::read(pipe, word.as_mut_ptr().cast(), 1) == 1
    };
    if !dismissed {
        act();
    }
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}
