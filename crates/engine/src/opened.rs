//! What the coordinator opens before there are puppets: they are born with its descriptors.
//!
//! That is so for what is shared to be shared, and because paths mean what they mean to the caller. What can only be
//! opened later has a placeholder here, or nothing yet: see `resource/file/late.rs`.

use crate::{
    error::{Doing, Error, Result},
    options::{Observer, Pids, RestartOptions, interrupted},
    resource::{
        file::{
            self, Files, Made, OpenContext,
            directory::Removed,
            external,
            late::{self, Late},
            placement::{LOWEST, Landing, Place, above, park},
            private::Private,
            rights::{self, Holders},
        },
        fs,
    },
    scribe::Scribe,
    source::ImageReader,
};
use ckpt_image::{
    Image, Object, Objref,
    record::{file_kind, inode_kind},
};
use ckpt_kernel::procfs;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// What the coordinator opened for the puppets, which are born with it.
pub(crate) struct Opened {
    pub(crate) files: Files,
    pub(crate) inherited: external::Inherited,
    pub(crate) inodes: BTreeMap<Objref, Made>,
    /// Unix sockets, until what waits in them is there.
    pub(crate) sockets: file::unix::Sockets,
    pub(crate) directories: BTreeMap<Objref, fs::Directories>,
    /// How what is opened late gets to them.
    pub(crate) late: Option<Late>,
    /// What they share a table for while they are made.
    pub(crate) private: Option<Private>,
    /// Whose rights files are opened with.
    pub(crate) holders: Holders,
    /// Makes names.
    pub(crate) scribe: Scribe,
}

/// Descriptors that we need besides those of the fullest table.
const OWN_FILES: u64 = 64;

/// Takes numbers that nothing else is to get which puppets are born with: an epoll's entry is added under the number it
/// had, while all of that is there.
fn reserve(numbers: &BTreeSet<i32>) -> Result<BTreeMap<i32, OwnedFd>> {
    let mut reserved = BTreeMap::new();
    let placeholder = late::placeholder()?;
    for number in numbers {
        // What is there already is only for ourselves.
        let there = above(&placeholder, *number)?;
        if there.as_raw_fd() == *number {
            reserved.insert(*number, there);
        }
    }
    Ok(reserved)
}

fn park_made(made: Made) -> Result<Made> {
    let read = made.read.map(park).transpose()?;
    Ok(Made { fd: park(made.fd)?, read, ..made })
}

/// The numbers that programs of an image have.
fn numbers(image: &Image) -> BTreeSet<i32> {
    let tables = image.objects.values().filter_map(|object| match object {
        Object::Files(table) => Some(&table.descs),
        _ => None,
    });
    tables.flatten().map(|desc| desc.fd).collect()
}

/// Raises our limit of open files to what is needed, as far as possible.
fn raise_limit(image: &Image, numbers: &BTreeSet<i32>, watched: usize) -> Result<()> {
    let most = numbers.last().map_or(0, |fd| u64::from(fd.unsigned_abs()));
    let limit = file::raise_nofile(OWN_FILES + most.max(count(image) + watched as u64));
    if most >= limit {
        let what = format!("fd {most} is a descriptor above the limit of open files ({limit})");
        return Err(Error::failed(what).advice("raise it (ulimit -n)"));
    }
    Ok(())
}

/// As many descriptors as the coordinator may have for the puppets.
fn count(image: &Image) -> u64 {
    let each = image.objects.values().map(|object| match object {
        // Itself, by its number; one for its peer, or what stands for that.
        Object::File(file) if file.record.kind == file_kind::UNIX => 3,
        Object::File(_) => 1,
        // One that lasts: where its name is, and what was put aside for it.
        Object::Inode(_) => 3,
        Object::Fs(_) => 2,
        _ => 0,
    });
    each.sum()
}

