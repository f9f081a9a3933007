//! timerfd_create(2).
//!
//! *Saved*: clock, what remains, interval, the flags it was last set with, expirations not read yet, flags; of one
//! that was set with TFD_TIMER_ABSTIME when it expires, too. All but that is in fdinfo. The kernel counts the
//! expirations of a periodic timer when somebody asks: timerfd_gettime(2) on a copy of the descriptor makes it do
//! so, which the program cannot tell. *Restored*: made when files are opened, set last of all, so that no time
//! passes: to what remains, or, set with TFD_TIMER_ABSTIME, to the same point in time, as deadlines of calls in
//! progress are. After a reboot clocks other than CLOCK_REALTIME are not the same, and it is what remains that counts.
//! Unread expirations: TFD_IOC_SET_TICKS (CONFIG_CHECKPOINT_RESTORE). *Lost*: some microseconds of a deadline;
//! that the clock was set and the program not told yet (TFD_TIMER_CANCEL_ON_SET).

use super::{Descriptor, FileKind, Files, OpenContext, detail, settle_flags};
use crate::{
    error::{Context, Doing, Error, Result},
    machine,
    objects::Objects,
};
use ckpt_image::{
    Image, Object, model,
    record::{self, file_kind},
};
use ckpt_kernel::{Errno, anon};
use ckpt_proc::{anon::Timerfd as Found, link::FdLink};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_gettime, timerfd_settime,
};
use std::os::fd::OwnedFd;

/// See the module.
pub(crate) struct Timerfd;

const NANOSECONDS: u64 = 1_000_000_000;

impl FileKind for Timerfd {
    fn kind(&self) -> u32 {
        file_kind::TIMERFD
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place() && descriptor.target() == FdLink::AnonInode(b"timerfd")
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        let found = look(descriptor)?;
        let absolute = found.flags & TimerfdTimerFlags::ABSTIME.bits() != 0 && found.value != 0;
        let (_, clock) = clocks(found.clock).ok_or_else(|| {
            Error::unsupported(format!("a timer of clock {} cannot be carried", found.clock))
        })?;
        // Too late by the time this takes: an early timer may find that its time has not come.
        let deadline = if absolute { now(clock).saturating_add(found.value) } else { 0 };
        let Found { clock, flags, value: remaining, interval, ticks } = found;
        let timer = record::Timerfd { clock, flags, remaining, interval, deadline, ticks };
        descriptor.detailed(file_kind::TIMERFD, &[timer])
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let timer: record::Timerfd = detail(file)?;
        let (clock, _) =
            clocks(timer.clock).ok_or_else(|| Error::bad_image("a timer of an unknown clock"))?;
        let fd = timerfd_create(clock, TimerfdFlags::CLOEXEC)
            .map_err(|e| Error::os("make a timerfd", e).advice("alarm clocks need CAP_WAKE_ALARM"))?;
        settle_flags(&fd, file)?;
        Ok(Some(fd))
    }
}

/// The clock of a timer, and how it is read.
fn clocks(clock: u32) -> Option<(TimerfdClockId, ClockId)> {
    Some(match clock {
        0 => (TimerfdClockId::Realtime, ClockId::Realtime),
        1 => (TimerfdClockId::Monotonic, ClockId::Monotonic),
        7 => (TimerfdClockId::Boottime, ClockId::Boottime),
        8 => (TimerfdClockId::RealtimeAlarm, ClockId::Realtime),
        9 => (TimerfdClockId::BoottimeAlarm, ClockId::Boottime),
        _ => return None,
    })
}

fn now(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec.max(0) as u64 * NANOSECONDS + now.tv_nsec as u64
}

/// The timer, its expirations counted up to now.
fn look(descriptor: &Descriptor<'_>) -> Result<Found> {
    const ATTEMPTS: u32 = 100;
    let copy = descriptor.copy()?;
    let mut found = None;
    for _ in 0..ATTEMPTS {
        let time = timerfd_gettime(copy).doing(|| "timerfd_gettime".to_owned())?;
        let running = (time.it_value.tv_sec, time.it_value.tv_nsec) != (0, 0);
        let info = descriptor.fresh_info()?;
        let timer = info.timerfd().ok_or_else(|| Error::failed("its fdinfo is not a timerfd's"))?;
        found = Some(timer);
        // A periodic one that expires in between has to be asked again: nobody has set it anew.
        if timer.value != 0 || timer.interval == 0 || !running {
            return Ok(timer);
        }
    }
    // Its interval is shorter than a look at it.
    let timer = found.ok_or_else(|| Error::failed("a timerfd cannot be looked at"))?;
    Ok(Found { value: 1, ..timer })
}

/// Sets the timers of an image.
pub(crate) fn settle(image: &Image, files: &Files) -> Result<()> {
    let same_boot = image.header.boot_id == machine::boot_id();
    for (objref, object) in &image.objects {
        if let Object::File(file) = object
            && file.record.kind == file_kind::TIMERFD
            && let Some(fd) = files.get(objref)
        {
            set(fd, &detail(file)?, same_boot).object(|| format!("timer {objref}"))?;
        }
    }
    Ok(())
}

fn set(fd: &OwnedFd, timer: &record::Timerfd, same_boot: bool) -> Result<()> {
    let flags = TimerfdTimerFlags::from_bits_retain(timer.flags);
    let (_, clock) = clocks(timer.clock).ok_or_else(|| Error::bad_image("a timer of an unknown clock"))?;
    let value = match timer.remaining {
        0 => 0,
        _ if !flags.contains(TimerfdTimerFlags::ABSTIME) => timer.remaining,
        _ if same_boot || clock == ClockId::Realtime => timer.deadline.max(1),
        remaining => now(clock).saturating_add(remaining),
    };
    let time = |ns: u64| Timespec { tv_sec: (ns / NANOSECONDS) as i64, tv_nsec: (ns % NANOSECONDS) as i64 };
    let set = |flags, value| {
        let spec = Itimerspec { it_interval: time(timer.interval), it_value: time(value) };
        timerfd_settime(fd, flags, &spec).doing(|| "timerfd_settime".to_owned()).map(drop)
    };
    set(flags, value)?;
    if timer.ticks == 0 {
        return Ok(());
    }
    match anon::set_timerfd_ticks(fd, timer.ticks) {
        // One that has expired once and for all can just expire again.
        Err(e) if e.errno() == Some(Errno::NOTTY) && (timer.ticks, timer.interval, value) == (1, 0, 0) => {
            set(TimerfdTimerFlags::empty(), 1)
        }
        Err(e) if e.errno() == Some(Errno::NOTTY) => {
            Err(Error::permission("unread expirations of a timerfd cannot be set")
                .advice("the kernel needs CONFIG_CHECKPOINT_RESTORE"))
        }
        other => Ok(other?),
    }
}
