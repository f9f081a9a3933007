//! Where an image comes from: a file or a stream, read, verified and put in place by several threads.

use crate::{
    error::{Doing, Error, Result},
    options::{Input, Interruption, Observer, interrupted},
};
use ckpt_image::{Chunk, Reader};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write},
    sync::{Mutex, PoisonError},
};

/// Bytes read at once while records are small.
const BUFFER: usize = 64 << 10;
/// Threads that read and fill, ours among them: reading is in turns, so more would wait.
const WORKERS: usize = 3;
/// Chunks that are not worth other threads.
const ALONE: usize = 4;

/// A reader of images.
pub(crate) type ImageReader = Reader<Source>;

/// What is read when there is something to read: whoever writes it may take his time, or for ever.
#[derive(Debug)]
struct Patient {
    file: File,
    /// Cannot be read again, and its writer may be waiting for us to read all of it.
    stream: bool,
    interruption: Interruption,
}

impl Read for Patient {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        while self.stream {
            self.interruption.check()?;
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&MOMENT)) {
                Ok(0) | Err(Errno::INTR) => continue,
                ready => ready?,
            };
            match self.file.read(out) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
        self.file.read(out)
    }
}

/// The bytes of an image.
#[derive(Debug)]
pub(crate) struct Source {
    input: BufReader<Patient>,
}

impl Source {
    /// Whether it is a pipe or socket.
    pub(crate) fn is_stream(&self) -> bool {
        self.input.get_ref().stream
    }

    /// Takes all that is still to come into an unnamed file, so that its writer can finish.
    pub(crate) fn spool(&mut self, observer: &dyn Observer) -> Result<()> {
        let dir = std::env::temp_dir();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let what = || format!("an unnamed file in {} for the image", dir.display());
        let mut file = File::from(rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR).doing(what)?);
        loop {
            interrupted(observer)?;
            let bytes = self.input.fill_buf().doing(|| "read the image".to_owned())?;
            let len = bytes.len();
            if len == 0 {
                break;
            }
            file.write_all(bytes).doing(what)?;
            self.input.consume(len);
        }
        file.rewind().doing(what)?;
        *self = Source::of(file, observer.interruption());
        Ok(())
    }

    fn of(file: File, interruption: Interruption) -> Source {
        let stream = !file.metadata().is_ok_and(|m| m.file_type().is_file());
        Source { input: BufReader::with_capacity(BUFFER, Patient { file, stream, interruption }) }
    }
}

impl Read for Source {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.input.read(out)
    }
}

/// Opens the image.
pub(crate) fn open(input: Input, observer: &dyn Observer) -> Result<ImageReader> {
    let file = match input {
        Input::Fd(fd) => fd.into(),
        Input::File(path) => {
            let shown = path.display().to_string();
            // Else it would be waited here for whoever writes to a FIFO.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::empty()).doing(|| format!("open {shown}"))?;
            let file = File::from(file);
            let kind = file.metadata().doing(|| format!("stat {shown}"))?.file_type();
            if kind.is_dir() {
                return Err(Error::bad_image(format!("{shown} is a directory")));
            }
            file
        }
    };
    Ok(Reader::new(Source::of(file, observer.interruption())))
}

/// Opens the image, once it is proved whole.
pub(crate) fn inspect(input: Input, observer: &dyn Observer) -> Result<ImageReader> {
    let mut reader = open(input, observer)?;
    let source = reader.source_mut();
    if source.is_stream() {
        source.spool(observer)?;
    }
    let again = || "read the image again".to_owned();
    let mut file = source.input.get_ref().file.try_clone().doing(again)?;
    let begin = file.stream_position().doing(again)?;
    reader.metadata()?;
    let mut chunk = Chunk::new();
    while reader.chunk(&mut chunk)? {
        interrupted(observer)?;
    }
    file.seek(SeekFrom::Start(begin)).doing(again)?;
    Ok(Reader::new(Source::of(file, observer.interruption())))
}

/// What is done to one chunk.
type InOrder<'a> = dyn FnMut(&Chunk) -> Result<()> + Send + 'a;

/// What the workers share: whoever holds it reads and verifies the next chunk.
struct Reading<'a, R> {
    reader: &'a mut Reader<R>,
    in_order: &'a mut InOrder<'a>,
    /// The image's end was reached and proved, or the first failure met.
    ended: Option<Result<()>>,
}

impl<R: Read> Reading<'_, R> {
    /// Takes the next chunk; `false` when there is none, or no point in it.
    fn next(&mut self, chunk: &mut Chunk) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let more = match self.reader.chunk(chunk) {
            Ok(true) => (self.in_order)(chunk).map(|()| true),
            other => other.map_err(Error::from),
        };
        self.ended = match more {
            Ok(true) => None,
            Ok(false) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        };
        self.ended.is_none()
    }

    fn fail(&mut self, error: Error) {
        if !matches!(self.ended, Some(Err(_))) {
            self.ended = Some(Err(error));
        }
    }
}

/// Gives every chunk of an image to `in_order`, one after the other, and to `beside`, several at a time
/// and in any order; and proves the end of the image.
///
/// Reading and verifying is a third of the work and filling the rest, so no thread does only one
/// of them: each takes a chunk in its turn and fills what it took, hot in its cache, while others
/// read on. An image of few chunks is done without other threads.
pub(crate) fn chunks<'a, R: Read + Send>(
    reader: &'a mut Reader<R>,
    in_order: &'a mut InOrder<'a>,
    beside: &(dyn Fn(&Chunk) -> Result<()> + Sync),
) -> Result<()> {
    let reading = Mutex::new(Reading { reader, in_order, ended: None });
    let lock = || reading.lock().unwrap_or_else(PoisonError::into_inner);
    let work = |chunk: &mut Chunk, most: usize| {
        for _ in 0..most {
            if !lock().next(chunk) {
                return;
            }
            if let Err(error) = beside(chunk) {
                return lock().fail(error);
            }
        }
    };
    let mut chunk = Chunk::new();
    work(&mut chunk, ALONE);
    if lock().ended.is_none() {
        std::thread::scope(|scope| {
            for _ in 1..WORKERS {
                scope.spawn(|| work(&mut Chunk::new(), usize::MAX));
            }
            work(&mut chunk, usize::MAX);
        });
    }
    lock().ended.take().unwrap_or(Ok(()))
}
