//! Captured files of a Linux 6.18 machine, made by a process that does its worst: a name of parentheses, newline
//! and backslash, files named to mislead, a lock of every kind, a timer of every notification. The last lines of
//! mountinfo are written by hand after the manual, as is what only other kernels print.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use ckpt_proc::fdinfo::{LockAccess, LockKind, parse_fdinfo};
use ckpt_proc::maps::{Mapping, Special, parse_maps};
use ckpt_proc::mountinfo::{Mount, parse_mountinfo};
use ckpt_proc::smaps::{VmFlags, parse_smaps};
use ckpt_proc::stat::{TaskState, parse_stat};
use ckpt_proc::status::parse_status;
use ckpt_proc::timer_list::parse_timer_list;
use ckpt_proc::timers::{NotifyKind, parse_timers};
use ckpt_proc::unix_diag::{UnixSocket, parse_unix_diag};
use ckpt_proc::{ParseError, Problem};

macro_rules! data {
    ($name:literal) => {
        include_bytes!(concat!("data/", $name)).as_slice()
    };
}

const WEIRD_COMM: &[u8] = b"a) b (c\n\\) Z 1";

/// The mapping at `start`.
fn at(mappings: &[Mapping], start: u64) -> &Mapping {
    mappings.iter().find(|m| m.start == start).unwrap()
}

#[test]
fn maps_paths() {
    let maps = parse_maps(data!("maps")).unwrap();
    let path = |start| {
        let m = at(&maps, start);
        (m.path.as_slice(), m.deleted)
    };
    assert_eq!(path(0x7f7913b7b000), (&b"/tmp/weird dir/new\nline"[..], false));
    assert_eq!(path(0x7f7912bee000), (&b"/tmp/weird dir/trailing  "[..], false));
    assert_eq!(path(0x7f7912ee4000), (&b"/tmp/weird dir/gone"[..], true));
    // Truly named so, and not unlinked: the text cannot tell, the documentation says it.
    assert_eq!(path(0x7f79139bb000), (&b"/tmp/weird dir/ends"[..], true));
    assert_eq!(at(&maps, 0x7f79139bb000).path_as_shown(), b"/tmp/weird dir/ends (deleted)");
    // Unlinked and named so: one of the two goes.
    assert_eq!(path(0x7f7912e6b000), (&b"/tmp/weird dir/gone (deleted)"[..], true));
    assert_eq!(path(0x7f79139ba000), (&b"/memfd:name here"[..], true));
    assert_eq!(path(0x7f7912ee3000), (&b"/dev/zero"[..], true));
    assert_eq!(at(&maps, 0x7f7912bf0000).special(), None, "a file in a directory is no heap");
}

#[test]
fn maps_fields() {
    let maps = parse_maps(data!("maps")).unwrap();
    let text = at(&maps, 0x5611777b3000);
    assert!(text.read && !text.write && text.exec && !text.shared && !text.is_anonymous());
    assert_eq!((text.len(), text.offset, text.dev, text.inode), (4096, 0x1000, (0xfe, 0), 18504));
    let guard = at(&maps, 0x7f7912be9000);
    assert!(!guard.read && !guard.write && !guard.exec && guard.is_anonymous() && guard.path.is_empty());
    let shared = at(&maps, 0x7f7912ee3000);
    assert!(shared.shared && !shared.is_anonymous());
    let named: Vec<_> = maps.iter().filter_map(|m| Some((m.special()?, m.is_anonymous()))).collect();
    assert_eq!(
        named,
        [
            (Special::Heap, true),
            (Special::Vvar, false),
            (Special::VvarVclock, false),
            (Special::Vdso, false),
            (Special::Stack, true),
            (Special::Vsyscall, false),
        ]
    );
    assert_eq!(maps.last().unwrap().start, 0xffff_ffff_ff60_0000);
}

#[test]
fn maps_names_of_other_kernels() {
    let line = |name: &str| format!("1000-2000 rw-p 00000000 00:00 0     {name}\n");
    let maps = parse_maps(line("[anon:my name: x]").as_bytes()).unwrap();
    assert_eq!(maps[0].special(), Some(Special::Anon(b"my name: x")));
    assert!(maps[0].is_anonymous());
    let maps = parse_maps(line("[anon_shmem:y]").as_bytes()).unwrap();
    assert_eq!(maps[0].special(), Some(Special::Anon(b"y")));
    let maps = parse_maps(line("[uprobes]").as_bytes()).unwrap();
    assert_eq!((maps[0].special(), maps[0].is_anonymous()), (None, false));
}

