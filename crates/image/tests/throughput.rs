//! Figures, not assertions: `cargo test --release --test throughput -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::hint::black_box;
use std::time::Instant;

use ckpt_image::record::{PAGE_SIZE, Run};
use ckpt_image::{BLOCK_SIZE, Block, BlockSink, Writer, ZeroPages};

struct Null;

impl BlockSink for Null {
    fn submit(&mut self, block: Block, _: bool) -> std::io::Result<Option<Block>> {
        Ok(Some(block))
    }
}

fn rate(what: &str, bytes: usize, mut work: impl FnMut()) {
    let best = (0..5).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    let best = best.fold(f64::INFINITY, f64::min);
    println!("{what:42} {:8.0} MB/s", bytes as f64 / best / 1e6);
}

/// `Writer::pages` over `bytes` of memory; `fill` writes what makes a page non-zero.
fn pages(what: &str, zero: ZeroPages, mut fill: impl FnMut(&mut [u8])) {
    let bytes = 512 << 20;
    let run = Run { start: 0, nr_pages: (bytes / PAGE_SIZE) as u32, flags: 0 };
    rate(what, bytes, || {
        let mut writer = Writer::new(Null, Block::new(BLOCK_SIZE));
        let mut each = |_: &[Run], buffer: &mut [u8]| {
            fill(buffer);
            Ok::<_, ()>(())
        };
        black_box(writer.pages(1, &[run], zero, &mut each).unwrap());
    });
}

#[test]
#[ignore = "measures"]
fn throughput() {
    let mut memory = vec![1u8; 256 << 20];
    rate("xxh3 of 256 MiB", memory.len(), || {
        black_box(twox_hash::XxHash3_64::oneshot(&memory));
    });
    let cached = &memory[..BLOCK_SIZE];
    rate("xxh3 of a 4 MiB block, again and again", 64 * BLOCK_SIZE, || {
        for _ in 0..64 {
            black_box(twox_hash::XxHash3_64::oneshot(black_box(cached)));
        }
    });
    memory.fill(0);
    rate("iter().all(0) of 256 MiB, for comparison", memory.len(), || {
        black_box(black_box(&memory).iter().all(|byte| *byte == 0));
    });
    pages("pages(): all zero, dropped", ZeroPages::Drop, |buffer| {
        if buffer[0] != 0 {
            buffer.fill(0);
        }
    });
    pages("pages(): first word not zero, xxh3", ZeroPages::Drop, |buffer| {
        buffer.iter_mut().step_by(PAGE_SIZE).for_each(|byte| *byte = 1);
    });
    pages("pages(): last byte not zero, scan and xxh3", ZeroPages::Drop, |buffer| {
        buffer.iter_mut().step_by(PAGE_SIZE).for_each(|byte| *byte = 0);
        buffer.iter_mut().skip(PAGE_SIZE - 1).step_by(PAGE_SIZE).for_each(|byte| *byte = 1);
    });
    pages("pages(): kept, xxh3 alone", ZeroPages::Keep, |_| {});
}
