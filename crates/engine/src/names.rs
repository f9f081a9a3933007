//! The ids that a tree's tasks have in its own pid namespace, and in those below that.
//!
//! We know tasks by the ids that our /proc shows; an image knows them by those of the root's
//! namespace, so that it is the same image wherever it was taken from. A leader outside of the
//! namespace has no id there: 0, as the kernel says. Of those in nested namespaces it has, besides,
//! what `resource/pidns.rs` says.

use crate::{
    error::{Context, Error, Result},
    puppets::label,
    resource::{
        file::{mqueue, pidfd, proc},
        pidns,
    },
    task::{ProcDir, Process},
    tree::FrozenProcess,
};
use ckpt_image::{
    Image, Object, model,
    record::{PidLevel, children_pidns},
};
use ckpt_proc::status::{Status, parse_status};
use std::collections::BTreeMap;

/// Ids of the tasks of a tree.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// The tree's namespace is below ours.
    below: bool,
    /// Where it stands in the lists of `ids`.
    level: usize,
    /// Its link.
    link: Vec<u8>,
    /// By our id, those in every namespace from ours on. Who is in ours alone is not here.
    ids: BTreeMap<i32, Vec<i32>>,
    /// By our pid, those with another namespace than the root's, for themselves or for their children.
    nested: BTreeMap<i32, Nested>,
}

/// A process with a nested pid namespace.
#[derive(Debug)]
struct Nested {
    /// The one it is in, by its link.
    own: Vec<u8>,
    /// The one its children are made in; `None`: one without a process 1.
    children: Option<Vec<u8>>,
    /// Its group and its session in every namespace from ours on.
    pgid: Vec<i32>,
    sid: Vec<i32>,
}

impl Names {
    /// Those of a tree that stands still.
    pub(crate) fn of(tree: &[FrozenProcess]) -> Result<Names> {
        let depth = |status: &Status| status.ns_pid.len();
        let Some(root) = tree.first() else { return Ok(Names::default()) };
        let roots = depth(&root.process.status()?);
        let below = roots != depth(&ProcDir::own()?.parse("status", parse_status)?);
        let link = root.process.proc.readlink("ns/pid")?;
        let mut names = Names { below, level: roots.saturating_sub(1), link, ..Names::default() };
        for member in tree {
            // Who makes children in the root's namespace is in it.
            let kind = if member.is_zombie() { "ns/pid" } else { "ns/pid_for_children" };
            let children = member.process.proc.readlink(kind).ok();
            let nested = children.as_ref() != Some(&names.link);
            if nested || below {
                // One that was on its way to its end may be gone by now: then the tree is another one.
                let added = names.add(&member.process, nested, children).map_err(Error::passing);
                added.task(|| member.process.label())?;
            }
        }
        Ok(names)
    }

    fn add(&mut self, process: &Process, nested: bool, children: Option<Vec<u8>>) -> Result<()> {
        for tid in process.tids()? {
            let status = process.thread_status(tid)?;
            self.ids.insert(tid, status.ns_pid);
            if tid != process.pid {
                continue;
            }
            // They may have no leader any more.
            let stat = process.stat()?;
            for (id, ids) in [(stat.pgrp, &status.ns_pgid), (stat.session, &status.ns_sid)] {
                self.ids.entry(id).or_insert_with(|| ids.clone());
            }
            if nested {
                let own = process.proc.readlink("ns/pid")?;
                let (pgid, sid, children) = (status.ns_pgid, status.ns_sid, children.clone());
                self.nested.insert(process.pid, Nested { own, children, pgid, sid });
            }
        }
        Ok(())
    }

    /// Its name in the root's namespace for the task that we know as `id`, 0 if it has none.
    fn own(&self, id: i32) -> i32 {
        self.at(self.level, id)
    }

    /// The name of the task that we know as `id` in the namespace of process `viewer`.
    pub(crate) fn seen_by(&self, viewer: i32, id: i32) -> i32 {
        self.at(self.ids.get(&viewer).map_or(self.level, |ids| ids.len().saturating_sub(1)), id)
    }

    fn at(&self, level: usize, id: i32) -> i32 {
        match self.ids.get(&id) {
            Some(ids) => ids.get(level).copied().unwrap_or(0),
            None if self.below || level != self.level => 0,
            None => id,
        }
    }

