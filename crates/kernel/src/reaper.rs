//! Threads of a process that ended while we trace them, and what waits for them to be seen off.
//!
//! A thread that executes a program waits, with a mutex that PTRACE_SEIZE takes (cred_guard_mutex; exec.c, de_thread), until
//! the other threads of its process are gone. Those that we trace are not before we have waited for them: who
//! then seizes another thread of that process would wait for ever. So while threads are seized a *reaper* sees
//! off those that have ended, if a PTRACE_SEIZE does not return within a moment.

use crate::procfs;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long a PTRACE_SEIZE may take before something is done about it, at least.
const MOMENT: Duration = Duration::from_millis(5);

/// The turn of the PTRACE_SEIZE in progress and the process it is about, as the thread may be gone by then; 0 when there
/// is none.
static SEIZING: AtomicU64 = AtomicU64::new(0);
static TURNS: AtomicU64 = AtomicU64::new(1);

/// A PTRACE_SEIZE in progress.
pub(crate) struct Seizing;

impl Seizing {
    /// That of a thread of process `pid`.
    pub(crate) fn begin(pid: i32) -> Seizing {
        let turn = TURNS.fetch_add(1, Ordering::Relaxed);
        SEIZING.store(turn << 32 | u64::from(pid.unsigned_abs()), Ordering::Release);
        Seizing
    }
}

impl Drop for Seizing {
    fn drop(&mut self) {
        SEIZING.store(0, Ordering::Release);
    }
}

/// Sees that no PTRACE_SEIZE of ours waits for ever, as long as it lives.
#[derive(Debug)]
pub struct Reaper {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Begins. Whoever forks should not do so while it lives.
    pub fn start() -> Reaper {
        let ends = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ends);
        let work = move || {
            let mut last = 0;
            while !over.load(Ordering::Acquire) {
                let now = SEIZING.load(Ordering::Acquire);
                if now != 0 && now == last {
                    reap_siblings(now as u32 as i32);
                }
                last = now;
                thread::park_timeout(MOMENT);
            }
        };
        // Without it a deadlock is unlikely, and ends with us.
        Reaper { ends, thread: thread::Builder::new().name("reaper".to_owned()).spawn(work).ok() }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Waits for those threads of the process of `tid` that have ended and are traced by any of our threads.
pub(crate) fn reap_siblings(tid: i32) {
    const ENDED: [i32; 3] = [libc::CLD_EXITED, libc::CLD_KILLED, libc::CLD_DUMPED];
    for tid in procfs::numbers(&format!("{tid}/task")).unwrap_or_default() {
        // Whatever it is asked for, it takes the stops of tracees as well: a look comes first. What has ended stays so.
        if ENDED.contains(&wait(tid, libc::WNOWAIT)) {
            wait(tid, 0);
        }
    }
}

/// waitid(2) for the end of one thread, without waiting: the si_code it gives, 0 for nothing.
fn wait(tid: i32, flags: i32) -> i32 {
    let flags = flags | libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: an all-zero siginfo_t is a valid one.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live siginfo_t the kernel may write.
    let result = unsafe { libc::waitid(libc::P_PID, tid.unsigned_abs(), &raw mut info, flags) };
    if result == 0 { info.si_code } else { 0 }
}
