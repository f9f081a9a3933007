//! Nothing damaged, cut or hostile is accepted, and refusing it costs nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::Read;

use ckpt_image::model::{File, FileTable, Fs, Mm};
use ckpt_image::record::{PAGE_SIZE, task_state};
use ckpt_image::*;
use common::*;

fn refused(bytes: &[u8], chunk: &mut Chunk) -> ReadError {
    let mut reader = Reader::new(bytes);
    let all = (|| {
        reader.metadata()?;
        while reader.chunk(chunk)? {}
        Ok(())
    })();
    all.expect_err("a damaged image was accepted")
}

#[test]
fn every_flipped_byte() {
    let mut bytes = written(&sample(), &sample_pages(), BLOCK_SIZE);
    let mut chunk = Chunk::new();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x02, 0x03, 0x08, 0x10, 0x80, 0xff] {
            bytes[at] ^= flip;
            let _ = refused(&bytes, &mut chunk);
            bytes[at] ^= flip;
        }
    }
    read_all(&bytes, &mut chunk, |_| {}).unwrap();
}

#[test]
fn every_truncation() {
    let bytes = written(&sample(), &sample_pages(), BLOCK_SIZE);
    let mut chunk = Chunk::new();
    for len in 0..bytes.len() {
        match refused(&bytes[..len], &mut chunk) {
            ReadError::Truncated { offset } => assert!(len >= 16 && offset == len as u64),
            ReadError::NotAnImage => assert!(len < 16),
            other => panic!("{len}: {other}"),
        }
    }
}

#[test]
fn every_swapped_pair_of_words() {
    let bytes = written(&sample(), &sample_pages(), BLOCK_SIZE);
    let mut chunk = Chunk::new();
    for at in (0..bytes.len() - 8).step_by(8) {
        let mut swapped = bytes.clone();
        swapped.copy_within(at..at + 8, at + 8);
        if swapped != bytes {
            let _ = refused(&swapped, &mut chunk);
        }
        let mut missing = bytes.clone();
        missing.drain(at..at + 8);
        let _ = refused(&missing, &mut chunk);
    }
}

#[test]
fn identity_is_told_apart() {
    let bytes = written(&sample(), &[], BLOCK_SIZE);
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        refused(&bytes, &mut Chunk::new())
    };
    assert!(matches!(with(0, 7), ReadError::NotAnImage));
    assert!(matches!(with(8, 7), ReadError::NotAnImage));
    assert!(matches!(with(16, 19), ReadError::Revision { found: 19 }));
    assert!(matches!(with(20, 183), ReadError::Arch { found: 183 }));
    assert!(matches!(refused(b"", &mut Chunk::new()), ReadError::NotAnImage));
    assert!(matches!(refused(&[0x7f; 9000], &mut Chunk::new()), ReadError::NotAnImage));
}

/// Gives what it has, then as many zeros as anyone likes; counts them.
struct Endless<'a>(&'a [u8], u64);

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !self.0.is_empty() {
            return self.0.read(buffer);
        }
        buffer.fill(0);
        self.1 += buffer.len() as u64;
        Ok(buffer.len())
    }
}

#[test]
fn hostile_lengths_cost_nothing() {
    let good = written(&sample(), &[], BLOCK_SIZE);
    for len in [!7, u32::MAX, (MAX_RECORD + 8) as u32, 0, 4, 12, 16] {
        let mut bytes = good.clone();
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        let mut reader = Reader::new(Endless(&bytes, 0));
        assert!(matches!(reader.metadata(), Err(ReadError::Length { offset: 0, .. })), "{len}");
        assert_eq!(reader.position(), 24, "read on after an impossible length");
    }
    // A length within the limit but beyond the stream ends where the stream does.
    let mut bytes = good.clone();
    bytes[4..8].copy_from_slice(&(MAX_RECORD as u32).to_le_bytes());
    let found = refused(&bytes, &mut Chunk::new());
    assert!(matches!(found, ReadError::Truncated { offset } if offset == good.len() as u64));
    // A group that never ends is given up at its limit.
    let mut front = good[..8 + size_of::<record::Header>()].to_vec();
    for _ in 0..5 {
        front.extend_from_slice(&(4u64 | 0x0040_0000 << 32).to_le_bytes());
        front.extend_from_slice(&[0; 0x0040_0000 - 8]);
    }
    let mut reader = Reader::new(Endless(&front, 0));
    let what = "its group is too long";
    assert!(matches!(reader.metadata(), Err(ReadError::Malformed { what: found, .. }) if found == what));
    assert!(reader.position() <= MAX_GROUP as u64 + 16);
}

/// Breaks one rule; no writer writes that.
fn broken(what: &str, breakage: impl FnOnce(&mut Image)) {
    let mut image = sample();
    breakage(&mut image);
    let mut to = writer(BLOCK_SIZE);
    match image.write(&mut to) {
        Err(WriteError::Invalid(fault)) => assert_eq!(fault.what, what),
        other => panic!("{what}: {other:?}"),
    }
    assert_eq!(to.position(), 0);
}

fn mm(image: &mut Image) -> &mut Mm {
    match image.objects.get_mut(&6) {
        Some(Object::Mm(mm)) => mm,
        _ => unreachable!(),
    }
}

