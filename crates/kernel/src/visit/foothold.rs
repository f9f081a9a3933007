//! The stub: where it stands, and what dead coordinators left there.

use super::{Guest, NO_SYSCALL, home_regs, image, words};
use crate::{
    code::{self, MAGIC},
    error::{Error, Result},
    memory::{self, Span},
};
use ckpt_image::record::Regs;
use rustix::io::Errno;
use std::{fs::File, os::unix::fs::FileExt};

/// The stub's place in a process, and what was there.
#[derive(Debug)]
pub(super) struct Foothold {
    mem: File,
    pub(super) address: u64,
    pub(super) saved: Vec<u8>,
}

impl Foothold {
    /// Finds room for the stub at the end of one of `texts` (executable private mappings, the vdso
    /// first) of the process of thread `tid`. A stub that a dead coordinator left counts as room.
    pub(super) fn find(tid: i32, texts: &[Span]) -> Result<Foothold> {
        let code = code::stub();
        let need = code.bytes.len();
        let mem =
            std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{tid}/mem")).map_err(
                |e| Error::Os {
                    call: "open(/proc/PID/mem)",
                    errno: Errno::from_io_error(&e).unwrap_or(Errno::IO),
                },
            )?;
        for text in texts {
            let Some(Span { start: address, .. }) = stub_place(text) else { continue };
            let mut tail = vec![0; need];
            if memory::read(tid, address, &mut tail).is_err() {
                continue;
            }
            let left_behind = tail.get(..code.words) == code.bytes.get(..code.words);
            if left_behind || tail.iter().all(|&b| b == 0) {
                return Ok(Foothold { mem, address, saved: vec![0; need] });
            }
        }
        Err(Error::NoRoom { need })
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        self.mem.write_all_at(bytes, self.address).map_err(|e| Error::Os {
            call: "write(/proc/PID/mem)",
            errno: Errno::from_io_error(&e).unwrap_or(Errno::IO),
        })
    }

    /// One system call in `guest`, which must be the only thread that uses the stub.
    pub(super) fn syscall(&self, guest: &mut Guest, nr: i64, args: [u64; 6]) -> Result<u64> {
        let code = code::stub();
        let words = words(&guest.raw, guest.mask, guest.own, guest.signal);
        let extra: Vec<u64> = std::iter::once(nr as u64).chain(args).collect();
        self.write(&image(code, &words, &extra))?;
        let home = home_regs(&guest.raw);
        guest.go_in(self.address)?;
        guest.thread.set_regs(&Regs { rip: self.address, orig_rax: NO_SYSCALL, ..home })?;
        guest.thread.run_to(self.address + code.parked)?;
        let result = guest.thread.regs()?.rbx;
        if (result as i64) < 0 && (result as i64) > -4096 {
            let errno = Errno::from_raw_os_error((result as i64).unsigned_abs() as i32);
            return Err(Error::Call {
                tid: guest.thread.tid(),
                what: "bootstrap system call",
                object: nr as u64,
                errno,
            });
        }
        Ok(result)
    }
}

/// What a coordinator that died left in a process.
#[derive(Debug)]
pub struct Traces {
    /// Slots.
    pub slots: Vec<Span>,
    /// The stub.
    stub: Option<Span>,
}

impl Traces {
    /// Looks into `texts` as [`Visit::enter`](super::Visit::enter) does, and at `candidates`, the anonymous rwx mappings,
    /// through thread `tid`.
    pub fn find(tid: i32, texts: &[Span], candidates: &[Span]) -> Traces {
        let code = code::stub();
        let mut head = vec![0; code.words];
        let is_stub =
            |s: &Span| memory::read(tid, s.start, &mut head).is_ok() && code.bytes.starts_with(&head);
        let stub = texts.iter().filter_map(stub_place).find(is_stub);
        // The stub's call: number, first argument (address), second (length).
        let call = |at: usize| {
            stub.map_or(0, |s| memory::read_u64(tid, s.start + (code.words + at) as u64).unwrap_or(0))
        };
        let mapped = (call(200), call(208) as usize);
        let words = code::bay().words as u64;
        let is_slot = |s: &&Span| {
            mapped == (s.start, s.len)
                || memory::read_u64(tid, s.start + words).is_ok_and(|word| word == MAGIC)
        };
        Traces { slots: candidates.iter().filter(is_slot).copied().collect(), stub }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.stub.is_none()
    }

    /// All places where our code stands.
    pub fn spans(&self) -> Vec<Span> {
        self.slots.iter().chain(&self.stub).copied().collect()
    }
}

/// Where the stub goes in a text mapping: at its end.
fn stub_place(text: &Span) -> Option<Span> {
    let len = code::stub().bytes.len();
    let at = (text.start + text.len as u64).checked_sub(len as u64)? & !15;
    (at >= text.start).then_some(Span { start: at, len })
}
