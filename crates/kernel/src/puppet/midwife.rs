//! Midwives: processes that make puppets in our place.
//!
//! Whoever makes a tree and does not wait for it leaves its root an orphan. It must not be our end that makes it one, for then the
//! kernel sends it its parent-death signal, and, if we were the last who could have continued stopped members of its
//! process group, SIGHUP and SIGCONT to that. So its parent is a midwife, forked to make it just as we would, with a session
//! of her own from then on, which makes her nobody who continues anything; who leaves before the root is given a parent-death
//! signal, or else when all is done. Whom she has made are ours to trace; that they end is not told to her.

use super::birth::Waiting;
use crate::{
    error::{Error, Named, Result},
    servant::{Line, Servant},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::{cell::RefCell, os::fd::AsFd};

/// Midwives who have not left yet. Dropped, they have.
#[derive(Debug, Default)]
pub struct Midwives(RefCell<Vec<Servant>>);

impl Midwives {
    /// Lets one `make` a puppet. All signals are blocked.
    pub(super) fn deliver(&self, make: impl FnOnce() -> Result<Waiting>) -> Result<Waiting> {
        let midwife = Servant::start_after(|line| answer(line, make()), wait)?;
        let gone = || Error::Gone { tid: midwife.pid() };
        let (word, pipe) = midwife.hear().map_err(|_| gone())?;
        let word = word.try_into().map(i32::from_ne_bytes).map_err(|_| gone())?;
        let Some(pipe) = pipe else {
            return Err(rustix::io::Errno::from_raw_os_error(word)).named("clone3");
        };
        let pid = Pid::from_raw(word).ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).named("pidfd_open")?;
        self.0.borrow_mut().push(midwife);
        Ok(Waiting { pid: word, pidfd, pipe })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Sees them off: whom they have made are orphans.
    pub fn leave(&self) -> Result<()> {
        self.0.take().into_iter().try_for_each(|midwife| {
            let pid = midwife.pid();
            if midwife.dismiss() { Ok(()) } else { Err(Error::Gone { tid: pid }) }
        })
    }
}

/// Tells the pid and hands over the pipe, or tells the errno.
fn answer(line: &Line, made: Result<Waiting>) {
    let word = match &made {
        Ok(waiting) => waiting.pid,
        Err(error) => error.errno().unwrap_or(rustix::io::Errno::IO).raw_os_error(),
    };
    let pipe = made.as_ref().ok().map(|waiting| waiting.pipe.as_fd());
    let _ = line.send(&word.to_ne_bytes(), pipe);
}

/// Until there is nothing more to do.
fn wait(line: Line) {
    // SAFETY: no handler is installed. This process waits for no child.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    line.request();
}
