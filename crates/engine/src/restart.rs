//! Restart: the ordered list of phases.
//!
//! | phase | why here |
//! |---|---|
//! | read | metadata, verified by sums before it is decoded |
//! | check | another machine, changed files: refused before anything is made |
//! | open | files and directories, by the coordinator, whose view of paths is the caller's |
//! | spawn | the puppet, with its pid; from here on an error kills it |
//! | memory | areas, exe link, working directory, descriptors: one program |
//! | fill | page contents, read and verified beside; rseq needs its area in place |
//! | threads | all threads exist before any of them restores itself |
//! | restore | each thread by a program of its own, the leader also what they share |
//! | release | calls in progress, then the slot, then registers and masks, then go |

use crate::{
    error::{Context, Doing, Error, ErrorKind, Result},
    machine,
    options::{Input, Observer, RestartOptions, RestartReport},
    resource::{
        call, cred,
        file::{self, Made, OpenContext, external},
        fs, layout, limits, mm,
        pages::Target,
        signal, thread, timers,
    },
    source,
    task::{ProcDir, show},
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{self, file_kind, inode_kind, task_state, vma_kind},
};
use ckpt_kernel::{
    Errno,
    memory::{self, Span},
    program::{Arg, Program},
    puppet::Puppet,
    query,
};
use ckpt_proc::maps::parse_maps;
use std::{
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

const CLONE_THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_PTRACE;
const SYS_CLOSE_RANGE: i64 = 436;
const RSEQ_UNREGISTER: u64 = 1;

/// Everything about the one process of an image, found once.
struct Parts<'a> {
    new_pids: bool,
    process: &'a model::Process,
    mm: &'a model::Mm,
    table: &'a model::FileTable,
    fs: &'a model::Fs,
    sighand: &'a model::Sighand,
    signal: &'a model::Signal,
}

/// What the coordinator opened for the puppet, at high descriptor numbers.
struct Opened {
    files: BTreeMap<Objref, OwnedFd>,
    inherited: BTreeMap<i32, OwnedFd>,
    inodes: BTreeMap<Objref, Made>,
    directories: fs::Directories,
}

/// Recreates the tasks of the image in `input` as children of the caller.
///
/// # Errors
/// Whatever fails, no task and no file stays behind.
pub fn restart(options: RestartOptions, input: Input, observer: &mut dyn Observer) -> Result<RestartReport> {
    let begin = Instant::now();
    let mut reader = source::open(input)?;
    let image = reader.metadata()?;
    let parts = parts(&image, options.new_pids)?;
    machine::check_processor(&image, options.force_cpu)?;
    machine::warn_of_reboot(&image, observer);
    if !options.force_files {
        check_mapped_files(&image, &parts)?;
    }
    let opened = open(&image, &parts, &options)?;
    let label = label(&parts);
    let mut puppet = spawn_when_free(&parts, &mut reader, observer).task(|| label.clone())?;
    let (page_bytes, pid) =
        build(&mut puppet, &image, &parts, &opened, reader, observer).task(|| label.clone())?;
    let (_, pidfd) = puppet.release().task(|| label.clone())?;
    Ok(RestartReport {
        id: image.header.id,
        pid,
        pidfd,
        comm: parts.process.threads.first().map(|t| t.comm.clone()).unwrap_or_default(),
        processes: image.processes.len(),
        threads: parts.process.threads.len(),
        page_bytes,
        total: begin.elapsed(),
    })
}

/// How messages name the task being made.
fn label(parts: &Parts<'_>) -> String {
    let comm = parts.process.threads.first().map(|t| show(&t.comm)).unwrap_or_default();
    format!("pid {} ({comm})", parts.process.task.pid)
}

