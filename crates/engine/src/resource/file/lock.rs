//! Locks and leases on files.
//!
//! *What the kernel knows*: a POSIX lock (fcntl(2) F_SETLK) belongs to a descriptor table and is lost when any
//! descriptor of the file is closed in it; an OFD lock (F_OFD_SETLK, Linux 3.15), a flock(2) lock and a lease
//! (F_SETLEASE) belong to an open description. fdinfo (Linux 4.1) shows each through the description it was made by.
//! *Saved*: with the description: kind, access, range, and which process made it. *Restored*: by a program of the
//! process that made it, else of one that has the description, when all tables are as they are to be: nothing is
//! closed afterwards. Calls that wait for a lock (F_SETLKW) begin again and wait again. *Refused*: a lease that is
//! being broken, delegations and layouts of file servers, a lock through what comes from outside. An error at
//! restart, with who has it: a lock that another holds by then. *Lost*: the order in which waiters are served.
//! Of many descriptors fdinfo is read only where /proc/locks shows a lock: see [`Locked`].

use super::{Descriptor, external};
use crate::{
    advice::Means,
    error::{Error, Result},
    objects::Objects,
    restore::Parts,
    task::{Process, show},
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{FileLock, PAGE_SIZE, lock_kind},
};
use ckpt_kernel::{
    procfs,
    program::{Arg, Program},
    puppet::Puppet,
    query::{Kcmp, kcmp},
};
use ckpt_proc::fdinfo::{Lock, LockAccess, LockKind, parse_locks};
use rustix::{
    fs::{OFlags, major, minor},
    io::Errno,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    thread::{self, JoinHandle},
};

const F_SETLK: i32 = 6;
const F_OFD_SETLK: i32 = 37;
const F_SETLEASE: i32 = 1024;
const WRITE: u32 = 1;

/// Where anybody has a lock: who holds none need not be asked. A description shows its locks in its own fdinfo alone.
#[derive(Debug, Default)]
pub(crate) struct Locked {
    /// How many descriptors are asked about.
    descriptors: usize,
    /// Who looks at /proc/locks.
    reader: Option<JoinHandle<Inodes>>,
    /// What it says.
    inodes: Inodes,
}

/// Inode numbers; `None` if it is not known that those are all.
type Inodes = Option<BTreeSet<u64>>;

/// As many descriptors as are worth a look at /proc/locks: that waits for the end of an RCU grace period, and all who lock
/// something wait meanwhile (file_rwsem, locks_start() in fs/locks.c). It takes some 7 ms, fdinfo 9 us.
const WORTH_IT: usize = 800;

impl Locked {
    /// So many more descriptors will be asked about. As those who hold locks stand still, it may be looked where they are already.
    pub(super) fn expect(&mut self, descriptors: usize) {
        let before = self.descriptors;
        self.descriptors += descriptors;
        if before < WORTH_IT && self.descriptors >= WORTH_IT {
            self.reader = thread::Builder::new().spawn(locked_inodes).ok();
        }
    }

    /// Whether there may be a lock on the file of a descriptor.
    fn may_be_on(&mut self, descriptor: &Descriptor<'_>) -> bool {
        if let Some(reader) = self.reader.take() {
            self.inodes = reader.join().unwrap_or_default();
        }
        self.inodes.as_ref().is_none_or(|inodes| match SAME_INODE.contains(&descriptor.fs) {
            true => inodes.contains(&descriptor.stat.st_ino),
            false => !inodes.is_empty(),
        })
    }
}

/// File systems (statfs(2) f_type) of which stat(2) gives the number that /proc/locks shows: ext4, xfs, btrfs, tmpfs, those of
/// pipes, sockets and anonymous inodes, procfs, devpts.
const SAME_INODE: [i64; 9] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x5049_5045, 0x534f_434b, 0x0904_1934, 0x9fa0, 0x1cd1];

/// The inodes that /proc/locks names, if those are all: in a pid namespace below the first it leaves out locks whose makers have
/// ended, and a text that takes more than one read(2) may have changed between two.
fn locked_inodes() -> Option<BTreeSet<u64>> {
    /// PROC_PID_INIT_INO (include/linux/proc_ns.h).
    const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;
    let namespace = procfs::stat("self/ns/pid").ok()?;
    let file = procfs::open("locks", OFlags::RDONLY).ok()?;
    let (mut text, mut more) = (Vec::with_capacity(PAGE_SIZE), [0; 1]);
    rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)).ok()?;
    let complete = rustix::io::read(&file, &mut more).is_ok_and(|n| n == 0);
    if namespace.st_ino != FIRST_PID_NAMESPACE || !complete {
        return None;
    }
    let held = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let held = held.filter(|line| !line.windows(2).any(|two| two == b"->")).count();
    let locks = parse_locks(&text);
    (locks.len() == held).then(|| locks.iter().filter_map(|lock| Some(lock.file?.2)).collect())
}

