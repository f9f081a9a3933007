//! Making the processes of an image: the plan of `plan.rs`, carried out step by step by puppets.
//!
//! The first puppet is the coordinator's child; all others are made by puppets, from an address
//! space that holds nothing but the slot and the shared areas. The coordinator is a child subreaper
//! meanwhile: should anything fail, it kills and reaps every process made so far.

use crate::{
    error::{Context, Doing, Error, Result},
    options::Observer,
    plan::{Ghost, Group, Plan, Step, TaskIndex},
    resource::layout,
    restore,
    source::ImageReader,
    task::show,
};
use ckpt_image::{Objref, model, record::Task};
use ckpt_kernel::{
    Errno,
    memory::Span,
    program::{Arg, Program},
    puppet::{Fork, Puppet},
};
use rustix::process::{Pid, Signal, WaitOptions, getpid, pidfd_send_signal, set_child_subreaper, waitpid};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

/// How long a pid may stay in use by something that is about to go.
const PATIENCE: Duration = Duration::from_secs(10);
const RSEQ_UNREGISTER: u64 = 1;
const WALL: u32 = 0x4000_0000;

/// What every puppet is made with.
pub(crate) struct Stage<'a> {
    /// The processes of the image.
    pub(crate) processes: &'a [model::Process],
    /// Take whatever pids the kernel gives.
    pub(crate) new_pids: bool,
    /// Where the slot is.
    pub(crate) slot: Span,
    /// Other mappings of the coordinator that puppets keep.
    pub(crate) areas: Vec<Span>,
    /// A signal that is pending nowhere.
    pub(crate) park: i32,
}

/// The processes of an image, under construction. Dropped unfinished, none of them is left.
#[derive(Debug)]
pub(crate) struct Puppets {
    /// By index of the process in the image, then the ghosts.
    list: Vec<Option<Puppet>>,
    /// Every pid made.
    made: Vec<i32>,
    /// Whether we were a child subreaper before.
    reaping: bool,
}

impl Puppets {
    /// Makes all processes, with their parents, sessions and groups.
    pub(crate) fn make(
        stage: &Stage<'_>,
        plan: &Plan,
        reader: &mut ImageReader,
        observer: &dyn Observer,
    ) -> Result<Puppets> {
        let reaping = rustix::process::child_subreaper().is_ok_and(|reaper| reaper.is_some());
        set_child_subreaper(Some(getpid())).doing(|| "become a subreaper".to_owned())?;
        let count = stage.processes.len() + plan.ghosts.len();
        let list = std::iter::repeat_with(|| None).take(count).collect();
        let mut puppets = Puppets { list, made: Vec::new(), reaping };
        let ghosts = &plan.ghosts;
        let spare = Box::new(spare_pids(stage.processes));
        let owners = BTreeMap::new();
        let mut maker = Maker { stage, ghosts, owners, reader, spare, patient: false, observer };
        for step in &plan.steps {
            maker.take(step, &mut puppets)?;
        }
        Ok(puppets)
    }

    /// Puppet number `index`.
    pub(crate) fn get(&mut self, index: TaskIndex) -> Result<&mut Puppet> {
        let puppet = self.list.get_mut(index).and_then(Option::as_mut);
        puppet.ok_or_else(|| Error::failed(format!("process number {index} does not exist")))
    }

