//! How a record lies on the wire: `type`, `len`, then the fixed body and, in records that have
//! them, counted byte fields. Everything is a multiple of 8 bytes and every hole is zero.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

use crate::error::WriteError;
use crate::record::Record;

/// Longest metadata record, `type` and `len` included.
pub const MAX_RECORD: usize = 16 << 20;

/// Longest group of records between two SUM records, these not counted: what a reader holds before it can verify it.
pub const MAX_GROUP: usize = MAX_RECORD;

/// Bytes of `type` and `len`.
pub(crate) const HEAD: usize = 8;

/// Most fields a record has.
pub(crate) const MAX_FIELDS: usize = 5;

/// `type` and `len` as they are written.
pub(crate) fn head(number: u32, len: u32) -> [u8; HEAD] {
    (u64::from(number) | u64::from(len) << 32).to_le_bytes()
}

/// The xxh3-64 of `bytes`, seed 0.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The digest in TAIL: the xxh3-64 of all sums, 8 bytes little-endian each, in order.
#[derive(Clone)]
pub(crate) struct Digest(XxHash3_64);

impl Digest {
    pub(crate) fn new() -> Self {
        Self(XxHash3_64::new())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(crate) fn sum(&mut self, sum: u64) {
        self.0.write(&sum.to_le_bytes());
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.finish()
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Digest({:#018x})", self.value())
    }
}

/// Length of a record with these fields.
pub(crate) fn record_len<R: Record>(fields: &[&[u8]]) -> Result<u32, WriteError> {
    if fields.len() != R::FIELDS {
        return Err(WriteError::FieldCount { name: R::NAME, expected: R::FIELDS, given: fields.len() });
    }
    let fixed = (HEAD + size_of::<R>().next_multiple_of(8)) as u64;
    let counted = fields.iter().fold(0u64, |all, field| all + 8 + (field.len() as u64).next_multiple_of(8));
    let len = fixed + if R::FIELDS == 0 { 0 } else { 8 + counted };
    match u32::try_from(len) {
        Ok(short) if len <= MAX_RECORD as u64 => Ok(short),
        _ => Err(WriteError::TooLong { name: R::NAME, len }),
    }
}

/// A record taken apart. `fields` beyond the record's own are empty.
#[derive(Debug)]
pub(crate) struct Decoded<'a, R> {
    pub(crate) body: R,
    pub(crate) fields: [&'a [u8]; MAX_FIELDS],
}

/// Takes apart what follows `type` and `len`.
///
/// A shorter fixed part than ours is extended with zeros and missing fields are empty: an older
/// writer. A longer fixed part is accepted when what we do not know of it is zero, and further
/// fields when they are empty: a newer writer that did not use them.
pub(crate) fn decode<R: Record>(body: &[u8]) -> Result<Decoded<'_, R>, &'static str> {
    let mut fields = [[].as_slice(); MAX_FIELDS];
    if R::FIELDS == 0 {
        return Ok(Decoded { body: fixed(body)?, fields });
    }
    let mut rest = body;
    let fixed_len = u32_at_front(&mut rest)?;
    let nr_fields = u32_at_front(&mut rest)?;
    let record = fixed(padded(&mut rest, u64::from(fixed_len))?)?;
    for nr in 0..nr_fields {
        let len = u64_at_front(&mut rest)?;
        let bytes = padded(&mut rest, len)?;
        match fields.get_mut(nr as usize).filter(|_| (nr as usize) < R::FIELDS) {
            Some(field) => *field = bytes,
            None if bytes.is_empty() => {}
            None => return Err("has a field this program does not know"),
        }
    }
    if rest.is_empty() { Ok(Decoded { body: record, fields }) } else { Err("longer than its fields") }
}

fn fixed<R: Record>(bytes: &[u8]) -> Result<R, &'static str> {
    let mut record = R::new_zeroed();
    let known = bytes.len().min(size_of::<R>());
    if let (Some(to), Some(from)) = (record.as_mut_bytes().get_mut(..known), bytes.get(..known)) {
        to.copy_from_slice(from);
    }
    let unknown = bytes.get(known..).unwrap_or_default();
    if unknown.iter().any(|byte| *byte != 0) {
        return Err("has members this program does not know");
    }
    Ok(record)
}

const SHORT: &str = "shorter than its contents";

fn u32_at_front(rest: &mut &[u8]) -> Result<u32, &'static str> {
    let (front, after) = rest.split_first_chunk().ok_or(SHORT)?;
    *rest = after;
    Ok(u32::from_le_bytes(*front))
}

fn u64_at_front(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let (front, after) = rest.split_first_chunk().ok_or(SHORT)?;
    *rest = after;
    Ok(u64::from_le_bytes(*front))
}

/// Takes `len` bytes and the zeros that pad them to a multiple of 8.
fn padded<'a>(rest: &mut &'a [u8], len: u64) -> Result<&'a [u8], &'static str> {
    let len = usize::try_from(len).map_err(|_| SHORT)?;
    let all = len.checked_next_multiple_of(8).ok_or(SHORT)?;
    let (front, after) = rest.split_at_checked(all).ok_or(SHORT)?;
    let (bytes, padding) = front.split_at_checked(len).ok_or(SHORT)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err("padding is not zero");
    }
    *rest = after;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Cred, Fs, Mm, TYPES, Tree};
    use zerocopy::IntoBytes;

    fn words(words: &[u32]) -> Vec<u8> {
        words.as_bytes().to_vec()
    }

    #[test]
    fn plain_bodies_evolve() {
        let tree = |bytes: &[u8]| decode::<Tree>(bytes).map(|decoded| decoded.body);
        let known = Tree { nr_tasks: 1, nr_threads: 2, root: 3, pad: 0 };
        assert_eq!(tree(known.as_bytes()), Ok(known));
        assert_eq!(tree(&words(&[1, 2])), Ok(Tree { root: 0, ..known }), "an older writer");
        assert_eq!(tree(&[]), Ok(Tree::default()));
        assert_eq!(tree(&words(&[1, 2, 3, 0, 0, 0])), Ok(known), "a newer one, members unused");
        assert_eq!(tree(&words(&[1, 2, 3, 0, 0, 1])), Err("has members this program does not know"));
    }

    #[test]
    fn fields_evolve() {
        let fs = |bytes: &[u8]| {
            decode::<Fs>(bytes)
                .map(|decoded| (decoded.body.umask, decoded.fields[0].to_vec(), decoded.fields[1].len()))
        };
        let a = u32::from_le_bytes(*b"a\0\0\0");
        assert_eq!(fs(&words(&[8, 2, 18, 0, 1, 0, a, 0, 0, 0])), Ok((18, b"a".to_vec(), 0)));
        assert_eq!(fs(&words(&[8, 1, 18, 0, 1, 0, a, 0])), Ok((18, b"a".to_vec(), 0)), "a field fewer");
        assert_eq!(fs(&words(&[4, 0, 18, 0])), Ok((18, vec![], 0)), "a member fewer, padded");
        assert_eq!(fs(&words(&[0, 0])), Ok((0, vec![], 0)));
        assert_eq!(fs(&words(&[8, 3, 18, 0, 1, 0, a, 0, 0, 0, 0, 0])), Ok((18, b"a".to_vec(), 0)));
        assert_eq!(fs(&words(&[16, 0, 18, 0, 0, 0])), Ok((18, vec![], 0)), "a zero member more");
    }

    #[test]
    fn malformed_bodies() {
        let fs = |bytes: &[u32]| decode::<Fs>(&words(bytes)).map(|_| ()).unwrap_err();
        assert_eq!(fs(&[8, 3, 18, 0, 0, 0, 0, 0, 1, 0, 7, 0]), "has a field this program does not know");
        assert_eq!(fs(&[16, 0, 18, 0, 1, 0]), "has members this program does not know");
        assert_eq!(fs(&[4, 0, 18, 1]), "padding is not zero");
        assert_eq!(fs(&[8, 1, 18, 0, 1, 0, 0x100, 0]), "padding is not zero");
        assert_eq!(fs(&[8, 0, 18, 0, 0, 0]), "longer than its fields");
        for short in [&[][..], &[8], &[8, 0], &[8, 1, 0, 0], &[8, 1, 0, 0, 1, 0], &[u32::MAX, 0]] {
            assert_eq!(fs(short), SHORT);
        }
        assert_eq!(fs(&[8, 1, 0, 0, u32::MAX, u32::MAX]), SHORT);
        assert_eq!(fs(&[0, u32::MAX, 0, 0]), SHORT);
    }

    #[test]
    fn lengths_are_whole_words() {
        assert_eq!(record_len::<Cred>(&[&[1; 9]]).unwrap() as usize, 8 + 8 + size_of::<Cred>() + 8 + 16);
        assert_eq!(record_len::<Tree>(&[]).unwrap(), 24);
        assert!(record_len::<Mm>(&[]).is_err());
        assert!(TYPES.iter().all(|known| known.fixed_len % 8 == 0 && known.fields.len() <= MAX_FIELDS));
        assert!(TYPES.is_sorted_by(|a, b| a.number < b.number));
    }
}
