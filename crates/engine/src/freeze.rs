//! Stopping all threads of a process, and what must be asked just before and after.

use crate::{
    admit::ia32,
    error::{Context, Error, Result},
    options::{Observer, interrupted},
    resource::call,
    task::{ProcDir, Process},
};
use ckpt_image::record::{Regs, RestartBlock};
use ckpt_kernel::{
    Errno,
    tracee::{Running, Seize, Stopped},
};
use ckpt_proc::{
    stat::{Stat, TaskState, parse_stat},
    syscall::{Syscall, parse_syscall},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// A thread that stands still.
#[derive(Debug)]
pub(crate) struct FrozenThread {
    /// The hold on it.
    pub(crate) thread: Stopped,
    /// What it was doing.
    pub(crate) kept: Kept,
}

/// What a thread was doing when it was stopped, kept while it does something for us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// Its id.
    pub(crate) tid: i32,
    /// Registers it gets back when it goes on here.
    pub(crate) raw: Regs,
    /// Registers for the image: its interrupted call as the kernel first saw it.
    pub(crate) saved: Regs,
    /// How that call is to be issued again.
    pub(crate) restart: RestartBlock,
    /// Its signal mask.
    pub(crate) mask: u64,
    /// Its call must go on for a moment, to tell what remains of its timeout.
    pub(crate) unsettled: bool,
}

/// How often a thread that was caught between two calls is let go and stopped again.
const ATTEMPTS: u32 = 50;
/// How often it is tried to tell exactly what remains of a timeout while others of the tree may run. After that it is
/// left for the visit, when all stand still: each try lets the thread go, which may be one of a thousand that fork.
const PATIENCE: u32 = 3;

/// What the frozen threads are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An image: what remains of their calls' timeouts must be known.
    Image,
    /// They only go on afterwards.
    Visit,
}

/// Threads that are seized and asked to stop. Dropped, those that nobody has waited for are let go.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Not to be detached by us.
    lent: BTreeSet<i32>,
    crowd: BTreeSet<i32>,
}

impl Asked {
    /// Those that a cgroup has held, which will be detached by whoever freezes it again.
    pub(crate) fn lent(tids: &BTreeSet<i32>) -> Asked {
        Asked { lent: tids.clone(), crowd: BTreeSet::new() }
    }

    /// Asks the threads of `processes`, all at once: where hundreds want to run it takes each a while to come to its
    /// stop, and those that are not asked go on and make more. Who cannot be seized now is when its turn comes.
    pub(crate) fn ask<'a>(&mut self, processes: impl Iterator<Item = &'a (Process, Stat)>) {
        for (process, stat) in processes.filter(|(_, stat)| !stat.process_has_ended()) {
            let tids = process.tids_at(stat).unwrap_or_default();
            for tid in tids.into_iter().filter(|tid| !self.lent.contains(tid)) {
                if Running::seize(process.pid, tid, Seize::Catch).and_then(|running| running.ask()).is_ok() {
                    self.crowd.insert(tid);
                }
            }
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        for tid in std::mem::take(&mut self.crowd) {
            drop(Running::born(tid).wait_stop());
        }
    }
}

/// A process that stands still.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// Its living threads, the leader first.
    pub(crate) threads: Vec<FrozenThread>,
    /// A job-control signal had stopped it before we came.
    pub(crate) stopped: bool,
}

