//! Where an image comes from: a file or a stream, read and verified beside the filling.

use crate::{
    error::{Doing, Error, Result},
    options::Input,
};
use ckpt_image::{Chunk, ReadError, Reader};
use std::{
    fs::File,
    io::{BufReader, Read},
    sync::mpsc::sync_channel,
};

/// Chunks read ahead of the filling.
const AHEAD: usize = 2;

/// A reader of images.
pub(crate) type ImageReader = Reader<BufReader<File>>;

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
    Ok(Reader::new(BufReader::with_capacity(64 << 10, file)))
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
