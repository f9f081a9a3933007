//! The descriptors of a process by their numbers, and the names of regular files that the survey saw: guesses, until it is
//! certain that they are right.

use super::Descriptor;
use crate::{error::Result, resource::file::proc::is_kernel_file, task::Process};
use ckpt_kernel::program::{Outcome, Program};
use ckpt_proc::link::FdLink;
use rustix::fs::{FileType, Statx, StatxFlags};
use std::collections::BTreeMap;

/// A descriptor of a process.
pub(super) struct Number {
    pub(super) fd: i32,
    /// FD_CLOEXEC, once the process has said so.
    pub(super) cloexec: bool,
    /// Whether there is one, as far as is known.
    pub(super) open: bool,
    /// Of a regular file: by which name it was seen last.
    pub(super) name: Option<Name>,
}

/// A name of a regular file that a link of /proc/PID/fd showed, and the file.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) path: Vec<u8>,
    pub(super) dev: u64,
    pub(super) ino: u64,
}

impl Number {
    pub(super) fn new(fd: i32) -> Number {
        Number { fd, cloexec: false, open: true, name: None }
    }
}

impl Name {
    /// Of a descriptor that has been looked at.
    pub(super) fn of(descriptor: Descriptor<'_>) -> Option<Name> {
        let is_named = matches!(descriptor.target(), FdLink::Path { deleted: false, .. });
        if !is_named || descriptor.file_type() != FileType::RegularFile || is_kernel_file(&descriptor) {
            return None;
        }
        Some(Name { dev: descriptor.stat.st_dev, ino: descriptor.stat.st_ino, path: descriptor.link })
    }

    /// What is asked about a file.
    pub(super) const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

    /// Whether `file`, of a copy of the descriptor, is the one that had this name, and has it yet, which leads to `there`: it has
    /// no other name, and was not opened through another mount.
    pub(super) fn is_of(&self, file: &Statx, there: &Statx) -> bool {
        let known = |x: &Statx| StatxFlags::from_bits_retain(x.stx_mask).contains(Name::WANTED);
        let is_it = |x: &Statx| (dev_of(x), x.stx_ino) == (self.dev, self.ino);
        known(file)
            && known(there)
            && is_it(file)
            && is_it(there)
            && file.stx_mnt_id == there.stx_mnt_id
            && file.stx_nlink == 1
            && FileType::from_raw_mode(file.stx_mode.into()) == FileType::RegularFile
    }
}

pub(super) fn dev_of(file: &Statx) -> u64 {
    rustix::fs::makedev(file.stx_dev_major, file.stx_dev_minor)
}

/// The descriptors of a process.
pub(crate) struct Numbers {
    /// Ascending.
    pub(super) fds: Vec<Number>,
}

impl Numbers {
    /// Lists them.
    pub(crate) fn of(process: &Process) -> Result<Numbers> {
        let fds = process.proc.numbers("fd")?;
        Ok(Numbers { fds: fds.into_iter().map(Number::new).collect() })
    }

    /// Guesses them: mostly none is left out. To list them takes longer: the kernel makes an inode of each, one after the other.
    pub(crate) fn guess(process: &Process) -> Result<Numbers> {
        match count(process)? {
            0 => Numbers::of(process),
            count => Ok(Numbers { fds: (0..count).map(Number::new).collect() }),
        }
    }

    /// Those of a process that stands still, of which some were `surveyed` when it ran. If it has as many now, it is to say
    /// whether they are the same: see [`Numbers::take`].
    pub(crate) fn again(process: &Process, surveyed: Option<Numbers>) -> Result<Numbers> {
        let Some(surveyed) = surveyed else { return Numbers::of(process) };
        let count = count(process)?;
        if count != 0 && count as usize == surveyed.len() { Ok(surveyed) } else { surveyed.relist(process) }
    }

    /// Lists them again. They remember their names.
    pub(crate) fn relist(self, process: &Process) -> Result<Numbers> {
        let mut names: BTreeMap<i32, Option<Name>> = self.fds.into_iter().map(|n| (n.fd, n.name)).collect();
        let mut new = Numbers::of(process)?;
        new.fds.iter_mut().for_each(|number| number.name = names.remove(&number.fd).flatten());
        Ok(new)
    }

    /// Whether one of them is a regular file, this one, by its name.
    pub(crate) fn names(&self, dev: u64, ino: u64) -> bool {
        let mut names = self.fds.iter().filter_map(|number| number.name.as_ref());
        names.any(|name| (name.dev, name.ino) == (dev, ino))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.fds.len()
    }

    /// Asks a process that stands still for what is the descriptors' alone.
    pub(crate) fn questions(&self, program: &mut Program) {
        for number in &self.fds {
            let args = [number.fd.into(), libc::F_GETFD.into()];
            program.try_call("fcntl(F_GETFD)", libc::SYS_fcntl, args);
        }
    }

    /// Takes its answers. Whether it has them all.
    pub(crate) fn take(&mut self, answers: &[Outcome]) -> bool {
        for (number, answer) in self.fds.iter_mut().zip(answers) {
            number.cloexec = answer.ok() && answer.result & i64::from(libc::FD_CLOEXEC) != 0;
        }
        answers.len() == self.fds.len() && answers.iter().all(Outcome::ok)
    }
}

/// How many descriptors a process has; 0 before Linux 6.2.
fn count(process: &Process) -> Result<i32> {
    Ok(i32::try_from(process.proc.stat("fd")?.st_size).unwrap_or(0))
}
