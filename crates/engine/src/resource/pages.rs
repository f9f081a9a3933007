//! Page contents: what must be stored, and putting it back.
//!
//! A page is stored if it differs from what mapping the file, or zeros, would give: private pages
//! that are anonymous and not the zero page (PAGEMAP_SCAN over the whole space, once), and for
//! contents without a name the ranges that are not holes. Pages are read straight into the
//! image's blocks (process_vm_readv). From the reader's buffer they go straight into place: missing
//! pages of large anonymous areas by a [`Filler`], others by process_vm_writev; what is there
//! already, or is neither readable nor writable, through /proc/PID/mem.

use super::file::{Made, pty};
use crate::{
    error::{Context, Error, Result},
    options::{Observer, interrupted},
    task::Process,
};
use ckpt_image::{
    BlockSink, Chunk, Image, Objref, PagesError, PagesWritten, Writer, ZeroPages, model,
    record::{self, PAGE_SIZE, Run, inode_kind, run_flags, vma_flags, vma_kind},
};
use ckpt_kernel::{
    memory::{self, Span},
    pagemap::{self, Kind, PageRun},
    puppet::Puppet,
    shared::SharedArea,
    userfault::Filler,
};
use rustix::{
    fs::{OFlags, SeekFrom},
    io::Errno,
};
use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt};

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages to store of areas that are alike: few parts make few chunks and few calls.
#[derive(Debug)]
struct Part {
    runs: Vec<Run>,
    zero: ZeroPages,
    readable: bool,
}

/// What is to be stored of an address space.
#[derive(Debug)]
pub(crate) struct Plan {
    mm: Objref,
    parts: Vec<Part>,
}

/// What is to be stored of contents without a name.
#[derive(Debug)]
pub(crate) struct Contents(Vec<(Objref, File, Vec<Run>, ZeroPages)>);

/// Cuts `[start, end)` into runs an image can hold.
fn runs_of(start: u64, end: u64) -> impl Iterator<Item = Run> {
    const MOST: u64 = 1 << 20;
    let pages = (end - start) / PAGE;
    (0..pages.div_ceil(MOST)).map(move |i| {
        let nr_pages = (pages - i * MOST).min(MOST) as u32;
        Run { start: start + i * MOST * PAGE, nr_pages, flags: 0 }
    })
}

/// Finds what to store of the address space `mm` of `process`.
pub(crate) fn plan(process: &Process, objref: Objref, mm: &model::Mm) -> Result<Plan> {
    let pagemap = File::from(process.proc.open("pagemap", OFlags::RDONLY)?);
    let found = pagemap::scan(&pagemap, 0, super::layout::TASK_SIZE, Kind::Private)?;
    let mut parts: Vec<Part> = Vec::new();
    let mut found = found.iter().copied().peekable();
    for vma in mm.vmas.iter().map(|v| v.record) {
        let zero = match vma.kind {
            vma_kind::ANON_PRIVATE => ZeroPages::Drop,
            vma_kind::FILE_PRIVATE => ZeroPages::Describe,
            _ => continue,
        };
        let readable = vma.prot & libc::PROT_READ as u32 != 0;
        let mut runs = Vec::new();
        while let Some(run) = found.peek().copied() {
            if run.end > vma.start && run.start < vma.end {
                if run.guard {
                    return Err(guard_refusal(&run));
                }
                runs.extend(runs_of(run.start.max(vma.start), run.end.min(vma.end)));
            }
            if run.end > vma.end {
                break;
            }
            found.next();
        }
        match parts.iter_mut().find(|part| part.zero == zero && part.readable == readable) {
            Some(alike) => alike.runs.append(&mut runs),
            None if runs.is_empty() => {}
            None => parts.push(Part { runs, zero, readable }),
        }
    }
    Ok(Plan { mm: objref, parts })
}

fn guard_refusal(run: &PageRun) -> Error {
    Error::unsupported("guard pages (MADV_GUARD_INSTALL) cannot be carried yet")
        .object(format!("mapping at {:x}", run.start))
}

/// The ranges of a file that are not holes.
fn data_of(file: &File) -> Result<Vec<Run>> {
    let trouble = |e| Error::os("look for holes in a file", e);
    let mut runs = Vec::new();
    let mut at = 0;
    loop {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(runs),
            other => other.map_err(trouble)?,
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).map_err(trouble)?;
        runs.extend(runs_of(data / PAGE * PAGE, hole.next_multiple_of(PAGE)));
        at = hole;
    }
}

