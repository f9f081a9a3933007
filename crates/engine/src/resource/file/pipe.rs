//! Pipes and FIFOs with all their ends inside the tree.
//!
//! *Saved*: what waits in the pipe, copied with tee(2) so that nothing is taken out, and the borders of packets in it
//! (O_DIRECT, Linux 3.4); its capacity, owner and mode. *Restored*: a new pipe with that capacity and contents; each end is a
//! description of its own with the old flags. A FIFO is opened by its path, where it must still be, empty; one that
//! was unlinked is made again under its name, or one like it, and unlinked at once. *Lost*: that pages were given
//! (vmsplice), or only partly used. *Refused*: packets mixed with other data, a notification pipe.

use super::{Descriptor, FileKind, Made, OpenContext, rights::Holders};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    scribe::Scribe,
    task::{Process, show},
};
use ckpt_image::{
    Image, Object, Objref,
    model::{self, details},
    record::{self, FileDesc, PipePart, file_kind, inode_kind, pipe_part},
};
use ckpt_kernel::{procfs, query};
use rustix::{
    fs::{Gid, MemfdFlags, Mode, OFlags, Uid},
    io::Errno,
    pipe::{self, PipeFlags, SpliceFlags},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Seek, Write},
    os::fd::OwnedFd,
    sync::PoisonError,
};
use zerocopy::IntoBytes;

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
        descriptor.record(file_kind::PIPE)
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
/// its processes, with the objrefs of their descriptor tables. What waits in them is of no interest while they run:
/// only a `frozen` tree's is copied.
pub(crate) fn adopt<'a>(
    tables: impl IntoIterator<Item = (&'a Process, Objref)>,
    frozen: bool,
    objects: &mut Objects,
) -> Result<()> {
    if !objects.has_file(&[file_kind::EXTERNAL_PIPE]) {
        return Ok(());
    }
    let mut pipes: BTreeMap<(u64, u64), Users<'a>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (process, table) in tables.into_iter().filter(|(_, table)| seen.insert(*table)) {
        let Some(Object::Files(table)) = objects.table.get(&table) else { continue };
        for desc in &table.descs {
            let Some(Object::File(file)) = objects.table.get(&desc.file) else { continue };
            // One that was given a name is outside, whoever has its ends.
            if file.record.kind == file_kind::EXTERNAL_PIPE && file.details.is_empty() {
                let users = pipes.entry((file.record.dev, file.record.ino)).or_default();
                users.ends |= ends(file.record.flags);
                users.descs.push((process, *desc));
            }
        }
    }
    for (dev_ino, users) in pipes {
        let Some((process, first)) = users.descs.first() else { continue };
        let adopted = users.all_inside().and_then(|inside| {
            if inside { adopt_one(process, dev_ino, &users.descs, frozen, objects) } else { Ok(()) }
        });
        adopted.object(|| format!("fd {}", first.fd)).task(|| process.label())?;
    }
    Ok(())
}

