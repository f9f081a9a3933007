//! `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)).

use crate::ParseError;
use crate::text::{Fields, Place, cut, dec, hex, lines, oct, signed, skip_blanks};

/// `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FdInfo {
    /// `pos:`, the file offset.
    pub pos: i64,
    /// `flags:`, access mode and status flags of open(2), with `O_CLOEXEC`, which is the descriptor's.
    pub flags: u32,
    /// `mnt_id:`, the mount the file was opened through; field 1 of mountinfo.
    pub mnt_id: i32,
    /// `ino:`, the inode (Linux 5.14).
    pub ino: Option<u64>,
    /// `lock:` lines: the locks held *through this open file*, POSIX ones of this process included.
    pub locks: Vec<Lock>,
    /// Every other line, as key and value, in order; what there is depends on the kind of file. The key is what
    /// is before the first colon (`eventfd-count`, `tfd`, `settime flags`), and for the lines that begin with
    /// `inotify ` and `fanotify ` that word. Blanks at the start of the value are dropped.
    pub extra: Vec<(Vec<u8>, Vec<u8>)>,
}

impl FdInfo {
    /// The first value of a kind-specific key.
    pub fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.extra.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_slice())
    }

    /// All the values of a kind-specific key, in order.
    pub fn values<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.extra.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_slice())
    }
}

/// What made a lock: the second column of proc_locks(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockKind {
    /// `POSIX`: fcntl(2) `F_SETLK`.
    Posix,
    /// `OFDLCK`: fcntl(2) `F_OFD_SETLK`.
    Ofd,
    /// `FLOCK`: flock(2).
    Flock,
    /// `LEASE`: fcntl(2) `F_SETLEASE`.
    Lease,
    /// `DELEG`, `ACCESS` or one of another kernel release.
    Other(Vec<u8>),
}

/// What a lock keeps others from: the fourth column of proc_locks(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockAccess {
    /// `READ`: shared.
    Read,
    /// `WRITE`: exclusive.
    Write,
    /// `UNLCK`: a lease being broken to nothing.
    Unlock,
}

/// A lock: a `lock:` line of proc_pid_fdinfo(5), in the form of proc_locks(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// What made it.
    pub kind: LockKind,
    /// The third column: `ADVISORY`; for a lease `ACTIVE`, `BREAKING` or `BREAKER`.
    pub mode: Vec<u8>,
    /// Shared or exclusive.
    pub access: LockAccess,
    /// Process that made it, in the reader's PID namespace; -1 for [`LockKind::Ofd`].
    pub pid: i32,
    /// Major and minor number of the file's device, and its inode; `None` when the kernel prints `<none>`.
    pub file: Option<(u32, u32, u64)>,
    /// First byte; 0 for [`LockKind::Flock`] and [`LockKind::Lease`], which are of the whole file.
    pub start: i64,
    /// Last byte, inclusive; `None` for `EOF`, the end whatever it becomes.
    pub end: Option<i64>,
}

/// Parses `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)).
///
/// # Errors
/// `pos`, `flags` or `mnt_id` missing or malformed, or a `lock:` line not of the form of proc_locks(5).
pub fn parse_fdinfo(text: &[u8]) -> Result<FdInfo, ParseError> {
    let mut info = FdInfo::default();
    let (mut pos, mut flags, mut mnt_id) = (None, None, None);
    for (line, text) in lines(text) {
        let place = Place { file: "fdinfo", line };
        let (key, value) = key_and_value(text);
        match key {
            // The common lines come first, so a later line of the same name is the file kind's own.
            b"pos" if pos.is_none() => pos = Some(signed(value).ok_or_else(|| place.malformed("pos"))?),
            b"flags" if flags.is_none() => {
                flags = Some(oct(value).ok_or_else(|| place.malformed("flags"))?);
            }
            b"mnt_id" if mnt_id.is_none() => {
                mnt_id = Some(signed(value).ok_or_else(|| place.malformed("mnt_id"))?);
            }
            b"ino" if info.ino.is_none() => {
                info.ino = Some(dec(value).ok_or_else(|| place.malformed("ino"))?);
            }
            b"lock" => info.locks.push(parse_lock(value, place)?),
            _ => info.extra.push((key.to_vec(), value.to_vec())),
        }
    }
    let place = Place { file: "fdinfo", line: 0 };
    info.pos = pos.ok_or_else(|| place.missing("pos"))?;
    info.flags = flags.ok_or_else(|| place.missing("flags"))?;
    info.mnt_id = mnt_id.ok_or_else(|| place.missing("mnt_id"))?;
    Ok(info)
}

fn key_and_value(text: &[u8]) -> (&[u8], &[u8]) {
    let at = if text.starts_with(b"inotify ") || text.starts_with(b"fanotify ") { b' ' } else { b':' };
    let (key, value) = cut(text, at).unwrap_or((&[], text));
    (key, skip_blanks(value))
}

/// `/proc/locks` (proc_locks(5)): the locks that are held. Lines that are not understood, and those of waiters
/// (`->`), are left out.
#[must_use]
pub fn parse_locks(text: &[u8]) -> Vec<Lock> {
    let lock = |(line, text)| parse_lock(text, Place { file: "locks", line }).ok();
    lines(text).filter_map(lock).collect()
}

/// `1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF`
fn parse_lock(text: &[u8], place: Place) -> Result<Lock, ParseError> {
    let mut fields = Fields::new(text, place);
    fields.skip(1, "lock number")?;
    let kind = match fields.word("lock type")? {
        b"POSIX" => LockKind::Posix,
        b"OFDLCK" => LockKind::Ofd,
        b"FLOCK" => LockKind::Flock,
        b"LEASE" => LockKind::Lease,
        other => LockKind::Other(other.to_vec()),
    };
    Ok(Lock {
        kind,
        mode: fields.word("lock mode")?.to_vec(),
        access: fields.parse("lock access", |word| match word {
            b"READ" => Some(LockAccess::Read),
            b"WRITE" => Some(LockAccess::Write),
            b"UNLCK" => Some(LockAccess::Unlock),
            _ => None,
        })?,
        pid: fields.signed("lock pid")?,
        file: fields.parse("lock file", |word| {
            if word.starts_with(b"<none>") {
                return Some(None);
            }
            let (major, rest) = cut(word, b':')?;
            let (minor, inode) = cut(rest, b':')?;
            Some(Some((hex(major)?, hex(minor)?, dec(inode)?)))
        })?,
        start: fields.signed("lock start")?,
        end: fields.parse("lock end", |word| match word {
            b"EOF" => Some(None),
            end => signed(end).map(Some),
        })?,
    })
}
