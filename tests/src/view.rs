//! The outside view of a process: what /proc and a few calls show, normalised so that equal states look equal.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::sys;

/// Named pieces of state. Names are `group` or `group.detail`.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub struct View(pub BTreeMap<String, String>);

const STATUS: &[&str] = &[
    "Name",
    "Umask",
    "Tgid",
    "Pid",
    "PPid",
    "TracerPid",
    "Uid",
    "Gid",
    "Groups",
    "NStgid",
    "NSpid",
    "NSpgid",
    "NSsid",
    "Kthread",
    "VmSize",
    "VmLck",
    "VmData",
    "VmStk",
    "VmExe",
    "VmLib",
    "HugetlbPages",
    "CoreDumping",
    "THP_enabled",
    "untag_mask",
    "Threads",
    "ShdPnd",
    "SigIgn",
    "SigCgt",
    "Mems_allowed",
];
const THREAD_STATUS: &[&str] = &[
    "Name",
    "Uid",
    "Gid",
    "Groups",
    "SigPnd",
    "SigBlk",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed",
    "TracerPid",
];
/// What is left of a process that nobody has waited for.
const ZOMBIE_STATUS: &[&str] = &["Name", "Tgid", "Pid", "PPid", "TracerPid", "Uid", "Gid", "NSpgid", "NSsid"];
const ZOMBIE_STAT: &[(usize, &str)] = &[(5, "pgrp"), (6, "session"), (38, "exit_signal"), (52, "exit_code")];
/// Fields of stat by their number in proc(5).
const STAT: &[(usize, &str)] = &[
    (5, "pgrp"),
    (6, "session"),
    (7, "tty"),
    (8, "tpgid"),
    (26, "startcode"),
    (27, "endcode"),
    (28, "startstack"),
    (38, "exit_signal"),
    (45, "start_data"),
    (46, "end_data"),
    (47, "start_brk"),
    (48, "arg_start"),
    (49, "arg_end"),
    (50, "env_start"),
    (51, "env_end"),
];
/// What stays the same while a program runs freely.
const STATIC: &[&str] = &[
    "cmdline",
    "exe",
    "cwd",
    "root",
    "environ",
    "auxv",
    "limits",
    "personality",
    "oom_score_adj",
    "coredump_filter",
    "owner",
    "stat",
    "status.Tgid",
    "status.Pid",
    "status.PPid",
    "status.TracerPid",
    "status.Uid",
    "status.Gid",
    "status.Groups",
    "status.NSpgid",
    "status.NSsid",
    "status.Umask",
    "status.SigIgn",
    "status.SigCgt",
    "status.THP_enabled",
];

/// ENOENT or ESRCH: what /proc says of something that has just ended.
fn vanished(error: &anyhow::Error) -> bool {
    const ESRCH: i32 = 3;
    let io = error.root_cause().downcast_ref::<std::io::Error>();
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(ESRCH))
}

/// Inodes without a lasting number (pipes, sockets, shared memory), numbered in the order they are met: the numbers
/// are new after a restart, which descriptors and mappings share one is not.
#[derive(Default)]
pub struct Inodes(Vec<String>);

impl Inodes {
    fn number(&mut self, inode: &str) -> usize {
        self.0.iter().position(|seen| seen == inode).unwrap_or_else(|| {
            self.0.push(inode.to_owned());
            self.0.len() - 1
        })
    }
}

/// The threads of a process that have not ended, in order.
#[must_use]
pub fn living_threads(pid: i32) -> Vec<i32> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<i32> = dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    tids.retain(|tid| !["zombie", "gone"].contains(&state_of(&format!("/proc/{pid}/task/{tid}"))));
    tids.sort_unstable();
    tids
}

/// Whether no thread of a process runs, each that has not ended being stopped as by SIGSTOP.
#[must_use]
pub fn is_stopped(pid: i32) -> bool {
    living_threads(pid).iter().all(|tid| state_of(&format!("/proc/{pid}/task/{tid}")) == "stopped")
}

/// The thread that shows the memory and the files of a process: its leader, or another when that has ended.
#[must_use]
pub fn witness(pid: i32) -> i32 {
    let living = living_threads(pid);
    if living.contains(&pid) { pid } else { living.first().copied().unwrap_or(pid) }
}

/// The working directory of a process that lives.
#[must_use]
pub fn working_directory(pid: i32) -> Option<std::path::PathBuf> {
    let cwd = |tid: i32| fs::read_link(format!("/proc/{tid}/cwd"));
    cwd(pid).or_else(|_| cwd(witness(pid))).ok()
}

