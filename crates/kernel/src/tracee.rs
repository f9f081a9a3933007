//! Threads under ptrace, with their state in the type.
//!
//! [`Running`] → [`Running::interrupt`] → [`Stopped`], which runs in steps that each end in a
//! stop again. Dropping a [`Stopped`] lets the thread go; PTRACE_DETACH needs a stop, so a
//! [`Running`] one is let go when the coordinator ends. ptrace(2) belongs to the thread
//! that attached: neither type is [`Send`].

mod state;

use crate::{
    error::{Error, Named, Result},
    reaper, sys,
};
use rustix::io::Errno;
use std::{
    marker::PhantomData,
    time::{Duration, Instant},
};

/// Options every tracee gets.
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD;

/// What a tracee is seized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seize {
    /// To be stopped: what it forks until it is, is traced and stopped from birth. (Not vfork
    /// children: their parent cannot be stopped before they go.)
    Catch,
    /// As a puppet, which dies with us.
    Puppet,
}
/// How long a thread may take to stop before we give up.
const STOP_SECONDS: u64 = 10;

/// An attached thread that runs.
#[derive(Debug)]
#[must_use]
pub struct Running {
    tid: i32,
    not_send: PhantomData<*const ()>,
}

/// An attached thread that is in a ptrace stop.
#[derive(Debug)]
#[must_use]
pub struct Stopped {
    tid: i32,
    /// Still ours to detach: not once it was let go or has ended.
    attached: bool,
    /// Somebody else detaches it: see [`Stopped::lend`].
    lent: bool,
    /// SIGSTOPs taken out of the way while the thread was ours.
    held: Vec<i32>,
    /// See [`Stopped::group_stop`].
    group_stop: Option<i32>,
    not_send: PhantomData<*const ()>,
}

/// Whether a ptrace event says that a child has been made.
fn is_fork(event: i32) -> bool {
    [libc::PTRACE_EVENT_FORK, libc::PTRACE_EVENT_CLONE].contains(&event)
}

/// Why a wait returned.
enum Event {
    Stop(i32),
    Ended,
}

/// waitpid(2) for one thread; `None` when nothing happened and `block` is false.
fn wait(tid: i32, block: bool) -> Result<Option<Event>> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    // SAFETY: `status` is a live i32 the kernel may write.
    let result = unsafe { libc::waitpid(tid, &raw mut status, flags) };
    match sys::check(libc::c_long::from(result)) {
        Ok(0) => Ok(None),
        Ok(_) if libc::WIFSTOPPED(status) => Ok(Some(Event::Stop(status))),
        Ok(_) => Ok(Some(Event::Ended)),
        Err(Errno::INTR) => Ok(None),
        Err(Errno::CHILD) => Ok(Some(Event::Ended)),
        Err(errno) => Err(Error::Os { call: "waitpid", errno }),
    }
}

/// Whether a thread has ended, be it not yet to be waited for: so long as other threads of its
/// process live, waitpid(2) says nothing of a leader.
fn has_ended(tid: i32) -> bool {
    let stat = crate::procfs::read(&format!("{tid}/stat")).unwrap_or_default();
    fields(&stat).next().is_none_or(|state| b"ZX".contains(&state.first().copied().unwrap_or(b'X')))
}

