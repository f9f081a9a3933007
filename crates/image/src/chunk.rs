//! Page chunks as they are read: one header page, then page contents.

use zerocopy::FromBytes;

use crate::block::{BLOCK_SIZE, Block};
use crate::error::ReadError;
use crate::frame::{self, HEAD};
use crate::record::{MAX_RUNS, Objref, PAGE_SIZE, Pgarr, Record, Run, codec, run_flags};
use crate::writer::next_free;

/// A verified chunk of page contents. Make one and give it to [`Reader::chunk`] again and again:
/// its buffer is page-aligned and reused.
///
/// [`Reader::chunk`]: crate::Reader::chunk
#[derive(Debug)]
pub struct Chunk {
    /// Whose pages.
    pub objref: Objref,
    /// Which pages, ascending. Those with [`run_flags::ZERO`] have no bytes in `data`.
    pub runs: Vec<Run>,
    pub(crate) offset: u64,
    pub(crate) block: Block,
}

impl Default for Chunk {
    fn default() -> Self {
        Self::new()
    }
}

impl Chunk {
    /// An empty chunk with room for the longest.
    pub fn new() -> Self {
        Self { objref: 0, runs: Vec::new(), offset: 0, block: Block::new(BLOCK_SIZE) }
    }

    /// Contents of the runs that are not zero, one after the other.
    pub fn data(&self) -> &[u8] {
        self.block.as_slice().get(PAGE_SIZE..).unwrap_or_default()
    }

    /// Where the PGARR record is in the image.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where [`data`](Self::data) is in the image, a multiple of the page size: for preadv(2).
    pub fn data_offset(&self) -> u64 {
        self.offset + PAGE_SIZE as u64
    }

    pub(crate) fn clear(&mut self) {
        self.objref = 0;
        self.runs.clear();
        self.block.clear();
    }

    /// Verifies the record in `block` and takes its header apart. Returns its sum.
    pub(crate) fn take_apart(&mut self, verify: bool) -> Result<Pgarr, ReadError> {
        let offset = self.offset;
        let malformed = |what| ReadError::Malformed { offset, name: Pgarr::NAME, what };
        let body = self.header().ok_or(malformed("shorter than its contents"))?;
        let at = HEAD + std::mem::offset_of!(Pgarr, sum);
        if let Some(sum) = self.block.as_mut_slice().get_mut(at..at + 8) {
            sum.fill(0);
        }
        if verify && frame::sum(self.block.as_slice()) != body.sum {
            return Err(ReadError::Sum { offset, name: Pgarr::NAME });
        }
        if body.codec != codec::NONE {
            return Err(ReadError::Codec { offset, codec: body.codec });
        }
        self.objref = body.objref;
        self.take_runs(&body).map_err(malformed)?;
        Ok(body)
    }

    fn header(&self) -> Option<Pgarr> {
        let bytes = self.block.as_slice().get(HEAD..HEAD + size_of::<Pgarr>())?;
        Pgarr::read_from_bytes(bytes).ok()
    }

    fn take_runs(&mut self, body: &Pgarr) -> Result<(), &'static str> {
        let page = self.block.as_slice().get(..PAGE_SIZE).unwrap_or_default();
        let rest = page.get(HEAD + size_of::<Pgarr>()..).unwrap_or_default();
        let nr_runs = body.nr_runs as usize;
        if nr_runs == 0 || nr_runs > MAX_RUNS {
            return Err("impossible number of runs");
        }
        let (runs, rest) = rest.split_at_checked(nr_runs * size_of::<Run>()).ok_or("runs are cut")?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err("padding is not zero");
        }
        let (mut free, mut stored) = (0, 0u64);
        for run in runs.chunks_exact(size_of::<Run>()) {
            let run = Run::read_from_bytes(run).map_err(|_| "a run is cut")?;
            if run.flags & !run_flags::ZERO != 0 {
                return Err("a run has unknown flags");
            }
            free = next_free(&run, free)?;
            if run.flags & run_flags::ZERO == 0 {
                stored += u64::from(run.nr_pages);
            }
            self.runs.push(run);
        }
        if stored != u64::from(body.nr_pages) {
            return Err("nr_pages is not that of its runs");
        }
        let bytes = stored * PAGE_SIZE as u64;
        if bytes != body.data_len || bytes != self.data().len() as u64 {
            return Err("data_len is not that of its runs");
        }
        Ok(())
    }
}