fn adopt_one(
    process: &Process,
    dev_ino: (u64, u64),
    users: &[(&Process, FileDesc)],
    frozen: bool,
    objects: &mut Objects,
) -> Result<()> {
    let Some((_, first)) = users.first() else { return Ok(()) };
    let Some(Object::File(file)) = objects.table.get(&first.file) else { return Ok(()) };
    let (mode, path) = (file.record.mode, file.path.clone());
    let name = format!("fd/{}", first.fd);
    let source = process.proc.open(&name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    if query::is_notification_pipe(&source) {
        return Err(Error::unsupported("a notification pipe (O_NOTIFICATION_PIPE) cannot be carried yet")
            .advice("let the program close it"));
    }
    if !frozen {
        return Ok(());
    }
    let Copied { contents, size, capacity, mut parts } = copy(&source)?;
    let stat = process.proc.stat(&name)?;
    let unlinked = path.starts_with(b"/") && stat.st_nlink == 0;
    parts.extend(unlinked.then_some(PipePart { kind: pipe_part::UNLINKED, len: 0 }));
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    let record = record::Inode { kind: inode_kind::PIPE, mode, uid, gid, size, capacity };
    let details = parts.as_bytes().to_vec();
    let (inode, new) = objects.inode(dev_ino, || Object::Inode(model::Inode { record, path, details }));
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

/// What is in a pipe.
struct Copied {
    contents: File,
    size: u64,
    capacity: u64,
    /// Its packets.
    parts: Vec<PipePart>,
}

/// A pipe with the same in it.
struct Twin {
    read: OwnedFd,
    write: OwnedFd,
    /// There is room for more.
    roomy: bool,
    size: usize,
}

impl Twin {
    fn of(source: &OwnedFd, capacity: usize) -> Result<Twin> {
        let (read, write) =
            pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).doing(|| "make a pipe".to_owned())?;
        // One more than it has would be enough. Where it is not allowed, a last packet is taken for other data.
        let roomy = pipe::fcntl_setpipe_size(&write, 2 * capacity).is_ok();
        if !roomy {
            pipe::fcntl_setpipe_size(&write, capacity).doing(|| "set the capacity of a pipe".to_owned())?;
        }
        let size = match pipe::tee(source, &write, capacity, SpliceFlags::NONBLOCK) {
            Err(Errno::AGAIN) => 0,
            other => other.doing(|| "copy what waits in a pipe".to_owned())?,
        };
        Ok(Twin { read, write, roomy, size })
    }
}

/// A copy of what waits in a pipe.
fn copy(source: &OwnedFd) -> Result<Copied> {
    let capacity = pipe::fcntl_getpipe_size(source).doing(|| "the capacity of a pipe".to_owned())?;
    let Twin { read, write, roomy, size } = Twin::of(source, capacity)?;
    // A byte behind all tells whether the last read ended at the end of a packet.
    let mark =
        if roomy { rustix::io::write(&write, b".").doing(|| "write to a pipe".to_owned())? } else { 0 };
    let (mut bytes, mut parts) = read_packets(&mut File::from(read), size + mark)?;
    bytes.truncate(size);
    parts.pop();
    if !parts.is_empty() {
        refuse_mixed(Twin::of(source, capacity)?, &parts)?;
    }
    let contents =
        rustix::fs::memfd_create("pipe", MemfdFlags::CLOEXEC).doing(|| "memfd_create".to_owned())?;
    let mut contents = File::from(contents);
    contents.write_all(&bytes).and_then(|()| contents.rewind()).doing(|| "copy a pipe".to_owned())?;
    Ok(Copied { contents, size: size as u64, capacity: capacity as u64, parts })
}

/// Reads a pipe of `size` bytes to its end, a part at each read: none goes beyond the end of a packet.
fn read_packets(copy: &mut File, size: usize) -> Result<(Vec<u8>, Vec<PipePart>)> {
    let mut bytes = vec![0; size];
    let (mut at, mut parts) = (0, Vec::new());
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
        let n = copy.read(rest).doing(|| "read the copy of a pipe".to_owned())?;
        if n == 0 {
            return Err(Error::failed("the copy of a pipe is shorter than it was"));
        }
        at += n;
        parts.push(PipePart { kind: pipe_part::PACKET, len: n as u32 });
    }
    Ok((bytes, parts))
}

/// Refuses packets with other data before them, which a read takes together. What is left of a packet when its first byte
/// is read is dropped; of other data nothing is.
fn refuse_mixed(twin: Twin, parts: &[PipePart]) -> Result<()> {
    let mut read = File::from(twin.read);
    let waiting = |read: &File| rustix::io::ioctl_fionread(read).doing(|| "FIONREAD".to_owned());
    for part in parts {
        let before = waiting(&read)?;
        read.read_exact(&mut [0]).doing(|| "read the copy of a pipe".to_owned())?;
        if before - waiting(&read)? != u64::from(part.len) {
            let what = "a pipe with packets (O_DIRECT) behind other data cannot be carried yet";
            return Err(Error::unsupported(what).advice("checkpoint when the program has read them"));
        }
    }
    Ok(())
}

/// The parts of a pipe, and whether it is an unlinked FIFO.
fn parts(inode: &model::Inode) -> (Vec<PipePart>, bool) {
    let all = details::<PipePart>(&inode.details).unwrap_or_default();
    let (packets, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| p.kind == pipe_part::PACKET);
    (packets, !others.is_empty())
}

