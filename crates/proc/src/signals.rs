//! Signal sets as the kernel prints them, in status, signalfd's fdinfo and elsewhere (proc_pid_status(5)).

use crate::text;

/// A set of signals; bit `n - 1` is signal `n`, as in the kernel's `sigset_t` on 64-bit machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SigSet(pub u64);

impl SigSet {
    /// Reads 16 hexadecimal digits, the form of `SigBlk:` and its relatives in proc_pid_status(5). Fewer digits
    /// are accepted; `None` for anything else.
    pub fn parse_hex(digits: &[u8]) -> Option<SigSet> {
        text::hex(digits).map(SigSet)
    }

    /// Whether `signo` (1 to 64) is in the set.
    pub fn contains(self, signo: u32) -> bool {
        signo.checked_sub(1).and_then(|bit| self.0.checked_shr(bit)).is_some_and(|bits| bits & 1 == 1)
    }

    /// Whether no signal is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The signals of the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (1..=64).filter(move |&signo| self.contains(signo))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_signals() {
        let set = SigSet::parse_hex(b"8000000000010101").unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [1, 9, 17, 64]);
        assert!(!set.contains(0) && !set.contains(65) && !set.contains(u32::MAX));
        assert_eq!(SigSet::parse_hex(b""), None);
        assert_eq!(SigSet::parse_hex(b"10000000000000000"), None);
    }
}
