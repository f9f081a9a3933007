//! Signals: handlers and pending queues.
//!
//! *Saved*: the 64 handlers by asking a thread; pending signals with their siginfo from outside
//! (PTRACE_PEEKSIGINFO), the queue of the process and of each thread. *Restored*: handlers by the
//! first thread; each queue by rt_sigqueueinfo(2) to itself, in order, while everything is
//! blocked. The mask of each thread is set last, with its registers.
//!
//! A signal sent when RLIMIT_SIGPENDING was exhausted may be pending without an entry in the queue: only the
//! masks in /proc/PID/status show it, and who takes it is told SI_USER, of process 0 and user 0. It gets an entry
//! that says just that. A signal of a POSIX timer is not queued again: its timer sends it, which `timers.rs` sees to.
//! *Lost*: nothing.

use crate::{
    error::{Error, Result},
    task::Process,
};
use ckpt_image::{
    model::{Sighand, Siginfo},
    record::SigAction,
};
use ckpt_kernel::{
    program::{Arg, Outcome, Program},
    tracee::Stopped,
};
use ckpt_proc::status::Status;
use zerocopy::{FromBytes, IntoBytes};

/// Signals there are.
pub(crate) const SIGNALS: i32 = 64;
const SIGSET_BYTES: u64 = 8;

/// Asks for all handlers.
pub(crate) fn questions(program: &mut Program) {
    for signal in 1..=SIGNALS {
        let args = [signal.into(), 0u64.into(), Arg::Out(size_of::<SigAction>()), SIGSET_BYTES.into()];
        program.call("rt_sigaction", signal as u64, libc::SYS_rt_sigaction, args);
    }
}

/// The handlers, from the answers to [`questions`].
pub(crate) fn checkpoint(answers: &[Outcome]) -> Result<Sighand> {
    let action = |o: &Outcome| {
        SigAction::read_from_bytes(o.bytes(0)).map_err(|_| Error::failed("rt_sigaction answer"))
    };
    let actions = answers.iter().map(action).collect::<Result<_>>()?;
    Ok(Sighand { actions })
}

/// Sets all handlers. A puppet begins with the coordinator's, so every one is set.
pub(crate) fn restore(program: &mut Program, sighand: &Sighand) {
    for (signal, action) in (1i32..).zip(&sighand.actions) {
        if [libc::SIGKILL, libc::SIGSTOP].contains(&signal) {
            continue;
        }
        let args = [signal.into(), Arg::In(action.as_bytes().to_vec()), 0u64.into(), SIGSET_BYTES.into()];
        program.call("rt_sigaction", signal as u64, libc::SYS_rt_sigaction, args);
    }
}

/// What is pending for a thread, or what is `shared` by its process, when its status was `before`.
pub(crate) fn checkpoint_pending(
    process: &Process,
    thread: &Stopped,
    shared: bool,
    before: &Status,
) -> Result<Vec<Siginfo>> {
    let mask = |status: &Status| if shared { status.sig_shared_pending.0 } else { status.sig_pending.0 };
    let mut pending = thread.pending(shared)?;
    let mut bare = mask(before) & !mask_of(&pending) & !bit(libc::SIGKILL);
    if bare != 0 {
        // A SIGCONT from outside may have taken a stop signal back between the two looks, and the reverse.
        bare &= mask(&process.thread_status(thread.tid())?);
    }
    pending.extend((1..=SIGNALS).filter(|signal| bare & bit(*signal) != 0).map(entry_of));
    Ok(pending)
}

/// The entry of a signal that has none: its number, SI_USER, and of nobody.
fn entry_of(signal: i32) -> Siginfo {
    let mut info = [0; size_of::<Siginfo>()];
    info.iter_mut().zip(signal.to_le_bytes()).for_each(|(to, from)| *to = from);
    info
}

/// Queues signals again, but those of timers: to thread `tid` itself, or, when it is the leader and `shared`, to its
/// process.
pub(crate) fn restore_pending(program: &mut Program, pid: i32, tid: i32, shared: bool, pending: &[Siginfo]) {
    for info in pending.iter().filter(|info| timer_of(info).is_none()) {
        let signal = number(info);
        let info = Arg::In(info.to_vec());
        if shared {
            let args = [pid.into(), signal.into(), info];
            program.call("rt_sigqueueinfo", signal as u64, libc::SYS_rt_sigqueueinfo, args);
        } else {
            let args = [pid.into(), tid.into(), signal.into(), info];
            program.call("rt_tgsigqueueinfo", signal as u64, libc::SYS_rt_tgsigqueueinfo, args);
        }
    }
}

/// The POSIX timer that sent a signal.
pub(crate) fn timer_of(info: &Siginfo) -> Option<i32> {
    const SI_CODE: usize = 8;
    const SI_TIMERID: usize = 16;
    (int(info, SI_CODE) == libc::SI_TIMER).then(|| int(info, SI_TIMERID))
}

/// The signals in `pending`, as a mask.
pub(crate) fn mask_of<'a>(pending: impl IntoIterator<Item = &'a Siginfo>) -> u64 {
    pending.into_iter().map(|info| bit(number(info))).fold(0, |all, one| all | one)
}

fn bit(signal: i32) -> u64 {
    if (1..=SIGNALS).contains(&signal) { 1 << (signal - 1) } else { 0 }
}

fn number(info: &Siginfo) -> i32 {
    int(info, 0)
}

/// The int at an offset of a siginfo.
fn int(info: &Siginfo, at: usize) -> i32 {
    info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_le_bytes)
}
