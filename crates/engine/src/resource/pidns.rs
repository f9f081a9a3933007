//! Pid namespaces below that of the tree's root: containers in the tree, `unshare --pid`.
//!
//! **What the kernel knows.** A task has an id in its pid namespace and one in each around it. It gets
//! them when it is made, in the namespace its maker makes children in: that is the maker's own, a new
//! one (CLONE_NEWPID), or, after unshare(2) or setns(2), another one below its own. The first process
//! made in a namespace is its process 1; orphans come to it, and all end when it ends. Sessions and
//! groups are inherited across; a leader outside has no id inside, 0 is seen in its place, and who
//! does not see it cannot join it.
//!
//! *Saved*: the ids of every level (NSpid, NSpgid and NSsid of /proc/PID/status), a number for each
//! namespace, and where children are made (/proc/PID/ns/pid_for_children; nothing is there when that
//! has no process 1 yet). *Restored*: clone3(2) with an id for each level; process 1 with
//! CLONE_NEWPID; who is not made in its maker's namespace after a setns(2) of the maker, for that
//! moment; unshare(2) or setns(2) at the end where children are made elsewhere. Inner ids are the old
//! ones in every mode: nobody has them in a new namespace. *Lost*: ids by which a leader that has
//! ended was known where nobody is left. *Refused*: a namespace whose process 1 is not in the tree;
//! one that has ended and that children would be made in; a process with threads that makes children
//! elsewhere; a process 1 ended by another signal than SIGKILL. Needs Linux 6.11.

use crate::{
    error::{Error, Result},
    plan::TaskIndex,
    task::{Process, stat_of},
};
use ckpt_image::{
    model,
    record::{PidLevel, task_state},
};
use ckpt_kernel::{Errno, pidns::PidNamespace};
use rustix::fs::OFlags;
use std::collections::BTreeMap;

/// Why a process is refused whose children are made in a namespace that no member is in.
pub(crate) const CHILDREN_ELSEWHERE: &str =
    "its children are made in a pid namespace that has ended, or that is not in the tree";

/// Why a process is refused that is in somebody else's.
pub(crate) fn foreign() -> Error {
    Error::unsupported("it is in a pid namespace whose process 1 is not in the tree")
        .advice("checkpoint the tree that process 1 is in")
}

/// Refuses a thread that is in a pid namespace, or makes children in one, that cannot be carried.
/// `root` is the root of the tree.
pub(crate) fn admit(process: &Process, tid: i32, root: i32) -> Result<()> {
    let name = |kind: &str| format!("task/{tid}/ns/{kind}");
    let Ok(own) = process.proc.readlink(&name("pid")) else { return Ok(()) };
    let children = process.proc.readlink(&name("pid_for_children")).ok();
    let is_inside = |kind: &str| -> Result<bool> {
        let Ok(namespace) = process.proc.open(&name(kind), OFlags::RDONLY) else { return Ok(true) };
        match PidNamespace::behind(namespace).ours(1) {
            Err(ckpt_kernel::Error::Gone { .. }) => Ok(false),
            Err(error) if error.errno() == Some(Errno::NOTTY) => {
                Err(Error::unsupported("it is in a nested pid namespace").advice("that needs Linux 6.11"))
            }
            init => Ok(is_below(init?, root)),
        }
    };
    if tid == process.witness && process.status()?.ns_pid.len() > roots(root) && !is_inside("pid")? {
        return Err(foreign());
    }
    if children.as_ref() == Some(&own) || process.thread_has_ended(tid) {
        return Ok(());
    }
    if process.tids()?.len() > 1 {
        let what = "its children are made in another pid namespace, which cannot be carried of a process with threads";
        return Err(Error::unsupported(what));
    }
    if children.is_some() && !is_inside("pid_for_children")? {
        return Err(Error::unsupported(CHILDREN_ELSEWHERE));
    }
    Ok(())
}

/// In how many pid namespaces the root of the tree is, from ours on.
fn roots(root: i32) -> usize {
    Process::open(root).and_then(|root| root.status()).map_or(usize::MAX, |status| status.ns_pid.len())
}

