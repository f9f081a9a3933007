//! `ckptinfo`: shows or verifies an image. Reads any stream, once, and keeps only what it shows.

mod json;
mod show;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, IsTerminal, Read, Seek, SeekFrom},
    path::Path,
};

use ckpt_engine::Error;
use ckpt_image::{
    Chunk, Image, Objref, ReadError, Reader, find_error_text,
    record::{PAGE_SIZE, Run, run_flags},
};
use serde_json::{Value, json};

use crate::{
    args::InfoArgs,
    console::{Console, data, uuid},
    failure::{Failure, Outcome},
    text,
};

/// The text of a failed checkpoint is looked for in this many last bytes.
const ERROR_TAIL: u64 = 128 << 10;

/// Does what the arguments ask.
pub(crate) fn run(args: &InfoArgs, console: &Console) -> Outcome {
    let source = Source::open(&args.image)?;
    match (args.error, args.tree, args.verify, args.records) {
        (true, ..) => error(source, console),
        (_, true, ..) => tree(source, console),
        (_, _, true, _) => verify(source, console),
        (.., true) => records(source, console),
        _ => all(source, console),
    }
}

/// An image that is being read.
struct Source {
    name: String,
    file: Option<File>,
    read: Box<dyn Read>,
}

impl Source {
    fn open(path: &Path) -> Outcome<Source> {
        if path.as_os_str() == "-" {
            if std::io::stdin().is_terminal() {
                return Err(Failure::usage("stdin is a terminal; name an image or pipe one in"));
            }
            return Ok(Source {
                name: "stdin".to_owned(),
                file: None,
                read: Box::new(std::io::stdin().lock()),
            });
        }
        let name = path.display().to_string();
        let trouble = |cause| Failure::from(Error::os("cannot open the image", cause).object(name.as_str()));
        let file = File::open(path).map_err(trouble)?;
        let kind = file.metadata().map_err(trouble)?;
        if kind.is_dir() {
            return Err(Error::failed("cannot read the image").why("it is a directory").object(name).into());
        }
        let seekable = if kind.is_file() { Some(file.try_clone().map_err(trouble)?) } else { None };
        Ok(Source { name, file: seekable, read: Box::new(BufReader::with_capacity(1 << 16, file)) })
    }

    /// Why reading ended, with the image named.
    fn refuse(&self, cause: ReadError) -> Failure {
        let error = match cause {
            ReadError::Io { offset, source } => Error::os(format!("cannot read at byte {offset}"), source),
            other => Error::bad_image(other.to_string()),
        };
        error.object(self.name.as_str()).into()
    }

    /// The reader of the image. May be called once.
    fn reader(&mut self) -> Reader<Box<dyn Read>> {
        Reader::new(std::mem::replace(&mut self.read, Box::new(std::io::empty())))
    }
}

/// Pages of one area or object.
#[derive(Clone, Copy, Debug, Default)]
struct Pages {
    /// In the image.
    stored: u64,
    /// Described as zero.
    zero: u64,
}

impl Pages {
    fn add(&mut self, pages: u64, run: &Run) {
        let counter = if run.flags & run_flags::ZERO == 0 { &mut self.stored } else { &mut self.zero };
        *counter = counter.saturating_add(pages);
    }
}

/// Everything in an image, page contents counted only.
struct Contents {
    image: Image,
    /// Per address space: pages of each of its areas.
    areas: BTreeMap<Objref, Vec<Pages>>,
    /// Per object that has pages.
    objects: BTreeMap<Objref, Pages>,
    /// Bytes before the page contents.
    metadata_bytes: u64,
    /// Bytes of the image.
    bytes: u64,
}

impl Contents {
    fn new(image: Image, bytes: u64) -> Contents {
        Contents { image, areas: BTreeMap::new(), objects: BTreeMap::new(), metadata_bytes: bytes, bytes }
    }

    /// Counts the rest of the image.
    fn count(&mut self, reader: &mut Reader<impl Read>) -> Result<(), ReadError> {
        let mut chunk = Chunk::new();
        while reader.chunk(&mut chunk)? {
            for run in &chunk.runs {
                self.objects.entry(chunk.objref).or_default().add(run.nr_pages.into(), run);
                self.run(chunk.objref, run);
            }
            self.bytes = reader.position();
        }
        self.bytes = reader.position();
        Ok(())
    }

    /// Counts one run for the areas it lies in.
    fn run(&mut self, objref: Objref, run: &Run) {
        let Some(mm) = self.image.mm(objref) else { return };
        let areas = self.areas.entry(objref).or_insert_with(|| vec![Pages::default(); mm.vmas.len()]);
        let end = run.start.saturating_add(u64::from(run.nr_pages) * PAGE_SIZE as u64);
        let first = mm.vmas.partition_point(|vma| vma.record.end <= run.start);
        for (vma, pages) in
            mm.vmas.iter().zip(areas).skip(first).take_while(|(vma, _)| vma.record.start < end)
        {
            let bytes = end.min(vma.record.end).saturating_sub(run.start.max(vma.record.start));
            pages.add(bytes / PAGE_SIZE as u64, run);
        }
    }

