//! Numbers and names in words.

use std::time::Duration;

/// `bytes` with a binary unit: `0 B`, `512 B`, `4.0 KiB`, `1.5 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for next in units.iter().skip(1) {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A time span: `3.21 ms`, `1.25 s`.
pub(crate) fn span(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// `1 thread`, `2 threads`, `3 processes`.
pub(crate) fn count(n: u64, one: &str) -> String {
    match (n, one.ends_with('s')) {
        (1, _) => format!("1 {one}"),
        (_, true) => format!("{n} {one}es"),
        (_, false) => format!("{n} {one}s"),
    }
}

/// A name or path of any bytes, printable: UTF-8 without control characters as it is, anything
/// else with `\xNN` escapes.
pub(crate) fn name(raw: &[u8]) -> String {
    match std::str::from_utf8(raw) {
        Ok(text) if !text.chars().any(|c| c.is_control() || c == '\\') => text.to_owned(),
        _ => raw.escape_ascii().to_string(),
    }
}

/// Nanoseconds since the epoch as `2026-11-21 17:40:45 UTC`.
pub(crate) fn date(nanos: u64) -> String {
    let secs = nanos / 1_000_000_000;
    let (days, day) = (secs / 86_400, secs % 86_400);
    // Civil date from days since 1970-01-01, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let (month_day, month) = (of_year - (153 * from_march + 2) / 5 + 1, (from_march + 2) % 12 + 1);
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (day / 3600, day / 60 % 60, day % 60);
    format!("{year:04}-{month:02}-{month_day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(4096), "4.0 KiB");
        assert_eq!(bytes(1 << 30), "1.0 GiB");
        assert_eq!(bytes((1 << 30) - 1), "1.0 GiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_399_999_999_999), "2000-02-28 23:59:59 UTC");
        assert_eq!(date(951_782_400_000_000_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_795_283_999_000_000_000), "2026-11-21 17:59:59 UTC");
        assert_eq!(date(u64::MAX), "2554-07-21 23:34:33 UTC");
    }

    #[test]
    fn names_are_printable() {
        assert_eq!(name("/tmp/ä b".as_bytes()), "/tmp/ä b");
        assert_eq!(name(b"a\nb"), "a\\nb");
        assert_eq!(name(b"a\xffb"), "a\\xffb");
        assert_eq!(name(b"a\\b"), "a\\\\b");
        assert_eq!(name(b"\x1b[31m"), "\\x1b[31m");
    }

    #[test]
    fn plurals() {
        assert_eq!(count(1, "thread"), "1 thread");
        assert_eq!(count(3, "process"), "3 processes");
        assert_eq!(span(Duration::from_micros(3214)), "3.21 ms");
        assert_eq!(span(Duration::from_millis(1250)), "1.25 s");
    }
}
