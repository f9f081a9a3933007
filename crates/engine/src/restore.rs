//! Restoring one process: the programs that its puppet runs, in the order in which `restart.rs`
//! asks for them.

use crate::{
    error::{Error, ErrorKind, Result},
    maker::taken_pid,
    opened::Opened,
    puppets::label,
    resource::{
        call, cred,
        file::{self, placement},
        fs, layout, limits, mm, pidns, signal, thread, timers,
    },
    task::show,
};
use ckpt_image::{
    Image, Objref, model,
    record::{EpollEntry, Regs, owner_kind, task_state, vma_kind},
};
use ckpt_kernel::{
    memory, procfs,
    program::Program,
    puppet::{Puppet, clone_args},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd},
};

const CLONE_THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;
/// Threads made by one program.
const AT_ONCE: usize = 64;

/// A living process of an image and all it refers to.
pub(crate) struct Parts<'a> {
    /// Its place in the image.
    pub(crate) index: usize,
    pub(crate) process: &'a model::Process,
    pub(crate) mm: &'a model::Mm,
    pub(crate) table: &'a model::FileTable,
    pub(crate) fs: &'a model::Fs,
    pub(crate) sighand: &'a model::Sighand,
    pub(crate) signal: &'a model::Signal,
    /// Nobody before it shares its address space.
    pub(crate) makes_mm: bool,
    /// Nobody before it shares its descriptor table.
    pub(crate) makes_files: bool,
    /// Nobody before it shares its directories.
    pub(crate) makes_fs: bool,
}

/// The living processes of an image. The first to use a shared object restores it.
pub(crate) fn parts(image: &Image) -> Result<Vec<Parts<'_>>> {
    let mut restored = BTreeSet::new();
    let living = |(_, process): &(usize, &model::Process)| process.task.state != task_state::ZOMBIE;
    let processes = image.processes.iter().enumerate().filter(living);
    let parts = processes.map(|(index, process)| {
        let missing = || Error::bad_image("the process lacks an object").task(label(process));
        let task = &process.task;
        Ok(Parts {
            index,
            process,
            mm: image.mm(task.mm).ok_or_else(missing)?,
            table: image.files(task.files).ok_or_else(missing)?,
            fs: image.fs(task.fs).ok_or_else(missing)?,
            sighand: image.sighand(task.sighand).ok_or_else(missing)?,
            signal: image.signal(task.signal).ok_or_else(missing)?,
            makes_mm: restored.insert(task.mm),
            makes_files: restored.insert(task.files),
            makes_fs: restored.insert(task.fs),
        })
    });
    let parts: Vec<Parts<'_>> = parts.collect::<Result<_>>()?;
    match parts.first() {
        Some(first) if first.index == 0 => Ok(parts),
        _ => Err(Error::unsupported("an image whose root is a zombie cannot be restarted")),
    }
}

/// Address space and directories, unless another process makes them.
pub(crate) fn memory(
    puppet: &mut Puppet,
    image: &Image,
    parts: &Parts<'_>,
    opened: &Opened,
    staging: &layout::Staging,
) -> Result<()> {
    let mut program = Program::new();
    if parts.makes_mm {
        address_space(&mut program, image, parts, opened, staging)?;
    }
    if let Some(directories) = opened.directories.get(&parts.process.task.fs).filter(|_| parts.makes_fs) {
        fs::restore(&mut program, parts.fs, directories);
    }
    Ok(puppet.start(0, program)?)
}

fn address_space(
    program: &mut Program,
    image: &Image,
    parts: &Parts<'_>,
    opened: &Opened,
    staging: &layout::Staging,
) -> Result<()> {
    layout::vdso(program, parts.mm);
    let number = |objref: Objref| {
        let fd = opened
            .files
            .get(&objref)
            .ok_or_else(|| Error::bad_image(format!("file {objref} cannot be mapped")))?;
        Ok(fd.as_raw_fd())
    };
    layout::map(program, parts.mm, staging, &number)?;
    // The kernel does not exchange an exe that is still mapped: ours, when the program's is the same.
    let own = procfs::stat("self/exe").map(|s| (s.st_dev, s.st_ino)).ok();
    let same = |f: &model::File| own == Some((f.record.dev, f.record.ino));
    let keep = image.file(parts.mm.record.exe).is_none_or(same);
    let exe = if keep { -1 } else { number(parts.mm.record.exe)? };
    mm::restore(program, parts.mm, exe);
    Ok(())
}

