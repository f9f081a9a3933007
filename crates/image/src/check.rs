//! The rules metadata keeps besides decoding. Writer and reader both hold an image to them, so
//! that a checkpoint never writes what a restart would refuse.

mod anon;
mod pidns;
mod unix;

use std::collections::BTreeSet;
use std::fmt;

use crate::model::{Cred, File, FileTable, Fs, Image, Inode, Mm, Object, Process, Thread, Vma, details};
use crate::record::{
    self, ARCH_X86_64, ExternalName, FileLock, HEADER_MAGIC, Objref, PAGE_SIZE, PipePart, ProcFile, Pty, REV,
    Record, file_kind, inode_kind, lock_kind, owner_kind, pipe_part, proc_owner, pty_flags, restart_kind,
    task_state, vma_flags, vma_kind,
};
use crate::table::Table;

/// Longest path (PATH_MAX).
const MAX_PATH: usize = 4096;
/// Longest thread name (TASK_COMM_LEN without its NUL).
const MAX_COMM: usize = 15;
/// Longest PR_SET_VMA_ANON_NAME name without its NUL.
const MAX_ANON_NAME: usize = 79;
/// Shortest xsave area: the legacy region and the header.
const MIN_XSTATE: usize = 576;
/// Longest xsave area.
const MAX_XSTATE: usize = 64 << 10;
/// Longest auxv, affinity mask and build-id.
const MAX_SMALL: usize = 4096;
/// Longest uts name (__NEW_UTS_LEN).
const MAX_UTS: usize = 64;
/// Most supplementary groups (NGROUPS_MAX).
const MAX_CRED_GROUPS: usize = 65536;
/// Signals, and thus handlers.
const NR_SIGNALS: usize = 64;

/// Numbers a pty can have (NR_UNIX98_PTY_MAX).
const MAX_PTYS: u32 = 1 << 20;
/// More than a pty can hold one way: what is read, and the kernel's buffers before it.
const MAX_WAITING: u32 = 256 << 10;

/// What a fault was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The image as a whole.
    Image,
    /// A shared object.
    Object(Objref),
    /// The process at this index, and its pid.
    Process(usize, i32),
    /// A thread: its process's index, its tid.
    Thread(usize, i32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image => f.write_str("image"),
            Self::Object(objref) => write!(f, "object {objref}"),
            Self::Process(_, pid) => write!(f, "process {pid}"),
            Self::Thread(_, tid) => write!(f, "thread {tid}"),
        }
    }
}

/// A contradiction in the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// The rule it breaks.
    pub what: &'static str,
}

type Check = Result<(), &'static str>;

fn rule(holds: bool, what: &'static str) -> Check {
    if holds { Ok(()) } else { Err(what) }
}

/// Objects by number, and which of them have been referred to.
struct Refs<'a> {
    objects: &'a Table<Object>,
    used: Vec<bool>,
}

impl Refs<'_> {
    /// The object exists and is of this kind.
    fn required<R: Record>(&mut self, objref: Objref) -> Check {
        let object = self.objects.get(&objref).ok_or("refers to an object that is not in the image")?;
        rule(object.objtype() == R::TYPE, "refers to an object of the wrong kind")?;
        if let Some(used) = self.objects.position(objref).and_then(|at| self.used.get_mut(at)) {
            *used = true;
        }
        Ok(())
    }

    /// The object, if it is a pty.
    fn pty(&self, objref: Objref) -> Option<Pty> {
        match self.objects.get(&objref) {
            Some(Object::Inode(inode)) => inode.pty(),
            _ => None,
        }
    }

    /// As `required`, or none.
    fn optional<R: Record>(&mut self, objref: Objref) -> Check {
        if objref == 0 { Ok(()) } else { self.required::<R>(objref) }
    }
}

