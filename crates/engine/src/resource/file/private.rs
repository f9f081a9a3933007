//! Files that one process alone has, where there are many of them.
//!
//! Whoever is forked has all descriptors of its maker, and the first puppet those of the coordinator: of P processes
//! with F files each, that would be P * P * F descriptors to be copied and closed again. So if it is worth it the
//! puppets share one table while they are made. What no other table refers to is opened last of all, in the order of
//! the processes, above everything else:
//!
//! | what several need | of the first process | of the second | ... |
//! |---|---|---|---|
//!
//! When all are made, one after the other closes what those before it had, and leaves with a copy of the table up to
//! the end of its own (close_range(2), CLOSE_RANGE_UNSHARE, Linux 5.9).

use super::placement;
use crate::error::Result;
use ckpt_image::{
    Image, Object, Objref,
    record::{file_kind, task_state},
};
use ckpt_kernel::{program::Program, puppet::Puppet};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// A step of its own for each process costs about as much as it takes to copy and close so many descriptors.
const WORTH_IT: usize = 256;

/// The files of an image that one process alone has.
#[derive(Debug)]
pub(crate) struct Private {
    /// The table that refers to each.
    owners: BTreeMap<Objref, Objref>,
    /// The first number of all of them.
    first: i32,
    /// The numbers of those of each table.
    numbers: BTreeMap<Objref, Range<i32>>,
}

impl Private {
    /// Finds them; `None` if it is not worth it, or some processes share what it takes.
    pub(crate) fn find(image: &Image) -> Option<Private> {
        let living = || image.processes.iter().filter(|p| p.task.state != task_state::ZOMBIE);
        // In the order of the processes.
        let mut tables = BTreeMap::new();
        for (at, process) in living().enumerate() {
            // Threads that are made early, to have children, would stay behind in the common table.
            let of_thread = ![0, process.task.ppid].contains(&process.task.parent_tid);
            if tables.insert(process.task.files, at).is_some() || of_thread {
                return None;
            }
        }
        if tables.len() < 2 {
            return None;
        }
        let mut users: BTreeMap<Objref, BTreeSet<Objref>> = BTreeMap::new();
        let mut others = BTreeSet::new();
        for (objref, object) in &image.objects {
            match object {
                Object::Files(table) => table.descs.iter().for_each(|desc| {
                    users.entry(desc.file).or_default().insert(*objref);
                }),
                Object::Mm(mm) => {
                    others.extend(mm.vmas.iter().map(|vma| vma.record.object).chain([mm.record.exe]));
                }
                _ => {}
            }
        }
        let regular = |file: &Objref| image.file(*file).is_some_and(|f| f.record.kind == file_kind::REGULAR);
        let private = users.into_iter().filter(|(file, _)| regular(file) && !others.contains(file));
        let owners: BTreeMap<Objref, Objref> = private
            .filter(|(_, users)| users.len() == 1)
            .filter_map(|(f, u)| Some((f, *u.first()?)))
            .collect();
        let order = owners.values().map(|table| tables.get(table));
        let orderly = order.clone().all(|at| at.is_some()) && order.is_sorted();
        (owners.len() > WORTH_IT && orderly).then(|| Private { owners, first: 0, numbers: BTreeMap::new() })
    }

    /// Whether a file is one of them.
    pub(crate) fn has(&self, file: Objref) -> bool {
        self.owners.contains_key(&file)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.owners.len()
    }

    /// They have numbers from `first` on.
    pub(crate) fn begin(&mut self, first: i32) {
        self.first = first;
    }

    /// One of them, the next one, has this number.
    pub(crate) fn add(&mut self, file: Objref, number: i32) {
        if let Some(table) = self.owners.get(&file) {
            self.numbers.entry(*table).or_insert(number..number).end = number + 1;
        }
    }

    /// Gives a puppet, whose descriptor table is to be `table`, one of its own. Those of the processes before it have
    /// theirs.
    pub(crate) fn leave(&self, puppet: &mut Puppet, table: Objref) -> Result<()> {
        let own = self.numbers.get(&table).cloned().unwrap_or(self.first..self.first);
        let mut program = Program::new();
        if own.start > self.first {
            placement::close(&mut program, self.first, own.start as u32 - 1);
        }
        placement::part(&mut program, own.end);
        puppet.run(0, program)?;
        Ok(())
    }
}
