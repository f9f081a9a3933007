//! Checkpoint: the ordered list of phases.
//!
//! | phase | why here |
//! |---|---|
//! | admit | refuses what can never work, before anything is opened |
//! | destination | an output that cannot be created must not cost the tasks a moment |
//! | survey | unsupported state is refused before the program is disturbed |
//! | guardian | from here on a killed coordinator leaves nothing behind |
//! | freeze | all threads stand still from here on |
//! | visit | what only the tasks know; they are as they were when it ends |
//! | collect | descriptors and areas again, now that nothing moves |
//! | write | metadata, then pages, which need nothing but the stopped tasks |
//! | settle | resume at once, or publish first and then kill |

use crate::{
    error::{Context, Doing, Error, ErrorKind, Result},
    freeze::{FrozenThread, Purpose, freeze, thaw},
    guard, machine,
    objects::Objects,
    options::{After, CheckpointOptions, CheckpointReport, Observer, Output},
    output::{Destination, failure, same_file},
    resource::{cred, file, fs, layout::free_range, limits, mm, pages, signal, thread, timers},
    task::{Process, show},
};
use ckpt_image::{
    BLOCK_SIZE, Block, Image, Object, Writer,
    model::{self},
    record::{self, vma_kind},
};
use ckpt_kernel::{
    memory::{self, Span},
    program::{Outcome, Program},
    query::{self, Kcmp},
    tracee::Stopped,
    visit::{Traces, Visit, Visitor, park_signal},
};
use ckpt_proc::{
    maps::{Mapping, parse_maps},
    status::{Status, parse_status},
};
use std::time::{Duration, Instant, SystemTime};

/// Namespaces in which the process must be with us, with what they isolate.
const NAMESPACES: [&str; 8] = ["pid", "mnt", "user", "net", "uts", "ipc", "cgroup", "time"];

/// Writes an image of the process `options.pid` to `output`.
///
/// # Errors
/// Whatever fails, the process goes on as if nothing had happened, and no file stands under the
/// final name.
pub fn checkpoint(
    options: &CheckpointOptions,
    output: Output,
    observer: &mut dyn Observer,
) -> Result<CheckpointReport> {
    let begin = Instant::now();
    let process = Process::open(options.pid)?;
    admit(&process).task(|| process.label())?;
    let destination = Destination::open(output)?;
    survey(&process, &destination).task(|| process.label())?;
    let guardian = guard::post(&process).task(|| process.label())?;
    let stopped = process.stat()?.state == ckpt_proc::stat::TaskState::Stopped;
    let frozen_at = Instant::now();
    let threads = freeze(&process, Purpose::Image, observer).task(|| process.label())?;
    let mut capture = capture(&process, threads, stopped).task(|| process.label())?;
    let writer = Writer::new(destination.sink()?, Block::new(BLOCK_SIZE));
    let written = write(&process, &capture, writer, &destination, observer).task(|| process.label())?;
    let mut report = CheckpointReport {
        id: capture.image.header.id,
        pid: process.pid,
        comm: process.comm.clone(),
        processes: capture.image.processes.len(),
        threads: capture.threads.len(),
        page_bytes: written.pages * record::PAGE_SIZE as u64,
        image_bytes: written.bytes,
        frozen: Duration::ZERO,
        total: Duration::ZERO,
    };
    let threads = std::mem::take(&mut capture.threads);
    report.frozen = settle(&process, options.after, threads, destination, frozen_at)?;
    drop(guardian);
    report.total = begin.elapsed();
    Ok(report)
}

/// Refuses processes that cannot be checkpointed at all.
fn admit(process: &Process) -> Result<()> {
    if u32::try_from(process.pid).is_ok_and(|pid| pid == std::process::id()) {
        return Err(Error::unsupported("a process cannot checkpoint itself with this command"));
    }
    let stat = process.stat()?;
    if stat.is_kthread() {
        return Err(
            Error::unsupported("it is a kernel thread").advice("only user processes can be checkpointed")
        );
    }
    if matches!(stat.state, ckpt_proc::stat::TaskState::Zombie | ckpt_proc::stat::TaskState::Dead) {
        return Err(Error::unsupported("it has ended and waits for its parent"));
    }
    let status = process.status()?;
    if status.tracer_pid != 0 {
        let tracer = Process::open(status.tracer_pid)
            .map_or_else(|_| format!("pid {}", status.tracer_pid), |t| t.label());
        return Err(Error::permission(format!("it is traced by {tracer}"))
            .advice("end the debugger or let it detach"));
    }
    refuse_ia32(process)?;
    process.tids()?.into_iter().try_for_each(|tid| admit_thread(process, tid))
}

