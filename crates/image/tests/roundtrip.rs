//! What is written is what is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;

use ckpt_image::record::*;
use ckpt_image::*;
use common::*;
use proptest::prelude::*;

/// Reads an image back and lists every page it describes, zero pages too.
fn contents(bytes: &[u8]) -> BTreeMap<(Objref, u64), Vec<u8>> {
    let mut found = BTreeMap::new();
    read_all(bytes, &mut Chunk::new(), |chunk| {
        let at = chunk.data_offset() as usize;
        assert_eq!(&bytes[at..at + chunk.data().len()], chunk.data());
        assert_eq!(chunk.data().as_ptr().align_offset(PAGE_SIZE), 0);
        let mut data = chunk.data().chunks(PAGE_SIZE);
        for run in &chunk.runs {
            for start in page_starts(&[*run]) {
                let zero = vec![0; PAGE_SIZE];
                let page = if run.flags == 0 { data.next().unwrap().to_vec() } else { zero };
                assert!(found.insert((chunk.objref, start), page).is_none(), "a page twice");
            }
        }
    })
    .unwrap();
    found
}

/// An image with one process whose mm is one area from 0 of this many pages.
fn one_area(nr_pages: u64) -> Image {
    let mut image = sample();
    let Some(Object::Mm(mm)) = image.objects.get_mut(&6) else { unreachable!() };
    mm.vmas.truncate(2);
    mm.vmas[0].record.start = 0;
    mm.vmas[0].record.end = nr_pages * PAGE_SIZE as u64;
    mm.vmas[1].record.start += mm.vmas[0].record.end;
    mm.vmas[1].record.end += mm.vmas[0].record.end;
    mm.record.nr_vmas = 2;
    image
}

/// Pages whose contents `kind` gives: `None` is a zero page.
fn pages(runs: Vec<Run>, zero: ZeroPages, kind: impl Fn(u64) -> Option<u8>) -> Pages {
    let page = |start: u64| {
        let mut page = vec![0; PAGE_SIZE];
        if let Some(byte) = kind(start / PAGE_SIZE as u64) {
            page[byte as usize * 16] = byte | 1;
        }
        (start, page)
    };
    let memory = page_starts(&runs).map(page).collect();
    Pages { objref: 6, runs, memory, zero }
}

fn assert_pages(pages: &Pages, capacity: usize) {
    let image = one_area(20_000);
    let mut to = writer(capacity);
    image.write(&mut to).unwrap();
    let written = write_pages(&mut to, pages);
    let bytes = to.tail().unwrap().0.image;
    let is_zero = |page: &Vec<u8>| page.iter().all(|byte| *byte == 0);
    let zeros = pages.memory.values().filter(|page| is_zero(page)).count() as u64;
    let all = pages.memory.len() as u64;
    let expected = match pages.zero {
        ZeroPages::Keep => PagesWritten { stored_pages: all, zero_pages: 0 },
        _ => PagesWritten { stored_pages: all - zeros, zero_pages: zeros },
    };
    assert_eq!(written, expected);
    let mut expected = BTreeMap::new();
    for (start, page) in &pages.memory {
        if pages.zero != ZeroPages::Drop || !is_zero(page) {
            expected.insert((pages.objref, *start), page.clone());
        }
    }
    assert!(contents(&bytes) == expected, "other pages than were written");
}

#[test]
fn sample_comes_back() {
    for capacity in [2 * PAGE_SIZE, 5 * PAGE_SIZE, BLOCK_SIZE] {
        let bytes = written(&sample(), &sample_pages(), capacity);
        assert_eq!(read_all(&bytes, &mut Chunk::new(), |_| {}).unwrap(), sample());
    }
}

#[test]
fn split_runs_open_another_chunk() {
    for zero in [ZeroPages::Drop, ZeroPages::Describe, ZeroPages::Keep] {
        let alternate = |nr: u64| nr.is_multiple_of(2).then_some(nr as u8);
        assert_pages(&pages(vec![run(0, 2500)], zero, alternate), BLOCK_SIZE);
        let singles = (0..1200).map(|nr| run(nr * 3 * PAGE_SIZE as u64, 1 + nr as u32 % 2)).collect();
        assert_pages(&pages(singles, zero, |nr| (nr % 5 > 1).then_some(nr as u8)), BLOCK_SIZE);
    }
}

#[test]
fn only_zeros() {
    let nothing = pages(vec![run(0, 3000)], ZeroPages::Drop, |_| None);
    let empty = written(&one_area(3000), &[], BLOCK_SIZE).len();
    let bytes = written(&one_area(3000), &[nothing], BLOCK_SIZE);
    assert!(contents(&bytes).is_empty());
    assert_eq!(bytes.len(), empty, "dropped pages leave no trace");
    assert_pages(&pages(vec![run(0, 3000)], ZeroPages::Describe, |_| None), BLOCK_SIZE);
}