/// Opens everything the puppets will need.
pub(crate) fn open(
    image: &Image,
    options: &RestartOptions,
    reader: &mut ImageReader,
    observer: &mut dyn Observer,
) -> Result<Opened> {
    let (numbers, watched) = (numbers(image), file::epoll::numbers(image));
    raise_limit(image, &numbers, watched.len())?;
    let reserved = reserve(&watched)?;
    let (scribe, removed) = (Scribe::default(), Removed::default());
    let holders = rights::holders(image, options);
    let mut inodes = BTreeMap::new();
    for (objref, object) in &image.objects {
        let Object::Inode(inode) = object else { continue };
        let made = match inode.record.kind {
            inode_kind::UNLINKED => file::unlinked::make(inode, &scribe)?,
            inode_kind::PIPE => file::pipe::make(image, *objref, &holders, &scribe)?,
            inode_kind::MEMFD => file::memfd::make(inode)?,
            inode_kind::UNIX => match file::unix::reserve(inode)? {
                Some(made) => made,
                None => continue,
            },
            inode_kind::EMBEDDED => match file::embedded::make(inode, &scribe)? {
                Some(made) => made,
                None => continue,
            },
            _ => continue,
        };
        inodes.insert(*objref, park_made(made)?);
    }
    if options.pids == Pids::Original {
        await_original(image, reader, observer)?;
    }
    for (objref, made) in file::pty::make_all(image, observer)? {
        inodes.insert(objref, park_made(made)?);
    }
    let sockets = file::unix::make(image, &scribe, &park)?;
    let context = OpenContext {
        image,
        options,
        scribe: &scribe,
        removed: &removed,
        inodes: &inodes,
        sockets: &sockets,
        holders: &holders,
        rights: None,
    };
    // What has such a number of its own gets it at once, lest twice as many be needed.
    let mut landing = Landing::of(image, file::epoll::own_numbers(image), reserved)?;
    let private = Private::find(image);
    let is_private = |file| private.as_ref().is_some_and(|private| private.has(file));
    let mut files = file::open_some(&context, |file| !is_private(file), &mut landing)?;
    let mut directories = BTreeMap::new();
    for (objref, object) in &image.objects {
        if let Object::Fs(fs) = object {
            let rights = holders.get(objref).and_then(Option::as_ref);
            directories.insert(*objref, fs::prepare(fs, rights, &removed, &scribe, &park)?);
        }
    }
    let inherited = external::inherit(image, &options.inherit, &park)?;
    let late = Late::of(image, &numbers)?;
    drop(landing);
    let private = private.map(|private| open_private(private, &context, &mut files)).transpose()?.flatten();
    file::pty::hang_up(image, &mut inodes);
    Ok(Opened { files, inherited, inodes, sockets, directories, late, private, holders, scribe })
}

/// Opens what one process alone has, above all other numbers. `None` if there is no room for that: it is opened anyhow.
fn open_private(
    mut private: Private,
    context: &OpenContext<'_>,
    files: &mut Files,
) -> Result<Option<Private>> {
    let ours = procfs::numbers("self/fd").doing(|| "list our descriptors".to_owned())?;
    let first = ours.last().map_or(LOWEST, |last| last + 1);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = first.unsigned_abs() as usize + private.len() < usize::try_from(limit).unwrap_or(usize::MAX);
    private.begin(first);
    let lowest = if room { first } else { LOWEST };
    let mut place = Above { first: lowest, numbers: Vec::with_capacity(private.len()) };
    files.append(file::open_some(context, |file| private.has(file), &mut place)?);
    place.numbers.into_iter().for_each(|(file, number)| private.add(file, number));
    tracing::debug!("{} files of one process each, from number {first} on; room: {room}", private.len());
    Ok(room.then_some(private))
}

/// Descriptions go above all that is there, in the order in which they are opened.
struct Above {
    first: i32,
    /// Where they are.
    numbers: Vec<(Objref, i32)>,
}

impl Place for Above {
    fn number(&self, _: Objref) -> Option<i32> {
        None
    }

    fn end(&self) -> Option<i32> {
        None
    }

    fn place(&mut self, file: Objref, fd: OwnedFd) -> Result<OwnedFd> {
        let fd = if fd.as_raw_fd() < self.first { above(&fd, self.first)? } else { fd };
        self.numbers.push((file, fd.as_raw_fd()));
        Ok(fd)
    }
}

/// In `checkpoint --kill PID | restart` the original has its terminals and the names of its sockets, and ends only when it
/// has seen all of the image off: then the image is taken in first, and waited for its end.
fn await_original(image: &Image, reader: &mut ImageReader, observer: &mut dyn Observer) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let ptys = || file::pty::wanted(image).any(|path| rustix::fs::stat(path).is_ok());
    let taken = || ptys() || file::unix::taken(image);
    if !reader.source_mut().is_stream() || !taken() {
        return Ok(());
    }
    reader.source_mut().spool(observer)?;
    let begun = Instant::now();
    // Without its pid it does not come into being anyhow.
    let lives = || procfs::stat(&image.tree.root.to_string()).is_ok();
    while taken() && lives() && begun.elapsed() < PATIENCE {
        interrupted(observer)?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
