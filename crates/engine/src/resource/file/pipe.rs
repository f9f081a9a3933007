//! Pipes with all their ends inside.
//!
//! *Saved*: what waits in the pipe, copied with tee(2) so that nothing is taken out; its capacity.
//! *Restored*: a new pipe with that capacity and contents; each end is a description of its own
//! with the old flags. *Refused*: packet mode with data waiting (the packets' borders would be
//! lost), and FIFOs with both ends inside.

use super::{Descriptor, FileKind, Made, OpenContext};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    task::{Process, show},
};
use ckpt_image::{
    Object, Objref, model,
    record::{self, FileDesc, file_kind, inode_kind},
};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags},
    io::Errno,
    pipe::{self, PipeFlags, SpliceFlags},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, Write},
    os::fd::{AsRawFd, OwnedFd},
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
        let path = format!("/proc/self/fd/{}", source.as_raw_fd());
        let flags = flags & (OFlags::RWMODE | OFlags::NONBLOCK | OFlags::DIRECT);
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).doing(failed).map(Some)
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

/// Makes the pipes that the process can both read from and write to part of the image.
pub(crate) fn adopt(process: &Process, descs: &[FileDesc], objects: &mut Objects) -> Result<()> {
    let mut pipes: BTreeMap<(u64, u64), (u32, Vec<FileDesc>)> = BTreeMap::new();
    for desc in descs {
        let Some(Object::File(file)) = objects.table.get(&desc.file) else { continue };
        if file.record.kind == file_kind::EXTERNAL_PIPE {
            let (modes, users) = pipes.entry((file.record.dev, file.record.ino)).or_default();
            *modes |= ends(file.record.flags);
            users.push(*desc);
        }
    }
    for (dev_ino, (_, users)) in pipes.into_iter().filter(|(_, (modes, _))| *modes == 3) {
        let fd = users.first().map_or(-1, |d| d.fd);
        adopt_one(process, dev_ino, &users, objects).object(|| format!("fd {fd}"))?;
    }
    Ok(())
}

fn adopt_one(
    process: &Process,
    dev_ino: (u64, u64),
    users: &[FileDesc],
    objects: &mut Objects,
) -> Result<()> {
    let Some(first) = users.first() else { return Ok(()) };
    let Some(Object::File(file)) = objects.table.get(&first.file) else { return Ok(()) };
    if file.path.starts_with(b"/") {
        let what = format!("the FIFO {} with both ends inside cannot be carried yet", show(&file.path));
        return Err(Error::unsupported(what));
    }
    let (mode, path) = (file.record.mode, file.path.clone());
    let packets = users.iter().any(|d| match objects.table.get(&d.file) {
        Some(Object::File(f)) => OFlags::from_bits_retain(f.record.flags).contains(OFlags::DIRECT),
        _ => false,
    });
    let source = process.proc.open(&format!("fd/{}", first.fd), OFlags::RDONLY | OFlags::NONBLOCK)?;
    let (contents, size, capacity) = copy(&source)?;
    if packets && size != 0 {
        return Err(Error::unsupported("a pipe in packet mode with data waiting cannot be carried yet"));
    }
    let record = record::Inode { kind: inode_kind::PIPE, mode, uid: 0, gid: 0, size, capacity };
    let (inode, new) = objects.inode(dev_ino, || Object::Inode(model::Inode { record, path }));
    if new {
        objects.contents.push((inode, contents));
    }
    for desc in users {
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

/// A new, empty pipe for an inode.
pub(crate) fn make(inode: &model::Inode) -> Result<Made> {
    let record = &inode.record;
    if record.size > record.capacity {
        return Err(Error::bad_image(format!("a pipe of {} bytes holds {}", record.capacity, record.size)));
    }
    let (read, fd) = pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())?;
    let capacity = usize::try_from(record.capacity).unwrap_or(usize::MAX);
    pipe::fcntl_setpipe_size(&read, capacity).map_err(|e| {
        Error::os(format!("a pipe of {capacity} bytes"), e).advice("see fs.pipe-max-size in proc(5)")
    })?;
    Ok(Made { fd, read: Some(read) })
}

/// Puts data into a new pipe.
pub(crate) fn fill(fd: &OwnedFd, objref: Objref, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        let n = rustix::io::write(fd, data).doing(|| format!("fill pipe {objref}"))?;
        data = data.get(n..).unwrap_or_default();
    }
    Ok(())
}
