//! Files of the file systems that show the kernel's state: proc, sysfs, debugfs, tracefs, cgroup, securityfs, configfs.
//!
//! *Saved*: path, flags, offset; of a file in a task's directory of /proc whose it is. /proc/PID is the
//! same inode for as long as PID lives, which tells the living from one that had its pid before.
//! *Restored*: opened by path once all tasks exist, by the pids they have then, and handed to those
//! who have it (see `late.rs`): what it shows is of the restarted task. The file of a task that had
//! ended, or of a process outside that is gone, becomes that of a placeholder which then ends: to read it
//! gives ESRCH, as before. *Lost*: what the kernel had formatted and the program not yet read; the shown
//! pid of the dead. *Refused*: files of another pid namespace's /proc, PSI triggers (a pressure file open
//! for writing), what was removed.

use super::{
    Descriptor, FileKind, Files, OpenContext,
    late::{self, Tasks},
    reopen,
    rights::{Holders, Rights},
    seek,
};
use crate::{
    advice::Means,
    error::{Error, ErrorKind, Result},
    objects::Objects,
    options::Observer,
    task::{Process, show, stat_of},
};
use ckpt_image::{
    Image, Objref, model,
    record::{ProcFile, file_kind, proc_owner},
};
use ckpt_kernel::servant::Servant;
use rustix::fs::{FileType, OFlags};
use std::os::fd::OwnedFd;
use zerocopy::IntoBytes;

/// See the module.
pub(crate) struct KernelFile;

/// statfs(2) f_type of proc.
const PROC: i64 = 0x9fa0;
/// And of sysfs, debugfs, tracefs, cgroup, cgroup2, securityfs, configfs.
const OTHERS: [i64; 7] =
    [0x6265_6572, 0x6462_6720, 0x7472_6163, 0x0027_e0eb, 0x6367_7270, 0x7363_6673, 0x6265_6570];
/// Inode number of a proc file system's root.
const PROC_ROOT: u64 = 1;

/// Whether it is a file of a file system that shows kernel state.
pub(crate) fn is_kernel_file(descriptor: &Descriptor<'_>) -> bool {
    let shown = [FileType::RegularFile, FileType::Directory, FileType::Symlink];
    (descriptor.fs == PROC || OTHERS.contains(&descriptor.fs))
        && descriptor.link.starts_with(b"/")
        && shown.contains(&descriptor.file_type())
}

impl FileKind for KernelFile {
    fn kind(&self) -> u32 {
        file_kind::PROC
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        is_kernel_file(descriptor)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        let path = show(descriptor.path());
        let writes = descriptor.flags & OFlags::RWMODE.bits() != 0;
        let is_pressure = |name: &[u8]| name.ends_with(b".pressure") || name == b"pressure";
        if writes && descriptor.path().rsplit(|byte| *byte == b'/').take(2).any(is_pressure) {
            let what = format!("{path} is open for writing: a PSI trigger cannot be carried");
            return Err(Error::unsupported(what).advice("let the program close it"));
        }
        let mut file = descriptor.record(file_kind::PROC)?;
        if descriptor.file_type() == FileType::Symlink {
            file.record.flags |= OFlags::NOFOLLOW.bits();
        }
        let details = if descriptor.fs == PROC { whose(descriptor, objects)? } else { ProcFile::default() };
        if details.pid == 0 && !is_here(descriptor) {
            return Err(Error::unsupported(format!("{path} was removed or is hidden")));
        }
        file.details = details.as_bytes().to_vec();
        Ok(file)
    }

    /// A placeholder: see [`open_late`].
    fn open(&self, _: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        late::placeholder().map(Some)
    }
}

/// Whether its path leads to the file, which may be a link itself.
fn is_here(descriptor: &Descriptor<'_>) -> bool {
    rustix::fs::lstat(descriptor.path()).is_ok_and(|stat| descriptor.is(&stat))
}

