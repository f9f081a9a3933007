//! Writing an image: records, groups and page chunks into page-aligned blocks.

use zerocopy::IntoBytes;

use crate::block::{BLOCK_SIZE, Block};
use crate::error::{PagesError, WriteError};
use crate::frame::{self, Digest, HEAD};
use crate::pack::{PagesWritten, ZeroPages, pack};
use crate::record::{
    ErrorMark, MAX_RUNS, Objref, PAD_TYPE, PAGE_SIZE, Record, Run, Sum, TAIL_MAGIC, Tail, Text,
};

/// Fewest data pages worth beginning a chunk with at a block's end.
const MIN_CHUNK_PAGES: usize = 16;

/// As long as a group gets, if no single record is longer: whoever reads it has it in a processor's cache.
const LONG_GROUP: usize = 64 << 10;

/// Longest text of an ERROR record.
const MAX_ERROR_TEXT: usize = 64 << 10;

/// Where blocks go: a file, a pipe, a socket, a vector.
pub trait BlockSink {
    /// Takes the next block of the image and gives an empty one back, the same or another.
    ///
    /// Every block but the last is full. Only after the last one may the answer be `None`.
    fn submit(&mut self, block: Block, last: bool) -> std::io::Result<Option<Block>>;
}

/// Reads the pages of some runs into a buffer of just their size.
pub type Fill<'a, E> = dyn FnMut(&[Run], &mut [u8]) -> Result<(), E> + 'a;

/// Frames records and pages into blocks for a [`BlockSink`].
///
/// After an error from the sink the writer answers [`WriteError::Closed`] to everything.
#[derive(Debug)]
pub struct Writer<S: BlockSink> {
    sink: S,
    block: Block,
    position: u64,
    group: Digest,
    group_len: usize,
    digest: Digest,
    nr_pages: u64,
}

impl<S: BlockSink> Writer<S> {
    /// Begins an image. `first` is the first block to fill.
    pub fn new(sink: S, mut first: Block) -> Self {
        first.clear();
        Self {
            sink,
            block: first,
            position: 0,
            group: Digest::new(),
            group_len: 0,
            digest: Digest::new(),
            nr_pages: 0,
        }
    }

    /// Bytes of the image so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes one metadata record with its fields, as many as [`Record::FIELDS`].
    ///
    /// Ends the group before it would become long.
    pub fn record<R: Record>(&mut self, body: &R, fields: &[&[u8]]) -> Result<(), WriteError> {
        let len = frame::record_len::<R>(fields)?;
        if self.group_len + len as usize > LONG_GROUP {
            self.end_group()?;
        }
        self.grouped(&frame::head(R::TYPE, len))?;
        if R::FIELDS == 0 {
            return self.padded(body.as_bytes());
        }
        self.grouped(&(size_of::<R>() as u32).to_le_bytes())?;
        self.grouped(&(R::FIELDS as u32).to_le_bytes())?;
        self.padded(body.as_bytes())?;
        for field in fields {
            self.grouped(&(field.len() as u64).to_le_bytes())?;
            self.padded(field)?;
        }
        Ok(())
    }

    /// Ends the group of records with its SUM. Nothing happens when it is empty.
    pub fn end_group(&mut self) -> Result<(), WriteError> {
        if self.group_len == 0 {
            return Ok(());
        }
        let sum = self.group.value();
        self.group = Digest::new();
        self.group_len = 0;
        self.digest.sum(sum);
        self.put(&frame::head(Sum::TYPE, (HEAD + size_of::<Sum>()) as u32))?;
        self.put(Sum { sum }.as_bytes())
    }

    /// Writes the contents of `runs` of object `objref` (addresses in an MM, file offsets in an
    /// INODE) in as many chunks as that takes. Ends the group first.
    ///
    /// `fill` gets the runs of one chunk and a page-aligned buffer of just their size, which may
    /// hold anything, and reads the pages into it in that order: straight into the block.
    /// `runs` ascend, do not overlap, are page-aligned and have no flags.
    pub fn pages<E>(
        &mut self,
        objref: Objref,
        runs: &[Run],
        skip_zero: ZeroPages,
        fill: &mut Fill<'_, E>,
    ) -> Result<PagesWritten, PagesError<E>> {
        check_runs(objref, runs)?;
        self.end_group()?;
        let mut written = PagesWritten::default();
        let mut left = runs.iter().map(|run| u64::from(run.nr_pages)).sum::<u64>();
        let mut cutter = Cutter { runs: runs.iter(), rest: None };
        while left > 0 {
            let (pad, room) = self.room(left)?;
            let (batch, nr_pages) = cutter.take(room);
            left -= nr_pages as u64;
            let end = pad + PAGE_SIZE + nr_pages * PAGE_SIZE;
            let area = self.block.spare_mut().get_mut(pad..end).unwrap_or_default();
            fill(&batch, area.get_mut(PAGE_SIZE..).unwrap_or_default()).map_err(PagesError::Fill)?;
            let packed = pack(area, objref, &batch, skip_zero);
            written.stored_pages += packed.pages.stored_pages;
            written.zero_pages += packed.pages.zero_pages;
            self.nr_pages += packed.pages.stored_pages;
            if packed.used > 0 {
                self.pad(pad)?;
                self.block.advance(packed.used);
                self.position += packed.used as u64;
                packed.sums.iter().for_each(|sum| self.digest.sum(*sum));
            }
        }
        Ok(written)
    }

