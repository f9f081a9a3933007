//! Resource limits, oom_score_adj, child subreaper.
//!
//! *Saved*: limits and the subreaper flag by asking the process (prlimit(2) from outside would
//! need CAP_SYS_RESOURCE for another user's task), oom_score_adj from /proc. *Restored*: by the
//! process; oom_score_adj by the coordinator. Lowering it, or raising a hard limit, needs
//! CAP_SYS_RESOURCE: the first is reported and goes on, the second fails. RLIMIT_NPROC is out of the way while ids are
//! set, and set after them: the kernel remembers of who takes on the ids of a user with too many processes that its next
//! execve(2) is to fail, which the program, if it set the limit itself, never was.

use crate::{
    error::{Error, Result},
    options::Observer,
    task::{Process, show},
};
use ckpt_image::{model, record::Signal};
use ckpt_kernel::procfs;
use ckpt_kernel::program::{Arg, Outcome, Program};
use rustix::process::{Resource, getrlimit, setrlimit};
use zerocopy::IntoBytes;

/// RLIM_NLIMITS.
const LIMITS: u64 = 16;
/// RLIMIT_NPROC.
const NPROC: u64 = libc::RLIMIT_NPROC as u64;

/// Asks for limits and the subreaper flag: 17 answers.
pub(crate) fn questions(program: &mut Program) {
    for resource in 0..LIMITS {
        let args = [0u64.into(), resource.into(), 0u64.into(), Arg::Out(16)];
        program.call("prlimit64", resource, libc::SYS_prlimit64, args);
    }
    let args = [libc::PR_GET_CHILD_SUBREAPER.into(), Arg::Out(8)];
    program.call("prctl(PR_GET_CHILD_SUBREAPER)", 0, libc::SYS_prctl, args);
}

/// Fills in the answers to [`questions`].
pub(crate) fn checkpoint(process: &Process, answers: &[Outcome], signal: &mut Signal) -> Result<()> {
    for (limit, answer) in signal.rlimits.iter_mut().zip(answers) {
        *limit = [answer.word(0), answer.word(8)];
    }
    signal.child_subreaper = answers.get(LIMITS as usize).map_or(0, |a| a.word(0) as u32);
    let text = process.proc.read("oom_score_adj")?;
    let text = String::from_utf8(text).unwrap_or_default();
    signal.oom_score_adj = text.trim().parse().map_err(|_| Error::failed("parse /proc/PID/oom_score_adj"))?;
    Ok(())
}

/// Those that could be in the way of what a program had, if it had raised them itself.
const IN_THE_WAY: [Resource; 9] = [
    Resource::Data,
    Resource::Fsize,
    Resource::As,
    Resource::Nproc,
    Resource::Memlock,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
];

/// Raises our own limits, which puppets begin with, as far as every process may.
pub(crate) fn raise_own() {
    for resource in IN_THE_WAY {
        let mut limit = getrlimit(resource);
        if limit.current != limit.maximum {
            limit.current = limit.maximum;
            let _ = setrlimit(resource, limit);
        }
    }
}

fn set(resource: u64, limit: [u64; 2]) -> [Arg; 4] {
    [0u64.into(), resource.into(), Arg::In(limit.as_bytes().to_vec()), 0u64.into()]
}

/// Sets the limits, but for the number of processes, which is out of the way from now on if it may be; the last thing a
/// process does with privilege.
pub(crate) fn restore(program: &mut Program, signal: &Signal) {
    for (resource, limit) in (0..LIMITS).zip(signal.rlimits).filter(|(resource, _)| *resource != NPROC) {
        program.call("prlimit64", resource, libc::SYS_prlimit64, set(resource, limit));
    }
    let unlimited = [libc::RLIM_INFINITY; 2];
    program.try_call("prlimit64", libc::SYS_prlimit64, set(NPROC, unlimited));
    if signal.child_subreaper != 0 {
        let args = [libc::PR_SET_CHILD_SUBREAPER.into(), 1u64.into()];
        program.call("prctl(PR_SET_CHILD_SUBREAPER)", 0, libc::SYS_prctl, args);
    }
}

/// Sets the limit of the number of processes, when all threads have their ids.
pub(crate) fn restore_after_cred(program: &mut Program, signal: &Signal) {
    for (resource, limit) in (0..LIMITS).zip(signal.rlimits).filter(|(resource, _)| *resource == NPROC) {
        program.call("prlimit64", resource, libc::SYS_prlimit64, set(resource, limit));
    }
}

/// Writes oom_score_adj of process `pid`; being forbidden to is reported only.
pub(crate) fn restore_oom(pid: i32, signal: &model::Signal, observer: &mut dyn Observer) {
    let value = signal.record.oom_score_adj;
    let path = format!("{pid}/oom_score_adj");
    let now = show(&procfs::read(&path).unwrap_or_default());
    if now.trim().parse() == Ok(value) {
        return;
    }
    if let Err(cause) = procfs::write(&path, &value.to_string()) {
        observer.warn(&format!(
            "pid {pid}: oom_score_adj stays {} instead of {value}: {cause}; lowering it needs CAP_SYS_RESOURCE",
            now.trim()
        ));
    }
}
