//! What every thread has for itself: registers, xsave area, alternate stack, robust list, tid
//! address, rseq, scheduling, parent-death signal, timer slack, personality, name.
//!
//! *Saved*: registers and xsave area by regset; altstack, tid address, pdeath signal, slack, personality and
//! securebits by asking the thread; the rest from outside. *Restored*: by the thread itself, the
//! register state last. A puppet begins as the coordinator is, in all of this: each is set, also where it
//! is what most threads have. *Lost*: CPU time used so far; the slack that PR_SET_TIMERSLACK with 0 goes back to.
//! PR_GET_TID_ADDRESS needs CONFIG_CHECKPOINT_RESTORE; PTRACE_GET_RSEQ_CONFIGURATION Linux 5.13.
//!
//! A real-time thread keeps a nice value for the day it is none, which only getpriority(2) tells and setpriority(2) sets.
//! One of SCHED_OTHER or SCHED_BATCH may have a slice of its own (Linux 6.12). The kernel shows the slice in any case:
//! what is not the slice of everybody is its own. *Lost*: that of a thread of another policy, kept for later, too.

use super::signal;
use crate::{
    error::{Error, Result},
    freeze::FrozenThread,
    task::Process,
};
use ckpt_image::{model, record};
use ckpt_kernel::{
    program::{Arg, Outcome, Program},
    query,
};
use ckpt_proc::{stat::Stat, status::Status};
use std::sync::OnceLock;
use zerocopy::IntoBytes;

const PR_GET_TID_ADDRESS: i32 = 40;
const PR_MCE_KILL: i32 = 33;
const PR_MCE_KILL_GET: i32 = 34;
const PR_MCE_KILL_SET: u64 = 1;
const SCHED_OTHER: u32 = 0;
const SCHED_BATCH: u32 = 3;
const SCHED_DEADLINE: u32 = 6;
/// SCHED_FLAG_RESET_ON_FORK | SCHED_FLAG_RECLAIM | SCHED_FLAG_DL_OVERRUN.
const SCHED_FLAGS: u64 = 7;
const SS_ONSTACK: u32 = 1;

/// How many answers [`questions`] asks for.
pub(crate) const QUESTIONS: usize = 8;

/// What the thread is asked.
pub(crate) fn questions(program: &mut Program) {
    program.call("sigaltstack", 0, libc::SYS_sigaltstack, [0u64.into(), Arg::Out(24)]);
    let nr = libc::SYS_prctl;
    program.call("prctl(PR_GET_TID_ADDRESS)", 0, nr, [PR_GET_TID_ADDRESS.into(), Arg::Out(8)]);
    program.call("prctl(PR_GET_PDEATHSIG)", 0, nr, [libc::PR_GET_PDEATHSIG.into(), Arg::Out(8)]);
    program.call("prctl(PR_GET_TIMERSLACK)", 0, nr, [libc::PR_GET_TIMERSLACK.into()]);
    program.call("prctl(PR_GET_SECUREBITS)", 0, nr, [libc::PR_GET_SECUREBITS.into()]);
    let args = [PR_MCE_KILL_GET.into(), 0u64.into(), 0u64.into(), 0u64.into(), 0u64.into()];
    program.call("prctl(PR_MCE_KILL_GET)", 0, nr, args);
    program.call("prctl(PR_GET_NAME)", 0, nr, [libc::PR_GET_NAME.into(), Arg::Out(16)]);
    program.call("personality", 0, libc::SYS_personality, [u64::from(u32::MAX).into()]);
}

/// Builds the record from the answers and from what is seen outside. `cred` is the objref of its
/// credentials.
pub(crate) fn checkpoint(
    process: &Process,
    frozen: &FrozenThread,
    answers: &[Outcome],
    cred: i32,
    status: &Status,
) -> Result<model::Thread> {
    let [altstack, tid_address, pdeath, slack, securebits, mce_kill, name, personality] = answers else {
        return Err(Error::failed("the thread answered fewer questions than asked"));
    };
    let tid = frozen.thread.tid();
    let (robust_head, robust_len) = query::robust_list(tid)?;
    let (rseq_addr, rseq_size, rseq_sig, rseq_flags) = frozen.thread.rseq()?;
    let sched = query::sched_attr(tid)?;
    let record = record::Thread {
        tid,
        pdeath_signal: pdeath.word(0) as i32,
        regs: frozen.kept.saved,
        sigmask: frozen.kept.mask,
        altstack_sp: altstack.word(0),
        altstack_flags: altstack.word(8) as u32,
        altstack_size: altstack.word(16),
        securebits: securebits.result as u32,
        robust_head,
        robust_len,
        clear_child_tid: tid_address.word(0),
        rseq_addr,
        rseq_size,
        rseq_sig,
        rseq_flags,
        sched_policy: sched.policy,
        sched_flags: sched.flags & SCHED_FLAGS,
        nice: query::nice(tid)?,
        sched_priority: sched.priority,
        sched_runtime: match sched.policy {
            SCHED_DEADLINE => sched.runtime,
            policy if is_fair(policy) => own_slice(sched.runtime),
            _ => 0,
        },
        sched_deadline: sched.deadline,
        sched_period: sched.period,
        ioprio: query::ioprio(tid)?,
        no_new_privs: u32::from(status.no_new_privs),
        timerslack: slack.result as u64,
        cred,
        mce_kill: mce_kill.result as u32,
        restart: frozen.kept.restart,
        state: record::task_state::RUNNING,
        exit_code: 0,
        personality: personality.result as u32,
        pad: 0,
    };
    Ok(model::Thread {
        record,
        comm: name.bytes(0).split(|byte| *byte == 0).next().unwrap_or_default().to_vec(),
        xstate: frozen.thread.xstate()?,
        pending: signal::checkpoint_pending(process, &frozen.thread, false, status)?,
        affinity: query::affinity(tid)?,
        levels: Vec::new(),
    })
}

