//! System calls in progress.
//!
//! A thread stopped inside a call shows in rax how the kernel would restart it. Most are simply
//! issued again with the same registers. Calls with a relative timeout hold what remains of it in
//! the kernel's `restart_block` (rax -516, then restart_syscall(2)); what remains is read from
//! the `rmtp` the kernel wrote, or is the timer that vanished from /proc/timer_list when the
//! thread was interrupted. A few calls (epoll_wait, rt_sigtimedwait, semop, any on a socket with SO_RCVTIMEO)
//! return a plain EINTR on the interrupt; they are issued again, unless a handler runs first, their relative timeout anew.
//!
//! *Saved*: registers, kind of call, nanoseconds that remained. *Restored*: the puppet issues the
//! call with the remaining time and is interrupted at once, so that the kernel has a fresh restart
//! block. *Lost*: the remaining time of the EINTR calls; with a warning, the exact time where several
//! timers vanish at once every time, or may not be seen: then it is the longest that it can be.
//! Linux 3.4 (PTRACE_SEIZE) for the stop; /proc/timer_list and /proc/TID/stack need root.

use crate::{
    error::{Error, Result},
    options::Observer,
    task::Process,
};
use ckpt_image::record::{Regs, RestartBlock, restart_kind};
use ckpt_kernel::{memory, procfs, puppet::Puppet, visit::Visit};
use ckpt_proc::{
    syscall::{Syscall, parse_syscall},
    timer_list::{HrTimer, parse_timer_list},
};
use std::time::Duration;

const SYS_CLOCK_NANOSLEEP: i64 = libc::SYS_clock_nanosleep;
const SYS_EPOLL_PWAIT: i64 = libc::SYS_epoll_pwait;
const SYS_EPOLL_WAIT: i64 = libc::SYS_epoll_wait;
const SYS_FUTEX: i64 = libc::SYS_futex;
const SYS_MSGRCV: i64 = libc::SYS_msgrcv;
const SYS_MSGSND: i64 = libc::SYS_msgsnd;
const SYS_NANOSLEEP: i64 = libc::SYS_nanosleep;
const SYS_POLL: i64 = libc::SYS_poll;
const SYS_RECVFROM: i64 = libc::SYS_recvfrom;
const SYS_RECVMMSG: i64 = libc::SYS_recvmmsg;
const SYS_RECVMSG: i64 = libc::SYS_recvmsg;
const SYS_RESTART_SYSCALL: i64 = libc::SYS_restart_syscall;
const SYS_RT_SIGTIMEDWAIT: i64 = libc::SYS_rt_sigtimedwait;
const SYS_SEMOP: i64 = libc::SYS_semop;
const SYS_SEMTIMEDOP: i64 = libc::SYS_semtimedop;
const SYS_SENDMSG: i64 = libc::SYS_sendmsg;
const SYS_SENDTO: i64 = libc::SYS_sendto;
const SYS_EPOLL_PWAIT2: i64 = 441;
const EINTR: u64 = -4i64 as u64;
/// Issued again, unless a handler has run: then it is EINTR, as for all calls that this is for.
const ERESTARTNOHAND: u64 = -514i64 as u64;
const ERESTART_RESTARTBLOCK: u64 = -516i64 as u64;

/// Calls that answer a ptrace stop with EINTR although no signal came; those on sockets do if these have a timeout
/// (SO_RCVTIMEO, SO_SNDTIMEO).
const EINTR_CALLS: [i64; 23] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwritev2,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendmmsg,
    SYS_EPOLL_WAIT,
    SYS_EPOLL_PWAIT,
    SYS_EPOLL_PWAIT2,
    SYS_RT_SIGTIMEDWAIT,
    SYS_SEMOP,
    SYS_SEMTIMEDOP,
    SYS_MSGRCV,
    SYS_MSGSND,
    SYS_RECVFROM,
    SYS_RECVMSG,
    SYS_RECVMMSG,
    SYS_SENDTO,
    SYS_SENDMSG,
];