    /// Pid of process `index`.
    pub(crate) fn pid(&self, index: TaskIndex) -> i32 {
        self.list.get(index).and_then(Option::as_ref).map_or(0, Puppet::pid)
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

    /// Lets a parent take note that a child of it has stopped.
    pub(crate) fn see_stop(&mut self, parent: TaskIndex, child: TaskIndex) -> Result<()> {
        let mut program = Program::new();
        let options = libc::WSTOPPED | libc::WNOHANG;
        let args = [libc::P_PID.into(), self.pid(child).into(), 0u64.into(), options.into(), 0u64.into()];
        program.call("waitid", 0, libc::SYS_waitid, args);
        let parent = self.get(parent)?;
        parent.run(parent.first(), &program)?;
        Ok(())
    }

    /// Takes a pending signal out of a puppet's queue.
    pub(crate) fn forget_signal(&mut self, index: TaskIndex, signal: i32) -> Result<()> {
        let mut program = Program::new();
        let set = Arg::In((1u64 << (signal - 1)).to_le_bytes().to_vec());
        let args = [set, 0u64.into(), Arg::In(vec![0; 16]), 8u64.into()];
        program.try_call("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, args);
        let puppet = self.get(index)?;
        puppet.run(puppet.first(), &program)?;
        Ok(())
    }

    /// Lets all of them live; pid and pidfd of the root.
    pub(crate) fn release(mut self) -> Result<(i32, OwnedFd)> {
        // All or none survive a SIGKILL of ours: what is between the first and the last of these is
        // some microseconds, while letting them go takes many times that.
        self.list.iter_mut().flatten().try_for_each(Puppet::spare)?;
        let mut released = Vec::with_capacity(self.list.len());
        for puppet in self.list.iter_mut().filter_map(Option::take) {
            match puppet.release() {
                Ok(one) => released.push(one),
                Err(error) => {
                    for (_, pidfd) in &released {
                        let _ = pidfd_send_signal(pidfd, Signal::KILL);
                    }
                    return Err(error.into());
                }
            }
        }
        self.made.clear();
        let root = released.into_iter().next();
        root.ok_or_else(|| Error::failed("the root of the tree does not exist"))
    }
}

impl Drop for Puppets {
    fn drop(&mut self) {
        // The root first: children whose parent is gone become ours to reap.
        self.list.clear();
        for pid in self.made.drain(..).filter_map(Pid::from_raw) {
            while matches!(waitpid(Some(pid), WaitOptions::from_bits_retain(WALL)), Ok(Some(_))) {}
        }
        if !self.reaping {
            let _ = set_child_subreaper(None);
        }
    }
}

/// Carries out steps.
struct Maker<'a, 'r> {
    stage: &'a Stage<'a>,
    ghosts: &'a [Ghost],
    /// Which process was the first to have a shared object.
    owners: BTreeMap<Objref, TaskIndex>,
    reader: &'r mut ImageReader,
    /// Pids for placeholders that need no certain one.
    spare: Box<dyn Iterator<Item = i32> + 'r>,
    /// Whoever has a pid we want may be the original, which is about to be killed.
    patient: bool,
    observer: &'r dyn Observer,
}

impl Maker<'_, '_> {
    fn take(&mut self, step: &Step, puppets: &mut Puppets) -> Result<()> {
        match *step {
            Step::Fork { maker, task, sibling } => self.fork(maker, task, sibling, puppets),
            Step::Setsid(task) => call(puppets, task, "setsid", libc::SYS_setsid, []),
            Step::Setpgid(task, ref group) => {
                let group = match group {
                    Group::Own => 0,
                    Group::Of(leader) => puppets.pid(*leader),
                    Group::Restarter => rustix::process::getpgrp().as_raw_nonzero().get(),
                };
                let args = [0u64.into(), group.into()];
                call(puppets, task, "setpgid", libc::SYS_setpgid, args)
            }
            Step::Subreaper(task, on) => {
                let args = [libc::PR_SET_CHILD_SUBREAPER.into(), u64::from(on).into()];
                call(puppets, task, "prctl(PR_SET_CHILD_SUBREAPER)", libc::SYS_prctl, args)
            }
            Step::Exit { ghost, parent } => self.exit(ghost, parent, puppets),
        }
    }

    fn exit(&self, ghost: TaskIndex, parent: Option<TaskIndex>, puppets: &mut Puppets) -> Result<()> {
        let pid = puppets.pid(ghost);
        let exit_signal = self.exit_signal(ghost);
        puppets.end(ghost, 0, exit_signal, parent)?;
        match parent {
            Some(parent) => {
                let args = [pid.into(), 0u64.into(), WALL.into(), 0u64.into()];
                call(puppets, parent, "wait4", libc::SYS_wait4, args)
            }
            None => Ok(()),
        }
    }

    /// Pid and exit signal of a task of the plan.
    fn wanted(&self, task: TaskIndex) -> (Option<i32>, i32) {
        match (self.stage.processes.get(task), self.ghosts.get(task.wrapping_sub(self.stage.processes.len())))
        {
            (Some(process), _) => (Some(process.task.pid), process.task.exit_signal),
            (None, Some(ghost)) => (ghost.pid, ghost.exit_signal),
            (None, None) => (None, 0),
        }
    }

    fn exit_signal(&self, task: TaskIndex) -> i32 {
        self.wanted(task).1
    }

    fn fork(
        &mut self,
        maker: Option<TaskIndex>,
        task: TaskIndex,
        sibling: bool,
        puppets: &mut Puppets,
    ) -> Result<()> {
        let (pid, exit_signal) = self.wanted(task);
        let pid = pid.or_else(|| self.spare.next());
        let set_tid = pid.filter(|_| !self.stage.new_pids);
        let share = self.share(maker, task)?;
        let puppet = match maker {
            None => {
                let Stage { slot, park, .. } = *self.stage;
                self.when_free(set_tid, || Puppet::spawn(set_tid, slot.start, slot.len, park))
            }
            Some(index) => {
                let maker = puppets.get(index)?;
                let thread = self.thread(maker, index, task, sibling)?;
                let fork = Fork { set_tid, exit_signal, sibling, share };
                self.when_free(set_tid, || maker.fork(thread, &fork))
            }
        };
        let puppet = puppet.task(|| self.label(task))?;
        puppets.made.push(puppet.pid());
        if let Some(place) = puppets.list.get_mut(task) {
            *place = Some(puppet);
        }
        if maker.is_none() { self.strip(puppets.get(task)?) } else { Ok(()) }
    }

    /// The number of the thread of `maker` whose child `task` was; it is made if need be.
    fn thread(&self, maker: &mut Puppet, index: TaskIndex, task: TaskIndex, sibling: bool) -> Result<usize> {
        let processes = self.stage.processes;
        let (Some(parent), Some(child)) = (processes.get(index), processes.get(task)) else { return Ok(0) };
        let is_parent = !sibling && child.task.ppid == parent.task.pid;
        let thread = parent.threads.iter().position(|t| t.record.tid == child.task.parent_tid);
        let Some(thread) = thread.filter(|thread| is_parent && *thread > 0) else { return Ok(0) };
        restore::threads(maker, parent, self.stage.new_pids)?;
        Ok(thread)
    }

    /// How messages name a task of the plan.
    fn label(&self, task: TaskIndex) -> String {
        self.stage.processes.get(task).map_or_else(|| "a placeholder".to_owned(), label)
    }

    /// Begins with an empty address space: everything of ours goes but slot and shared areas.
    fn strip(&self, puppet: &mut Puppet) -> Result<()> {
        let mut program = Program::new();
        let (area, size, sig, _) = puppet.thread(0)?.rseq()?;
        if area != 0 {
            let args = [area.into(), size.into(), RSEQ_UNREGISTER.into(), sig.into()];
            program.call("rseq", area, libc::SYS_rseq, args);
        }
        // If ours were ignored, zombies would vanish.
        let default = [libc::SIGCHLD.into(), Arg::In(vec![0; 32]), 0u64.into(), 8u64.into()];
        program.call("rt_sigaction", libc::SIGCHLD as u64, libc::SYS_rt_sigaction, default);
        layout::strip(&mut program, &self.stage.areas, self.stage.slot);
        puppet.run(0, &program)?;
        Ok(())
    }

    /// What `task` shares with its maker, as clone flags.
    fn share(&mut self, maker: Option<TaskIndex>, task: TaskIndex) -> Result<i32> {
        let objects = |t: &Task| {
            let flags = [libc::CLONE_VM, libc::CLONE_FILES, libc::CLONE_FS, libc::CLONE_SIGHAND];
            [t.mm, t.files, t.fs, t.sighand].into_iter().zip(flags)
        };
        let Some(process) = self.stage.processes.get(task) else { return Ok(0) };
        let makers = maker.and_then(|m| self.stage.processes.get(m)).map(|p| p.task).unwrap_or_default();
        let mut share = 0;
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
        pid: Option<i32>,
        mut make: impl FnMut() -> ckpt_kernel::Result<Puppet>,
    ) -> Result<Puppet> {
        const PAUSE: Duration = Duration::from_millis(2);
        let pid = pid.unwrap_or(0);
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
            if !waits || begun.elapsed() > PATIENCE || self.observer.cancelled() {
                return Err(taken_pid(pid, error));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Pids that nobody has and that an image does not need, the highest first: the kernel, which
/// counts up, will not give them to others soon.
fn spare_pids(processes: &[model::Process]) -> impl Iterator<Item = i32> + use<> {
    const DEFAULT: i32 = 32768;
    let max = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
    let max = max.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT);
    let tids = processes.iter().flat_map(|p| &p.threads).map(|t| t.record.tid);
    let others = processes.iter().flat_map(|p| [p.task.pid, p.task.pgid, p.task.sid]);
    let needed: BTreeSet<i32> = tids.chain(others).collect();
    let free = |pid: &i32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    (2..max).rev().filter(move |pid| !needed.contains(pid)).filter(free)
}

/// Runs one call in puppet `index`.
fn call<const N: usize>(
    puppets: &mut Puppets,
    index: TaskIndex,
    what: &'static str,
    nr: i64,
    args: [Arg; N],
) -> Result<()> {
    let mut program = Program::new();
    program.call(what, 0, nr, args);
    puppets.get(index)?.run(0, &program)?;
    Ok(())
}

/// Whether whoever has `pid` has ended, or it is only the id of a session or group.
fn is_leaving(pid: i32) -> bool {
    use ckpt_proc::stat::parse_stat;
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok().and_then(|text| parse_stat(&text).ok());
    stat.is_none_or(|stat| stat.process_has_ended())
}

/// Says who has a pid that is wanted.
pub(crate) fn taken_pid(pid: i32, cause: ckpt_kernel::Error) -> Error {
    match cause.errno() {
        Some(Errno::EXIST) => {
            let occupant = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            let occupant = occupant.strip_suffix(b"\n").unwrap_or(&occupant);
            let who = if occupant.is_empty() {
                "is still in use as a session or process group".to_owned()
            } else if is_leaving(pid) {
                format!("is taken by {}, which has ended and not been waited for", show(occupant))
            } else {
                format!("is taken by {}", show(occupant))
            };
            Error::failed(format!("pid {pid} {who}")).advice("end it, or restart with --new-pids")
        }
        Some(Errno::PERM) if pid != 0 => Error::permission(format!("make a process with pid {pid}"))
            .why("Operation not permitted")
            .advice("it needs CAP_CHECKPOINT_RESTORE, or restart with --new-pids"),
        _ => cause.into(),
    }
}

/// How messages name a process of an image: `pid 7 (bash)`.
pub(crate) fn label(process: &model::Process) -> String {
    let comm = process.threads.first().map(|t| show(&t.comm)).unwrap_or_default();
    format!("pid {} ({comm})", process.task.pid)
}