#[test]
fn maps_errors_say_where() {
    let bad = b"1000-2000 rw-p 00000000 00:00 0\n1000-0fff rw-p 00000000 00:00 0\n";
    let error = ParseError { file: "maps", line: 2, what: Problem::Malformed("address range") };
    assert_eq!(parse_maps(bad), Err(error));
    assert_eq!(error.to_string(), "maps line 2: address range is malformed");
    for bad in [
        "1000-2000",
        "1000 rw-p 0 0:0 0",
        "1000-2000 rwxp- 0 0:0 0",
        "1000-2000 rw-p x 0:0 0",
        "1000-2000 rw-p 0 0 0",
        "\n",
    ] {
        assert!(parse_maps(bad.as_bytes()).is_err(), "{bad:?}");
    }
    assert_eq!(parse_maps(b""), Ok(vec![]));
}

#[test]
fn smaps_flags_and_counters() {
    let maps = parse_smaps(data!("smaps")).unwrap();
    assert_eq!(maps.len(), data!("smaps").split(|&b| b == b'\n').filter(|l| l.starts_with(b"Rss:")).count());
    let heap = maps.iter().find(|m| m.special() == Some(Special::Heap)).unwrap();
    assert_eq!((heap.usage.rss_kib, heap.usage.anonymous_kib, heap.usage.page_kib), (2100, 2100, 4));
    assert!(heap.flags.contains(VmFlags::READ.union(VmFlags::WRITE).union(VmFlags::ACCOUNT)));
    let stack = maps.iter().find(|m| m.special() == Some(Special::Stack)).unwrap();
    assert!(stack.flags.contains(VmFlags::GROWS_DOWN) && !heap.flags.contains(VmFlags::GROWS_DOWN));
    let wiped = maps.iter().find(|m| m.flags.contains(VmFlags::WIPE_ON_FORK)).unwrap();
    assert!(wiped.flags.contains(VmFlags::LOCKED));
    assert_eq!(wiped.usage.locked_kib, 4);
    let quiet: Vec<_> = maps.iter().filter(|m| m.flags.contains(VmFlags::NO_RESERVE)).collect();
    assert_eq!(quiet.len(), 1);
    assert_eq!(quiet[0].flags.codes().collect::<Vec<_>>(), [b"mr", b"mw", b"me", b"nr", b"dd"]);
    assert!(maps.iter().all(|m| m.flags.unknown == 0 && !m.flags.is_empty()));
}

#[test]
fn smaps_of_other_machines() {
    let text = b"1000-2000 rw-p 00000000 00:00 0 \nRss: 8 kB\nSwap:   12 kB\nProtectionKey:         3\nNew: x\nVmFlags: rd zz wr ??? \n";
    let maps = parse_smaps(text).unwrap();
    assert_eq!((maps[0].usage.protection_key, maps[0].usage.swap_kib), (3, 12));
    assert_eq!(maps[0].flags.unknown, 2);
    assert!(maps[0].flags.contains(VmFlags::WRITE) && !maps[0].flags.intersects(VmFlags::EXEC));
    assert!(parse_smaps(b"Rss: 8 kB\n").is_err());
    assert!(parse_smaps(b"1000-2000 rw-p 00000000 00:00 0 \nRss: x kB\n").is_err());
}

#[test]
fn vm_flag_codes_are_distinct() {
    for (i, (code, flag)) in VmFlags::TABLE.iter().enumerate() {
        assert_eq!(VmFlags::parse(*code), *flag);
        assert!(VmFlags::TABLE[i + 1..].iter().all(|(c, f)| c != code && !f.intersects(*flag)));
    }
}

