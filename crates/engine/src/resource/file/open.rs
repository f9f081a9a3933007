//! Opening the files of an image again.
//!
//! Each kind knows how; here is the order, that of the objects, and what makes it fast. Regular files are opened by their
//! names, most often, and that takes nothing but the kernel's time: thousands of them are opened on all processors, by
//! threads that hand them over ([`SideBySide`]).

use super::{OpenContext, external, placement::Place, regular, rights::Rights};
use crate::{
    advice::Means,
    error::{Doing, Error, Result},
    registry::FILE_KINDS,
    task::show,
};
use ckpt_image::{Object, Objref, Table, model, record};
use ckpt_kernel::descriptors::{AT_ONCE, Batches, SideBySide, close_all};
use rustix::{
    fs::{FileType, Mode, OFlags, Stat},
    io::Errno,
};
use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsFd, OwnedFd},
    thread,
};

/// The open descriptions of an image, in the coordinator.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: Table<OwnedFd>,
    /// Those that were seen to be what they were, ascending.
    unchanged: Vec<Objref>,
}

impl Files {
    fn insert(&mut self, objref: Objref, fd: OwnedFd, unchanged: bool) {
        self.open.insert(objref, fd);
        if unchanged {
            self.unchanged.push(objref);
        }
    }

    /// Adds others.
    pub(crate) fn append(&mut self, mut others: Files) {
        let (all, more) = (std::mem::take(&mut self.open), std::mem::take(&mut others.open));
        self.open = all.into_iter().chain(more).collect();
        self.unchanged.append(&mut others.unchanged);
        self.unchanged.sort_unstable();
    }

    /// Closes those that were seen to be what they were: of no use any more to anybody when all tasks have theirs.
    pub(crate) fn close_unchanged(&mut self) {
        let unchanged = std::mem::take(&mut self.unchanged);
        let (done, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition::<Vec<_>, _>(|(objref, _)| unchanged.binary_search(objref).is_ok());
        self.open = open.into_iter().collect();
        close_all(done.into_iter().map(|(_, fd)| fd));
    }

    /// Whether it is already known that a file is what it was.
    pub(super) fn is_unchanged(&self, objref: Objref) -> bool {
        self.unchanged.binary_search(&objref).is_ok()
    }
}

impl Deref for Files {
    type Target = Table<OwnedFd>;

    fn deref(&self) -> &Table<OwnedFd> {
        &self.open
    }
}

impl DerefMut for Files {
    fn deref_mut(&mut self) -> &mut Table<OwnedFd> {
        &mut self.open
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        close_all(std::mem::take(&mut self.open).into_iter().map(|(_, fd)| fd));
    }
}

/// Files that are worth a thread.
const MANY: usize = 512;

/// Opens those files of the image that are `wanted`. `place` has each description where the tasks will have it.
pub(crate) fn open_some(
    context: &OpenContext<'_>,
    wanted: impl Fn(Objref) -> bool,
    place: &mut dyn Place,
) -> Result<Files> {
    let supplied = external::supplied(context.image, &context.options.inherit);
    let rights = |objref| context.holders.get(&objref).and_then(Option::as_ref);
    let is_plain = |(objref, file): &(Objref, &model::File)| {
        regular::is_plain(file, context) && rights(*objref).is_none() && !supplied.contains_key(objref)
    };
    let files = context.image.objects.iter().filter_map(|(objref, object)| match object {
        Object::File(file) if wanted(*objref) => Some((*objref, file)),
        _ => None,
    });
    let plain: Vec<(Objref, &model::File)> = files.clone().filter(is_plain).collect();
    let others = thread::available_parallelism().map_or(0, |processors| processors.get() - 1);
    let others = place.end().map_or(0, |_| others.min(plain.len() / MANY));
    let lowest = place.end().unwrap_or(0);
    let batches = Batches::new(batches(&plain, place));
    thread::scope(|scope| {
        let mut opened = SideBySide::start(scope, others, lowest, &batches, &regular::open_plain);
        let (mut open, mut turns) = (Files::default(), plain.iter().peekable());
        for (objref, file) in files {
            let plain = turns.next_if(|(plain, _)| *plain == objref).and_then(|_| opened.next());
            let (fd, unchanged) = match (plain, supplied.get(&objref)) {
                (Some(opened), _) => opened?,
                (None, Some(fd)) => {
                    let what = || format!("our own descriptor for {}", show(&file.path));
                    (rustix::io::dup(fd).doing(what)?, false)
                }
                (None, None) => {
                    let context = OpenContext { rights: rights(objref), ..*context };
                    match open_one(objref, file, &context)? {
                        Some(fd) => (fd, false),
                        None => continue,
                    }
                }
            };
            open.insert(objref, place.place(objref, fd)?, unchanged);
        }
        Ok(open)
    })
}

/// Files in batches. What is handed over at once gets the lowest numbers that are free: a batch is to have numbers in a row, or
/// any.
fn batches<'a>(files: &[(Objref, &'a model::File)], place: &dyn Place) -> Vec<Vec<&'a model::File>> {
    let in_a_row = |(a, _): &(Objref, _), (b, _): &(Objref, _)| {
        place.number(*a).is_none_or(|number| place.number(*b) == Some(number + 1))
    };
    let rows = files.chunk_by(in_a_row).flat_map(|row| row.chunks(AT_ONCE));
    rows.map(|row| row.iter().map(|(_, file)| *file).collect()).collect()
}

