//! Working directory, root directory, umask.
//!
//! *Saved*: the paths of /proc/PID/cwd and root, umask from /proc/PID/status. *Restored*: both
//! directories are opened before the puppet exists, with the rights of a task that has them (`file/rights.rs`); it does fchdir,
//! chroot, fchdir. One that was removed
//! is made again at its place and removed, as in `file/directory.rs`. *Refused*: one that is hidden by a mount.

use crate::{
    advice::Means,
    error::{Error, Result},
    resource::file::{directory::Removed, rights::Rights},
    scribe::Scribe,
    task::{Process, show},
};
use ckpt_image::{model, record};
use ckpt_kernel::program::{Arg, Program};
use ckpt_proc::status::Status;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};
use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
};

/// The context of a process, by the status of its witness.
pub(crate) fn checkpoint(process: &Process, status: &Status) -> Result<model::Fs> {
    let directory = |name: &str| {
        let path = process.proc.readlink(name)?;
        let here = process.proc.stat(name)?;
        let there = rustix::fs::stat(path.as_slice());
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)) {
            return Ok(path);
        }
        if let Some(path) = path.strip_suffix(b" (deleted)").filter(|_| here.st_nlink == 0) {
            return Ok(model::as_removed(path));
        }
        let what = format!("its {name} {} is hidden by a mount", show(&path));
        Err(Error::unsupported(what).advice("let it change to a directory that can be reached by its path"))
    };
    let umask = status.umask.unwrap_or(0o22);
    Ok(model::Fs { record: record::Fs { umask, pad: 0 }, cwd: directory("cwd")?, root: directory("root")? })
}

/// A directory by a path that leads nobody there who may not search it, as chdir(2) wants it.
pub(crate) fn inside(path: &[u8]) -> Vec<u8> {
    [path, b"/."].concat()
}

/// The directories, opened.
#[derive(Debug)]
pub(crate) struct Directories {
    cwd: Rc<OwnedFd>,
    root: Option<Rc<OwnedFd>>,
}

/// Opens what [`restore`] will need, with `rights` if they are not ours. `park` keeps a descriptor where the tasks will have it.
pub(crate) fn prepare(
    fs: &model::Fs,
    rights: Option<&Rights>,
    removed: &Removed,
    scribe: &Scribe,
    park: &dyn Fn(OwnedFd) -> Result<OwnedFd>,
) -> Result<Directories> {
    let open = |path: &[u8], what: &str| {
        if let Some(path) = model::removed(path) {
            return removed.get(path, scribe);
        }
        let open = |way: &[u8], resolve| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat2(CWD, way, flags, Mode::empty(), resolve).map_err(|e| {
                let error = Error::os(format!("open the {what} {}", show(path)), e);
                let way =
                    if e == Errno::ACCESS { "restart it as a user who may enter it" } else { "create it" };
                error.advice(way).or(Means::MapFiles)
            })
        };
        let fd = match rights {
            Some(rights) => rights.enter(path, open)?,
            None => open(&inside(path), ResolveFlags::empty())?,
        };
        park(fd).map(Rc::new)
    };
    let root = if fs.root == b"/" { None } else { Some(open(&fs.root, "root directory")?) };
    Ok(Directories { cwd: open(&fs.cwd, "working directory")?, root })
}

/// Appends the calls that take on the context.
pub(crate) fn restore(program: &mut Program, fs: &model::Fs, directories: &Directories) {
    let fd = |fd: &Rc<OwnedFd>| Arg::from(fd.as_fd().as_raw_fd());
    if let Some(root) = &directories.root {
        program.call("fchdir to the root directory", 0, libc::SYS_fchdir, [fd(root)]);
        program.call("chroot", 0, libc::SYS_chroot, [Arg::In(b".\0".to_vec())]);
    }
    program.call("fchdir to the working directory", 0, libc::SYS_fchdir, [fd(&directories.cwd)]);
    program.call("umask", 0, libc::SYS_umask, [fs.record.umask.into()]);
}
