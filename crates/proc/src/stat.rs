//! `/proc/PID/stat` (proc_pid_stat(5)).

use crate::ParseError;
use crate::text::{Fields, Place};

/// Bit of [`Stat::flags`]: a kernel thread (`PF_KTHREAD` of `include/linux/sched.h`).
pub const PF_KTHREAD: u32 = 0x0020_0000;
/// Bit of [`Stat::flags`]: getting shut down (`PF_EXITING` of `include/linux/sched.h`).
pub const PF_EXITING: u32 = 0x0000_0004;

/// The state of a task, the third field of proc_pid_stat(5) and the `State:` line of proc_pid_status(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// `R`: running or runnable.
    Running,
    /// `S`: in an interruptible sleep.
    Sleeping,
    /// `D`: in an uninterruptible sleep.
    DiskSleep,
    /// `T`: stopped by a signal.
    Stopped,
    /// `t`: stopped by its tracer.
    Traced,
    /// `Z`: dead and not waited for.
    Zombie,
    /// `X`: dead.
    Dead,
    /// `P`: parked (a kernel thread).
    Parked,
    /// `I`: idle (a kernel thread).
    Idle,
    /// A letter of another kernel release.
    Other(u8),
}

impl TaskState {
    /// The state of a letter.
    pub const fn from_byte(letter: u8) -> TaskState {
        match letter {
            b'R' => TaskState::Running,
            b'S' => TaskState::Sleeping,
            b'D' => TaskState::DiskSleep,
            b'T' => TaskState::Stopped,
            b't' => TaskState::Traced,
            b'Z' => TaskState::Zombie,
            b'X' => TaskState::Dead,
            b'P' => TaskState::Parked,
            b'I' => TaskState::Idle,
            other => TaskState::Other(other),
        }
    }

    /// Whether the task has ended, waited for or not.
    pub const fn has_ended(self) -> bool {
        matches!(self, TaskState::Zombie | TaskState::Dead)
    }

    /// The letter of the state.
    pub const fn as_byte(self) -> u8 {
        match self {
            TaskState::Running => b'R',
            TaskState::Sleeping => b'S',
            TaskState::DiskSleep => b'D',
            TaskState::Stopped => b'T',
            TaskState::Traced => b't',
            TaskState::Zombie => b'Z',
            TaskState::Dead => b'X',
            TaskState::Parked => b'P',
            TaskState::Idle => b'I',
            TaskState::Other(other) => other,
        }
    }
}

/// `/proc/PID/stat` (proc_pid_stat(5)); the names are the manual's. Addresses, and `exit_code`, are 0 to readers
/// who may not ptrace the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// (1) Thread group or thread id, in the reader's PID namespace.
    pub pid: i32,
    /// (2) Name, without the parentheses around it; any bytes but NUL.
    pub comm: Vec<u8>,
    /// (3) State.
    pub state: TaskState,
    /// (4) Parent; 0 when it is not in the reader's PID namespace.
    pub ppid: i32,
    /// (5) Process group.
    pub pgrp: i32,
    /// (6) Session.
    pub session: i32,
    /// (7) Controlling terminal, as an encoded device number; 0 for none.
    pub tty_nr: i32,
    /// (8) Foreground process group of the controlling terminal; -1 for none.
    pub tpgid: i32,
    /// (9) `PF_*` flags; see [`PF_KTHREAD`].
    pub flags: u32,
    /// (14) Time in user mode, in clock ticks.
    pub utime: u64,
    /// (15) Time in kernel mode, in clock ticks.
    pub stime: u64,
    /// (16) Children's time in user mode, in clock ticks.
    pub cutime: i64,
    /// (17) Children's time in kernel mode, in clock ticks.
    pub cstime: i64,
    /// (18) Priority as the kernel has it: negative for real-time policies.
    pub priority: i64,
    /// (19) Nice value, -20 to 19.
    pub nice: i64,
    /// (20) Threads in the process.
    pub num_threads: i64,
    /// (22) Start, in clock ticks after boot. With the pid this names a task for as long as the machine is up.
    pub starttime: u64,
    /// (26) Start of the program text.
    pub start_code: u64,
    /// (27) End of the program text.
    pub end_code: u64,
    /// (28) Bottom of the stack.
    pub start_stack: u64,
    /// (38) Signal sent to the parent on exit; -1 for a thread that is not the leader.
    pub exit_signal: i32,
    /// (39) CPU last run on.
    pub processor: i32,
    /// (40) Real-time priority, 1 to 99; 0 for others.
    pub rt_priority: u32,
    /// (41) Scheduling policy, `SCHED_*`.
    pub policy: u32,
    /// (45) Start of the data.
    pub start_data: u64,
    /// (46) End of the data.
    pub end_data: u64,
    /// (47) Start of the heap brk(2) moves.
    pub start_brk: u64,
    /// (48) Start of the arguments.
    pub arg_start: u64,
    /// (49) End of the arguments.
    pub arg_end: u64,
    /// (50) Start of the environment.
    pub env_start: u64,
    /// (51) End of the environment.
    pub env_end: u64,
    /// (52) Status in the form of waitpid(2).
    pub exit_code: i32,
}

