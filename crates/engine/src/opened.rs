//! What the coordinator opens before there are puppets: they are born with its descriptors.
//!
//! That is so for what is shared to be shared, and because paths mean what they mean to the caller. What can only be
//! opened later has a placeholder here, or nothing yet: see `resource/file/late.rs`.

use crate::{
    error::{Error, Result},
    options::{Observer, Pids, RestartOptions, interrupted},
    resource::{
        file::{
            self, Made, OpenContext,
            directory::Removed,
            external,
            late::{self, Late},
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
    collections::BTreeMap,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// What the coordinator opened for the puppets, which are born with it.
pub(crate) struct Opened {
    pub(crate) files: BTreeMap<Objref, OwnedFd>,
    pub(crate) inherited: external::Inherited,
    pub(crate) inodes: BTreeMap<Objref, Made>,
    pub(crate) directories: BTreeMap<Objref, fs::Directories>,
    /// How what is opened late gets to them.
    pub(crate) late: Option<Late>,
    /// Makes names.
    pub(crate) scribe: Scribe,
}

/// Descriptors that we need besides those of the fullest table.
const OWN_FILES: u64 = 64;

/// Which numbers the descriptors have that puppets are born with.
struct Numbers {
    /// The highest that a program of the image has.
    top: i32,
    /// Where ours begin.
    lowest: i32,
    /// The limit of open files, and what it is if there is room for everything.
    limit: u64,
    wanted: u64,
}

impl Numbers {
    /// What is in nobody's way, as far as that matters: a table may be full up to its limit.
    fn of(image: &Image) -> Result<Numbers> {
        let tops = image.objects.values().filter_map(|object| match object {
            Object::Files(table) => table.descs.last().map(|desc| desc.fd),
            _ => None,
        });
        let top = tops.max().unwrap_or(0).max(0);
        // Our own standard descriptors may be what the task inherits. What epolls watch is put at its number
        // while all of ours are there, and what is late comes below them.
        let pidfds = late::of_kind(image, file_kind::PIDFD).next().map(|_| 0);
        let apart = file::epoll::highest(image).max(pidfds);
        let lowest = apart.map_or(3, |fd| fd.max(top).saturating_add(1)).max(3);
        let wanted = top.max(lowest) as u64 + OWN_FILES + if apart.is_some() { count(image) } else { 0 };
        let limit = file::raise_nofile(wanted);
        if top as u64 >= limit {
            let what = format!("fd {top} is a descriptor above the limit of open files ({limit})");
            return Err(Error::failed(what).advice("raise it (ulimit -n)"));
        }
        Ok(Numbers { top, lowest, limit, wanted })
    }

    /// Moves a descriptor to where ours are.
    fn park(&self, fd: OwnedFd) -> Result<OwnedFd> {
        if fd.as_raw_fd() >= self.lowest {
            return Ok(fd);
        }
        rustix::io::fcntl_dupfd_cloexec(&fd, self.lowest).map_err(|e| {
            let Numbers { lowest, limit, wanted, .. } = self;
            Error::os(format!("a descriptor above {}, the highest of the program's", lowest - 1), e)
                .advice(format!("raise the limit of open files from {limit} to {wanted} (ulimit -n)"))
        })
    }

    fn park_made(&self, made: Made) -> Result<Made> {
        let read = made.read.map(|fd| self.park(fd)).transpose()?;
        Ok(Made { fd: self.park(made.fd)?, read, ..made })
    }
}

/// As many descriptors as the coordinator may have for the puppets.
fn count(image: &Image) -> u64 {
    let each = image.objects.values().map(|object| match object {
        Object::File(_) => 1,
        Object::Inode(_) | Object::Fs(_) => 2,
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
    let numbers = Numbers::of(image)?;
    let park = |fd| numbers.park(fd);
    let (scribe, removed) = (Scribe::default(), Removed::default());
    let mut inodes = BTreeMap::new();
    for (objref, object) in &image.objects {
        let Object::Inode(inode) = object else { continue };
        let made = match inode.record.kind {
            inode_kind::UNLINKED => file::unlinked::make(inode, &scribe)?,
            inode_kind::PIPE => file::pipe::make(inode, &scribe)?,
            inode_kind::MEMFD => file::memfd::make(inode)?,
            inode_kind::EMBEDDED => match file::embedded::make(inode, &scribe)? {
                Some(made) => made,
                None => continue,
            },
            _ => continue,
        };
        inodes.insert(*objref, numbers.park_made(made)?);
    }
    if options.pids == Pids::Original {
        await_ptys(image, reader, observer)?;
    }
    for (objref, made) in file::pty::make_all(image, observer)? {
        inodes.insert(objref, numbers.park_made(made)?);
    }
    let context = OpenContext { image, options, scribe: &scribe, removed: &removed, inodes: &inodes };
    let files = file::open_all(&context, &park)?;
    file::pty::hang_up(image, &mut inodes);
    let mut directories = BTreeMap::new();
    for (objref, object) in &image.objects {
        if let Object::Fs(fs) = object {
            directories.insert(*objref, fs::prepare(fs, &removed, &scribe, &park)?);
        }
    }
    let inherited = external::inherit(image, &options.inherit, &park)?;
    let late = Late::of(image, numbers.top, numbers.lowest)?;
    Ok(Opened { files, inherited, inodes, directories, late, scribe })
}

/// In `checkpoint --kill PID | restart` the original has its terminals, and ends only when it has seen all of the
/// image off: then the image is taken in first, and waited for its end.
fn await_ptys(image: &Image, reader: &mut ImageReader, observer: &mut dyn Observer) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let taken = || file::pty::wanted(image).any(|path| rustix::fs::stat(path).is_ok());
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
