//! Reading ahead: what takes longest to read of processes that stand still is read by a thread of its own, while others
//! are visited.
//!
//! That is /proc/PID/smaps, for which the kernel walks all page tables. What a visit maps for itself must not be in it:
//! whoever shares an address space with a process that has been visited is read again in its turn.

use crate::{
    error::Result,
    objects::Objects,
    resource::mm,
    task::{ProcDir, Process},
    tree::FrozenProcess,
};
use ckpt_kernel::query::Kcmp;
use ckpt_proc::maps::Mapping;
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
};

/// As many as are read before their turn.
const AHEAD: usize = 16;

/// The mappings of the processes of a tree, in their order.
#[derive(Debug)]
pub(crate) struct Ahead(Option<Receiver<Result<Vec<Mapping>>>>);

impl Ahead {
    /// Begins to read. A single process has its turn at once.
    pub(crate) fn of(tree: &[FrozenProcess]) -> Ahead {
        let living = tree.iter().filter(|member| !member.is_zombie());
        let all: Vec<Arc<ProcDir>> = living.map(|member| Arc::clone(&member.process.proc)).collect();
        if all.len() < 2 {
            return Ahead(None);
        }
        let (sender, receiver) = sync_channel(AHEAD);
        // It ends with the last of them, or when nobody waits for more.
        thread::spawn(move || {
            all.iter().map(|proc| mm::mappings(proc)).all(|read| sender.send(read).is_ok())
        });
        Ahead(Some(receiver))
    }

    /// Those of the next one that lives.
    pub(crate) fn next(&self, process: &Process, objects: &Objects) -> Result<Vec<Mapping>> {
        let read = self.0.as_ref().and_then(|receiver| receiver.recv().ok());
        match read {
            Some(read) if objects.holder(Kcmp::Vm, process.witness)?.is_none() => read,
            _ => mm::mappings(&process.proc),
        }
    }
}
