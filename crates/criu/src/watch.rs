//! The engine's observer while it works for the front end: hooks at the stages, a deadline, signals.
//!
//! While a tree is made with another root directory or other mounts, the thread that makes it has these, and so has
//! whatever it starts. So the hooks are run by a thread of their own, which has been there before.

use crate::log::Log;
use ckpt_engine::{Interruption, Observer, Stage};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

/// Somebody who has a say at the stages of an action: action scripts, the client of an RPC.
pub trait Hook: Send {
    /// The action on the tree whose root is `pid` has come to `stage`; an error makes it fail.
    ///
    /// # Errors
    /// Why the action is not to go on.
    fn at(&mut self, stage: Stage, pid: i32) -> Result<(), String>;
}

/// Until when an action may go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// How long it may take; for ever if none.
    pub(crate) timeout: Option<Duration>,
    /// Where it begins anew: what comes before does not count.
    pub(crate) from: Stage,
    /// Where it is met.
    pub(crate) until: Stage,
}

/// The thread that runs the hooks.
struct Hooks {
    stages: SyncSender<(Stage, i32)>,
    outcomes: Receiver<Result<(), String>>,
}

impl Hooks {
    fn start(mut hooks: Vec<Box<dyn Hook>>) -> Hooks {
        let (stages, asked) = sync_channel(0);
        let (told, outcomes) = sync_channel(0);
        std::thread::spawn(move || {
            while let Ok((stage, pid)) = asked.recv() {
                if told.send(hooks.iter_mut().try_for_each(|hook| hook.at(stage, pid))).is_err() {
                    return;
                }
            }
        });
        Hooks { stages, outcomes }
    }

    fn at(&self, stage: Stage, pid: i32) -> Result<(), String> {
        let lost = || "the thread that runs action scripts is gone".to_owned();
        self.stages.send((stage, pid)).map_err(|_| lost())?;
        self.outcomes.recv().map_err(|_| lost())?
    }
}

/// Watches one action.
pub(crate) struct Watch<'a> {
    log: &'a Log,
    hooks: Hooks,
    /// The number of the signal that ends the action, or 0.
    signal: Arc<AtomicUsize>,
    deadline: Deadline,
    begun: Instant,
    /// How long it took to stop the tree.
    still: Duration,
    /// How long it took to make all processes.
    made: Duration,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(
        log: &'a Log,
        hooks: Vec<Box<dyn Hook>>,
        signal: Arc<AtomicUsize>,
        deadline: Deadline,
    ) -> Self {
        let (still, made) = (Duration::ZERO, Duration::ZERO);
        let hooks = Hooks::start(hooks);
        Watch { log, hooks, signal, deadline, begun: Instant::now(), still, made }
    }

    /// How long it took to stop the tree.
    pub(crate) fn still(&self) -> Duration {
        self.still
    }

    /// How long it took to make all processes.
    pub(crate) fn made(&self) -> Duration {
        self.made
    }
}

impl Observer for Watch<'_> {
    fn total(&mut self, bytes: u64) {
        self.log.info(format!("{bytes} bytes of pages"));
    }

    fn advance(&mut self, _: u64) {}

    fn warn(&mut self, text: &str) {
        self.log.warn("engine", text);
    }

    fn cancelled(&self) -> Option<String> {
        match self.signal.load(Ordering::Relaxed) {
            0 => {}
            signal => {
                let name = i32::try_from(signal).map(ckpt_foreground::name).unwrap_or_default();
                return Some(format!("interrupted by {name}"));
            }
        }
        let timeout = self.deadline.timeout.filter(|timeout| self.begun.elapsed() > *timeout)?;
        Some(format!("it takes longer than the timeout of {} s (--timeout)", timeout.as_secs_f32()))
    }

    fn interruption(&self) -> Interruption {
        Arc::clone(&self.signal).into()
    }

    fn reached(&mut self, stage: Stage, pid: i32) -> Result<(), String> {
        self.log.info(format!("Stage {} (pid {pid})", stage.name()));
        match stage {
            Stage::NetworkLock => self.still = self.begun.elapsed(),
            Stage::SetupNamespaces => self.made = self.begun.elapsed(),
            _ => {}
        }
        if stage == self.deadline.until {
            self.deadline.timeout = None;
        }
        self.hooks.at(stage, pid)?;
        if stage == self.deadline.from {
            self.begun = Instant::now();
        }
        Ok(())
    }
}
