//! Everything that needs `unsafe`: ptrace, foreign memory, clone3 and the syscall programs that
//! tasks run for the coordinator.
//!
//! # Safety
//! The unsafe blocks of this crate are of four kinds. *System calls* through `libc::syscall` or
//! `libc::ptrace`: every pointer handed over comes from a live reference or slice of at least the
//! length handed over with it, for the duration of the call. *The clone in [`puppet`]*: the child
//! runs a few instructions of our own that touch nothing but their own stack. *The code images in [`code`]*: byte
//! slices between two symbols of one `global_asm!` block. *Mappings* of our own at addresses we chose,
//! in [`puppet`] and [`shared`]. (Probes, [`probe`], do all of it to themselves and to children.) What happens to *other* processes is
//! outside Rust's memory model; keeping them whole is the contract of [`visit`].
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod anon;
pub mod code;
pub mod descriptors;
pub mod error;
pub mod guardian;
mod init;
pub mod memory;
pub mod mntns;
pub mod mqueue;
pub mod pagemap;
pub mod pidns;
pub mod probe;
pub mod procfs;
pub mod program;
pub mod puppet;
pub mod query;
pub mod reaper;
pub mod servant;
pub mod shared;
mod sys;
pub mod tracee;
pub mod tty;
pub mod unix;
pub mod userfault;
pub mod visit;

pub use error::{Error, Result};
pub use rustix::io::Errno;
pub use sys::hear_of_children;