/// Stops every living thread of `process`, which was as `stat` says; new ones that appear meanwhile are
/// caught too. Those in
/// `asked` are about to stop. One of them all is its witness then. `observer` is told which timeouts
/// are not known exactly.
pub(crate) fn freeze(
    process: &mut Process,
    stat: &Stat,
    purpose: Purpose,
    asked: &mut Asked,
    observer: &mut dyn Observer,
) -> Result<Frozen> {
    if stat.state == TaskState::DiskSleep {
        await_vfork(process, &[process.witness])?;
    }
    let mut frozen: Vec<FrozenThread> = Vec::new();
    let mut tids = process.tids_at(stat)?;
    let mut known = BTreeSet::new();
    loop {
        for tid in tids.into_iter().filter(|tid| known.insert(*tid)).collect::<Vec<_>>() {
            interrupted(observer)?;
            let thread = if asked.lent.contains(&tid) {
                await_thread(process, tid, Stopped::lend, observer)
            } else if asked.crowd.remove(&tid) {
                await_thread(process, tid, |thread| thread, observer)
            } else {
                freeze_thread(process, tid, purpose, observer)
            };
            match thread {
                Err(error) if error.gone && tid == process.pid => {}
                // Its id may be given to another thread yet.
                Err(error) if error.gone => drop(known.remove(&tid)),
                Err(error) => return Err(error.error),
                Ok(thread) => frozen.push(thread),
            }
        }
        // Those that stand still make no others.
        if process.nr_threads()? <= known.len() {
            break;
        }
        tids = process.tids()?;
    }
    // As the last of them found it, when none could run any more.
    let stopped = frozen.last().is_some_and(|last| last.thread.group_stop().is_some());
    frozen.sort_by_key(|f| (f.thread.tid() != process.pid, f.thread.tid()));
    let Some(first) = frozen.first() else {
        return Err(Error::failed("the process ended").task(process.label()));
    };
    // One that was not caught yet and executes a program ends all others, and takes over the leader's id and its tracer.
    if frozen.iter().any(FrozenThread::is_another) {
        let what = "one of its threads executed a program, or ended them all, while they were being stopped";
        return Err(Error::failed(what).advice("try again in a moment").passing());
    }
    process.look_through(first.thread.tid())?;
    Ok(Frozen { threads: frozen, stopped })
}

impl FrozenThread {
    /// Whether it is gone, or its id is another thread's by now.
    fn is_another(&self) -> bool {
        let place = |regs: &Regs| (regs.rip, regs.rsp, regs.fs_base);
        self.thread.regs().map_or(true, |now| place(&now) != place(&self.kept.raw))
    }
}

/// A failure, and whether it only means that the thread ended.
struct Failure {
    error: Error,
    gone: bool,
}

impl From<ckpt_kernel::Error> for Failure {
    fn from(cause: ckpt_kernel::Error) -> Self {
        let gone = matches!(cause, ckpt_kernel::Error::Gone { .. }) || cause.errno() == Some(Errno::SRCH);
        // The registers of a 32-bit task.
        let error = if cause.errno() == Some(Errno::NOEXEC) { ia32() } else { cause.into() };
        Failure { error, gone }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, gone: false }
    }
}

/// Waits for a thread that is asked to stop.
fn await_thread(
    process: &Process,
    tid: i32,
    hold: impl Fn(Stopped) -> Stopped,
    observer: &dyn Observer,
) -> Result<FrozenThread, Failure> {
    let mut thread = hold(wait_stop(process, Running::born(tid), observer)?);
    let mut raw = thread.regs()?;
    let mask = thread.sigmask()?;
    leave_rseq(&mut thread, &mut raw)?;
    if call::hide_eintr(process, tid, mask, &mut raw)? || call::unbegin(tid, &mut raw) {
        thread.set_regs(&raw)?;
    }
    let unsettled = call::waits(&raw);
    let kept = Kept { tid, raw, saved: raw, restart: RestartBlock::default(), mask, unsettled };
    Ok(FrozenThread { thread, kept })
}

/// Waits for a thread to stop, as long as the observer has patience with one that does not, and no longer than for the
/// child of a vfork(2).
fn wait_stop(process: &Process, running: Running, observer: &dyn Observer) -> Result<Stopped, Failure> {
    let (tid, begun) = (running.tid(), Instant::now());
    let suspended = || begun.elapsed() > VFORK_PATIENCE && is_suspended(process, tid);
    let stopped = running.wait_stop_unless(&|| observer.cancelled().is_some() || suspended());
    match (stopped, observer.cancelled()) {
        (Err(ckpt_kernel::Error::Timeout { .. }), Some(why)) => {
            Err(Error::failed(why).why(format!("thread {tid} cannot be stopped")).into())
        }
        (Err(ckpt_kernel::Error::Timeout { .. }), None) if suspended() => {
            Err(vforks(tid).task(process.label()).into())
        }
        (stopped, _) => Ok(stopped?),
    }
}

