//! The processes of an image while they are made, built and let go.
//!
//! The first puppet is the coordinator's child; all others are made by puppets, from an address
//! space that holds nothing but the slot and the shared areas. The coordinator is a child subreaper
//! meanwhile: should anything fail, it kills and reaps every process made so far.
//!
//! In a pid namespace of their own the first puppet is process 1 of it: the root, if that is what the
//! root was, else an init ([`Household`]), which makes the root and stays.

use crate::{
    error::{Context, Doing, Error, Result},
    freezer::{Custody, Freezer},
    household::Household,
    maker::Maker,
    options::{Observer, Pids},
    plan::{Plan, TaskIndex},
    resource::cred::Born,
    root::Root,
    source::ImageReader,
    stage::Stage,
    task::show,
    terminals,
};
use ckpt_image::model;
use ckpt_kernel::{
    program::{Arg, Program},
    puppet::{Fork, Midwives, Parent, Puppet, see_off},
};
use rustix::process::{Pid, Signal, WaitOptions, getpid, pidfd_send_signal, set_child_subreaper, waitpid};
use std::collections::BTreeSet;

pub(crate) const WALL: u32 = 0x4000_0000;

/// The processes of an image, under construction. Dropped unfinished, none of them is left.
#[derive(Debug)]
pub(crate) struct Puppets {
    /// By index of the process in the image, then the ghosts.
    list: Vec<Option<Puppet>>,
    /// Who runs the pid namespace they are in, unless the root does.
    pub(crate) household: Option<Household>,
    /// Every pid made.
    made: Vec<i32>,
    /// Those that are process 1 of a pid namespace, one before those in it.
    inits: Vec<TaskIndex>,
    /// The parents of those that are nobody's children.
    midwives: Midwives,
    /// Whether we were a child subreaper before.
    reaping: bool,
}

impl Puppets {
    /// Makes all processes, with their parents, sessions and groups.
    pub(crate) fn make(
        stage: &Stage<'_>,
        plan: &Plan,
        reader: &mut ImageReader,
        observer: &mut dyn Observer,
    ) -> Result<Puppets> {
        let reaping = rustix::process::child_subreaper().is_ok_and(|reaper| reaper.is_some());
        set_child_subreaper(Some(getpid())).doing(|| "become a subreaper".to_owned())?;
        let count = stage.processes.len() + plan.ghosts.len();
        let list = std::iter::repeat_with(|| None).take(count).collect();
        let mut inits = stage.namespaces.inits();
        let mut puppets = Puppets {
            list,
            household: None,
            made: Vec::new(),
            inits: Vec::new(),
            midwives: Midwives::default(),
            reaping,
        };
        if stage.pids == Pids::Namespace && stage.processes.first().is_some_and(|p| p.task.pid == 1) {
            inits.insert(0, 0);
        }
        puppets.inits = inits;
        if stage.pids == Pids::Namespace && puppets.inits.first() != Some(&0) {
            let household = Household::found(stage, puppets.parent(stage), observer)?;
            puppets.made.push(household.init.pid());
            puppets.household = Some(household);
        }
        let mut maker = Maker::new(stage, &plan.ghosts, reader, observer);
        for step in &plan.steps {
            maker.take(step, &mut puppets)?;
        }
        for (index, process) in stage.processes.iter().enumerate() {
            maker.children_in(index, process, &mut puppets).task(|| label(process))?;
        }
        terminals::settle(stage, &mut puppets)?;
        Ok(puppets)
    }

    /// Puppet number `index`.
    pub(crate) fn get(&mut self, index: TaskIndex) -> Result<&mut Puppet> {
        let puppet = self.list.get_mut(index).and_then(Option::as_mut);
        puppet.ok_or_else(|| Error::failed(format!("process number {index} does not exist")))
    }

    /// The same, to look at; `None` if there is none.
    pub(crate) fn peek(&self, index: TaskIndex) -> Option<&Puppet> {
        self.list.get(index).and_then(Option::as_ref)
    }

