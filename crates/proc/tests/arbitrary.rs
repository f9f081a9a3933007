//! No parser panics, whatever it is given: noise, and captured files with a few bytes changed, which get further.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use ckpt_proc::{
    auxv, cgroup, elf, fdinfo, link, maps, mountinfo, signals, smaps, stat, status, syscall, timer_list,
    timers,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::FileFailurePersistence;

const CAPTURES: &[&[u8]] = &[
    include_bytes!("data/maps"),
    include_bytes!("data/smaps"),
    include_bytes!("data/stat-weird"),
    include_bytes!("data/status-weird"),
    include_bytes!("data/fdinfo-locked"),
    include_bytes!("data/fdinfo-inotify"),
    include_bytes!("data/timers"),
    include_bytes!("data/timer_list"),
    include_bytes!("data/mountinfo"),
    b"0::/gone (deleted)\n2:cpu,cpuacct:/a\n",
    b"0 0x3 0x7f0cd6a2c000 0x20000 0x22 0xffffffff 0x0 0x7fff832e2ae8 0x7f0cd6ba82ad\n",
];

/// Gives `bytes` to every parser; what they say of it is not looked at.
fn parse_as_everything(bytes: &[u8]) {
    let _ = maps::parse_maps(bytes).map(|maps| {
        maps.iter().for_each(|m| drop((m.special().is_some(), m.is_anonymous(), m.path_as_shown())))
    });
    let _ = smaps::parse_smaps(bytes);
    let _ = smaps::VmFlags::parse(bytes).codes().count();
    let _ = stat::parse_stat(bytes);
    let _ = status::parse_status(bytes).map(|status| status.may_run_on(usize::MAX));
    let _ = fdinfo::parse_fdinfo(bytes);
    let _ = timers::parse_timers(bytes);
    let _ = timer_list::parse_timer_list(bytes);
    let _ = mountinfo::parse_mountinfo(bytes);
    let _ = mountinfo::Mount::split_options(bytes).count();
    let _ = syscall::parse_syscall(bytes);
    let _ = syscall::parse_wchan(bytes);
    let _ = cgroup::parse_cgroup(bytes);
    let _ = auxv::parse_auxv(bytes);
    let _ = elf::build_id(bytes);
    let _ = link::FdLink::parse(bytes);
    let _ = signals::SigSet::parse_hex(bytes);
}

/// An ELF header and program headers of plausible and of absurd numbers.
fn elf_like() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(0u8), Just(4), Just(8), Just(64), Just(255), any::<u8>()], 64..512).prop_map(
        |mut file| {
            file[..6].copy_from_slice(b"\x7fELF\x02\x01");
            file[32..40].copy_from_slice(&64u64.to_le_bytes());
            file[54..56].copy_from_slice(&56u16.to_le_bytes());
            file
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/arbitrary.regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn noise(bytes in vec(any::<u8>(), 0..512)) {
        parse_as_everything(&bytes);
    }

    #[test]
    fn punctuation(text in "[0-9a-f():/ <>#,.\\\\\n-]{0,200}") {
        parse_as_everything(text.as_bytes());
    }

    #[test]
    fn damaged_captures(
        capture in select(CAPTURES),
        edits in vec((any::<Index>(), any::<u8>()), 0..8),
        keep in any::<Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = capture.to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        parse_as_everything(&bytes);
    }

    #[test]
    fn damaged_elf(file in elf_like()) {
        let _ = elf::build_id(&file);
    }

    #[test]
    fn any_name_survives_stat(comm in vec(1u8.., 0..15)) {
        let mut text = b"7 (".to_vec();
        text.extend(&comm);
        let capture = include_bytes!("data/stat-kthread");
        let tail = capture.iter().rposition(|&b| b == b')').unwrap();
        text.extend(&capture[tail..]);
        prop_assert_eq!(stat::parse_stat(&text).unwrap().comm, comm);
    }
}
