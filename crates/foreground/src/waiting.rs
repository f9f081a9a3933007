//! Waiting for a restarted program, in whose place we stand.

use std::process::ExitStatus;

use ckpt_engine::{Error, Loan, RestartReport, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, Signal, getpgid, getpgrp, getpid, getsid},
};
use signal_hook::{
    consts::SIGHUP,
    low_level::siginfo::{Cause, Origin},
};

use crate::{Passing, name};

/// Waits for the end of the program and passes signals on to it, or `instead` of each another one.
///
/// It is watched through its descriptor and not by SIGCHLD, which it may not send (exit_signal 0).
///
/// # Errors
/// The kernel refuses, or somebody else has waited for it.
pub fn wait(report: &mut RestartReport, passing: &mut Passing, instead: Option<i32>) -> Result<ExitStatus> {
    if report.terminal.as_ref().is_some_and(Loan::is_apart) {
        passing.watch_children()?;
    }
    loop {
        // Signals that came while the program was being made are passed on now, too.
        for origin in passing.take() {
            pass(&*report, &origin, instead)?;
        }
        // Ctrl-Z in its own group of our terminal: nobody else sees that it has stopped. Looked at after
        // the signals were taken: a stop that comes later sends another, which ends the poll.
        if let Some(terminal) = report.terminal.as_mut().filter(|terminal| terminal.is_apart())
            && report.root.has_stopped()
        {
            terminal.stop()?;
        }
        let ended = {
            let mut ready = [
                PollFd::new(&report.root, PollFlags::IN),
                PollFd::from_borrowed_fd(passing.fd(), PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(cause) => return Err(Error::os("poll", cause)),
            }
            ready.first().is_some_and(|root| !root.revents().is_empty())
        };
        if ended {
            return report.root.wait();
        }
    }
}

/// Passes one signal on, or the one to be sent `instead`, unless the program has it already.
fn pass(report: &RestartReport, origin: &Origin, instead: Option<i32>) -> Result<()> {
    let number = instead.unwrap_or(origin.signal);
    if number == origin.signal && program_has_it(report, origin) {
        let pid = report.root.pid();
        tracing::debug!("{}: the terminal sent it to pid {pid} as well", name(number));
        return Ok(());
    }
    let Some(signal) = Signal::from_named_raw(number) else { return Ok(()) };
    report.root.signal(signal)
}

/// Whether the kernel has sent the signal to the program as well as to us.
///
/// A Ctrl-C or Ctrl-\ comes from the kernel (SI_KERNEL) and goes to the terminal's whole foreground
/// process group, so a program in our group got it too; one that `kill` sent came to us alone
/// (`kill -- -PGID` is told apart from it by nothing: the program then gets it twice, which
/// standard signals mostly merge). A hangup goes to the group only when the session's leader has
/// ended; when the leader is ourselves (`ssh host restart`) it came to us alone.
fn program_has_it(report: &RestartReport, origin: &Origin) -> bool {
    let same_group = Pid::from_raw(report.root.pid()).is_some_and(|pid| getpgid(Some(pid)) == Ok(getpgrp()));
    let ours_alone = origin.signal == SIGHUP && getsid(None) == Ok(getpid());
    origin.cause == Cause::Kernel && same_group && !ours_alone
}