/// A task's state: running and the kinds of sleep are all "live".
fn state_of(dir: &str) -> &'static str {
    let raw = fs::read(format!("{dir}/stat")).unwrap_or_default();
    let after = raw.iter().rposition(|b| *b == b')').and_then(|at| raw.get(at + 2));
    match after {
        None => "gone",
        Some(b'Z' | b'X') => "zombie",
        Some(b'T') => "stopped",
        Some(b't') => "traced",
        Some(_) => "live",
    }
}

impl View {
    /// Looks at a process.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: i32) -> Result<View> {
        View::within(pid, &mut Inodes::default())
    }

    /// Looks at a process whose shared inodes have been met elsewhere, too.
    ///
    /// # Errors
    /// It is gone.
    pub fn within(pid: i32, inodes: &mut Inodes) -> Result<View> {
        // A thread or descriptor may go between the listing and the look at it: then it is looked again.
        for _ in 0..20 {
            match View::look(pid, inodes) {
                Err(e) if vanished(&e) && Path::new(&format!("/proc/{pid}")).exists() => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                other => return other,
            }
        }
        View::look(pid, inodes)
    }

    fn look(pid: i32, inodes: &mut Inodes) -> Result<View> {
        let mut view = View::default();
        let whole = format!("/proc/{pid}");
        let living = living_threads(pid);
        view.put("state", state_of(&whole).to_owned());
        let Some(first) = living.first() else {
            view.pick_status("status", &format!("{whole}/status"), ZOMBIE_STATUS)?;
            view.pick_stat("stat", &format!("{whole}/stat"), ZOMBIE_STAT)?;
            return Ok(view);
        };
        // A leader that has ended while other threads live shows nothing; they do.
        let leader = *first == pid;
        let proc = if leader { whole.clone() } else { format!("{whole}/task/{first}") };
        for name in ["cmdline", "environ", "limits", "comm", "personality", "oom_score_adj"] {
            let raw = fs::read(format!("{proc}/{name}")).with_context(|| format!("{proc}/{name}"))?;
            view.put(name, raw.escape_ascii().to_string().replace("\\n", "\n"));
        }
        for name in ["coredump_filter", "timers"] {
            let raw = fs::read(format!("{whole}/{name}")).with_context(|| format!("{whole}/{name}"))?;
            view.put(name, String::from_utf8_lossy(&raw).into_owned());
        }
        let auxv = fs::read(format!("{proc}/auxv"))?;
        view.put("auxv", auxv.chunks(16).map(|c| format!("{}\n", c.escape_ascii())).collect());
        for name in ["exe", "cwd", "root"] {
            view.put(
                name,
                fs::read_link(format!("{proc}/{name}"))?.as_os_str().as_bytes().escape_ascii().to_string(),
            );
        }
        let owner = fs::metadata(format!("{proc}/environ"))?;
        view.put("owner", format!("{} {}", owner.uid(), owner.gid()));
        view.pick_status("status", &format!("{proc}/status"), STATUS)?;
        view.pick_stat("stat", &format!("{proc}/stat"), STAT)?;
        view.terminal(inodes);
        view.put("maps", maps_within(&fs::read(format!("{proc}/smaps"))?, inodes));
        view.descriptors(&proc, inodes)?;
        for tid in &living {
            view.thread(&whole, &tid.to_string())?;
        }
        let mut children = crate::tree::children(pid);
        if !children.is_empty() {
            // In the order in which wait finds them; which of several threads has forked is not told.
            if living.len() > 1 {
                children.sort_unstable();
            }
            view.put("children", format!("{children:?}"));
        }
        if !leader {
            view.pick_status(&format!("thread.{pid}"), &format!("{whole}/status"), &["Name"])?;
            view.pick_stat(&format!("thread.{pid}"), &format!("{whole}/stat"), &[(52, "exit_code")])?;
        }
        Ok(view)
    }

    pub(crate) fn put(&mut self, name: &str, value: String) {
        self.0.insert(name.to_owned(), value);
    }

    fn pick_status(&mut self, group: &str, path: &str, wanted: &[&str]) -> Result<()> {
        let raw = fs::read(path)?;
        for line in String::from_utf8_lossy(&raw).lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            if wanted.contains(&key) {
                self.put(&format!("{group}.{key}"), value.trim().to_owned());
            }
        }
        Ok(())
    }

    fn pick_stat(&mut self, group: &str, path: &str, wanted: &[(usize, &str)]) -> Result<()> {
        let raw = fs::read(path)?;
        let text = String::from_utf8_lossy(&raw);
        let rest: Vec<&str> = text[text.rfind(')').context("stat")? + 2..].split_whitespace().collect();
        for (number, name) in wanted {
            let value = rest.get(number - 3).copied().unwrap_or("?");
            self.put(&format!("{group}.{name}"), value.to_owned());
        }
        Ok(())
    }

    /// Its controlling terminal, when that is a pty: those with one number have one.
    fn terminal(&mut self, inodes: &mut Inodes) {
        const PTY: u32 = 136;
        let device = self.0.get("stat.tty").and_then(|tty| tty.parse::<u32>().ok()).unwrap_or(0);
        if device >> 8 & 0xfff == PTY {
            let index = device & 0xff | device >> 12 & 0xf_ff00;
            self.put("stat.tty", format!("/dev/pts/#{}", inodes.number(&format!("/dev/pts/{index}"))));
        }
    }

    fn thread(&mut self, proc: &str, tid: &str) -> Result<()> {
        let (group, dir, number) = (format!("thread.{tid}"), format!("{proc}/task/{tid}"), tid.parse()?);
        self.put(&format!("{group}.state"), state_of(&dir).to_owned());
        self.pick_status(&group, &format!("{dir}/status"), THREAD_STATUS)?;
        self.pick_stat(
            &group,
            &format!("{dir}/stat"),
            &[(18, "priority"), (19, "nice"), (40, "rt_priority"), (41, "policy")],
        )?;
        // Thread slack is shown under the thread's own /proc/TID only.
        let slack = fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).unwrap_or_default();
        self.put(&format!("{group}.timerslack"), slack.trim().to_owned());
        let personality = fs::read_to_string(format!("{dir}/personality")).unwrap_or_default();
        self.put(&format!("{group}.personality"), personality.trim().to_owned());
        self.put(&format!("{group}.robust_list"), sys::robust_list(number));
        self.put(&format!("{group}.ioprio"), sys::io_priority(number).to_string());
        self.put(&format!("{group}.sched"), sys::scheduler(number));
        Ok(())
    }

    fn descriptors(&mut self, proc: &str, inodes: &mut Inodes) -> Result<()> {
        let mut numbers: Vec<u32> = Vec::new();
        for entry in fs::read_dir(format!("{proc}/fd"))? {
            numbers.push(entry?.file_name().to_string_lossy().parse()?);
        }
        numbers.sort_unstable();
        for fd in numbers {
            // A program that runs may close one while we look.
            let (link, info) =
                (fs::read_link(format!("{proc}/fd/{fd}")), fs::read_to_string(format!("{proc}/fdinfo/{fd}")));
            let (Ok(link), Ok(info)) = (link, info) else { continue };
            let mut name = link.as_os_str().as_bytes().escape_ascii().to_string();
            if let Some(kind) = ["pipe:[", "socket:["].iter().find(|kind| name.starts_with(**kind)) {
                name = format!("{kind}{}]", inodes.number(&name));
            } else if name.starts_with("/dev/pts/") {
                // Somebody else may have its number meanwhile.
                let dead = if name.ends_with(" (deleted)") { " (deleted)" } else { "" };
                name = format!("/dev/pts/#{}{dead}", inodes.number(&name));
            }
            self.put(&format!("fd.{fd}"), format!("{name} {}", lasting(&info)));
        }
        Ok(())
    }

    /// Its descriptors, each with what it refers to.
    pub fn descriptor_names(&self) -> Vec<(u32, String)> {
        let number = |name: &str| name.strip_prefix("fd.")?.parse().ok();
        let target = |value: &str| value.split(" pos:").next().unwrap_or_default().to_owned();
        self.0.iter().filter_map(|(name, value)| Some((number(name)?, target(value)))).collect()
    }

    /// Keeps the groups or names in `only` (`static` stands for what never changes in a free run; empty: all) and
    /// drops those in `ignore`.
    #[must_use]
    pub fn restricted(&self, only: &[String], ignore: &[String]) -> View {
        let named = |name: &str, list: &[String]| {
            list.iter().any(|word| {
                let under = |prefix: &str| {
                    name == prefix || name.strip_prefix(prefix).is_some_and(|r| r.starts_with('.'))
                };
                under(word) || (word == "static" && STATIC.iter().any(|s| under(s)))
            })
        };
        let keep = |name: &str| (only.is_empty() || named(name, only)) && !named(name, ignore);
        View(self.0.iter().filter(|(name, _)| keep(name)).map(|(n, v)| (n.clone(), v.clone())).collect())
    }
}