#[test]
fn failed_fill_can_still_be_told() {
    let mut to = writer(BLOCK_SIZE);
    sample().write(&mut to).unwrap();
    let gone = to.pages(6, &[run(SAMPLE_MEMORY, 1)], ZeroPages::Drop, &mut |_, _| Err("gone"));
    assert!(matches!(gone, Err(PagesError::Fill("gone"))));
    let bytes = to.error(b"task 7: memory\0 went away").unwrap().image;
    assert_eq!(find_error_text(&bytes), Some(b"task 7: memory  went away".as_slice()));
    let tail = &bytes[bytes.len() - 80..];
    assert_eq!(find_error_text(tail), Some(b"task 7: memory  went away".as_slice()));
    match read_all(&bytes, &mut Chunk::new(), |_| {}) {
        Err(ReadError::Checkpoint { text, .. }) => assert_eq!(text, "task 7: memory  went away"),
        other => panic!("{other:?}"),
    }
    assert_eq!(find_error_text(&written(&sample(), &sample_pages(), BLOCK_SIZE)), None);
}

#[test]
fn bad_runs_are_refused() {
    let page = PAGE_SIZE as u64;
    let described = Run { start: 0, nr_pages: 1, flags: run_flags::ZERO };
    let bad = [
        vec![run(1, 1)],
        vec![run(0, 0)],
        vec![run(0, 2), run(page, 1)],
        vec![run(u64::MAX - 4095, 2)],
        vec![described],
    ];
    for runs in bad {
        let mut to = writer(BLOCK_SIZE);
        let refused = to.pages(6, &runs, ZeroPages::Keep, &mut |_, _| Err(()));
        assert!(matches!(refused, Err(PagesError::Write(WriteError::Run { .. }))), "{runs:?}");
    }
}

#[test]
fn groups_and_records_have_limits() {
    let mut to = writer(BLOCK_SIZE);
    let long = vec![1; MAX_RECORD];
    assert!(matches!(to.record(&Buffer {}, &[&long]), Err(WriteError::TooLong { .. })));
    assert!(matches!(to.record(&Buffer {}, &[]), Err(WriteError::FieldCount { .. })));
    let mut image = sample();
    let table = (0..900_000).map(|fd| FileDesc { fd, flags: 0, file: 2, pad: 0 }).collect();
    let Some(Object::Files(files)) = image.objects.get_mut(&4) else { unreachable!() };
    files.descs = table;
    files.descs.push(FileDesc { fd: 1_000_000, flags: 0, file: 3, pad: 0 });
    image.objects.insert(40, image.objects.get(&4).unwrap().clone());
    image.processes[1].task.files = 40;
    let bytes = written(&image, &[], BLOCK_SIZE);
    assert!(bytes.len() > MAX_GROUP);
    assert_eq!(read_all(&bytes, &mut Chunk::new(), |_| {}).unwrap(), image);
}

#[test]
fn listing_covers_every_byte() {
    let bytes = written(&sample(), &sample_pages(), BLOCK_SIZE);
    let mut reader = Reader::new(bytes.as_slice());
    let (mut at, mut names) = (0, Vec::new());
    while let Some(info) = reader.next_record().unwrap() {
        assert_eq!(info.offset, at);
        at += u64::from(info.len);
        names.push(info.name);
    }
    assert_eq!(at, bytes.len() as u64);
    let first = ["HEADER", "BUFFER", "BUFFER", "BUFFER", "HEADER_ARCH", "SUM", "TREE", "OBJREF", "SIGHAND"];
    assert_eq!(names[..9], first);
    assert_eq!(names[names.len() - 4..], ["PAD", "PGARR", "PGARR", "TAIL"]);
    for known in TYPES.iter().filter(|known| !["STRING", "ERROR"].contains(&known.name)) {
        assert!(names.contains(&known.name), "the sample has no {}", known.name);
    }
    let mut to = writer(BLOCK_SIZE);
    sample().write(&mut to).unwrap();
    let failed = to.error(b"why").unwrap().image;
    let mut reader = Reader::new(failed.as_slice());
    let mut names = Vec::new();
    while let Some(info) = reader.next_record().unwrap() {
        names.push(info.name);
    }
    assert_eq!(names[names.len() - 2..], ["ERROR", "STRING"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_image(bytes in proptest::collection::vec(any::<u8>(), 0..6000), blocks in 2usize..8) {
        let image = arbitrary(&mut Source(&bytes));
        let bytes = written(&image, &[], blocks * PAGE_SIZE);
        prop_assert_eq!(read_all(&bytes, &mut Chunk::new(), |_| {}).unwrap(), image);
    }

    #[test]
    fn any_pages(
        runs in proptest::collection::vec((0u64..4, 1u32..40), 0..400),
        zeros in any::<[u64; 4]>(),
        zero in prop_oneof![Just(ZeroPages::Drop), Just(ZeroPages::Describe), Just(ZeroPages::Keep)],
        blocks in prop_oneof![2usize..40, Just(BLOCK_SIZE / PAGE_SIZE)],
    ) {
        let mut at = 0;
        let runs = runs.iter().map(|(gap, nr_pages)| {
            let start = at + gap * PAGE_SIZE as u64;
            at = start + u64::from(*nr_pages) * PAGE_SIZE as u64;
            run(start, *nr_pages)
        }).collect();
        let kind = |nr: u64| (zeros[nr as usize / 64 % 4] >> (nr % 64) & 1 == 1).then_some(nr as u8);
        assert_pages(&pages(runs, zero, kind), blocks * PAGE_SIZE);
    }
}
