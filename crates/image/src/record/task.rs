//! Processes, threads and what they share: the records of 101-199 and 601-699.

use super::*;

wire! {
    /// The task tree that follows.
    102 "TREE" [] struct Tree {
        /// Processes (thread groups) in the image.
        pub nr_tasks: u32,
        /// Threads in all of them.
        pub nr_threads: u32,
        /// Pid of the root of the tree, as its checkpointer saw it.
        pub root: i32,
        /// Zero.
        pub pad: u32,
    }
}

wire! {
    /// One process (thread group). Its [`Thread`] records follow, the leader first.
    103 "TASK" [] struct Task {
        /// Thread group id.
        pub pid: i32,
        /// Parent.
        pub ppid: i32,
        /// Process group.
        pub pgid: i32,
        /// Session.
        pub sid: i32,
        /// Threads that follow.
        pub nr_threads: u32,
        /// [`task_state`].
        pub state: u32,
        /// Signal sent to the parent at exit.
        pub exit_signal: i32,
        /// Wait status of a zombie; of a stopped process the one its parent has yet to see, or 0.
        pub exit_code: i32,
        /// Memory, [`Mm`].
        pub mm: i32,
        /// Descriptors, [`FileTable`].
        pub files: i32,
        /// Root, cwd and umask, [`Fs`].
        pub fs: i32,
        /// Signal handlers, [`Sighand`].
        pub sighand: i32,
        /// What the threads share besides: limits, timers, pending signals, [`Signal`].
        pub signal: i32,
        /// Foreground process group of the controlling terminal, or 0.
        pub tpgid: i32,
        /// Thread of the parent whose child it is, or 0: the leader.
        pub parent_tid: i32,
        /// Pid namespace its children are made in: [`children_pidns`], or its number in a [`PidLevel`].
        pub children_pidns: u32,
        /// Its controlling terminal, an [`Inode`] that is a pty; 0 for one outside, or none.
        pub tty: i32,
        /// Zero.
        pub pad: u32,
    }
}

/// Values of [`Task::children_pidns`] that are no number of a namespace.
pub mod children_pidns {
    /// The process's own.
    pub const OWN: u32 = 0;
    /// A new one, whose process 1 has yet to be made.
    pub const NEW: u32 = u32::MAX;
}

/// Values of [`Task::state`].
pub mod task_state {
    /// Runs (or sleeps).
    pub const RUNNING: u32 = 0;
    /// Stopped by a job-control signal.
    pub const STOPPED: u32 = 1;
    /// Dead, not yet waited for.
    pub const ZOMBIE: u32 = 2;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[RUNNING, STOPPED, ZOMBIE];
}

wire! {
    /// `struct user_regs_struct` of x86-64 (`NT_PRSTATUS` regset), as it was at the stop.
    struct Regs {
        /// General registers in the kernel's order.
        pub r15: u64,
        /// General register r14.
        pub r14: u64,
        /// General register r13.
        pub r13: u64,
        /// General register r12.
        pub r12: u64,
        /// Frame pointer.
        pub rbp: u64,
        /// General register rbx.
        pub rbx: u64,
        /// General register r11; `syscall` leaves rflags in it.
        pub r11: u64,
        /// Fourth argument of a system call.
        pub r10: u64,
        /// Sixth argument of a system call.
        pub r9: u64,
        /// Fifth argument of a system call.
        pub r8: u64,
        /// Return value, or -512..-516 in an interrupted call.
        pub rax: u64,
        /// General register rcx; `syscall` leaves rip in it.
        pub rcx: u64,
        /// Third argument.
        pub rdx: u64,
        /// Second argument.
        pub rsi: u64,
        /// First argument.
        pub rdi: u64,
        /// Number of the system call in progress, or -1.
        pub orig_rax: u64,
        /// Instruction pointer.
        pub rip: u64,
        /// Code segment selector.
        pub cs: u64,
        /// Processor flags.
        pub eflags: u64,
        /// Stack pointer.
        pub rsp: u64,
        /// Stack segment selector.
        pub ss: u64,
        /// Base of the fs segment: thread-local storage.
        pub fs_base: u64,
        /// Base of the gs segment.
        pub gs_base: u64,
        /// Data segment selector.
        pub ds: u64,
        /// Extra segment selector.
        pub es: u64,
        /// fs segment selector.
        pub fs: u64,
        /// gs segment selector.
        pub gs: u64,
    }
}

wire! {
    /// An interrupted call with a relative timeout, to be issued again with what remained of it.
    struct RestartBlock {
        /// [`restart_kind`].
        pub kind: u32,
        /// Zero.
        pub pad: u32,
        /// Nanoseconds that remained at the freeze.
        pub remaining: u64,
    }
}

/// Values of [`RestartBlock::kind`].
pub mod restart_kind {
    /// The call, if any, is restarted by its registers alone.
    pub const NONE: u32 = 0;
    /// nanosleep(2), relative.
    pub const NANOSLEEP: u32 = 1;
    /// clock_nanosleep(2), relative.
    pub const CLOCK_NANOSLEEP: u32 = 2;
    /// poll(2) with a timeout.
    pub const POLL: u32 = 3;
    /// futex(2) FUTEX_WAIT with a timeout.
    pub const FUTEX: u32 = 4;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[NONE, NANOSLEEP, CLOCK_NANOSLEEP, POLL, FUTEX];
}

