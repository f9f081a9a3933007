//! procfs as we found it. A restart may change our root directory and mounts for a while: what is
//! read here is the same before, meanwhile and after.

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat},
    io::Errno,
};
use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

static ROOT: OnceLock<OwnedFd> = OnceLock::new();

/// The directory /proc.
pub(crate) fn root() -> Result<BorrowedFd<'static>, Errno> {
    if let Some(root) = ROOT.get() {
        return Ok(root.as_fd());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/proc", flags, Mode::empty())?;
    Ok(ROOT.get_or_init(|| root).as_fd())
}

/// Opens procfs, so that it is found later.
pub fn find() -> Result<(), Errno> {
    root().map(drop)
}

/// Opens `path` below /proc.
pub fn open(path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(root()?, path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// The contents of the file `path` below /proc.
pub fn read(path: &str) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::from(open(path, OFlags::RDONLY)?).read_to_end(&mut text)?;
    Ok(text)
}

/// Writes the file `path` below /proc.
pub fn write(path: &str, text: &str) -> std::io::Result<()> {
    File::from(open(path, OFlags::WRONLY)?).write_all(text.as_bytes())
}

/// What `path` below /proc leads to.
pub fn stat(path: &str) -> Result<Stat, Errno> {
    rustix::fs::statat(root()?, path, AtFlags::empty())
}

/// Another open description of the file that a descriptor of ours refers to.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    open(&format!("self/fd/{}", fd.as_fd().as_raw_fd()), flags)
}

/// How /proc shows a descriptor of ours.
pub fn link(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    let name = format!("self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(rustix::fs::readlinkat(root()?, name, Vec::new())?.into_bytes())
}

/// The numbers that name the entries of the directory `path` below /proc, ascending.
pub fn numbers(path: &str) -> Result<Vec<i32>, Errno> {
    numbers_in(open(path, OFlags::RDONLY | OFlags::DIRECTORY)?)
}

/// The numbers that name the entries of a directory, ascending.
pub fn numbers_in(dir: OwnedFd) -> Result<Vec<i32>, Errno> {
    let mut numbers = Vec::new();
    for entry in rustix::fs::Dir::new(dir)? {
        numbers.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
