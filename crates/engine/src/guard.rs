//! What the guardian does when a checkpoint is killed: takes the slot and the stub out of the
//! tasks, once none of them is in there any more, and freezes again what was thawed.

use crate::{
    error::{Error, Result},
    freeze::{Asked, Purpose, freeze, thaw},
    freezer::Freezer,
    frost::{Chill, Frost},
    options::Silent,
    resource::call,
    task::Process,
    visiting::{slot_address, slots_in, statuses, texts_in, visitors},
};
use ckpt_image::record::Regs;
use ckpt_kernel::{
    Errno,
    guardian::Guardian,
    memory::{self, Span},
    query,
    reaper::Reaper,
    visit::{Traces, Visit},
};
use ckpt_proc::maps::{Mapping, parse_maps};
use std::{io::Write, time::Duration};

/// How long a thread may stay in our code (in a signal handler that interrupted its way home).
const ATTEMPTS: u32 = 200;
/// Time between attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// How much of a stack is searched for a way back into our code.
const STACK: usize = 64 << 10;

/// Posts a guardian; which processes it watches over is told to it when they are known. `frost` is
/// what is thawed for the visit, `chill` what will be frozen for it alone: that is only thawed in the end.
pub(crate) fn post(frost: &Frost, chill: Option<&Chill>) -> Result<Guardian> {
    let own = chill.and_then(Chill::own);
    Ok(Guardian::start(|pids| {
        let _thawed = Thaw(own.as_ref());
        // At once. What is frozen was so before its tasks were let go if the image was being written by then.
        refreeze(frost);
        let marked = |pid: &i32| Process::open(*pid).is_ok_and(|p| look(&p).is_ok_and(|l| !l.1.is_empty()));
        if !frost.is_empty() {
            if !pids.iter().any(marked) {
                return;
            }
            let _ = frost.set(false);
        }
        let reaper = Reaper::start();
        clean_all(pids);
        drop(reaper);
        refreeze(frost);
    })?)
}

/// Thaws a cgroup when it is dropped.
struct Thaw<'a>(Option<&'a Freezer>);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.map(|freezer| freezer.set(false)) {
            complain(&error);
        }
    }
}

fn refreeze(frost: &Frost) {
    if let Err(error) = frost.set(true) {
        complain(&error);
    }
}

/// Nobody else is left who could say it.
fn complain(error: &Error) {
    let _ = std::io::stderr().write_all(format!("checkpoint: warning: {error}\n").as_bytes());
}

/// Cleans processes, in 2 s at most.
fn clean_all(pids: &[i32]) {
    let mut left = pids.to_vec();
    for _ in 0..ATTEMPTS {
        // Most are home by themselves within that.
        std::thread::sleep(PAUSE);
        left.retain(|pid| match Process::open(*pid) {
            Ok(mut process) => !clean(&mut process).unwrap_or(false),
            // One that has ended needs nothing any more.
            Err(_) => !query::kill(*pid, 0).is_err_and(|e| e.errno() == Some(Errno::SRCH)),
        });
        if left.is_empty() {
            return;
        }
    }
    // Nobody else is left who could say it; the next checkpoint of the process cleans up as well.
    for pid in left {
        let label = Process::open(pid).map_or_else(|_| format!("pid {pid}"), |process| process.label());
        let line = format!(
            "checkpoint: warning: {label} goes on, but memory of ours could not be taken out of it\n"
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Whether nothing of ours is in the process (any more).
fn clean(process: &mut Process) -> Result<bool> {
    if look(process)?.1.is_empty() {
        return Ok(true);
    }
    let stat = process.stat()?;
    let mut frozen = freeze(process, &stat, Purpose::Visit, &mut Asked::default(), &mut Silent)?.threads;
    // Only now does nothing move: a thread on its way home may have mapped the slot meanwhile.
    let (maps, traces) = look(process)?;
    let (texts, spans) = (texts_in(&maps), traces.spans());
    if frozen.iter().any(|f| is_inside(f.kept.tid, &f.kept.raw, &spans)) {
        // One that sleeps in there would not come out before its time: it goes home, and sleeps on there.
        frozen
            .iter_mut()
            .filter(|f| call::waits(&f.kept.raw) && is_at(f.kept.raw.rip, &spans))
            .try_for_each(|f| f.thread.set_regs(&Regs { rax: 0, orig_rax: u64::MAX, ..f.kept.raw }))?;
        thaw(process, frozen.into_iter().map(|f| f.thread).collect())?;
        return Ok(false);
    }
    let statuses = statuses(process, &frozen)?;
    let (visitors, kept) = visitors(process, frozen, &statuses)?;
    let mut visit = Visit::enter(process.pid, visitors, &texts, slot_address(&maps, kept.len())?)?;
    visit.unmap_stale(&traces.slots)?;
    thaw(process, visit.leave()?)?;
    Ok(true)
}

/// The mappings, and what of ours is in them.
fn look(process: &Process) -> Result<(Vec<Mapping>, Traces)> {
    let maps = process.proc.parse_long("maps", parse_maps)?;
    let traces = Traces::find(process.witness, &texts_in(&maps), &slots_in(&maps));
    Ok((maps, traces))
}

/// Whether an address is in one of `spans`.
fn is_at(address: u64, spans: &[Span]) -> bool {
    spans.iter().any(|s| address.wrapping_sub(s.start) < s.len as u64)
}

/// Whether a thread that stands still with these registers runs our code, which is in `spans`, or will return
/// to it.
pub(crate) fn is_inside(tid: i32, raw: &Regs, spans: &[Span]) -> bool {
    let ours = |address: u64| is_at(address, spans);
    if spans.is_empty() || ours(raw.rip) {
        return !spans.is_empty();
    }
    let mut stack = vec![0; STACK];
    let mut len = STACK;
    while len > 0 && memory::read(tid, raw.rsp, stack.get_mut(..len).unwrap_or_default()).is_err() {
        len /= 2;
    }
    let words = stack.get(..len).unwrap_or_default().chunks_exact(8);
    words.filter_map(|w| w.try_into().ok()).map(u64::from_le_bytes).any(ours)
}
