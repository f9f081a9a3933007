//! Signals that end or pass through a command.
//!
//! While the engine works, the first SIGINT, SIGTERM, SIGHUP or SIGQUIT asks it to give up cleanly
//! ([`Cancel`]); the second ends us at once, which is safe as well: the kernel detaches and
//! releases the tasks. While `restart` waits, they are passed on to the program ([`Passing`]).
//! A signal that was ignored when we were started (nohup, a background job) stays ignored.

use std::{
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use ckpt_engine::Error;
use signal_hook::{
    SigId,
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ},
    flag,
    iterator::{backend::SignalDelivery, exfiltrator::WithOrigin},
    low_level::{siginfo::Origin, unregister},
};

use crate::failure::{Failure, Outcome};

/// The signals that ask a command to end.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// Those of [`ENDING`] that were not ignored when we were started.
fn wanted() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    ENDING.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}

/// Handlers that turn a signal into a request to give up. Dropping it takes them away.
pub(crate) struct Cancel {
    signal: Arc<AtomicUsize>,
    ids: Vec<SigId>,
}

impl Cancel {
    /// Installs the handlers.
    pub(crate) fn new() -> Outcome<Cancel> {
        let (signal, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut cancel = Cancel { signal: Arc::clone(&signal), ids: Vec::new() };
        let mut keep = |id: std::io::Result<SigId>| match id {
            Ok(id) => {
                cancel.ids.push(id);
                Ok(())
            }
            Err(cause) => Err(Failure::os("signal handler", cause)),
        };
        // A file that may not become so long (RLIMIT_FSIZE) is an error like others, and not our end.
        keep(flag::register(SIGXFSZ, Arc::default()))?;
        for number in wanted() {
            // In this order: the first signal finds `again` false and sets it; the second dies of it.
            keep(flag::register_conditional_default(number, Arc::clone(&again)))?;
            keep(flag::register(number, Arc::clone(&again)))?;
            keep(flag::register_usize(number, Arc::clone(&signal), usize::try_from(number).unwrap_or(0)))?;
        }
        Ok(cancel)
    }

    /// Where the signal's number appears.
    pub(crate) fn flag(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.signal)
    }

    /// The signal that came, if any.
    pub(crate) fn signal(&self) -> Option<i32> {
        i32::try_from(self.signal.load(Ordering::Relaxed)).ok().filter(|signal| *signal != 0)
    }

    /// `failure` of several operations; an interruption if a signal came meanwhile.
    pub(crate) fn blame(&self, failure: Failure) -> Failure {
        match self.signal() {
            Some(signal) => Failure::Interrupted(signal, Box::new(Error::failed("interrupted"))),
            None => failure,
        }
    }

    /// `error` of an operation; an interruption if a signal asked for it.
    pub(crate) fn explain(&self, error: Error) -> Failure {
        match self.signal() {
            Some(signal) => Failure::Interrupted(signal, Box::new(error)),
            None => error.into(),
        }
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            unregister(id);
        }
    }
}

/// Signals on their way to the restarted program.
pub(crate) struct Passing {
    delivery: SignalDelivery<UnixStream, WithOrigin>,
}

impl Passing {
    /// Begins to catch them.
    pub(crate) fn new() -> Outcome<Passing> {
        let delivery = UnixStream::pair()
            .and_then(|(read, write)| SignalDelivery::with_pipe(read, write, WithOrigin::default(), wanted()))
            .map_err(|cause| Failure::os("signal handler", cause))?;
        Ok(Passing { delivery })
    }

    /// From here on [`Passing::fd`] is readable, too, when a child has stopped or ended.
    pub(crate) fn watch_children(&self) -> Outcome<()> {
        self.delivery.handle().add_signal(SIGCHLD).map_err(|cause| Failure::os("signal handler", cause))
    }

    /// Readable when signals are there.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }

    /// Those that came since the last call and are to be passed on.
    pub(crate) fn take(&mut self) -> Vec<Origin> {
        self.delivery.pending().filter(|origin| origin.signal != SIGCHLD).collect()
    }
}

/// `SIGTERM` for 15, `signal 40` for those without a name.
pub(crate) fn name(signal: i32) -> String {
    match signal_hook::low_level::signal_name(signal) {
        Some(name) => name.to_owned(),
        None => format!("signal {signal}"),
    }
}

/// The number of a signal by its name, with or without SIG, or by its number.
pub(crate) fn parse(text: &str) -> Result<i32, String> {
    let word = text.to_ascii_uppercase();
    let short = word.strip_prefix("SIG").unwrap_or(&word);
    let named = |number: &i32| signal_hook::low_level::signal_name(*number) == Some(&format!("SIG{short}"));
    match word.parse().ok().filter(|number| (1..=31).contains(number)).or_else(|| (1..=31).find(named)) {
        Some(number) => Ok(number),
        None => Err(format!("{text:?} is not a signal")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(text), Ok(15), "{text}");
        }
        for text in ["", "0", "99", "SIG", "TERMX", "-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
