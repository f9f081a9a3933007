//! Streams whose sums are right and whose records are wrong: out of order, twice, too many.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use ckpt_image::record::{
    Buffer, Cred, ErrorMark, Fs, Mm, Objref, ObjrefMark, Record, Sum, TAIL_MAGIC, Tail, Task, Thread, Tree,
    Vma,
};
use ckpt_image::{BLOCK_SIZE, Chunk, ReadError, Reader, Writer};
use common::{VecSink, sample, writer};

type To = Writer<VecSink>;

/// What a reader says to a proper beginning followed by these records.
fn answer(records: impl FnOnce(&mut To)) -> String {
    let mut to = writer(BLOCK_SIZE);
    to.record(&sample().header, &[]).unwrap();
    sample().uts.iter().for_each(|name| to.record(&Buffer {}, &[name]).unwrap());
    to.record(&sample().arch, &[]).unwrap();
    records(&mut to);
    let bytes = to.tail().unwrap().0.image;
    let error = Reader::new(bytes.as_slice()).metadata().unwrap_err();
    // Offsets are the business of other tests.
    let text = error.to_string();
    let (name, rest) = text.split_once(" record at byte ").expect("names record and offset");
    format!("{name} {}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

fn mark<R: Record>(to: &mut To, objref: Objref) {
    to.record(&ObjrefMark { objtype: R::TYPE, objref }, &[]).unwrap();
}

fn fs(to: &mut To, objref: Objref) {
    mark::<Fs>(to, objref);
    to.record(&Fs::default(), &[b"/", b"/"]).unwrap();
}

fn tree(to: &mut To) {
    to.record(&Tree { nr_tasks: 1, nr_threads: 1, root: 1, pad: 0 }, &[]).unwrap();
}

#[test]
fn order() {
    assert_eq!(answer(|_| {}), "TAIL , where TREE belongs");
    assert_eq!(answer(|to| to.record(&Buffer {}, &[b"x"]).unwrap()), "BUFFER , where TREE belongs");
    assert_eq!(answer(|to| fs(to, 1)), "OBJREF , where TREE belongs");
    assert_eq!(answer(tree), "HEADER : image: TREE counts another number of processes");
    let twice = |to: &mut To| (0..2).for_each(|_| tree(to));
    assert_eq!(answer(twice), "TREE , where OBJREF or TASK belongs");
    let thread = |to: &mut To| {
        tree(to);
        to.record(&Thread::default(), &[b"", b"", b"", b"", b""]).unwrap();
    };
    assert_eq!(answer(thread), "THREAD , where OBJREF or TASK belongs");
    let cut = |to: &mut To| {
        tree(to);
        to.record(&Task { nr_threads: 2, ..Task::default() }, &[]).unwrap();
        to.record(&Thread::default(), &[b"", b"", b"", b"", b""]).unwrap();
    };
    assert_eq!(answer(cut), "TAIL , where THREAD belongs");
    let sums = |to: &mut To| {
        to.end_group().unwrap();
        to.record(&Sum { sum: 0 }, &[]).unwrap();
    };
    assert_eq!(answer(sums), "SUM , where a record belongs");
    assert_eq!(
        answer(|to| to.record(&Tail { magic: TAIL_MAGIC, ..Tail::default() }, &[]).unwrap()),
        "TAIL , where SUM belongs"
    );
}

#[test]
fn objects() {
    let with = |records: fn(&mut To)| {
        answer(|to| {
            tree(to);
            records(to);
        })
    };
    assert_eq!(with(|to| fs(to, 0)), "OBJREF : the objref is not positive");
    assert_eq!(with(|to| fs(to, -5)), "OBJREF : the objref is not positive");
    assert_eq!(with(|to| (0..2).for_each(|_| fs(to, 3))), "OBJREF : the objref is taken");
    assert_eq!(with(|to| mark::<Fs>(to, 3)), "TAIL , where FS belongs");
    let other = |to: &mut To| {
        mark::<Fs>(to, 3);
        to.record(&Cred::default(), &[b""]).unwrap();
    };
    assert_eq!(with(other), "CRED , where FS belongs");
    let tree_again = |to: &mut To| {
        mark::<Tree>(to, 3);
        tree(to);
    };
    assert_eq!(with(tree_again), "TREE : not an object");
    let groups = |to: &mut To| {
        mark::<Cred>(to, 3);
        to.record(&Cred::default(), &[b"12345"]).unwrap();
    };
    assert_eq!(with(groups), "CRED : a field is no whole number of items");
    let areas = |to: &mut To| {
        mark::<Mm>(to, 3);
        to.record(&Mm { nr_vmas: u32::MAX, ..Mm::default() }, &[b""]).unwrap();
        to.record(&Vma::default(), &[b""]).unwrap();
    };
    assert_eq!(with(areas), "TAIL , where VMA belongs");
}

#[test]
fn error_without_text() {
    let mut to = writer(BLOCK_SIZE);
    sample().write(&mut to).unwrap();
    to.record(&ErrorMark {}, &[]).unwrap();
    let bytes = to.tail().unwrap().0.image;
    let mut reader = Reader::new(bytes.as_slice());
    let all = reader.metadata().and_then(|_| reader.chunk(&mut Chunk::new()));
    assert!(matches!(all, Err(ReadError::Unexpected { expected: "STRING", .. })), "{all:?}");
}