impl Image {
    /// Holds the image to the rules of the format; the first one broken is the error.
    pub fn check(&self) -> Result<(), Fault> {
        let at = |place| move |what| Fault { place, what };
        self.check_header().map_err(at(Place::Image))?;
        let mut refs = Refs { objects: &self.objects, used: vec![false; self.objects.len()] };
        for (objref, object) in &self.objects {
            rule(*objref > 0, "an objref is not positive").map_err(at(Place::Object(*objref)))?;
            check_object(object, &mut refs).map_err(at(Place::Object(*objref)))?;
        }
        let mut tids = BTreeSet::new();
        for (index, process) in self.processes.iter().enumerate() {
            let zombie = process.task.state == task_state::ZOMBIE;
            let place = Place::Process(index, process.task.pid);
            check_process(process, &mut refs).map_err(at(place))?;
            if zombie && process.threads.is_empty() {
                rule(tids.insert(process.task.pid), "its pid is taken").map_err(at(place))?;
            }
            for thread in &process.threads {
                let place = Place::Thread(index, thread.record.tid);
                rule(tids.insert(thread.record.tid), "its tid is taken").map_err(at(place))?;
                check_thread(thread, zombie, &mut refs).map_err(at(place))?;
            }
        }
        pidns::check(&self.processes)?;
        self.check_counts().map_err(at(Place::Image))?;
        match self.objects.keys().zip(&refs.used).find(|(_, used)| !**used) {
            Some((objref, _)) => Err(at(Place::Object(*objref))("nothing refers to it")),
            None => Ok(()),
        }
    }

    fn check_header(&self) -> Check {
        let header = &self.header;
        rule(header.magic == HEADER_MAGIC, "wrong magic")?;
        rule(header.rev == REV, "wrong revision")?;
        rule(header.arch == ARCH_X86_64, "wrong architecture")?;
        rule(header.page_size == PAGE_SIZE as u32, "unsupported page size")?;
        self.uts.iter().try_for_each(|name| text(name, MAX_UTS, "a uts name is too long or holds a NUL"))
    }

    fn check_counts(&self) -> Check {
        let processes = &self.processes;
        let threads: usize = processes.iter().map(|process| process.threads.len()).sum();
        rule(self.tree.nr_tasks as usize == processes.len(), "TREE counts another number of processes")?;
        rule(self.tree.nr_threads as usize == threads, "TREE counts another number of threads")?;
        rule(self.tree.pad == 0, "padding of TREE is not zero")?;
        let root = processes.first().ok_or("no process")?;
        rule(root.task.pid == self.tree.root, "the first process is not the root of the tree")
    }
}

fn check_process(process: &Process, refs: &mut Refs<'_>) -> Check {
    let task = &process.task;
    rule(task.pid > 0, "its pid is not positive")?;
    rule(task_state::ALL.contains(&task.state), "unknown state")?;
    rule(task.tpgid >= 0, "its terminal's foreground group is negative")?;
    refs.optional::<record::Inode>(task.tty)?;
    rule(task.tty == 0 || refs.pty(task.tty).is_some(), "its terminal is none")?;
    rule(task.nr_threads as usize == process.threads.len(), "TASK counts another number of threads")?;
    if task.state == task_state::ZOMBIE {
        rule(process.threads.len() <= 1, "a zombie has threads")?;
        rule(is_end(task.exit_code), "a zombie has not ended")?;
        refs.optional::<record::Mm>(task.mm)?;
        refs.optional::<record::FileTable>(task.files)?;
        refs.optional::<record::Fs>(task.fs)?;
        refs.optional::<record::Sighand>(task.sighand)?;
        refs.optional::<record::Signal>(task.signal)?;
    } else {
        rule(process.living().next().is_some(), "no thread")?;
        refs.required::<record::Mm>(task.mm)?;
        refs.required::<record::FileTable>(task.files)?;
        refs.required::<record::Fs>(task.fs)?;
        refs.required::<record::Sighand>(task.sighand)?;
        refs.required::<record::Signal>(task.signal)?;
    }
    let leader = process.threads.first().map_or(task.pid, |leader| leader.record.tid);
    rule(leader == task.pid, "its first thread is not the leader")?;
    rule(!process.threads.iter().skip(1).any(Thread::has_ended), "a thread other than the leader has ended")
}