/// Whether sched_setattr(2) takes nice value and slice for a policy.
fn is_fair(policy: u32) -> bool {
    [SCHED_OTHER, SCHED_BATCH].contains(&policy)
}

/// The slice of a thread, or 0 if it is that of everybody; before Linux 6.12 none is told.
fn own_slice(slice: u64) -> u64 {
    if slice == 0 {
        return 0;
    }
    static COMMON: OnceLock<u64> = OnceLock::new();
    let common = *COMMON.get_or_init(|| query::base_slice().unwrap_or(0));
    if slice == common || common == 0 { 0 } else { slice }
}

/// Its name.
pub(crate) fn restore_name(program: &mut Program, thread: &model::Thread) {
    let mut comm = thread.comm.clone();
    comm.push(0);
    program.call("prctl(PR_SET_NAME)", 0, libc::SYS_prctl, [libc::PR_SET_NAME.into(), Arg::In(comm)]);
}

/// How a leader ended while others live: the status of its exit(2); 0 in a stopped process, of which
/// the kernel shows the signal that stopped it instead.
pub(crate) fn leader_end(leader: &Stat) -> Result<i32> {
    const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    match leader.exit_code & 0x7f {
        0 => Ok(leader.exit_code),
        signal if STOPS.contains(&signal) => Ok(0),
        signal => Err(Error::unsupported(format!(
            "its main thread was killed by signal {signal} (seccomp) while others live, which cannot be carried yet"
        ))),
    }
}

/// What the thread does for itself before its credentials are set. All memory is in place.
pub(crate) fn restore(program: &mut Program, thread: &model::Thread) {
    let record = &thread.record;
    let prctl = libc::SYS_prctl;
    restore_name(program, thread);
    // "On the stack" is derived from rsp. Without one SS_DISABLE stands in the flags: it must be
    // said, for a puppet inherits the coordinator's.
    let flags = u64::from(record.altstack_flags & !SS_ONSTACK);
    let stack = [record.altstack_sp, flags, record.altstack_size].as_bytes().to_vec();
    program.call("sigaltstack", record.altstack_sp, libc::SYS_sigaltstack, [Arg::In(stack), 0u64.into()]);
    program.call("set_tid_address", 0, libc::SYS_set_tid_address, [record.clear_child_tid.into()]);
    if record.robust_head != 0 {
        let args = [record.robust_head.into(), record.robust_len.into()];
        program.call("set_robust_list", record.robust_head, libc::SYS_set_robust_list, args);
    }
    if record.rseq_addr != 0 {
        let args = [
            record.rseq_addr.into(),
            record.rseq_size.into(),
            record.rseq_flags.into(),
            record.rseq_sig.into(),
        ];
        program.call("rseq", record.rseq_addr, libc::SYS_rseq, args);
    }
    let args = [PR_MCE_KILL.into(), PR_MCE_KILL_SET.into(), record.mce_kill.into(), 0u64.into(), 0u64.into()];
    program.call("prctl(PR_MCE_KILL)", record.mce_kill.into(), prctl, args);
    restore_scheduling(program, thread);
    // A real-time thread has no slack, and cannot set it: not before we are sure to be none.
    let args = [libc::PR_SET_TIMERSLACK.into(), record.timerslack.into()];
    program.call("prctl(PR_SET_TIMERSLACK)", 0, prctl, args);
}

fn restore_scheduling(program: &mut Program, thread: &model::Thread) {
    let record = &thread.record;
    if !is_fair(record.sched_policy) {
        let args = [0u64.into(), 0u64.into(), record.nice.into()];
        program.call("setpriority", record.nice as u64, libc::SYS_setpriority, args);
    }
    let attr = query::SchedAttr {
        size: size_of::<query::SchedAttr>() as u32,
        policy: record.sched_policy,
        flags: record.sched_flags,
        nice: record.nice,
        priority: record.sched_priority,
        runtime: record.sched_runtime,
        deadline: record.sched_deadline,
        period: record.sched_period,
    };
    let args = [0u64.into(), Arg::In(attr.as_bytes().to_vec()), 0u64.into()];
    program.call("sched_setattr", record.sched_policy.into(), libc::SYS_sched_setattr, args);
    // Fewer CPUs here than there: the kernel takes the intersection, and refuses an empty one.
    let args = [0u64.into(), (thread.affinity.len() as u64).into(), Arg::In(thread.affinity.clone())];
    program.try_call("sched_setaffinity", libc::SYS_sched_setaffinity, args);
    let args = [1u64.into(), 0u64.into(), record.ioprio.into()];
    program.call("ioprio_set", record.ioprio.into(), libc::SYS_ioprio_set, args);
}

/// The last of a thread's program: what credentials reset. Even a leader that ends must not keep the
/// parent-death signal of a puppet: the kernel sends those of zombies, too.
pub(crate) fn restore_after_cred(program: &mut Program, thread: &model::Thread) {
    let record = &thread.record;
    let prctl = libc::SYS_prctl;
    program.call("personality", 0, libc::SYS_personality, [record.personality.into()]);
    program.call(
        "prctl(PR_SET_PDEATHSIG)",
        0,
        prctl,
        [libc::PR_SET_PDEATHSIG.into(), record.pdeath_signal.into()],
    );
    if record.no_new_privs != 0 {
        let args = [libc::PR_SET_NO_NEW_PRIVS.into(), 1u64.into(), 0u64.into(), 0u64.into(), 0u64.into()];
        program.call("prctl(PR_SET_NO_NEW_PRIVS)", 0, prctl, args);
    }
}