    /// Ends the image with its TAIL and gives back the sink and the image's bytes.
    pub fn tail(mut self) -> Result<(S, u64), WriteError> {
        self.end_group()?;
        let len = HEAD + size_of::<Tail>();
        let tail = Tail {
            magic: TAIL_MAGIC,
            digest: self.digest.value(),
            len: self.position + len as u64,
            nr_pages: self.nr_pages,
        };
        self.put(&frame::head(Tail::TYPE, len as u32))?;
        self.put(tail.as_bytes())?;
        self.flush(true)?;
        Ok((self.sink, self.position))
    }

    /// Ends a failed image with an ERROR record and its text, and gives back the sink.
    ///
    /// Zero bytes in `text` become spaces: readers find it by scanning backwards for a zero.
    pub fn error(mut self, text: &[u8]) -> Result<S, WriteError> {
        self.end_group()?;
        let text = text.iter().take(MAX_ERROR_TEXT).map(|byte| if *byte == 0 { b' ' } else { *byte });
        let text = std::iter::once(0).chain(text).collect::<Vec<_>>();
        self.record(&ErrorMark {}, &[])?;
        self.record(&Text {}, &[&text])?;
        self.flush(true)?;
        Ok(self.sink)
    }

    /// Where the next chunk's data goes: bytes of padding before its header page and how many
    /// data pages (at least one) fit behind that. Moves on to the next block when too few would.
    fn room(&mut self, wanted: u64) -> Result<(usize, usize), WriteError> {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(MIN_CHUNK_PAGES);
        let whole = (self.block.capacity() / PAGE_SIZE).saturating_sub(1);
        if self.room_here().1 < wanted.min(whole).max(1) {
            self.pad(self.block.capacity() - self.block.len())?;
            self.flush(false)?;
        }
        Ok(self.room_here())
    }

    fn room_here(&self) -> (usize, usize) {
        let at = self.block.len();
        let pad = at.next_multiple_of(PAGE_SIZE) - at;
        let pages = (self.block.capacity() - at - pad) / PAGE_SIZE;
        (pad, pages.min(BLOCK_SIZE / PAGE_SIZE).saturating_sub(1))
    }

    /// A PAD record of `len` bytes (0, or 8 and more).
    fn pad(&mut self, len: usize) -> Result<(), WriteError> {
        if len < HEAD {
            return Ok(());
        }
        self.put(&frame::head(PAD_TYPE, len as u32))?;
        self.zeros(len - HEAD)
    }

    fn zeros(&mut self, mut len: usize) -> Result<(), WriteError> {
        while let Some(zeros) = [0; 512].get(..len.min(512)).filter(|zeros| !zeros.is_empty()) {
            self.put(zeros)?;
            len -= zeros.len();
        }
        Ok(())
    }

    /// Puts bytes that belong to the group, and the zeros that pad them.
    fn padded(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.grouped(bytes)?;
        let padding = bytes.len().next_multiple_of(8) - bytes.len();
        self.grouped([0; 8].get(..padding).unwrap_or_default())
    }

    fn grouped(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.group.bytes(bytes);
        self.group_len += bytes.len();
        self.put(bytes)
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            if self.block.len() == self.block.capacity() {
                self.flush(false)?;
            }
            let n = self.block.append(bytes);
            self.position += n as u64;
            bytes = bytes.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Submits the block and takes an empty one. Blocks go out only when there is more to write,
    /// so the last one is never empty.
    fn flush(&mut self, last: bool) -> Result<(), WriteError> {
        let block = std::mem::replace(&mut self.block, Block::absent());
        if block.capacity() == 0 {
            return Err(WriteError::Closed { offset: self.position });
        }
        let offset = self.position - block.len() as u64;
        match self.sink.submit(block, last) {
            Ok(Some(mut block)) => {
                block.clear();
                self.block = block;
                Ok(())
            }
            Ok(None) if last => Ok(()),
            Ok(None) => Err(WriteError::Closed { offset: self.position }),
            Err(source) => Err(WriteError::Sink { offset, source }),
        }
    }
}

fn check_runs(objref: Objref, runs: &[Run]) -> Result<(), WriteError> {
    let mut free = 0;
    for run in runs {
        let wrong = |what| WriteError::Run { objref, start: run.start, what };
        if run.flags != 0 {
            return Err(wrong("has flags"));
        }
        free = next_free(run, free).map_err(wrong)?;
    }
    Ok(())
}

/// Where the run ends, when it begins at `free` or later.
pub(crate) fn next_free(run: &Run, free: u64) -> Result<u64, &'static str> {
    if run.nr_pages == 0 {
        return Err("a run is empty");
    }
    if !run.start.is_multiple_of(PAGE_SIZE as u64) {
        return Err("a run is not page-aligned");
    }
    if run.start < free {
        return Err("runs do not ascend or overlap");
    }
    run.start.checked_add(u64::from(run.nr_pages) * PAGE_SIZE as u64).ok_or("a run exceeds the address space")
}

/// Cuts runs to the room there is.
struct Cutter<'a> {
    runs: std::slice::Iter<'a, Run>,
    rest: Option<Run>,
}

impl Cutter<'_> {
    /// The next runs, of at most `room` pages in all.
    fn take(&mut self, room: usize) -> (Vec<Run>, usize) {
        let mut batch = Vec::new();
        let mut free = room;
        while free > 0 && batch.len() < MAX_RUNS {
            let Some(run) = self.rest.take().or_else(|| self.runs.next().copied()) else { break };
            let nr_pages = run.nr_pages.min(u32::try_from(free).unwrap_or(u32::MAX));
            batch.push(Run { nr_pages, ..run });
            free -= nr_pages as usize;
            if nr_pages < run.nr_pages {
                let start = run.start + u64::from(nr_pages) * PAGE_SIZE as u64;
                self.rest = Some(Run { start, nr_pages: run.nr_pages - nr_pages, ..run });
            }
        }
        (batch, room - free)
    }
}
