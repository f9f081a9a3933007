//! Reading an image: verify, then decode, from any byte stream and without seeking.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;

use zerocopy::FromBytes;

use crate::block::BLOCK_SIZE;
use crate::chunk::Chunk;
use crate::decode::{Decoder, Raw};
use crate::error::ReadError;
use crate::frame::{self, Decoded, Digest, HEAD, MAX_GROUP, MAX_RECORD};
use crate::model::{Image, Object};
use crate::record::{
    self, ARCH_X86_64, ErrorMark, HEADER_MAGIC, Header, Objref, PAD_TYPE, PAGE_SIZE, Pgarr, REV, Record, Run,
    Sum, TAIL_MAGIC, Tail, Text,
};

/// Bytes read, and at most allocated, before it is known that more exist.
const STEP: usize = 64 << 10;

/// Offset in the image of what follows `magic`, `rev` and `arch`.
const IDENTITY: usize = 24;

/// A record's place in the stream, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordInfo {
    /// Where it begins.
    pub offset: u64,
    /// Its `type`.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// Its length, `type` and `len` included.
    pub len: u32,
}

/// What has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Metadata,
    Pages,
    /// An ERROR record was listed: its text ends the stream.
    Failed,
    Done,
}

/// Reads an image: [`metadata`](Self::metadata) once, then [`chunk`](Self::chunk) until `false`.
/// Or [`next_record`](Self::next_record) alone, for a listing that verifies nothing.
///
/// It reads no byte beyond the TAIL record, in pieces as small as 8 bytes: give it a
/// [`std::io::BufReader`] unless something else follows in the stream. After an error it is of no
/// further use.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    offset: u64,
    phase: Phase,
    verify: bool,
    digest: Digest,
    nr_pages: u64,
    /// A record of which only `type` and `len` have been read.
    peeked: Option<RecordInfo>,
    /// Where pages of an object may lie.
    extents: BTreeMap<Objref, Vec<Range<u64>>>,
}

impl<R: Read> Reader<R> {
    /// Reads nothing yet.
    pub fn new(source: R) -> Self {
        Self {
            source,
            offset: 0,
            phase: Phase::Start,
            verify: true,
            digest: Digest::new(),
            nr_pages: 0,
            peeked: None,
            extents: BTreeMap::new(),
        }
    }

    /// A reader that does not compare sums, so that a fuzzer gets past them.
    #[doc(hidden)]
    pub fn without_sums(source: R) -> Self {
        Self { verify: false, ..Self::new(source) }
    }

    /// Where the bytes come from.
    pub fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// Bytes of the image read so far.
    pub fn position(&self) -> u64 {
        self.offset
    }

    /// Reads everything up to the page chunks. Each group is verified before any of it is decoded,
    /// and the whole then held to the rules of [`Image::check`].
    pub fn metadata(&mut self) -> Result<Image, ReadError> {
        let mut decoder = Decoder::new();
        let mut group = self.start()?;
        loop {
            let base = self.offset - group.len() as u64;
            if self.group(&mut group)? {
                decode_group(&mut decoder, &group, base)?;
                group.clear();
                continue;
            }
            let (offset, name) = self.peeked.map_or((self.offset, "?"), |next| (next.offset, next.name));
            let image = decoder.finish(offset, name)?;
            self.extents = image
                .objects
                .iter()
                .filter_map(|(objref, object)| Some((*objref, extents(object)?)))
                .collect();
            self.phase = Phase::Pages;
            return Ok(image);
        }
    }

    /// Reads and verifies the next chunk of pages. `false`: there are no more, the TAIL is there
    /// and agrees with everything read.
    pub fn chunk(&mut self, chunk: &mut Chunk) -> Result<bool, ReadError> {
        if matches!(self.phase, Phase::Start) {
            self.metadata()?;
        }
        chunk.clear();
        loop {
            if self.phase == Phase::Done {
                return Ok(false);
            }
            let info = self.info()?;
            match info.number {
                PAD_TYPE => self.zeros(info)?,
                Pgarr::TYPE => return self.pages(info, chunk).map(|()| true),
                Tail::TYPE => self.tail(info)?,
                ErrorMark::TYPE => return Err(self.failed(info)),
                _ => {
                    let expected = "PGARR or TAIL";
                    return Err(ReadError::Unexpected { offset: info.offset, name: info.name, expected });
                }
            }
        }
    }