fn parts(image: &Image, new_pids: bool) -> Result<Parts<'_>> {
    let [process] = image.processes.as_slice() else {
        return Err(Error::unsupported("images of more than one process cannot be restarted yet"));
    };
    if process.task.state == task_state::ZOMBIE {
        return Err(Error::unsupported("an image of a zombie alone cannot be restarted"));
    }
    let missing = || Error::bad_image("the process lacks an object");
    let task = &process.task;
    Ok(Parts {
        new_pids,
        process,
        mm: image.mm(task.mm).ok_or_else(missing)?,
        table: image.files(task.files).ok_or_else(missing)?,
        fs: image.fs(task.fs).ok_or_else(missing)?,
        sighand: image.sighand(task.sighand).ok_or_else(missing)?,
        signal: image.signal(task.signal).ok_or_else(missing)?,
    })
}

/// Refuses an image whose program or libraries have changed: privately mapped pages that were not
/// stored come from these files.
fn check_mapped_files(image: &Image, parts: &Parts<'_>) -> Result<()> {
    let private = parts.mm.vmas.iter().map(|v| v.record).filter(|r| r.kind == vma_kind::FILE_PRIVATE);
    let mut objrefs: Vec<Objref> = private.map(|r| r.object).chain([parts.mm.record.exe]).collect();
    objrefs.sort_unstable();
    objrefs.dedup();
    for mapped in
        objrefs.iter().filter_map(|o| image.file(*o)).filter(|f| f.record.kind == file_kind::REGULAR)
    {
        let path = show(&mapped.path);
        let stat = rustix::fs::stat(mapped.path.as_slice()).map_err(|e| {
            Error::os(format!("{path}, which the program has mapped"), e).advice("put it back")
        })?;
        let record = &mapped.record;
        let same_size = stat.st_size.max(0) as u64 == record.size;
        let same_time = (stat.st_mtime, stat.st_mtime_nsec as u32) == (record.mtime_sec, record.mtime_nsec);
        let same_build =
            || !mapped.build_id.is_empty() && mm::build_id(&mapped.path) == Some(mapped.build_id.clone());
        if same_size && (same_time || same_build()) {
            continue;
        }
        let what = if same_size { "modification time and build-id differ" } else { "its size differs" };
        return Err(Error::failed(format!("{path} has changed since the checkpoint"))
            .why(what)
            .advice("put the original back, or go on with --force-files"));
    }
    Ok(())
}

/// Opens everything the puppet will need.
fn open(image: &Image, parts: &Parts<'_>, options: &RestartOptions) -> Result<Opened> {
    let limit = file::raise_nofile();
    let top = parts.table.descs.last().map_or(3, |d| d.fd.saturating_add(1)).max(3);
    let park = |fd: OwnedFd| {
        rustix::io::fcntl_dupfd_cloexec(&fd, top).map_err(|e| {
            Error::os(format!("a descriptor above {top}"), e)
                .advice(format!("raise the limit of open files ({limit})"))
        })
    };
    let mut inodes = BTreeMap::new();
    for (objref, object) in &image.objects {
        let Object::Inode(inode) = object else { continue };
        let made = match inode.record.kind {
            inode_kind::UNLINKED => file::unlinked::make(inode)?,
            inode_kind::PIPE => file::pipe::make(inode)?,
            _ => continue,
        };
        let read = made.read.map(&park).transpose()?;
        inodes.insert(*objref, Made { fd: park(made.fd)?, read });
    }
    let context = OpenContext { image, options, inodes: &inodes };
    let files = file::open_all(&context, &park)?;
    let inherited = external::inherit(image, parts.table, &options.inherit, &park)?;
    let directories = fs::prepare(parts.fs, &park)?;
    Ok(Opened { files, inherited, inodes, directories })
}