/// Whether it has ended or is about to (PF_EXITING): process 1 of a pid namespace that has been killed
/// first waits for all others there, whom we may trace.
fn is_leaving(tid: i32) -> bool {
    const FLAGS: usize = 6;
    const PF_EXITING: u64 = 4;
    let stat = crate::procfs::read(&format!("{tid}/stat")).unwrap_or_default();
    let flags = fields(&stat).nth(FLAGS).and_then(|flags| str::from_utf8(flags).ok()?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

/// The fields of /proc/PID/stat from the state on.
fn fields(stat: &[u8]) -> impl Iterator<Item = &[u8]> {
    let name = stat.iter().rposition(|byte| *byte == b')').map_or(stat.len(), |at| at + 2);
    stat.get(name..).unwrap_or_default().split(|byte| *byte == b' ').filter(|field| !field.is_empty())
}

/// Names a ptrace failure; ESRCH means the thread is gone.
fn ptraced<T>(tid: i32, call: &'static str, result: Result<T, Errno>) -> Result<T> {
    match result {
        Err(Errno::SRCH) => Err(Error::Gone { tid }),
        other => other.named(call),
    }
}

impl Running {
    /// Attaches to thread `tid` of process `pid` without stopping it.
    pub fn seize(pid: i32, tid: i32, purpose: Seize) -> Result<Running> {
        let options = OPTIONS
            | match purpose {
                Seize::Catch => libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACECLONE,
                Seize::Puppet => libc::PTRACE_O_EXITKILL,
            };
        let seizing = reaper::Seizing::begin(pid);
        let seized = sys::ptrace(libc::PTRACE_SEIZE, tid, 0, options as u64);
        drop(seizing);
        ptraced(tid, "ptrace(PTRACE_SEIZE)", seized)?;
        Ok(Running { tid, not_send: PhantomData })
    }

    /// A thread the kernel attached for us at its birth (CLONE_PTRACE, or a parent seized for
    /// [`Seize::Catch`]). It stops before its first instruction.
    pub fn born(tid: i32) -> Running {
        Running { tid, not_send: PhantomData }
    }

    /// Thread id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks the thread to stop (PTRACE_INTERRUPT) without waiting for it.
    pub fn ask(&self) -> Result<()> {
        let tid = self.tid;
        ptraced(tid, "ptrace(PTRACE_INTERRUPT)", sys::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)).map(|_| ())
    }

    /// Stops the thread wherever it is.
    pub fn interrupt(self) -> Result<Stopped> {
        self.ask()?;
        self.wait_stop()
    }

    /// Waits for the next stop. A thread in uninterruptible sleep
    /// is waited for at most 10 s.
    pub fn wait_stop(self) -> Result<Stopped> {
        self.wait_stop_unless(&|| false)
    }

    /// The same, but not when `give_up` says so.
    pub fn wait_stop_unless(self, give_up: &dyn Fn() -> bool) -> Result<Stopped> {
        let tid = self.tid;
        let begin = Instant::now();
        let mut turns = 0u32;
        loop {
            match wait(tid, false)? {
                // In the middle of a fork, whose result is yet to come: the stop asked for comes after.
                Some(Event::Stop(status)) if is_fork(status >> 16) => {
                    let request = libc::PTRACE_CONT;
                    ptraced(tid, "ptrace(PTRACE_CONT)", sys::ptrace(request, tid, 0, 0))?;
                }
                // A signal was on its way before we asked. It is delivered: our stop comes before its handler runs.
                Some(Event::Stop(status)) if status >> 16 == 0 => {
                    let (request, signal) = (libc::PTRACE_CONT, libc::WSTOPSIG(status));
                    ptraced(tid, "ptrace(PTRACE_CONT)", sys::ptrace(request, tid, 0, signal as u64))?;
                }
                Some(Event::Stop(status)) => {
                    let signal = libc::WSTOPSIG(status);
                    return Ok(Stopped {
                        tid,
                        attached: true,
                        lent: false,
                        held: Vec::new(),
                        group_stop: (signal != libc::SIGTRAP).then_some(signal),
                        not_send: PhantomData,
                    });
                }
                Some(Event::Ended) => return Err(Error::Gone { tid }),
                None => {}
            }
            turns += 1;
            if turns < 40 {
                rustix::thread::sched_yield();
            } else if has_ended(tid) {
                return Err(Error::Gone { tid });
            } else if begin.elapsed() > Duration::from_secs(STOP_SECONDS) || give_up() {
                return Err(Error::Timeout { tid, seconds: begin.elapsed().as_secs() });
            } else {
                // It may execute a program, which takes the end of its siblings, some of which are ours to see off.
                reaper::reap_siblings(tid);
                std::thread::sleep(Duration::from_micros(if turns < 200 { 50 } else { 2000 }));
            }
        }
    }
}

/// How often it is looked for a stop that comes soon.
const SOON: u64 = 200;

impl Stopped {
    /// Thread id.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The job-control signal that had stopped its process, or was about to, when it stopped for us.
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// Lets the thread run until it stops with RIP at `rip` by a signal of ours. Stops of other
    /// kinds are passed over: job control stops are held back until the thread is let go, stray
    /// signals (only ones that are ignored anyway can come: all others are blocked) are dropped.
    pub fn run_to(&mut self, rip: u64) -> Result<()> {
        self.set_going()?;
        self.wait_at(rip)
    }

    /// The first half of [`Stopped::run_to`]: it runs when this returns.
    pub fn set_going(&mut self) -> Result<()> {
        let tid = self.tid();
        ptraced(tid, "ptrace(PTRACE_CONT)", sys::ptrace(libc::PTRACE_CONT, tid, 0, 0)).map(drop)
    }

    /// The second half.
    pub fn wait_at(&mut self, rip: u64) -> Result<()> {
        for turn in 0..64 {
            if turn != 0 {
                self.set_going()?;
            }
            let status = self.await_stop()?;
            let signal = libc::WSTOPSIG(status) & 0x7f;
            let event = status >> 16;
            if event == 0 && signal == libc::SIGSTOP {
                self.held.push(signal);
                continue;
            }
            let at = self.regs()?.rip;
            if event == 0 && at == rip {
                return Ok(());
            }
            if event == 0 && [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP].contains(&signal) {
                return Err(Error::Unexpected { tid: self.tid(), rip: at, status });
            }
        }
        Err(Error::Unexpected { tid: self.tid(), rip, status: 0 })
    }

    /// Lets the thread run to the next entry to, or exit from, a system call.
    pub fn run_to_syscall(&mut self) -> Result<()> {
        self.set_going_to_syscall()?;
        self.wait_at_syscall()
    }

    /// The first half of [`Stopped::run_to_syscall`]: it runs when this returns.
    pub fn set_going_to_syscall(&mut self) -> Result<()> {
        let tid = self.tid();
        ptraced(tid, "ptrace(PTRACE_SYSCALL)", sys::ptrace(libc::PTRACE_SYSCALL, tid, 0, 0)).map(drop)
    }

    /// The second half.
    pub fn wait_at_syscall(&mut self) -> Result<()> {
        for turn in 0..64 {
            if turn != 0 {
                self.set_going_to_syscall()?;
            }
            if libc::WSTOPSIG(self.await_stop()?) == libc::SIGTRAP | 0x80 {
                return Ok(());
            }
        }
        Err(Error::Unexpected { tid: self.tid(), rip: 0, status: 0 })
    }

    /// From a system call's entry stop: lets it begin, interrupts it at once, and stops where it
    /// was interrupted, its registers as the kernel left them.
    pub fn begin_and_interrupt(&mut self) -> Result<()> {
        let tid = self.tid();
        ptraced(tid, "ptrace(PTRACE_INTERRUPT)", sys::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0))?;
        for _ in 0..64 {
            let status = self.go(libc::PTRACE_CONT, "ptrace(PTRACE_CONT)")?;
            if status >> 16 == libc::PTRACE_EVENT_STOP {
                return Ok(());
            }
        }
        Err(Error::Unexpected { tid, rip: 0, status: 0 })
    }

    /// Lets the thread take part in a stop of its process (SIGSTOP, pending or under way) without
    /// running an instruction. It stays ours.
    pub fn join_stop(&mut self) -> Result<()> {
        let tid = self.tid();
        let mut deliver = 0;
        for _ in 0..64 {
            let status = self.go_with(libc::PTRACE_CONT, "ptrace(PTRACE_CONT)", deliver)?;
            let signal = libc::WSTOPSIG(status);
            match status >> 16 {
                libc::PTRACE_EVENT_STOP if signal == libc::SIGSTOP => return Ok(()),
                0 if signal == libc::SIGSTOP => deliver = libc::SIGSTOP,
                _ => deliver = 0,
            }
        }
        Err(Error::Unexpected { tid, rip: 0, status: 0 })
    }

    /// Resumes and waits, without a time limit, for the next stop.
    fn go(&mut self, request: libc::c_uint, call: &'static str) -> Result<i32> {
        self.go_with(request, call, 0)
    }

    /// As `go`, delivering `signal`.
    fn go_with(&mut self, request: libc::c_uint, call: &'static str, signal: i32) -> Result<i32> {
        let tid = self.tid();
        ptraced(tid, call, sys::ptrace(request, tid, 0, signal as u64))?;
        self.await_stop()
    }

    /// Waits, without a time limit, for the next stop.
    fn await_stop(&mut self) -> Result<i32> {
        let tid = self.tid();
        for turn in 0u64.. {
            match wait(tid, false)? {
                Some(Event::Stop(status)) => return Ok(status),
                Some(Event::Ended) => break,
                // Most stops come within microseconds, sooner than we would fall asleep and be woken.
                None if turn < SOON => rustix::thread::sched_yield(),
                None if turn % 16 == 0 && is_leaving(tid) => break,
                None => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        self.attached = false;
        Err(Error::Gone { tid })
    }

    /// Lets it end by `signal`, which it must not block or handle, from the delivery of another.
    pub fn end_by(mut self, signal: i32) -> Result<()> {
        let tid = self.tid();
        self.attached = false;
        ptraced(tid, "ptrace(PTRACE_CONT)", sys::ptrace(libc::PTRACE_CONT, tid, 0, signal as u64))?;
        self.wait_end();
        Ok(())
    }

    /// From now on it outlives us: it goes on as it is should we die.
    pub fn spare(&mut self) -> Result<()> {
        let tid = self.tid();
        let options = OPTIONS as u64;
        ptraced(tid, "ptrace(PTRACE_SETOPTIONS)", sys::ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options))?;
        Ok(())
    }

    /// Keeps the thread attached and stopped when this hold ends: [`detach`] lets it go.
    pub fn lend(mut self) -> Stopped {
        self.lent = true;
        self
    }

    /// Lets the thread, parked with signals blocked, run up to where it sleeps in a system call, which
    /// `asleep` tells, and stops it there, or after the call. It is at a syscall instruction.
    pub fn run_into_sleep(&mut self, asleep: &mut dyn FnMut() -> bool) -> Result<()> {
        self.run_to_syscall()?;
        let tid = self.tid();
        ptraced(tid, "ptrace(PTRACE_SYSCALL)", sys::ptrace(libc::PTRACE_SYSCALL, tid, 0, 0))?;
        let begin = Instant::now();
        let mut event = None;
        while event.is_none() && !asleep() {
            event = wait(tid, false)?;
            if begin.elapsed() > Duration::from_secs(STOP_SECONDS) {
                return Err(Error::Timeout { tid, seconds: STOP_SECONDS });
            }
        }
        let interrupt =
            || ptraced(tid, "ptrace(PTRACE_INTERRUPT)", sys::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0));
        interrupt()?;
        while event.is_none() {
            event = wait(tid, true)?;
        }
        if matches!(event, Some(Event::Ended)) {
            self.attached = false;
            return Err(Error::Gone { tid });
        }
        // That was the call's exit, which has used up the interrupt; without another it would begin anew.
        interrupt()?;
        for _ in 0..64 {
            let status = self.go(libc::PTRACE_CONT, "ptrace(PTRACE_CONT)")?;
            if status >> 16 == libc::PTRACE_EVENT_STOP {
                return Ok(());
            }
        }
        Err(Error::Unexpected { tid, rip: 0, status: 0 })
    }

    /// Lets the thread go for good, with the registers and mask it has now.
    pub fn detach(mut self) -> Result<()> {
        self.let_go()
    }

    /// Lets it go, to end at once by itself while other threads of its process live.
    pub fn leave(self) -> Result<()> {
        let tid = self.tid();
        self.detach()?;
        let begin = Instant::now();
        while !has_ended(tid) {
            if begin.elapsed() > Duration::from_secs(STOP_SECONDS) {
                return Err(Error::Timeout { tid, seconds: STOP_SECONDS });
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Waits for the end of a thread that will not stop any more.
    pub fn wait_end(mut self) {
        self.attached = false;
        while let Ok(event) = wait(self.tid, true) {
            if matches!(event, Some(Event::Ended)) {
                return;
            }
        }
    }

    /// The same for a while: whether it has ended.
    pub fn wait_end_until(&mut self, deadline: Instant) -> bool {
        while self.attached {
            match wait(self.tid, false) {
                Ok(Some(Event::Ended)) | Err(_) => self.attached = false,
                Ok(_) if Instant::now() > deadline => return false,
                Ok(_) => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        true
    }

    /// Queues the SIGSTOPs again that were taken out of the way, once the thread is where it was: they take effect when
    /// it is let go, unless a SIGCONT comes before.
    pub(crate) fn requeue(&mut self) {
        for signal in self.held.drain(..) {
            // SIGSTOP and its kin are process-wide.
            let _ = sys::numbers(libc::SYS_kill, [self.tid as u64, signal as u64, 0, 0, 0]);
        }
    }

    fn let_go(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.attached) {
            return Ok(());
        }
        self.requeue();
        if self.lent {
            return Ok(());
        }
        let detached = detach(self.tid);
        if let Err(Error::Gone { .. }) = detached {
            see_off(self.tid);
        }
        detached
    }
}

/// Lets a thread of ours go that is stopped and that no [`Stopped`] will let go.
pub fn detach(tid: i32) -> Result<()> {
    ptraced(tid, "ptrace(PTRACE_DETACH)", sys::ptrace(libc::PTRACE_DETACH, tid, 0, 0)).map(|_| ())
}

/// Sees off a thread of ours that ended while we held it, or whose id another has by now that executed a program:
/// that one is ours as well, and stops.
fn see_off(tid: i32) {
    for _ in 0..SOON {
        match wait(tid, false) {
            Ok(Some(Event::Stop(status))) => {
                let signal = if status >> 16 == 0 { libc::WSTOPSIG(status) } else { 0 };
                let _ = sys::ptrace(libc::PTRACE_DETACH, tid, 0, signal as u64);
                return;
            }
            Ok(None) if !has_ended(tid) => std::thread::sleep(Duration::from_micros(50)),
            _ => return,
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.let_go();
    }
}
