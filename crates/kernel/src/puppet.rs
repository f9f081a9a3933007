//! A puppet: a new process that builds itself by running syscall programs.
//!
//! The first begins as a clone of the coordinator that does nothing but pause, is seized with
//! EXITKILL, and keeps of the coordinator's address space the slot, mapped before the clone at an
//! address that is free in the coordinator and in the image. Others are made by puppets (clone3
//! with CLONE_PTRACE, so that they are ours from their birth) and inherit the slot. A puppet's last
//! system call unmaps the slot; it is stopped at that call's exit, gets its registers and is let go.

mod birth;
mod midwife;

pub use birth::{Fork, Parent, Place, Spawn, children_in, clone_args};
pub use midwife::Midwives;

use birth::{Slot, Waiting, clone_waiting};

use crate::{
    error::{Error, Named, Result},
    init,
    memory::{self, Span},
    pidns::{Ids, PidNamespace},
    procfs,
    program::{Arg, Outcome, Program},
    sys,
    tracee::{Running, Seize, Stopped},
    visit::{BAY_SIZE, Bay, ERESTART_RESTARTBLOCK, NO_SYSCALL, Pending},
};
use ckpt_image::record::Regs;
use rustix::io::Errno;
use std::{
    cell::Cell,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

/// Bytes of the bay of a puppet's first thread.
pub const PUPPET_BAY_SIZE: usize = 1 << 20;

/// A puppet that was let go.
#[derive(Debug)]
pub struct Released {
    /// Its pid, as we see it.
    pub pid: i32,
    /// Its pid, as it sees it.
    pub own_pid: i32,
    /// A pidfd of it.
    pub pidfd: OwnedFd,
}

/// A thread of a puppet.
#[derive(Debug)]
struct Strand {
    thread: Stopped,
    bay: Bay,
    /// What it calls itself.
    own: i32,
    /// What it is running.
    pending: Option<Pending>,
}

impl Strand {
    fn finish(&mut self, base: &Regs) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        self.bay.finish(&mut self.thread, base, pending).map(drop)
    }
}

/// A process under construction. Dropped unfinished, it is killed and reaped.
#[derive(Debug)]
pub struct Puppet {
    pid: i32,
    pidfd: OwnedFd,
    /// Its pid, as it sees it.
    own_pid: i32,
    /// Those that live.
    threads: Vec<Strand>,
    /// How many have ended: none, or the leader.
    ended: usize,
    base: Regs,
    slot: Span,
    /// Small bays in use in the address space; shared by those who share that.
    bays: Rc<Cell<usize>>,
    signal: i32,
    /// The pid namespace it is in, when it is not ours.
    pidns: Option<Rc<PidNamespace>>,
    released: bool,
}

impl Puppet {
    /// Bytes of slot that an address space of `threads` threads needs.
    pub fn slot_len(threads: usize) -> usize {
        PUPPET_BAY_SIZE + threads.saturating_sub(1) * BAY_SIZE
    }

    /// Makes a process as a child of ours, of our parent, or of a midwife.
    pub fn spawn(spawn: &Spawn<'_>) -> Result<Puppet> {
        let slot = Slot::map(spawn.slot)?;
        let mask = sys::set_mask(!0);
        let parent = if matches!(spawn.parent, Parent::Ours) { libc::CLONE_PARENT } else { 0 };
        let clone = || clone_waiting(spawn.set_tid, spawn.namespaces | parent).named("clone3");
        let make = || spawn.inside.map_or_else(clone, |namespace| namespace.inside(clone));
        let cloned = match spawn.parent {
            Parent::Midwife(midwives) => midwives.deliver(spawn.set_tid.last().copied(), make),
            Parent::We | Parent::Ours => make(),
        };
        sys::set_mask(mask);
        let Waiting { pid, pidfd, pipe } = cloned?;
        let span = slot.0;
        drop(slot);
        let is_apart = spawn.inside.is_some() || spawn.namespaces & libc::CLONE_NEWPID != 0;
        let own_pid = match (is_apart, spawn.set_tid.first()) {
            (false, _) => pid,
            (true, Some(pid)) => *pid,
            (true, None) => 1,
        };
        let mut puppet = Puppet {
            pid,
            own_pid,
            pidfd,
            threads: Vec::new(),
            ended: 0,
            base: Regs::default(),
            slot: span,
            bays: Rc::default(),
            signal: spawn.signal,
            pidns: None,
            released: false,
        };
        let leader = Running::seize(pid, pid, Seize::Puppet)?.interrupt()?;
        drop(pipe);
        if is_apart {
            puppet.pidns = Some(Rc::new(PidNamespace::of(&puppet.pidfd)?));
        }
        puppet.base = Regs { orig_rax: NO_SYSCALL, ..leader.regs()? };
        let bay = Bay { address: span.start, size: PUPPET_BAY_SIZE };
        bay.furnish(pid, Ids { pid: own_pid, tid: own_pid }, &puppet.base, !0, spawn.signal)?;
        puppet.threads.push(Strand { thread: leader, bay, own: own_pid, pending: None });
        Ok(puppet)
    }

