//! Interval timers, alarm(2) and POSIX timers.
//!
//! *Saved*: what remains and the interval, by asking the process; which POSIX timers there are,
//! from /proc/PID/timers. *Restored*: by setitimer(2) and, with the same ids, by timer_create(2)
//! under PR_TIMER_CREATE_RESTORE_IDS (Linux 6.16) or by creating and deleting up to the id. One that can never tell
//! anybody, since the thread it tells or whose time it takes has ended, is made with SIGEV_NONE.
//! One whose signal is pending is set such that it sends that at once: to a moment that has passed, from which the
//! interval leads to the next expiry. So it has one signal pending, as ever, and counts overruns until that is taken.
//! *Lost*: the absolute phase: time does not pass for a timer while its process is an image; overruns that were not
//! told yet. A pending signal of a timer that has been deleted, or set again to expire once, is dropped, as
//! Linux 6.13 does when it is taken; of one set again to expire often it cannot be told from another.

use super::signal;
use crate::error::{Error, Result};
use ckpt_image::{
    model::Siginfo,
    record::{PosixTimer, Signal},
};
use ckpt_kernel::{
    Errno,
    program::{Arg, Outcome, Program},
};
use ckpt_proc::timers::Timer;
use rustix::time::{ClockId, DynamicClockId, clock_gettime_dynamic};
use std::collections::BTreeSet;
use zerocopy::IntoBytes;

const ITIMERS: [i32; 3] = [0, 1, 2];
const MILLION: u64 = 1_000_000;
const BILLION: u64 = 1_000_000_000;
const SIGEV_NONE: i32 = 1;
const SIGEV_THREAD_ID: i32 = 4;
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const RESTORE_IDS: &str = "prctl(PR_TIMER_CREATE_RESTORE_IDS)";
/// The highest id that is counted up to, on kernels where that is the only way.
const MOST_COUNTED: i32 = 1 << 16;

/// Asks for the interval timers.
pub(crate) fn itimer_questions(program: &mut Program) {
    for which in ITIMERS {
        program.call("getitimer", which as u64, libc::SYS_getitimer, [which.into(), Arg::Out(32)]);
    }
}

/// The interval timers, from the answers: interval and remaining value in microseconds.
pub(crate) fn checkpoint_itimers(answers: &[Outcome], signal: &mut Signal) {
    for (answer, timer) in answers.iter().zip(&mut signal.itimers) {
        let micros = |at: usize| answer.word(at).saturating_mul(MILLION).saturating_add(answer.word(at + 8));
        *timer = [micros(0), micros(16)];
    }
}

/// Sets the interval timers.
pub(crate) fn restore_itimers(program: &mut Program, signal: &Signal) {
    for (which, [interval, value]) in ITIMERS.into_iter().zip(signal.itimers) {
        if value != 0 {
            let words = [interval / MILLION, interval % MILLION, value / MILLION, value % MILLION];
            let args = [which.into(), Arg::In(words.as_bytes().to_vec()), 0u64.into()];
            program.call("setitimer", which as u64, libc::SYS_setitimer, args);
        }
    }
}

/// Asks when each of `timers` runs out and how often it was missed.
pub(crate) fn posix_questions(program: &mut Program, timers: &[Timer]) {
    for timer in timers {
        let id = timer.id as u64;
        program.call("timer_gettime", id, libc::SYS_timer_gettime, [timer.id.into(), Arg::Out(32)]);
        program.call("timer_getoverrun", id, libc::SYS_timer_getoverrun, [timer.id.into()]);
    }
}

/// The POSIX timers, ascending by id.
pub(crate) fn checkpoint_posix(timers: &[Timer], answers: &[Outcome]) -> Result<Vec<PosixTimer>> {
    let mut records = Vec::with_capacity(timers.len());
    for (timer, answer) in timers.iter().zip(answers.chunks_exact(2)) {
        let [time, overrun] = answer else { return Err(Error::failed("timer answers")) };
        let nanos = |at: usize| time.word(at).saturating_mul(BILLION).saturating_add(time.word(at + 8));
        let notify = timer.notify.raw();
        records.push(PosixTimer {
            id: timer.id,
            clockid: timer.clockid,
            notify,
            signo: timer.signo,
            tid: if notify & SIGEV_THREAD_ID != 0 { timer.notify.id } else { 0 },
            overrun: overrun.result as i32,
            value: timer.value,
            interval: nanos(0),
            remaining: nanos(16),
        });
    }
    records.sort_by_key(|t| t.id);
    Ok(records)
}

/// The timer to make now. Both give the id that a task has now, unless it has ended: `told` of the thread a timer
/// tells, `timed` of whose CPU time it takes, by the id the process itself knows it by.
pub(crate) fn as_now(
    timer: &PosixTimer,
    told: impl Fn(i32) -> Option<i32>,
    timed: impl Fn(i32) -> Option<i32>,
) -> PosixTimer {
    let mut now = *timer;
    if timer.notify & SIGEV_THREAD_ID != 0 {
        match told(timer.tid) {
            Some(tid) => now.tid = tid,
            None => (now.notify, now.tid) = (SIGEV_NONE, 0),
        }
    }
    if let Some(id) = owner(timer.clockid) {
        match timed(id) {
            Some(id) => now.clockid = !id << 3 | timer.clockid & 7,
            None => {
                (now.notify, now.tid, now.clockid, now.remaining) = (SIGEV_NONE, 0, libc::CLOCK_MONOTONIC, 0);
            }
        }
    }
    now
}

