//! What a process that does not come to its end is doing, with all its descendants.

use std::fmt::Write as _;
use std::fs;

use crate::tree::family;

/// The most tasks described.
const MOST: usize = 40;

/// State, wait, signals and kernel stack of every task below `pid`, one line each.
#[must_use]
pub fn diagnose(pid: i32) -> String {
    let mut text = String::new();
    let mut tasks = Vec::new();
    for pid in family(pid) {
        let Ok(dir) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        tasks.extend(dir.flatten().map(|e| (pid, e.path())));
    }
    for (pid, dir) in tasks.iter().take(MOST) {
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned();
        let status = read("status");
        let line = |key: &str| {
            let found = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(":\t"));
            found.unwrap_or("?").to_owned()
        };
        let signals =
            ["TracerPid", "SigPnd", "ShdPnd", "SigBlk", "SigCgt"].map(|k| format!("{k} {}", line(k)));
        let stack = read("stack");
        let stack: Vec<&str> =
            stack.lines().filter_map(|l| l.split_whitespace().nth(1)?.split('+').next()).collect();
        let _ = write!(
            text,
            "\n  {pid}/{} {}: {}, parent {}, wchan {}, syscall {}, {}, stack {}",
            dir.file_name().unwrap_or_default().display(),
            line("Name"),
            line("State"),
            line("PPid"),
            read("wchan"),
            read("syscall"),
            signals.join(" "),
            stack.join(" < "),
        );
    }
    if tasks.len() > MOST {
        let _ = write!(text, "\n  and {} tasks more", tasks.len() - MOST);
    }
    if tasks.is_empty() { format!("\n  {pid} is gone") } else { text }
}
