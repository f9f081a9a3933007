//! The benchmark's figures as a table and as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use super::Row;
use crate::{console::millis, text};

/// What the columns mean.
pub(super) const NOTES: &str = "
checkpoint, restart: the whole command (-o FILE --kill, -i FILE -W), from start to exit; median of the runs.
A restart finds its image in the page cache and free memory that was used a moment ago.
growth: the time for each process, thread or file, and x how much that is of the first row's: 1 is linear.
frozen: how long the program stood still. MB/s: page contents by whole-command time (10^6 bytes).
x dd: checkpoint against `dd oflag=direct bs=1M` of the same image into the same directory.
RSS: most memory any of our commands had in core.
";

/// The table's head.
pub(super) fn head(peer: bool) -> String {
    let mut line = format!(
        "{:16} {:>4} {:>10} {:>10} {:>10} {:>8} {:>8} {:>10} {:>8} {:>10}",
        "program", "runs", "image", "checkpoint", "frozen", "MB/s", "x dd", "restart", "MB/s", "RSS"
    );
    if peer {
        line.push_str(&format!(" {:>10} {:>8} {:>10} {:>8}", "peer dump", "ratio", "restore", "ratio"));
    }
    line + "\n"
}

/// One line.
pub(super) fn row(row: &Row, peer: bool) -> String {
    let mut line = format!(
        "{:16} {:>4} {:>10} {:>10} {:>10} {:>8} {:>8} {:>10} {:>8} {:>10}",
        row.name,
        row.runs,
        text::bytes(row.image_bytes),
        span(row.checkpoint),
        span(row.frozen),
        rate(row.page_bytes, row.checkpoint),
        ratio(row.checkpoint, row.dd),
        span(row.restart),
        rate(row.page_bytes, row.restart),
        text::bytes(row.max_rss),
    );
    if peer {
        line.push_str(&format!(
            " {:>10} {:>8} {:>10} {:>8}",
            span(row.dump),
            ratio(row.dump, row.checkpoint),
            span(row.restore),
            ratio(row.restore, row.restart),
        ));
    }
    line + "\n"
}

/// How times grow with the number of tasks: for each, and against the first, smallest row of its kind.
pub(super) fn growth(rows: &[Row]) -> String {
    let mut text = format!(
        "\n{:16} {:>10} {:>8} {:>8} {:>10} {:>8} {:>8}\n",
        "growth", "checkpoint", "each", "x", "restart", "each", "x"
    );
    for row in rows {
        let Some((kind, _)) = row.tasks else { continue };
        let each = |row: &Row, time: fn(&Row) -> Option<Duration>| {
            let (_, count) = row.tasks?;
            time(row)?.checked_div(u32::try_from(count).ok()?)
        };
        let first = rows.iter().find(|other| other.tasks.is_some_and(|(other, _)| other == kind));
        text.push_str(&format!("{:16}", row.name));
        for time in [|row: &Row| row.checkpoint, |row: &Row| row.restart] {
            let (here, there) = (each(row, time), first.and_then(|first| each(first, time)));
            text.push_str(&format!(" {:>10} {:>8} {:>8}", span(time(row)), span(here), ratio(here, there)));
        }
        text.push('\n');
    }
    text
}

/// One row as JSON.
pub(super) fn json(row: &Row) -> Value {
    let time = |time: Option<Duration>| time.map(millis);
    json!({
        "program": row.name,
        "tasks": row.tasks.map(|(_, count)| count),
        "runs": row.runs,
        "image_bytes": row.image_bytes,
        "page_bytes": row.page_bytes,
        "checkpoint_ms": time(row.checkpoint),
        "frozen_ms": time(row.frozen),
        "restart_ms": time(row.restart),
        "dd_ms": time(row.dd),
        "max_rss_bytes": row.max_rss,
        "peer_dump_ms": time(row.dump),
        "peer_restore_ms": time(row.restore),
        "error": row.failed,
    })
}

fn span(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), text::span)
}

fn rate(bytes: u64, time: Option<Duration>) -> String {
    match time {
        // Below this it is the cost of a process and not of bytes.
        Some(time) if bytes >= 16 << 20 => format!("{:.0}", bytes as f64 / 1e6 / time.as_secs_f64()),
        _ => "-".to_owned(),
    }
}

fn ratio(of: Option<Duration>, to: Option<Duration>) -> String {
    match (of, to) {
        (Some(of), Some(to)) if !to.is_zero() => format!("{:.2}", of.as_secs_f64() / to.as_secs_f64()),
        _ => "-".to_owned(),
    }
}
