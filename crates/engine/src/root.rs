//! The root of a restarted tree, for whoever waits for it.

use crate::error::{Doing, Error, Result};
use ckpt_kernel::puppet;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, waitid};
use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
};

/// The root process of a restarted tree: a child of the caller, or of the init of its pid namespace,
/// which is one.
#[derive(Debug)]
pub struct Root {
    pid: i32,
    own_pid: i32,
    pidfd: OwnedFd,
    /// Where the init says how it ended.
    status: Option<OwnedFd>,
}

impl Root {
    pub(crate) fn new(released: puppet::Released, status: Option<OwnedFd>) -> Root {
        let puppet::Released { pid, own_pid, pidfd } = released;
        Root { pid, own_pid, pidfd, status }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The pid it has in its own pid namespace.
    pub fn own_pid(&self) -> i32 {
        self.own_pid
    }

    /// Sends it a signal; one that has ended does not mind.
    ///
    /// # Errors
    /// That the caller may not.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other.doing(|| format!("signal to pid {}", self.pid)),
        }
    }

    /// Whether it has been stopped since this was asked last; not known of one in a pid namespace of its own.
    pub fn has_stopped(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let asked = self.status.is_none().then(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options));
        matches!(asked, Some(Ok(Some(status))) if status.stopped())
    }

    /// Waits for its end. Its descriptor ([`AsFd`]) is readable then.
    ///
    /// # Errors
    /// Somebody else has waited for it.
    pub fn wait(&self) -> Result<ExitStatus> {
        if let Some(status) = &self.status {
            return of_init(status).doing(|| format!("wait for pid {}", self.pid));
        }
        // __WALL: also a child that sends another signal than SIGCHLD when it ends.
        let options = WaitOptions::from_bits_retain(libc::__WALL as u32);
        loop {
            match rustix::process::waitpid(Pid::from_raw(self.pid), options) {
                Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(Error::os(format!("wait for pid {}", self.pid), cause)),
            }
        }
    }
}

/// What an init has said. One that was killed has taken everybody with it.
fn of_init(status: &OwnedFd) -> std::io::Result<ExitStatus> {
    let mut word = [0; 4];
    match File::from(status.try_clone()?).read_exact(&mut word) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Ok(ExitStatus::from_raw(libc::SIGKILL))
        }
        other => other.map(|()| ExitStatus::from_raw(i32::from_le_bytes(word))),
    }
}

impl AsFd for Root {
    /// Readable (for poll(2)) when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.status.as_ref().unwrap_or(&self.pidfd).as_fd()
    }
}