#[test]
fn stat_of_a_weird_name() {
    let stat = parse_stat(data!("stat-weird")).unwrap();
    assert_eq!((stat.pid, stat.comm.as_slice(), stat.state), (4900, WEIRD_COMM, TaskState::Running));
    assert_eq!((stat.ppid, stat.pgrp, stat.session, stat.tty_nr, stat.tpgid), (4896, 4896, 1741, 0, -1));
    assert_eq!((stat.flags, stat.is_kthread()), (4194304, false));
    assert_eq!((stat.utime, stat.stime, stat.cutime, stat.cstime), (4, 4, 4, 2));
    assert_eq!((stat.priority, stat.nice, stat.num_threads, stat.starttime), (20, 0, 1, 244875));
    assert_eq!(stat.start_code, 94633018994688);
    assert_eq!((stat.end_code, stat.start_stack), (94633018995029, 140735384586304));
    assert_eq!((stat.exit_signal, stat.processor, stat.rt_priority, stat.policy), (17, 1, 0, 0));
    assert_eq!((stat.start_data, stat.end_data), (94633019006384, 94633019007000));
    assert_eq!((stat.start_brk, stat.arg_start), (94633398738944, 140735384590568));
    assert_eq!((stat.arg_end, stat.env_start), (140735384590632, 140735384590632));
    assert_eq!((stat.env_end, stat.exit_code), (140735384592335, 0));
}

/// Every field holds its number in the manual.
#[test]
fn stat_fields_are_where_the_manual_says() {
    let tail: Vec<_> = (4..=52).map(|n: i32| n.to_string()).collect();
    let s = parse_stat(format!("1 (2) S {}\n", tail.join(" ")).as_bytes()).unwrap();
    assert_eq!((s.pid, s.comm.as_slice(), s.state), (1, &b"2"[..], TaskState::Sleeping));
    assert_eq!((s.ppid, s.pgrp, s.session, s.tty_nr, s.tpgid, s.flags), (4, 5, 6, 7, 8, 9));
    assert_eq!((s.utime, s.stime, s.cutime, s.cstime), (14, 15, 16, 17));
    assert_eq!((s.priority, s.nice, s.num_threads, s.starttime), (18, 19, 20, 22));
    assert_eq!((s.start_code, s.end_code, s.start_stack), (26, 27, 28));
    assert_eq!((s.exit_signal, s.processor, s.rt_priority, s.policy), (38, 39, 40, 41));
    assert_eq!((s.start_data, s.end_data, s.start_brk), (45, 46, 47));
    assert_eq!((s.arg_start, s.arg_end, s.env_start, s.env_end, s.exit_code), (48, 49, 50, 51, 52));
}

#[test]
fn stat_of_the_dead_and_of_the_kernel() {
    let zombie = parse_stat(data!("stat-zombie")).unwrap();
    assert_eq!(
        (zombie.state, zombie.exit_code, zombie.comm.as_slice()),
        (TaskState::Zombie, 3 << 8, WEIRD_COMM)
    );
    let kthread = parse_stat(data!("stat-kthread")).unwrap();
    assert!(kthread.is_kthread());
    assert_eq!((kthread.comm.as_slice(), kthread.exit_signal), (&b"kthreadd"[..], 0));
}

#[test]
fn stat_cut_anywhere_is_an_error() {
    let text = data!("stat-weird");
    // Without its last byte, the newline, it is whole.
    for len in 0..text.len() - 2 {
        assert!(parse_stat(&text[..len]).is_err(), "cut to {len}");
    }
    assert!(parse_stat(b"1 )(").is_err());
}

#[test]
fn status_of_a_weird_name() {
    let status = parse_status(data!("status-weird")).unwrap();
    assert_eq!((status.name.as_slice(), status.umask), (WEIRD_COMM, Some(0o22)));
    assert_eq!((status.state, status.pid, status.tgid, status.ppid), (TaskState::Running, 4900, 4900, 4896));
    assert_eq!((status.ns_pid, status.ns_sid, status.kthread), (vec![4900], vec![1741], Some(false)));
    assert_eq!((status.vm_rss_kib, status.vm_lck_kib, status.threads), (Some(14972), Some(4), 1));
    assert_eq!(status.sig_queued, (5, 96365));
    assert_eq!(status.sig_ignored.iter().collect::<Vec<_>>(), [13, 25]);
    assert!(status.sig_caught.contains(2) && status.sig_blocked.is_empty());
    assert_eq!((status.cap_effective, status.cap_ambient), (0x1ff_feff_ffff, 0));
    assert_eq!((status.no_new_privs, status.seccomp, status.seccomp_filters), (false, Some(0), Some(0)));
    assert_eq!(status.cpus_allowed, [3]);
    assert!(status.groups.is_empty());
}

