//! Points of an action at which whoever asked for it has a say.
//!
//! An error at one of them fails the action: a checkpoint lets the tasks go on and leaves no image, a restart
//! leaves nothing. Two come too late for that: [`Stage::PostResume`], and [`Stage::NetworkUnlock`] of a
//! checkpoint that failed. What is said there becomes a warning.

use crate::{
    error::{Error, Result},
    options::Observer,
};

/// Such a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Checkpoint: the tasks have not been touched.
    PreDump,
    /// Checkpoint: the tree stands still, from here on until [`Stage::NetworkUnlock`] but for moments.
    NetworkLock,
    /// Checkpoint: the image is complete, the tasks stand still yet.
    PostDump,
    /// Checkpoint: they go on. Restart: they are about to.
    NetworkUnlock,
    /// Restart: nothing has been made.
    PreRestore,
    /// Restart: the processes exist.
    SetupNamespaces,
    /// Restart: likewise.
    PostSetupNamespaces,
    /// Restart: all is restored, and nothing runs.
    PostRestore,
    /// Restart: they are let go next.
    PreResume,
    /// Restart: they run.
    PostResume,
}

impl Stage {
    /// Its name, as action scripts know it.
    pub fn name(self) -> &'static str {
        match self {
            Stage::PreDump => "pre-dump",
            Stage::NetworkLock => "network-lock",
            Stage::PostDump => "post-dump",
            Stage::NetworkUnlock => "network-unlock",
            Stage::PreRestore => "pre-restore",
            Stage::SetupNamespaces => "setup-namespaces",
            Stage::PostSetupNamespaces => "post-setup-namespaces",
            Stage::PostRestore => "post-restore",
            Stage::PreResume => "pre-resume",
            Stage::PostResume => "post-resume",
        }
    }
}

/// Tells the observer that the action on the tree below `pid` has come to a stage.
pub(crate) fn reach(observer: &mut dyn Observer, stage: Stage, pid: i32) -> Result<()> {
    observer.reached(stage, pid).map_err(|why| Error::failed(format!("stage {}", stage.name())).why(why))
}

/// The same where it is too late to give up.
pub(crate) fn pass(observer: &mut dyn Observer, stage: Stage, pid: i32) {
    if let Err(error) = reach(observer, stage, pid) {
        observer.warn(&error.to_string());
    }
}