wire! {
    /// One thread. Fields: comm, xsave area, private pending signals (128-byte siginfos),
    /// CPU affinity mask, array of [`PidLevel`].
    107 "THREAD" [comm, xstate, pending, affinity, levels] struct Thread {
        /// Thread id.
        pub tid: i32,
        /// Signal to get when the parent dies, 0 for none (PR_SET_PDEATHSIG).
        pub pdeath_signal: i32,
        /// General registers.
        pub regs: Regs,
        /// Blocked signals.
        pub sigmask: u64,
        /// Alternate signal stack (sigaltstack(2)): its lowest address.
        pub altstack_sp: u64,
        /// Bytes of the alternate signal stack.
        pub altstack_size: u64,
        /// SS_* flags of the alternate stack.
        pub altstack_flags: u32,
        /// securebits of the thread.
        pub securebits: u32,
        /// Robust futex list head (set_robust_list(2)).
        pub robust_head: u64,
        /// Its size argument.
        pub robust_len: u64,
        /// Address cleared and woken at exit (set_tid_address(2)).
        pub clear_child_tid: u64,
        /// rseq(2) area, 0 when not registered.
        pub rseq_addr: u64,
        /// Its size.
        pub rseq_size: u32,
        /// Its signature.
        pub rseq_sig: u32,
        /// Its flags.
        pub rseq_flags: u32,
        /// Scheduling policy (sched_setattr(2)).
        pub sched_policy: u32,
        /// Scheduling flags.
        pub sched_flags: u64,
        /// Nice value; of a real-time thread the one it keeps for when it is none.
        pub nice: i32,
        /// Real-time priority.
        pub sched_priority: u32,
        /// SCHED_DEADLINE runtime, nanoseconds; of SCHED_OTHER and SCHED_BATCH a slice of its own, or 0.
        pub sched_runtime: u64,
        /// SCHED_DEADLINE deadline, nanoseconds.
        pub sched_deadline: u64,
        /// SCHED_DEADLINE period, nanoseconds.
        pub sched_period: u64,
        /// ioprio_get(2) value.
        pub ioprio: u32,
        /// 1 when no_new_privs is set.
        pub no_new_privs: u32,
        /// Timer slack, nanoseconds.
        pub timerslack: u64,
        /// Credentials, [`Cred`].
        pub cred: i32,
        /// What to do about memory errors: PR_MCE_KILL_LATE 0, EARLY 1, DEFAULT 2.
        pub mce_kill: u32,
        /// Interrupted call.
        pub restart: RestartBlock,
        /// [`task_state`]: ZOMBIE of a leader that has ended while others live, else RUNNING.
        pub state: u32,
        /// Wait status of such a leader, else 0.
        pub exit_code: i32,
        /// personality(2).
        pub personality: u32,
        /// Zero.
        pub pad: u32,
    }
}

wire! {
    /// The ids of a thread in a pid namespace below that of the tree's root; the outermost comes first,
    /// the one it is in last.
    struct PidLevel {
        /// Number of the namespace, by which the image knows it.
        pub pidns: u32,
        /// Thread id there.
        pub tid: i32,
        /// Process group there, 0 if its leader is outside.
        pub pgid: i32,
        /// Session there, 0 if its leader is outside.
        pub sid: i32,
    }
}

wire! {
    /// Credentials. Field: supplementary groups (u32 each).
    116 "CRED" [groups] struct Cred {
        /// Real, effective, saved and file-system user id.
        pub uid: [u32; 4],
        /// Real, effective, saved and file-system group id.
        pub gid: [u32; 4],
        /// Capability sets, one bit per capability: CapInh.
        pub cap_inheritable: u64,
        /// CapPrm.
        pub cap_permitted: u64,
        /// CapEff.
        pub cap_effective: u64,
        /// CapBnd.
        pub cap_bounding: u64,
        /// CapAmb.
        pub cap_ambient: u64,
    }
}

wire! {
    /// Signal handlers. Field: array of [`SigAction`], signals 1..=64.
    601 "SIGHAND" [actions] struct Sighand {}
}

wire! {
    /// `struct kernel_sigaction` of x86-64.
    struct SigAction {
        /// SIG_DFL, SIG_IGN or an address.
        pub handler: u64,
        /// SA_* flags.
        pub flags: u64,
        /// Return trampoline.
        pub restorer: u64,
        /// Signals blocked while the handler runs.
        pub mask: u64,
    }
}

wire! {
    /// What the threads of a process share besides handlers. Fields: shared pending signals
    /// (128-byte siginfos), array of [`PosixTimer`].
    602 "SIGNAL" [pending, timers] struct Signal {
        /// getrlimit(2): soft and hard, RLIMIT_CPU first.
        pub rlimits: [[u64; 2]; 16],
        /// getitimer(2) REAL, VIRTUAL, PROF: interval and remaining value, microseconds.
        pub itimers: [[u64; 2]; 3],
        /// /proc/PID/oom_score_adj.
        pub oom_score_adj: i32,
        /// PR_GET_CHILD_SUBREAPER.
        pub child_subreaper: u32,
    }
}

wire! {
    /// One timer_create(2) timer.
    struct PosixTimer {
        /// Kernel timer id.
        pub id: i32,
        /// Clock.
        pub clockid: i32,
        /// SIGEV_*.
        pub notify: i32,
        /// Signal.
        pub signo: i32,
        /// Thread for SIGEV_THREAD_ID, else 0.
        pub tid: i32,
        /// timer_getoverrun(2).
        pub overrun: i32,
        /// sigev_value.
        pub value: u64,
        /// Nanoseconds between expiries, 0 for a timer that expires once.
        pub interval: u64,
        /// Nanoseconds until it next expires, 0 when disarmed.
        pub remaining: u64,
    }
}