/// Whether a wait status says that a process exited, or was killed by a signal that kills.
fn is_end(status: i32) -> bool {
    /// SIGCHLD to SIGTTOU, SIGURG and SIGWINCH are ignored, or stop or continue a process.
    const OTHERS: [i32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];
    let signal = status & 0x7f;
    let dumped = status & 0x80 != 0;
    if signal == 0 {
        status & !0xff00 == 0
    } else {
        status & !0xff == 0 && signal <= 64 && !OTHERS.contains(&signal) && (!dumped || signal < 32)
    }
}

fn check_thread(thread: &Thread, zombie: bool, refs: &mut Refs<'_>) -> Check {
    let record = &thread.record;
    rule(record.tid > 0, "its tid is not positive")?;
    rule(record.restart.pad == 0 && record.pad == 0, "padding is not zero")?;
    rule(record.mce_kill <= 2, "an unknown memory error policy")?;
    rule(restart_kind::ALL.contains(&record.restart.kind), "unknown restart block")?;
    rule([task_state::RUNNING, task_state::ZOMBIE].contains(&record.state), "unknown state")?;
    if thread.has_ended() {
        rule(!zombie, "a zombie's thread has ended once more")?;
        rule(is_end(record.exit_code), "its end is none")?;
    } else {
        rule(record.exit_code == 0, "it lives and has an exit code")?;
    }
    text(&thread.comm, MAX_COMM, "its name is too long or holds a NUL")?;
    rule(thread.affinity.len() <= MAX_SMALL, "affinity mask too long")?;
    rule(thread.xstate.len() <= MAX_XSTATE, "xsave area too long")?;
    if zombie || thread.has_ended() {
        return refs.optional::<record::Cred>(record.cred);
    }
    rule(thread.xstate.len() >= MIN_XSTATE, "xsave area too short")?;
    refs.required::<record::Cred>(record.cred)
}

fn check_object(object: &Object, refs: &mut Refs<'_>) -> Check {
    match object {
        Object::Mm(mm) => check_mm(mm, refs),
        Object::Files(files) => check_files(files, refs),
        Object::File(file) => check_file(file, refs),
        Object::Inode(inode) => check_inode(inode),
        Object::Fs(fs) => check_fs(fs),
        Object::Sighand(sighand) => rule(sighand.actions.len() == NR_SIGNALS, "not 64 signal actions"),
        Object::Signal(_) => Ok(()),
        Object::Cred(Cred { groups, .. }) => rule(groups.len() <= MAX_CRED_GROUPS, "too many groups"),
    }
}

fn check_mm(mm: &Mm, refs: &mut Refs<'_>) -> Check {
    rule(mm.record.nr_vmas as usize == mm.vmas.len(), "MM counts another number of areas")?;
    rule(mm.record.pad == 0, "padding is not zero")?;
    rule(mm.auxv.len() <= MAX_SMALL, "auxv too long")?;
    refs.optional::<record::File>(mm.record.exe)?;
    let mut free = 0;
    for vma in &mm.vmas {
        rule(vma.record.start >= free, "areas do not ascend or overlap")?;
        check_vma(vma, refs)?;
        free = vma.record.end;
    }
    Ok(())
}

fn check_vma(Vma { record: vma, anon_name }: &Vma, refs: &mut Refs<'_>) -> Check {
    let page = PAGE_SIZE as u64;
    rule(vma.start % page == 0 && vma.end % page == 0, "an area is not page-aligned")?;
    rule(vma.start < vma.end, "an area is empty")?;
    rule(vma.prot & !7 == 0, "an area has unknown protection bits")?;
    rule(vma.flags & !vma_flags::ALL == 0, "an area has unknown flags")?;
    rule(vma.pad == 0, "padding of an area is not zero")?;
    text(anon_name, MAX_ANON_NAME, "an area's name is too long or holds a NUL")?;
    match vma.kind {
        vma_kind::ANON_SHARED => refs.required::<record::Inode>(vma.object)?,
        vma_kind::FILE_PRIVATE | vma_kind::FILE_SHARED => refs.required::<record::File>(vma.object)?,
        kind => {
            rule(vma_kind::ALL.contains(&kind), "an area is of unknown kind")?;
            rule(vma.object == 0, "an area without a file refers to one")?;
        }
    }
    if vma.object != 0 {
        rule(vma.offset % page == 0, "an area's offset is not page-aligned")?;
        let end = vma.offset.checked_add(vma.end - vma.start);
        rule(end.is_some_and(|end| i64::try_from(end).is_ok()), "an area's offset is too large")?;
    }
    Ok(())
}

