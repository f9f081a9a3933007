//! The restarter's own terminal, while a program that it restarted has it.
//!
//! A program whose terminal was outside gets that of `restart`. When `restart` waits for it and is in the
//! foreground itself, it does what a shell does for `fg`: the terminal gets the settings the program had given
//! it, and the program's process group comes to the foreground, so that it reads, and Ctrl-C and Ctrl-Z reach
//! it and nobody else. When the program stops, or ends by a signal, the terminal gets back the settings it had
//! before, and when it stops or ends our group comes back. In the background, or without waiting, the terminal
//! belongs to somebody else, and is left alone.
//!
//! A root that leads a session cannot have the terminal of ours: it goes on without one, with a warning.

use crate::{
    error::{Doing, Result},
    resource::file::external::Inherited,
};
use ckpt_image::{Image, model, record::Tty};
use ckpt_kernel::tty;
use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, getpgid, getpgrp, getsid, kill_process_group},
};
use std::os::fd::OwnedFd;

/// Our terminal, lent to a program. Dropped, it is ours again.
#[derive(Debug)]
pub struct Loan {
    tty: OwnedFd,
    /// Its settings before.
    before: Tty,
    /// Those that the program had set when it stopped.
    during: Tty,
    /// The group that is in the foreground instead of ours.
    group: Option<Pid>,
    /// The program has not ended by itself.
    undo: bool,
}

/// The group of the outer session that was in the foreground, by one of its members: an index into the
/// processes. None if the root's session is not ours.
fn foreground(image: &Image) -> Option<usize> {
    let root = &image.processes.first()?.task;
    if image.processes.iter().any(|process| process.task.pid == root.sid) {
        return None;
    }
    let of_group = |pgid: i32| {
        let here = |process: &model::Process| process.task.sid == root.sid && process.task.pgid == pgid;
        image.processes.iter().position(here)
    };
    of_group(root.tpgid).or(Some(0))
}

/// Whether the root had a terminal outside that it cannot have again.
pub(crate) fn is_lost(image: &Image) -> bool {
    image
        .processes
        .first()
        .is_some_and(|root| root.task.sid == root.task.pid && root.task.tpgid != 0 && root.task.tty == 0)
}

impl Loan {
    /// Lends our terminal to the program of `image`, whose process number N has the pid `pid(N)`; not if we are in
    /// its background, or have none.
    pub(crate) fn make(
        image: &Image,
        inherited: &Inherited,
        pid: impl FnOnce(usize) -> Option<i32>,
    ) -> Result<Option<Loan>> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let Ok(tty) = rustix::fs::open("/dev/tty", flags, Mode::empty()) else { return Ok(None) };
        if rustix::termios::tcgetpgrp(&tty).ok() != Some(getpgrp()) {
            return Ok(None);
        }
        let device = tty::device(&tty)?;
        let before = tty::settings(&tty)?;
        let mut loan = Loan { before, during: before, tty, group: None, undo: true };
        let mut saved = inherited.terminals(image).filter(|(fd, _)| tty::device(fd).ok() == Some(device));
        if let Some((_, settings)) = saved.next() {
            tty::set_modes(&loan.tty, &settings)?;
        }
        let member = foreground(image).and_then(pid).and_then(Pid::from_raw);
        let group =
            member.and_then(|pid| getpgid(Some(pid)).ok().filter(|_| getsid(Some(pid)) == getsid(None)));
        if let Some(group) = group.filter(|group| *group != getpgrp()) {
            tty::set_foreground(&loan.tty, group)?;
            loan.group = Some(group);
        }
        Ok(Some(loan))
    }

    /// The program has ended: by itself, so that it left the terminal as it wanted to.
    pub fn end(mut self, by_itself: bool) {
        self.undo = !by_itself;
    }

    /// Whether stops of the program are ours to see, as it is not in our group.
    pub fn is_apart(&self) -> bool {
        self.group.is_some()
    }

    /// The program has stopped: so do we, as whoever started us is to see it. Returns when we go on, and so
    /// does the program then, in the foreground if we are.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn stop(&mut self) -> Result<()> {
        let Some(group) = self.group else { return Ok(()) };
        let doing = || "hand the terminal over".to_owned();
        let foreground = |loan: &Loan| rustix::termios::tcgetpgrp(&loan.tty).ok();
        // One that reads in the background stops, too: then the terminal is somebody else's.
        if foreground(self) == Some(group) {
            self.during = tty::settings(&self.tty)?;
            tty::set_modes(&self.tty, &self.before)?;
            tty::set_foreground(&self.tty, getpgrp())?;
        }
        // Not SIGSTOP: where nobody could make us go on, the kernel stops nobody.
        kill_process_group(getpgrp(), Signal::TSTP).doing(doing)?;
        if foreground(self) == Some(getpgrp()) {
            self.before = tty::settings(&self.tty)?;
            tty::set_modes(&self.tty, &self.during)?;
            tty::set_foreground(&self.tty, group)?;
        }
        kill_process_group(group, Signal::CONT).doing(doing)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let is_theirs = || rustix::termios::tcgetpgrp(&self.tty).ok() == self.group;
        let ours = self.group.is_none() || is_theirs();
        if self.undo && ours {
            let _ = tty::set_modes(&self.tty, &self.before);
        }
        if self.group.is_some() && ours {
            let _ = tty::set_foreground(&self.tty, getpgrp());
        }
    }
}

/// Tells a program whose window is not as large as it was.
pub(crate) fn tell_window(image: &Image, inherited: &Inherited, root: i32) {
    let other = |(fd, saved): (&OwnedFd, Tty)| tty::settings(fd).is_ok_and(|now| now.window != saved.window);
    let group = Pid::from_raw(root).and_then(|root| getpgid(Some(root)).ok());
    if let Some(group) = group.filter(|_| inherited.terminals(image).any(other)) {
        let _ = kill_process_group(group, Signal::WINCH);
    }
}
