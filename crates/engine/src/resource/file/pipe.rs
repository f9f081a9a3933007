//! Pipes and FIFOs with all their ends inside the tree.
//!
//! *Saved*: what waits in the pipe, copied with tee(2) so that nothing is taken out; its capacity.
//! *Restored*: a new pipe with that capacity and contents; each end is a description of its own
//! with the old flags. A FIFO is opened by its path, where it must still be, empty; one that was unlinked
//! is made again and unlinked. *Refused*:
//! packet mode with data waiting (the packets' borders would be lost).

use super::{Descriptor, FileKind, Made, OpenContext};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    scribe::Scribe,
    task::{Process, show},
};
use ckpt_image::{
    Object, Objref, model,
    record::{self, FileDesc, file_kind, inode_kind},
};
use ckpt_kernel::procfs;
use rustix::{
    fs::{MemfdFlags, Mode, OFlags},
    io::Errno,
    pipe::{self, PipeFlags, SpliceFlags},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Seek, Write},
    os::fd::OwnedFd,
    sync::atomic::AtomicBool,
};

/// See the module.
pub(crate) struct InnerPipe;

impl FileKind for InnerPipe {
    fn kind(&self) -> u32 {
        file_kind::PIPE
    }

    /// Whether a pipe is inside is known only when all descriptors are: see [`adopt`].
    fn claims(&self, _: &Descriptor<'_>) -> bool {
        false
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        Ok(descriptor.record(file_kind::PIPE))
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let inode = context
            .inodes
            .get(&file.record.inode)
            .ok_or_else(|| Error::bad_image(format!("{}: a pipe without contents", show(&file.path))))?;
        let flags = OFlags::from_bits_retain(file.record.flags);
        let source = match (&inode.read, ends(file.record.flags)) {
            (Some(read), 1) => read,
            _ => &inode.fd,
        };
        let failed = || format!("open an end of {}", show(&file.path));
        // The descriptions pipe(2) made have no O_LARGEFILE; those opened through /proc have.
        if !flags.contains(OFlags::LARGEFILE) {
            rustix::fs::fcntl_setfl(source, flags & (OFlags::NONBLOCK | OFlags::DIRECT)).doing(failed)?;
            return rustix::io::dup(source).doing(failed).map(Some);
        }
        let flags = flags & (OFlags::RWMODE | OFlags::NONBLOCK | OFlags::DIRECT);
        procfs::reopen(source, flags).doing(failed).map(Some)
    }
}

/// Bit 0: read end, bit 1: write end.
fn ends(flags: u32) -> u32 {
    match flags & OFlags::RWMODE.bits() {
        0 => 1,
        1 => 2,
        _ => 3,
    }
}

/// The descriptors of one pipe, wherever they are in the tree.
#[derive(Default)]
struct Users<'a> {
    /// [`ends`] of all of them.
    ends: u32,
    descs: Vec<(&'a Process, FileDesc)>,
}

impl Users<'_> {
    /// Whether nobody outside can have the other end: both are here, or the other is closed.
    fn all_inside(&self) -> Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some((process, desc)) = self.descs.first().filter(|_| self.ends != 3) else { return Ok(true) };
        let own = process.descriptor(desc.fd)?;
        let mut polled = [PollFd::new(&own, PollFlags::empty())];
        poll(&mut polled, Some(&Timespec::default())).doing(|| "poll a pipe".to_owned())?;
        let [polled] = polled;
        Ok(polled.revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

/// Makes the pipes that the tree can both read from and write to part of the image. `tables` are
/// its processes, with the objrefs of their descriptor tables.
pub(crate) fn adopt<'a>(
    tables: impl IntoIterator<Item = (&'a Process, Objref)>,
    objects: &mut Objects,
) -> Result<()> {
    let mut pipes: BTreeMap<(u64, u64), Users<'a>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (process, table) in tables.into_iter().filter(|(_, table)| seen.insert(*table)) {
        let Some(Object::Files(table)) = objects.table.get(&table) else { continue };
        for desc in &table.descs {
            let Some(Object::File(file)) = objects.table.get(&desc.file) else { continue };
            if file.record.kind == file_kind::EXTERNAL_PIPE {
                let users = pipes.entry((file.record.dev, file.record.ino)).or_default();
                users.ends |= ends(file.record.flags);
                users.descs.push((process, *desc));
            }
        }
    }
    for (dev_ino, users) in pipes {
        let Some((process, first)) = users.descs.first() else { continue };
        let adopted = users.all_inside().and_then(|inside| {
            if inside { adopt_one(process, dev_ino, &users.descs, objects) } else { Ok(()) }
        });
        adopted.object(|| format!("fd {}", first.fd)).task(|| process.label())?;
    }
    Ok(())
}

