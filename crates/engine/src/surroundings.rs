//! The surroundings that a restart's files are opened in and its tasks are born in: another root
//! directory, a mount namespace of their own. The calling thread goes there and comes back.

use crate::{
    advice::Means,
    error::{Doing, Error, Result},
    options::RestartOptions,
};
use ckpt_kernel::mntns::{self, MountNamespace};
use ckpt_kernel::procfs;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use std::os::fd::OwnedFd;

/// Where we were; dropped, we are there again.
#[derive(Debug)]
pub(crate) struct Surroundings {
    mounts: Option<MountNamespace>,
    directories: Option<(OwnedFd, OwnedFd)>,
}

impl Surroundings {
    /// Goes where the tasks are to be.
    pub(crate) fn enter(options: &RestartOptions) -> Result<Surroundings> {
        procfs::find().doing(|| "open /proc".to_owned())?;
        let mut before = Surroundings { mounts: None, directories: None };
        if options.root.is_none() && !options.mntns {
            return Ok(before);
        }
        let directory = |path: &std::path::Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
        };
        let here = |path: &str| directory(path.as_ref()).doing(|| format!("open {path}"));
        let directories = (here("/")?, here(".")?);
        // From here on they are this thread's alone.
        mntns::unshare_directories()?;
        if options.mntns {
            let made = MountNamespace::unshare();
            before.mounts =
                Some(made.map_err(|e| Error::from(e).advice("it needs CAP_SYS_ADMIN").or(Means::NoMntns))?);
        }
        before.directories = Some(directories);
        if let Some(root) = &options.root {
            let shown = root.display();
            // Both front ends call it that.
            let fd = directory(root).map_err(|e| {
                Error::os(format!("the root directory {shown}"), e).advice("--root takes a directory")
            })?;
            rustix::process::fchdir(&fd).doing(|| format!("fchdir to {shown}"))?;
            rustix::process::chroot(".").map_err(|e| match e {
                Errno::PERM => Error::permission(format!("chroot to {shown}"))
                    .why("Operation not permitted")
                    .advice("--root needs CAP_SYS_CHROOT"),
                e => Error::os(format!("chroot to {shown}"), e),
            })?;
        }
        Ok(before)
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        // All of it was possible on the way here.
        if let Some(mounts) = &self.mounts {
            let _ = mounts.enter();
        }
        if let Some((root, cwd)) = &self.directories {
            let _ = rustix::process::fchdir(root);
            let _ = rustix::process::chroot(".");
            let _ = rustix::process::fchdir(cwd);
        }
    }
}
