//! What it takes to visit a process: its threads as visitors, and places in its address space that are nobody's.

use crate::{
    admit::refuse_seccomp,
    error::{Error, Result},
    freeze::{FrozenThread, Kept},
    resource::layout,
    task::Process,
};
use ckpt_image::record::RestartBlock;
use ckpt_kernel::{
    memory::Span,
    pidns::Ids,
    tracee::Stopped,
    visit::{Traces, Visit, Visitor, park_signal},
};
use ckpt_proc::{
    maps::{Mapping, parse_maps},
    status::Status,
};

fn park_signal_of(status: &Status, mask: u64, stopped: bool) -> Result<i32> {
    let pending = status.sig_pending.0 | status.sig_shared_pending.0;
    park_signal(status.sig_caught.0, status.sig_ignored.0, mask, pending, stopped).ok_or_else(|| {
        let what = "it handles or has pending every signal that could be used to park it";
        Error::unsupported(what).advice(match stopped {
            true => "SIGCONT would do if it were not stopped: let it go on first",
            false => "one of URG, WINCH, CHLD, CONT must be free, or any signal ignored",
        })
    })
}

/// /proc/TID/status of frozen threads.
pub(crate) fn statuses(process: &Process, frozen: &[FrozenThread]) -> Result<Vec<Status>> {
    frozen.iter().map(|f| process.thread_status(f.thread.tid())).collect()
}

/// Makes frozen threads visitors; what is kept of each meanwhile.
/// Refuses those whose filters may answer calls of ours with SIGKILL.
pub(crate) fn visitors(
    process: &Process,
    frozen: Vec<FrozenThread>,
    statuses: &[Status],
) -> Result<(Vec<Visitor>, Vec<Kept>)> {
    let stopped = frozen.iter().any(|frozen| frozen.thread.group_stop().is_some());
    let visitor = |(FrozenThread { thread, kept }, status): (FrozenThread, &Status)| {
        refuse_seccomp(process, kept.tid, status)?;
        let signal = park_signal_of(status, kept.mask, stopped)?;
        let last = |ids: &[i32]| ids.last().copied().unwrap_or(kept.tid);
        let own = Ids { pid: last(&status.ns_tgid), tid: last(&status.ns_pid) };
        Ok((Visitor { thread, own, raw: kept.raw, mask: kept.mask, signal }, kept))
    };
    frozen.into_iter().zip(statuses).map(visitor).collect()
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
    layout::free_range(&mut taken, Visit::slot_len(threads))
}

/// Mappings that may be slots a dead coordinator left.
pub(crate) fn slots_in(maps: &[Mapping]) -> Vec<Span> {
    let slot = |m: &&Mapping| m.read && m.write && m.exec && !m.shared && m.is_anonymous();
    maps.iter().filter(slot).map(|m| Span { start: m.start, len: m.len() as usize }).collect()
}

/// Visits a process that stands still once more.
pub(crate) fn visit_again<T>(
    process: &Process,
    threads: Vec<Stopped>,
    work: impl FnOnce(&mut Visit) -> Result<T>,
) -> Result<(Vec<Stopped>, T)> {
    let mut frozen = Vec::with_capacity(threads.len());
    for thread in threads {
        let (raw, mask) = (thread.regs()?, thread.sigmask()?);
        let restart = RestartBlock::default();
        let kept = Kept { tid: thread.tid(), raw, saved: raw, restart, mask, unsettled: false };
        frozen.push(FrozenThread { thread, kept });
    }
    let maps = process.proc.parse_long("maps", parse_maps)?;
    let statuses = statuses(process, &frozen)?;
    let (visitors, kept) = visitors(process, frozen, &statuses)?;
    let texts = texts_in(&maps);
    let traces = Traces::find(process.witness, &texts, &slots_in(&maps));
    let mut visit = Visit::enter(process.pid, visitors, &texts, slot_address(&maps, kept.len())?)?;
    visit.unmap_stale(&traces.slots)?;
    let done = work(&mut visit);
    let threads = visit.leave()?;
    Ok((threads, done?))
}
