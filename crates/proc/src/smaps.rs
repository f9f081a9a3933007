//! `/proc/PID/smaps` (proc_pid_smaps(5)).
//!
//! A JVM has some 500 mappings of 25 lines each, and this is on the path on which its tasks stand still, so most
//! lines are dismissed by their first byte: a mapping begins with a lower-case hexadecimal digit, a counter with
//! an upper-case letter.

use crate::ParseError;
use crate::maps::{Mapping, parse_line};
use crate::text::{Place, cut, dec, lines, words};

/// Declares [`VmFlags`] constants and the table of their codes from one list.
macro_rules! vm_flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $code:literal;)*) => {
        impl VmFlags {
            $($(#[$doc])* pub const $name: VmFlags = VmFlags { bits: 1 << $bit, unknown: 0 };)*

            /// The flag of a two-letter code.
            fn from_code(code: &[u8; 2]) -> Option<VmFlags> {
                match code {
                    $($code => Some(VmFlags::$name),)*
                    _ => None,
                }
            }

            /// Every flag with its code.
            pub const TABLE: &[(&'static [u8; 2], VmFlags)] = &[$(($code, VmFlags::$name)),*];
        }
    };
}

/// The `VmFlags:` line of a mapping, as a set (proc_pid_smaps(5)). The bits are this crate's own, not the
/// kernel's `VM_*`, and must not be written anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VmFlags {
    bits: u64,
    /// How many codes of the line this crate has no name for.
    pub unknown: u8,
}

vm_flags! {
    /// `rd`: readable.
    READ = 0, b"rd";
    /// `wr`: writable.
    WRITE = 1, b"wr";
    /// `ex`: executable.
    EXEC = 2, b"ex";
    /// `sh`: shared.
    SHARED = 3, b"sh";
    /// `mr`: may be made readable.
    MAY_READ = 4, b"mr";
    /// `mw`: may be made writable.
    MAY_WRITE = 5, b"mw";
    /// `me`: may be made executable.
    MAY_EXEC = 6, b"me";
    /// `ms`: may be shared.
    MAY_SHARE = 7, b"ms";
    /// `gd`: grows down (`MAP_GROWSDOWN`, the stack).
    GROWS_DOWN = 8, b"gd";
    /// `pf`: pure page frame numbers, no `struct page`.
    PFN_MAP = 9, b"pf";
    /// `lo`: locked (mlock(2)).
    LOCKED = 10, b"lo";
    /// `io`: memory-mapped I/O.
    IO = 11, b"io";
    /// `sr`: `MADV_SEQUENTIAL`.
    SEQ_READ = 12, b"sr";
    /// `rr`: `MADV_RANDOM`.
    RAND_READ = 13, b"rr";
    /// `dc`: `MADV_DONTFORK`.
    DONT_COPY = 14, b"dc";
    /// `de`: mremap(2) must not expand it.
    DONT_EXPAND = 15, b"de";
    /// `ac`: accounted for in the commit limit.
    ACCOUNT = 16, b"ac";
    /// `nr`: `MAP_NORESERVE`.
    NO_RESERVE = 17, b"nr";
    /// `ht`: hugetlb pages.
    HUGETLB = 18, b"ht";
    /// `sf`: `MAP_SYNC`.
    SYNC = 19, b"sf";
    /// `nl`: non-linear (before Linux 4.0).
    NON_LINEAR = 20, b"nl";
    /// `ar`: specific to the architecture.
    ARCH = 21, b"ar";
    /// `wf`: `MADV_WIPEONFORK`.
    WIPE_ON_FORK = 22, b"wf";
    /// `dd`: `MADV_DONTDUMP`.
    DONT_DUMP = 23, b"dd";
    /// `bt`: arm64 `PROT_BTI`.
    BTI = 24, b"bt";
    /// `mg`: `MADV_MERGEABLE`.
    MERGEABLE = 25, b"mg";
    /// `hg`: `MADV_HUGEPAGE`.
    HUGE_PAGE = 26, b"hg";
    /// `nh`: `MADV_NOHUGEPAGE`.
    NO_HUGE_PAGE = 27, b"nh";
    /// `sd`: soft-dirty.
    SOFT_DIRTY = 28, b"sd";
    /// `um`: userfaultfd(2), missing pages.
    UFFD_MISSING = 29, b"um";
    /// `uw`: userfaultfd(2), write-protected pages.
    UFFD_WP = 30, b"uw";
    /// `ui`: userfaultfd(2), minor faults.
    UFFD_MINOR = 31, b"ui";
    /// `ss`: shadow stack.
    SHADOW_STACK = 32, b"ss";
    /// `sl`: mseal(2)ed.
    SEALED = 33, b"sl";
    /// `dp`: `MAP_DROPPABLE`.
    DROPPABLE = 34, b"dp";
    /// `gu`: may hold guard pages (`MADV_GUARD_INSTALL`).
    GUARD = 35, b"gu";
    /// `lf`: `MLOCK_ONFAULT`.
    LOCK_ON_FAULT = 36, b"lf";
    /// `mm`: mixed, pages and page frame numbers.
    MIXED_MAP = 37, b"mm";
    /// `mt`: arm64 `PROT_MTE`.
    MTE = 38, b"mt";
}

impl VmFlags {
    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: VmFlags) -> bool {
        self.bits & other.bits == other.bits
    }

    /// Whether any flag of `other` is set.
    pub const fn intersects(self, other: VmFlags) -> bool {
        self.bits & other.bits != 0
    }

    /// Both sets together; the counts of unknown codes add up.
    pub const fn union(self, other: VmFlags) -> VmFlags {
        VmFlags { bits: self.bits | other.bits, unknown: self.unknown.saturating_add(other.unknown) }
    }

    /// Whether the line had no code at all, or there was no line.
    pub const fn is_empty(self) -> bool {
        self.bits == 0 && self.unknown == 0
    }

    /// The codes of the flags set, in the order of [`VmFlags::TABLE`].
    pub fn codes(self) -> impl Iterator<Item = &'static [u8; 2]> {
        Self::TABLE.iter().filter(move |(_, flag)| self.contains(*flag)).map(|(code, _)| *code)
    }

    /// Reads what is behind `VmFlags:`: two-letter codes between blanks (proc_pid_smaps(5)).
    pub fn parse(codes: &[u8]) -> VmFlags {
        words(codes).fold(VmFlags::default(), |set, code| {
            let flag = <&[u8; 2]>::try_from(code).ok().and_then(VmFlags::from_code);
            set.union(flag.unwrap_or(VmFlags { bits: 0, unknown: 1 }))
        })
    }
}

