//! The checkpoint image: one forward-only stream of typed records.
//!
//! `docs/image-format.md` is the specification. In this crate:
//!
//! - [`record`] is the schema: every record's type number, fixed body and fields.
//! - [`model`] is the decoded metadata, [`Image`]: what a checkpoint fills and a restart plans from.
//! - [`Writer`] frames records and page chunks into page-aligned [`Block`]s for a [`BlockSink`].
//! - [`Reader`] verifies and decodes any [`std::io::Read`], without seeking.
//!
//! The crate makes no system calls of its own and trusts no byte it reads: lengths are checked
//! before anything is allocated, sums before anything is decoded, and the decoded metadata
//! against the rules in [`Image::check`].

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

#[cfg(target_endian = "big")]
compile_error!("record bodies are copied as they are: only little-endian targets can read images");

mod block;
mod check;
mod chunk;
mod cpu;
mod decode;
mod encode;
mod error;
mod frame;
pub mod model;
mod pack;
mod reader;
pub mod record;
pub mod table;
mod writer;

pub use block::{BLOCK_SIZE, Block};
pub use check::{Fault, Place};
pub use chunk::Chunk;
pub use error::{PagesError, ReadError, WriteError};
pub use frame::{MAX_GROUP, MAX_RECORD};
pub use model::{Image, Object};
pub use pack::{PagesWritten, ZeroPages};
pub use reader::{Reader, RecordInfo, find_error_text};
pub use record::Objref;
pub use table::Table;
pub use writer::{BlockSink, Fill, Writer};