fn adopt_one(
    process: &Process,
    dev_ino: (u64, u64),
    users: &[(&Process, FileDesc)],
    objects: &mut Objects,
) -> Result<()> {
    let Some((_, first)) = users.first() else { return Ok(()) };
    let Some(Object::File(file)) = objects.table.get(&first.file) else { return Ok(()) };
    let (mode, path) = (file.record.mode, file.path.clone());
    let packets = users.iter().any(|(_, d)| match objects.table.get(&d.file) {
        Some(Object::File(f)) => OFlags::from_bits_retain(f.record.flags).contains(OFlags::DIRECT),
        _ => false,
    });
    let source = process.proc.open(&format!("fd/{}", first.fd), OFlags::RDONLY | OFlags::NONBLOCK)?;
    let (contents, size, capacity) = copy(&source)?;
    if packets && size != 0 {
        return Err(Error::unsupported("a pipe in packet mode with data waiting cannot be carried yet"));
    }
    let record = record::Inode { kind: inode_kind::PIPE, mode, uid: 0, gid: 0, size, capacity };
    let (inode, new) =
        objects.inode(dev_ino, || Object::Inode(model::Inode { record, path, ..model::Inode::default() }));
    if new {
        objects.contents.push((inode, contents));
    }
    for (_, desc) in users {
        if let Some(Object::File(file)) = objects.table.get_mut(&desc.file) {
            file.record.kind = file_kind::PIPE;
            file.record.inode = inode;
        }
    }
    Ok(())
}

/// A copy of what waits in a pipe, its length and the pipe's capacity.
fn copy(source: &OwnedFd) -> Result<(File, u64, u64)> {
    let capacity = pipe::fcntl_getpipe_size(source).doing(|| "the capacity of a pipe".to_owned())?;
    let (read, write) =
        pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).doing(|| "make a pipe".to_owned())?;
    pipe::fcntl_setpipe_size(&write, capacity).doing(|| "set the capacity of a pipe".to_owned())?;
    let size = match pipe::tee(source, &write, capacity, SpliceFlags::NONBLOCK) {
        Err(Errno::AGAIN) => 0,
        other => other.doing(|| "copy what waits in a pipe".to_owned())?,
    };
    let mut bytes = vec![0; size];
    File::from(read).read_exact(&mut bytes).doing(|| "read the copy of a pipe".to_owned())?;
    let copy = rustix::fs::memfd_create("pipe", MemfdFlags::CLOEXEC).doing(|| "memfd_create".to_owned())?;
    let mut copy = File::from(copy);
    copy.write_all(&bytes).and_then(|()| copy.rewind()).doing(|| "copy a pipe".to_owned())?;
    Ok((copy, size as u64, capacity as u64))
}

/// An empty pipe for an inode.
pub(crate) fn make(inode: &model::Inode, scribe: &Scribe) -> Result<Made> {
    let record = &inode.record;
    if record.size > record.capacity {
        return Err(Error::bad_image(format!("a pipe of {} bytes holds {}", record.capacity, record.size)));
    }
    let (fd, read) = if let Some(path) = model::removed(&inode.path) {
        let fd = scribe.fifo(path)?;
        let mode = Mode::from_raw_mode(record.mode & 0o7777);
        rustix::fs::fchmod(&fd, mode).doing(|| format!("the mode of the unlinked FIFO {}", show(path)))?;
        (fd, None)
    } else if inode.path.starts_with(b"/") {
        (open_fifo(&inode.path)?, None)
    } else {
        let (read, write) = pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
        (write, Some(read))
    };
    let capacity = usize::try_from(record.capacity).unwrap_or(usize::MAX);
    pipe::fcntl_setpipe_size(&fd, capacity).map_err(|e| {
        Error::os(format!("a pipe of {capacity} bytes"), e).advice("see fs.pipe-max-size in proc(5)")
    })?;
    Ok(Made { fd, read, taken: AtomicBool::default() })
}

/// Opens both ends of an empty FIFO.
fn open_fifo(path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Error::os(format!("open the FIFO {}", show(path)), e).advice("make it again: mkfifo"))?;
    let waiting = rustix::io::ioctl_fionread(&fd).unwrap_or(0);
    let stat = rustix::fs::fstat(&fd).doing(|| format!("stat {}", show(path)))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Fifo {
        return Err(Error::failed(format!("{} is not a FIFO any more", show(path))));
    }
    if waiting != 0 {
        let what = format!("the FIFO {} already holds {waiting} bytes", show(path));
        return Err(Error::failed(what).advice("something else uses it: end that first"));
    }
    Ok(fd)
}

/// Puts data into a new pipe that is to hold `size` bytes in all: more might wait for room for ever.
pub(crate) fn fill(fd: &OwnedFd, objref: Objref, size: u64, mut data: &[u8]) -> Result<()> {
    if rustix::io::ioctl_fionread(fd).unwrap_or(0) + data.len() as u64 > size {
        return Err(Error::bad_image(format!("pipe {objref} has contents for more than its {size} bytes")));
    }
    while !data.is_empty() {
        let n = rustix::io::write(fd, data).doing(|| format!("fill pipe {objref}"))?;
        data = data.get(n..).unwrap_or_default();
    }
    Ok(())
}