    /// Whose child the root is, and who else is made by us.
    pub(crate) fn parent(&self, stage: &Stage<'_>) -> Parent<'_> {
        match (stage.sibling, stage.stands_in) {
            (true, _) => Parent::Ours,
            (false, true) => Parent::We,
            (false, false) => Parent::Midwife(&self.midwives),
        }
    }

    /// Unless we wait for it, the root becomes the child of whoever adopts orphans here, as which it would be left.
    pub(crate) fn part(&self) -> Result<()> {
        if !self.midwives.is_empty() && !self.reaping {
            set_child_subreaper(None).doing(|| "be no subreaper".to_owned())?;
        }
        Ok(self.midwives.leave()?)
    }

    /// Puppet number `index` has been made.
    pub(crate) fn add(&mut self, index: TaskIndex, puppet: Puppet) {
        tracing::debug!("made process number {index}: pid {}", puppet.pid());
        self.made.push(puppet.pid());
        if let Some(place) = self.list.get_mut(index) {
            *place = Some(puppet);
        }
    }

    /// What puppet number `index` is called by `viewer`; `None` if that does not see it.
    pub(crate) fn seen_by(&self, viewer: Option<TaskIndex>, index: TaskIndex) -> Result<Option<i32>> {
        let init = self.household.as_ref().map(|household| &household.init);
        let viewer = viewer.map_or(init, |viewer| self.peek(viewer));
        let Some(seen) = self.peek(index) else { return Ok(None) };
        match viewer.map_or(Ok(seen.pid()), |viewer| seen.pid_for(viewer)) {
            Err(ckpt_kernel::Error::Gone { .. }) => Ok(None),
            pid => Ok(Some(pid?)),
        }
    }

    /// The credentials that all puppets have at first.
    pub(crate) fn credentials(&mut self) -> Result<Born> {
        Born::of(self.get(0)?)
    }

    /// Makes process `index` a zombie with a wait status; its parent is not to notice now.
    pub(crate) fn end(
        &mut self,
        index: TaskIndex,
        status: i32,
        exit_signal: i32,
        parent: Option<TaskIndex>,
    ) -> Result<()> {
        let Some(puppet) = self.list.get_mut(index).and_then(Option::take) else { return Ok(()) };
        puppet.end(status)?;
        match parent {
            Some(parent) if exit_signal > 0 => self.forget_signal(parent, exit_signal),
            _ => Ok(()),
        }
    }

    /// Has a process among them that ends and is waited for at once, when `look` has seen it.
    pub(crate) fn pass<T>(&mut self, look: impl FnOnce(i32) -> Result<T>) -> Result<T> {
        let parent = self.get(0)?;
        let thread = parent.first();
        let fork = Fork::default();
        let child = parent.fork(thread, &fork)?;
        let (pid, own_pid) = (child.pid(), child.own_pid());
        self.made.push(pid);
        let seen = look(pid)?;
        child.end(0)?;
        let args = [own_pid.into(), 0u64.into(), WALL.into(), 0u64.into()];
        call(self.get(0)?, "wait4", libc::SYS_wait4, args)?;
        Ok(seen)
    }

    /// Lets a parent take note that a child of it has stopped.
    pub(crate) fn see_stop(&mut self, parent: TaskIndex, child: TaskIndex) -> Result<()> {
        let mut program = Program::new();
        let options = libc::WSTOPPED | libc::WNOHANG;
        let pid = self.seen_by(Some(parent), child)?.unwrap_or(0);
        let args = [libc::P_PID.into(), pid.into(), 0u64.into(), options.into(), 0u64.into()];
        program.call("waitid", 0, libc::SYS_waitid, args);
        let parent = self.get(parent)?;
        parent.run(parent.first(), program)?;
        Ok(())
    }

    /// Takes a pending signal out of a puppet's queue.
    pub(crate) fn forget_signal(&mut self, index: TaskIndex, signal: i32) -> Result<()> {
        let mut program = Program::new();
        let set = Arg::In((1u64 << (signal - 1)).to_le_bytes().to_vec());
        let args = [set, 0u64.into(), Arg::In(vec![0; 16]), 8u64.into()];
        program.try_call("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, args);
        let puppet = self.get(index)?;
        puppet.run(puppet.first(), program)?;
        Ok(())
    }

    /// Lets all of them live, frozen in `freezer` if there is one.
    pub(crate) fn release(mut self, freezer: Option<&Freezer>) -> Result<Root> {
        let root = self.peek(0).map_or(0, Puppet::own_pid);
        if let Some(household) = &mut self.household {
            household.settle(root)?;
        }
        let living: Vec<i32> = self.list.iter().flatten().map(Puppet::pid).collect();
        // Undone before any puppet is waited for: what v1 has frozen does not even die.
        let custody = freezer.map(|freezer| freezer.confine(living)).transpose()?;
        // All or none survive a SIGKILL of ours: what is between the first and the last of these is
        // some microseconds, while letting them go takes many times that. In a namespace of its own process 1 is the last,
        // whose end is that of all: there it is only one.
        let ended =
            |puppet: &Puppet, e: ckpt_kernel::Error| Error::from(e).task(format!("pid {}", puppet.own_pid()));
        let mut all = self.list.iter_mut().rev().flatten();
        all.try_for_each(|puppet| puppet.spare().map_err(|e| ended(puppet, e)))?;
        self.household.iter_mut().try_for_each(|household| household.init.spare())?;
        self.part()?;
        let mut released = Vec::with_capacity(self.list.len());
        let (mut begun, mut gone) = (false, Vec::new());
        let mut let_go = self.list.iter_mut().flatten().try_for_each(|puppet| {
            released.push(puppet.release(&mut begun, &mut gone).map_err(|e| ended(puppet, e))?);
            Ok(())
        });
        if let Some(custody) = &custody {
            let_go = let_go.and_then(|()| custody.wait());
        }
        if let Some(household) = &mut self.household {
            let_go = let_go.and_then(|()| Ok(household.init.release(&mut begun, &mut gone).map(drop)?));
        }
        if let Err(error) = let_go {
            for one in &released {
                let _ = pidfd_send_signal(&one.pidfd, Signal::KILL);
            }
            drop(custody);
            drop(self);
            see_off(gone);
            return Err(error);
        }
        see_off(gone);
        self.made.clear();
        self.inits.clear();
        custody.into_iter().for_each(Custody::keep);
        let root = released.into_iter().next();
        let root = root.ok_or_else(|| Error::failed("the root of the tree does not exist"))?;
        Ok(Root::new(root, self.household.take().map(|household| household.status)))
    }
}

impl Drop for Puppets {
    fn drop(&mut self) {
        let reap = |pid: i32| {
            let pid = Pid::from_raw(pid);
            while matches!(waitpid(pid, WaitOptions::from_bits_retain(WALL)), Ok(Some(_))) {}
        };
        // Process 1 of a namespace ends when it has seen everybody else off.
        let inits = self.inits.iter().rev().filter_map(|index| self.list.get_mut(*index)?.take());
        let inits: Vec<Puppet> = inits.chain(self.household.take().map(|household| household.init)).collect();
        // The root first: children whose parent is gone become ours to reap.
        self.list.clear();
        let living: BTreeSet<i32> = inits.iter().map(Puppet::pid).collect();
        self.made.drain(..).filter(|pid| !living.contains(pid)).for_each(reap);
        for init in inits {
            let pid = init.pid();
            drop(init);
            reap(pid);
        }
        if !self.reaping {
            let _ = set_child_subreaper(None);
        }
    }
}

/// Runs one call in a puppet.
pub(crate) fn call<const N: usize>(
    puppet: &mut Puppet,
    what: &'static str,
    nr: i64,
    args: [Arg; N],
) -> Result<()> {
    let mut program = Program::new();
    program.call(what, 0, nr, args);
    puppet.run(0, program)?;
    Ok(())
}

/// How messages name a process of an image: `pid 7 (bash)`.
pub(crate) fn label(process: &model::Process) -> String {
    let comm = process.threads.first().map(|t| show(&t.comm)).unwrap_or_default();
    format!("pid {} ({comm})", process.task.pid)
}
