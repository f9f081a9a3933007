//! Every file the parsers are for, of every task of the machine the tests run on.
//!
//! A task or descriptor that is gone when its file is read, or that may not be looked at, is a skip; skips are
//! counted and printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fmt::Debug;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ckpt_proc::link::FdLink;
use ckpt_proc::{
    ParseError, auxv, cgroup, elf, fdinfo, link, maps, mountinfo, smaps, stat, status, syscall, timer_list,
    timers,
};

#[derive(Default)]
struct Tally {
    parsed: usize,
    skipped: usize,
    /// `VmFlags` codes and link targets without a name here: a newer kernel's, worth a look, no error.
    unknown: usize,
}

impl Tally {
    fn check<T: Debug>(
        &mut self,
        path: &Path,
        parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Option<T> {
        let Ok(bytes) = fs::read(path) else {
            self.skipped += 1;
            return None;
        };
        // A task that dies between open and read leaves an empty file.
        if bytes.is_empty() && !path.parent().is_some_and(Path::exists) {
            self.skipped += 1;
            return None;
        }
        self.parsed += 1;
        match parse(&bytes) {
            Ok(value) => Some(value),
            Err(error) => panic!("{}: {error}\n{}", path.display(), bytes.escape_ascii()),
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn check_task(task: &Path, tally: &mut Tally) {
    let stat = tally.check(&task.join("stat"), stat::parse_stat);
    let status = tally.check(&task.join("status"), status::parse_status);
    if let (Some(stat), Some(status)) = (&stat, &status) {
        assert_eq!((stat.pid, stat.ppid), (status.pid, status.ppid));
        assert_eq!(status.kthread.unwrap_or(stat.is_kthread()), stat.is_kthread());
    }
    tally.check(&task.join("syscall"), syscall::parse_syscall);
    tally.check(&task.join("cgroup"), cgroup::parse_cgroup);
    tally.check(&task.join("mountinfo"), mountinfo::parse_mountinfo);
    tally.check(&task.join("auxv"), auxv::parse_auxv);
    let maps = tally.check(&task.join("maps"), maps::parse_maps);
    let smaps = tally.check(&task.join("smaps"), smaps::parse_smaps);
    if stat.is_some_and(|stat| stat.is_kthread()) {
        assert!(maps.is_none_or(|maps| maps.is_empty()));
    }
    for mapping in smaps.unwrap_or_default() {
        assert!(!mapping.flags.is_empty(), "{mapping:?}");
        tally.unknown += usize::from(mapping.flags.unknown);
        assert!(mapping.usage.page_kib >= 4, "{mapping:?}");
    }
    for fd in entries(&task.join("fdinfo")) {
        tally.check(&fd, fdinfo::parse_fdinfo);
    }
    for fd in entries(&task.join("fd")) {
        if let Ok(target) = fs::read_link(&fd) {
            let bytes = target.as_os_str().as_bytes();
            tally.unknown += usize::from(matches!(FdLink::parse(bytes), FdLink::Other(_)));
        }
    }
    for ns in entries(&task.join("ns")) {
        if let Ok(target) = fs::read_link(&ns) {
            assert!(link::namespace_id(target.as_os_str().as_bytes()).is_some(), "{}", target.display());
        }
    }
}

#[test]
fn every_task() {
    let mut tally = Tally::default();
    for process in entries(Path::new("/proc")) {
        if !process.file_name().unwrap().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        check_task(&process, &mut tally);
        // Present only with CONFIG_POSIX_TIMERS and CONFIG_CHECKPOINT_RESTORE, and not in the task directories.
        tally.check(&process.join("timers"), timers::parse_timers);
        for task in entries(&process.join("task")) {
            check_task(&task, &mut tally);
        }
    }
    println!("{} files parsed, {} skipped; {} unknown names", tally.parsed, tally.skipped, tally.unknown);
    assert!(tally.parsed > 10);
}

#[test]
fn timer_list_of_this_machine() {
    let mut tally = Tally::default();
    let list = tally.check(Path::new("/proc/timer_list"), timer_list::parse_timer_list);
    if let Some(list) = list {
        assert!(list.now > 0 && !list.timers.is_empty());
    } else {
        println!("skipped: /proc/timer_list may not be read");
    }
}

#[test]
fn maps_and_smaps_of_this_process_agree_on_the_vdso() {
    let vdso = |mappings: Vec<maps::Mapping>| {
        mappings.iter().find(|m| m.special() == Some(maps::Special::Vdso)).map(|m| (m.start, m.end))
    };
    let in_maps = vdso(maps::parse_maps(&fs::read("/proc/self/maps").unwrap()).unwrap());
    let in_smaps = vdso(smaps::parse_smaps(&fs::read("/proc/self/smaps").unwrap()).unwrap());
    let auxv = auxv::parse_auxv(&fs::read("/proc/self/auxv").unwrap()).unwrap();
    let in_auxv = auxv.iter().find(|(kind, _)| *kind == auxv::AT_SYSINFO_EHDR).map(|(_, value)| *value);
    assert_eq!(in_maps, in_smaps);
    assert_eq!(in_maps.map(|(start, _)| start), in_auxv);
}

#[test]
fn libraries_have_build_ids() {
    let maps = maps::parse_maps(&fs::read("/proc/self/maps").unwrap()).unwrap();
    let libc = maps.iter().find(|m| m.path.windows(7).any(|w| w == b"libc.so"));
    let Some(libc) = libc else {
        println!("skipped: no libc.so is mapped");
        return;
    };
    let file = fs::read(Path::new(std::ffi::OsStr::from_bytes(&libc.path))).unwrap();
    let id = elf::build_id(&file[..file.len().min(64 << 10)]).expect("a build id within 64 KiB");
    assert!(id.len() >= 8, "{id:?}");
}
