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
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use std::{cell::RefCell, os::fd::AsFd};

/// Midwives who have not left yet. Dropped, they have.
#[derive(Debug, Default)]
pub struct Midwives(RefCell<Vec<Servant>>);

impl Midwives {
    /// Lets one `make` a puppet, of that pid if there is one. All signals are blocked.
    pub(super) fn deliver(
        &self,
        pid: Option<i32>,
        make: impl FnOnce() -> Result<Waiting>,
    ) -> Result<Waiting> {
        let born = |line: &Line| {
            ignore_ends();
            answer(line, make());
        };
        let wait = |line: Line| drop(line.request());
        let midwife = Servant::start_after(born, wait)?;
        let said = midwife.hear().ok();
        let Some((word, pipe)) = said.and_then(|(word, pipe)| Some((word.try_into().ok()?, pipe))) else {
            // Killed. What she has made, if so, ends by itself, as a child of ours if we are a subreaper.
            let gone = Error::Midwife { pid: midwife.pid() };
            drop(midwife);
            pid.into_iter().for_each(super::reap);
            return Err(gone);
        };
        let (pid, Some(pipe)) = (i32::from_ne_bytes(word), pipe) else {
            return Err(Errno::from_raw_os_error(i32::from_ne_bytes(word))).named("clone3");
        };
        let known = Pid::from_raw(pid).ok_or(Error::Gone { tid: pid })?;
        let pidfd = pidfd_open(known, PidfdFlags::empty()).named("pidfd_open")?;
        self.0.borrow_mut().push(midwife);
        Ok(Waiting { pid, pidfd, pipe })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Sees them off: whom they have made are orphans.
    pub fn leave(&self) -> Result<()> {
        self.0.take().into_iter().try_for_each(|midwife| {
            let pid = midwife.pid();
            if midwife.dismiss() { Ok(()) } else { Err(Error::Midwife { pid }) }
        })
    }
}

/// Tells the pid and hands over the pipe, or tells the errno.
fn answer(line: &Line, made: Result<Waiting>) {
    let word = match &made {
        Ok(waiting) => waiting.pid,
        Err(error) => error.errno().unwrap_or(Errno::IO).raw_os_error(),
    };
    let pipe = made.as_ref().ok().map(|waiting| waiting.pipe.as_fd());
    let _ = line.send(&word.to_ne_bytes(), pipe);
}

/// Lets her children be gone as soon as they end. They inherit that, as from whoever else ignores SIGCHLD.
fn ignore_ends() {
    // SAFETY: no handler is installed. The midwife waits for no child.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}
