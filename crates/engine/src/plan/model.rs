//! A model of the kernel's process tree, strict about its rules, to make histories and run plans.

use super::{Group, Node, Plan, Step};
use std::collections::BTreeMap;

/// Outside of the tree: numbers that no node has.
pub(super) const INIT: i32 = -1;
pub(super) const OUTER_SESSION: i32 = -2;
pub(super) const RESTARTER: i32 = -3;
pub(super) const OUTER_GROUP: i32 = -4;

#[derive(Clone, Debug)]
pub(super) struct Proc {
    pub(super) parent: i32,
    pub(super) sid: i32,
    pub(super) pgid: i32,
    pub(super) exit_signal: i32,
    pub(super) subreaper: bool,
    pub(super) zombie: bool,
    /// Has forked, or is no longer what its maker made.
    pub(super) active: bool,
}

pub(super) type Outcome<T = ()> = Result<T, String>;

/// All processes, and how many are in each group and session.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    pub(super) procs: BTreeMap<i32, Proc>,
    children: BTreeMap<i32, Vec<i32>>,
    sessions: BTreeMap<i32, usize>,
    /// By group and its session.
    groups: BTreeMap<(i32, i32), usize>,
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}

fn take_one<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    match counts.get_mut(&key) {
        Some(count) if *count > 1 => *count -= 1,
        _ => _ = counts.remove(&key),
    }
}

impl Kernel {
    /// Init, and the restarter (a subreaper) in a session and group of others.
    pub(super) fn new() -> Self {
        let mut kernel = Kernel::default();
        let init = Proc {
            parent: 0,
            sid: INIT,
            pgid: INIT,
            exit_signal: 0,
            subreaper: true,
            zombie: false,
            active: true,
        };
        kernel.insert(INIT, init.clone());
        let restarter = Proc { parent: INIT, sid: OUTER_SESSION, pgid: OUTER_GROUP, ..init };
        kernel.insert(RESTARTER, restarter);
        kernel
    }

    fn insert(&mut self, pid: i32, proc: Proc) {
        self.children.entry(proc.parent).or_default().push(pid);
        self.enter(proc.sid, proc.pgid);
        self.procs.insert(pid, proc);
    }

    fn enter(&mut self, sid: i32, pgid: i32) {
        *self.sessions.entry(sid).or_default() += 1;
        *self.groups.entry((pgid, sid)).or_default() += 1;
    }

    fn leave(&mut self, sid: i32, pgid: i32) {
        take_one(&mut self.sessions, sid);
        take_one(&mut self.groups, (pgid, sid));
    }

    fn is_group(&self, pgid: i32) -> bool {
        self.groups.range((pgid, i32::MIN)..=(pgid, i32::MAX)).next().is_some()
    }

    pub(super) fn in_use(&self, pid: i32) -> bool {
        self.procs.contains_key(&pid) || self.sessions.contains_key(&pid) || self.is_group(pid)
    }

    fn alive(&mut self, pid: i32) -> Outcome<&mut Proc> {
        let proc = self.procs.get_mut(&pid).ok_or_else(|| format!("no process {pid}"))?;
        if proc.zombie { Err(format!("{pid} is a zombie")) } else { Ok(proc) }
    }

    pub(super) fn fork(&mut self, maker: i32, pid: i32, exit_signal: i32, sibling: bool) -> Outcome {
        check(!self.in_use(pid), || format!("EEXIST: {pid}"))?;
        let forker = self.alive(maker)?;
        forker.active = true;
        let mut child = Proc { subreaper: false, active: false, ..forker.clone() };
        if sibling {
            check(exit_signal == 0 && maker != RESTARTER, || format!("EINVAL: a sibling of {maker}"))?;
        } else {
            (child.parent, child.exit_signal) = (maker, exit_signal);
        }
        self.insert(pid, child);
        Ok(())
    }

    pub(super) fn setsid(&mut self, pid: i32) -> Outcome {
        check(!self.is_group(pid), || format!("EPERM: setsid of leader {pid}"))?;
        let proc = self.alive(pid)?;
        let before = (proc.sid, proc.pgid);
        (proc.sid, proc.pgid) = (pid, pid);
        self.leave(before.0, before.1);
        self.enter(pid, pid);
        Ok(())
    }

    pub(super) fn setpgid(&mut self, pid: i32, pgid: i32) -> Outcome {
        let Proc { sid, pgid: before, .. } = *self.alive(pid)?;
        check(sid != pid, || format!("EPERM: setpgid of session leader {pid}"))?;
        check(pid == pgid || self.groups.contains_key(&(pgid, sid)), || {
            format!("EPERM: {pid} into group {pgid}")
        })?;
        check(before != pgid, || format!("superfluous: {pid} into group {pgid}"))?;
        self.alive(pid)?.pgid = pgid;
        self.leave(sid, before);
        self.enter(sid, pgid);
        Ok(())
    }

    pub(super) fn exit(&mut self, pid: i32) -> Outcome {
        let proc = self.alive(pid)?;
        proc.zombie = true;
        let mut reaper = proc.parent;
        let Some(children) = self.children.remove(&pid) else { return Ok(()) };
        while !self.procs[&reaper].subreaper || self.procs[&reaper].zombie {
            reaper = self.procs[&reaper].parent;
        }
        for child in children {
            let orphan = self.procs.get_mut(&child).unwrap();
            (orphan.parent, orphan.exit_signal) = (reaper, libc::SIGCHLD);
            self.children.entry(reaper).or_default().push(child);
        }
        Ok(())
    }