/// Refuses 32-bit programs.
fn refuse_ia32(process: &Process) -> Result<()> {
    use std::io::Read;
    const ELFCLASS32: u8 = 1;
    let mut ident = [0; 5];
    let exe = process.proc.open("exe", rustix::fs::OFlags::RDONLY);
    let read = exe.is_ok_and(|fd| std::fs::File::from(fd).read_exact(&mut ident).is_ok());
    if read && ident == [0x7f, b'E', b'L', b'F', ELFCLASS32] {
        return Err(Error::unsupported("32-bit programs cannot be carried yet"));
    }
    Ok(())
}

/// Refuses threads in seccomp mode or in other namespaces than ours.
fn admit_thread(process: &Process, tid: i32) -> Result<()> {
    let Ok(status) = process.proc.parse(&format!("task/{tid}/status"), parse_status) else { return Ok(()) };
    if status.seccomp.unwrap_or(0) != 0 {
        let whose = if tid == process.pid { String::new() } else { format!("thread {tid}: ") };
        return Err(Error::unsupported(format!("{whose}seccomp filters cannot be carried yet")));
    }
    let own = crate::task::ProcDir::own()?;
    for namespace in NAMESPACES {
        let name = format!("ns/{namespace}");
        let theirs = format!("task/{tid}/{name}");
        let theirs = match process.proc.readlink(&theirs) {
            Err(e) if e.kind == ErrorKind::Permission => {
                return Err(e.advice("it needs the same user and a dumpable process, or CAP_SYS_PTRACE"));
            }
            Err(_) => continue,
            Ok(theirs) => theirs,
        };
        if own.readlink(&name).is_ok_and(|ours| ours != theirs) {
            let what = format!("it is in another {namespace} namespace");
            return Err(Error::unsupported(what).advice("run checkpoint inside its container"));
        }
    }
    Ok(())
}

/// Refuses what would have to be restored with other processes: children, and threads that do not
/// share everything.
fn refuse_company(process: &Process) -> Result<()> {
    for tid in process.tids()? {
        let children = process.proc.read(&format!("task/{tid}/children")).unwrap_or_default();
        if let Some(child) = children.split(|b| *b == b' ').find(|c| !c.is_empty()) {
            let what =
                format!("it has a child process ({}); process trees cannot be carried yet", show(child));
            return Err(Error::unsupported(what).advice("checkpoint when its children have ended"));
        }
        for (what, name) in [
            (Kcmp::Files, "table of file descriptors"),
            (Kcmp::Fs, "working directory"),
            (Kcmp::Vm, "memory"),
        ] {
            if tid != process.pid && query::kcmp(process.pid, tid, what).is_ok_and(|order| order.is_ne()) {
                let what =
                    format!("thread {tid} has a {name} of its own (unshare), which cannot be carried yet");
                return Err(Error::unsupported(what));
            }
        }
    }
    Ok(())
}