/// Stops one thread where its interrupted call can be told.
fn freeze_thread(
    process: &Process,
    tid: i32,
    purpose: Purpose,
    observer: &mut dyn Observer,
) -> Result<FrozenThread, Failure> {
    for attempt in 0..ATTEMPTS {
        let before = match purpose {
            Purpose::Image => call::Before::look(process, tid),
            Purpose::Visit => call::Before::default(),
        };
        let mut thread = match Running::seize(process.pid, tid, Seize::Catch) {
            Ok(running) => {
                running.ask()?;
                wait_stop(process, running, observer)?
            }
            Err(cause) if is_ours(process, tid) => {
                tracing::trace!("thread {tid} was caught at its birth: {cause}");
                wait_stop(process, Running::born(tid), observer)?
            }
            Err(cause) => return Err(seize_failure(process, tid, cause)),
        };
        let mut raw = thread.regs()?;
        let mask = thread.sigmask()?;
        leave_rseq(&mut thread, &mut raw)?;
        if call::hide_eintr(process, tid, mask, &mut raw)? {
            thread.set_regs(&raw)?;
        }
        let (mut saved, unsettled) = (raw, false);
        if purpose == Purpose::Visit {
            let kept = Kept { tid, raw, saved, restart: RestartBlock::default(), mask, unsettled };
            return Ok(FrozenThread { thread, kept });
        }
        if let Some(settled) = call::settle(process, tid, &before, &mut saved, true)? {
            settled.warn(tid, observer);
            let kept = Kept { tid, raw, saved, restart: settled.restart, mask, unsettled };
            return Ok(FrozenThread { thread, kept });
        }
        if attempt >= PATIENCE {
            let begun = call::unbegin(tid, &mut raw);
            if call::waits(&raw) {
                if begun {
                    thread.set_regs(&raw)?;
                }
                let kept =
                    Kept { tid, raw, saved: raw, restart: RestartBlock::default(), mask, unsettled: true };
                return Ok(FrozenThread { thread, kept });
            }
        }
        thread.set_regs(&raw)?;
        thread.detach()?;
        std::thread::sleep(Duration::from_micros(200));
    }
    let what = format!("thread {tid}: its interrupted system call could not be identified");
    Err(Error::failed(what).task(process.label()).advice("try again").into())
}

/// If the thread stands inside a restartable sequence, moves it to the sequence's abort handler,
/// as the kernel would have done (rseq(2)): our own code would make the kernel forget about it.
fn leave_rseq(thread: &mut Stopped, raw: &mut Regs) -> Result<()> {
    let Ok((area, ..)) = thread.rseq() else { return Ok(()) };
    if area == 0 {
        return Ok(());
    }
    let Ok(descriptor) = ckpt_kernel::memory::read_u64(thread.tid(), area + 8) else { return Ok(()) };
    if descriptor == 0 {
        return Ok(());
    }
    let mut words = [0; 32];
    if ckpt_kernel::memory::read(thread.tid(), descriptor, &mut words).is_err() {
        return Ok(());
    }
    let word =
        |at: usize| words.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (start, len, abort) = (word(8), word(16), word(24));
    if raw.rip.wrapping_sub(start) < len {
        raw.rip = abort;
        raw.orig_rax = u64::MAX;
        thread.set_regs(raw)?;
    }
    Ok(())
}

/// Whether we trace the thread already: it was made by one that we had just attached to.
fn is_ours(process: &Process, tid: i32) -> bool {
    process
        .thread_status(tid)
        .is_ok_and(|s| u32::try_from(s.tracer_pid).is_ok_and(|pid| pid == std::process::id()))
}

