//! The ids that a tree's tasks have in its own pid namespace, when that is one below ours.
//!
//! We know tasks by the ids that our /proc shows; an image knows them by those of the root's
//! namespace, so that it is the same image wherever it was taken from. A leader outside of the
//! namespace has no id there: 0, as the kernel says.

use crate::{
    error::Result,
    resource::file::pidfd,
    task::{ProcDir, Process},
    tree::FrozenProcess,
};
use ckpt_image::{Image, Object};
use ckpt_proc::status::{Status, parse_status};
use std::collections::BTreeMap;

/// By our id, that of the tree's namespace. None when that is ours.
#[derive(Debug, Default)]
pub(crate) struct Names(Option<BTreeMap<i32, i32>>);

impl Names {
    /// Those of a tree that stands still.
    pub(crate) fn of(tree: &[FrozenProcess]) -> Result<Names> {
        let depth = |status: &Status| status.ns_pid.len();
        let Some(root) = tree.first() else { return Ok(Names::default()) };
        if depth(&root.process.status()?) == depth(&ProcDir::own()?.parse("status", parse_status)?) {
            return Ok(Names::default());
        }
        let mut names = BTreeMap::new();
        for process in tree.iter().map(|member| &member.process) {
            for tid in process.tids()? {
                let status = process.thread_status(tid)?;
                names.extend(Some(tid).zip(status.ns_pid.last().copied()));
                if tid == process.pid {
                    names.extend(leaders(process, &status)?);
                }
            }
        }
        Ok(Names(Some(names)))
    }

    /// Its name for the task that we know as `id`, 0 if it has none.
    pub(crate) fn own(&self, id: i32) -> i32 {
        self.0.as_ref().map_or(id, |names| names.get(&id).copied().unwrap_or(0))
    }

    /// Gives every task of an image its own name.
    pub(crate) fn apply(&self, image: &mut Image) {
        if self.0.is_none() {
            return;
        }
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
                    pidfd::rename(file, |id| self.own(id));
                }
                _ => {}
            }
        }
    }
}

/// Session and group of a process, which may have no leader any more.
fn leaders(process: &Process, status: &Status) -> Result<Vec<(i32, i32)>> {
    let stat = process.stat()?;
    let ids = [(stat.pgrp, &status.ns_pgid), (stat.session, &status.ns_sid)];
    Ok(ids.into_iter().filter_map(|(id, own)| Some((id, *own.last()?))).collect())
}