/// Looks for state that cannot be carried while the process runs undisturbed. As it opens and closes
/// things meanwhile, only a clear refusal counts, and only one that is there every time.
fn survey(process: &Process, destination: &Destination) -> Result<()> {
    const TIMES: u32 = 3;
    let mut objects = Objects::default();
    for time in 1..=TIMES {
        objects = Objects::default();
        match survey_once(process, &mut objects) {
            Err(e) if [ErrorKind::Unsupported, ErrorKind::Permission].contains(&e.kind) => {
                if time == TIMES {
                    return Err(e);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            _ => break,
        }
    }
    let output = destination.stat()?;
    let own = |object: &Object| match object {
        Object::File(f) => same_file(&output, f.record.dev, f.record.ino) && output.st_rdev == 0,
        _ => false,
    };
    if objects.table.values().any(own) {
        return Err(Error::failed(
            "the image would be written to a file or pipe that the process itself has open",
        )
        .advice("write it elsewhere with -o"));
    }
    Ok(())
}

fn survey_once(process: &Process, objects: &mut Objects) -> Result<()> {
    refuse_company(process)?;
    file::checkpoint(process, objects)?;
    mm::areas(process, &mm::mappings(process)?, objects)?;
    fs::checkpoint(process)?;
    Ok(())
}

/// A frozen process and everything of it but page contents.
struct Capture {
    threads: Vec<Stopped>,
    image: Image,
    plan: pages::Plan,
}

/// What the tasks answered during the visit.
struct Answers {
    process: Vec<Outcome>,
    timers: Vec<ckpt_proc::timers::Timer>,
    mlock_future: u32,
    threads: Vec<Vec<Outcome>>,
}

/// Visits the threads, then collects everything. `stopped`: by a job-control signal, before us.
fn capture(process: &Process, frozen: Vec<FrozenThread>, stopped: bool) -> Result<Capture> {
    refuse_company(process)?;
    let (frozen, answers) = visit(process, frozen)?;
    let mut objects = Objects::default();
    let mut image = Image { header: header()?, uts: uts(), ..Image::default() };
    let threads = threads(process, &frozen, &answers.threads, &mut objects)?;
    let mappings = mm::mappings(process)?;
    let table = file::checkpoint(process, &mut objects)?;
    let vmas = mm::areas(process, &mappings, &mut objects)?;
    let mut answered = answers.process.iter().as_slice().split_at(signal::SIGNALS as usize);
    let sighand = signal::checkpoint(answered.0)?;
    answered = answered.1.split_at_checked(3).unwrap_or_default();
    let mut shared = record::Signal::default();
    timers::checkpoint_itimers(answered.0, &mut shared);
    answered = answered.1.split_at_checked(17).unwrap_or_default();
    limits::checkpoint(process, answered.0, &mut shared)?;
    answered = answered.1.split_at_checked(4).unwrap_or_default();
    let mm = mm::checkpoint(process, answered.0, answers.mlock_future, vmas, &mut objects)?;
    let timers = timers::checkpoint_posix(&answers.timers, answered.1)?;
    let pending = frozen.first().map_or(Ok(Vec::new()), |f| f.thread.pending(true))?;
    image.arch = arch(process, &mm, &threads)?;
    let contents = std::mem::take(&mut objects.contents);
    let fs = fs::checkpoint(process)?;
    let mm_objref = objects.add(Object::Mm(mm));
    let task = record::Task {
        mm: mm_objref,
        files: objects.add(Object::Files(table)),
        fs: objects.add(Object::Fs(fs)),
        sighand: objects.add(Object::Sighand(sighand)),
        signal: objects.add(Object::Signal(model::Signal { record: shared, pending, timers })),
        nr_threads: threads.len() as u32,
        ..task(process, stopped)?
    };
    image.tree = record::Tree { nr_tasks: 1, nr_threads: threads.len() as u32, root: process.pid, pad: 0 };
    image.processes = vec![model::Process { task, threads }];
    image.objects = objects.table;
    let plan = pages::plan(process, mm_objref, &image, contents)?;
    Ok(Capture { threads: frozen.into_iter().map(|f| f.thread).collect(), image, plan })
}

/// Asks the tasks what only they know.
fn visit(process: &Process, frozen: Vec<FrozenThread>) -> Result<(Vec<FrozenThread>, Answers)> {
    let maps = process.proc.parse("maps", parse_maps)?;
    let timers = process.proc.parse("timers", ckpt_proc::timers::parse_timers)?;
    let mut questions = Program::new();
    signal::questions(&mut questions);
    timers::itimer_questions(&mut questions);
    limits::questions(&mut questions);
    mm::questions(&mut questions);
    timers::posix_questions(&mut questions, &timers);
    let (visitors, kept) = visitors(process, frozen)?;
    let texts = texts_in(&maps);
    let traces = Traces::find(process.pid, &texts, &slots_in(&maps));
    let mut visit = Visit::enter(process.pid, visitors, &texts, slot_address(&maps, kept.len())?)?;
    visit.unmap_stale(&traces.slots)?;
    let mlock_future = mm::future_locks(process, visit.slot())?;
    let answers = visit.run(0, &questions)?;
    let mut thread_answers = Vec::with_capacity(visit.len());
    for index in 0..visit.len() {
        thread_answers.push(visit.run(index, &thread::questions())?);
    }
    let threads = visit.leave()?;
    let frozen = threads
        .into_iter()
        .zip(kept)
        .map(|(thread, (raw, saved, restart, mask))| FrozenThread { thread, raw, saved, restart, mask })
        .collect();
    Ok((frozen, Answers { process: answers, timers, mlock_future, threads: thread_answers }))
}

fn park_signal_of(status: &Status, mask: u64) -> Result<i32> {
    let pending = status.sig_pending.0 | status.sig_shared_pending.0;
    park_signal(status.sig_caught.0, status.sig_ignored.0, mask, pending).ok_or_else(|| {
        Error::unsupported("it handles or has pending every signal that could be used to park it")
            .advice("one of URG, WINCH, CHLD, CONT must be free, or any signal ignored")
    })
}

/// What a frozen thread keeps while it is visited.
pub(crate) type Kept = (record::Regs, record::Regs, record::RestartBlock, u64);

/// Makes frozen threads visitors.
pub(crate) fn visitors(process: &Process, frozen: Vec<FrozenThread>) -> Result<(Vec<Visitor>, Vec<Kept>)> {
    let mut visitors = Vec::with_capacity(frozen.len());
    let mut kept = Vec::with_capacity(frozen.len());
    for f in frozen {
        let tid = f.thread.tid();
        let status = process.proc.parse(&format!("task/{tid}/status"), parse_status)?;
        let signal = park_signal_of(&status, f.mask)?;
        visitors.push(Visitor { thread: f.thread, raw: f.raw, mask: f.mask, signal });
        kept.push((f.raw, f.saved, f.restart, f.mask));
    }
    Ok((visitors, kept))
}

/// Executable private mappings, the vdso first: where the bootstrap stub may go.
pub(crate) fn texts_in(maps: &[Mapping]) -> Vec<Span> {
    let vdso = |m: &&Mapping| m.path == b"[vdso]";
    let text = |m: &&Mapping| m.exec && m.read && !m.shared && m.start < 1 << 47;
    let span = |m: &Mapping| Span { start: m.start, len: m.len() as usize };
    let others = maps.iter().filter(|m| !vdso(m)).filter(text);
    maps.iter().filter(vdso).chain(others).map(span).collect()
}

/// Free addresses for the slot of a visit to `threads` threads.
pub(crate) fn slot_address(maps: &[Mapping], threads: usize) -> Result<u64> {
    let mut taken = maps.iter().map(|m| Span { start: m.start, len: m.len() as usize }).collect();
    free_range(&mut taken, Visit::slot_len(threads))
}

/// Mappings that may be slots a dead coordinator left.
pub(crate) fn slots_in(maps: &[Mapping]) -> Vec<Span> {
    let slot = |m: &&Mapping| m.read && m.write && m.exec && !m.shared && m.is_anonymous();
    maps.iter().filter(slot).map(|m| Span { start: m.start, len: m.len() as usize }).collect()
}

fn threads(
    process: &Process,
    frozen: &[FrozenThread],
    answers: &[Vec<Outcome>],
    objects: &mut Objects,
) -> Result<Vec<model::Thread>> {
    let mut threads = Vec::with_capacity(frozen.len());
    for (frozen, answers) in frozen.iter().zip(answers) {
        let status = process.proc.parse(&format!("task/{}/status", frozen.thread.tid()), parse_status)?;
        let cred = objects.cred(cred::checkpoint(&status));
        threads.push(thread::checkpoint(process, frozen, answers, cred, status.no_new_privs)?);
    }
    Ok(threads)
}

fn task(process: &Process, stopped: bool) -> Result<record::Task> {
    let stat = process.stat()?;
    Ok(record::Task {
        pid: process.pid,
        ppid: stat.ppid,
        pgid: stat.pgrp,
        sid: stat.session,
        state: if stopped { record::task_state::STOPPED } else { record::task_state::RUNNING },
        exit_signal: stat.exit_signal,
        tpgid: stat.tpgid.max(0),
        ..record::Task::default()
    })
}

fn header() -> Result<record::Header> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .doing(|| "getrandom".to_owned())?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let mut kernel = [0; 3];
    let uname = rustix::system::uname();
    let numbers = uname.release().to_bytes().split(|b| !b.is_ascii_digit());
    for (word, digits) in kernel.iter_mut().zip(numbers) {
        *word = str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).unwrap_or(0);
    }
    let clock = |id| {
        let t = rustix::time::clock_gettime(id);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    };
    let mut header = record::Header {
        magic: record::HEADER_MAGIC,
        rev: record::REV,
        arch: record::ARCH_X86_64,
        kernel,
        comm_len: 16,
        page_size: record::PAGE_SIZE as u32,
        nr_signals: signal::SIGNALS as u16,
        nr_rlimits: 16,
        time: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64),
        uflags: 0,
        id,
        parent: [0; 16],
        clocks: [clock(rustix::time::ClockId::Monotonic), clock(rustix::time::ClockId::Boottime)],
        boot_id: machine::boot_id(),
        ..record::Header::default()
    };
    header.set_nodename(uname.nodename().to_bytes());
    Ok(header)
}

