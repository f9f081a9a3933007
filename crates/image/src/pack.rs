//! Page chunks in the making: zero pages are found and squeezed out where the data lies.

use zerocopy::IntoBytes;

use crate::frame;
use crate::record::{MAX_RUNS, Objref, PAGE_SIZE, Pgarr, Record, Run, codec, run_flags};

/// What becomes of pages whose bytes are all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPages {
    /// Left out: memory that is zero when nobody restores it (private anonymous).
    Drop,
    /// Named in a run with [`run_flags::ZERO`]: memory that was something else before (a private
    /// page of a file).
    Describe,
    /// Stored like any other.
    Keep,
}

/// Pages that went into the image, and that did not have to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagesWritten {
    /// Pages whose contents are stored.
    pub stored_pages: u64,
    /// Pages found zero, dropped or described.
    pub zero_pages: u64,
}

/// What became of one filled area.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    /// Bytes at the front of the area that are finished chunks.
    pub(crate) used: usize,
    /// Their sums, in order.
    pub(crate) sums: Vec<u64>,
    pub(crate) pages: PagesWritten,
}

/// Turns an area (a page for the header, then the data of `batch`, at most [`MAX_RUNS`] runs)
/// into chunks, in place.
///
/// It is one chunk, except when zero pages split the runs into more than a header page has room
/// for: then another chunk begins. Its header has a place because a split means that a page was
/// squeezed out since the last header.
pub(crate) fn pack(area: &mut [u8], objref: Objref, batch: &[Run], zero: ZeroPages) -> Packed {
    let mut packer = Packer {
        area,
        objref,
        header: 0,
        write: PAGE_SIZE,
        read: PAGE_SIZE,
        runs: Vec::with_capacity(MAX_RUNS),
        out: Packed::default(),
    };
    for run in batch {
        packer.run(run, zero);
    }
    packer.close();
    packer.out.used = packer.header;
    packer.out
}

struct Packer<'a> {
    area: &'a mut [u8],
    objref: Objref,
    /// Where the open chunk's header page is.
    header: usize,
    /// Where its data ends.
    write: usize,
    /// Where the data not looked at begins.
    read: usize,
    runs: Vec<Run>,
    out: Packed,
}

impl Packer<'_> {
    fn run(&mut self, run: &Run, zero: ZeroPages) {
        let mut done = 0;
        while done < run.nr_pages {
            let left = run.nr_pages - done;
            let (is_zero, nr_pages) =
                if zero == ZeroPages::Keep { (false, left) } else { self.stretch(left) };
            let part = Run { start: run.start + u64::from(done) * PAGE_SIZE as u64, nr_pages, flags: 0 };
            match (is_zero, zero) {
                (false, _) => self.data(part),
                (true, ZeroPages::Describe) => self.zero(Run { flags: run_flags::ZERO, ..part }),
                (true, _) => self.out.pages.zero_pages += u64::from(nr_pages),
            }
            self.read += nr_pages as usize * PAGE_SIZE;
            done += nr_pages;
        }
    }

    /// Whether the next page is zero, and how many of the next `limit` pages are like it.
    fn stretch(&self, limit: u32) -> (bool, u32) {
        let ahead = self.area.get(self.read..).unwrap_or_default();
        let mut pages = ahead.chunks_exact(PAGE_SIZE).take(limit as usize).map(is_zero);
        let first = pages.next().unwrap_or(false);
        let alike = pages.take_while(|is_zero| *is_zero == first).count();
        (first, 1 + alike as u32)
    }

    fn data(&mut self, part: Run) {
        self.push(part);
        let len = part.nr_pages as usize * PAGE_SIZE;
        if self.read != self.write && self.read + len <= self.area.len() {
            self.area.copy_within(self.read..self.read + len, self.write);
        }
        self.write += len;
        self.out.pages.stored_pages += u64::from(part.nr_pages);
    }

    fn zero(&mut self, part: Run) {
        self.push(part);
        self.out.pages.zero_pages += u64::from(part.nr_pages);
    }

    fn push(&mut self, part: Run) {
        if let Some(last) = self.runs.last_mut() {
            let end = last.start + u64::from(last.nr_pages) * PAGE_SIZE as u64;
            if end == part.start && last.flags == part.flags {
                last.nr_pages += part.nr_pages;
                return;
            }
        }
        if self.runs.len() == MAX_RUNS {
            self.close();
        }
        self.runs.push(part);
    }

    /// Writes the header page and opens the next chunk behind the data.
    fn close(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        let chunk = self.area.get_mut(self.header..self.write).unwrap_or_default();
        let data_len = chunk.len().saturating_sub(PAGE_SIZE);
        let body = Pgarr {
            objref: self.objref,
            codec: codec::NONE,
            nr_runs: self.runs.len() as u32,
            nr_pages: (data_len / PAGE_SIZE) as u32,
            data_len: data_len as u64,
            sum: 0,
        };
        let head = frame::head(Pgarr::TYPE, chunk.len() as u32);
        put_header(chunk, &[&head, body.as_bytes(), self.runs.as_bytes()]);
        let sum = frame::sum(chunk);
        put_header(chunk, &[&head, Pgarr { sum, ..body }.as_bytes(), self.runs.as_bytes()]);
        self.out.sums.push(sum);
        self.runs.clear();
        self.header = self.write;
        self.write += PAGE_SIZE;
    }
}

/// Fills a chunk's first page with `parts` and zeros.
fn put_header(chunk: &mut [u8], parts: &[&[u8]]) {
    let page = chunk.get_mut(..PAGE_SIZE).unwrap_or_default();
    let bytes = parts.iter().flat_map(|part| part.iter()).chain(std::iter::repeat(&0));
    page.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
}

/// Whether every byte is zero. Most pages that are not give themselves away in their first words.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    let any = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte) != 0;
    let (first, rest) = page.split_at(page.len().min(64));
    !any(first) && !rest.chunks(256).any(any)
}