/// The counters of a mapping that a checkpoint has a use for, in KiB (proc_pid_smaps(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Usage {
    /// `KernelPageSize:`, the page size of the mapping: larger than the base page for hugetlb.
    pub page_kib: u64,
    /// `Rss:`, resident.
    pub rss_kib: u64,
    /// `Anonymous:`, resident and not of a file (private copies included).
    pub anonymous_kib: u64,
    /// `Swap:`, swapped out.
    pub swap_kib: u64,
    /// `Locked:`, this mapping's share of what is locked in memory.
    pub locked_kib: u64,
    /// `ProtectionKey:`, pkeys(7); 0 where the machine has none.
    pub protection_key: u16,
}

/// Parses `/proc/PID/smaps` (proc_pid_smaps(5)). Counters this crate has no field for are skipped unread.
///
/// # Errors
/// A mapping's first line that [`parse_maps`](crate::maps::parse_maps) would refuse, a counter that is no
/// number, or a counter before the first mapping.
pub fn parse_smaps(text: &[u8]) -> Result<Vec<Mapping>, ParseError> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for (line, text) in lines(text) {
        let place = Place { file: "smaps", line };
        match text.first() {
            Some(b'A'..=b'Z') => {
                let mapping = mappings.last_mut().ok_or_else(|| place.missing("address range"))?;
                parse_counter(text, mapping, place)?;
            }
            _ => mappings.push(parse_line(text, place)?),
        }
    }
    Ok(mappings)
}

fn parse_counter(text: &[u8], mapping: &mut Mapping, place: Place) -> Result<(), ParseError> {
    // The first byte decides for two lines in three.
    if !matches!(text.first(), Some(b'A' | b'K' | b'L' | b'P' | b'R' | b'S' | b'V')) {
        return Ok(());
    }
    let Some((key, value)) = cut(text, b':') else { return Ok(()) };
    let usage = &mut mapping.usage;
    let (counter, name) = match key {
        b"VmFlags" => {
            mapping.flags = VmFlags::parse(value);
            return Ok(());
        }
        b"ProtectionKey" => {
            usage.protection_key =
                words(value).next().and_then(dec).ok_or_else(|| place.malformed("ProtectionKey"))?;
            return Ok(());
        }
        b"Rss" => (&mut usage.rss_kib, "Rss"),
        b"Anonymous" => (&mut usage.anonymous_kib, "Anonymous"),
        b"Swap" => (&mut usage.swap_kib, "Swap"),
        b"Locked" => (&mut usage.locked_kib, "Locked"),
        b"KernelPageSize" => (&mut usage.page_kib, "KernelPageSize"),
        _ => return Ok(()),
    };
    *counter = words(value).next().and_then(dec).ok_or_else(|| place.malformed(name))?;
    Ok(())
}