fn uts() -> [Vec<u8>; 3] {
    let uname = rustix::system::uname();
    [uname.release(), uname.version(), uname.machine()].map(|name| name.to_bytes().to_vec())
}

/// What the processor and kernel must offer: xsave components, and the same vdso.
fn arch(process: &Process, mm: &model::Mm, threads: &[model::Thread]) -> Result<record::HeaderArch> {
    const XSTATE_BV: usize = 512;
    let in_use = |t: &model::Thread| {
        t.xstate.get(XSTATE_BV..XSTATE_BV + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    let size = |kind| {
        mm.vmas.iter().map(|v| v.record).filter(move |r| r.kind == kind).map(|r| r.end - r.start).sum()
    };
    let vdso_len: u64 = size(vma_kind::VDSO);
    let mut vdso = vec![0; vdso_len as usize];
    if let Some(vma) = mm.vmas.iter().find(|v| v.record.kind == vma_kind::VDSO) {
        memory::read(process.pid, vma.record.start, &mut vdso)?;
    }
    let vvar_len: u64 = size(vma_kind::VVAR);
    Ok(record::HeaderArch {
        xsave_size: threads.iter().map(|t| t.xstate.len()).max().unwrap_or(0) as u32,
        vvar_len: vvar_len as u32,
        vdso_sum: twox_hash::XxHash3_64::oneshot(&vdso),
        vdso_len,
        xfeatures_used: threads.iter().map(in_use).fold(0, |all, one| all | one),
        ..machine::processor()
    })
}

/// What was written.
struct Written {
    pages: u64,
    bytes: u64,
}

/// Writes the image. A stream that breaks off ends in an ERROR record.
fn write(
    process: &Process,
    capture: &Capture,
    mut writer: Writer<crate::output::Sink>,
    destination: &Destination,
    observer: &mut dyn Observer,
) -> Result<Written> {
    observer.total(capture.plan.bytes());
    let pages = capture
        .image
        .write(&mut writer)
        .map_err(|e| failure(&e))
        .and_then(|()| capture.plan.write(process, &mut writer, observer));
    match pages {
        Ok(pages) => {
            let (_, bytes) = writer.tail().map_err(|e| failure(&e))?;
            Ok(Written { pages: pages.stored_pages, bytes })
        }
        Err(error) => {
            if destination.is_stream() {
                let _ = writer.error(error.to_string().as_bytes());
            }
            Err(error)
        }
    }
}

/// Publishes the image and lets the tasks go on, stop or end. Returns how long they stood still.
fn settle(
    process: &Process,
    after: After,
    threads: Vec<Stopped>,
    destination: Destination,
    frozen_at: Instant,
) -> Result<Duration> {
    match after {
        After::Resume => {
            thaw(process, threads)?;
            let frozen = frozen_at.elapsed();
            destination.publish()?;
            Ok(frozen)
        }
        After::Stop => {
            destination.publish()?;
            // Pending when they are let go, so that not one instruction is run in between.
            process.signal(rustix::process::Signal::STOP)?;
            thaw(process, threads)?;
            Ok(frozen_at.elapsed())
        }
        After::Kill => {
            destination.publish()?;
            let frozen = frozen_at.elapsed();
            process.signal(rustix::process::Signal::KILL)?;
            // The leader can only be waited for when the others have been.
            threads.into_iter().rev().for_each(Stopped::wait_end);
            if !process.wait_end(10_000) {
                return Err(
                    Error::failed("the process did not end within 10 s of SIGKILL").task(process.label())
                );
            }
            Ok(frozen)
        }
    }
}
