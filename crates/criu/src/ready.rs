//! What tells whoever started us how far we are: a status descriptor, a file with the pid of the root.

use crate::{
    failure::{Failure, Outcome, told},
    watch::Hook,
};
use ckpt_engine::Stage;
use rustix::{
    fs::{Access, access},
    io::Errno,
};
use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A duplicate of our descriptor `number`, which `option` named.
pub(crate) fn our_fd(option: &str, number: i32) -> Outcome<OwnedFd> {
    ckpt_foreground::descriptor(number).map_err(|cause| match cause {
        Errno::BADF => Failure::options(format!("{option} {number}: that descriptor is not open")),
        cause => Failure::options(told(format!("{option} {number}"), cause)),
    })
}

/// A descriptor that is written a NUL byte, and closed, when an action has come to a stage.
pub(crate) struct Ready {
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) stage: Stage,
}

impl Hook for Ready {
    fn at(&mut self, stage: Stage, _: i32) -> Result<(), String> {
        match self.fd.take_if(|_| stage == self.stage) {
            Some(fd) => File::from(fd).write_all(&[0]).map_err(|cause| told("--status-fd", cause)),
            None => Ok(()),
        }
    }
}

/// A file that is to hold the pid of the root, once all is restored. Clones are the same file.
#[derive(Clone)]
pub(crate) struct PidFile {
    path: PathBuf,
    made: Arc<AtomicBool>,
}

impl PidFile {
    /// It may not exist yet, and there must be where to make it: that shows before anything is made.
    pub(crate) fn new(path: PathBuf) -> Outcome<PidFile> {
        let option = || format!("--pidfile {}", path.display());
        match std::fs::symlink_metadata(&path) {
            Ok(_) => {
                let text = format!("{}: the file exists; name another, or remove it", option());
                return Err(Failure::failed("restore", text));
            }
            Err(cause) if cause.kind() == ErrorKind::NotFound => {}
            Err(cause) => return Err(Failure::os("restore", option(), cause)),
        }
        let dir = path.parent().unwrap_or(Path::new("/"));
        access(dir, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|cause| Failure::os("restore", option(), cause))?;
        Ok(PidFile { path, made: Arc::default() })
    }

    /// The restore has come to nothing.
    pub(crate) fn remove(&self) {
        if self.made.load(Ordering::Relaxed) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn write(&self, path: &Path, pid: i32) -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        self.made.store(true, Ordering::Relaxed);
        file.write_all(pid.to_string().as_bytes())
    }
}

impl Hook for PidFile {
    fn at(&mut self, stage: Stage, pid: i32) -> Result<(), String> {
        if stage != Stage::PostRestore {
            return Ok(());
        }
        self.write(&self.path, pid).map_err(|cause| told(format!("--pidfile {}", self.path.display()), cause))
    }
}
