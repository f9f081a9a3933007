//! Feeds bytes to the image reader: as they are, with the sums not looked at, and with the sums
//! repaired so that the reader believes them. What it accepts must survive being written again.
#![no_main]

use std::cell::RefCell;
use std::hash::Hasher;

use ckpt_image::{BLOCK_SIZE, Block, Chunk, Image, ReadError, Reader};
use libfuzzer_sys::fuzz_target;
use twox_hash::XxHash3_64;

#[path = "../../crates/image/tests/common/mod.rs"]
mod common;

thread_local! {
    static CHUNK: RefCell<Chunk> = RefCell::new(Chunk::new());
}

fuzz_target!(|data: &[u8]| {
    let _ = read(Reader::new(data));
    let loose = read(Reader::without_sums(data));
    let mut listing = Reader::new(data);
    while let Ok(Some(_)) = listing.next_record() {}
    let repaired = repair(data);
    if let Ok(strict) = read(Reader::new(&repaired)) {
        same_when_rewritten(&strict);
    }
    if let Ok(loose) = loose {
        same_when_rewritten(&loose);
    }
    let made = common::arbitrary(&mut common::Source(data));
    same_when_rewritten(&made);
    let _ = ckpt_image::find_error_text(data);
});

fn read(mut reader: Reader<&[u8]>) -> Result<Image, ReadError> {
    let image = reader.metadata()?;
    CHUNK.with_borrow_mut(|chunk| {
        while reader.chunk(chunk)? {
            let stored = chunk.runs.iter().filter(|run| run.flags == 0);
            let pages = stored.map(|run| run.nr_pages as usize).sum::<usize>();
            assert_eq!(chunk.data().len(), pages * 4096);
        }
        Ok(image)
    })
}

fn same_when_rewritten(image: &Image) {
    let mut writer = ckpt_image::Writer::new(common::VecSink::default(), Block::new(8192));
    image.write(&mut writer).expect("an accepted image can be written");
    let (sink, len) = writer.tail().expect("and ended");
    assert_eq!(sink.image.len() as u64, len);
    let again = read(Reader::new(sink.image.as_slice())).expect("and read again");
    assert!(again == *image, "and is the same");
}

/// Puts right every SUM, PGARR and TAIL that can be found by walking the records.
fn repair(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut group, mut pages) = (0, 0, 0u64);
    let mut digest = XxHash3_64::new();
    while at + 8 <= bytes.len() {
        let (number, len) = (word(&bytes, at), word(&bytes, at + 4) as usize);
        if len < 8 || len > BLOCK_SIZE || at + len > bytes.len() {
            break;
        }
        let end = at + len;
        match number {
            10 if len == 16 => {
                let sum = XxHash3_64::oneshot(&bytes[group..at]).to_le_bytes();
                bytes[at + 8..end].copy_from_slice(&sum);
                digest.write(&sum);
                group = end;
            }
            403 if len >= 40 => {
                pages += u64::from(word(&bytes, at + 20));
                bytes[at + 32..at + 40].fill(0);
                let sum = XxHash3_64::oneshot(&bytes[at..end]).to_le_bytes();
                bytes[at + 32..at + 40].copy_from_slice(&sum);
                digest.write(&sum);
            }
            9001 if len >= 40 => {
                bytes[at + 16..at + 24].copy_from_slice(&digest.finish().to_le_bytes());
                bytes[at + 24..at + 32].copy_from_slice(&(end as u64).to_le_bytes());
                bytes[at + 32..at + 40].copy_from_slice(&pages.to_le_bytes());
            }
            _ => {}
        }
        at = end;
    }
    bytes
}
