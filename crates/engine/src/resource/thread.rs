//! What every thread has for itself: registers, xsave area, alternate stack, robust list, tid
//! address, rseq, scheduling, parent-death signal, timer slack, name.
//!
//! *Saved*: registers and xsave area by regset; altstack, tid address, pdeath signal, slack and
//! securebits by asking the thread; the rest from outside. *Restored*: by the thread itself, the
//! register state last. *Lost*: CPU time used so far. PR_GET_TID_ADDRESS needs
//! CONFIG_CHECKPOINT_RESTORE; PTRACE_GET_RSEQ_CONFIGURATION Linux 5.13.

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
use zerocopy::IntoBytes;

const PR_GET_TID_ADDRESS: i32 = 40;
const PR_MCE_KILL: i32 = 33;
const PR_MCE_KILL_GET: i32 = 34;
const PR_MCE_KILL_SET: u64 = 1;
/// PR_MCE_KILL_DEFAULT: follow the system's policy.
const MCE_KILL_DEFAULT: u32 = 2;
const SCHED_DEADLINE: u32 = 6;
/// SCHED_FLAG_RESET_ON_FORK | SCHED_FLAG_RECLAIM | SCHED_FLAG_DL_OVERRUN.
const SCHED_FLAGS: u64 = 7;
const SS_ONSTACK: u32 = 1;

/// How many answers [`questions`] asks for.
pub(crate) const QUESTIONS: usize = 7;

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
    let [altstack, tid_address, pdeath, slack, securebits, mce_kill, name] = answers else {
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
        nice: sched.nice,
        sched_priority: sched.priority,
        sched_runtime: sched.runtime,
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
    program.call(
        "prctl(PR_SET_TIMERSLACK)",
        0,
        prctl,
        [libc::PR_SET_TIMERSLACK.into(), record.timerslack.into()],
    );
    if record.mce_kill != MCE_KILL_DEFAULT {
        let args =
            [PR_MCE_KILL.into(), PR_MCE_KILL_SET.into(), record.mce_kill.into(), 0u64.into(), 0u64.into()];
        program.call("prctl(PR_MCE_KILL)", record.mce_kill.into(), prctl, args);
    }
    restore_scheduling(program, thread);
}

fn restore_scheduling(program: &mut Program, thread: &model::Thread) {
    let record = &thread.record;
    let idle = record.sched_policy == SCHED_DEADLINE;
    let attr = query::SchedAttr {
        size: size_of::<query::SchedAttr>() as u32,
        policy: record.sched_policy,
        flags: record.sched_flags,
        nice: record.nice,
        priority: record.sched_priority,
        runtime: if idle { record.sched_runtime } else { 0 },
        deadline: record.sched_deadline,
        period: record.sched_period,
    };
    let args = [0u64.into(), Arg::In(attr.as_bytes().to_vec()), 0u64.into()];
    program.call("sched_setattr", record.sched_policy.into(), libc::SYS_sched_setattr, args);
    // Fewer CPUs here than there: the kernel takes the intersection, and refuses an empty one.
    let args = [0u64.into(), (thread.affinity.len() as u64).into(), Arg::In(thread.affinity.clone())];
    program.try_call("sched_setaffinity", libc::SYS_sched_setaffinity, args);
    if record.ioprio != 0 {
        let args = [1u64.into(), 0u64.into(), record.ioprio.into()];
        program.call("ioprio_set", record.ioprio.into(), libc::SYS_ioprio_set, args);
    }
}

/// The last of a thread's program: what credentials reset. Even a leader that ends must not keep the
/// parent-death signal of a puppet: the kernel sends those of zombies, too.
pub(crate) fn restore_after_cred(program: &mut Program, thread: &model::Thread) {
    let record = &thread.record;
    let prctl = libc::SYS_prctl;
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