/// An empty pipe for an inode; a FIFO is opened with the rights of who has it.
pub(crate) fn make(image: &Image, objref: Objref, holders: &Holders, scribe: &Scribe) -> Result<Made> {
    let inode =
        image.inode(objref).ok_or_else(|| Error::bad_image(format!("pipe {objref}: there is none")))?;
    let record = &inode.record;
    if record.size > record.capacity {
        return Err(Error::bad_image(format!("a pipe of {} bytes holds {}", record.capacity, record.size)));
    }
    let (_, unlinked) = parts(inode);
    let (fd, read) = match (inode.path.starts_with(b"/"), unlinked) {
        (true, true) => (make_fifo(inode, scribe)?, None),
        (true, false) => {
            let mut ends = image.objects.values().filter_map(|object| match object {
                Object::File(file) => Some(&file.record),
                _ => None,
            });
            let rights = holders.get(&objref).and_then(Option::as_ref);
            let open = || open_fifo(&inode.path);
            let fifo = match rights.zip(ends.find(|record| record.inode == objref)) {
                Some((rights, record)) => rights.open(record, open),
                None => open(),
            };
            (fifo?, None)
        }
        (false, _) => {
            let (read, write) = pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
            // Only who opens it by /dev/fd/N can tell: whoever may not give it away keeps it.
            let _ = give(&write, record);
            (write, Some(read))
        }
    };
    let capacity = usize::try_from(record.capacity).unwrap_or(usize::MAX);
    pipe::fcntl_setpipe_size(&fd, capacity).map_err(|e| {
        Error::os(format!("a pipe of {capacity} bytes"), e).advice("see fs.pipe-max-size in proc(5)")
    })?;
    Ok(Made { read, ..Made::new(fd) })
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

/// Makes a FIFO that had been unlinked.
fn make_fifo(inode: &model::Inode, scribe: &Scribe) -> Result<OwnedFd> {
    let fd = scribe.fifo(&inode.path)?;
    give(&fd, &inode.record).doing(|| format!("prepare the unlinked FIFO {}", show(&inode.path)))?;
    Ok(fd)
}

/// Gives a new pipe its owner and mode.
fn give(fd: &OwnedFd, record: &record::Inode) -> rustix::io::Result<()> {
    rustix::fs::fchown(fd, Some(Uid::from_raw(record.uid)), Some(Gid::from_raw(record.gid)))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(record.mode & 0o7777))
}

/// Puts data into a new pipe. Packets are put into it when all of it is known.
pub(crate) fn fill(made: &Made, objref: Objref, inode: &model::Inode, data: &[u8]) -> Result<()> {
    let (packets, _) = parts(inode);
    let mut known = made.packets.lock().unwrap_or_else(PoisonError::into_inner);
    let there = known.len() as u64 + rustix::io::ioctl_fionread(&made.fd).unwrap_or(0);
    if there + data.len() as u64 > inode.record.size {
        let what = format!("pipe {objref} has contents for more than its {} bytes", inode.record.size);
        return Err(Error::bad_image(what));
    }
    if packets.is_empty() {
        return put(&made.fd, objref, OFlags::empty(), data);
    }
    known.extend_from_slice(data);
    if known.len() as u64 == inode.record.size {
        let mut rest = known.as_slice();
        for packet in packets {
            let (data, later) = rest.split_at_checked(packet.len as usize).unwrap_or_default();
            put(&made.fd, objref, OFlags::DIRECT, data)?;
            rest = later;
        }
        put(&made.fd, objref, OFlags::empty(), rest)?;
        *known = Vec::new();
    }
    Ok(())
}

/// Writes to a pipe, whose flags are somebody's already; more than there is room for is an error.
fn put(fd: &OwnedFd, objref: Objref, mode: OFlags, mut data: &[u8]) -> Result<()> {
    let doing = || format!("fill pipe {objref}");
    let flags = rustix::fs::fcntl_getfl(fd).doing(doing)?;
    rustix::fs::fcntl_setfl(fd, (flags & !OFlags::DIRECT) | mode | OFlags::NONBLOCK).doing(doing)?;
    while !data.is_empty() {
        match rustix::io::write(fd, data) {
            Ok(n) => data = data.get(n..).unwrap_or_default(),
            Err(Errno::AGAIN) => {
                return Err(Error::bad_image(format!("pipe {objref} has no room for its contents")));
            }
            Err(e) => return Err(Error::os(doing(), e)),
        }
    }
    rustix::fs::fcntl_setfl(fd, flags).doing(doing)
}