/// Adds the locks that a descriptor shows to its description.
pub(crate) fn checkpoint(descriptor: &Descriptor<'_>, file: Objref, objects: &mut Objects) -> Result<()> {
    if descriptor.is_glance() || !objects.locked.may_be_on(descriptor) {
        return Ok(());
    }
    for lock in &descriptor.info()?.locks {
        if objects.policy.refuses(|allowed| allowed.file_locks) {
            let what = format!("it holds a lock on {}", show(&descriptor.link));
            return Err(Error::unsupported(what).advice(Means::FileLocks));
        }
        let record = record(descriptor, lock, objects)?;
        let Some(Object::File(file)) = objects.table.get_mut(&file) else { continue };
        if external::is_external(file) {
            let what = format!("a lock on {}, which is outside, cannot be carried yet", show(&file.path));
            return Err(Error::unsupported(what).advice("checkpoint when the program does not hold it"));
        }
        if !file.locks.contains(&record) {
            file.locks.push(record);
        }
    }
    Ok(())
}

fn record(descriptor: &Descriptor<'_>, lock: &Lock, objects: &Objects) -> Result<FileLock> {
    let path = show(&descriptor.link);
    let kind = match &lock.kind {
        LockKind::Posix => lock_kind::POSIX,
        LockKind::Ofd => lock_kind::OFD,
        LockKind::Flock => lock_kind::FLOCK,
        LockKind::Lease => lock_kind::LEASE,
        LockKind::Other(name) => {
            return Err(Error::unsupported(format!(
                "a lock of type {} on {path} cannot be carried yet",
                show(name)
            )));
        }
    };
    if kind == lock_kind::LEASE && lock.mode != b"ACTIVE" {
        let what = format!("the lease on {path} is being broken: another process waits to open the file");
        return Err(Error::unsupported(what).advice("try again when the program has given it up"));
    }
    let access = match lock.access {
        LockAccess::Read => 0,
        LockAccess::Write => WRITE,
        LockAccess::Unlock => return Err(Error::failed(format!("a lock on {path} that is none"))),
    };
    let (start, len) = match (kind, lock.end) {
        (lock_kind::FLOCK | lock_kind::LEASE, _) => (0, 0),
        (_, None) => (lock.start.max(0) as u64, 0),
        (_, Some(end)) => (lock.start.max(0) as u64, (end - lock.start).max(0) as u64 + 1),
    };
    Ok(FileLock { kind, access, pid: maker(descriptor.process, lock, objects), pad: 0, start, len })
}

/// The process that is to make a lock again: who made it, if it still has the table; 0 if it does not matter.
fn maker(process: &Process, lock: &Lock, objects: &Objects) -> i32 {
    let member = objects.members.contains(&lock.pid);
    match lock.kind {
        LockKind::Posix => {
            let same = || kcmp(lock.pid, process.witness, Kcmp::Files).is_ok_and(std::cmp::Ordering::is_eq);
            if member && same() { lock.pid } else { process.pid }
        }
        _ if member => lock.pid,
        _ => 0,
    }
}

/// A lock, and the descriptor through which it is taken.
pub(crate) type Taken<'a> = (i32, &'a model::File, FileLock);

/// Who is to take which locks: by place in the image.
pub(crate) fn takers<'a>(image: &'a Image, parts: &[Parts<'_>]) -> Result<BTreeMap<usize, Vec<Taken<'a>>>> {
    let mut takers: BTreeMap<usize, Vec<Taken<'a>>> = BTreeMap::new();
    for (objref, object) in &image.objects {
        let Object::File(file) = object else { continue };
        for lock in &file.locks {
            let through = |p: &Parts<'_>| {
                let desc = p.table.descs.iter().find(|desc| desc.file == *objref)?;
                Some((p.index, desc.fd))
            };
            let maker = parts.iter().find(|p| p.process.task.pid == lock.pid).and_then(through);
            let anybody = || parts.iter().find_map(through).filter(|_| lock.kind != lock_kind::POSIX);
            let (index, fd) = maker.or_else(anybody).ok_or_else(|| {
                Error::bad_image(format!("{}: a lock of nobody who has the file", show(&file.path)))
            })?;
            takers.entry(index).or_default().push((fd, file, *lock));
        }
    }
    Ok(takers)
}

