//! Action scripts: commands that are run at every stage of an action.
//!
//! Each is given to the shell, with these variables set: `CRTOOLS_SCRIPT_ACTION` the stage, `CRTOOLS_IMAGE_DIR` where
//! the image is or will be, `CRTOOLS_INIT_PID` the root of the tree. They run in the order they were given in; the first
//! that fails fails the action.

use crate::{failure::told, watch::Hook};
use ckpt_engine::Stage;
use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

/// The scripts of an action.
pub(crate) struct Scripts {
    scripts: Vec<OsString>,
    images: PathBuf,
}

impl Scripts {
    /// Gets ready to run `scripts`, which are shown the directory `images`; none if there are none.
    pub(crate) fn new(scripts: &[OsString], images: &Path) -> Option<Scripts> {
        let images = images.canonicalize().unwrap_or_else(|_| images.to_owned());
        (!scripts.is_empty()).then(|| Scripts { scripts: scripts.to_vec(), images })
    }
}

impl Hook for Scripts {
    fn at(&mut self, stage: Stage, pid: i32) -> Result<(), String> {
        self.scripts.iter().try_for_each(|script| run(script, stage, pid, &self.images))
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
        Err(cause) => Err(told(format!("the action script {shown} cannot be run"), cause)),
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