    /// Makes another process, as a child of thread `index`.
    pub fn fork(&mut self, index: usize, fork: &Fork) -> Result<Puppet> {
        let parent = if fork.sibling { libc::CLONE_PARENT } else { 0 };
        let exit_signal = if fork.sibling { 0 } else { fork.exit_signal };
        let new = if fork.place == Place::New { libc::CLONE_NEWPID } else { 0 };
        let mut program = Program::new();
        if let Place::Of(pid) = fork.place {
            children_in(&mut program, pid);
        }
        let args = clone_args(fork.share | parent | new, exit_signal, &fork.set_tid);
        let object = fork.set_tid.last().copied().unwrap_or(0) as u64;
        let at = program.call("clone3 of a process", object, libc::SYS_clone3, args);
        if let Place::Of(_) = fork.place {
            children_in(&mut program, self.own_pid);
        }
        let seen = self.run(index, program)?.get(at).map_or(0, |o| o.result as i32);
        let pid = self.ours(seen)?;
        let own = if fork.place == Place::Same { seen } else { fork.set_tid.first().copied().unwrap_or(1) };
        let raw = rustix::process::Pid::from_raw(pid).ok_or(Error::Gone { tid: pid })?;
        let taken = (|| {
            let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty());
            let (bay, bays) = if fork.share & libc::CLONE_VM == 0 {
                (Bay { address: self.slot.start, size: PUPPET_BAY_SIZE }, Rc::default())
            } else {
                (self.small_bay()?, Rc::clone(&self.bays))
            };
            let pidfd = pidfd.named("pidfd_open")?;
            let pidns = match fork.place {
                Place::Same => self.pidns.clone(),
                _ => Some(Rc::new(PidNamespace::of(&pidfd)?)),
            };
            Ok((pidfd, pidns, bay, bays, Running::born(pid).wait_stop()?))
        })();
        let (pidfd, pidns, bay, bays, thread) = taken.inspect_err(|_| {
            // It is ours to wait for, so the pid is still its own.
            let _ = rustix::process::kill_process(raw, rustix::process::Signal::KILL);
            reap(pid);
        })?;
        let puppet = Puppet {
            pid,
            own_pid: own,
            pidfd,
            threads: vec![Strand { thread, bay, own, pending: None }],
            ended: 0,
            base: self.base,
            slot: self.slot,
            bays,
            signal: self.signal,
            pidns,
            released: false,
        };
        bay.furnish(pid, Ids { pid: own, tid: own }, &self.base, !0, self.signal)?;
        Ok(puppet)
    }

    /// Our id of the task that it knows as `own`.
    fn ours(&self, own: i32) -> Result<i32> {
        self.pidns.as_ref().map_or(Ok(own), |namespace| namespace.ours(own))
    }

    /// The next free small bay of the slot.
    fn small_bay(&self) -> Result<Bay> {
        let before = PUPPET_BAY_SIZE + self.bays.replace(self.bays.get() + 1) * BAY_SIZE;
        if before + BAY_SIZE > self.slot.len {
            return Err(Error::TooBig { need: before + BAY_SIZE, have: self.slot.len });
        }
        Ok(Bay { address: self.slot.start + before as u64, size: BAY_SIZE })
    }

    /// Its pid, as we see it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its pid, as it sees it.
    pub fn own_pid(&self) -> i32 {
        self.own_pid
    }

    /// Its pid, as `other` sees it.
    pub fn pid_for(&self, other: &Puppet) -> Result<i32> {
        other.pidns.as_ref().map_or(Ok(self.pid), |namespace| namespace.theirs(self.pid))
    }

    /// The id of thread `index`, as it sees it.
    pub fn own_tid(&self, index: usize) -> i32 {
        self.strand(index).map_or(self.own_pid, |strand| strand.own)
    }

    /// The pid namespace it is in, when it is not ours.
    pub fn pid_namespace(&self) -> Option<&PidNamespace> {
        self.pidns.as_deref()
    }

    /// A pidfd of it.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its slot.
    pub fn slot(&self) -> Span {
        self.slot
    }

    /// Our id of thread `index`.
    pub fn tid(&self, index: usize) -> i32 {
        self.strand(index).map_or(self.pid, |strand| strand.thread.tid())
    }

    /// Threads it has been given, one that has ended included.
    pub fn threads(&self) -> usize {
        self.ended + self.threads.len()
    }

    /// The first thread that lives: it does, and is asked, what concerns all of them.
    pub fn first(&self) -> usize {
        self.ended
    }

    /// Thread `index`, if it lives.
    fn strand(&self, index: usize) -> Option<&Strand> {
        index.checked_sub(self.ended).and_then(|at| self.threads.get(at))
    }

    /// Thread `index`, which lives, and what it had begun is done.
    fn living(&mut self, index: usize) -> Result<&mut Strand> {
        let (pid, base) = (self.pid, self.base);
        let at = index.checked_sub(self.ended);
        let strand = at.and_then(|at| self.threads.get_mut(at)).ok_or(Error::Gone { tid: pid })?;
        strand.finish(&base)?;
        Ok(strand)
    }

    /// Thread `index`, to look at or to set its state.
    pub fn thread(&mut self, index: usize) -> Result<&mut Stopped> {
        self.living(index).map(|strand| &mut strand.thread)
    }

    /// Runs `program` in thread `index`.
    pub fn run(&mut self, index: usize, program: Program) -> Result<Vec<Outcome>> {
        let base = self.base;
        let Strand { thread, bay, .. } = self.living(index)?;
        bay.run(thread, &base, program)
    }

    /// Begins to run `program` in thread `index`. Should it fail, whoever wants something of the thread
    /// next is told.
    pub fn start(&mut self, index: usize, program: Program) -> Result<()> {
        let base = self.base;
        let strand = self.living(index)?;
        strand.pending = Some(strand.bay.start(&mut strand.thread, &base, program)?);
        Ok(())
    }

    /// Waits for the end of what has begun.
    pub fn finish(&mut self) -> Result<()> {
        let base = self.base;
        self.threads.iter_mut().try_for_each(|strand| strand.finish(&base))
    }

    /// Takes charge of a thread that a program made with [`clone_args`], by the id it got.
    pub fn adopt(&mut self, own: i32) -> Result<()> {
        let thread = Running::born(self.ours(own)?).wait_stop()?;
        let bay = self.small_bay()?;
        bay.furnish(self.pid, Ids { pid: self.own_pid(), tid: own }, &self.base, !0, self.signal)?;
        self.threads.push(Strand { thread, bay, own, pending: None });
        Ok(())
    }

    /// Ends a process of one thread with a wait status (see waitpid(2)): by exit_group(2) or by a
    /// signal. It stays a zombie until its parent has waited for it. That a core was dumped is not
    /// said again.
    pub fn end(mut self, status: i32) -> Result<()> {
        let signal = libc::WTERMSIG(status);
        if signal != 0 && signal != libc::SIGKILL {
            let mut program = Program::new();
            let no_core = Arg::In(vec![0; 16]);
            let limit = [0u64.into(), libc::RLIMIT_CORE.into(), no_core, 0u64.into()];
            program.call("prlimit64", 0, libc::SYS_prlimit64, limit);
            let default = [signal.into(), Arg::In(vec![0; 32]), 0u64.into(), 8u64.into()];
            program.call("rt_sigaction", signal as u64, libc::SYS_rt_sigaction, default);
            self.run(0, program)?;
        }
        self.finish()?;
        let (pid, base) = (self.pid, self.base);
        let Some(Strand { mut thread, bay, .. }) = self.threads.pop() else {
            return Err(Error::Gone { tid: pid });
        };
        self.released = true;
        match signal {
            0 => {
                let code = libc::WEXITSTATUS(status) as u64;
                let nr = libc::SYS_exit_group as u64;
                thread.set_regs(&Regs { rip: bay.syscall(), rax: nr, rdi: code, ..base })?;
                thread.end_by(0)
            }
            libc::SIGKILL => {
                let kill = rustix::process::Signal::KILL;
                rustix::process::pidfd_send_signal(&self.pidfd, kill).named("pidfd_send_signal")?;
                thread.wait_end();
                Ok(())
            }
            signal => {
                thread.set_sigmask(!(1 << (signal - 1)))?;
                thread.end_by(signal)
            }
        }
    }

    /// Ends the leader alone, with a status from 0 to 255; others must live. It is a zombie when this
    /// returns, and nobody is told: its process lives. Untraced, for a traced one would be shown to
    /// its parent by us alone, as long as we live; should we die meanwhile the others take it along.
    pub fn end_leader(&mut self, code: u8) -> Result<()> {
        let base = self.base;
        let Strand { thread: leader, bay, .. } = self.living(0)?;
        let nr = libc::SYS_exit as u64;
        leader.set_regs(&Regs { rip: bay.syscall(), rax: nr, rdi: code.into(), ..base })?;
        let leader = self.threads.remove(0).thread;
        self.ended = 1;
        leader.leave()
    }

    /// Makes thread `index` issue a call and interrupts it at once, so that the kernel holds a
    /// fresh restart block for it. The bytes of `data` stand at the address [`Puppet::scratch`].
    /// Returns what the call left in rax: -516 when it waits to be restarted, else its result.
    pub fn rearm(&mut self, index: usize, nr: u64, args: [u64; 6], data: &[u8]) -> Result<u64> {
        let base = self.base;
        let Strand { thread, bay, .. } = self.living(index)?;
        memory::write(thread.tid(), bay.scratch(), data)?;
        let [rdi, rsi, rdx, r10, r8, r9] = args;
        thread.set_regs(&Regs { rip: bay.syscall(), rax: nr, rdi, rsi, rdx, r10, r8, r9, ..base })?;
        thread.run_to_syscall()?;
        thread.begin_and_interrupt()?;
        Ok(thread.regs()?.rax)
    }

    /// Scratch memory of thread `index` for [`Puppet::rearm`].
    pub fn scratch(&self, index: usize) -> u64 {
        self.strand(index).map_or(0, |strand| strand.bay.scratch())
    }

    /// Whether rax says that an interrupted call waits to be restarted.
    pub fn waits(rax: u64) -> bool {
        rax == ERESTART_RESTARTBLOCK
    }

    /// Unmaps the slot; from now on only registers, mask and xstate can be set.
    pub fn close_slot(&mut self) -> Result<()> {
        self.begin_to_close_slot()?;
        self.go_on_closing_slot()?;
        self.finish_closing_slot()
    }

    /// The first third of [`Puppet::close_slot`]: it is on its way into the call when this returns, so that those of several
    /// processes can be closed side by side.
    pub fn begin_to_close_slot(&mut self) -> Result<()> {
        self.finish()?;
        let (start, len, base) = (self.slot.start, self.slot.len as u64, self.base);
        let Strand { thread: first, bay, .. } = self.living(self.ended)?;
        let nr = libc::SYS_munmap as u64;
        first.set_regs(&Regs { rip: bay.syscall(), rax: nr, rdi: start, rsi: len, ..base })?;
        first.set_going_to_syscall()
    }

    /// The second third: it is in the call.
    pub fn go_on_closing_slot(&mut self) -> Result<()> {
        let first = self.thread(self.ended)?;
        first.wait_at_syscall()?;
        first.set_going_to_syscall()
    }

    /// The last third.
    pub fn finish_closing_slot(&mut self) -> Result<()> {
        let first = self.thread(self.ended)?;
        first.wait_at_syscall()?;
        match first.regs()?.rax {
            0 => Ok(()),
            rax => {
                Err(Errno::from_raw_os_error((rax as i64).unsigned_abs() as i32)).named("munmap of the slot")
            }
        }
    }

    /// Stops the process as SIGSTOP does; its parent is sent what it is sent then. Registers must
    /// be set, signals still blocked.
    pub fn stop(&mut self) -> Result<()> {
        rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::STOP)
            .named("pidfd_send_signal")?;
        // The first to go on takes the signal and begins the stop, which holds the others.
        self.threads.iter_mut().try_for_each(|strand| strand.thread.join_stop())
    }

    /// Makes it the init of its pid namespace, once it is released: it waits for all children, says
    /// on descriptor `fd` of its own how its child `pid` ended, and ends when there are none.
    pub fn become_init(&mut self, pid: i32, fd: i32) -> Result<()> {
        self.finish()?;
        let Some(Strand { thread, bay, .. }) = self.threads.first_mut() else {
            return Err(Error::Gone { tid: self.pid });
        };
        memory::write(self.pid, bay.scratch(), &init::code(pid, fd))?;
        thread.set_regs(&Regs { rip: bay.scratch(), ..self.base })
    }

    /// From now on it lives, finished as it is, even if we die before it is released.
    pub fn spare(&mut self) -> Result<()> {
        self.threads.iter_mut().try_for_each(|strand| strand.thread.spare())
    }

    /// Lets the process live. `begun` tells whether anybody has been let go: who runs by then may end
    /// others of its process, or other processes, before they are let go themselves. Those are added to `gone`, for [`see_off`].
    pub fn release(&mut self, begun: &mut bool, gone: &mut Vec<i32>) -> Result<Released> {
        let (pid, own_pid) = (self.pid, self.own_pid());
        for strand in std::mem::take(&mut self.threads) {
            let tid = strand.thread.tid();
            match strand.thread.detach() {
                Ok(()) => *begun = true,
                Err(Error::Gone { .. }) if *begun => gone.push(tid),
                Err(error) => return Err(error),
            }
        }
        self.released = true;
        let pidfd = self
            .pidfd
            .try_clone()
            .map_err(|e| Error::Os { call: "dup", errno: Errno::from_io_error(&e).unwrap_or(Errno::IO) })?;
        Ok(Released { pid, own_pid, pidfd })
    }
}

