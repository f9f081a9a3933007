//! Looking at descriptors from outside.
//!
//! Every question about /proc/PID/fd is a walk through directories, so each is asked once, and what a copy
//! (pidfd_getfd(2), Linux 5.6) can answer is asked of that. More threads of ours would not make it faster: they
//! would wait for each other in the kernel.

use super::{FileKind, directory::Directory, regular::Regular};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    task::{ProcDir, Process},
};
use ckpt_image::{model, record};
use ckpt_proc::{
    fdinfo::{FdInfo, parse_fdinfo},
    link::FdLink,
};
use rustix::fs::{FileType, OFlags, Stat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
    /// /proc/PID/fdinfo/N.
    pub(crate) info: FdInfo,
    /// statfs(2) f_type of its file system.
    pub(crate) fs: i64,
    /// A copy of a descriptor, sharing the description; none of a mapped file.
    pub(crate) copy: Option<OwnedFd>,
    /// It was found by its path.
    pub(crate) by_path: bool,
}

impl Descriptor<'_> {
    /// The link, taken apart.
    pub(crate) fn target(&self) -> FdLink<'_> {
        FdLink::parse(&self.link)
    }

    /// Whether it was opened with O_PATH: a place, whatever is there.
    pub(crate) fn is_place(&self) -> bool {
        OFlags::from_bits_retain(self.flags()).contains(OFlags::PATH)
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

    /// open(2) flags without O_CLOEXEC, which is the descriptor's.
    pub(crate) fn flags(&self) -> u32 {
        self.info.flags & !OFlags::CLOEXEC.bits()
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
    pub(crate) fn record(&self, kind: u32) -> model::File {
        // One of /proc/PID/mem may be negative: an address.
        let pos = self.info.pos as u64;
        let record = record::File { pos, ..record_of(kind, self.flags(), &self.stat) };
        model::File { record, path: self.path().to_vec(), ..model::File::default() }
    }

    /// The same with what only its kind has.
    pub(crate) fn detailed<T: IntoBytes + Immutable>(&self, kind: u32, details: &[T]) -> model::File {
        model::File { details: model::to_details(details), ..self.record(kind) }
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

/// Looks at all descriptors of a process, and has each told by `tell`, in the order of their numbers.
pub(crate) fn look_at_all(
    process: &Process,
    objects: &mut Objects,
    mut tell: impl FnMut(i32, Descriptor<'_>, &mut Objects) -> Result<()>,
) -> Result<()> {
    let view = View::of(process, objects.frozen)?;
    for fd in process.proc.numbers("fd")? {
        let seen = if objects.is_guessing() { view.glance(fd) } else { view.look(fd) };
        seen.and_then(|seen| seen.descriptor(&view, objects))
            .and_then(|descriptor| tell(fd, descriptor, objects))
            .object(|| format!("fd {fd}"))?;
    }
    Ok(())
}

/// Where the descriptors of a process are seen.
struct View<'a> {
    process: &'a Process,
    /// /proc/PID/fd.
    links: ProcDir,
    /// /proc/PID/fdinfo.
    infos: ProcDir,
    /// It stands still.
    frozen: bool,
}

/// What was seen of a descriptor.
struct Seen {
    fd: i32,
    link: Vec<u8>,
    stat: Stat,
    /// What takes a closer look.
    close: Option<(OwnedFd, FdInfo)>,
}

impl<'a> View<'a> {
    fn of(process: &'a Process, frozen: bool) -> Result<View<'a>> {
        let (links, infos) = (process.proc.dir("fd")?, process.proc.dir("fdinfo")?);
        Ok(View { process, links, infos, frozen })
    }

    /// Looks at one closely.
    fn look(&self, fd: i32) -> Result<Seen> {
        const ATTEMPTS: u32 = 100;
        let name = fd.to_string();
        for _ in 0..ATTEMPTS {
            let link = self.links.readlink(&name)?;
            let copy = self.process.descriptor(fd)?;
            let info = self.infos.parse(&name, parse_fdinfo)?;
            // During the survey the process runs: the three must be of one file.
            if self.frozen || self.links.readlink(&name)? == link {
                let stat = rustix::fs::fstat(&copy).doing(|| format!("stat fd {fd}"))?;
                return Ok(Seen { fd, link, stat, close: Some((copy, info)) });
            }
        }
        Err(Error::failed("it is another file at every look").advice("try again"))
    }

    /// Has a glance at one: enough for a file or directory where its name says, of which there may be thousands.
    fn glance(&self, fd: i32) -> Result<Seen> {
        let link = self.links.readlink(&fd.to_string())?;
        if let FdLink::Path { path, deleted: false } = FdLink::parse(&link)
            && let Ok(stat) = rustix::fs::lstat(path)
            && [FileType::RegularFile, FileType::Directory].contains(&FileType::from_raw_mode(stat.st_mode))
        {
            return Ok(Seen { fd, link, stat, close: None });
        }
        self.look(fd)
    }
}

impl Seen {
    fn descriptor<'a>(self, view: &View<'a>, objects: &mut Objects) -> Result<Descriptor<'a>> {
        let Seen { fd, link, stat, close } = self;
        let name = format!("fd/{fd}");
        let process = view.process;
        let by_path = close.is_none();
        let (copy, info) = close.map_or((None, FdInfo::default()), |(copy, info)| (Some(copy), info));
        let fs = objects.file_system(stat.st_dev, || match &copy {
            Some(copy) => rustix::fs::fstatfs(copy).doing(|| format!("statfs {name}")),
            None => process.proc.statfs(&name),
        });
        let descriptor = Descriptor { process, name, link, stat, info, fs, copy, by_path };
        if !by_path || Regular.claims(&descriptor) || Directory.claims(&descriptor) {
            return Ok(descriptor);
        }
        view.look(fd)?.descriptor(view, objects)
    }
}

/// Looks at descriptor `fd` closely.
#[cfg(test)]
pub(crate) fn look<'a>(process: &'a Process, fd: i32, objects: &mut Objects) -> Result<Descriptor<'a>> {
    let view = View::of(process, false)?;
    view.look(fd)?.descriptor(&view, objects)
}