#[test]
fn status_of_the_dead_and_of_the_kernel() {
    let zombie = parse_status(data!("status-zombie")).unwrap();
    assert_eq!((zombie.state, zombie.umask, zombie.vm_rss_kib), (TaskState::Zombie, None, None));
    assert_eq!(parse_status(data!("status-kthread")).unwrap().kthread, Some(true));
}

#[test]
fn status_of_nested_namespaces() {
    let text = String::from_utf8(data!("status-zombie").to_vec()).unwrap();
    let text = text
        .replace("NSpid:\t4941", "NSpid:\t4941\t17\t1")
        .replace("Uid:\t0\t0\t0\t0", "Uid:\t1\t2\t3\t4294967294")
        .replace("Groups:\t ", "Groups:\t4 24 1000 ")
        .replace("Cpus_allowed:\t3", "Cpus_allowed:\t80000000,00000001");
    let status = parse_status(text.as_bytes()).unwrap();
    assert_eq!(
        (status.ns_pid.as_slice(), status.groups.as_slice()),
        (&[4941, 17, 1][..], &[4, 24, 1000][..])
    );
    assert_eq!(
        (status.uid.real, status.uid.effective, status.uid.saved, status.uid.fs),
        (1, 2, 3, 4294967294)
    );
    assert!(status.may_run_on(0) && status.may_run_on(63));
    assert!(!status.may_run_on(1) && !status.may_run_on(64));
    let bad = text.replace("SigBlk:\t0000000000000000", "SigBlk:\tx");
    let error = parse_status(bad.as_bytes()).unwrap_err();
    assert_eq!(error.what, Problem::Malformed("SigBlk"));
    assert_eq!(bad.lines().nth(error.line - 1), Some("SigBlk:\tx"));
    let error = parse_status(text.replace("CapEff", "CapXxx").as_bytes()).unwrap_err();
    assert_eq!((error.line, error.what), (0, Problem::Missing("CapEff")));
}

#[test]
fn fdinfo_locks() {
    let info = parse_fdinfo(data!("fdinfo-locked")).unwrap();
    assert_eq!((info.pos, info.flags, info.mnt_id, info.ino), (100, 0o2100002, 27, Some(10019026)));
    assert!(info.extra.is_empty());
    let lock = &info.locks[0];
    assert_eq!(
        (&lock.kind, lock.mode.as_slice(), lock.access),
        (&LockKind::Posix, &b"ADVISORY"[..], LockAccess::Write)
    );
    assert_eq!((lock.pid, lock.file, lock.start, lock.end), (4900, Some((0xfe, 0, 10019026)), 5, Some(14)));
    let lock = &parse_fdinfo(data!("fdinfo-locked2")).unwrap().locks[0];
    assert_eq!((&lock.kind, lock.access, lock.end), (&LockKind::Flock, LockAccess::Read, None));
    let lock = &parse_fdinfo(data!("fdinfo-locked3")).unwrap().locks[0];
    assert_eq!((&lock.kind, lock.pid), (&LockKind::Ofd, -1));
    let lock = &parse_fdinfo(data!("fdinfo-leased")).unwrap().locks[0];
    assert_eq!((&lock.kind, lock.mode.as_slice()), (&LockKind::Lease, &b"ACTIVE"[..]));
    let gone = b"pos:\t0\nflags:\t00\nmnt_id:\t1\nlock:\t1: LEASE  BREAKING  UNLCK 1 <none>:0 0 EOF\n";
    let lock = &parse_fdinfo(gone).unwrap().locks[0];
    assert_eq!((lock.file, lock.access), (None, LockAccess::Unlock));
}