/// Makes the puppet. In `checkpoint --kill PID | restart` the original ends only when it has seen
/// all of the image off: then the image is taken in and the pid waited for.
fn spawn_when_free(
    parts: &Parts<'_>,
    reader: &mut source::ImageReader,
    observer: &dyn Observer,
) -> Result<Puppet> {
    const PAUSE: Duration = Duration::from_millis(2);
    const PATIENCE: Duration = Duration::from_secs(5);
    let taken = match spawn(parts) {
        Err(e) if e.errno() == Some(Errno::EXIST) && reader.source_mut().is_stream() => {
            reader.source_mut().spool(observer)?;
            Instant::now()
        }
        other => return other.map_err(|e| taken_pid(parts.process.task.pid, e)),
    };
    loop {
        match spawn(parts) {
            Err(e)
                if e.errno() == Some(Errno::EXIST) && taken.elapsed() < PATIENCE && !observer.cancelled() =>
            {
                std::thread::sleep(PAUSE);
            }
            other => return other.map_err(|e| taken_pid(parts.process.task.pid, e)),
        }
    }
}

/// Makes the puppet, at an address free in the coordinator and in the image.
fn spawn(parts: &Parts<'_>) -> Result<Puppet, SpawnError> {
    let own = ProcDir::own()?.parse("maps", parse_maps)?;
    let mut taken = layout::taken(parts.mm);
    taken.extend(own.iter().map(|m| Span { start: m.start, len: m.len() as usize }));
    let threads = parts.process.threads.len();
    let address = layout::free_range(&mut taken, Puppet::slot_len(threads))?;
    let set_tid = (!parts.new_pids).then_some(parts.process.task.pid);
    let pending = parts.process.threads.iter().flat_map(|t| &t.pending).chain(&parts.signal.pending);
    let pending = signal::mask_of(pending);
    let free = |s: &i32| pending & 1 << (s - 1) == 0;
    let park = [libc::SIGURG, libc::SIGWINCH, libc::SIGUSR1, libc::SIGUSR2, libc::SIGIO, libc::SIGPROF]
        .into_iter()
        .chain(1..32)
        .filter(|s| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGCONT, libc::SIGTRAP, libc::SIGSEGV].contains(s))
        .find(free)
        .ok_or_else(|| Error::unsupported("every signal is pending"))?;
    Ok(Puppet::spawn(set_tid, address, threads, park)?)
}

/// Why no puppet was made: the kernel's reason, or ours.
enum SpawnError {
    Kernel(ckpt_kernel::Error),
    Other(Error),
}

impl SpawnError {
    fn errno(&self) -> Option<Errno> {
        match self {
            SpawnError::Kernel(e) => e.errno(),
            SpawnError::Other(_) => None,
        }
    }
}

impl From<ckpt_kernel::Error> for SpawnError {
    fn from(cause: ckpt_kernel::Error) -> Self {
        SpawnError::Kernel(cause)
    }
}

impl From<Error> for SpawnError {
    fn from(error: Error) -> Self {
        SpawnError::Other(error)
    }
}

/// Says who has a pid that is wanted.
fn taken_pid(pid: i32, cause: impl Into<SpawnError>) -> Error {
    let cause = match cause.into() {
        SpawnError::Kernel(cause) => cause,
        SpawnError::Other(error) => return error,
    };
    match cause.errno() {
        Some(Errno::EXIST) => {
            let occupant = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            let occupant = occupant.strip_suffix(b"\n").unwrap_or(&occupant);
            let who = if occupant.is_empty() {
                "is still in use as a session or process group, or by a process not yet waited for".to_owned()
            } else {
                format!("is taken by {}", show(occupant))
            };
            Error::failed(format!("pid {pid} {who}")).advice("end it, or restart with --new-pids")
        }
        Some(Errno::PERM) => Error::permission(format!("make a process with pid {pid}"))
            .why("Operation not permitted")
            .advice("it needs CAP_CHECKPOINT_RESTORE, or restart with --new-pids"),
        _ => cause.into(),
    }
}