    /// The next record of the stream, for a listing; `None` after TAIL, or after ERROR and its
    /// text. Nothing but the image's identity and the framing is verified.
    pub fn next_record(&mut self) -> Result<Option<RecordInfo>, ReadError> {
        let (info, had) = match self.phase {
            Phase::Done => return Ok(None),
            Phase::Start => {
                let front = self.start()?;
                self.phase = Phase::Metadata;
                (info_of(0, &front)?, front.len())
            }
            _ => (self.info()?, HEAD),
        };
        let body = (info.len as usize).saturating_sub(had) as u64;
        self.skip(body)?;
        self.phase = match (info.number, self.phase) {
            (Tail::TYPE, _) | (Text::TYPE, Phase::Failed) => Phase::Done,
            (ErrorMark::TYPE, _) => Phase::Failed,
            (_, phase) => phase,
        };
        Ok(Some(info))
    }

    /// Reads the bytes that identify an image: the first 24.
    fn start(&mut self) -> Result<Vec<u8>, ReadError> {
        let mut front = vec![0; IDENTITY];
        match self.exactly(&mut front) {
            Err(ReadError::Truncated { offset }) if offset < 16 => return Err(ReadError::NotAnImage),
            other => other?,
        }
        let word =
            |at: usize| front.get(at..at + 4).and_then(|word| u32::read_from_bytes(word).ok()).unwrap_or(0);
        let magic = u64::from(word(8)) | u64::from(word(12)) << 32;
        if word(0) != Header::TYPE || magic != HEADER_MAGIC {
            return Err(ReadError::NotAnImage);
        }
        if word(16) != REV {
            return Err(ReadError::Revision { found: word(16) });
        }
        if word(20) != ARCH_X86_64 {
            return Err(ReadError::Arch { found: word(20) });
        }
        let info = info_of(0, &front)?;
        if (info.len as usize) < IDENTITY {
            return Err(length(&info));
        }
        self.phase = Phase::Metadata;
        Ok(front)
    }

    /// Reads records up to a SUM that agrees with them, into `group`, which may hold the beginning
    /// of the first. `false`: the metadata is over, and the group empty.
    fn group(&mut self, group: &mut Vec<u8>) -> Result<bool, ReadError> {
        if !group.is_empty() {
            let info = info_of(self.offset - group.len() as u64, group)?;
            self.body(&info, group)?;
        }
        loop {
            let info = self.info()?;
            match info.number {
                Sum::TYPE if !group.is_empty() => {
                    self.sum(&info, group)?;
                    return Ok(true);
                }
                ErrorMark::TYPE => return Err(self.failed(info)),
                PAD_TYPE | Pgarr::TYPE | Tail::TYPE if group.is_empty() => {
                    self.peeked = Some(info);
                    return Ok(false);
                }
                Sum::TYPE | PAD_TYPE | Pgarr::TYPE | Tail::TYPE => {
                    let expected = if group.is_empty() { "a record" } else { "SUM" };
                    return Err(ReadError::Unexpected { offset: info.offset, name: info.name, expected });
                }
                _ => {
                    group.extend_from_slice(&frame::head(info.number, info.len));
                    self.body(&info, group)?;
                }
            }
        }
    }

    /// Appends the rest of a record, of which the group holds the beginning.
    fn body(&mut self, info: &RecordInfo, group: &mut Vec<u8>) -> Result<(), ReadError> {
        let had = usize::try_from(self.offset - info.offset).unwrap_or(usize::MAX);
        let mut left = (info.len as usize).saturating_sub(had);
        if group.len() + left > MAX_GROUP {
            return Err(ReadError::Malformed {
                offset: info.offset,
                name: info.name,
                what: "its group is too long",
            });
        }
        while left > 0 {
            let at = group.len();
            let step = left.min(STEP);
            group.resize(at + step, 0);
            self.exactly(group.get_mut(at..).unwrap_or_default())?;
            left -= step;
        }
        Ok(())
    }

    fn sum(&mut self, info: &RecordInfo, group: &[u8]) -> Result<(), ReadError> {
        let Sum { sum } = self.small(info)?;
        if self.verify && sum != frame::sum(group) {
            return Err(ReadError::Sum { offset: info.offset, name: info.name });
        }
        self.digest.sum(sum);
        Ok(())
    }

