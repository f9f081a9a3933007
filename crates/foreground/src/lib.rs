//! What commands have in common beside the engine: signals that end or pass through them, and descriptors they are given.
//!
//! While the engine works, the first SIGINT, SIGTERM, SIGHUP or SIGQUIT asks it to give up cleanly
//! ([`Cancel`]); the second ends us at once, which is safe as well: the kernel detaches and
//! releases the tasks. While a command waits for the program it restarted ([`wait`]), they are passed on to
//! that ([`Passing`]). A signal that was ignored when we were started (nohup, a background job) stays ignored.
#![forbid(unsafe_code)]

mod descriptor;
mod leaving;
mod waiting;

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

use ckpt_engine::{Error, Result};
use signal_hook::{
    SigId,
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ},
    flag,
    iterator::{backend::SignalDelivery, exfiltrator::WithOrigin},
    low_level::{siginfo::Origin, unregister},
};

pub use descriptor::descriptor;
pub use leaving::leave;
pub use waiting::wait;

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
#[derive(Debug)]
pub struct Cancel {
    signal: Arc<AtomicUsize>,
    ids: Vec<SigId>,
}

impl Cancel {
    /// Installs the handlers.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new() -> Result<Cancel> {
        let (signal, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut cancel = Cancel { signal: Arc::clone(&signal), ids: Vec::new() };
        let mut keep = |id: std::io::Result<SigId>| match id {
            Ok(id) => {
                cancel.ids.push(id);
                Ok(())
            }
            Err(cause) => Err(Error::os("signal handler", cause)),
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
    pub fn flag(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.signal)
    }

    /// The signal that came, if any.
    pub fn signal(&self) -> Option<i32> {
        i32::try_from(self.signal.load(Ordering::Relaxed)).ok().filter(|signal| *signal != 0)
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
#[derive(Debug)]
pub struct Passing {
    delivery: SignalDelivery<UnixStream, WithOrigin>,
}

impl Passing {
    /// Begins to catch them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new() -> Result<Passing> {
        let delivery = UnixStream::pair()
            .and_then(|(read, write)| SignalDelivery::with_pipe(read, write, WithOrigin::default(), wanted()))
            .map_err(|cause| Error::os("signal handler", cause))?;
        Ok(Passing { delivery })
    }

    /// From here on [`Passing::fd`] is readable, too, when a child has stopped or ended.
    pub(crate) fn watch_children(&self) -> Result<()> {
        self.delivery.handle().add_signal(SIGCHLD).map_err(|cause| Error::os("signal handler", cause))
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
pub fn name(signal: i32) -> String {
    match signal_hook::low_level::signal_name(signal) {
        Some(name) => name.to_owned(),
        None => format!("signal {signal}"),
    }
}