impl Stat {
    /// Whether the task is a kernel thread.
    pub fn is_kthread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Whether the process of the task has ended; a leader whose other threads live may have, alone.
    pub fn process_has_ended(&self) -> bool {
        self.state.has_ended() && self.num_threads <= 1
    }
}

/// Parses `/proc/PID/stat` or `/proc/PID/task/TID/stat` (proc_pid_stat(5)).
///
/// The name may hold parentheses, blanks and newlines, unescaped; it ends at the last `)`, as no field behind it
/// has one.
///
/// # Errors
/// Fewer than the 52 fields of Linux 3.5, or one that is not a number.
pub fn parse_stat(text: &[u8]) -> Result<Stat, ParseError> {
    let place = Place { file: "stat", line: 1 };
    let open = memchr::memchr(b'(', text).ok_or_else(|| place.missing("comm"))?;
    let close = memchr::memrchr(b')', text).ok_or_else(|| place.missing("comm"))?;
    let comm = text.get(open + 1..close).ok_or_else(|| place.malformed("comm"))?;
    let tail = text.get(close + 1..).unwrap_or_default();
    let tail = tail.strip_suffix(b"\n").unwrap_or(tail);
    let pid = Fields::new(text.get(..open).unwrap_or_default(), place).signed("pid")?;

    // In the order of the file: a struct expression is evaluated as it is written.
    let f = &mut Fields::new(tail, place);
    let head = Head {
        state: f.parse("state", |word| match word {
            [letter] => Some(TaskState::from_byte(*letter)),
            _ => None,
        })?,
        ppid: f.signed("ppid")?,
        pgrp: f.signed("pgrp")?,
        session: f.signed("session")?,
        tty_nr: f.signed("tty_nr")?,
        tpgid: f.signed("tpgid")?,
        flags: f.dec("flags")?,
    };
    f.skip(4, "minflt to cmajflt")?;
    let (utime, stime) = (f.dec("utime")?, f.dec("stime")?);
    let (cutime, cstime) = (f.signed("cutime")?, f.signed("cstime")?);
    let (priority, nice, num_threads) = (f.signed("priority")?, f.signed("nice")?, f.signed("num_threads")?);
    f.skip(1, "itrealvalue")?;
    let starttime = f.dec("starttime")?;
    f.skip(3, "vsize to rsslim")?;
    let (start_code, end_code, start_stack) = (f.dec("startcode")?, f.dec("endcode")?, f.dec("startstack")?);
    f.skip(9, "kstkesp to cnswap")?;
    let (exit_signal, processor) = (f.signed("exit_signal")?, f.signed("processor")?);
    let (rt_priority, policy) = (f.dec("rt_priority")?, f.dec("policy")?);
    f.skip(3, "delayacct_blkio_ticks to cguest_time")?;
    Ok(Stat {
        pid,
        comm: comm.to_vec(),
        state: head.state,
        ppid: head.ppid,
        pgrp: head.pgrp,
        session: head.session,
        tty_nr: head.tty_nr,
        tpgid: head.tpgid,
        flags: head.flags,
        utime,
        stime,
        cutime,
        cstime,
        priority,
        nice,
        num_threads,
        starttime,
        start_code,
        end_code,
        start_stack,
        exit_signal,
        processor,
        rt_priority,
        policy,
        start_data: f.dec("start_data")?,
        end_data: f.dec("end_data")?,
        start_brk: f.dec("start_brk")?,
        arg_start: f.dec("arg_start")?,
        arg_end: f.dec("arg_end")?,
        env_start: f.dec("env_start")?,
        env_end: f.dec("env_end")?,
        exit_code: f.signed("exit_code")?,
    })
}

/// Fields 3 to 9.
struct Head {
    state: TaskState,
    ppid: i32,
    pgrp: i32,
    session: i32,
    tty_nr: i32,
    tpgid: i32,
    flags: u32,
}