/// Puts every descriptor in its place, or a placeholder for what is opened last, and closes all others. Nobody who
/// shares the table needs ours any more. `entries` of epolls are added while ours are there, too.
pub(crate) fn descriptors(
    puppet: &mut Puppet,
    image: &Image,
    parts: &Parts<'_>,
    entries: &[(Objref, EpollEntry)],
    opened: &Opened,
) -> Result<()> {
    if let Some(late) = &opened.late {
        let used = parts.table.descs.iter().map(|d| d.file).chain(entries.iter().map(|(_, e)| e.file));
        late.replace(puppet, used, opened)?;
    }
    file::epoll::restore(puppet, image, entries, opened)?;
    let mut moves = Vec::with_capacity(parts.table.descs.len());
    let late = opened.late.as_ref();
    for desc in &parts.table.descs {
        let source = opened
            .inherited
            .get(parts.process.task.files, desc.fd)
            .or_else(|| opened.files.get(&desc.file))
            .ok_or_else(|| Error::bad_image(format!("fd {} has no file", desc.fd)))?;
        let from = source.as_fd().as_raw_fd();
        moves.push(placement::Move { from, to: desc.fd, cloexec: desc.flags & 1 != 0 });
    }
    let mut program = Program::new();
    let kept = late.and_then(|late| late.kept(parts.table));
    placement::place(&mut program, &moves, kept);
    Ok(puppet.start(0, program)?)
}

/// Proves that vdso and vvar are where they were and what they were.
pub(crate) fn check_vdso(pid: i32, image: &Image, parts: &Parts<'_>) -> Result<()> {
    let Some(vdso) = parts.mm.vmas.iter().map(|v| v.record).find(|r| r.kind == vma_kind::VDSO) else {
        return Ok(());
    };
    const MOST: u64 = 1 << 20;
    let mut bytes = vec![0; (vdso.end - vdso.start).min(MOST) as usize];
    let there = memory::read(pid, vdso.start, &mut bytes).is_ok();
    if there && twox_hash::XxHash3_64::oneshot(&bytes) == image.arch.vdso_sum {
        return Ok(());
    }
    let [release, ..] = &image.uts;
    Err(Error::bad_image("this kernel's vdso is not the one the program was linked to at run time")
        .advice(format!("restart it on the kernel it was checkpointed on ({})", show(release))))
}

/// Makes the threads that are not there yet, with their ids.
pub(crate) fn threads(puppet: &mut Puppet, process: &model::Process, new_pids: bool) -> Result<()> {
    let missing = process.threads.get(puppet.threads()..).unwrap_or_default();
    for some in missing.chunks(AT_ONCE) {
        let mut program = Program::new();
        for thread in some {
            let args = clone_args(CLONE_THREAD_FLAGS, 0, &pidns::set_tid(thread, new_pids));
            program.call("clone3 of a thread", thread.record.tid as u64, libc::SYS_clone3, args);
        }
        let outcomes = puppet.run(0, program).map_err(|e| taken_pid(object(&e), e))?;
        outcomes.iter().try_for_each(|made| puppet.adopt(made.result as i32))?;
    }
    Ok(())
}

/// What the call was about that failed.
fn object(error: &ckpt_kernel::Error) -> i32 {
    match error {
        ckpt_kernel::Error::Call { object, .. } => *object as i32,
        _ => 0,
    }
}

/// The C library keeps a thread's id where the kernel clears it at its end; with new ids that word
/// follows. (In a nested pid namespace they are the old ones.)
pub(crate) fn rename_tids(puppet: &Puppet, parts: &Parts<'_>) -> Result<()> {
    for (index, thread) in parts.process.threads.iter().enumerate() {
        let at = thread.record.clear_child_tid;
        let mut word = [0; 4];
        if at != 0
            && thread.levels.is_empty()
            && memory::read(puppet.pid(), at, &mut word).is_ok()
            && i32::from_le_bytes(word) == thread.record.tid
        {
            memory::write(puppet.pid(), at, &puppet.own_tid(index).to_le_bytes())?;
        }
    }
    Ok(())
}

/// What is done to an address space once its contents are in place.
pub(crate) fn finish(puppet: &mut Puppet, parts: &Parts<'_>, staging: &layout::Staging) -> Result<()> {
    let mut program = Program::new();
    layout::finish(&mut program, parts.mm, staging);
    Ok(puppet.start(0, program)?)
}

/// Gives one that is about to end what can be seen of a zombie: name and owner.
pub(crate) fn zombie(
    puppet: &mut Puppet,
    image: &Image,
    process: &model::Process,
    born: &cred::Born,
) -> Result<()> {
    let Some(leader) = process.threads.first() else { return Ok(()) };
    let mut program = Program::new();
    thread::restore_name(&mut program, leader);
    if let Some(creds) = image.cred(leader.record.cred) {
        cred::restore(&mut program, born, creds, leader);
    }
    Ok(puppet.start(0, program)?)
}

/// Which id each task and each process group of an image has now.
pub(crate) struct Ids {
    pub(crate) tasks: BTreeMap<i32, i32>,
    /// Those that files signal.
    pub(crate) groups: BTreeMap<i32, i32>,
}