/// Turns a fresh puppet into the process of the image. Returns the bytes of pages and its pid.
fn build(
    puppet: &mut Puppet,
    image: &Image,
    parts: &Parts<'_>,
    opened: &Opened,
    mut reader: source::ImageReader,
    observer: &mut dyn Observer,
) -> Result<(u64, i32)> {
    let staging = staging(image, parts, puppet.slot())?;
    let first = first_program(puppet, image, parts, opened, &staging)?;
    puppet.run(0, &first)?;
    check_vdso(puppet.pid(), image, parts)?;
    let mem = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", puppet.pid()));
    let target = Target {
        pid: puppet.pid(),
        mm: parts.process.task.mm,
        vmas: &parts.mm.vmas,
        mem: mem.doing(|| "open /proc/PID/mem".to_owned())?,
        staging: &staging,
        inodes: &opened.inodes,
    };
    let page_bytes = fill(&mut reader, image, &target, observer)?;
    make_threads(puppet, parts)?;
    let mut finish = Program::new();
    layout::finish(&mut finish, parts.mm, &staging);
    puppet.run(0, &finish)?;
    restore_threads(puppet, image, parts)?;
    limits::restore_oom(puppet.pid(), parts.signal, observer);
    let filter = format!("{:#x}", parts.mm.record.coredump_filter);
    std::fs::write(format!("/proc/{}/coredump_filter", puppet.pid()), filter)
        .doing(|| "coredump_filter".to_owned())?;
    restore_registers(puppet, parts)?;
    if parts.process.task.state == task_state::STOPPED {
        query::kill(puppet.pid(), libc::SIGSTOP)?;
    }
    Ok((page_bytes, puppet.pid()))
}

/// Free addresses for every object shared anonymously.
fn staging(image: &Image, parts: &Parts<'_>, slot: Span) -> Result<layout::Staging> {
    let mut taken = layout::taken(parts.mm);
    taken.push(slot);
    let mut staging = layout::Staging::new();
    for vma in parts.mm.vmas.iter().map(|v| v.record).filter(|r| r.kind == vma_kind::ANON_SHARED) {
        let Some(inode) = image.inode(vma.object) else { continue };
        let len = inode.record.size.next_multiple_of(record::PAGE_SIZE as u64);
        if len == 0 || len > layout::TASK_SIZE {
            return Err(Error::bad_image(format!("shared object {} of {len} bytes", vma.object)));
        }
        if let std::collections::btree_map::Entry::Vacant(entry) = staging.entry(vma.object) {
            let start = layout::free_range(&mut taken, len as usize)?;
            entry.insert(Span { start, len: len as usize });
        }
    }
    Ok(staging)
}

/// Session, address space, directories and descriptors.
fn first_program(
    puppet: &mut Puppet,
    image: &Image,
    parts: &Parts<'_>,
    opened: &Opened,
    staging: &layout::Staging,
) -> Result<Program> {
    let mut program = Program::new();
    let task = &parts.process.task;
    if task.sid == task.pid {
        program.call("setsid", 0, libc::SYS_setsid, []);
    } else if task.pgid == task.pid {
        program.call("setpgid", 0, libc::SYS_setpgid, [0u64.into(), 0u64.into()]);
    }
    let (area, size, sig, _) = puppet.thread(0)?.rseq()?;
    if area != 0 {
        let args = [area.into(), size.into(), RSEQ_UNREGISTER.into(), sig.into()];
        program.call("rseq", area, libc::SYS_rseq, args);
    }
    layout::clear(&mut program, parts.mm, puppet.slot());
    let number = |objref: Objref| {
        let fd = opened
            .files
            .get(&objref)
            .ok_or_else(|| Error::bad_image(format!("file {objref} cannot be mapped")))?;
        Ok(fd.as_raw_fd())
    };
    layout::map(&mut program, image, parts.mm, staging, &number)?;
    // The kernel does not exchange an exe that is still mapped: ours, when the program's is the same.
    let own = rustix::fs::stat("/proc/self/exe").map(|s| (s.st_dev, s.st_ino)).ok();
    let same = |f: &model::File| own == Some((f.record.dev, f.record.ino));
    let keep = image.file(parts.mm.record.exe).is_none_or(same);
    let exe = if keep { -1 } else { number(parts.mm.record.exe)? };
    mm::restore(&mut program, parts.mm, exe);
    fs::restore(&mut program, parts.fs, &opened.directories);
    descriptors(&mut program, parts, opened)?;
    Ok(program)
}

