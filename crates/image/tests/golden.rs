//! Images of every revision stay readable, and today's writer writes today's revision to the byte.
//!
//! `cargo test -p ckpt-image --test golden -- --ignored` writes the file of a new revision; the
//! file of an old one is never touched again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use ckpt_image::record::REV;
use ckpt_image::*;
use common::*;

fn path() -> std::path::PathBuf {
    format!("{}/tests/golden/rev{REV}.ckpt", env!("CARGO_MANIFEST_DIR")).into()
}

#[test]
fn written_to_the_byte() {
    assert!(written(&sample(), &sample_pages(), BLOCK_SIZE) == std::fs::read(path()).unwrap());
}

#[test]
fn revision_100_is_read() {
    let bytes = include_bytes!("golden/rev100.ckpt");
    let mut pages = Vec::new();
    let image =
        read_all(bytes, &mut Chunk::new(), |chunk| pages.push((chunk.objref, chunk.runs.clone()))).unwrap();
    assert_eq!(image, sample());
    let zero = record::Run { start: 0, nr_pages: 1, flags: record::run_flags::ZERO };
    assert_eq!(pages, [(6, vec![run(SAMPLE_MEMORY, 1), run(SAMPLE_MEMORY + 8192, 1)]), (1, vec![zero])]);
}

#[test]
#[ignore = "writes tests/golden"]
fn bless() {
    std::fs::write(path(), written(&sample(), &sample_pages(), BLOCK_SIZE)).unwrap();
}

/// Small images for the fuzzer to begin with: a zombie alone, one process, and all the sample.
#[test]
#[ignore = "writes fuzz/seeds"]
fn fuzz_seeds() {
    let seeds = format!("{}/../../fuzz/seeds", env!("CARGO_MANIFEST_DIR"));
    let save = |name: &str, bytes: Vec<u8>| std::fs::write(format!("{seeds}/{name}"), bytes).unwrap();
    let small = |state: u8, filler: u8| {
        // Header, uts and arch come first; then one process in this state.
        let mut bytes = vec![0; size_of::<record::Header>() + 3 + size_of::<record::HeaderArch>()];
        bytes.extend([0, state]);
        bytes.extend(std::iter::repeat_n(filler, 12_000));
        arbitrary(&mut Source(&bytes))
    };
    save("zombie", written(&small(2, 0), &[], BLOCK_SIZE));
    save("process", written(&small(0, 0), &[], BLOCK_SIZE));
    save("shared", written(&small(0, 5), &[], BLOCK_SIZE));
    save("sample", written(&sample(), &sample_pages(), BLOCK_SIZE));
    let mut failed = writer(BLOCK_SIZE);
    small(2, 0).write(&mut failed).unwrap();
    save("failed", failed.error(b"no").unwrap().image);
}