#[test]
fn fdinfo_kinds() {
    let epoll = parse_fdinfo(data!("fdinfo-epoll")).unwrap();
    assert_eq!(
        epoll.value(b"tfd"),
        Some(&b"28 events:       19 data:               1c  pos:0 ino:21fd sdev:f"[..])
    );
    assert_eq!(epoll.pos, 0);
    let eventfd = parse_fdinfo(data!("fdinfo-eventfd")).unwrap();
    assert_eq!(eventfd.value(b"eventfd-count"), Some(&b"5"[..]));
    let timerfd = parse_fdinfo(data!("fdinfo-timerfd")).unwrap();
    assert_eq!(timerfd.value(b"settime flags"), Some(&b"00"[..]));
    assert_eq!(timerfd.value(b"it_value"), Some(&b"(0, 0)"[..]));
    let inotify = parse_fdinfo(data!("fdinfo-inotify")).unwrap();
    assert!(inotify.value(b"inotify").unwrap().starts_with(b"wd:1 ino:3c4a7 "));
    let pidfd = parse_fdinfo(data!("fdinfo-pidfd")).unwrap();
    assert_eq!(pidfd.values(b"Pid").collect::<Vec<_>>(), [b"4900"]);
    assert_eq!(pidfd.value(b"absent"), None);
    let error = parse_fdinfo(b"pos:\t0\nmnt_id:\t1\n").unwrap_err();
    assert_eq!(error, ParseError { file: "fdinfo", line: 0, what: Problem::Missing("flags") });
    assert!(parse_fdinfo(b"pos:\t0\nflags:\t09\nmnt_id:\t1\n").is_err());
}