impl Plan {
    /// Bytes to be read.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().flat_map(|p| &p.runs).map(run_len).sum()
    }

    /// Writes all of it.
    pub(crate) fn write<S: BlockSink>(
        &self,
        process: &Process,
        writer: &mut Writer<S>,
        observer: &mut dyn Observer,
    ) -> Result<PagesWritten> {
        let mut written = PagesWritten::default();
        let mem =
            self.parts.iter().any(|part| !part.readable).then(|| process.proc.open("mem", OFlags::RDONLY));
        let mem = mem.transpose()?.map(File::from);
        for part in &self.parts {
            let more = writer.pages(self.mm, &part.runs, part.zero, &mut |runs, out| {
                interrupted(observer)?;
                observer.advance(out.len() as u64);
                match mem.as_ref().filter(|_| !part.readable) {
                    Some(mem) => read_file(mem, runs, out),
                    None => Ok(memory::read_spans(process.witness, &spans(runs), out)?),
                }
            });
            add(&mut written, more)?;
        }
        Ok(written)
    }
}

impl Contents {
    /// Finds what to store of `contents`, which are open for reading.
    pub(crate) fn plan(contents: Vec<(Objref, File)>, image: &Image) -> Result<Contents> {
        const QUEUES: [u32; 3] = [inode_kind::PIPE, inode_kind::PTY, inode_kind::UNIX];
        let is_pipe = |o: Objref| image.inode(o).is_some_and(|i| QUEUES.contains(&i.record.kind));
        let plan = |(objref, file): (Objref, File)| {
            // Zeros in a pipe are data; elsewhere they are holes.
            let zero = if is_pipe(objref) { ZeroPages::Keep } else { ZeroPages::Drop };
            data_of(&file).map(|runs| (objref, file, runs, zero))
        };
        contents.into_iter().map(plan).collect::<Result<_>>().map(Contents)
    }

    /// How many there are of one kind, and their bytes.
    pub(crate) fn of_kind(&self, image: &Image, kind: u32) -> (usize, u64) {
        let of_kind = |o: Objref| image.inode(o).is_some_and(|i| i.record.kind == kind);
        let runs = |(objref, _, runs, _): &(Objref, File, Vec<Run>, ZeroPages)| {
            of_kind(*objref).then(|| runs.iter().map(run_len).sum::<u64>())
        };
        self.0.iter().filter_map(runs).fold((0, 0), |(count, bytes), more| (count + 1, bytes + more))
    }

    /// Bytes to be read.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().flat_map(|(_, _, runs, _)| runs).map(run_len).sum()
    }

    /// Writes all of it.
    pub(crate) fn write<S: BlockSink>(
        &self,
        writer: &mut Writer<S>,
        observer: &mut dyn Observer,
    ) -> Result<PagesWritten> {
        let mut written = PagesWritten::default();
        for (objref, file, runs, zero) in &self.0 {
            let more = writer.pages(*objref, runs, *zero, &mut |runs, out| {
                interrupted(observer)?;
                observer.advance(out.len() as u64);
                read_file(file, runs, out)
            });
            add(&mut written, more)?;
        }
        Ok(written)
    }
}

/// Bytes of a run.
fn run_len(run: &Run) -> u64 {
    u64::from(run.nr_pages) * PAGE
}

fn add(sum: &mut PagesWritten, more: Result<PagesWritten, PagesError<Error>>) -> Result<()> {
    let more = more.map_err(|e| match e {
        PagesError::Fill(error) => error,
        other => crate::output::failure(&other),
    })?;
    sum.stored_pages += more.stored_pages;
    sum.zero_pages += more.zero_pages;
    Ok(())
}

fn spans(runs: &[Run]) -> Vec<Span> {
    runs.iter().map(|r| Span { start: r.start, len: r.nr_pages as usize * PAGE_SIZE }).collect()
}

/// Reads runs of a file; what is behind its end is zeros.
fn read_file(file: &File, runs: &[Run], out: &mut [u8]) -> Result<()> {
    let mut rest = out;
    for run in runs {
        let (mut part, later) = rest
            .split_at_mut_checked(run.nr_pages as usize * PAGE_SIZE)
            .ok_or_else(|| Error::failed("read of pages"))?;
        let mut at = run.start;
        while !part.is_empty() {
            let n = file.read_at(part, at).map_err(|e| Error::os("read of pages", e))?;
            if n == 0 {
                part.fill(0);
                break;
            }
            at += n as u64;
            part = part.get_mut(n..).unwrap_or_default();
        }
        rest = later;
    }
    Ok(())
}

/// How a piece of memory is filled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By the [`Filler`].
    Fill,
    /// By process_vm_writev(2).
    Write,
    /// Through /proc/PID/mem.
    Force,
}

/// Part of a run, in one area.
struct Piece {
    span: Span,
    /// It is zero and has no bytes in the chunk.
    zero: bool,
    way: Way,
}

/// Where the pages of an image go.
pub(crate) struct Targets<'a> {
    /// Address spaces.
    pub(crate) spaces: BTreeMap<Objref, Target<'a>>,
    /// Memory shared anonymously.
    pub(crate) areas: &'a BTreeMap<Objref, SharedArea>,
    /// Contents without a name, open.
    pub(crate) inodes: &'a BTreeMap<Objref, Made>,
}