fn check_files(files: &FileTable, refs: &mut Refs<'_>) -> Check {
    let mut free = 0;
    for desc in &files.descs {
        rule(desc.fd >= free, "descriptors do not ascend")?;
        rule(desc.flags & !1 == 0, "a descriptor has unknown flags")?;
        rule(desc.pad == 0, "padding of a descriptor is not zero")?;
        refs.required::<record::File>(desc.file)?;
        free = desc.fd.checked_add(1).ok_or("a descriptor is too large")?;
    }
    Ok(())
}

fn check_file(file: &File, refs: &mut Refs<'_>) -> Check {
    rule(file_kind::ALL.contains(&file.record.kind), "a file of unknown kind")?;
    rule(file.record.pad == 0 && file.record.pad2 == 0, "padding is not zero")?;
    rule(owner_kind::ALL.contains(&file.record.owner_kind), "an owner of unknown kind")?;
    let owned = file.record.owner_kind != owner_kind::NONE;
    rule(if owned { file.record.owner > 0 } else { file.record.owner == 0 }, "a wrong owner")?;
    rule(file.record.owner_signal as usize <= NR_SIGNALS, "an unknown signal")?;
    text(&file.path, MAX_PATH, "its path is too long or holds a NUL")?;
    rule(file.build_id.len() <= MAX_SMALL, "build-id too long")?;
    check_file_details(file, refs)?;
    file.locks.iter().try_for_each(check_lock)?;
    let inside = [file_kind::UNLINKED, file_kind::PIPE, file_kind::MEMFD, file_kind::PTY];
    if inside.contains(&file.record.kind) {
        refs.required::<record::Inode>(file.record.inode)?;
    }
    refs.optional::<record::Inode>(file.record.inode)?;
    let of_pty = file.record.kind == file_kind::PTY
        || file.record.kind == file_kind::TTY_CURRENT && file.record.inode != 0;
    rule(!of_pty || refs.pty(file.record.inode).is_some(), "the end of a pty that is none")
}

/// The details, as the file's kind has them.
fn check_file_details(file: &File, refs: &mut Refs<'_>) -> Check {
    match file.record.kind {
        file_kind::REGULAR | file_kind::PATH => {
            text(&file.details, MAX_PATH, "its other path is too long or holds a NUL")
        }
        file_kind::PROC => match of_kind::<ProcFile>(&file.details)?[..] {
            [proc] => check_proc(&proc, &file.path),
            _ => Err("a kernel file of nobody"),
        },
        file_kind::MQUEUE => {
            let [queue] = of_kind::<record::Mqueue>(&file.details)?[..] else {
                return Err("a message queue without its attributes");
            };
            rule(queue.pad == 0, "padding is not zero")?;
            rule(queue.notify_pid >= 0 && queue.notify <= 1, "an unknown notification")?;
            rule(queue.signal as usize <= NR_SIGNALS, "an unknown signal")
        }
        file_kind::UNIX => unix::check(file, refs),
        file_kind::EXTERNAL_TTY | file_kind::TTY_CURRENT
            if file.details.len() == size_of::<record::Tty>() =>
        {
            Ok(())
        }
        file_kind::EXTERNAL_TTY
        | file_kind::EXTERNAL_PIPE
        | file_kind::EXTERNAL_SOCKET
        | file_kind::EXTERNAL_FILE => {
            let names = of_kind::<ExternalName>(&file.details)?;
            rule(names.len() <= 1, "more names than one")?;
            let padded = |name: &ExternalName| ExternalName::new(name.bytes()) == Some(*name);
            rule(names.iter().all(padded), "padding of a name is not zero")
        }
        _ => anon::check(file, refs),
    }
}

/// The structures in details of a kind that has some.
fn of_kind<T: zerocopy::FromBytes>(bytes: &[u8]) -> Result<Vec<T>, &'static str> {
    details(bytes).ok_or("details that are no whole number")
}

