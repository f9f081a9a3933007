//! Carrying out the plan of `plan.rs`, step by step: which puppet makes which, with which ids, sharing what, where.

use crate::{
    advice::Means,
    error::{Context, Error, ErrorKind, Result},
    household,
    options::{Observer, Pids, interrupted},
    plan::{Ghost, Group, Step, TaskIndex},
    puppets::{Puppets, WALL, call, label},
    resource::pidns,
    restore,
    source::ImageReader,
    stage::Stage,
    task::{show, stat_of},
    terminals,
};
use ckpt_image::{
    Objref, model,
    record::{Task, children_pidns},
};
use ckpt_kernel::{
    Errno, procfs,
    program::Program,
    puppet::{self, Fork, Parent, Place, Puppet, Spawn},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// How long a pid may stay in use by something that is about to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Carries out steps.
pub(crate) struct Maker<'a, 'r> {
    stage: &'a Stage<'a>,
    ghosts: &'a [Ghost],
    /// Which process was the first to have a shared object.
    owners: BTreeMap<Objref, TaskIndex>,
    reader: &'r mut ImageReader,
    /// Pids for placeholders that need no certain one.
    spare: Box<dyn Iterator<Item = i32>>,
    /// Whoever has a pid we want may be the original, which is about to be killed.
    patient: bool,
    observer: &'r mut dyn Observer,
}

impl<'a, 'r> Maker<'a, 'r> {
    pub(crate) fn new(
        stage: &'a Stage<'a>,
        ghosts: &'a [Ghost],
        reader: &'r mut ImageReader,
        observer: &'r mut dyn Observer,
    ) -> Maker<'a, 'r> {
        let spare = Box::new(spare_pids(stage.processes));
        Maker { stage, ghosts, owners: BTreeMap::new(), reader, spare, patient: false, observer }
    }

    /// Takes a step of the plan.
    pub(crate) fn take(&mut self, step: &Step, puppets: &mut Puppets) -> Result<()> {
        interrupted(self.observer)?;
        match *step {
            Step::Fork { maker, task, sibling } => self.fork(maker, task, sibling, puppets),
            Step::Setsid(task) => {
                call(puppets.get(task)?, "setsid", libc::SYS_setsid, [])?;
                // Those it makes from here on have it, too.
                terminals::take(self.stage, task, puppets.get(task)?)
            }
            Step::Setpgid(task, group) => self.setpgid(task, group, puppets),
            Step::Subreaper(task, on) => {
                let args = [libc::PR_SET_CHILD_SUBREAPER.into(), u64::from(on).into()];
                call(puppets.get(task)?, "prctl(PR_SET_CHILD_SUBREAPER)", libc::SYS_prctl, args)
            }
            Step::Exit { ghost, parent } => self.exit(ghost, parent, puppets),
        }
    }

    /// Lets a task join a group, or its parent move it there if it does not see the group's leader.
    fn setpgid(&self, task: TaskIndex, group: Group, puppets: &mut Puppets) -> Result<()> {
        let process = self.stage.processes.get(task);
        let parent =
            process.and_then(|p| self.stage.processes.iter().position(|o| o.task.pid == p.task.ppid));
        let nested = process.is_some_and(|process| process.pidns() != 0);
        for mover in [Some(task), parent.filter(|_| nested)].into_iter().flatten() {
            let group = match group {
                Group::Own => Some(0),
                Group::Of(leader) => puppets.seen_by(Some(mover), leader)?,
                Group::Restarter => {
                    let outside = puppets.get(mover)?.pid_namespace().is_none();
                    outside.then(|| rustix::process::getpgrp().as_raw_nonzero().get())
                }
            };
            let Some(group) = group else { continue };
            let pid = if mover == task { Some(0) } else { puppets.seen_by(Some(mover), task)? };
            let args = [pid.unwrap_or(0).into(), group.into()];
            return call(puppets.get(mover)?, "setpgid", libc::SYS_setpgid, args);
        }
        let what = "its process group is led from outside of its pid namespace, where it cannot join it";
        Err(Error::unsupported(what).task(self.label(task)))
    }

    /// Sets where children of a finished process are made, if that is not where it is.
    pub(crate) fn children_in(
        &self,
        index: TaskIndex,
        process: &model::Process,
        puppets: &mut Puppets,
    ) -> Result<()> {
        let mut program = Program::new();
        match process.task.children_pidns {
            children_pidns::OWN => return Ok(()),
            children_pidns::NEW => {
                program.call("unshare", 0, libc::SYS_unshare, [libc::CLONE_NEWPID.into()]);
            }
            pidns => puppet::children_in(&mut program, self.init(pidns, Some(index), puppets)?),
        }
        puppets.get(index)?.run(0, program)?;
        Ok(())
    }

    /// Process 1 of a nested pid namespace, as `viewer` sees it.
    fn init(&self, pidns: u32, viewer: Option<TaskIndex>, puppets: &Puppets) -> Result<i32> {
        let init = self.stage.namespaces.init(pidns);
        let pid = init.map(|init| puppets.seen_by(viewer, init)).transpose()?.flatten();
        pid.ok_or_else(|| Error::bad_image(format!("nobody is process 1 of pid namespace {pidns}")))
    }

    fn exit(&self, ghost: TaskIndex, parent: Option<TaskIndex>, puppets: &mut Puppets) -> Result<()> {
        let pid = puppets.seen_by(parent, ghost)?.unwrap_or(0);
        let exit_signal = self.exit_signal(ghost);
        puppets.end(ghost, 0, exit_signal, parent)?;
        let parent = match (parent, &mut puppets.household) {
            (Some(parent), _) => puppets.get(parent)?,
            (None, Some(household)) => &mut household.init,
            (None, None) => return Ok(()),
        };
        call(parent, "wait4", libc::SYS_wait4, [pid.into(), 0u64.into(), WALL.into(), 0u64.into()])
    }

    fn ghost(&self, task: TaskIndex) -> Option<&Ghost> {
        self.ghosts.get(task.wrapping_sub(self.stage.processes.len()))
    }

    /// Pid of a task of the plan.
    fn pid(&mut self, task: TaskIndex) -> i32 {
        let pid = match self.stage.processes.get(task) {
            Some(process) => Some(process.task.pid),
            None => self.ghost(task).and_then(|ghost| ghost.pid),
        };
        pid.or_else(|| self.spare.next()).unwrap_or(0)
    }

    fn exit_signal(&self, task: TaskIndex) -> i32 {
        match self.stage.processes.get(task) {
            Some(process) => process.task.exit_signal,
            None => self.ghost(task).map_or(0, |ghost| ghost.exit_signal),
        }
    }

    /// Number of the pid namespace of a task of the plan.
    fn pidns(&self, task: TaskIndex) -> u32 {
        match self.stage.processes.get(task) {
            Some(process) => process.pidns(),
            None => self.ghost(task).map_or(0, |ghost| ghost.pidns),
        }
    }

    /// The ids a task is to be made with, `pid` in the root's namespace.
    fn ids(&self, task: TaskIndex, pid: i32) -> Vec<i32> {
        let leader = self.stage.processes.get(task).and_then(|process| process.threads.first());
        let mut ids = match (leader, self.ghost(task)) {
            (Some(leader), _) => pidns::set_tid(leader, true),
            (None, Some(Ghost { pid: Some(pid), .. })) => self.stage.namespaces.ids_of_leader(*pid),
            (None, Some(ghost)) => vec![pid; self.stage.namespaces.depth(ghost.pidns)],
            (None, None) => Vec::new(),
        };
        ids.extend(Some(pid).filter(|_| self.stage.pids != Pids::New));
        ids
    }

    /// Where `maker` has to make a task.
    fn place(&self, maker: Option<TaskIndex>, task: TaskIndex, puppets: &Puppets) -> Result<Place> {
        let (makers, own) = (maker.map_or(0, |maker| self.pidns(maker)), self.pidns(task));
        if own == makers {
            return Ok(Place::Same);
        }
        if self.stage.namespaces.init(own) != Some(task) {
            return self.init(own, maker, puppets).map(Place::Of);
        }
        if self.stage.namespaces.around(own) == makers {
            return Ok(Place::New);
        }
        Err(Error::unsupported("who makes it is not in the pid namespace around its own"))
    }

    fn fork(
        &mut self,
        maker: Option<TaskIndex>,
        task: TaskIndex,
        sibling: bool,
        puppets: &mut Puppets,
    ) -> Result<()> {
        let pid = self.pid(task);
        let place = self.place(maker, task, puppets).task(|| self.label(task))?;
        let (share, set_tid) = (self.share(maker, task)?, self.ids(task, pid));
        let fork = Fork { set_tid, place, exit_signal: self.exit_signal(task), sibling, share };
        let puppet = match (maker, &mut puppets.household) {
            (None, Some(household)) => household.init.fork(0, &fork).map_err(|e| taken_pid(pid, e)),
            (None, None) => self.spawn(task, pid, &fork.set_tid, puppets),
            (Some(index), _) => {
                let maker = puppets.get(index)?;
                let thread = self.thread(maker, index, task, sibling)?;
                self.when_free(pid, || maker.fork(thread, &fork))
            }
        };
        let puppet = puppet.map_err(|e| no_namespace(place, e)).task(|| self.label(task))?;
        puppets.add(task, puppet);
        Ok(())
    }

    /// Makes a process as a child of ours.
    fn spawn(&mut self, task: TaskIndex, pid: i32, set_tid: &[i32], puppets: &Puppets) -> Result<Puppet> {
        let stage = self.stage;
        if stage.pids == Pids::Namespace && task == 0 {
            return household::spawn_first(stage, puppets.parent(stage), self.observer);
        }
        let member = stage.namespaces.init(self.pidns(task)).unwrap_or(0);
        let inside = puppets.peek(member).and_then(Puppet::pid_namespace);
        let Stage { slot, park: signal, .. } = *stage;
        // One that is not the root is no matter of our parent's.
        let parent = if stage.sibling && task != 0 { Parent::We } else { puppets.parent(stage) };
        let spawn = Spawn { set_tid, namespaces: 0, parent, inside, slot, signal };
        let mut puppet = self.when_free(pid, || Puppet::spawn(&spawn))?;
        household::strip(stage, &mut puppet)?;
        Ok(puppet)
    }

    /// The number of the thread of `maker` whose child `task` was; it is made if need be.
    fn thread(&self, maker: &mut Puppet, index: TaskIndex, task: TaskIndex, sibling: bool) -> Result<usize> {
        let processes = self.stage.processes;
        let (Some(parent), Some(child)) = (processes.get(index), processes.get(task)) else { return Ok(0) };
        let is_parent = !sibling && child.task.ppid == parent.task.pid;
        let thread = parent.threads.iter().position(|t| t.record.tid == child.task.parent_tid);
        let Some(thread) = thread.filter(|thread| is_parent && *thread > 0) else { return Ok(0) };
        restore::threads(maker, parent, self.stage.pids == Pids::New)?;
        Ok(thread)
    }

    /// How messages name a task of the plan.
    fn label(&self, task: TaskIndex) -> String {
        self.stage.processes.get(task).map_or_else(|| "a placeholder".to_owned(), label)
    }

    /// What `task` shares with its maker, as clone flags.
    fn share(&mut self, maker: Option<TaskIndex>, task: TaskIndex) -> Result<i32> {
        let objects = |t: &Task| {
            let flags = [libc::CLONE_VM, libc::CLONE_FILES, libc::CLONE_FS, libc::CLONE_SIGHAND];
            [t.mm, t.files, t.fs, t.sighand].into_iter().zip(flags)
        };
        let mut share = if self.stage.one_table && maker.is_some() { libc::CLONE_FILES } else { 0 };
        let Some(process) = self.stage.processes.get(task) else { return Ok(share) };
        let makers = maker.and_then(|m| self.stage.processes.get(m)).map(|p| p.task).unwrap_or_default();
        for ((objref, flag), (of_maker, _)) in objects(&process.task).zip(objects(&makers)) {
            if objref != 0 && objref == of_maker {
                share |= flag;
            } else if let Some(owner) = self.owners.insert(objref, task).filter(|_| objref != 0) {
                let other = self.stage.processes.get(owner).map(label).unwrap_or_default();
                let what =
                    format!("it shares memory, files or directories with {other}, which is not its maker");
                return Err(Error::unsupported(what).task(label(process)));
            }
        }
        Ok(share)
    }

    /// Makes a process when its pid is free: who has ended and not been waited for has it no longer
    /// for long. In `checkpoint --kill PID | restart` the original ends only when it has seen all of
    /// the image off: then the image is taken in first.
    fn when_free(
        &mut self,
        pid: i32,
        mut make: impl FnMut() -> ckpt_kernel::Result<Puppet>,
    ) -> Result<Puppet> {
        const PAUSE: Duration = Duration::from_millis(2);
        let begun = Instant::now();
        loop {
            let error = match make() {
                Err(error) if error.errno() == Some(Errno::EXIST) => error,
                other => return other.map_err(|e| taken_pid(pid, e)),
            };
            if self.reader.source_mut().is_stream() {
                self.reader.source_mut().spool(self.observer)?;
                self.patient = true;
            }
            let waits = self.patient || is_leaving(pid);
            if !waits || begun.elapsed() > PATIENCE || self.observer.cancelled().is_some() {
                return Err(taken_pid(pid, error));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Pids that nobody has and that an image does not need, the highest first: the kernel, which
/// counts up, will not give them to others soon.
fn spare_pids(processes: &[model::Process]) -> impl Iterator<Item = i32> + use<> {
    let max = pid_max();
    let tids = processes.iter().flat_map(|p| &p.threads).map(|t| t.record.tid);
    let others = processes.iter().flat_map(|p| [p.task.pid, p.task.pgid, p.task.sid]);
    let levels = processes.iter().flat_map(|p| &p.threads).flat_map(|t| &t.levels);
    let inner = levels.flat_map(|level| [level.tid, level.pgid, level.sid]);
    let needed: BTreeSet<i32> = tids.chain(others).chain(inner).collect();
    let free = |pid: &i32| procfs::stat(&pid.to_string()).is_err();
    (2..max).rev().filter(move |pid| !needed.contains(pid)).filter(free)
}

/// One past the highest pid there can be.
fn pid_max() -> i32 {
    const DEFAULT: i32 = 32768;
    let max = procfs::read("sys/kernel/pid_max").ok();
    max.and_then(|text| show(&text).trim().parse().ok()).unwrap_or(DEFAULT)
}

/// Whether whoever has `pid` has ended, or it is only the id of a session or group.
fn is_leaving(pid: i32) -> bool {
    stat_of(pid).is_none_or(|stat| stat.process_has_ended())
}

/// What it takes to make a process in a pid namespace of its own.
fn no_namespace(place: Place, error: Error) -> Error {
    match error.kind {
        ErrorKind::Permission if place != Place::Same => {
            error.advice("get CAP_SYS_ADMIN, which a pid namespace in the tree needs").or(Means::Namespace)
        }
        _ => error,
    }
}

/// Says who has a pid that is wanted.
pub(crate) fn taken_pid(pid: i32, cause: ckpt_kernel::Error) -> Error {
    match cause.errno() {
        Some(Errno::EXIST) => {
            let occupant = procfs::read(&format!("{pid}/comm")).unwrap_or_default();
            let occupant = occupant.strip_suffix(b"\n").unwrap_or(&occupant);
            let who = if occupant.is_empty() {
                "is still in use as a session or process group".to_owned()
            } else if is_leaving(pid) {
                format!("is taken by {}, which has ended and not been waited for", show(occupant))
            } else {
                format!("is taken by {}", show(occupant))
            };
            Error::failed(format!("pid {pid} {who}")).advice("end it").or(Means::Namespace).or(Means::NewPids)
        }
        Some(Errno::INVAL) if pid >= pid_max() => Error::failed(format!("pid {pid} is too high"))
            .why(format!("this machine gives them below {}", pid_max()))
            .advice("raise kernel.pid_max")
            .or(Means::NewPids),
        Some(Errno::PERM) if pid != 0 => Error::permission(format!("make a process with pid {pid}"))
            .why("Operation not permitted")
            .advice("get CAP_CHECKPOINT_RESTORE, which it needs")
            .or(Means::Namespace)
            .or(Means::NewPids),
        Some(Errno::NOSPC) => {
            Error::from(cause).advice("there are too many pid namespaces (user.max_pid_namespaces)")
        }
        _ => cause.into(),
    }
}
