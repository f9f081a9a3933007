//! Action scripts: commands that are run at every stage of an action.
//!
//! Each is given to the shell, with these variables set: `CRTOOLS_SCRIPT_ACTION` the stage, `CRTOOLS_IMAGE_DIR` where
//! the image is or will be, `CRTOOLS_INIT_PID` the root of the tree. They run in the order they were given in; the first
//! that fails fails the action.
//!
//! While a tree is made with another root directory, the thread that makes it has that root, and so has whatever
//! it starts. So the scripts are started by a thread of their own, which has been there before.

use crate::watch::Hook;
use ckpt_engine::Stage;
use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Command,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

/// The scripts of an action, and the thread that runs them.
pub(crate) struct Scripts {
    stages: SyncSender<(Stage, i32)>,
    outcomes: Receiver<Result<(), String>>,
}

impl Scripts {
    /// Gets ready to run `scripts`, which are shown the directory `images`; none if there are none.
    pub(crate) fn new(scripts: &[OsString], images: &Path) -> Option<Scripts> {
        let scripts = scripts.to_vec();
        let images = images.canonicalize().unwrap_or_else(|_| images.to_owned());
        if scripts.is_empty() {
            return None;
        }
        let (stages, asked) = sync_channel(0);
        let (told, outcomes) = sync_channel(0);
        std::thread::spawn(move || {
            while let Ok((stage, pid)) = asked.recv() {
                let outcome = scripts.iter().try_for_each(|script| run(script, stage, pid, &images));
                if told.send(outcome).is_err() {
                    return;
                }
            }
        });
        Some(Scripts { stages, outcomes })
    }
}

impl Hook for Scripts {
    fn at(&mut self, stage: Stage, pid: i32) -> Result<(), String> {
        let lost = "the thread that runs action scripts is gone";
        self.stages.send((stage, pid)).map_err(|_| lost.to_owned())?;
        self.outcomes.recv().map_err(|_| lost.to_owned())?
    }
}

/// Runs one script to its end.
fn run(script: &OsStr, stage: Stage, pid: i32, images: &Path) -> Result<(), String> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script);
    command.env("CRTOOLS_SCRIPT_ACTION", stage.name()).env("CRTOOLS_IMAGE_DIR", images);
    if pid > 0 {
        command.env("CRTOOLS_INIT_PID", pid.to_string());
    }
    let shown = script.display();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the action script {shown} failed ({status})")),
        Err(cause) => Err(format!("the action script {shown} cannot be run: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_told_the_stage_and_stop_at_the_first_failure() {
        let dir = tempfile::tempdir().unwrap();
        let write = "echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_INIT_PID >> $CRTOOLS_IMAGE_DIR/log";
        let scripts = [write, "test $CRTOOLS_SCRIPT_ACTION != post-dump", write].map(OsString::from);
        let mut scripts = Scripts::new(&scripts, dir.path()).unwrap();
        assert_eq!(scripts.at(Stage::PreDump, 7), Ok(()));
        let failure = scripts.at(Stage::PostDump, 7).unwrap_err();
        assert!(failure.contains("!= post-dump failed (exit status: 1)"), "{failure}");
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log, "pre-dump 7\npre-dump 7\npost-dump 7\n");
        assert!(Scripts::new(&[], dir.path()).is_none());
    }
}