fn check_lock(lock: &FileLock) -> Check {
    rule(lock_kind::ALL.contains(&lock.kind), "a lock of unknown kind")?;
    rule(lock.access <= 1 && lock.pid >= 0, "a lock that is none")?;
    rule(lock.pad == 0, "padding is not zero")?;
    rule(lock.kind != lock_kind::POSIX || lock.pid > 0, "a lock of nobody")?;
    let end = lock.start.checked_add(lock.len);
    rule(end.is_some_and(|end| i64::try_from(end).is_ok()), "a lock on too large a range")?;
    let whole = [lock_kind::FLOCK, lock_kind::LEASE].contains(&lock.kind);
    rule(!whole || (lock.start, lock.len) == (0, 0), "a lock of the whole file has a range")
}

fn check_proc(proc: &ProcFile, path: &[u8]) -> Check {
    rule(proc_owner::ALL.contains(&proc.owner), "a kernel file of an unknown owner")?;
    rule(proc.pid >= 0 && proc.tid >= 0, "a kernel file of a negative id")?;
    rule((proc.owner == proc_owner::KERNEL) == (proc.pid == 0), "a kernel file of a wrong owner")?;
    let below = path.get(proc.root as usize..).ok_or("a kernel file above its root")?;
    rule(below.is_empty() || below.starts_with(b"/"), "a kernel file that is not below its root")
}

fn check_inode(inode: &Inode) -> Check {
    rule(inode_kind::ALL.contains(&inode.record.kind), "an inode of unknown kind")?;
    rule(i64::try_from(inode.record.size).is_ok(), "its size is too large")?;
    match inode.record.kind {
        inode_kind::PIPE => check_pipe(inode)?,
        inode_kind::PTY => check_pty(inode)?,
        inode_kind::UNIX => unix::check_waiting(inode)?,
        inode_kind::MEMFD => {
            let [memfd] = of_kind::<record::Memfd>(&inode.details)?[..] else {
                return Err("a memfd without its seals");
            };
            rule(memfd.pad == 0, "padding is not zero")?;
        }
        _ => rule(inode.details.is_empty(), "details of a kind that has none")?,
    }
    text(&inode.path, MAX_PATH, "its path is too long or holds a NUL")
}

fn check_pipe(pipe: &Inode) -> Check {
    let mut left = pipe.record.size;
    for part in of_kind::<PipePart>(&pipe.details)? {
        match part.kind {
            pipe_part::UNLINKED => rule(part.len == 0, "an unlinked FIFO with a length")?,
            pipe_part::PACKET => {
                rule((1..=PAGE_SIZE).contains(&(part.len as usize)), "a packet of a wrong length")?;
                left = left.checked_sub(part.len.into()).ok_or("packets beyond the contents")?;
            }
            _ => return Err("a pipe of unknown parts"),
        }
    }
    Ok(())
}

fn check_pty(inode: &Inode) -> Check {
    let pty = inode.pty().ok_or("a pty's details are not one structure")?;
    rule(pty.index < MAX_PTYS, "a pty's number is too large")?;
    rule(pty.flags & !pty_flags::ALL == 0, "a pty has unknown flags")?;
    rule(pty.output <= MAX_WAITING && pty.input <= MAX_WAITING, "a pty holds too much")?;
    rule(inode.record.size == u64::from(pty.output) + u64::from(pty.input), "a pty of another size")?;
    let dead = pty.flags & (pty_flags::HUNG_UP | pty_flags::UNOPENED) != 0;
    rule(!dead || inode.record.size == 0, "a pty without an end holds something")
}

fn check_fs(fs: &Fs) -> Check {
    rule(fs.record.umask & !0o777 == 0, "its umask has unknown bits")?;
    rule(fs.record.pad == 0, "padding is not zero")?;
    for path in [&fs.cwd, &fs.root] {
        rule(!path.is_empty(), "a path is empty")?;
        text(path, MAX_PATH, "a path is too long or holds a NUL")?;
    }
    Ok(())
}

/// A byte string for a system call: bounded and without NUL.
fn text(bytes: &[u8], max: usize, what: &'static str) -> Check {
    rule(bytes.len() <= max && !bytes.contains(&0), what)
}
