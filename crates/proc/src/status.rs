//! `/proc/PID/status` (proc_pid_status(5)).

use crate::ParseError;
use crate::signals::SigSet;
use crate::stat::TaskState;
use crate::text::{Place, cut, dec, hex, lines, oct, signed, skip_blanks, words};

/// Real, effective, saved and file system id: `Uid:` and `Gid:` of proc_pid_status(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved set.
    pub saved: u32,
    /// File system.
    pub fs: u32,
}

/// `/proc/PID/status` (proc_pid_status(5)); each field names its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// `Name:`, unescaped.
    pub name: Vec<u8>,
    /// `Umask:` (Linux 4.7); absent for a task without file system state, such as a zombie.
    pub umask: Option<u32>,
    /// `State:`.
    pub state: TaskState,
    /// `Tgid:`, the process.
    pub tgid: i32,
    /// `Ngid:`, NUMA group.
    pub ngid: i32,
    /// `Pid:`, the thread.
    pub pid: i32,
    /// `PPid:`.
    pub ppid: i32,
    /// `TracerPid:`, 0 for none.
    pub tracer_pid: i32,
    /// `Uid:`, in the reader's user namespace.
    pub uid: Ids,
    /// `Gid:`, in the reader's user namespace.
    pub gid: Ids,
    /// `FDSize:`, slots of the table of file descriptors.
    pub fd_size: u64,
    /// `Groups:`, supplementary.
    pub groups: Vec<u32>,
    /// `NStgid:`, thread group id in each PID namespace, outermost (the reader's) first.
    pub ns_tgid: Vec<i32>,
    /// `NSpid:`, likewise.
    pub ns_pid: Vec<i32>,
    /// `NSpgid:`, likewise.
    pub ns_pgid: Vec<i32>,
    /// `NSsid:`, likewise.
    pub ns_sid: Vec<i32>,
    /// `Kthread:`, whether it is a kernel thread (Linux 6.8).
    pub kthread: Option<bool>,
    /// `VmRSS:`, KiB; absent without memory (kernel threads, zombies).
    pub vm_rss_kib: Option<u64>,
    /// `VmLck:`, KiB; absent without memory.
    pub vm_lck_kib: Option<u64>,
    /// `VmSwap:`, KiB; absent without memory.
    pub vm_swap_kib: Option<u64>,
    /// `THP_enabled:`, whether `PR_SET_THP_DISABLE` is not set (Linux 5.0); absent without memory.
    pub thp_enabled: Option<bool>,
    /// `Threads:`.
    pub threads: u32,
    /// `SigQ:`, queued signals of the user, and their limit.
    pub sig_queued: (u64, u64),
    /// `SigPnd:`, pending for the thread.
    pub sig_pending: SigSet,
    /// `ShdPnd:`, pending for the process.
    pub sig_shared_pending: SigSet,
    /// `SigBlk:`.
    pub sig_blocked: SigSet,
    /// `SigIgn:`.
    pub sig_ignored: SigSet,
    /// `SigCgt:`.
    pub sig_caught: SigSet,
    /// `CapInh:`, bit mask of capabilities(7).
    pub cap_inheritable: u64,
    /// `CapPrm:`.
    pub cap_permitted: u64,
    /// `CapEff:`.
    pub cap_effective: u64,
    /// `CapBnd:`.
    pub cap_bounding: u64,
    /// `CapAmb:`.
    pub cap_ambient: u64,
    /// `NoNewPrivs:`.
    pub no_new_privs: bool,
    /// `Seccomp:`, 0 off, 1 strict, 2 filter; absent when not configured in.
    pub seccomp: Option<u32>,
    /// `Seccomp_filters:` (Linux 5.9).
    pub seccomp_filters: Option<u32>,
    /// `Cpus_allowed:`, words of 32 CPUs, CPU 0 in bit 0 of the first word.
    pub cpus_allowed: Vec<u32>,
}

impl Status {
    /// Whether the task may run on CPU `cpu`.
    pub fn may_run_on(&self, cpu: usize) -> bool {
        self.cpus_allowed.get(cpu / 32).is_some_and(|word| word >> (cpu % 32) & 1 == 1)
    }
}