/// Whose file of a /proc it is.
fn whose(descriptor: &Descriptor<'_>, objects: &Objects) -> Result<ProcFile> {
    let path = descriptor.path();
    let is_root = |at: &usize| {
        let stat = path.get(..*at).and_then(|beginning| rustix::fs::stat(beginning).ok());
        stat.is_some_and(|s| (s.st_dev, s.st_ino) == (descriptor.stat.st_dev, PROC_ROOT))
    };
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let Some(root) = ends.skip(1).chain([path.len()]).find(is_root) else {
        return Err(Error::unsupported(format!("{} is hidden by a mount", show(path))));
    };
    let names: Vec<&[u8]> =
        path.get(root..).unwrap_or_default().split(|byte| *byte == b'/').skip(1).collect();
    let number = |name: &[u8]| show(name).parse::<i32>().ok().filter(|number| *number > 0);
    let Some(pid) = names.first().copied().and_then(number) else {
        return Ok(ProcFile { root: root as u32, ..ProcFile::default() });
    };
    let tid = match names.as_slice() {
        [_, b"task", tid, ..] => number(tid).unwrap_or(0),
        _ => 0,
    };
    if own_number(path.get(..root).unwrap_or_default()) != Some(own_pid()) {
        let what = format!("{} is of another pid namespace's /proc, which cannot be carried yet", show(path));
        return Err(Error::unsupported(what));
    }
    let mut proc = ProcFile { owner: proc_owner::DEAD, root: root as u32, pid, tid, start: 0 };
    if is_here(descriptor) {
        let leader =
            Process::open(pid).and_then(|process| process.status()).map_or(pid, |status| status.tgid);
        (proc.owner, proc.start) = match stat_of(pid) {
            _ if objects.members.contains(&leader) => (proc_owner::TASK, 0),
            stat => (proc_owner::OUTSIDE, stat.map_or(0, |stat| stat.starttime)),
        };
    }
    Ok(proc)
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// What a /proc calls us; nothing when it is of a pid namespace that we are not in.
fn own_number(root: &[u8]) -> Option<i32> {
    let target = rustix::fs::readlink([root, b"/self"].concat(), Vec::new()).ok()?;
    show(target.as_bytes()).parse().ok()
}

/// The details of a file.
fn details(file: &model::File) -> Option<ProcFile> {
    model::details::<ProcFile>(&file.details)?.first().copied()
}

/// Opens those files of this kind that are `wanted`, now that all tasks exist, in place of what `files` has for them.
pub(crate) fn open_late(
    image: &Image,
    tasks: &Tasks,
    wanted: impl Fn(Objref) -> bool,
    files: &mut Files,
    holders: &Holders,
    observer: &mut dyn Observer,
) -> Result<()> {
    late::of_kind(image, file_kind::PROC).filter(|(objref, _)| wanted(*objref)).try_for_each(
        |(objref, file)| {
            let rights = holders.get(&objref).and_then(Option::as_ref);
            late::put(&open(file, tasks, rights, observer)?, objref, files)
        },
    )
}

fn open(
    file: &model::File,
    tasks: &Tasks,
    rights: Option<&Rights>,
    observer: &mut dyn Observer,
) -> Result<OwnedFd> {
    let proc = details(file).unwrap_or_default();
    let root = file.path.get(..proc.root as usize).unwrap_or_default();
    let ours = own_number(root) == Some(own_pid());
    let id = |task: i32| tasks.get(&task).map(|(known, own)| if ours { *known } else { *own });
    match proc.owner {
        // Some ask who opened them. What one of its tasks may not open was opened before rights were given up.
        proc_owner::KERNEL => match open_at(file, &file.path, rights) {
            Err(error) if error.kind == ErrorKind::Permission => open_at(file, &file.path, None),
            other => other,
        },
        proc_owner::TASK => {
            let pid = id(proc.pid).ok_or_else(|| {
                Error::bad_image(format!("{}: that task is not in the image", show(&file.path)))
            })?;
            let path = path_of(file, &proc, pid, id(proc.tid).unwrap_or(proc.tid));
            match rights {
                Some(rights) => rights.spare_admin(|| open_at(file, &path, None))?,
                None => open_at(file, &path, None),
            }
        }
        proc_owner::OUTSIDE if stat_of(proc.pid).is_some_and(|stat| stat.starttime == proc.start) => {
            open_at(file, &file.path, None)
        }
        owner => {
            if owner == proc_owner::OUTSIDE {
                observer.warn(&format!("{}: that process is gone, as reading it will say", show(&file.path)));
            }
            if !ours {
                let what = format!("{} is of a task that had ended", show(&file.path));
                let error = Error::unsupported(what).why("the new /proc has no place for it");
                return Err(error.advice(Means::NoMntns));
            }
            // It ends when this returns, and the file is that of one who has ended.
            let placeholder = Servant::start(|line| drop(line.request()))?;
            open_at(file, &path_of(file, &proc, placeholder.pid(), placeholder.pid()), None)
        }
    }
}

/// The path, with other ids in it.
fn path_of(file: &model::File, proc: &ProcFile, pid: i32, tid: i32) -> Vec<u8> {
    let root = file.path.get(..proc.root as usize).unwrap_or_default();
    let replaced = if proc.tid == 0 { 1 } else { 3 };
    let rest = file
        .path
        .get(proc.root as usize..)
        .unwrap_or_default()
        .split(|byte| *byte == b'/')
        .skip(1 + replaced);
    let mut path = [root, format!("/{pid}").as_bytes()].concat();
    if proc.tid != 0 {
        path.extend_from_slice(format!("/task/{tid}").as_bytes());
    }
    for name in rest {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

fn open_at(file: &model::File, path: &[u8], rights: Option<&Rights>) -> Result<OwnedFd> {
    let fd = reopen(path, &file.record, rights)?;
    seek(&fd, &file.record, path)?;
    Ok(fd)
}

/// Gives the tasks in the details of a file their own names.
pub(crate) fn rename(file: &mut model::File, own: impl Fn(i32) -> i32) {
    if file.record.kind != file_kind::PROC {
        return;
    }
    let Some(mut proc) = details(file).filter(|proc| proc.owner == proc_owner::TASK) else { return };
    (proc.pid, proc.tid) = (own(proc.pid), own(proc.tid));
    file.details = proc.as_bytes().to_vec();
}
