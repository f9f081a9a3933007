//! Looking at descriptors from outside.
//!
//! Every question about /proc/PID/fd is a walk through directories, and fdinfo is a text of many lines: so what a copy
//! (pidfd_getfd(2), Linux 5.6) can answer is asked of that, FD_CLOEXEC is asked in the process, by the program that it runs
//! anyhow, and fdinfo is read for what only it tells. When the process stands still, numbers and names that the survey saw are
//! not looked for again, if it is certain that they are right.

mod numbers;
mod view;

pub(crate) use numbers::Numbers;
#[cfg(test)]
pub(crate) use view::look;
pub(crate) use view::look_at_all;

use super::proc::is_kernel_file;
use crate::{
    error::{Doing, Error, Result},
    task::Process,
};
use ckpt_image::{model, record};
use ckpt_proc::{
    fdinfo::{FdInfo, parse_fdinfo},
    link::FdLink,
};
use rustix::fs::{FileType, OFlags, Stat};
use std::{
    cell::OnceCell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};
use zerocopy::{Immutable, IntoBytes};

/// What is known of a descriptor before anybody looks inside.
#[derive(Debug)]
pub(crate) struct Descriptor<'a> {
    /// Its process.
    pub(crate) process: &'a Process,
    /// Its name below /proc/PID: `fd/3`, or `map_files/7f..-7f..` for a mapped file.
    pub(crate) name: String,
    /// Target of the link.
    pub(crate) link: Vec<u8>,
    /// The file.
    pub(crate) stat: Stat,
    /// open(2) flags without O_CLOEXEC, which is the descriptor's.
    pub(crate) flags: u32,
    /// /proc/PID/fdinfo/N, once it was asked for.
    pub(crate) info: OnceCell<FdInfo>,
    /// statfs(2) f_type of its file system.
    pub(crate) fs: i64,
    /// A copy of a descriptor, sharing the description; none of a mapped file.
    pub(crate) copy: Option<OwnedFd>,
    /// It was found by its path.
    pub(crate) by_path: bool,
    /// Its offset, if it was asked for; then nobody owns it, which was asked, too.
    pub(crate) pos: Option<u64>,
}

impl Descriptor<'_> {
    /// The link, taken apart.
    pub(crate) fn target(&self) -> FdLink<'_> {
        FdLink::parse(&self.link)
    }

    /// Whether nothing but its name was looked at.
    pub(crate) fn is_glance(&self) -> bool {
        self.by_path && self.pos.is_none()
    }

    /// Whether it was opened with O_PATH: a place, whatever is there.
    pub(crate) fn is_place(&self) -> bool {
        OFlags::from_bits_retain(self.flags).contains(OFlags::PATH)
    }

    /// Whether its last name is gone.
    pub(crate) fn is_unlinked(&self) -> bool {
        self.stat.st_nlink == 0 && matches!(self.target(), FdLink::Path { deleted: true, .. })
    }

    /// Its path, when it has one.
    pub(crate) fn path(&self) -> &[u8] {
        match self.target() {
            // A name may end as if it were gone.
            FdLink::Path { deleted: true, .. } if self.stat.st_nlink > 0 && self.leads_here(&self.link) => {
                &self.link
            }
            FdLink::Path { path, .. } => path,
            _ => &self.link,
        }
    }

    /// What /proc/PID/fdinfo tells. While the process runs it may be that of another file with its number.
    pub(crate) fn info(&self) -> Result<&FdInfo> {
        if let Some(known) = self.info.get() {
            return Ok(known);
        }
        let found = self.fresh_info()?;
        Ok(self.info.get_or_init(|| found))
    }

    /// What it tells now.
    pub(crate) fn fresh_info(&self) -> Result<FdInfo> {
        let number = self.name.strip_prefix("fd/").ok_or_else(|| Error::failed("it is no descriptor"))?;
        self.process.proc.parse(&format!("fdinfo/{number}"), parse_fdinfo)
    }

    /// Its offset. One of /proc/PID/mem may be negative: an address.
    fn pos(&self) -> Result<u64> {
        if let Some(known) = self.pos {
            return Ok(known);
        }
        match (&self.copy, self.file_type()) {
            (None, _) | (_, FileType::Fifo | FileType::Socket) => Ok(0),
            _ if self.is_place() => Ok(0),
            // The kernel's own files may take notice of being asked.
            (Some(copy), FileType::RegularFile) if !is_kernel_file(self) => {
                rustix::fs::tell(copy).doing(|| format!("lseek of {}", self.name))
            }
            _ => Ok(self.info()?.pos as u64),
        }
    }

    /// S_IFMT of the file.
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether the path leads to this very file.
    pub(crate) fn path_leads_here(&self) -> bool {
        self.by_path || self.leads_here(self.path())
    }

    /// Whether `path` leads to this very file.
    pub(crate) fn leads_here(&self, path: &[u8]) -> bool {
        rustix::fs::stat(path).is_ok_and(|s| self.is(&s))
    }

    /// Whether a file is this one.
    pub(crate) fn is(&self, other: &Stat) -> bool {
        (other.st_dev, other.st_ino) == (self.stat.st_dev, self.stat.st_ino)
    }

    /// The record all kinds share.
    pub(crate) fn record(&self, kind: u32) -> Result<model::File> {
        let record = record::File { pos: self.pos()?, ..record_of(kind, self.flags, &self.stat) };
        Ok(model::File { record, path: self.path().to_vec(), ..model::File::default() })
    }

    /// The same with what only its kind has.
    pub(crate) fn detailed<T: IntoBytes + Immutable>(&self, kind: u32, details: &[T]) -> Result<model::File> {
        Ok(model::File { details: model::to_details(details), ..self.record(kind)? })
    }

    /// A descriptor of ours for the same open description; of a file that is only mapped, there is none.
    pub(crate) fn copy(&self) -> Result<BorrowedFd<'_>> {
        self.copy.as_ref().map(AsFd::as_fd).ok_or_else(|| Error::failed("it is no descriptor"))
    }
}

/// The record of a file, open or not.
pub(super) fn record_of(kind: u32, flags: u32, stat: &Stat) -> record::File {
    record::File {
        kind,
        flags,
        mode: stat.st_mode,
        dev: stat.st_dev,
        ino: stat.st_ino,
        rdev: stat.st_rdev,
        size: stat.st_size.max(0) as u64,
        mtime_sec: stat.st_mtime,
        mtime_nsec: stat.st_mtime_nsec as u32,
        ..record::File::default()
    }
}
