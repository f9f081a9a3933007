//! Where an image comes from: a file or a stream, read and verified beside the filling.

use crate::{
    error::{Doing, Error, Result},
    options::{Input, Observer},
};
use ckpt_image::{Chunk, ReadError, Reader};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, Write},
    sync::mpsc::sync_channel,
};

/// Bytes read at once while records are small.
const BUFFER: usize = 64 << 10;
/// Chunks read ahead of the filling.
const AHEAD: usize = 2;

/// A reader of images.
pub(crate) type ImageReader = Reader<Source>;

/// The bytes of an image.
#[derive(Debug)]
pub(crate) struct Source {
    input: BufReader<File>,
    /// Cannot be read again, and its writer may be waiting for us to read all of it.
    stream: bool,
}

impl Source {
    /// Whether it is a pipe or socket.
    pub(crate) fn is_stream(&self) -> bool {
        self.stream
    }

    /// Takes all that is still to come into an unnamed file, so that its writer can finish.
    pub(crate) fn spool(&mut self, observer: &dyn Observer) -> Result<()> {
        let dir = std::env::temp_dir();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let what = || format!("an unnamed file in {} for the image", dir.display());
        let mut file = File::from(rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR).doing(what)?);
        loop {
            if observer.cancelled() {
                return Err(Error::failed("interrupted by a signal"));
            }
            if self.input.buffer().is_empty() && !self.is_ready()? {
                continue;
            }
            let bytes = self.input.fill_buf().doing(|| "read the image".to_owned())?;
            let len = bytes.len();
            if len == 0 {
                break;
            }
            file.write_all(bytes).doing(what)?;
            self.input.consume(len);
        }
        file.rewind().doing(what)?;
        *self = Source { input: BufReader::with_capacity(BUFFER, file), stream: false };
        Ok(())
    }

    /// Whether a read would not wait; waits for that a moment itself.
    fn is_ready(&self) -> Result<bool> {
        const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        match poll(&mut [PollFd::new(self.input.get_ref(), PollFlags::IN)], Some(&MOMENT)) {
            Err(Errno::INTR) => Ok(false),
            other => other.map(|ready| ready > 0).doing(|| "poll the image".to_owned()),
        }
    }
}

impl Read for Source {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.input.read(out)
    }
}

/// Opens the image.
pub(crate) fn open(input: Input) -> Result<ImageReader> {
    let file = match input {
        Input::Fd(fd) => fd.into(),
        Input::File(path) => {
            let shown = path.display().to_string();
            let file = File::open(&path).doing(|| format!("open {shown}"))?;
            let kind = file.metadata().doing(|| format!("stat {shown}"))?.file_type();
            if kind.is_dir() {
                return Err(Error::bad_image(format!("{shown} is a directory")));
            }
            file
        }
    };
    let stream = !file.metadata().is_ok_and(|m| m.file_type().is_file());
    Ok(Reader::new(Source { input: BufReader::with_capacity(BUFFER, file), stream }))
}

/// Gives every chunk to `apply`, in order, and proves the end of the image. The first chunk is
/// read in place; if more follow, a thread reads and verifies ahead.
pub(crate) fn chunks<R: Read + Send>(
    reader: &mut Reader<R>,
    apply: &mut dyn FnMut(&Chunk) -> Result<()>,
) -> Result<()> {
    let mut chunk = Chunk::new();
    for _ in 0..AHEAD {
        if !reader.chunk(&mut chunk)? {
            return Ok(());
        }
        apply(&chunk)?;
    }
    std::thread::scope(|scope| {
        let (full, chunks) = sync_channel::<Result<Chunk, ReadError>>(AHEAD);
        let (give_back, empty) = sync_channel::<Chunk>(AHEAD + 2);
        for chunk in std::iter::once(chunk).chain(std::iter::repeat_with(Chunk::new).take(AHEAD)) {
            let _ = give_back.send(chunk);
        }
        scope.spawn(move || {
            while let Ok(mut chunk) = empty.recv() {
                let message = match reader.chunk(&mut chunk) {
                    Ok(true) => Ok(chunk),
                    Ok(false) => return,
                    Err(error) => Err(error),
                };
                let ended = message.is_err();
                if full.send(message).is_err() || ended {
                    return;
                }
            }
        });
        for message in chunks {
            let chunk = message?;
            apply(&chunk)?;
            let _ = give_back.send(chunk);
        }
        Ok(())
    })
}