    pub(super) fn reap(&mut self, parent: i32, pid: i32) -> Outcome {
        let is_child = self.procs.get(&pid).is_some_and(|p| p.zombie && p.parent == parent);
        check(is_child, || format!("ECHILD: {parent} waits for {pid}"))?;
        let proc = self.procs.remove(&pid).unwrap();
        self.leave(proc.sid, proc.pgid);
        self.children.get_mut(&parent).unwrap().retain(|child| *child != pid);
        Ok(())
    }

    /// The tree below and with `root`, parents first.
    pub(super) fn tree(&self, root: i32) -> Vec<Node> {
        let mut pids = vec![root];
        let mut at = 0;
        while at < pids.len() {
            pids.extend(self.children.get(&pids[at]).into_iter().flatten());
            at += 1;
        }
        let node = |pid: i32| {
            let Proc { parent: ppid, sid, pgid, exit_signal, zombie, .. } = self.procs[&pid];
            Node { pid, ppid, pgid, sid, exit_signal, zombie, ..Node::default() }
        };
        pids.into_iter().map(node).collect()
    }
}

/// Carries out a plan on a fresh kernel and compares the tree with `nodes`. `apart`: nobody can join the
/// group of the restarter.
pub(super) fn run(nodes: &[Node], plan: &Plan, apart: bool) -> Outcome {
    let mut kernel = Kernel::new();
    let mut begun = std::collections::BTreeSet::from([0]);
    let pidns = |task: usize| match nodes.get(task) {
        Some(node) => node.pidns,
        None => plan.ghosts[task - nodes.len()].pidns,
    };
    let pid = |task: usize| match nodes.get(task) {
        Some(node) => node.pid,
        None => plan.ghosts[task - nodes.len()].pid.unwrap_or(1_000_000 + task as i32),
    };
    let pid_or_restarter = |task: Option<usize>| task.map_or(RESTARTER, pid);
    for step in &plan.steps {
        match *step {
            Step::Setpgid(task, Group::Of(leader)) if nodes.get(task).is_some_and(|node| node.bound) => {
                check(nodes[task].pgid != pid(leader), || format!("{} is bound", pid(task)))?;
            }
            Step::Setpgid(task, Group::Restarter) if apart => Err(format!("{} cannot join", pid(task)))?,
            _ => {}
        }
        match *step {
            Step::Fork { maker, task, sibling } => {
                let init = nodes.get(task).is_some_and(|node| node.init);
                check(begun.contains(&pidns(task)) != init, || format!("no process 1 for {}", pid(task)))?;
                begun.insert(pidns(task));
                let signal = match nodes.get(task) {
                    _ if sibling => 0,
                    Some(node) => node.exit_signal,
                    None => plan.ghosts[task - nodes.len()].exit_signal,
                };
                kernel.fork(pid_or_restarter(maker), pid(task), signal, sibling)?;
            }
            Step::Setsid(task) => kernel.setsid(pid(task))?,
            Step::Setpgid(task, Group::Own) => kernel.setpgid(pid(task), pid(task))?,
            Step::Setpgid(task, Group::Of(leader)) => {
                check(task != leader, || format!("{} joins itself", pid(task)))?;
                kernel.setpgid(pid(task), pid(leader))?;
            }
            Step::Setpgid(task, Group::Restarter) => kernel.setpgid(pid(task), OUTER_GROUP)?,
            Step::Subreaper(task, on) => kernel.alive(pid(task))?.subreaper = on,
            Step::Exit { ghost, parent } => {
                check(ghost >= nodes.len(), || format!("{} is no ghost", pid(ghost)))?;
                kernel.exit(pid(ghost))?;
                kernel.reap(pid_or_restarter(parent), pid(ghost))?;
            }
        }
    }
    compare(nodes, &kernel)
}

fn compare(nodes: &[Node], kernel: &Kernel) -> Outcome {
    check(kernel.procs.len() == nodes.len() + 2, || "a ghost stays behind".into())?;
    let root = nodes[0];
    let pids: std::collections::BTreeSet<i32> = nodes.iter().map(|n| n.pid).collect();
    let is_outer = |sid| sid == root.sid && !pids.contains(&sid);
    // Of the outside groups the root's is the restarter's; if that is inside, 0 is.
    let outer_group = if pids.contains(&root.pgid) { 0 } else { root.pgid };
    for (index, node) in nodes.iter().enumerate() {
        let outer = is_outer(node.sid);
        let got = kernel.procs.get(&node.pid).ok_or_else(|| format!("{} is missing", node.pid))?;
        let wanted = (
            if index == 0 { RESTARTER } else { node.ppid },
            if outer { OUTER_SESSION } else { node.sid },
            if outer && node.pgid == outer_group { OUTER_GROUP } else { node.pgid },
            (node.exit_signal, false, false),
        );
        let got = (got.parent, got.sid, got.pgid, (got.exit_signal, got.subreaper, got.zombie));
        check(got == wanted, || format!("{}: {got:?}, wanted {wanted:?}", node.pid))?;
    }
    Ok(())
}
