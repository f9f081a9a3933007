//! The outside view of a process: what /proc and a few calls show, normalised so that equal states look equal.

use std::collections::BTreeMap;
use std::ffi::OsString;
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
/// Fields of stat by their number in proc(5).
const STAT: &[(usize, &str)] = &[
    (5, "pgrp"),
    (6, "session"),
    (7, "tty"),
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
fn vanished(error: &std::io::Error) -> bool {
    const ESRCH: i32 = 3;
    error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH)
}

impl View {
    /// Looks at a process.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: i32) -> Result<View> {
        // A thread or descriptor may go between the listing and the look at it: then it is looked again.
        for _ in 0..20 {
            match View::look(pid) {
                Err(e) if e.root_cause().downcast_ref::<std::io::Error>().is_some_and(vanished) => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                other => return other,
            }
        }
        View::look(pid)
    }

    fn look(pid: i32) -> Result<View> {
        let mut view = View::default();
        let proc = format!("/proc/{pid}");
        for name in [
            "cmdline",
            "environ",
            "limits",
            "comm",
            "personality",
            "oom_score_adj",
            "coredump_filter",
            "timers",
        ] {
            let raw = fs::read(format!("{proc}/{name}")).with_context(|| format!("{proc}/{name}"))?;
            view.put(name, raw.escape_ascii().to_string().replace("\\n", "\n"));
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
        view.put("maps", maps(&fs::read(format!("{proc}/smaps"))?));
        view.descriptors(&proc)?;
        for entry in fs::read_dir(format!("{proc}/task"))? {
            view.thread(&proc, &entry?.file_name().to_string_lossy())?;
        }
        Ok(view)
    }

    fn put(&mut self, name: &str, value: String) {
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

    fn thread(&mut self, proc: &str, tid: &str) -> Result<()> {
        let (group, dir, number) = (format!("thread.{tid}"), format!("{proc}/task/{tid}"), tid.parse()?);
        self.pick_status(&group, &format!("{dir}/status"), THREAD_STATUS)?;
        self.pick_stat(
            &group,
            &format!("{dir}/stat"),
            &[(18, "priority"), (19, "nice"), (40, "rt_priority"), (41, "policy")],
        )?;
        // Thread slack is shown under the thread's own /proc/TID only.
        let slack = fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).unwrap_or_default();
        self.put(&format!("{group}.timerslack"), slack.trim().to_owned());
        self.put(&format!("{group}.robust_list"), sys::robust_list(number));
        self.put(&format!("{group}.ioprio"), sys::io_priority(number).to_string());
        self.put(&format!("{group}.sched"), sys::scheduler(number));
        Ok(())
    }

    fn descriptors(&mut self, proc: &str) -> Result<()> {
        let mut numbers: Vec<u32> = Vec::new();
        for entry in fs::read_dir(format!("{proc}/fd"))? {
            numbers.push(entry?.file_name().to_string_lossy().parse()?);
        }
        numbers.sort_unstable();
        let mut seen: Vec<OsString> = Vec::new();
        for fd in numbers {
            // A program that runs may close one while we look.
            let (link, info) =
                (fs::read_link(format!("{proc}/fd/{fd}")), fs::read_to_string(format!("{proc}/fdinfo/{fd}")));
            let (Ok(link), Ok(info)) = (link, info) else { continue };
            let mut name = link.into_os_string();
            // Inode numbers of pipes and sockets are new after a restart; which descriptors share one is not.
            for kind in ["pipe:[", "socket:["] {
                if name.as_bytes().starts_with(kind.as_bytes()) {
                    let first = seen.iter().position(|s| *s == name).unwrap_or(seen.len());
                    if first == seen.len() {
                        seen.push(name.clone());
                    }
                    name = format!("{kind}{first}]").into();
                }
            }
            let info: Vec<&str> =
                info.lines().filter(|l| l.starts_with("pos:") || l.starts_with("flags:")).collect();
            self.put(
                &format!("fd.{fd}"),
                format!("{} {}", name.as_bytes().escape_ascii(), info.join(" ").replace('\t', " ")),
            );
        }
        Ok(())
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

/// smaps as one line per mapping: range, protection, offset, device, inode, name, VmFlags; neighbours that differ in
/// nothing are joined, since the kernel may or may not have merged them.
#[must_use]
pub fn maps(smaps: &[u8]) -> String {
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
        } else if let Some(mapping) = Mapping::parse(line) {
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
    /// Device and inode; empty for what has no lasting inode.
    file: String,
    name: String,
    flags: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Mapping> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let protection = words.next()?.to_owned();
        let offset = u64::from_str_radix(words.next()?, 16).ok()?;
        let (device, inode_and_name) =
            (words.next()?, format!("{} {}", words.next()?, words.next().unwrap_or("")));
        let (inode, name) = inode_and_name.split_once(' ')?;
        let name = name.trim().to_owned();
        let lasting = inode != "0" && !name.ends_with("(deleted)");
        let file = if lasting { format!("{device} {inode}") } else { String::new() };
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
    let raw = fs::read(Path::new("/proc").join(pid.to_string()).join("maps"))?;
    Ok(String::from_utf8_lossy(&raw).into_owned())
}