/// An address space to be filled.
pub(crate) struct Target<'a> {
    /// Process being made.
    pub(crate) pid: i32,
    /// How messages name it.
    pub(crate) label: String,
    /// Its areas, ascending.
    pub(crate) vmas: &'a [model::Vma],
    /// Its /proc/PID/mem, writable.
    pub(crate) mem: File,
    /// Fills the areas that are worth it.
    pub(crate) filler: Option<Filler>,
}

/// Areas from this size on are filled by a [`Filler`]: smaller ones are done sooner than it is made.
const WORTH_A_FILLER: u64 = 256 << 10;

/// Whether the missing pages of an area are left to a [`Filler`]. It makes small pages: an area whose
/// program asked for huge ones is written to like by anybody.
fn by_filler(vma: &record::Vma) -> bool {
    vma.kind == vma_kind::ANON_PRIVATE
        && vma.end - vma.start >= WORTH_A_FILLER
        && vma.flags & vma_flags::HUGEPAGE == 0
}

/// Makes a filler for the areas of a puppet that are worth one. Where the kernel offers none, pages are
/// written by other means.
pub(crate) fn filler(puppet: &mut Puppet, vmas: &[model::Vma]) -> Option<Filler> {
    let areas = vmas.iter().map(|v| v.record).filter(by_filler);
    let spans: Vec<Span> = areas.map(|r| Span { start: r.start, len: (r.end - r.start) as usize }).collect();
    if spans.is_empty() {
        return None;
    }
    let filler = Filler::new(puppet).ok()?;
    spans.iter().try_for_each(|span| filler.register(*span)).ok()?;
    Some(filler)
}

impl Targets<'_> {
    /// Puts a chunk in place that is of an address space.
    pub(crate) fn fill_memory(&self, chunk: &Chunk) -> Result<()> {
        let Some(space) = self.spaces.get(&chunk.objref) else { return Ok(()) };
        space.fill_memory(chunk).task(|| space.label.clone())
    }

    /// Puts a chunk in place that is of anything else. Those of a pipe come in order.
    pub(crate) fn fill_contents(&self, image: &Image, chunk: &Chunk) -> Result<()> {
        if self.spaces.contains_key(&chunk.objref) {
            return Ok(());
        }
        let size = image.inode(chunk.objref).map(|i| i.record.size.next_multiple_of(PAGE));
        let inside = |size: u64| chunk.runs.iter().all(|r| run_end(r) <= size);
        if !size.is_some_and(inside) {
            return Err(Error::bad_image(format!(
                "pages outside object {} at byte {}",
                chunk.objref,
                chunk.offset()
            )));
        }
        if let Some(area) = self.areas.get(&chunk.objref) {
            return fill_area(area, chunk);
        }
        let made = self.inodes.get(&chunk.objref);
        let inode = image.inode(chunk.objref);
        if made.is_none() && inode.is_some_and(|i| i.record.kind == inode_kind::EMBEDDED) {
            // It is there.
            return Ok(());
        }
        let made = made.zip(inode);
        let (made, inode) = made.ok_or_else(|| Error::bad_image("pages of an unknown object"))?;
        fill_file(made, inode, chunk)
    }
}

/// Writes the contents of shared memory.
fn fill_area(area: &SharedArea, chunk: &Chunk) -> Result<()> {
    let mut rest = chunk.data();
    for run in chunk.runs.iter().filter(|r| r.flags & run_flags::ZERO == 0) {
        let (data, later) = rest
            .split_at_checked(run.nr_pages as usize * PAGE_SIZE)
            .ok_or_else(|| Error::bad_image("a chunk is shorter than its runs"))?;
        area.write(run.start, data)?;
        rest = later;
    }
    Ok(())
}

