//! `stats-dump` and `stats-restore`: what an action took, for who drives us.
//!
//! podman and others parse them. The layout is CRIU's, little-endian: two magic words, the size of what
//! follows, and one protobuf message. Times are microseconds. A count that cannot be told is zero; no
//! protobuf compiler is needed, the messages are written down here.

use crate::failure::{Failure, Outcome};
use prost::Message;
use std::{fs, path::Path, time::Duration};

/// First word of a file that is no image.
const SERVICE: u32 = 0x5510_5940;
/// Second word of statistics.
const STATS: u32 = 0x5709_3306;
/// No statistics are longer.
const LONGEST: usize = 64 << 10;

/// Name of the file a dump writes.
pub const DUMP: &str = "stats-dump";
/// Name of the file a restore writes.
pub const RESTORE: &str = "stats-restore";

/// What a dump took.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DumpStats {
    /// Microseconds until every task stood still.
    #[prost(uint32, required, tag = "1")]
    pub freezing_time: u32,
    /// Microseconds the tasks stood still.
    #[prost(uint32, required, tag = "2")]
    pub frozen_time: u32,
    /// Microseconds it took to find out which pages there are.
    #[prost(uint32, required, tag = "3")]
    pub memdump_time: u32,
    /// Microseconds it took to write them.
    #[prost(uint32, required, tag = "4")]
    pub memwrite_time: u32,
    /// Private pages looked at.
    #[prost(uint64, required, tag = "5")]
    pub pages_scanned: u64,
    /// Of these, those the parent image has.
    #[prost(uint64, required, tag = "6")]
    pub pages_skipped_parent: u64,
    /// Of these, those written.
    #[prost(uint64, required, tag = "7")]
    pub pages_written: u64,
    /// Microseconds a search for paths of inodes took.
    #[prost(uint32, optional, tag = "8")]
    pub irmap_resolve: Option<u32>,
    /// Pages left for later.
    #[prost(uint64, required, tag = "9")]
    pub pages_lazy: u64,
    /// Pipes that pages went through.
    #[prost(uint64, optional, tag = "10")]
    pub page_pipes: Option<u64>,
    /// Their buffers.
    #[prost(uint64, optional, tag = "11")]
    pub page_pipe_bufs: Option<u64>,
    /// Shared pages looked at.
    #[prost(uint64, optional, tag = "12")]
    pub shpages_scanned: Option<u64>,
    /// Of these, those the parent image has.
    #[prost(uint64, optional, tag = "13")]
    pub shpages_skipped_parent: Option<u64>,
    /// Of these, those written.
    #[prost(uint64, optional, tag = "14")]
    pub shpages_written: Option<u64>,
}

/// What a restore took.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RestoreStats {
    /// Pages compared with those of a parent process.
    #[prost(uint64, required, tag = "1")]
    pub pages_compared: u64,
    /// Of these, those left shared.
    #[prost(uint64, required, tag = "2")]
    pub pages_skipped_cow: u64,
    /// Microseconds it took to make the tasks.
    #[prost(uint32, required, tag = "3")]
    pub forking_time: u32,
    /// Microseconds it took in all.
    #[prost(uint32, required, tag = "4")]
    pub restore_time: u32,
    /// Pages put in place.
    #[prost(uint64, optional, tag = "5")]
    pub pages_restored: Option<u64>,
}

/// What a file of statistics holds.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Stats {
    /// Of a dump.
    #[prost(message, optional, tag = "1")]
    pub dump: Option<DumpStats>,
    /// Of a restore.
    #[prost(message, optional, tag = "2")]
    pub restore: Option<RestoreStats>,
}

/// `time` as a field has it: microseconds, the largest value if it is more.
pub fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Writes `stats-dump` into `dir`.
pub fn write_dump(dir: &Path, stats: DumpStats) -> Outcome {
    write(&dir.join(DUMP), &Stats { dump: Some(stats), restore: None })
}

/// Writes `stats-restore` into `dir`.
pub fn write_restore(dir: &Path, stats: RestoreStats) -> Outcome {
    write(&dir.join(RESTORE), &Stats { dump: None, restore: Some(stats) })
}

fn write(path: &Path, stats: &Stats) -> Outcome {
    fs::write(path, encode(stats)).map_err(|cause| Failure::os("stats", path.display().to_string(), cause))
}

/// Reads a file of statistics.
pub fn read(path: &Path) -> Outcome<Stats> {
    let bytes = fs::read(path).map_err(|cause| Failure::os("stats", path.display().to_string(), cause))?;
    decode(&bytes).map_err(|why| Failure::failed("stats", format!("{}: {why}", path.display())))
}

/// The bytes of the file.
pub fn encode(stats: &Stats) -> Vec<u8> {
    let message = stats.encode_to_vec();
    let size = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let head = [SERVICE, STATS, size].map(u32::to_le_bytes).concat();
    [head, message].concat()
}

/// What the bytes of a file mean; an error says what is wrong with them.
pub fn decode(bytes: &[u8]) -> Result<Stats, String> {
    if bytes.len() > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    let (words, message) = bytes.split_at_checked(12).ok_or("shorter than its head of 12 bytes")?;
    let mut words = words.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_le_bytes));
    if (words.next(), words.next()) != (Some(SERVICE), Some(STATS)) {
        return Err("no statistics: the magic words are others".to_owned());
    }
    let size = words.next().unwrap_or(0);
    if usize::try_from(size) != Ok(message.len()) {
        return Err(format!("says it has {size} bytes, has {}", message.len()));
    }
    Stats::decode(message).map_err(|cause| cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> DumpStats {
        DumpStats { frozen_time: 300, pages_written: 5, shpages_written: Some(0), ..DumpStats::default() }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        write_dump(dir.path(), dump()).unwrap();
        assert_eq!(read(&dir.path().join(DUMP)).unwrap().dump, Some(dump()));
        let restore = RestoreStats { restore_time: micros(Duration::from_millis(2)), ..Default::default() };
        write_restore(dir.path(), restore.clone()).unwrap();
        assert_eq!(read(&dir.path().join(RESTORE)).unwrap().restore, Some(restore));
    }

    /// Required fields are there though they are zero: other readers insist on them.
    #[test]
    fn the_bytes_are_those_of_the_layout() {
        let bytes = encode(&Stats { dump: Some(dump()), restore: None });
        let message =
            [0x0a, 19, 0x08, 0, 0x10, 0xac, 2, 0x18, 0, 0x20, 0, 0x28, 0, 0x30, 0, 0x38, 5, 0x48, 0, 0x70, 0];
        assert_eq!(bytes[..8], [0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57]);
        assert_eq!(bytes[8..12], [21, 0, 0, 0]);
        assert_eq!(bytes[12..], message);
    }

    #[test]
    fn bad_files_are_errors() {
        let good = encode(&Stats { dump: Some(dump()), restore: None });
        assert!(decode(&good).is_ok());
        for (bad, word) in [
            (good[..11].to_vec(), "head"),
            (good[..good.len() - 1].to_vec(), "bytes"),
            ([&good[..], &[0]].concat(), "bytes"),
            ([&[0], &good[1..]].concat(), "magic"),
            (vec![0; LONGEST + 1], "longer"),
        ] {
            assert!(decode(&bad).unwrap_err().contains(word), "{word}");
        }
    }
}