/// Opens one as its kind does; `None` when it comes from outside.
fn open_one(objref: Objref, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
    let kind = FILE_KINDS
        .iter()
        .find(|kind| kind.kind() == file.record.kind)
        .ok_or_else(|| Error::bad_image(format!("file {objref} is of unknown kind {}", file.record.kind)))?;
    kind.open(file, context)
}

/// Opens `path` as an image wants it, with `rights` if they are given, and checks that it got that.
pub(super) fn reopen(path: &[u8], record: &record::File, rights: Option<&Rights>) -> Result<OwnedFd> {
    match rights {
        Some(rights) => rights.open(record, || Ok(reopen_now(path, record)?.0)),
        None => Ok(reopen_now(path, record)?.0),
    }
}

/// The same with ours; what it got.
pub(super) fn reopen_now(path: &[u8], record: &record::File) -> Result<(OwnedFd, Stat)> {
    // O_ASYNC given to open(2) would only look as if it were set: see owner.rs.
    let forbidden =
        OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::from_bits_retain(libc::O_ASYNC as u32);
    let flags = OFlags::from_bits_retain(record.flags) & !forbidden;
    let wanted = FileType::from_raw_mode(record.mode);
    // A FIFO in its place would let us wait for ever.
    let waits = wanted == FileType::RegularFile && !flags.intersects(OFlags::NONBLOCK | OFlags::PATH);
    let open = |more| rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY | more, Mode::empty());
    let failed = |e| advised(Error::os(format!("open {}", show(path)), e), e);
    let fd = match open(if waits { OFlags::NONBLOCK } else { OFlags::empty() }) {
        // Somebody has a lease, and gives it up.
        Err(Errno::WOULDBLOCK) if rustix::fs::stat(path).is_ok_and(|stat| is_of(&stat, wanted)) => {
            open(OFlags::empty()).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| Error::os(format!("stat {}", show(path)), e))?;
    if !is_of(&stat, wanted) {
        let what = format!("{} is not the kind of file it was", show(path));
        return Err(Error::failed(what).advice("put the original back"));
    }
    if waits {
        rustix::fs::fcntl_setfl(&fd, flags).doing(|| "set the flags of a file".to_owned())?;
    }
    Ok((fd, stat))
}

fn is_of(stat: &Stat, file_type: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == file_type
}

/// What to do about a file that cannot be opened.
fn advised(error: Error, cause: Errno) -> Error {
    match cause {
        Errno::MFILE | Errno::NFILE => error.advice("raise the limit of open files"),
        _ => error.advice("put it back").or(Means::MapFiles),
    }
}

/// Sets the offset of a new description.
pub(super) fn seek(fd: impl AsFd, record: &record::File, path: &[u8]) -> Result<()> {
    if record.pos != 0 {
        rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(record.pos))
            .map_err(|e| Error::os(format!("seek in {}", show(path)), e))?;
    }
    Ok(())
}