    fn pages(&mut self, info: RecordInfo, chunk: &mut Chunk) -> Result<(), ReadError> {
        let malformed = |what| ReadError::Malformed { offset: info.offset, name: info.name, what };
        if !info.offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(malformed("not page-aligned"));
        }
        if (info.len as usize) < PAGE_SIZE || !(info.len as usize).is_multiple_of(PAGE_SIZE) {
            return Err(length(&info));
        }
        chunk.offset = info.offset;
        chunk.block.append(&frame::head(info.number, info.len));
        let rest = info.len as usize - HEAD;
        self.exactly(chunk.block.spare_mut().get_mut(..rest).unwrap_or_default())?;
        chunk.block.advance(rest);
        let body = chunk.take_apart(self.verify)?;
        let extents = self.extents.get(&body.objref).ok_or(malformed("belongs to no MM and no INODE"))?;
        if !chunk.runs.iter().all(|run| inside(run, extents)) {
            return Err(malformed("has pages outside its object"));
        }
        self.digest.sum(body.sum);
        self.nr_pages += u64::from(body.nr_pages);
        Ok(())
    }

    fn tail(&mut self, info: RecordInfo) -> Result<(), ReadError> {
        let tail: Tail = self.small(&info)?;
        let malformed = |what| ReadError::Malformed { offset: info.offset, name: info.name, what };
        if tail.magic != TAIL_MAGIC {
            return Err(malformed("wrong magic"));
        }
        if self.verify && tail.digest != self.digest.value() {
            return Err(ReadError::Sum { offset: info.offset, name: info.name });
        }
        if self.verify && (tail.len != self.offset || tail.nr_pages != self.nr_pages) {
            return Err(malformed("counts other bytes or pages than the image has"));
        }
        self.phase = Phase::Done;
        Ok(())
    }

    /// Reads the text of an ERROR record into the error it is.
    fn failed(&mut self, info: RecordInfo) -> ReadError {
        match self.error_text(&info) {
            Ok(text) => ReadError::Checkpoint { offset: info.offset, text },
            Err(error) => error,
        }
    }

    fn error_text(&mut self, mark: &RecordInfo) -> Result<String, ReadError> {
        self.skip((mark.len as usize).saturating_sub(HEAD) as u64)?;
        let info = self.info()?;
        if info.number != Text::TYPE {
            return Err(ReadError::Unexpected { offset: info.offset, name: info.name, expected: Text::NAME });
        }
        let mut body = Vec::new();
        self.body(&info, &mut body)?;
        let text: Decoded<'_, Text> = frame::decode(&body).map_err(|what| ReadError::Malformed {
            offset: info.offset,
            name: info.name,
            what,
        })?;
        let [text, ..] = text.fields;
        let text = String::from_utf8_lossy(text.strip_prefix(&[0]).unwrap_or(text));
        Ok(text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect())
    }

    /// Decodes a record that stands alone: SUM or TAIL.
    fn small<T: Record>(&mut self, info: &RecordInfo) -> Result<T, ReadError> {
        if info.len as usize > PAGE_SIZE {
            return Err(length(info));
        }
        let mut body = Vec::new();
        self.body(info, &mut body)?;
        frame::decode(&body).map(|decoded| decoded.body).map_err(|what| ReadError::Malformed {
            offset: info.offset,
            name: info.name,
            what,
        })
    }

    /// Reads the rest of a PAD record and demands zeros.
    fn zeros(&mut self, info: RecordInfo) -> Result<(), ReadError> {
        let mut left = info.len as usize - HEAD;
        let mut buffer = [0; PAGE_SIZE];
        while left > 0 {
            let piece = buffer.get_mut(..left.min(PAGE_SIZE)).unwrap_or_default();
            self.exactly(piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                let what = "padding is not zero";
                return Err(ReadError::Malformed { offset: info.offset, name: info.name, what });
            }
            left -= piece.len();
        }
        Ok(())
    }

    fn skip(&mut self, mut left: u64) -> Result<(), ReadError> {
        let mut buffer = [0; PAGE_SIZE];
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE_SIZE);
            self.exactly(buffer.get_mut(..step).unwrap_or_default())?;
            left -= step as u64;
        }
        Ok(())
    }

    /// The next record's `type` and `len`, verified as far as they can be.
    fn info(&mut self) -> Result<RecordInfo, ReadError> {
        if let Some(info) = self.peeked.take() {
            return Ok(info);
        }
        let offset = self.offset;
        let mut head = [0; HEAD];
        self.exactly(&mut head)?;
        info_of(offset, &head)
    }

    /// Fills `buffer`, and counts.
    fn exactly(&mut self, mut buffer: &mut [u8]) -> Result<(), ReadError> {
        while !buffer.is_empty() {
            match self.source.read(buffer) {
                Ok(0) => return Err(ReadError::Truncated { offset: self.offset }),
                Ok(n) => {
                    self.offset += n as u64;
                    buffer = buffer.get_mut(n..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError::Io { offset: self.offset, source }),
            }
        }
        Ok(())
    }
}