/// Every thread restores itself, all at the same time; the leader last, with what they share: only a leader may queue
/// every signal of a process. One that had ended ends then.
pub(crate) fn tasks(
    puppet: &mut Puppet,
    image: &Image,
    parts: &Parts<'_>,
    ids: &Ids,
    born: &cred::Born,
) -> Result<()> {
    let pid = puppet.own_pid();
    for (index, thread) in parts.process.threads.iter().enumerate().rev() {
        let creds =
            image.cred(thread.record.cred).ok_or_else(|| Error::bad_image("a thread without credentials"))?;
        let mut program = Program::new();
        if index == 0 {
            puppet.finish()?;
        }
        if thread.has_ended() {
            thread::restore_name(&mut program, thread);
        } else {
            thread::restore(&mut program, thread);
        }
        if index == 0 {
            shared(puppet, &mut program, image, parts, &ids.tasks)?;
        }
        signal::restore_pending(&mut program, pid, puppet.own_tid(index), false, &thread.pending);
        if index == 0 {
            limits::restore(&mut program, &parts.signal.record);
        }
        cred::restore(&mut program, born, creds, thread);
        if index == 0 {
            limits::restore_after_cred(&mut program, &parts.signal.record);
            mm::restore_after_cred(&mut program, parts.mm);
            file::owner::restore(&mut program, image, parts.table, |kind, id| {
                let known = if kind == owner_kind::GROUP { &ids.groups } else { &ids.tasks };
                known.get(&id).copied()
            })?;
            file::mqueue::restore(&mut program, image, parts);
        }
        thread::restore_after_cred(&mut program, thread);
        puppet.start(index, program)?;
        if thread.has_ended() {
            puppet.end_leader((thread.record.exit_code >> 8) as u8)?;
        }
    }
    Ok(())
}

/// What the leader restores for all threads.
fn shared(
    puppet: &mut Puppet,
    program: &mut Program,
    image: &Image,
    parts: &Parts<'_>,
    pids: &BTreeMap<i32, i32>,
) -> Result<()> {
    signal::restore(program, parts.sighand);
    if !parts.signal.timers.is_empty() {
        let mut attempt = Program::new();
        let told =
            |tid| parts.process.threads.iter().any(|t| t.record.tid == tid).then(|| pids.get(&tid).copied());
        // In a nested pid namespace ids stay what they are.
        let pidns = parts.process.pidns();
        let near = |p: &&model::Process| p.pidns() == pidns;
        let threads = || image.processes.iter().filter(near).flat_map(|p| &p.threads);
        let timed = |id| {
            let named = |t: &&model::Thread| t.levels.last().map_or(t.record.tid, |level| level.tid) == id;
            let thread = threads().find(named)?;
            pids.get(&thread.record.tid).copied()
        };
        let timers = parts.signal.timers.iter().map(|t| timers::as_now(t, |tid| told(tid).flatten(), timed));
        let timers: Vec<_> = timers.collect();
        let pending = parts.process.threads.iter().flat_map(|t| &t.pending).chain(&parts.signal.pending);
        let sent = timers::senders(pending);
        timers::restore_posix(&mut attempt, &timers, &sent);
        match puppet.run(0, attempt) {
            Err(e) if timers::lacks_ids(&e) => {
                timers::restore_posix_by_counting(program, &timers, &sent)?;
            }
            other => other.map(|_| ())?,
        }
    }
    timers::restore_itimers(program, &parts.signal.record);
    let pid = puppet.own_pid();
    signal::restore_pending(program, pid, pid, true, &parts.signal.pending);
    Ok(())
}

/// Calls in progress: the registers each thread is to be let go with.
pub(crate) fn calls(puppet: &mut Puppet, parts: &Parts<'_>) -> Result<Vec<Regs>> {
    let threads = parts.process.living();
    threads.map(|(index, t)| call::restore(puppet, index, &t.record.regs, &t.record.restart)).collect()
}

/// What only stopped threads can be given: register state.
pub(crate) fn registers(puppet: &mut Puppet, parts: &Parts<'_>, going: Vec<Regs>) -> Result<()> {
    for ((index, thread), mut regs) in parts.process.living().zip(going) {
        let puppet = puppet.thread(index)?;
        // Trap and resume flags would stop it at once.
        regs.eflags &= !0x1_0100;
        let mut area = thread.xstate.clone();
        area.resize(puppet.xstate()?.len(), 0);
        puppet.set_xstate(&area).map_err(|e| {
            let error = Error::from(e);
            Error { kind: ErrorKind::BadImage, ..error }
                .advice("the image's processor state does not fit this machine")
        })?;
        puppet.set_regs(&regs).map_err(|e| Error { kind: ErrorKind::BadImage, ..Error::from(e) })?;
    }
    Ok(())
}

/// The last of all: which signals each thread blocks.
pub(crate) fn masks(puppet: &mut Puppet, parts: &Parts<'_>) -> Result<()> {
    for (index, thread) in parts.process.living() {
        puppet.thread(index)?.set_sigmask(thread.record.sigmask)?;
    }
    Ok(())
}