/// How often it is tried to tell exactly what remains of a timeout.
const PATIENCE: u32 = 20;
/// Nanoseconds that do not matter.
const SHORT: u64 = 10_000_000;

/// What a thread did just before it was interrupted.
#[derive(Debug, Default)]
pub(crate) struct Before {
    stack: Vec<u8>,
    timers: Option<Vec<HrTimer>>,
    /// It waits with a timeout, but we may not see the timers: no use trying again.
    blind: bool,
}

impl Before {
    /// Looks at thread `tid`. Only a thread in a call with a timeout costs more than one read.
    pub(crate) fn look(process: &Process, tid: i32) -> Before {
        let read = |name: &str| process.leader.read(&format!("task/{tid}/{name}"));
        let Ok(text) = read("syscall") else { return Before::default() };
        let Ok(Syscall::Inside { nr, args, .. }) = parse_syscall(&text) else { return Before::default() };
        let [_, a1, a2, a3, ..] = args;
        let (stack, timed) = match nr {
            SYS_RESTART_SYSCALL => (read("stack").ok(), true),
            SYS_NANOSLEEP => (None, a1 == 0),
            SYS_CLOCK_NANOSLEEP => (None, a1 & 1 == 0 && a3 == 0),
            SYS_POLL => (None, a2 as i32 >= 0),
            SYS_FUTEX => (None, a1 & 0x7f == 0 && a3 != 0),
            _ => (None, false),
        };
        let timers = timed.then(timers).flatten();
        Before { stack: stack.unwrap_or_default(), blind: timed && timers.is_none(), timers }
    }

    /// When the timers run out that were there before and are not any more.
    fn vanished(&self) -> Vec<u64> {
        let Some(after) = timers() else { return Vec::new() };
        let gone = |t: &&HrTimer| {
            t.function == b"hrtimer_wakeup"
                && !after.iter().any(|a| a.address == t.address && a.expires_soft == t.expires_soft)
        };
        self.timers.iter().flatten().filter(gone).map(|t| t.expires_soft).collect()
    }
}

/// The machine's high-resolution timers, if we may see them.
fn timers() -> Option<Vec<HrTimer>> {
    let text = procfs::read("timer_list").ok()?;
    parse_timer_list(&text).ok().map(|list| list.timers)
}

/// CLOCK_MONOTONIC in nanoseconds.
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Turns an EINTR that only our stop caused into "restart this call"; whether it was one.
pub(crate) fn hide_eintr(process: &Process, tid: i32, mask: u64, raw: &mut Regs) -> Result<bool> {
    if raw.rax != EINTR || !EINTR_CALLS.contains(&(raw.orig_rax as i64)) {
        return Ok(false);
    }
    let status = process.thread_status(tid)?;
    let ours = (status.sig_pending.0 | status.sig_shared_pending.0) & !mask == 0;
    if ours {
        raw.rax = ERESTARTNOHAND;
    }
    Ok(ours)
}

/// How an interrupted call is to be issued again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settled {
    /// The call, and what remains of its timeout.
    pub(crate) restart: RestartBlock,
    /// By how many nanoseconds less that may be.
    doubt: u64,
}

impl Settled {
    /// Tells if what remains of the timeout of thread `tid` is not known exactly.
    pub(crate) fn warn(&self, tid: i32, observer: &mut dyn Observer) {
        if self.doubt > SHORT {
            let (time, doubt) =
                (Duration::from_nanos(self.restart.remaining), Duration::from_nanos(self.doubt));
            observer.warn(&format!(
                "thread {tid}: what remains of its timeout is only known to {doubt:.1?}; it is taken for {time:.1?}, \
                 the longest it can be"
            ));
        }
    }
}