#[test]
fn timers_of_every_kind() {
    let timers = parse_timers(data!("timers")).unwrap();
    let short: Vec<_> =
        timers.iter().map(|t| (t.id, t.signo, t.value, t.notify.kind, t.notify.raw(), t.clockid)).collect();
    assert_eq!(
        short,
        [
            (4, 14, u64::MAX, NotifyKind::Signal, 0, -6),
            (3, 34, 2, NotifyKind::Thread, 2, 7),
            (2, 12, 1, NotifyKind::None, 1, 1),
            (1, 60, 0x7fff1234, NotifyKind::Signal, 4, 1),
            (0, 10, 0, NotifyKind::Signal, 0, 0),
        ]
    );
    assert!(timers.iter().all(|t| t.notify.id == 4900 && t.notify.thread == (t.id == 1)));
    assert_eq!(parse_timers(b""), Ok(vec![]));
    let error = parse_timers(b"ID: 0\nsignal: 1/0\nnotify: signal/pid.1\nID: 1\n").unwrap_err();
    assert_eq!((error.line, error.what), (1, Problem::Missing("ClockID")));
    for bad in ["signal: 1/0\n", "ID: 0\nnotify: mail/pid.1\n", "ID: 0\nnotify: signal/gid.1\n", "ID: x\n"] {
        assert!(parse_timers(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

#[test]
fn timer_list_of_two_cpus() {
    let list = parse_timer_list(data!("timer_list")).unwrap();
    assert_eq!(list.now, 2448948443616);
    let count = data!("timer_list").split(|&b| b == b'\n').filter(|l| l.starts_with(b" # expires")).count();
    assert_eq!(list.timers.len(), count);
    let first = &list.timers[0];
    assert_eq!(
        (first.address, first.function.as_slice(), first.state),
        (0x6ddbb42c, &b"hrtimer_wakeup"[..], 1)
    );
    assert_eq!((first.expires_soft, first.expires_hard), (2448992346960, 2448992396960));
    assert_eq!((first.cpu, first.clock), (0, 0));
    assert!(list.timers.iter().any(|t| t.cpu == 1));
}

#[test]
fn timer_list_of_other_kernels() {
    // Linux 4.x with CONFIG_TIMER_STATS, and a function of a module.
    let text =
        b"now at 5 nsecs\n\ncpu: 3\n clock 1:\nactive timers:\n #0: <ffff8800>, fun [mod], S:01, starter, \
        init/1\n # expires at 7-8 nsecs [in 2 to 3 nsecs]\n";
    let list = parse_timer_list(text).unwrap();
    let timer = &list.timers[0];
    assert_eq!((timer.function.as_slice(), timer.cpu, timer.clock), (&b"fun [mod]"[..], 3, 1));
    assert_eq!((timer.expires_soft, timer.expires_hard), (7, 8));
    assert!(parse_timer_list(b"").is_err());
    assert!(parse_timer_list(&text[..text.len() - 50]).is_err());
    assert!(parse_timer_list(b"now at 5 nsecs\n #0: <1>, f, S:01\n # expires at 7-8 nsecs\n").is_err());
}

#[test]
fn mountinfo_fields() {
    let mounts = parse_mountinfo(data!("mountinfo")).unwrap();
    let by_id = |id| mounts.iter().find(|m| m.id == id).unwrap();
    let root = by_id(43);
    assert_eq!((root.parent, root.dev, root.mount_point.as_slice()), (42, (254, 0), &b"/"[..]));
    assert_eq!((root.fstype.as_slice(), root.source.as_slice()), (&b"ext4"[..], &b"/dev/vda"[..]));
    // A source that is empty, and every escape in the path.
    let empty = by_id(63);
    assert_eq!((empty.mount_point.as_slice(), empty.source.as_slice()), (&b"/tmp/mnt a#b\\c"[..], &b""[..]));
    assert_eq!((empty.super_options.as_slice(), empty.shared()), (&b"rw"[..], Some(1)));
    let overlay = by_id(64);
    assert_eq!((overlay.shared(), overlay.master(), overlay.propagate_from()), (None, Some(1), Some(2)));
    assert_eq!(
        Mount::split_options(&overlay.super_options).collect::<Vec<_>>(),
        [&b"rw"[..], b"lowerdir=/lower,one:/lower two", b"upperdir=/up"]
    );
    assert_eq!(overlay.root, b"/a/b//deleted");
    let nsfs = by_id(65);
    assert!(nsfs.unbindable() && !root.unbindable());
    assert_eq!(nsfs.root, b"net:[4026532226]");
    let fuse = by_id(66);
    assert_eq!(
        (fuse.mount_point.as_slice(), fuse.source.as_slice()),
        (&b"/home/u/new\nline"[..], &b"u@h:/tab\ttab"[..])
    );
    assert_eq!((fuse.shared(), fuse.master()), (Some(3), Some(4)));
    for bad in
        ["1 2 0:1 / / rw\n", "1 2 01 / / rw - a b c\n", "x 2 0:1 / / rw - a b c\n", "1 2 0:1 / / rw - a b\n"]
    {
        assert!(parse_mountinfo(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

#[test]
fn locks_of_the_system() {
    let text = b"1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 10 14\n1: -> POSIX  ADVISORY  WRITE 9 fd:00:2531452 0 EOF\n\
                 2: OFDLCK ADVISORY  READ -1 00:16:28457 0 EOF\nwhat is this\n3: FLOCK  ADVISORY  WRITE 700 00:16:28457 0 EOF\n";
    let locks = ckpt_proc::fdinfo::parse_locks(text);
    let seen: Vec<_> = locks.iter().map(|lock| (lock.pid, lock.start, lock.end)).collect();
    assert_eq!(seen, [(3568, 10, Some(14)), (-1, 0, None), (700, 0, None)], "waiters hold nothing");
    assert_eq!(locks[0].file, Some((0xfd, 0, 2531452)));
}

/// A server with one connection accepted, whose client has five bytes to read, and one that is not; a pair for packets of
/// which one half is shut down; a socket for datagrams. Kernel 6.18 gave all in one datagram, the end in another.
#[test]
fn unix_diag_sockets() {
    let (mut sockets, bytes) = (Vec::new(), data!("unix_diag"));
    let (some, last) = bytes.split_at(bytes.len() - 20);
    assert!(!parse_unix_diag(some, &mut sockets).unwrap());
    assert!(parse_unix_diag(last, &mut sockets).unwrap());
    let socket = |ino, kind, name: &[u8], peer| UnixSocket {
        ino,
        kind,
        name: name.to_vec(),
        peer,
        ..UnixSocket::default()
    };
    let server =
        UnixSocket { listening: true, waiting: 1, backlog: 7, ..socket(11_041_390, 1, b"srv", None) };
    let expected = [
        server,
        socket(11_041_396, 1, b"", Some(0)),
        UnixSocket { backlog: 768, ..socket(11_041_392, 1, b"srv", Some(11_041_391)) },
        UnixSocket { waiting: 5, ..socket(11_041_391, 1, b"", Some(11_041_392)) },
        UnixSocket { shutdown: 1, ..socket(11_041_394, 5, b"", Some(11_041_393)) },
        UnixSocket { shutdown: 2, ..socket(11_041_393, 5, b"", Some(11_041_394)) },
        socket(11_041_395, 2, b"\0ckpt", None),
    ];
    assert_eq!(sockets, expected);
    for len in 1..some.len() {
        // Cut in the midst of a message or between two of them.
        let mut part = Vec::new();
        let whole = parse_unix_diag(&some[..len], &mut part).is_ok();
        assert!(part.len() < expected.len() && part[..] == expected[..part.len()], "{len} {whole}");
    }
}
