//! A tree of which tasks are frozen by freezer cgroups: they stay as they are.
//!
//! Visits need tasks that run, so the cgroups are thawed meanwhile. Before that, every task that
//! would run then is seized and asked to stop: it does before it returns to the program. Before the
//! tasks are let go, the cgroups are frozen again. Hence the order that [`Thawed`] keeps: whatever
//! happens, it freezes first and detaches then, and holds on these threads do not detach.
//! A task stopped by a job-control signal needs no seizing: it does not run when it is thawed.

use crate::{
    error::{Context, Error, Result},
    freeze::await_vfork,
    freezer::{Freezer, Freezers, name},
    options::{Observer, interrupted},
    task::{Process, stat_of},
    tree,
};
use ckpt_kernel::{
    procfs,
    tracee::{self, Running, Seize},
};
use ckpt_proc::stat::TaskState;
use std::{collections::BTreeSet, path::Path};

/// The cgroups by which tasks of a tree are frozen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frost {
    freezers: BTreeSet<Freezer>,
}

impl Frost {
    /// Looks at the members of a tree.
    pub(crate) fn find(members: &[Process]) -> Result<Frost> {
        let freezers = Freezers::find()?;
        let (mut frost, mut known) = (Frost::default(), BTreeSet::new());
        for process in members {
            match freezers.freezing(process, &mut known) {
                Ok(found) => frost.freezers.extend(found),
                Err(_) if tree::has_ended(process) => {}
                Err(error) => return Err(error.task(process.label())),
            }
        }
        Ok(frost)
    }

    /// Freezes or thaws all of them.
    pub(crate) fn set(&self, frozen: bool) -> Result<()> {
        // All are tried, whatever becomes of the first.
        self.freezers.iter().map(|freezer| freezer.set(frozen)).fold(Ok(()), Result::and)
    }

    /// Freezes all of them, and waits until they are.
    fn freeze(&self) -> Result<()> {
        self.set(true)?;
        self.freezers.iter().try_for_each(Freezer::freeze)
    }

    /// Whether nothing is frozen.
    pub(crate) fn is_empty(&self) -> bool {
        self.freezers.is_empty()
    }

    /// Thaws them with every task of the tree under our control. Nobody else may be in there.
    pub(crate) fn thaw(self, root: i32) -> Result<Thawed> {
        let mut thawed = Thawed { frost: Frost::default(), seized: BTreeSet::new() };
        if self.is_empty() {
            return Ok(thawed);
        }
        let members = tree::members(root)?;
        let mut own: BTreeSet<i32> = BTreeSet::new();
        for process in members.iter().filter(|process| !tree::has_ended(process)) {
            let tids = process.tids()?;
            await_vfork(process, &tids).task(|| process.label())?;
            own.extend(tids);
        }
        let mut tids = BTreeSet::new();
        for freezer in &self.freezers {
            let held = freezer.tids(&self.freezers);
            if let Some(tid) = held.iter().find(|tid| !own.contains(tid) && !has_ended(**tid)) {
                return Err(stranger(freezer, *tid));
            }
            tids.extend(held);
        }
        tids.into_iter().filter(|tid| !is_stopped(*tid)).try_for_each(|tid| thawed.seize(tid))?;
        thawed.frost = self;
        thawed.frost.set(false)?;
        Ok(thawed)
    }
}

/// Cgroups that are thawed for a while, and the threads in there that we trace. Dropped, it freezes
/// them again, and then lets the threads go.
#[derive(Debug)]
pub(crate) struct Thawed {
    frost: Frost,
    seized: BTreeSet<i32>,
}

impl Thawed {
    /// The threads that are seized and asked to stop, and not to be detached by anybody else.
    pub(crate) fn seized(&self) -> &BTreeSet<i32> {
        &self.seized
    }

    fn seize(&mut self, tid: i32) -> Result<()> {
        // Frozen, no thread of its process executes a program.
        match Running::seize(tid, tid, Seize::Catch).and_then(|running| running.ask()) {
            Ok(()) => {}
            Err(ckpt_kernel::Error::Gone { .. }) => return Ok(()),
            Err(cause) => return Err(Error::from(cause).task(format!("thread {tid}"))),
        }
        self.seized.insert(tid);
        Ok(())
    }

    /// Has the cgroups frozen again from now on, though the threads are ours: should we die, they freeze before they run.
    /// Nothing can be run in them any more.
    pub(crate) fn confine(&self) -> Result<()> {
        self.frost.set(true)
    }

    /// Undoes that, for whoever is to end.
    pub(crate) fn release(&self) -> Result<()> {
        self.frost.set(false)
    }

    /// Freezes the cgroups again, lets the threads go and waits until all is as it was.
    pub(crate) fn freeze(mut self) -> Result<()> {
        let frozen = self.restore();
        let frost = std::mem::take(&mut self.frost);
        frozen.and_then(|()| frost.freeze())
    }

    fn restore(&mut self) -> Result<()> {
        let frozen = self.frost.freeze();
        for tid in std::mem::take(&mut self.seized) {
            // One that has ended, or never stopped, cannot be detached; the latter is let go when we end.
            let _ = tracee::detach(tid);
        }
        frozen
    }
}

impl Drop for Thawed {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            tracing::error!("{error}");
        }
    }
}

/// A task that would run if a cgroup were thawed.
fn stranger(freezer: &Freezer, tid: i32) -> Error {
    let what = format!("{} is frozen and holds {}, which is not of the tree", freezer.label(), name(tid));
    Error::unsupported(what).advice("thaw it, or checkpoint a tree that holds all its tasks")
}

/// A cgroup that is frozen because the caller asked for it. Dropped, it is thawed, if it was we who froze it.
#[derive(Debug)]
pub(crate) struct Chill {
    freezer: Freezer,
    ours: bool,
}

impl Chill {
    /// The cgroup that the caller means by `path`. It is not frozen yet.
    pub(crate) fn find(path: &Path) -> Result<Chill> {
        let freezer = Freezer::at(path)?;
        Ok(Chill { ours: !freezer.is_set(), freezer })
    }

    /// Freezes it, and waits until it is.
    pub(crate) fn cast(&self, observer: &dyn Observer) -> Result<()> {
        if self.ours { self.freezer.freeze_unless(|| interrupted(observer)) } else { Ok(()) }
    }

    /// The cgroup, if it is we who froze it.
    pub(crate) fn own(&self) -> Option<Freezer> {
        self.ours.then(|| self.freezer.clone())
    }

    /// Thaws it.
    pub(crate) fn end(mut self) -> Result<()> {
        if std::mem::take(&mut self.ours) { self.freezer.set(false) } else { Ok(()) }
    }
}

impl Drop for Chill {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = self.freezer.set(false)
        {
            tracing::error!("{error}");
        }
    }
}

/// Whether a task is stopped by a job-control signal. Frozen by v1 it shows state D (Linux 6.1).
pub(crate) fn is_stopped(tid: i32) -> bool {
    let waits = || procfs::read(&format!("{tid}/wchan")).is_ok_and(|at| at == b"do_signal_stop");
    stat_of(tid).is_some_and(|stat| match stat.state {
        TaskState::Stopped => true,
        TaskState::DiskSleep => waits(),
        _ => false,
    })
}

/// Whether a task has ended.
fn has_ended(tid: i32) -> bool {
    stat_of(tid).is_none_or(|stat| stat.state.has_ended())
}