    /// All pages.
    fn pages(&self) -> Pages {
        let sum = |of: fn(&Pages) -> u64| self.objects.values().map(of).fold(0, u64::saturating_add);
        Pages { stored: sum(|pages| pages.stored), zero: sum(|pages| pages.zero) }
    }
}

/// Shows everything; of a damaged image, what there is before the damage.
fn all(mut source: Source, console: &Console) -> Outcome {
    let mut reader = source.reader();
    let image = reader.metadata().map_err(|cause| source.refuse(cause))?;
    let mut contents = Contents::new(image, reader.position());
    let counted = contents.count(&mut reader).map_err(|cause| source.refuse(cause));
    if console.is_json() {
        let mut value = json::image(&contents);
        // One object, whatever happens: whoever reads it reads one line.
        let error = counted.as_ref().err().and_then(Failure::json);
        if let (Some(members), Some(Value::Object(error))) = (value.as_object_mut(), error) {
            members.extend(error);
        }
        console.report(&value)?;
        return match counted {
            Ok(()) => Ok(0),
            Err(failure) => {
                console.say(&failure.line().unwrap_or_default());
                Ok(failure.exit_code())
            }
        };
    }
    data(&show::image(&contents))?;
    counted.map(|()| 0)
}

/// Shows the process tree.
fn tree(mut source: Source, console: &Console) -> Outcome {
    let image = source.reader().metadata().map_err(|cause| source.refuse(cause))?;
    if console.is_json() {
        console.report(&json!({"processes": json::processes(&image)}))?;
    } else {
        data(&show::tree(&image))?;
    }
    Ok(0)
}

/// Proves the image whole.
fn verify(mut source: Source, console: &Console) -> Outcome {
    let mut reader = source.reader();
    let image = reader.metadata().map_err(|cause| source.refuse(cause))?;
    let mut contents = Contents::new(image, reader.position());
    contents.count(&mut reader).map_err(|cause| source.refuse(cause))?;
    if let Some(file) = &source.file {
        let len = file.metadata().map_err(|cause| Failure::os(source.name.as_str(), cause))?.len();
        if len > contents.bytes {
            let what =
                format!("the image is whole, but {} follow it", text::count(len - contents.bytes, "byte"));
            return Err(Error::bad_image(what).object(source.name).into());
        }
    }
    let (id, stored) = (uuid(&contents.image.header.id), contents.pages().stored);
    if console.is_json() {
        console.report(
            &json!({"verify": {"whole": true, "id": id, "bytes": contents.bytes, "pages": stored}}),
        )?;
    } else {
        let pages = text::count(stored, "page");
        data(&format!("{}: whole: image {id}, {} bytes, {pages}\n", source.name, contents.bytes))?;
    }
    Ok(0)
}

/// Prints why the checkpoint failed; nothing if it did not (JSON: null).
fn error(mut source: Source, console: &Console) -> Outcome {
    let tail = match &mut source.file {
        Some(file) => last_bytes(file).map_err(|cause| Failure::os(source.name.as_str(), cause))?,
        None => Vec::new(),
    };
    let found = match find_error_text(&tail) {
        Some(found) => Some(text::name(found)),
        None => error_by_reading(&mut source)?,
    };
    if console.is_json() {
        console.report(&json!({"checkpoint_error": found}))?;
    } else if let Some(found) = found {
        data(&format!("{found}\n"))?;
    }
    Ok(0)
}

/// The error met when the image is read from its beginning.
fn error_by_reading(source: &mut Source) -> Outcome<Option<String>> {
    let mut reader = source.reader();
    let mut chunk = Chunk::new();
    let mut more = || -> Result<(), ReadError> {
        while reader.chunk(&mut chunk)? {}
        Ok(())
    };
    match more() {
        Ok(()) => Ok(None),
        Err(ReadError::Checkpoint { text, .. }) => Ok(Some(text)),
        Err(cause) => Err(source.refuse(cause)),
    }
}

fn last_bytes(file: &mut File) -> std::io::Result<Vec<u8>> {
    // The position is shared with the reader's duplicate: put it back.
    let begin = file.stream_position()?;
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(len.saturating_sub(ERROR_TAIL)))?;
    let mut bytes = Vec::new();
    file.by_ref().take(ERROR_TAIL).read_to_end(&mut bytes)?;
    file.seek(SeekFrom::Start(begin))?;
    Ok(bytes)
}

/// Lists the records, one line each.
fn records(mut source: Source, console: &Console) -> Outcome {
    let mut reader = source.reader();
    if !console.is_json() {
        data("      OFFSET   TYPE     LENGTH  NAME\n")?;
    }
    let mut lines = String::new();
    loop {
        let next = reader.next_record();
        let end = !matches!(next, Ok(Some(_)));
        if let Ok(Some(info)) = &next {
            lines.push_str(&match console.is_json() {
                true => {
                    let record = json!({"offset": info.offset, "type": info.number, "name": info.name, "length": info.len});
                    format!("{record}\n")
                }
                false => format!("{:12} {:6} {:10}  {}\n", info.offset, info.number, info.len, info.name),
            });
        }
        if end || lines.len() > 1 << 16 {
            data(&lines)?;
            lines.clear();
        }
        if end {
            return next.map(|_| 0).map_err(|cause| source.refuse(cause));
        }
    }
}