/// Takes locks in a process whose descriptors are all in place.
pub(crate) fn restore(puppet: &mut Puppet, locks: &[Taken<'_>]) -> Result<()> {
    let mut program = Program::new();
    for (fd, _, lock) in locks {
        take(&mut program, *fd, lock);
    }
    let outcomes = puppet.run(0, program)?;
    match locks.iter().zip(&outcomes).find(|(_, outcome)| !outcome.ok()) {
        Some(((fd, file, lock), outcome)) => {
            let cause = Errno::from_raw_os_error((-outcome.result) as i32);
            Err(failure(puppet.pid(), *fd, file, lock, cause))
        }
        None => Ok(()),
    }
}

fn take(program: &mut Program, fd: i32, lock: &FileLock) {
    let fcntl = |program: &mut Program, command: i32, arg: Arg| {
        program.try_call("fcntl of a lock", libc::SYS_fcntl, [fd.into(), command.into(), arg]);
    };
    match lock.kind {
        lock_kind::FLOCK => {
            let how = if lock.access == WRITE { libc::LOCK_EX } else { libc::LOCK_SH } | libc::LOCK_NB;
            program.try_call("flock", libc::SYS_flock, [fd.into(), how.into()]);
        }
        lock_kind::LEASE => fcntl(program, F_SETLEASE, lock.access.into()),
        kind => {
            // struct flock: l_type, l_whence (SEEK_SET), a hole, l_start, l_len, l_pid (0), a hole.
            let mut flock = vec![0; 32];
            let words = [u64::from(lock.access), lock.start, lock.len];
            for (to, from) in flock.chunks_exact_mut(8).zip(words) {
                to.copy_from_slice(&from.to_le_bytes());
            }
            let command = if kind == lock_kind::OFD { F_OFD_SETLK } else { F_SETLK };
            fcntl(program, command, Arg::In(flock));
        }
    }
}

/// Why a lock could not be taken: mostly because another has it.
fn failure(pid: i32, fd: i32, file: &model::File, lock: &FileLock, cause: Errno) -> Error {
    let path = show(&file.path);
    let what = match lock.kind {
        lock_kind::LEASE => format!("the program's lease on {path}"),
        lock_kind::FLOCK => format!("the program's lock on {path}"),
        _ if lock.len == 0 => format!("the program's lock on {path} from byte {} on", lock.start),
        _ => {
            format!("the program's lock on bytes {} to {} of {path}", lock.start, lock.start + lock.len - 1)
        }
    };
    let error = Error::os(what, cause).object(format!("fd {fd}"));
    if ![Errno::AGAIN, Errno::ACCESS].contains(&cause) {
        return error;
    }
    let holder = holder(pid, fd, lock).unwrap_or_else(|| "another process".to_owned());
    let error = Error { kind: crate::error::ErrorKind::Failed, ..error };
    error
        .why(format!("{holder} has the file locked or open"))
        .advice("end it, or let it give that up, and try again")
}

/// Who has a lock in the way, as /proc/locks says.
fn holder(pid: i32, fd: i32, lock: &FileLock) -> Option<String> {
    let stat = procfs::stat(&format!("{pid}/fd/{fd}")).ok()?;
    let file = Some((major(stat.st_dev), minor(stat.st_dev), stat.st_ino));
    let last = if lock.len == 0 { i64::MAX } else { (lock.start + lock.len - 1) as i64 };
    let in_the_way = |other: &Lock| {
        other.file == file
            && other.pid != pid
            && other.start <= last
            && other.end.is_none_or(|end| end >= lock.start as i64)
            && (lock.access == WRITE || other.access == LockAccess::Write)
    };
    let found = parse_locks(&procfs::read("locks").ok()?).into_iter().find(in_the_way)?;
    let who = match found.pid {
        pid if pid > 0 => Process::open(pid).map_or_else(|_| format!("pid {pid}"), |p| p.label()),
        _ => "a process".to_owned(),
    };
    let range = match (found.start, found.end) {
        (0, None) => String::new(),
        (start, None) => format!(" (from byte {start} on)"),
        (start, Some(end)) => format!(" (bytes {start} to {end})"),
    };
    Some(format!("{who}{range}"))
}
