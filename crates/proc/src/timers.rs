//! `/proc/PID/timers` (proc_pid_timers(5)): POSIX timers, as made by timer_create(2).
//!
//! The file is the only way to learn of them from outside: that they are there, their ids and what they notify.
//! When they expire it does not say; timer_gettime(2) does, asked by the task itself.

use crate::ParseError;
use crate::text::{Place, cut, dec, hex, lines, signed, skip_blanks};

/// How a timer tells: `sigev_notify` of sigevent(3type), `SIGEV_THREAD_ID` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotifyKind {
    /// `signal`: `SIGEV_SIGNAL`, 0.
    Signal,
    /// `none`: `SIGEV_NONE`, 1.
    None,
    /// `thread`: `SIGEV_THREAD`, 2; to the kernel the same as a signal.
    Thread,
}

/// The `notify:` line of proc_pid_timers(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Notify {
    /// How.
    pub kind: NotifyKind,
    /// Whether `SIGEV_THREAD_ID` was given: [`Notify::id`] is a thread's, `/tid.` rather than `/pid.`.
    pub thread: bool,
    /// Who, in the PID namespace of the /proc that was read; 0 when it has gone.
    pub id: i32,
}

impl Notify {
    /// The value for `sigev_notify`.
    pub const fn raw(self) -> i32 {
        let kind = match self.kind {
            NotifyKind::Signal => 0,
            NotifyKind::None => 1,
            NotifyKind::Thread => 2,
        };
        if self.thread { kind | 4 } else { kind }
    }
}

/// A POSIX timer: four lines of proc_pid_timers(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timer {
    /// `ID:`, the kernel's `timer_t`.
    pub id: i32,
    /// `signal:` before the slash, the signal sent.
    pub signo: i32,
    /// `signal:` behind the slash, `sigev_value`.
    pub value: u64,
    /// `notify:`.
    pub notify: Notify,
    /// `ClockID:`; negative for the CPU-time clock of a process or thread.
    pub clockid: i32,
}

/// Parses `/proc/PID/timers` (proc_pid_timers(5)).
///
/// # Errors
/// A timer that lacks one of its four lines, or one that is malformed. Lines of other names are skipped.
pub fn parse_timers(text: &[u8]) -> Result<Vec<Timer>, ParseError> {
    let mut timers = Vec::new();
    let mut current: Option<Partial> = None;
    for (line, text) in lines(text) {
        let place = Place { file: "timers", line };
        let Some((key, value)) = cut(text, b':') else { continue };
        let value = skip_blanks(value);
        if key == b"ID" {
            let id = signed(value).ok_or_else(|| place.malformed("ID"))?;
            let next = Partial { place, id, signal: None, notify: None, clockid: None };
            timers.extend(current.replace(next).map(Partial::finish).transpose()?);
            continue;
        }
        let timer = current.as_mut().ok_or_else(|| place.missing("ID"))?;
        match key {
            b"signal" => {
                timer.signal = Some(parse_signal(value).ok_or_else(|| place.malformed("signal"))?);
            }
            b"notify" => {
                timer.notify = Some(parse_notify(value).ok_or_else(|| place.malformed("notify"))?);
            }
            b"ClockID" => {
                timer.clockid = Some(signed(value).ok_or_else(|| place.malformed("ClockID"))?);
            }
            _ => {}
        }
    }
    timers.extend(current.map(Partial::finish).transpose()?);
    Ok(timers)
}

/// A timer of which not all lines are read.
struct Partial {
    place: Place,
    id: i32,
    signal: Option<(i32, u64)>,
    notify: Option<Notify>,
    clockid: Option<i32>,
}

impl Partial {
    fn finish(self) -> Result<Timer, ParseError> {
        let (signo, value) = self.signal.ok_or_else(|| self.place.missing("signal"))?;
        Ok(Timer {
            id: self.id,
            signo,
            value,
            notify: self.notify.ok_or_else(|| self.place.missing("notify"))?,
            clockid: self.clockid.ok_or_else(|| self.place.missing("ClockID"))?,
        })
    }
}

/// `60/00007fff86e452a8`; a null pointer was `(null)` before Linux 4.15.
fn parse_signal(value: &[u8]) -> Option<(i32, u64)> {
    let (signo, value) = cut(value, b'/')?;
    let value = if value.trim_ascii() == b"(null)" { 0 } else { hex(value)? };
    Some((signed(signo)?, value))
}

/// `signal/pid.2634`
fn parse_notify(value: &[u8]) -> Option<Notify> {
    let (kind, who) = cut(value, b'/')?;
    let kind = match kind {
        b"signal" => NotifyKind::Signal,
        b"none" => NotifyKind::None,
        b"thread" => NotifyKind::Thread,
        _ => return None,
    };
    let (word, id) = cut(who, b'.')?;
    let thread = match word {
        b"tid" => true,
        b"pid" => false,
        _ => return None,
    };
    Some(Notify { kind, thread, id: dec(id)? })
}
