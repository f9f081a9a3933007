//! `/proc/timer_list` (proc_timer_list(5)): the high-resolution timers of the machine.
//!
//! The text has no stable form and is meant for people, so only three kinds of line are read, wherever they are:
//! `now at N nsecs`, `cpu: N` and ` clock N:` headings, and the pair of lines of an active timer. All others are
//! skipped. The timers change while the kernel prints: one that is rearmed meanwhile may be there twice or not
//! at all.

use crate::ParseError;
use crate::text::{Place, cut, cut_at, dec, hex, lines};

/// `/proc/timer_list` (proc_timer_list(5)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimerList {
    /// `now at`: `CLOCK_MONOTONIC` when the printing began, in nanoseconds.
    pub now: u64,
    /// The active timers of all CPUs, in the order of the file.
    pub timers: Vec<HrTimer>,
}

/// An active high-resolution timer (proc_timer_list(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HrTimer {
    /// Its address, hashed by `%p`: good for comparing within one boot, and for nothing else.
    pub address: u64,
    /// Name of the function it calls, for example `hrtimer_wakeup`, `posix_timer_fn`, `it_real_fn` or
    /// `timerfd_tmrproc`.
    pub function: Vec<u8>,
    /// `S:`, 1 when enqueued.
    pub state: u8,
    /// Earliest expiry in nanoseconds of the clock of its base.
    pub expires_soft: u64,
    /// Latest expiry, likewise; with slack it is later than `expires_soft`.
    pub expires_hard: u64,
    /// CPU whose list it is on.
    pub cpu: u32,
    /// Base it is on: 0 monotonic, 1 realtime, 2 boot time, 3 TAI, and 4 to 7 the same for timers that expire in
    /// softirq context.
    pub clock: u32,
}

/// Parses `/proc/timer_list` (proc_timer_list(5)).
///
/// # Errors
/// No `now at` line; an active timer before the first `cpu:` and `clock` headings, with no function, address or
/// state, or without its line of expiry.
pub fn parse_timer_list(text: &[u8]) -> Result<TimerList, ParseError> {
    let (mut now, mut cpu, mut clock) = (None, None, None);
    let mut timers = Vec::new();
    let mut pending: Option<(Place, HrTimer)> = None;
    for (line, text) in lines(text) {
        let place = Place { file: "timer_list", line };
        let text = text.trim_ascii();
        if let Some((at, mut timer)) = pending.take() {
            (timer.expires_soft, timer.expires_hard) =
                parse_expiry(text).ok_or_else(|| at.missing("expires"))?;
            timers.push(timer);
        } else if let Some(timer) = text.strip_prefix(b"#") {
            let mut timer = parse_timer(timer).ok_or_else(|| place.malformed("timer"))?;
            timer.cpu = cpu.ok_or_else(|| place.missing("cpu"))?;
            timer.clock = clock.ok_or_else(|| place.missing("clock"))?;
            pending = Some((place, timer));
        } else if let Some(value) = text.strip_prefix(b"cpu: ") {
            cpu = dec(value);
            clock = None;
        } else if let Some(value) = text.strip_prefix(b"clock ") {
            clock = value.strip_suffix(b":").and_then(dec);
        } else if let (Some(value), None) = (text.strip_prefix(b"now at "), now) {
            now = Some(parse_now(value).ok_or_else(|| place.malformed("now"))?);
        }
    }
    if let Some((at, _)) = pending {
        return Err(at.missing("expires"));
    }
    let now = now.ok_or_else(|| Place { file: "timer_list", line: 0 }.missing("now"))?;
    Ok(TimerList { now, timers })
}

/// `1895821627383 nsecs`
fn parse_now(value: &[u8]) -> Option<u64> {
    dec(cut(value, b' ').map_or(value, |(number, _)| number))
}

/// `0: <0000000092d942a3>, hrtimer_wakeup, S:01`; older kernels go on behind the state, and the function may have
/// its module behind it.
fn parse_timer(text: &[u8]) -> Option<HrTimer> {
    let (_, rest) = cut_at(text, b"<")?;
    let (address, rest) = cut_at(rest, b">, ")?;
    let (function, rest) = cut_at(rest, b", S:")?;
    let state = cut(rest, b',').map_or(rest, |(state, _)| state);
    Some(HrTimer {
        address: hex(address)?,
        function: function.to_vec(),
        state: hex(state.trim_ascii())?,
        expires_soft: 0,
        expires_hard: 0,
        cpu: 0,
        clock: 0,
    })
}

/// `# expires at 1895854682241-1895854732241 nsecs [in 33054858 to 33104858 nsecs]`
fn parse_expiry(text: &[u8]) -> Option<(u64, u64)> {
    let (_, rest) = cut_at(text, b"expires at ")?;
    let (range, _) = cut(rest, b' ')?;
    let (soft, hard) = cut(range, b'-')?;
    Some((dec(soft)?, dec(hard)?))
}