/// Puts every descriptor in its place and closes all others.
fn descriptors(program: &mut Program, parts: &Parts<'_>, opened: &Opened) -> Result<()> {
    let mut next = 0;
    let close = |program: &mut Program, from: i32, to: u32| {
        if i64::from(from) <= i64::from(to) {
            let args = [from.into(), to.into(), 0u64.into()];
            program.call("close_range", from as u64, SYS_CLOSE_RANGE, args);
        }
    };
    for desc in &parts.table.descs {
        let source = opened
            .inherited
            .get(&desc.fd)
            .or_else(|| opened.files.get(&desc.file))
            .ok_or_else(|| Error::bad_image(format!("fd {} has no file", desc.fd)))?;
        let cloexec = if desc.flags & 1 != 0 { libc::O_CLOEXEC } else { 0 };
        let args = [source.as_fd().as_raw_fd().into(), desc.fd.into(), cloexec.into()];
        program.call("dup3", desc.fd as u64, libc::SYS_dup3, args);
    }
    for desc in &parts.table.descs {
        if desc.fd > next {
            close(program, next, desc.fd as u32 - 1);
        }
        next = desc.fd.saturating_add(1);
    }
    close(program, next, u32::MAX);
    Ok(())
}

/// Proves that vdso and vvar are where they were and what they were.
fn check_vdso(pid: i32, image: &Image, parts: &Parts<'_>) -> Result<()> {
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

/// Reads all page chunks and puts them in place, up to the verified end of the image.
fn fill(
    reader: &mut source::ImageReader,
    image: &Image,
    target: &Target<'_>,
    observer: &mut dyn Observer,
) -> Result<u64> {
    let mut bytes = 0;
    source::chunks(reader, &mut |chunk| {
        if observer.cancelled() {
            return Err(Error::failed("interrupted by a signal"));
        }
        let len = chunk.data().len() as u64;
        bytes += len;
        observer.advance(len);
        target.apply(image, chunk)
    })?;
    Ok(bytes)
}

/// Makes the other threads, with their ids.
fn make_threads(puppet: &mut Puppet, parts: &Parts<'_>) -> Result<()> {
    let new_pids = parts.new_pids;
    for thread in parts.process.threads.iter().skip(1) {
        let mut program = Program::new();
        // struct clone_args, and behind it the tid.
        const ARGS: usize = 88;
        const SET_TID: usize = 64;
        let mut args = vec![0u8; ARGS];
        let words = [(0, CLONE_THREAD_FLAGS as u64), (SET_TID + 8, u64::from(!new_pids))];
        for (at, word) in words {
            args.splice(at..at + 8, word.to_le_bytes());
        }
        args.extend_from_slice(&u64::from(thread.record.tid as u32).to_le_bytes());
        let links = if new_pids { Vec::new() } else { vec![(SET_TID, ARGS)] };
        let call = [Arg::Linked(args, links), (ARGS as u64).into()];
        program.call("clone3 of a thread", thread.record.tid as u64, libc::SYS_clone3, call);
        let outcomes = puppet.run(0, &program).map_err(|e| taken_pid(thread.record.tid, e))?;
        puppet.adopt(outcomes.first().map_or(0, |o| o.result as i32))?;
    }
    if new_pids {
        rename_tids(puppet, parts)?;
    }
    Ok(())
}

/// The C library keeps a thread's id where the kernel clears it at its end; with new ids that word
/// follows.
fn rename_tids(puppet: &Puppet, parts: &Parts<'_>) -> Result<()> {
    for (index, thread) in parts.process.threads.iter().enumerate() {
        let at = thread.record.clear_child_tid;
        let mut word = [0; 4];
        if at != 0
            && memory::read(puppet.pid(), at, &mut word).is_ok()
            && i32::from_le_bytes(word) == thread.record.tid
        {
            memory::write(puppet.pid(), at, &puppet.tid(index).to_le_bytes())?;
        }
    }
    Ok(())
}

/// Every thread restores itself; the leader last, with what they share.
fn restore_threads(puppet: &mut Puppet, image: &Image, parts: &Parts<'_>) -> Result<()> {
    let own = cred::own()?;
    let pid = puppet.pid();
    for (index, thread) in parts.process.threads.iter().enumerate().rev() {
        let creds =
            image.cred(thread.record.cred).ok_or_else(|| Error::bad_image("a thread without credentials"))?;
        let mut program = Program::new();
        thread::restore(&mut program, thread);
        if index == 0 {
            restore_shared(puppet, &mut program, parts)?;
        }
        signal::restore_pending(&mut program, pid, puppet.tid(index), false, &thread.pending);
        if index == 0 {
            limits::restore(&mut program, &parts.signal.record);
        }
        cred::restore(&mut program, &own, creds, thread);
        if index == 0 {
            mm::restore_after_cred(&mut program, parts.mm);
            file::owner::restore(&mut program, image, parts.table, |tid| new_tid(puppet, parts, tid))?;
        }
        thread::restore_after_cred(&mut program, thread);
        puppet.run(index, &program)?;
    }
    Ok(())
}

/// The id that the thread with the id `tid` in the image has now.
fn new_tid(puppet: &Puppet, parts: &Parts<'_>, tid: i32) -> Option<i32> {
    parts.process.threads.iter().position(|t| t.record.tid == tid).map(|index| puppet.tid(index))
}

/// What the leader restores for all threads.
fn restore_shared(puppet: &mut Puppet, program: &mut Program, parts: &Parts<'_>) -> Result<()> {
    signal::restore(program, parts.sighand);
    let old: Vec<i32> = parts.process.threads.iter().map(|t| t.record.tid).collect();
    let new: Vec<i32> = (0..puppet.threads()).map(|i| puppet.tid(i)).collect();
    let tid = |tid: i32| old.iter().position(|t| *t == tid).and_then(|i| new.get(i)).copied().unwrap_or(tid);
    if !parts.signal.timers.is_empty() {
        let mut attempt = Program::new();
        timers::restore_posix(&mut attempt, &parts.signal.timers, tid);
        match puppet.run(0, &attempt) {
            Err(e) if e.errno() == Some(Errno::INVAL) => {
                timers::restore_posix_by_counting(program, &parts.signal.timers, tid);
            }
            other => other.map(|_| ())?,
        }
    }
    timers::restore_itimers(program, &parts.signal.record);
    let pid = puppet.pid();
    signal::restore_pending(program, pid, pid, true, &parts.signal.pending);
    Ok(())
}

/// Calls in progress, then the slot, then what only the stopped threads can be given.
fn restore_registers(puppet: &mut Puppet, parts: &Parts<'_>) -> Result<()> {
    let mut regs = Vec::with_capacity(parts.process.threads.len());
    for (index, thread) in parts.process.threads.iter().enumerate() {
        regs.push(call::restore(puppet, index, &thread.record.regs, &thread.record.restart)?);
    }
    puppet.close_slot()?;
    for (index, (thread, mut regs)) in parts.process.threads.iter().zip(regs).enumerate() {
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
        puppet.set_sigmask(thread.record.sigmask)?;
        puppet.set_regs(&regs).map_err(|e| Error { kind: ErrorKind::BadImage, ..Error::from(e) })?;
    }
    Ok(())
}