    /// Gives every task of an image its own names.
    pub(crate) fn apply(&self, image: &mut Image) -> Result<()> {
        if !self.nested.is_empty() {
            self.add_levels(image)?;
        }
        if self.below {
            self.rename(image);
        }
        Ok(())
    }

    fn rename(&self, image: &mut Image) {
        let rename = |ids: &mut [&mut i32]| ids.iter_mut().for_each(|id| **id = self.own(**id));
        rename(&mut [&mut image.tree.root]);
        for process in &mut image.processes {
            let task = &mut process.task;
            rename(&mut [&mut task.pid, &mut task.ppid, &mut task.pgid, &mut task.sid, &mut task.tpgid]);
            rename(&mut [&mut task.parent_tid]);
            process.threads.iter_mut().for_each(|thread| rename(&mut [&mut thread.record.tid]));
        }
        for object in image.objects.values_mut() {
            match object {
                Object::Signal(signal) => signal.timers.iter_mut().for_each(|t| rename(&mut [&mut t.tid])),
                Object::File(file) => {
                    rename(&mut [&mut file.record.owner]);
                    file.locks.iter_mut().for_each(|lock| rename(&mut [&mut lock.pid]));
                    mqueue::rename(file, |pid| self.own(pid));
                    proc::rename(file, |id| self.own(id));
                    pidfd::rename(file, |id| self.own(id));
                }
                _ => {}
            }
        }
    }

    /// The ids in nested namespaces. Those of the image are still ours.
    fn add_levels(&self, image: &mut Image) -> Result<()> {
        let paths = self.paths(&image.processes);
        for process in &mut image.processes {
            let name = label(process);
            self.levels(process, &paths).task(|| name)?;
        }
        Ok(())
    }

    fn levels(&self, process: &mut model::Process, paths: &BTreeMap<&[u8], Vec<u32>>) -> Result<()> {
        let Some(nested) = self.nested.get(&process.task.pid) else { return Ok(()) };
        let path = paths.get(nested.own.as_slice()).ok_or_else(pidns::foreign)?;
        let at = |ids: Option<&Vec<i32>>, depth: usize| {
            ids.and_then(|ids| ids.get(self.level + 1 + depth)).copied().unwrap_or(0)
        };
        for thread in &mut process.threads {
            let ids = self.ids.get(&thread.record.tid);
            let level = |(depth, pidns): (usize, &u32)| PidLevel {
                pidns: *pidns,
                tid: at(ids, depth),
                pgid: at(Some(&nested.pgid), depth),
                sid: at(Some(&nested.sid), depth),
            };
            thread.levels = path.iter().enumerate().map(level).collect();
        }
        process.task.children_pidns = match &nested.children {
            _ if process.task.state == ckpt_image::record::task_state::ZOMBIE => children_pidns::OWN,
            Some(link) if *link == nested.own => children_pidns::OWN,
            Some(link) => {
                let path = paths.get(link.as_slice()).and_then(|path| path.last());
                *path.ok_or_else(|| Error::unsupported(pidns::CHILDREN_ELSEWHERE))?
            }
            None => children_pidns::NEW,
        };
        pidns::check_end(process)
    }

    /// By link, the numbers that lead from the root's namespace to each nested one. A process 1 is a
    /// child of somebody in the namespace around it.
    fn paths(&self, processes: &[model::Process]) -> BTreeMap<&[u8], Vec<u32>> {
        let mut paths = BTreeMap::from([(self.link.as_slice(), Vec::new())]);
        let own = |pid| self.nested.get(&pid).map_or(self.link.as_slice(), |nested: &Nested| &nested.own);
        loop {
            let before = paths.len();
            for process in processes {
                let pid = process.task.pid;
                let is_init = self.ids.get(&pid).and_then(|ids| ids.last()) == Some(&1);
                let around = paths.get(own(process.task.ppid)).cloned();
                if let Some(mut path) = around.filter(|_| is_init && !paths.contains_key(own(pid))) {
                    path.push(paths.len() as u32);
                    paths.insert(own(pid), path);
                }
            }
            if paths.len() == before {
                return paths;
            }
        }
    }
}
