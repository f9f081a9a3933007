//! The tree below a process: finding its members and stopping them all.
//!
//! A tree changes while it is looked at. But a stopped parent makes no more children, so the tree
//! is stopped from the root down, level by level, pass after pass, until a whole pass finds nobody new: then it is
//! one consistent cut, for nothing is read of anybody before everybody stands still. An orphan
//! whose subreaper is inside the tree turns up in a later pass under its new parent: hence a pass in
//! which somebody was found and had ended by then is not the last. Its children may have become those of one
//! whose children were read before; and reading a list from which one vanishes may leave out another.

use crate::{
    admit::Admission,
    error::{Context, Error, Result},
    freeze::{Asked, Frozen, FrozenThread, Purpose, freeze},
    options::{Observer, interrupted},
    task::{Process, show},
};
use ckpt_kernel::tracee::Stopped;
use ckpt_proc::stat::Stat;
use std::collections::BTreeSet;

/// The holds on all threads of a tree, by process.
pub(crate) type Held = Vec<(Process, Vec<Stopped>)>;

/// A process that stands still, or is a zombie.
#[derive(Debug)]
pub(crate) struct FrozenProcess {
    /// The process.
    pub(crate) process: Process,
    /// Its living threads, the leader first; none of a zombie.
    pub(crate) threads: Vec<FrozenThread>,
    /// A job-control signal had stopped it before we came.
    pub(crate) stopped: bool,
    /// The thread of its parent whose child it is.
    pub(crate) parent_tid: i32,
}

impl FrozenProcess {
    /// Whether it has ended and waits for its parent.
    pub(crate) fn is_zombie(&self) -> bool {
        self.threads.is_empty()
    }
}

/// The children of threads of a process, each with the one it is a child of.
fn children(process: &Process, tids: impl IntoIterator<Item = i32>) -> Result<Vec<(i32, i32)>> {
    let mut children = Vec::new();
    for tid in tids {
        // A thread may have ended since; the leader's file is there as long as the process is.
        let text = match process.proc.read(&format!("task/{tid}/children")) {
            Err(error) if tid == process.pid && process.stat().is_ok() => {
                return Err(error.advice("the kernel must have CONFIG_PROC_CHILDREN"));
            }
            other => other.unwrap_or_default(),
        };
        let pids = text.split(|b| *b == b' ').filter_map(|pid| show(pid).parse::<i32>().ok());
        children.extend(pids.map(|pid| (tid, pid)));
    }
    Ok(children)
}

/// Whether a process has ended; a leader whose other threads live has not.
pub(crate) fn has_ended(process: &Process) -> bool {
    process.stat().map_or(true, |stat| stat.process_has_ended())
}

/// The members of the tree as it is right now, a parent before its children.
pub(crate) fn members(root: i32) -> Result<Vec<Process>> {
    let mut members = vec![Process::look(root)?];
    let mut known = BTreeSet::from([root]);
    let mut next = 0;
    while let Some((process, stat)) = members.get(next) {
        let tids = process.tids_at(stat);
        let children = tids.and_then(|tids| children(process, tids)).unwrap_or_default();
        let pids = children.into_iter().map(|(_, pid)| pid);
        members.extend(pids.filter(|pid| known.insert(*pid)).flat_map(Process::look));
        next += 1;
    }
    Ok(members.into_iter().map(|(process, _)| process).collect())
}

/// So many processes, or threads of one, are a crowd, which is asked to stop all at once.
const CROWD: usize = 16;

/// Stops the tree below `root`, a parent before its children. The threads in `asked` are about to stop.
pub(crate) fn freeze_tree(
    root: i32,
    admission: &Admission,
    mut asked: Asked,
    observer: &mut dyn Observer,
) -> Result<Vec<FrozenProcess>> {
    let first = hold(Process::look(root)?, admission, &mut asked, observer)?;
    let first = first.filter(|root| !root.is_zombie());
    let mut tree = vec![first.ok_or_else(|| Error::failed(format!("the process {root} ended")))?];
    let mut known = BTreeSet::from([root]);
    loop {
        let (mut quiet, mut next) = (true, 0);
        while next < tree.len() {
            let found = strangers(tree.get(next..).unwrap_or_default(), &mut known)?;
            next = tree.len();
            quiet &= found.is_empty();
            let looked: Vec<_> =
                found.into_iter().map(|(parent, pid)| (parent, pid, Process::look(pid).ok())).collect();
            if looked.len() >= CROWD {
                asked.ask(looked.iter().filter_map(|(.., found)| found.as_ref()));
            }
            for (parent_tid, pid, found) in looked {
                let child = found.map(|child| hold(child, admission, &mut asked, observer)).transpose()?;
                match child.flatten() {
                    Some(child) => tree.push(FrozenProcess { parent_tid, ..child }),
                    // Its pid may be given to another child yet.
                    None => drop(known.remove(&pid)),
                }
            }
        }
        if quiet {
            return Ok(tree);
        }
    }
}

/// The children of processes that stand still which are not `known` yet, and are then: each with the thread it is a child
/// of.
fn strangers(parents: &[FrozenProcess], known: &mut BTreeSet<i32>) -> Result<Vec<(i32, i32)>> {
    let mut found = Vec::new();
    for parent in parents {
        // One that stands still has no others.
        let tids = parent.threads.iter().map(|thread| thread.kept.tid);
        let children = children(&parent.process, tids)?;
        found.extend(children.into_iter().filter(|(_, pid)| known.insert(*pid)));
    }
    Ok(found)
}

/// Stops one process; `None` when it is gone.
fn hold(
    found: (Process, Stat),
    admission: &Admission,
    asked: &mut Asked,
    observer: &mut dyn Observer,
) -> Result<Option<FrozenProcess>> {
    interrupted(observer)?;
    if usize::try_from(found.1.num_threads).is_ok_and(|threads| threads >= CROWD) {
        asked.ask(std::iter::once(&found));
    }
    let (mut process, stat) = found;
    let held = |process, Frozen { threads, stopped }| {
        Ok(Some(FrozenProcess { process, threads, stopped, parent_tid: 0 }))
    };
    let ended = Frozen { threads: Vec::new(), stopped: false };
    if stat.process_has_ended() {
        return if process.stat().is_ok() { held(process, ended) } else { Ok(None) };
    }
    // Stopped first: until then it may make children faster than we look at it.
    let frozen = freeze(&mut process, &stat, Purpose::Image, asked, observer)
        .and_then(|frozen| admission.readmit(&process, &frozen.threads).map(|()| frozen))
        .task(|| process.label());
    match frozen {
        Ok(frozen) => held(process, frozen),
        // It ended while it was being stopped.
        Err(_) if process.stat().is_err() => Ok(None),
        Err(_) if has_ended(&process) => held(process, ended),
        Err(error) => Err(error),
    }
}