/// Waits for threads that were killed before they were let go, once everybody is: their parents are told only then. It takes
/// turns, as a leader can be waited for when its other threads have been, and process 1 of a pid namespace when
/// all others of that have. What a freezer holds does not end, and is left to be.
pub fn see_off(mut gone: Vec<i32>) {
    const PATIENCE: Duration = Duration::from_secs(10);
    let begun = Instant::now();
    while !gone.is_empty() && begun.elapsed() < PATIENCE {
        gone.retain(|tid| {
            loop {
                match waited(*tid, libc::WNOHANG) {
                    Some(false) => {}
                    news => break news.is_none(),
                }
            }
        });
        if !gone.is_empty() {
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        reap(self.pid);
    }
}

/// Waits for the end of a process that we trace and that has been killed.
fn reap(pid: i32) {
    loop {
        // The leader can be waited for when the others have been, also those that we never came to
        // know: it may have been killed while it made them.
        let tids = procfs::numbers(&format!("{pid}/task")).unwrap_or_default();
        tids.into_iter().filter(|tid| *tid != pid).for_each(|tid| while waited(tid, 0) == Some(false) {});
        // Likewise a child, for which process 1 of a pid namespace waits before it ends itself.
        let children = procfs::read(&format!("{pid}/task/{pid}/children")).unwrap_or_default();
        let children =
            children.split(|byte| *byte == b' ').filter_map(|pid| str::from_utf8(pid).ok()?.parse().ok());
        children.for_each(|child| {
            let _ = waited(child, libc::WNOHANG);
        });
        match waited(pid, libc::WNOHANG) {
            None => std::thread::sleep(Duration::from_micros(20)),
            Some(false) => {}
            Some(true) => return,
        }
    }
}

/// waitpid(2) of a task that has been killed: whether it is gone; `None` when there is no news.
fn waited(tid: i32, flags: i32) -> Option<bool> {
    let mut status = 0;
    // SAFETY: `status` is a live i32.
    match unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | flags) } {
        0 => None,
        result => Some(result != tid || !libc::WIFSTOPPED(status)),
    }
}
