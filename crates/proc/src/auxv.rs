//! `/proc/PID/auxv` (proc_pid_auxv(5)), of a 64-bit process on the machine that reads it.

use crate::ParseError;
use crate::text::Place;

/// Type of the entry that ends the vector (getauxval(3)).
pub const AT_NULL: u64 = 0;
/// Type of the entry with the address of the vDSO (getauxval(3)).
pub const AT_SYSINFO_EHDR: u64 = 33;

/// Parses `/proc/PID/auxv` (proc_pid_auxv(5)): pairs of type and value, without the [`AT_NULL`] at the end and
/// what may be behind it. Nothing from nothing; reading the file of a task without memory fails with `ESRCH`.
///
/// # Errors
/// A length that is not that of whole pairs; the line of the error is 0, as there are none.
pub fn parse_auxv(bytes: &[u8]) -> Result<Vec<(u64, u64)>, ParseError> {
    let (words, rest) = bytes.as_chunks::<8>();
    let (pairs, odd) = words.as_chunks::<2>();
    if !rest.is_empty() || !odd.is_empty() {
        return Err(Place { file: "auxv", line: 0 }.malformed("length"));
    }
    Ok(pairs
        .iter()
        .map(|[kind, value]| (u64::from_ne_bytes(*kind), u64::from_ne_bytes(*value)))
        .take_while(|(kind, _)| *kind != AT_NULL)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_up_to_null() {
        let bytes: Vec<u8> = [33u64, 0x7fff_0000, 0, 0, 7, 7].iter().flat_map(|n| n.to_ne_bytes()).collect();
        assert_eq!(parse_auxv(&bytes), Ok(vec![(AT_SYSINFO_EHDR, 0x7fff_0000)]));
        assert_eq!(parse_auxv(b""), Ok(vec![]));
        assert!(parse_auxv(&bytes[..24]).is_err());
        assert!(parse_auxv(&bytes[..31]).is_err());
    }
}