/// Whose CPU time a clock is, as clock_getcpuclockid(3) makes it; the caller's (0) and those of a descriptor apart.
fn owner(clockid: i32) -> Option<i32> {
    const CLOCKFD: i32 = 3;
    let id = !(clockid >> 3);
    (clockid < 0 && clockid & 3 != CLOCKFD && id != 0).then_some(id)
}

/// The timers that sent what is pending.
pub(crate) fn senders<'a>(pending: impl IntoIterator<Item = &'a Siginfo>) -> BTreeSet<i32> {
    pending.into_iter().filter_map(signal::timer_of).collect()
}

/// Makes the POSIX timers again, by the ids in `timers`: lacking that, the program must be the one of
/// [`restore_posix_by_counting`]. Those in `sent` have a signal pending.
pub(crate) fn restore_posix(program: &mut Program, timers: &[PosixTimer], sent: &BTreeSet<i32>) {
    let prctl = libc::SYS_prctl;
    let ids =
        |on: u64| [PR_TIMER_CREATE_RESTORE_IDS.into(), on.into(), 0u64.into(), 0u64.into(), 0u64.into()];
    program.call(RESTORE_IDS, 0, prctl, ids(1));
    for timer in timers {
        create(program, timer);
    }
    program.call(RESTORE_IDS, 0, prctl, ids(0));
    for timer in timers {
        arm(program, timer, sent.contains(&timer.id));
    }
}

/// Whether [`restore_posix`] failed because the kernel takes no ids from us.
pub(crate) fn lacks_ids(cause: &ckpt_kernel::Error) -> bool {
    matches!(cause, ckpt_kernel::Error::Call { what: RESTORE_IDS, errno: Errno::INVAL, .. })
}

/// Makes the POSIX timers again on a kernel that counts ids up from 0: unwanted ones are created
/// and deleted.
pub(crate) fn restore_posix_by_counting(
    program: &mut Program,
    timers: &[PosixTimer],
    sent: &BTreeSet<i32>,
) -> Result<()> {
    let mut next = 0;
    for timer in timers {
        if timer.id > MOST_COUNTED {
            return Err(Error::unsupported(format!("a timer with id {} needs Linux 6.16", timer.id)));
        }
        while next < timer.id {
            create(
                program,
                &PosixTimer {
                    id: next,
                    notify: SIGEV_NONE,
                    clockid: libc::CLOCK_MONOTONIC,
                    tid: 0,
                    ..*timer
                },
            );
            program.call("timer_delete", next as u64, libc::SYS_timer_delete, [next.into()]);
            next += 1;
        }
        create(program, timer);
        next += 1;
    }
    for timer in timers {
        arm(program, timer, sent.contains(&timer.id));
    }
    Ok(())
}

fn create(program: &mut Program, timer: &PosixTimer) {
    let mut event = [0u64; 8];
    event[0] = timer.value;
    event[1] = u64::from(timer.signo as u32) | u64::from(timer.notify as u32) << 32;
    event[2] = u64::from(timer.tid as u32);
    let id = u64::from(timer.id as u32).to_le_bytes().to_vec();
    let args = [timer.clockid.into(), Arg::In(event.as_bytes().to_vec()), Arg::InOut(id)];
    program.call("timer_create", timer.id as u64, libc::SYS_timer_create, args);
}

fn arm(program: &mut Program, timer: &PosixTimer, sent: bool) {
    const TIMER_ABSTIME: u64 = 1;
    // One that was set again since then would not be armed else.
    let now = sent && (timer.interval != 0 || timer.remaining == 0);
    let (flags, value) = match now {
        true => (TIMER_ABSTIME, last_expiry(timer).max(1)),
        false => (0, timer.remaining),
    };
    if value != 0 {
        let words = [timer.interval, value].map(|t| [t / BILLION, t % BILLION]);
        let args = [timer.id.into(), flags.into(), Arg::In(words.as_bytes().to_vec()), 0u64.into()];
        program.call("timer_settime", timer.id as u64, libc::SYS_timer_settime, args);
    }
}

/// When a timer expired last, on its clock, if it expires often; 0 on the clocks of CPU time, which begin anew.
fn last_expiry(timer: &PosixTimer) -> u64 {
    let clock = match timer.clockid {
        _ if timer.interval == 0 => return 0,
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => DynamicClockId::Known(ClockId::Realtime),
        libc::CLOCK_MONOTONIC => DynamicClockId::Known(ClockId::Monotonic),
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => DynamicClockId::Boottime,
        libc::CLOCK_TAI => DynamicClockId::Tai,
        _ => return 0,
    };
    let Ok(now) = clock_gettime_dynamic(clock) else { return 0 };
    let now = (now.tv_sec as u64).saturating_mul(BILLION).saturating_add(now.tv_nsec as u64);
    now.saturating_add(timer.remaining).saturating_sub(timer.interval)
}