fn length(info: &RecordInfo) -> ReadError {
    ReadError::Length { offset: info.offset, name: info.name, len: u64::from(info.len) }
}

/// Takes apart a record's `type` and `len`.
fn info_of(offset: u64, head: &[u8]) -> Result<RecordInfo, ReadError> {
    let head = head.get(..HEAD).and_then(|head| u64::read_from_bytes(head).ok()).unwrap_or(0);
    let (number, len) = (head as u32, (head >> 32) as u32);
    let name = record::name_of(number).ok_or(ReadError::UnknownType { offset, number })?;
    let info = RecordInfo { offset, number, name, len };
    let max = if matches!(number, PAD_TYPE | Pgarr::TYPE) { BLOCK_SIZE } else { MAX_RECORD };
    if (len as usize) < HEAD || len % 8 != 0 || len as usize > max {
        return Err(length(&info));
    }
    Ok(info)
}

/// Decodes the records of a verified group that begins at `base`.
fn decode_group(decoder: &mut Decoder, group: &[u8], base: u64) -> Result<(), ReadError> {
    let mut rest = group;
    while !rest.is_empty() {
        let offset = base + (group.len() - rest.len()) as u64;
        let info = info_of(offset, rest)?;
        let (record, after) = rest.split_at_checked(info.len as usize).ok_or(length(&info))?;
        let body = record.get(HEAD..).unwrap_or_default();
        decoder.record(Raw { offset, number: info.number, body })?;
        rest = after;
    }
    Ok(())
}

/// Where an object's pages may lie: the areas of an address space, merged, or a file's length.
fn extents(object: &Object) -> Option<Vec<Range<u64>>> {
    match object {
        Object::Inode(inode) => {
            let end = inode.record.size.checked_next_multiple_of(PAGE_SIZE as u64)?;
            Some(Vec::from([Range { start: 0, end }]))
        }
        Object::Mm(mm) => {
            let mut merged: Vec<Range<u64>> = Vec::new();
            for vma in &mm.vmas {
                match merged.last_mut() {
                    Some(last) if last.end == vma.record.start => last.end = vma.record.end,
                    _ => merged.push(vma.record.start..vma.record.end),
                }
            }
            Some(merged)
        }
        _ => None,
    }
}

fn inside(run: &Run, extents: &[Range<u64>]) -> bool {
    let end = run.start.saturating_add(u64::from(run.nr_pages) * PAGE_SIZE as u64);
    let after = extents.partition_point(|extent| extent.start <= run.start);
    after.checked_sub(1).and_then(|at| extents.get(at)).is_some_and(|extent| end <= extent.end)
}

/// Finds the text of a failed checkpoint in the last bytes of an image: the STRING record that
/// ends it begins with a zero byte, so it is found by scanning backwards. 128 KiB are enough.
pub fn find_error_text(tail: &[u8]) -> Option<&[u8]> {
    let end = tail.iter().rposition(|byte| *byte != 0)? + 1;
    let nul = tail.get(..end)?.iter().rposition(|byte| *byte == 0)?;
    let text = tail.get(nul + 1..end)?;
    // Before the text: ERROR's head; STRING's head, fixed_len and nr_fields, and the field's length.
    let mark = frame::head(ErrorMark::TYPE, HEAD as u32);
    let front = tail.get(nul.checked_sub(HEAD + 24)?..nul)?;
    let field = (text.len() as u64 + 1).to_le_bytes();
    (front.starts_with(&mark) && front.ends_with(&field)).then_some(text)
}
