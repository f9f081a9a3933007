//! Lines, fields, numbers and escapes: what all the parsers share.

use crate::{ParseError, Problem};

/// The lines of `text`, numbered from 1, without their newline. An empty tail after the last newline is no line.
pub(crate) fn lines(text: &[u8]) -> Lines<'_> {
    Lines { rest: text, number: 0 }
}

pub(crate) struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        self.number += 1;
        let (line, rest) = cut(self.rest, b'\n').unwrap_or((self.rest, &[]));
        self.rest = rest;
        Some((self.number, line))
    }
}

/// Splits at the first `at`, which is in neither part.
pub(crate) fn cut(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let (head, tail) = text.split_at_checked(memchr::memchr(at, text)?)?;
    Some((head, tail.get(1..)?))
}

/// Splits at the first `at`, which is in neither part.
pub(crate) fn cut_at<'a>(text: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (head, tail) = text.split_at_checked(memchr::memmem::find(text, at)?)?;
    Some((head, tail.get(at.len()..)?))
}

/// `text` without blanks and tabs at its start.
pub(crate) fn skip_blanks(text: &[u8]) -> &[u8] {
    let n = text.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    text.get(n..).unwrap_or_default()
}

/// The words of `text` between runs of blanks and tabs.
pub(crate) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty())
}

/// All of `text` as an unsigned number.
fn unsigned(text: &[u8], radix: u8) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, &b| {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            b'A'..=b'F' => b - b'A' + 10,
            _ => return None,
        };
        if digit >= radix {
            return None;
        }
        n.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    })
}

/// All of `text` as a decimal number that fits `T`.
pub(crate) fn dec<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    T::try_from(unsigned(text, 10)?).ok()
}

/// All of `text` as a hexadecimal number, no `0x`, that fits `T`.
pub(crate) fn hex<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    T::try_from(unsigned(text, 16)?).ok()
}

/// All of `text` as `0x` and a hexadecimal number.
pub(crate) fn hex0x(text: &[u8]) -> Option<u64> {
    unsigned(text.strip_prefix(b"0x")?, 16)
}

/// All of `text` as an octal number that fits `T`.
pub(crate) fn oct<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    T::try_from(unsigned(text, 8)?).ok()
}

/// All of `text` as a decimal number with an optional `-` that fits `T`.
pub(crate) fn signed<T: TryFrom<i64>>(text: &[u8]) -> Option<T> {
    let n = match text.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(unsigned(digits, 10)?)?,
        None => i64::try_from(unsigned(text, 10)?).ok()?,
    };
    T::try_from(n).ok()
}

/// Undoes `mangle_path()`: each backslash and three octal digits is one byte.
///
/// Only for files whose set of escaped bytes includes the backslash itself (mountinfo); elsewhere see
/// [`unescape_newlines`].
pub(crate) fn unescape_octal(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                Some(((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'), after))
            }
            _ => None,
        };
        let (byte, tail) = escaped.unwrap_or((byte, tail));
        out.push(byte);
        rest = tail;
    }
    out
}

/// Undoes the escaping of maps, where a newline, and nothing else, is escaped, as `\012`.
pub(crate) fn unescape_newlines(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((head, tail)) = cut_at(rest, b"\\012") {
        out.extend_from_slice(head);
        out.push(b'\n');
        rest = tail;
    }
    out.extend_from_slice(rest);
    out
}

/// `path` without the ` (deleted)` that `d_path()` puts behind the name of an unlinked file, and whether it was
/// there.
pub(crate) fn strip_deleted(path: &[u8]) -> (&[u8], bool) {
    match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    }
}

/// Where a parser is, to say so in its errors.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) file: &'static str,
    pub(crate) line: usize,
}

impl Place {
    pub(crate) fn missing(self, field: &'static str) -> ParseError {
        ParseError { file: self.file, line: self.line, what: Problem::Missing(field) }
    }

    pub(crate) fn malformed(self, field: &'static str) -> ParseError {
        ParseError { file: self.file, line: self.line, what: Problem::Malformed(field) }
    }
}

/// A line of fields, taken from the left.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    pub(crate) place: Place,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(text: &'a [u8], place: Place) -> Self {
        Fields { rest: text, place }
    }

    /// What is behind the fields taken so far, blanks skipped.
    pub(crate) fn rest(&self) -> &'a [u8] {
        skip_blanks(self.rest)
    }

    /// The next word; runs of blanks separate.
    pub(crate) fn word(&mut self, field: &'static str) -> Result<&'a [u8], ParseError> {
        let text = skip_blanks(self.rest);
        let end = memchr::memchr2(b' ', b'\t', text).unwrap_or(text.len());
        let (word, rest) = text.split_at_checked(end).unwrap_or((text, &[]));
        if word.is_empty() {
            return Err(self.place.missing(field));
        }
        self.rest = rest;
        Ok(word)
    }

    /// The next field, a single blank separates, so that a field may be empty.
    pub(crate) fn column(&mut self, field: &'static str) -> Result<&'a [u8], ParseError> {
        if self.rest.is_empty() {
            return Err(self.place.missing(field));
        }
        let (column, rest) = cut(self.rest, b' ').unwrap_or((self.rest, &[]));
        self.rest = rest;
        Ok(column)
    }

    /// The next word put through `parse`.
    pub(crate) fn parse<T>(
        &mut self,
        field: &'static str,
        parse: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Result<T, ParseError> {
        let word = self.word(field)?;
        parse(word).ok_or_else(|| self.place.malformed(field))
    }

    pub(crate) fn dec<T: TryFrom<u64>>(&mut self, field: &'static str) -> Result<T, ParseError> {
        self.parse(field, dec)
    }

    pub(crate) fn signed<T: TryFrom<i64>>(&mut self, field: &'static str) -> Result<T, ParseError> {
        self.parse(field, signed)
    }

    /// Takes `n` words without looking at them.
    pub(crate) fn skip(&mut self, n: usize, field: &'static str) -> Result<(), ParseError> {
        (0..n).try_for_each(|_| self.word(field).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert_eq!(dec::<u64>(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(dec::<u64>(b"18446744073709551616"), None);
        assert_eq!(dec::<u8>(b"256"), None);
        assert_eq!(dec::<u8>(b""), None);
        assert_eq!(signed::<i32>(b"-1"), Some(-1));
        assert_eq!(signed::<i64>(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed::<i64>(b"-9223372036854775809"), None);
        assert_eq!(signed::<i32>(b"-"), None);
        assert_eq!(oct::<u32>(b"0100000"), Some(0o100000));
        assert_eq!(oct::<u32>(b"8"), None);
        assert_eq!(hex0x(b"0x10"), Some(16));
        assert_eq!(hex0x(b"10"), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape_octal(br"a\040b\134c\012"), b"a b\\c\n");
        assert_eq!(unescape_octal(br"a\9\40 \777\"), br"a\9\40 \777\");
        assert_eq!(unescape_newlines(br"\012a\040\012"), b"\na\\040\n");
    }

    #[test]
    fn lines_are_numbered_and_keep_empty_ones() {
        let got: Vec<_> = lines(b"a\n\nb").collect();
        assert_eq!(got, [(1, &b"a"[..]), (2, b""), (3, b"b")]);
        assert_eq!(lines(b"a\n").count(), 1);
    }
}
