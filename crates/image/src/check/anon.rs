//! Rules for files without a name in any file system: eventfd, epoll, signalfd, timerfd, pidfd, inotify.

use zerocopy::FromBytes;

use super::{Check, Refs, rule};
use crate::model::{File, details};
use crate::record::{self, EpollEntry, Eventfd, InotifyWatch, Pidfd, Signalfd, Timerfd, file_kind};

/// CLOCK_REALTIME, MONOTONIC, BOOTTIME, REALTIME_ALARM, BOOTTIME_ALARM.
const TIMERFD_CLOCKS: [u32; 5] = [0, 1, 7, 8, 9];
/// TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET.
const TIMERFD_FLAGS: u32 = 3;

/// The details of kinds whose files are objects of the kernel without a name, and of all that have none.
pub(super) fn check(file: &File, refs: &mut Refs<'_>) -> Check {
    match file.record.kind {
        file_kind::EVENTFD => {
            let eventfd: Eventfd = one(file)?;
            rule(eventfd.semaphore <= 1 && eventfd.pad == 0, "an eventfd has unknown flags")?;
            rule(eventfd.count < u64::MAX, "an eventfd counts too high")
        }
        file_kind::EPOLL => all::<EpollEntry>(file)?.iter().try_for_each(|entry| {
            rule(entry.fd >= 0 && entry.pad == 0, "an entry of an epoll has a negative number")?;
            refs.required::<record::File>(entry.file)
        }),
        file_kind::SIGNALFD => one::<Signalfd>(file).map(drop),
        file_kind::TIMERFD => {
            let timer: Timerfd = one(file)?;
            rule(TIMERFD_CLOCKS.contains(&timer.clock), "a timer of an unknown clock")?;
            rule(timer.flags & !TIMERFD_FLAGS == 0, "a timer has unknown flags")?;
            let times = [timer.remaining, timer.interval, timer.deadline];
            rule(times.iter().all(|time| i64::try_from(*time).is_ok()), "a timer's time is too large")
        }
        file_kind::PIDFD => {
            let pidfd: Pidfd = one(file)?;
            rule(pidfd.pid >= 0 && pidfd.pad == 0, "a pidfd of a negative id")
        }
        file_kind::INOTIFY => {
            let mut free = 1;
            all::<InotifyWatch>(file)?.iter().try_for_each(|watch| {
                rule(watch.wd >= free && watch.wd < i32::MAX, "watches do not ascend")?;
                rule(watch.pad == 0, "padding of a watch is not zero")?;
                free = watch.wd.saturating_add(1);
                refs.required::<record::File>(watch.file)
            })
        }
        _ => rule(file.details.is_empty(), "details of a kind that has none"),
    }
}

/// All details of a file.
fn all<T: FromBytes>(file: &File) -> Result<Vec<T>, &'static str> {
    details(&file.details).ok_or("details of the wrong size")
}

/// The only details of a file.
fn one<T: FromBytes + Copy>(file: &File) -> Result<T, &'static str> {
    match all(file)?.as_slice() {
        [one] => Ok(*one),
        _ => Err("details of another number than one"),
    }
}
