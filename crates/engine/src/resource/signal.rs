//! Signals: handlers and pending queues.
//!
//! *Saved*: the 64 handlers by asking a thread; pending signals with their siginfo from outside
//! (PTRACE_PEEKSIGINFO), the queue of the process and of each thread. *Restored*: handlers by the
//! first thread; each queue by rt_sigqueueinfo(2) to itself, in order, while everything is
//! blocked. The mask of each thread is set last, with its registers. *Lost*: nothing.

use crate::error::{Error, Result};
use ckpt_image::{
    model::{Sighand, Siginfo},
    record::SigAction,
};
use ckpt_kernel::program::{Arg, Outcome, Program};
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

/// Queues signals again: to thread `tid` itself, or, when it is the leader and `shared`, to its
/// process.
pub(crate) fn restore_pending(program: &mut Program, pid: i32, tid: i32, shared: bool, pending: &[Siginfo]) {
    for info in pending {
        let signal = i32::from_le_bytes([info[0], info[1], info[2], info[3]]);
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

/// The signals in `pending`, as a mask.
pub(crate) fn mask_of<'a>(pending: impl IntoIterator<Item = &'a Siginfo>) -> u64 {
    let bit = |info: &Siginfo| match i32::from_le_bytes([info[0], info[1], info[2], info[3]]) {
        signal @ 1..=SIGNALS => 1u64 << (signal - 1),
        _ => 0,
    };
    pending.into_iter().map(bit).fold(0, |all, one| all | one)
}