impl Target<'_> {
    /// The runs of a chunk cut at area borders.
    fn pieces(&self, chunk: &Chunk) -> Result<Vec<Piece>> {
        let mut pieces = Vec::with_capacity(chunk.runs.len());
        for run in &chunk.runs {
            let (mut at, end) = (run.start, run_end(run));
            while at < end {
                let index = self.vmas.partition_point(|v| v.record.end <= at);
                let vma = self.vmas.get(index).map(|v| v.record).filter(|v| v.start <= at);
                let private =
                    |v: &record::Vma| [vma_kind::ANON_PRIVATE, vma_kind::FILE_PRIVATE].contains(&v.kind);
                let vma = vma.filter(private).ok_or_else(|| {
                    Error::bad_image(format!(
                        "pages at {at:x} outside the mappings, at byte {}",
                        chunk.offset()
                    ))
                })?;
                let stop = end.min(vma.end);
                let way = match () {
                    () if self.filler.is_some() && by_filler(&vma) => Way::Fill,
                    () if vma.prot & libc::PROT_WRITE as u32 != 0 => Way::Write,
                    () => Way::Force,
                };
                let zero = run.flags & run_flags::ZERO != 0;
                pieces.push(Piece { span: Span { start: at, len: (stop - at) as usize }, zero, way });
                at = stop;
            }
        }
        Ok(pieces)
    }

    fn fill_memory(&self, chunk: &Chunk) -> Result<()> {
        let pieces = self.pieces(chunk)?;
        let mut rest = chunk.data();
        let mut take = |len: usize| {
            let (data, later) = rest
                .split_at_checked(len)
                .ok_or_else(|| Error::bad_image("a chunk is shorter than its runs"))?;
            rest = later;
            Ok::<_, Error>(data)
        };
        for alike in pieces.chunk_by(|a, b| (a.zero, a.way) == (b.zero, b.way)) {
            let spans = alike.iter().map(|p| p.span);
            match alike.first() {
                Some(Piece { zero: true, way, .. }) => self.zero(*way, spans)?,
                Some(Piece { way: Way::Write, .. }) => {
                    let spans: Vec<Span> = spans.collect();
                    self.write_spans(&spans, take(spans.iter().map(|s| s.len).sum())?)?;
                }
                Some(Piece { way, .. }) => {
                    for span in spans {
                        self.put(*way, span, take(span.len)?)?;
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Makes memory zero that was something else.
    fn zero(&self, way: Way, spans: impl Iterator<Item = Span>) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        for span in spans {
            for at in (0..span.len).step_by(ZEROS.len()) {
                let zeros = ZEROS.get(..ZEROS.len().min(span.len - at)).unwrap_or_default();
                self.put(way, Span { start: span.start + at as u64, len: zeros.len() }, zeros)?;
            }
        }
        Ok(())
    }

    /// Fills one span.
    fn put(&self, way: Way, span: Span, data: &[u8]) -> Result<()> {
        match way {
            Way::Write => self.write_spans(&[span], data),
            Way::Force => self.force(span.start, data),
            Way::Fill => self.fill(span.start, data),
        }
    }

    /// Fills what is missing, and overwrites what is there.
    fn fill(&self, start: u64, data: &[u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            done += self.filler.as_ref().map_or(0, |f| f.copy(start + done as u64, rest));
            if let Some(there) = data.get(done..).and_then(|rest| rest.get(..PAGE_SIZE)) {
                self.force(start + done as u64, there)?;
                done += PAGE_SIZE;
            }
        }
        Ok(())
    }

    fn write_spans(&self, spans: &[Span], data: &[u8]) -> Result<()> {
        let done = memory::write_spans(self.pid, spans, data)?;
        if done == data.len() {
            return Ok(());
        }
        Err(Error::failed("fill memory").why("the kernel refused a page: out of memory?"))
    }

    /// Writes where the process itself may not.
    fn force(&self, start: u64, data: &[u8]) -> Result<()> {
        self.mem.write_all_at(data, start).map_err(|e| Error::os(format!("fill memory at {start:x}"), e))
    }
}

/// One past the last byte of a run.
fn run_end(run: &Run) -> u64 {
    run.start.saturating_add(u64::from(run.nr_pages) * PAGE)
}

/// Writes the contents of an unlinked file, a memfd or a pipe.
fn fill_file(made: &Made, inode: &model::Inode, chunk: &Chunk) -> Result<()> {
    let size = inode.record.size;
    let mut rest = chunk.data();
    for run in chunk.runs.iter().filter(|r| r.flags & run_flags::ZERO == 0) {
        let len = (run_end(run).min(size).saturating_sub(run.start)) as usize;
        let whole = run.nr_pages as usize * PAGE_SIZE;
        let (data, later) = rest
            .split_at_checked(whole)
            .ok_or_else(|| Error::bad_image("a chunk is shorter than its runs"))?;
        let mut at = run.start;
        let mut left = data.get(..len.min(whole)).unwrap_or_default();
        if inode.record.kind == inode_kind::PIPE {
            crate::resource::file::pipe::fill(made, chunk.objref, inode, std::mem::take(&mut left))?;
        } else if inode.record.kind == inode_kind::UNIX {
            crate::resource::file::unix::collect(made, std::mem::take(&mut left));
        } else if let Some(pty) = inode.pty() {
            pty::fill(made, &pty, at, std::mem::take(&mut left))?;
        }
        while !left.is_empty() {
            let n =
                rustix::io::pwrite(&made.fd, left, at).map_err(|e| Error::os("fill an unlinked file", e))?;
            at += n as u64;
            left = left.get(n..).unwrap_or_default();
        }
        rest = later;
    }
    Ok(())
}