/// How long the child of a vfork(2) may take. Most execute a program at once.
const VFORK_PATIENCE: Duration = Duration::from_secs(1);

/// A parent suspended in vfork(2) cannot be stopped; it goes on soon, or not for long. Waits for those that are
/// among `tids`.
pub(crate) fn await_vfork(process: &Process, tids: &[i32]) -> Result<()> {
    let begun = Instant::now();
    while let Some(tid) = tids.iter().find(|tid| is_suspended(process, **tid)) {
        if begun.elapsed() > VFORK_PATIENCE {
            return Err(vforks(*tid));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn vforks(tid: i32) -> Error {
    let what = format!("thread {tid} is suspended until its vfork child ends or executes a program");
    Error::unsupported(what).advice("try again when it has")
}

/// Whether a thread sleeps in vfork(2).
fn is_suspended(process: &Process, tid: i32) -> bool {
    let sleeps = process.leader.parse(&format!("task/{tid}/stat"), parse_stat);
    sleeps.is_ok_and(|stat| stat.state == TaskState::DiskSleep)
        && process
            .leader
            .parse(&format!("task/{tid}/syscall"), parse_syscall)
            .is_ok_and(|call| is_vfork(tid, call))
}

/// Whether a task's call makes it wait for its child. A fork may take long as well, where many processes have an
/// ancestor's memory in common (and wait for its locks), but ends by itself.
fn is_vfork(tid: i32, call: Syscall) -> bool {
    let Syscall::Inside { nr, args: [first, ..], .. } = call else { return false };
    let flags = match nr {
        libc::SYS_vfork => return true,
        libc::SYS_clone => first,
        libc::SYS_clone3 => ckpt_kernel::memory::read_u64(tid, first).unwrap_or(0),
        _ => return false,
    };
    flags & libc::CLONE_VFORK as u64 != 0
}

/// Why a thread could not be attached to; a debugger is named.
fn seize_failure(process: &Process, tid: i32, cause: ckpt_kernel::Error) -> Failure {
    let failure = Failure::from(cause);
    if failure.gone || process.thread_has_ended(tid) {
        return Failure { gone: true, ..failure };
    }
    let tracer = process.status().map_or(0, |s| s.tracer_pid);
    if tracer == 0 {
        let advice = "it needs the same user and a dumpable process, or CAP_SYS_PTRACE";
        // A leader that another thread's execve(2) has just replaced is refused, too.
        return Failure { error: failure.error.task(process.label()).advice(advice).passing(), gone: false };
    }
    Failure { error: traced(&format!("thread {tid}"), tracer).task(process.label()), gone: false }
}

/// `what` has a tracer.
pub(crate) fn traced(what: &str, tracer: i32) -> Error {
    let name = Process::open(tracer).map_or_else(|_| format!("pid {tracer}"), |t| t.label());
    let error = Error::permission(format!("{what} is traced by {name}"));
    if is_of_ours(tracer) {
        let advice =
            "another checkpoint of it is under way, or what one that was killed left is being taken away";
        return error.advice(format!("{advice}: try again in a moment")).passing();
    }
    error.advice("end the debugger or let it detach")
}

/// Whether a process runs this very program: the guardian of a checkpoint that was killed lets go in a moment.
fn is_of_ours(pid: i32) -> bool {
    let theirs = Process::open(pid).and_then(|process| process.proc.identity("exe"));
    ProcDir::own()
        .and_then(|own| own.identity("exe"))
        .is_ok_and(|ours| theirs.is_ok_and(|theirs| ours == theirs))
}

/// Lets all threads go on, registers as they are.
pub(crate) fn thaw(process: &Process, threads: Vec<Stopped>) -> Result<()> {
    for thread in threads {
        match thread.detach() {
            Err(ckpt_kernel::Error::Gone { .. }) => {}
            other => other.task(|| process.label())?,
        }
    }
    Ok(())
}