/// Parses `/proc/PID/status` or `/proc/PID/task/TID/status` (proc_pid_status(5)).
///
/// # Errors
/// A line that is malformed, or one that is missing and not marked `Option` in [`Status`] (`Ngid:` and the `NS*`
/// lines may be missing and are then 0 and empty).
pub fn parse_status(text: &[u8]) -> Result<Status, ParseError> {
    let table = Table { lines: lines(text).filter_map(key_and_value).collect() };
    let t = &table;
    Ok(Status {
        name: unescape_name(t.need("Name")?.value),
        umask: t.maybe("Umask", oct)?,
        state: t.read("State", |v| v.first().copied().map(TaskState::from_byte))?,
        tgid: t.read("Tgid", signed)?,
        ngid: t.maybe("Ngid", signed)?.unwrap_or(0),
        pid: t.read("Pid", signed)?,
        ppid: t.read("PPid", signed)?,
        tracer_pid: t.read("TracerPid", signed)?,
        uid: t.read("Uid", ids)?,
        gid: t.read("Gid", ids)?,
        fd_size: t.read("FDSize", dec)?,
        groups: t.read("Groups", |v| words(v).map(dec).collect())?,
        ns_tgid: t.maybe("NStgid", pids)?.unwrap_or_default(),
        ns_pid: t.maybe("NSpid", pids)?.unwrap_or_default(),
        ns_pgid: t.maybe("NSpgid", pids)?.unwrap_or_default(),
        ns_sid: t.maybe("NSsid", pids)?.unwrap_or_default(),
        kthread: t.maybe("Kthread", boolean)?,
        vm_rss_kib: t.maybe("VmRSS", kib)?,
        vm_lck_kib: t.maybe("VmLck", kib)?,
        vm_swap_kib: t.maybe("VmSwap", kib)?,
        thp_enabled: t.maybe("THP_enabled", boolean)?,
        threads: t.read("Threads", dec)?,
        sig_queued: t.read("SigQ", |v| cut(v, b'/').and_then(|(n, max)| Some((dec(n)?, dec(max)?))))?,
        sig_pending: t.read("SigPnd", SigSet::parse_hex)?,
        sig_shared_pending: t.read("ShdPnd", SigSet::parse_hex)?,
        sig_blocked: t.read("SigBlk", SigSet::parse_hex)?,
        sig_ignored: t.read("SigIgn", SigSet::parse_hex)?,
        sig_caught: t.read("SigCgt", SigSet::parse_hex)?,
        cap_inheritable: t.read("CapInh", hex)?,
        cap_permitted: t.read("CapPrm", hex)?,
        cap_effective: t.read("CapEff", hex)?,
        cap_bounding: t.read("CapBnd", hex)?,
        cap_ambient: t.read("CapAmb", hex)?,
        no_new_privs: t.read("NoNewPrivs", boolean)?,
        seccomp: t.maybe("Seccomp", dec)?,
        seccomp_filters: t.maybe("Seccomp_filters", dec)?,
        cpus_allowed: t.read("Cpus_allowed", cpu_words)?,
    })
}

/// A line: `KEY:\tVALUE`.
struct Entry<'a> {
    line: usize,
    key: &'a [u8],
    value: &'a [u8],
}

fn key_and_value((line, text): (usize, &[u8])) -> Option<Entry<'_>> {
    let (key, value) = cut(text, b':')?;
    Some(Entry { line, key, value })
}

/// The lines of the file, looked up by key: some sixty, so searching them beats hashing them.
struct Table<'a> {
    lines: Vec<Entry<'a>>,
}

impl<'a> Table<'a> {
    fn find(&self, key: &'static str) -> Option<&Entry<'a>> {
        self.lines.iter().find(|entry| entry.key == key.as_bytes())
    }

    fn need(&self, key: &'static str) -> Result<&Entry<'a>, ParseError> {
        self.find(key).ok_or_else(|| Place { file: "status", line: 0 }.missing(key))
    }

    fn read<T>(&self, key: &'static str, parse: impl FnOnce(&'a [u8]) -> Option<T>) -> Result<T, ParseError> {
        let entry = self.need(key)?;
        parse(skip_blanks(entry.value))
            .ok_or_else(|| Place { file: "status", line: entry.line }.malformed(key))
    }

    fn maybe<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Result<Option<T>, ParseError> {
        if self.find(key).is_none() { Ok(None) } else { self.read(key, parse).map(Some) }
    }
}

fn ids(value: &[u8]) -> Option<Ids> {
    let mut ids = words(value).map(dec);
    let mut next = || ids.next().flatten();
    Some(Ids { real: next()?, effective: next()?, saved: next()?, fs: next()? })
}

fn pids(value: &[u8]) -> Option<Vec<i32>> {
    words(value).map(signed).collect()
}

fn boolean(value: &[u8]) -> Option<bool> {
    match value {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    }
}

fn kib(value: &[u8]) -> Option<u64> {
    dec(words(value).next()?)
}

/// Comma-separated words of 32 bits, the most significant first.
fn cpu_words(value: &[u8]) -> Option<Vec<u32>> {
    value.split(|&b| b == b',').rev().map(hex).collect()
}

/// Undoes the escaping of `Name:`: newline and backslash, and nothing else, as in C. One tab follows the colon;
/// any more blanks are the name's own.
fn unescape_name(value: &[u8]) -> Vec<u8> {
    let mut rest = value.strip_prefix(b"\t").unwrap_or(value);
    let mut name = Vec::with_capacity(rest.len());
    loop {
        rest = match rest {
            [] => return name,
            [b'\\', b'n', tail @ ..] => {
                name.push(b'\n');
                tail
            }
            [b'\\', b'\\', tail @ ..] => {
                name.push(b'\\');
                tail
            }
            [byte, tail @ ..] => {
                name.push(*byte);
                tail
            }
        };
    }
}