/// What fdinfo says of a file that a restart does not change: no times, no numbers of inodes that are made anew.
fn lasting(info: &str) -> String {
    const KEYS: &[&str] = &[
        "pos:",
        "flags:",
        "eventfd-count:",
        "eventfd-semaphore:",
        "sigmask:",
        "clockid:",
        "settime flags:",
        "it_interval:",
        "tfd:",
        "inotify ",
        "fanotify ",
        "NSpid:",
    ];
    let mut lines: Vec<String> = Vec::new();
    for line in info.lines().filter(|line| KEYS.iter().any(|key| line.starts_with(key))) {
        // Of an epoll's entry its place in memory decides the order, of a pidfd's ids the innermost stays the same.
        let line = match line.split_whitespace().next() {
            Some("tfd:") => line.split("pos:").next().unwrap_or_default(),
            Some("NSpid:") => line.split_whitespace().next_back().unwrap_or_default(),
            _ => line,
        };
        lines.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    lines.sort_by_key(|line| line.strip_prefix("tfd:").map(str::to_owned));
    lines.join(" ")
}

/// smaps as one line per mapping: range, protection, offset, device, inode, name, VmFlags; neighbours that differ in
/// nothing are joined, since the kernel may or may not have merged them.
#[must_use]
pub fn maps(smaps: &[u8]) -> String {
    maps_within(smaps, &mut Inodes::default())
}

fn maps_within(smaps: &[u8], inodes: &mut Inodes) -> String {
    let text = String::from_utf8_lossy(smaps);
    let mut joined: Vec<Mapping> = Vec::new();
    let mut open: Option<Mapping> = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let Some(mut mapping) = open.take() else { continue };
            // Soft-dirty and unknown bits say nothing about the program.
            let kept: Vec<&str> = flags.split_whitespace().filter(|f| !["sd", "??"].contains(f)).collect();
            mapping.flags = kept.join(" ");
            match joined.last_mut() {
                Some(last) if last.continues_as(&mapping) => last.end = mapping.end,
                _ => joined.push(mapping),
            }
        } else if let Some(mapping) = Mapping::parse(line, inodes) {
            open = Some(mapping);
        }
    }
    joined.iter().map(Mapping::line).collect()
}