/// Makes `saved` of thread `tid` say which call was interrupted and tells what remains of its timeout. `None`
/// when that cannot be told; then the thread must be let go and stopped again, which a `patient`
/// caller does.
pub(crate) fn settle(
    process: &Process,
    tid: i32,
    before: &Before,
    saved: &mut Regs,
    patient: bool,
) -> Result<Option<Settled>> {
    let none = Settled::default();
    if about_to_restart(tid, saved) {
        return Ok(None);
    }
    if saved.orig_rax as i64 == SYS_RESTART_SYSCALL {
        match restarted_call(&before.stack, saved) {
            Some(nr) => saved.orig_rax = nr as u64,
            None if saved.rax == ERESTART_RESTARTBLOCK => return Ok(None),
            None => {}
        }
    }
    if saved.rax != ERESTART_RESTARTBLOCK {
        return Ok(Some(none));
    }
    // As the kernel wrote it, or by its timer.
    let sleep = |kind, request, rmtp| match timespec(tid, rmtp) {
        u64::MAX => Ok(timed(before, kind, timespec(tid, request), patient)),
        remaining => Ok(Some(Settled { restart: RestartBlock { kind, pad: 0, remaining }, doubt: 0 })),
    };
    match saved.orig_rax as i64 {
        SYS_NANOSLEEP => sleep(restart_kind::NANOSLEEP, saved.rdi, saved.rsi),
        SYS_CLOCK_NANOSLEEP => sleep(restart_kind::CLOCK_NANOSLEEP, saved.rdx, saved.r10),
        SYS_POLL if saved.rdx as i32 >= 0 => {
            Ok(timed(before, restart_kind::POLL, u64::from(saved.rdx as u32) * 1_000_000, patient))
        }
        SYS_FUTEX if saved.rsi & 0x7f == 0 => {
            Ok(timed(before, restart_kind::FUTEX, timespec(tid, saved.r10), patient))
        }
        // No timeout, or an absolute one: the call is simply issued again.
        SYS_POLL | SYS_FUTEX => {
            saved.rax = ERESTARTNOHAND;
            Ok(Some(none))
        }
        nr => {
            Err(Error::unsupported(format!("system call {nr} waits in a restart block of an unknown kind"))
                .task(process.label())
                .advice("report this call"))
        }
    }
}

/// Whether the thread stands right before restart_syscall(2), as the kernel sets it up when a call
/// is to go on. Elsewhere there is no restart block, and that call would end with EINTR.
fn about_to_restart(tid: i32, regs: &Regs) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let mut code = [0; 2];
    regs.rax as i64 == SYS_RESTART_SYSCALL
        && memory::read(tid, regs.rip, &mut code).is_ok()
        && code == SYSCALL
}

/// Makes of a thread about to issue restart_syscall(2) one that was interrupted: the kernel will take
/// it there again. Whether it was one.
pub(crate) fn unbegin(tid: i32, raw: &mut Regs) -> bool {
    let begins = about_to_restart(tid, raw);
    if begins {
        raw.orig_rax = raw.rax;
        raw.rax = ERESTART_RESTARTBLOCK;
        raw.rip += 2;
    }
    begins
}

/// Whether the thread was interrupted in a call that goes on by its restart block.
pub(crate) fn waits(raw: &Regs) -> bool {
    raw.rax == ERESTART_RESTARTBLOCK
}

/// Tells what remains of the timeout of thread number `index`, which was frozen: its timer may be gone since,
/// and others of its tree were stopped at the same moment. Its call goes on, in our code, until it sleeps, and
/// is interrupted again. Returns the registers to go on with and those for the image.
pub(crate) fn resume(
    process: &Process,
    visit: &mut Visit,
    index: usize,
    tid: i32,
) -> Result<(Regs, Regs, Settled)> {
    for patience in (0..PATIENCE).rev() {
        let mut before = Before::default();
        let mut asleep = || {
            let sleeps = is_asleep(process, tid);
            if sleeps {
                before = Before::look(process, tid);
            }
            sleeps
        };
        let raw = visit.resume_call(index, &mut asleep)?;
        let mut saved = raw;
        if let Some(settled) = settle(process, tid, &before, &mut saved, patience > 0)? {
            return Ok((raw, saved, settled));
        }
    }
    let what = format!("thread {tid}: its interrupted system call could not be identified");
    Err(Error::failed(what).task(process.label()).advice("try again"))
}

