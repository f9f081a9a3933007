//! What can go wrong when an image is written or read.

use std::io;

use crate::check::{Fault, Place};

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink failed.
    #[error("cannot write the image at byte {offset}")]
    Sink {
        /// Where the block that failed begins.
        offset: u64,
        /// The sink's reason.
        source: io::Error,
    },
    /// The sink gave no block back, or failed before.
    #[error("the image's sink is closed at byte {offset}")]
    Closed {
        /// Where writing stopped.
        offset: u64,
    },
    /// A record longer than [`MAX_RECORD`](crate::MAX_RECORD).
    #[error("{name} record of {len} bytes exceeds the format's limit")]
    TooLong {
        /// The record.
        name: &'static str,
        /// Its length.
        len: u64,
    },
    /// The caller gave another number of fields than the record has.
    #[error("{name} record takes {expected} fields, not {given}")]
    FieldCount {
        /// The record.
        name: &'static str,
        /// Fields it has.
        expected: usize,
        /// Fields it was given.
        given: usize,
    },
    /// Page runs that are not aligned, ascending, plain and free of overflow.
    #[error("pages of object {objref}, run at {start:#x}: {what}")]
    Run {
        /// Whose pages.
        objref: i32,
        /// The run.
        start: u64,
        /// The rule it breaks.
        what: &'static str,
    },
    /// The metadata contradicts itself: no reader would accept it.
    #[error("inconsistent image: {0}")]
    Invalid(#[from] Fault),
}

/// Why pages could not be written: the image's fault, or the memory's.
#[derive(Debug, thiserror::Error)]
pub enum PagesError<E> {
    /// The image.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// `fill` failed; nothing of the chunk was written.
    #[error("cannot read the pages")]
    Fill(#[source] E),
}

/// Why an image was refused. `offset` counts bytes from the image's first.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source failed.
    #[error("cannot read the image at byte {offset}")]
    Io {
        /// Bytes read before.
        offset: u64,
        /// The source's reason.
        source: io::Error,
    },
    /// It does not begin as an image does.
    #[error("not a checkpoint image")]
    NotAnImage,
    /// The stream ends before the TAIL record: the checkpoint did not finish, or a copy did not.
    #[error("the image is incomplete: it ends at byte {offset}, before its TAIL record")]
    Truncated {
        /// Where the stream ended.
        offset: u64,
    },
    /// Written in another revision of the format.
    #[error("image revision {found} at byte 16, this program reads {}", crate::record::REV)]
    Revision {
        /// Its revision.
        found: u32,
    },
    /// Taken on another architecture.
    #[error(
        "image of another architecture (ELF machine {found}) at byte 20, this program reads {}",
        crate::record::ARCH_X86_64
    )]
    Arch {
        /// Its ELF machine number.
        found: u32,
    },
    /// The checkpoint failed, and says why.
    #[error("the checkpoint failed at byte {offset}: {text}")]
    Checkpoint {
        /// Where the ERROR record is.
        offset: u64,
        /// Its text, control characters replaced.
        text: String,
    },
    /// A record type this program does not know.
    #[error("unknown record type {number} at byte {offset}")]
    UnknownType {
        /// The record.
        offset: u64,
        /// Its type.
        number: u32,
    },
    /// A length that is no multiple of 8, too short or beyond the limit.
    #[error("{name} record at byte {offset}: impossible length {len}")]
    Length {
        /// The record.
        offset: u64,
        /// Its name.
        name: &'static str,
        /// Its length.
        len: u64,
    },
    /// A record where another belongs.
    #[error("{name} record at byte {offset}, where {expected} belongs")]
    Unexpected {
        /// The record.
        offset: u64,
        /// Its name.
        name: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// Bytes changed since they were written.
    #[error("{name} record at byte {offset}: checksum mismatch, the image is damaged")]
    Sum {
        /// SUM record of the group, or the PGARR record.
        offset: u64,
        /// Its name.
        name: &'static str,
    },
    /// A record that does not decode.
    #[error("{name} record at byte {offset}: {what}")]
    Malformed {
        /// The record.
        offset: u64,
        /// Its name.
        name: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// Page contents in an encoding this program does not know.
    #[error("PGARR record at byte {offset}: unknown codec {codec}")]
    Codec {
        /// The record.
        offset: u64,
        /// Its codec.
        codec: u32,
    },
    /// Metadata that decodes but contradicts itself.
    #[error("{name} record at byte {offset}: {place}: {what}")]
    Invalid {
        /// The record.
        offset: u64,
        /// Its name.
        name: &'static str,
        /// What it describes.
        place: Place,
        /// The rule it breaks.
        what: &'static str,
    },
}