struct Mapping {
    start: u64,
    end: u64,
    protection: String,
    offset: u64,
    /// Device and inode, or the number of an inode that does not last; empty for anonymous memory.
    file: String,
    name: String,
    flags: String,
}

impl Mapping {
    fn parse(line: &str, inodes: &mut Inodes) -> Option<Mapping> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let protection = words.next()?.to_owned();
        let offset = u64::from_str_radix(words.next()?, 16).ok()?;
        let (device, inode_and_name) =
            (words.next()?, format!("{} {}", words.next()?, words.next().unwrap_or("")));
        let (inode, name) = inode_and_name.split_once(' ')?;
        let name = name.trim().to_owned();
        let file = match inode {
            "0" => String::new(),
            _ if name.ends_with("(deleted)") => format!("#{}", inodes.number(&format!("{device} {inode}"))),
            _ => format!("{device} {inode}"),
        };
        Some(Mapping { start, end, protection, offset, file, name, flags: String::new() })
    }

    fn continues_as(&self, next: &Mapping) -> bool {
        let anonymous = self.file.is_empty() && !self.name.contains('/');
        self.end == next.start
            && self.protection == next.protection
            && self.file == next.file
            && self.name == next.name
            && self.flags == next.flags
            && (anonymous || self.offset + (self.end - self.start) == next.offset)
    }

    fn line(&self) -> String {
        let Mapping { start, end, protection, offset, file, name, flags } = self;
        format!("{start:x}-{end:x} {protection} {offset:x} {file} {name} [{flags}]\n")
    }
}

/// The plain text of a process's map, for noticing that something was left behind.
///
/// # Errors
/// It is gone.
pub fn raw_maps(pid: i32) -> Result<String> {
    let raw = fs::read(format!("/proc/{}/maps", witness(pid)))?;
    Ok(String::from_utf8_lossy(&raw).into_owned())
}
