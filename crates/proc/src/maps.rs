//! `/proc/PID/maps` (proc_pid_maps(5)).
//!
//! What the text cannot say: the only byte of a path that is escaped is the newline, as `\012`, and the
//! backslash is not, so a file whose name holds the four characters `\012` reads as one with a newline; and a
//! file whose name truly ends in ` (deleted)` reads as an unlinked one. Whoever must be sure compares with the
//! inode behind `/proc/PID/map_files`.

use crate::ParseError;
use crate::smaps::{Usage, VmFlags};
use crate::text::{Fields, Place, cut, dec, hex, lines, strip_deleted, unescape_newlines};

/// One mapping: a line of maps, or a block of smaps (proc_pid_maps(5), proc_pid_smaps(5)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// `r`: may be read.
    pub read: bool,
    /// `w`: may be written.
    pub write: bool,
    /// `x`: may be executed.
    pub exec: bool,
    /// `s` rather than `p`: `MAP_SHARED`.
    pub shared: bool,
    /// Offset into the file, in bytes.
    pub offset: u64,
    /// Major and minor number of the device of the file; 0:0 when there is none.
    pub dev: (u32, u32),
    /// Inode of the file; 0 when there is none.
    pub inode: u64,
    /// The path, newlines unescaped, without ` (deleted)`; or a name such as `[heap]`; or empty.
    pub path: Vec<u8>,
    /// Whether ` (deleted)` was behind the path: the file is unlinked (or the name is a liar's, see above).
    pub deleted: bool,
    /// The `VmFlags:` line; empty when read from maps, which has none.
    pub flags: VmFlags,
    /// The counters of smaps; all zero when read from maps, which has none.
    pub usage: Usage,
}

/// What the kernel calls a mapping that is not of a file (proc_pid_maps(5), "pathname").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special<'a> {
    /// `[heap]`: what brk(2) moves.
    Heap,
    /// `[stack]`: the stack of the main thread.
    Stack,
    /// `[vdso]`: vdso(7).
    Vdso,
    /// `[vvar]`: data of the vDSO.
    Vvar,
    /// `[vvar_vclock]`: clock pages of the vDSO; part of `[vvar]` on older kernels.
    VvarVclock,
    /// `[vsyscall]`: the gate page of x86-64, above the user half of the address space.
    Vsyscall,
    /// `[anon:NAME]` or `[anon_shmem:NAME]`: the name given by `PR_SET_VMA_ANON_NAME`, without the brackets.
    Anon(&'a [u8]),
}

impl Mapping {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the mapping has no bytes, which no mapping of a living task is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no file behind: neither inode nor device, and not a page the kernel itself maps
    /// (`[vdso]`, `[vvar]`, `[vvar_vclock]`, `[vsyscall]`). `[heap]`, `[stack]` and `[anon:NAME]` are anonymous.
    /// Shared anonymous memory is *not*: it is the file `/dev/zero (deleted)` to the kernel.
    pub fn is_anonymous(&self) -> bool {
        if self.inode != 0 || self.dev != (0, 0) {
            return false;
        }
        match self.special() {
            Some(Special::Heap | Special::Stack | Special::Anon(_)) => true,
            Some(_) => false,
            None => self.path.is_empty(),
        }
    }

    /// Which of the kernel's names the mapping has, if any. A path cannot be mistaken for one: it begins with
    /// `/` or with a word.
    pub fn special(&self) -> Option<Special<'_>> {
        let name = self.path.strip_prefix(b"[")?.strip_suffix(b"]")?;
        Some(match name {
            b"heap" => Special::Heap,
            b"stack" => Special::Stack,
            b"vdso" => Special::Vdso,
            b"vvar" => Special::Vvar,
            b"vvar_vclock" => Special::VvarVclock,
            b"vsyscall" => Special::Vsyscall,
            _ => Special::Anon(name.strip_prefix(b"anon:").or_else(|| name.strip_prefix(b"anon_shmem:"))?),
        })
    }

    /// The path as `d_path()` gave it, ` (deleted)` and all: what readlink(2) of `map_files` says.
    pub fn path_as_shown(&self) -> Vec<u8> {
        let mut path = self.path.clone();
        if self.deleted {
            path.extend_from_slice(b" (deleted)");
        }
        path
    }
}

/// Parses `/proc/PID/maps` (proc_pid_maps(5)).
///
/// # Errors
/// A line that is not `START-END PERMS OFFSET MAJOR:MINOR INODE [PATH]`, or ends before it starts.
pub fn parse_maps(text: &[u8]) -> Result<Vec<Mapping>, ParseError> {
    lines(text).map(|(line, text)| parse_line(text, Place { file: "maps", line })).collect()
}

/// Parses the line that maps and smaps share.
pub(crate) fn parse_line(text: &[u8], place: Place) -> Result<Mapping, ParseError> {
    let mut fields = Fields::new(text, place);
    let (start, end) = fields.parse("address range", |word| {
        let (start, end) = cut(word, b'-')?;
        Some((hex::<u64>(start)?, hex::<u64>(end)?)).filter(|(start, end)| start <= end)
    })?;
    let [read, write, exec, shared] = fields.parse("permissions", |word| match word {
        [r @ (b'r' | b'-'), w @ (b'w' | b'-'), x @ (b'x' | b'-'), s @ (b's' | b'p')] => {
            Some([*r == b'r', *w == b'w', *x == b'x', *s == b's'])
        }
        _ => None,
    })?;
    let offset = fields.parse("offset", hex)?;
    let dev = fields.parse("device", |word| {
        let (major, minor) = cut(word, b':')?;
        Some((hex(major)?, hex(minor)?))
    })?;
    let inode = fields.parse("inode", dec)?;
    let (path, deleted) = strip_deleted(fields.rest());
    Ok(Mapping {
        start,
        end,
        read,
        write,
        exec,
        shared,
        offset,
        dev,
        inode,
        path: unescape_newlines(path),
        deleted,
        flags: VmFlags::default(),
        usage: Usage::default(),
    })
}