fn table(image: &mut Image) -> &mut FileTable {
    match image.objects.get_mut(&4) {
        Some(Object::Files(files)) => files,
        _ => unreachable!(),
    }
}

fn file(image: &mut Image) -> &mut File {
    match image.objects.get_mut(&2) {
        Some(Object::File(file)) => file,
        _ => unreachable!(),
    }
}

#[test]
fn rules_of_processes() {
    broken("refers to an object that is not in the image", |image| image.processes[0].task.mm = 77);
    broken("refers to an object that is not in the image", |image| image.processes[0].task.fs = 0);
    broken("refers to an object of the wrong kind", |image| image.processes[0].task.mm = 4);
    broken("refers to an object of the wrong kind", |image| image.processes[0].threads[1].record.cred = 4);
    broken("TASK counts another number of threads", |image| image.processes[0].task.nr_threads = 1);
    broken("TREE counts another number of processes", |image| image.tree.nr_tasks = 4);
    broken("TREE counts another number of threads", |image| image.tree.nr_threads = 4);
    broken("the first process is not the root of the tree", |image| image.tree.root = 200);
    broken("its first thread is not the leader", |image| image.processes[0].threads.swap(0, 1));
    broken("its tid is taken", |image| image.processes[0].threads[1].record.tid = 100);
    broken("its pid is taken", |image| image.processes[2].task.pid = 100);
    broken("xsave area too short", |image| image.processes[0].threads[0].xstate.truncate(575));
    broken("xsave area too long", |image| image.processes[0].threads[0].xstate.resize(65537, 0));
    broken("its name is too long or holds a NUL", |image| image.processes[0].threads[0].comm.push(0));
    broken("unknown state", |image| image.processes[0].task.state = 9);
    broken("unknown state", |image| image.processes[0].threads[0].record.state = task_state::STOPPED);
    broken("it lives and has an exit code", |image| image.processes[0].threads[0].record.exit_code = 256);
    broken("its end is none", |image| {
        let leader = &mut image.processes[0].threads[0].record;
        (leader.state, leader.exit_code) = (task_state::ZOMBIE, 0x137f);
    });
    broken("a thread other than the leader has ended", |image| {
        image.processes[0].threads[1].record.state = task_state::ZOMBIE;
    });
    broken("no thread", |image| image.processes[1].threads[0].record.state = task_state::ZOMBIE);
    broken("no thread", |image| {
        image.processes[1].task.nr_threads = 0;
        image.processes[1].threads.clear();
    });
}

#[test]
fn rules_of_objects() {
    broken("nothing refers to it", |image| drop(image.objects.insert(50, Object::Fs(sample_fs()))));
    broken("an objref is not positive", |image| drop(image.objects.insert(-1, Object::Fs(sample_fs()))));
    broken("MM counts another number of areas", |image| mm(image).record.nr_vmas = 2);
    broken("areas do not ascend or overlap", |image| mm(image).vmas.swap(0, 1));
    broken("areas do not ascend or overlap", |image| mm(image).vmas[0].record.end = 0x50_1000);
    broken("an area is not page-aligned", |image| mm(image).vmas[0].record.end += 1);
    broken("an area is empty", |image| mm(image).vmas[0].record.end = SAMPLE_MEMORY);
    broken("an area has unknown flags", |image| mm(image).vmas[0].record.flags = 1 << 63);
    broken("an area is of unknown kind", |image| mm(image).vmas[0].record.kind = 7);
    broken("an area without a file refers to one", |image| mm(image).vmas[0].record.object = 2);
    broken("refers to an object of the wrong kind", |image| mm(image).vmas[1].record.object = 2);
    broken("an area's offset is too large", |image| mm(image).vmas[2].record.offset = !0xfff);
    broken("descriptors do not ascend", |image| table(image).descs[1].fd = 0);
    broken("descriptors do not ascend", |image| table(image).descs[0].fd = -1);
    broken("a descriptor has unknown flags", |image| table(image).descs[0].flags = 2);
    broken("its path is too long or holds a NUL", |image| file(image).path = vec![b'a'; 4097]);
    broken("its path is too long or holds a NUL", |image| file(image).path = b"a\0".to_vec());
    broken("a file of unknown kind", |image| file(image).record.kind = 99);
    broken("not 64 signal actions", |image| match image.objects.get_mut(&8) {
        Some(Object::Sighand(sighand)) => drop(sighand.actions.pop()),
        _ => unreachable!(),
    });
}

fn sample_fs() -> Fs {
    Fs { cwd: b"/".to_vec(), root: b"/".to_vec(), ..Fs::default() }
}

#[test]
fn pages_outside_their_object_are_refused() {
    let page = vec![1; PAGE_SIZE];
    for (objref, start, text) in [
        (6, SAMPLE_MEMORY + 0x4000, "outside"),
        (6, 0, "outside"),
        (1, 4096, "outside"),
        (2, 0, "no MM"),
        (5, 0, "no MM"),
    ] {
        let memory = [(start, page.clone())].into();
        let pages = Pages { objref, runs: vec![run(start, 1)], memory, zero: ZeroPages::Keep };
        let bytes = written(&sample(), &[pages], BLOCK_SIZE);
        assert!(refused(&bytes, &mut Chunk::new()).to_string().contains(text), "{objref} {start:#x}");
    }
}
