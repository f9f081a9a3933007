//! `ckpt bench-target`: a process that holds memory and waits.

use std::time::Duration;

use crate::{
    args::BenchTargetArgs,
    failure::{Failure, Outcome},
};

/// Fills memory, says so, and waits to be killed.
pub(crate) fn run(args: &BenchTargetArgs) -> Outcome {
    let mut memory = vec![1u8; args.size];
    if args.random {
        let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(std::process::id());
        for word in memory.chunks_mut(8) {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            for (to, from) in word.iter_mut().zip(state.to_le_bytes()) {
                *to = from;
            }
        }
    }
    let memory = std::hint::black_box(memory);
    std::fs::write(&args.ready, b"").map_err(|cause| Failure::os(args.ready.display().to_string(), cause))?;
    loop {
        std::thread::sleep(Duration::from_secs(3600));
        std::hint::black_box(&memory);
    }
}