/// Whether a thread sleeps in restart_syscall(2).
fn is_asleep(process: &Process, tid: i32) -> bool {
    use ckpt_proc::stat::{TaskState, parse_stat};
    let stat = process.proc.parse(&format!("task/{tid}/stat"), parse_stat);
    let call = || process.proc.parse(&format!("task/{tid}/syscall"), parse_syscall);
    stat.is_ok_and(|stat| stat.state == TaskState::Sleeping)
        && call().is_ok_and(|call| matches!(call, Syscall::Inside { nr: SYS_RESTART_SYSCALL, .. }))
}

/// Which call restart_syscall(2) goes on with, by the kernel functions the thread slept in (/proc/TID/stack).
fn restarted_call(stack: &[u8], regs: &Regs) -> Option<i64> {
    let has = |name: &[u8]| stack.windows(name.len()).any(|w| w == name);
    if has(b"futex") {
        Some(SYS_FUTEX)
    } else if has(b"poll") {
        Some(SYS_POLL)
    } else if !stack.is_empty() {
        // The restart of a sleep is a tail call: it leaves no frame of its own.
        // nanosleep's first argument is an address, clock_nanosleep's a clock.
        Some(if (regs.rdi as i32 as i64) == regs.rdi as i64 && regs.rdi < 4096 || (regs.rdi as i64) < 0 {
            SYS_CLOCK_NANOSLEEP
        } else {
            SYS_NANOSLEEP
        })
    } else {
        None
    }
}

/// What remains by the timer that vanished: surely if only one did. Else, for a timeout so short
/// that it does not matter or when `patient` is over, the longest that it can be.
fn timed(before: &Before, kind: u32, requested: u64, patient: bool) -> Option<Settled> {
    let now = monotonic();
    let left: Vec<u64> =
        before.vanished().iter().map(|t| t.saturating_sub(now)).filter(|r| *r <= requested).collect();
    let (shortest, remaining) = match left.as_slice() {
        [only] => (*only, *only),
        _ if patient && !before.blind && requested > SHORT => return None,
        [] => (0, requested),
        several => several.iter().fold((requested, 0), |(low, high), r| (low.min(*r), high.max(*r))),
    };
    Some(Settled { restart: RestartBlock { kind, pad: 0, remaining }, doubt: remaining - shortest })
}

/// A timespec of thread `tid` in nanoseconds; the longest time when it cannot be read.
fn timespec(tid: i32, at: u64) -> u64 {
    let mut words = [0; 16];
    if memory::read(tid, at, &mut words).is_err() {
        return u64::MAX;
    }
    let word =
        |at: usize| words.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    word(0).saturating_mul(1_000_000_000).saturating_add(word(8))
}

/// Gives thread `index` of `puppet` a call in progress like the one that was interrupted; returns
/// the registers to let it go with.
pub(crate) fn restore(
    puppet: &mut Puppet,
    index: usize,
    saved: &Regs,
    restart: &RestartBlock,
) -> Result<Regs> {
    let time = [restart.remaining / 1_000_000_000, restart.remaining % 1_000_000_000];
    let time: Vec<u8> = time.iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = puppet.scratch(index);
    let (rdi, rsi, rdx, r10, r8, r9) = (saved.rdi, saved.rsi, saved.rdx, saved.r10, saved.r8, saved.r9);
    let args = match restart.kind {
        restart_kind::NANOSLEEP => [at, rsi, rdx, r10, r8, r9],
        restart_kind::CLOCK_NANOSLEEP => [rdi, rsi, at, r10, r8, r9],
        restart_kind::POLL => [rdi, rsi, restart.remaining.div_ceil(1_000_000), r10, r8, r9],
        restart_kind::FUTEX => [rdi, rsi, rdx, at, r8, r9],
        _ => return Ok(*saved),
    };
    let rax = puppet.rearm(index, saved.orig_rax, args, &time)?;
    if Puppet::waits(rax) {
        return Ok(Regs { rax, ..*saved });
    }
    // It ended meanwhile: this is its result.
    Ok(Regs { rax, orig_rax: u64::MAX, ..*saved })
}