/// Whether a process is `root` or descends from it.
fn is_below(mut pid: i32, root: i32) -> bool {
    while pid != root {
        match stat_of(pid) {
            Some(stat) if stat.ppid > 0 => pid = stat.ppid,
            _ => return false,
        }
    }
    true
}

/// Refuses a process 1 that has ended in a way in which none can be made to end.
pub(crate) fn check_end(process: &model::Process) -> Result<()> {
    let signal = process.task.exit_code & 0x7f;
    if process.is_init() && process.task.state == task_state::ZOMBIE && ![0, libc::SIGKILL].contains(&signal)
    {
        let what = format!("it was process 1 of its pid namespace and ended by signal {signal}");
        return Err(Error::unsupported(what).advice("try again when its parent has waited for it"));
    }
    Ok(())
}

/// The pid namespaces of an image below its root's.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    /// By number, where each is and its process 1.
    inner: BTreeMap<u32, (Vec<u32>, TaskIndex)>,
    /// Sessions and groups, by their id in the root's namespace: their ids in all that know them.
    leaders: BTreeMap<i32, Vec<PidLevel>>,
}

impl Namespaces {
    /// Those of an image that keeps the rules.
    pub(crate) fn of(processes: &[model::Process]) -> Namespaces {
        let mut all = Namespaces::default();
        for (index, process) in processes.iter().enumerate() {
            let (levels, task) = (process.levels(), &process.task);
            if process.is_init() {
                all.inner.insert(process.pidns(), (levels.iter().map(|level| level.pidns).collect(), index));
            }
            let known = |id: fn(&PidLevel) -> i32| {
                let levels = levels.iter().map(move |level| PidLevel { tid: id(level), ..*level });
                levels.take_while(|level| level.tid != 0).collect::<Vec<_>>()
            };
            for (id, levels) in [(task.pgid, known(|level| level.pgid)), (task.sid, known(|level| level.sid))]
            {
                let most = all.leaders.entry(id).or_default();
                if levels.len() > most.len() {
                    *most = levels;
                }
            }
        }
        all
    }

    /// Process 1 of a namespace.
    pub(crate) fn init(&self, pidns: u32) -> Option<TaskIndex> {
        self.inner.get(&pidns).map(|(_, init)| *init)
    }

    /// Those that are a process 1, a namespace before those in it.
    pub(crate) fn inits(&self) -> Vec<TaskIndex> {
        let mut inits: Vec<_> = self.inner.values().map(|(path, init)| (path.len(), *init)).collect();
        inits.sort_unstable();
        inits.into_iter().map(|(_, init)| init).collect()
    }

    /// The namespace around one, 0 for the root's.
    pub(crate) fn around(&self, pidns: u32) -> u32 {
        let path = self.inner.get(&pidns).map_or(&[][..], |(path, _)| path);
        path.iter().rev().nth(1).copied().unwrap_or(0)
    }

    /// The namespace that a session or group is known to be led from.
    pub(crate) fn home(&self, id: i32) -> u32 {
        self.leaders.get(&id).and_then(|levels| levels.last()).map_or(0, |level| level.pidns)
    }

    /// The inner ids of the leader of a session or group, the innermost first.
    pub(crate) fn ids_of_leader(&self, id: i32) -> Vec<i32> {
        self.leaders.get(&id).into_iter().flatten().rev().map(|level| level.tid).collect()
    }

    /// In how many nested namespaces one in this is.
    pub(crate) fn depth(&self, pidns: u32) -> usize {
        self.inner.get(&pidns).map_or(0, |(path, _)| path.len())
    }
}

/// The ids a thread is to be made with, the innermost first; the last, in the root's namespace, only
/// if it is to have the old one there.
pub(crate) fn set_tid(thread: &model::Thread, new_pids: bool) -> Vec<i32> {
    let inner = thread.levels.iter().rev().map(|level| level.tid);
    inner.chain((!new_pids).then_some(thread.record.tid)).collect()
}
