//! Where an image goes: blocks to a file or a stream, written beside the reading.

use crate::{
    advice::Means,
    error::{Doing, Error, Result},
    options::{Interruption, Output},
    task::show,
};
use ckpt_image::{Block, BlockSink};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::Duration,
};

/// Blocks in flight between the reader of memory and the writer: with the one being filled they
/// bound the coordinator's memory.
const BLOCKS: usize = 4;

/// An image file under construction. Without a name until it is whole, so that nothing is left
/// whatever happens; with a temporary one where the file system cannot do that.
#[derive(Debug)]
struct NewFile {
    path: PathBuf,
    overwrite: bool,
    temporary: Option<PathBuf>,
}

impl NewFile {
    fn create(path: PathBuf, overwrite: bool) -> Result<(NewFile, OwnedFd)> {
        let shown = show(path.as_os_str().as_bytes());
        match rustix::fs::lstat(&path) {
            Ok(stat)
                if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile =>
            {
                let what = format!("{shown} exists and is not a regular file");
                return Err(Error::failed(what).advice(Means::Elsewhere).or(Means::OutputFd));
            }
            Ok(_) if !overwrite => {
                return Err(Error::failed(format!("{shown} exists"))
                    .advice(Means::Elsewhere)
                    .or(Means::Overwrite));
            }
            _ => {}
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::open(dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
            Ok(fd) => return Ok((NewFile { path, overwrite, temporary: None }, fd)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(e) => return Err(Error::os(format!("create a file in {}", dir.display()), e)),
        }
        let temporary = temporary_name(&path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(&temporary, flags, mode).doing(|| format!("create {}", temporary.display()))?;
        Ok((NewFile { path, overwrite, temporary: Some(temporary) }, fd))
    }

    /// Gives the finished file its name.
    fn publish(&mut self, file: &File) -> Result<()> {
        let shown = self.path.display().to_string();
        file.sync_data().doing(|| format!("sync {shown}"))?;
        if self.temporary.is_none() {
            let link = |name: &Path| {
                let source = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, source.as_str(), CWD, name, AtFlags::SYMLINK_FOLLOW)
            };
            match link(&self.path) {
                Err(Errno::EXIST) if self.overwrite => {
                    let temporary = temporary_name(&self.path);
                    link(&temporary).doing(|| format!("create {}", temporary.display()))?;
                    self.temporary = Some(temporary);
                }
                Err(Errno::EXIST) => {
                    return Err(Error::failed(format!("{shown} exists")).advice(Means::Elsewhere));
                }
                other => return other.doing(|| format!("name the image {shown}")),
            }
        }
        if let Some(temporary) = self.temporary.take() {
            let renamed = if self.overwrite {
                rustix::fs::rename(&temporary, &self.path)
            } else {
                rustix::fs::renameat_with(
                    CWD,
                    &temporary,
                    CWD,
                    &self.path,
                    rustix::fs::RenameFlags::NOREPLACE,
                )
            };
            if renamed.is_err() {
                let _ = rustix::fs::unlink(&temporary);
            }
            renamed.doing(|| format!("name the image {shown}"))?;
        }
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = rustix::fs::unlink(temporary);
        }
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// An open destination.
#[derive(Debug)]
pub(crate) struct Destination {
    file: File,
    new: Option<NewFile>,
    /// It has its name.
    published: bool,
}

impl Destination {
    /// Opens the destination, before anything is done to the tasks.
    pub(crate) fn open(output: Output) -> Result<Destination> {
        match output {
            Output::File { path, overwrite } => {
                let (new, fd) = NewFile::create(path, overwrite)?;
                Ok(Destination { file: fd.into(), new: Some(new), published: false })
            }
            Output::Fd(fd) => Ok(Destination { file: fd.into(), new: None, published: false }),
        }
    }

    /// The descriptor written to.
    pub(crate) fn stat(&self) -> Result<rustix::fs::Stat> {
        rustix::fs::fstat(&self.file).doing(|| "stat the output".to_owned())
    }

    /// A sink for the image's blocks.
    pub(crate) fn sink(&self, interruption: Interruption) -> Result<Sink> {
        let file = self.file.try_clone().doing(|| "duplicate the output".to_owned())?;
        let stream = self.is_stream();
        Ok(Sink { file, stream, direct: !stream, worker: None, spare: BLOCKS - 1, interruption })
    }

    /// Makes a complete image durable and gives it its name, unless it has it already.
    pub(crate) fn publish(&mut self) -> Result<()> {
        if let Some(new) = self.new.as_mut().filter(|_| !self.published) {
            new.publish(&self.file)?;
            self.published = true;
        }
        Ok(())
    }

    /// Takes the name away again, if the image still has it.
    pub(crate) fn withdraw(&mut self) {
        let Some(new) = self.new.as_ref().filter(|_| self.published) else { return };
        let own = self.stat().map(|stat| (stat.st_dev, stat.st_ino)).ok();
        if rustix::fs::lstat(&new.path).ok().map(|stat| (stat.st_dev, stat.st_ino)) == own {
            let _ = rustix::fs::unlink(&new.path);
        }
        self.published = false;
    }

    /// Whether a half-written image is of use to whoever reads it (a stream), or simply goes.
    pub(crate) fn is_stream(&self) -> bool {
        self.new.is_none()
    }
}

/// A second thread that writes blocks while the first fills others.
#[derive(Debug)]
struct Worker {
    full: SyncSender<Block>,
    empty: Receiver<io::Result<Block>>,
    thread: JoinHandle<()>,
}

/// The next block that is done, or `None` when all are. A write that takes its time is left alone when a signal asks to give
/// up: nobody may ever read what it writes.
fn answer(empty: &Receiver<io::Result<Block>>, interruption: &Interruption) -> io::Result<Option<Block>> {
    const PATIENCE: Duration = Duration::from_secs(1);
    loop {
        match empty.recv_timeout(PATIENCE) {
            Ok(result) => return result.map(Some),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => interruption.check()?,
        }
    }
}

/// Writes blocks; a stream, or an image of more than one block, by a thread of its own.
#[derive(Debug)]
pub(crate) struct Sink {
    file: File,
    /// Somebody is to read it: no write can be relied on to end.
    stream: bool,
    /// Worth trying O_DIRECT: a new file of more than one block.
    direct: bool,
    worker: Option<Worker>,
    /// Blocks not made yet.
    spare: usize,
    interruption: Interruption,
}

/// Sets or clears O_DIRECT; whether the file system agreed.
fn set_direct(file: &File, on: bool) -> bool {
    let Ok(flags) = rustix::fs::fcntl_getfl(file) else { return false };
    let flags = if on { flags | OFlags::DIRECT } else { flags & !OFlags::DIRECT };
    rustix::fs::fcntl_setfl(file, flags).is_ok()
}

/// Writes all of a block; a destination in non-blocking mode is waited for.
fn write_block(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [rustix::event::PollFd::new(&file, rustix::event::PollFlags::OUT)];
                rustix::event::poll(&mut fds, None)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Sink {
    /// Gives the worker a block to write.
    fn pass(&mut self, block: Block) -> io::Result<()> {
        if self.worker.is_none() {
            self.start()?;
        }
        let sent = self.worker.as_ref().map(|worker| worker.full.send(block));
        sent.and_then(std::result::Result::ok).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn start(&mut self) -> io::Result<()> {
        let mut file = self.file.try_clone()?;
        if self.direct {
            self.direct = set_direct(&file, true);
        }
        let (full, jobs) = sync_channel::<Block>(BLOCKS);
        let (done, empty) = sync_channel::<io::Result<Block>>(BLOCKS);
        let thread = std::thread::spawn(move || {
            while let Ok(mut block) = jobs.recv() {
                let result = write_block(&mut file, block.as_slice());
                block.clear();
                if done.send(result.map(|()| block)).is_err() {
                    return;
                }
            }
        });
        self.worker = Some(Worker { full, empty, thread });
        Ok(())
    }

    /// Waits for the worker and writes the last, shorter block.
    fn last(&mut self, block: Block) -> io::Result<()> {
        let rest = if self.stream { self.pass(block).map(|()| None)? } else { Some(block) };
        if let Some(Worker { full, empty, thread }) = self.worker.take() {
            drop(full);
            while answer(&empty, &self.interruption)?.is_some() {}
            thread.join().map_err(|_| io::Error::other("the writing thread panicked"))?;
            if self.direct {
                set_direct(&self.file, false);
            }
        }
        rest.map_or(Ok(()), |block| write_block(&mut self.file, block.as_slice()))
    }
}

impl BlockSink for Sink {
    fn submit(&mut self, block: Block, last: bool) -> io::Result<Option<Block>> {
        if last {
            return self.last(block).map(|()| None);
        }
        let capacity = block.capacity();
        self.pass(block)?;
        if self.spare > 0 {
            self.spare -= 1;
            return Ok(Some(Block::new(capacity)));
        }
        let Some(worker) = &self.worker else { return Err(io::ErrorKind::BrokenPipe.into()) };
        match answer(&worker.empty, &self.interruption)? {
            Some(block) => Ok(Some(block)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Words for a failure to write the image.
pub(crate) fn failure(cause: &(dyn std::error::Error + 'static)) -> Error {
    let mut text = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(cause);
    let mut kind = None;
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            kind = Some(io.kind());
        }
        text.push(error.to_string());
        next = error.source();
    }
    let error = Error::failed(text.join(": "));
    match kind {
        Some(io::ErrorKind::StorageFull) => error.advice("free some space").or(Means::Elsewhere),
        Some(io::ErrorKind::BrokenPipe) => error.advice("the reader of the image went away"),
        _ => error,
    }
}

/// Whether the destination is `file` of the tasks themselves.
pub(crate) fn same_file(a: &rustix::fs::Stat, dev: u64, ino: u64) -> bool {
    (a.st_dev, a.st_ino) == (dev, ino)
}

impl AsFd for Destination {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}
