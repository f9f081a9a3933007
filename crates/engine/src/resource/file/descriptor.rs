//! Looking at descriptors from outside.
//!
//! Every question about /proc/PID/fd is a walk through directories, and fdinfo is a text of many lines: so what a copy
//! (pidfd_getfd(2), Linux 5.6) can answer is asked of that, FD_CLOEXEC is asked in the process, by the program that it runs
//! anyhow, and fdinfo is read for what only it tells.

use super::{FileKind, directory::Directory, proc::is_kernel_file, regular::Regular};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    task::{ProcDir, Process},
};
use ckpt_image::{model, record};
use ckpt_kernel::program::{Outcome, Program};
use ckpt_proc::{
    fdinfo::{FdInfo, parse_fdinfo},
    link::FdLink,
};
use rustix::fs::{FileType, OFlags, Stat};
use std::{
    cell::OnceCell,
    collections::BTreeSet,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    thread,
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
}

impl Descriptor<'_> {
    /// The link, taken apart.
    pub(crate) fn target(&self) -> FdLink<'_> {
        FdLink::parse(&self.link)
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

/// The descriptors of a process.
pub(crate) struct Numbers {
    /// Ascending.
    fds: Vec<i32>,
    /// Those with FD_CLOEXEC, once the process has said so.
    cloexec: BTreeSet<i32>,
}

impl Numbers {
    /// Lists them.
    pub(crate) fn of(process: &Process) -> Result<Numbers> {
        Ok(Numbers { fds: process.proc.numbers("fd")?, cloexec: BTreeSet::new() })
    }

    /// Asks a process that stands still for what is the descriptors' alone.
    pub(crate) fn questions(&self, program: &mut Program) {
        for fd in &self.fds {
            let args = [(*fd).into(), libc::F_GETFD.into()];
            program.call("fcntl(F_GETFD)", *fd as u64, libc::SYS_fcntl, args);
        }
    }

    /// Takes its answers off the front of `answers`.
    pub(crate) fn take<'a>(&mut self, answers: &'a [Outcome]) -> &'a [Outcome] {
        let (own, others) = answers.split_at_checked(self.fds.len()).unwrap_or_default();
        let said = self.fds.iter().zip(own).filter(|(_, o)| o.result & i64::from(libc::FD_CLOEXEC) != 0);
        self.cloexec = said.map(|(fd, _)| *fd).collect();
        others
    }

    /// FD_* flags of one.
    pub(super) fn flags(&self, fd: i32) -> u32 {
        self.cloexec.contains(&fd).into()
    }
}

/// Looks at all descriptors of a process, and has each told by `tell`, in the order of their numbers.
pub(crate) fn look_at_all(
    process: &Process,
    numbers: &Numbers,
    objects: &mut Objects,
    mut tell: impl FnMut(i32, Descriptor<'_>, &mut Objects) -> Result<()>,
) -> Result<()> {
    let view = View::of(process)?;
    if !objects.is_guessing() {
        objects.locked.expect(numbers.fds.len());
    }
    let mut glances =
        if objects.is_guessing() { view.glance_at(&numbers.fds) } else { Vec::new() }.into_iter();
    for fd in &numbers.fds {
        let seen = glances.next().unwrap_or_else(|| view.look(*fd));
        seen.and_then(|seen| seen.descriptor(&view, objects))
            .and_then(|descriptor| tell(*fd, descriptor, objects))
            .object(|| format!("fd {fd}"))?;
    }
    Ok(())
}

/// As many descriptors as are worth a thread.
const MANY: usize = 512;

/// Where the descriptors of a process are seen.
struct View<'a> {
    process: &'a Process,
    /// /proc/PID/fd.
    links: ProcDir,
    /// /proc/self/fd, where copies are.
    own: ProcDir,
}

/// What was seen of a descriptor.
struct Seen {
    fd: i32,
    link: Vec<u8>,
    stat: Stat,
    /// What takes a closer look: a copy, and its flags.
    close: Option<(OwnedFd, u32)>,
}

impl<'a> View<'a> {
    fn of(process: &'a Process) -> Result<View<'a>> {
        Ok(View { process, links: process.proc.dir("fd")?, own: ProcDir::own()?.dir("fd")? })
    }

    /// Has a glance at some, on as many processors as there are. To look closely side by side would take longer: copies
    /// are made and closed one after the other anyhow.
    fn glance_at(&self, fds: &[i32]) -> Vec<Result<Seen>> {
        let glance = |fds: &[i32]| -> Vec<Result<Seen>> { fds.iter().map(|fd| self.glance(*fd)).collect() };
        if fds.len() < 2 * MANY {
            return glance(fds);
        }
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut shares = fds.chunks(fds.len().div_ceil(processors).max(MANY));
        let first = shares.next().unwrap_or_default();
        thread::scope(|scope| {
            let others: Vec<_> = shares.map(|share| (share, scope.spawn(move || glance(share)))).collect();
            let mut seen = glance(first);
            for (share, other) in others {
                seen.extend(other.join().unwrap_or_else(|_| glance(share)));
            }
            seen
        })
    }

    /// Looks at one closely: at a copy, so that all is of one file, even if the process runs.
    fn look(&self, fd: i32) -> Result<Seen> {
        let copy = self.process.descriptor(fd)?;
        let link = self.own.readlink(&copy.as_raw_fd().to_string())?;
        let stat = rustix::fs::fstat(&copy).doing(|| format!("stat fd {fd}"))?;
        let flags = rustix::fs::fcntl_getfl(&copy).doing(|| format!("fcntl(F_GETFL) of fd {fd}"))?;
        Ok(Seen { fd, link, stat, close: Some((copy, (flags - OFlags::CLOEXEC).bits())) })
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
        let (copy, flags) = close.map_or((None, 0), |(copy, flags)| (Some(copy), flags));
        let fs = objects.file_system(stat.st_dev, || match &copy {
            Some(copy) => rustix::fs::fstatfs(copy).doing(|| format!("statfs {name}")),
            None => process.proc.statfs(&name),
        });
        let info = OnceCell::new();
        let descriptor = Descriptor { process, name, link, stat, flags, info, fs, copy, by_path };
        if !by_path || Regular.claims(&descriptor) || Directory.claims(&descriptor) {
            return Ok(descriptor);
        }
        view.look(fd)?.descriptor(view, objects)
    }
}

/// Looks at descriptor `fd` closely.
#[cfg(test)]
pub(crate) fn look<'a>(process: &'a Process, fd: i32, objects: &mut Objects) -> Result<Descriptor<'a>> {
    let view = View::of(process)?;
    view.look(fd)?.descriptor(&view, objects)
}
