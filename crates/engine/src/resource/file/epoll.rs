//! epoll(7).
//!
//! An entry of an epoll is an open description, the number it had when it was added, events and 64 bits of the
//! program's. fdinfo shows all but which description: the number may have been closed or be another file's by now.
//! kcmp(2) tells (KCMP_EPOLL_TFD, Linux 4.13), so once all descriptors of the tree are known, it is looked for
//! among them, first behind that number. *Saved*: events as fdinfo has them, data, number, description.
//! *Restored*: by a process that has the epoll, if possible one that has the description under that number, before its
//! descriptors are in place: each description is put at its number and added, in whatever order.
//! It matters who does it, as the kernel tells an epoll of a signalfd about the signals of whom added it.
//!
//! An entry with EPOLLONESHOT that has been reported is without events until the program arms it again. The kernel makes
//! such an entry only by reporting it, so it is made to report: most files are ready to be read or
//! written, an empty pipe is given a byte for a moment, a timer an expiration.
//!
//! That takes time: the kernel goes through the entries for each question, 20 ns for each it passes. So sockets, whose
//! inode tells, are not asked about, and the survey, which runs beside the program, asks only when numbers or inodes differ.
//!
//! *Lost*: what cannot be made ready stays armed for EPOLLERR and EPOLLHUP, which only pipes and sockets of
//! others ever report; an edge-triggered entry (EPOLLET) that is ready is reported once more, even if it has been, as a lost edge
//! would be worse; order of what is ready; busy-poll parameters. *Refused*: an entry whose description nobody in the tree has.

use super::{Descriptor, FileKind, OpenContext, detail, details_of, late, settle_flags};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    opened::Opened,
    restore::Parts,
    task::Process,
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{EpollEntry, Timerfd, file_kind},
};
use ckpt_kernel::{
    Errno,
    program::{Arg, Program},
    puppet::Puppet,
    query::{EpollSlot, kcmp_epoll},
};
use ckpt_proc::{anon, fdinfo::parse_fdinfo, link::FdLink};
use rustix::event::epoll::CreateFlags;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

/// See the module.
pub(crate) struct Epoll;

/// What epoll_ctl(2) adds to the events of every entry: EPOLLERR, EPOLLHUP.
const ALWAYS: u32 = 0x18;
/// EPOLLIN, EPOLLPRI, EPOLLOUT and all others that are about data.
const ANY: u32 = 0x3fff;

impl FileKind for Epoll {
    fn kind(&self) -> u32 {
        file_kind::EPOLL
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place() && descriptor.target() == FdLink::AnonInode(b"eventpoll")
    }

    /// What it watches is known only when all descriptors are: see [`adopt`].
    fn checkpoint(&self, descriptor: &Descriptor<'_>, _: &mut Objects) -> Result<model::File> {
        descriptor.record(file_kind::EPOLL)
    }

    fn open(&self, file: &model::File, _: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let fd = rustix::event::epoll::create(CreateFlags::CLOEXEC).doing(|| "make an epoll".to_owned())?;
        settle_flags(&fd, file)?;
        Ok(Some(fd))
    }
}

/// How certain it has to be that what has an entry's number is what it watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// Of the same inode: kcmp(2) goes through all entries before one, so that 10,000 eventfds take a second.
    Likely,
    /// The same description.
    Exact,
}

/// Finds what the epolls of the tree watch. `tables` are its processes, with the objrefs of their descriptor
/// tables.
pub(crate) fn adopt<'a>(
    tables: impl IntoIterator<Item = (&'a Process, Objref)>,
    certainty: Certainty,
    objects: &mut Objects,
) -> Result<()> {
    if !objects.has_file(&[file_kind::EPOLL]) {
        return Ok(());
    }
    let (mut seen, mut done) = (BTreeSet::new(), BTreeSet::new());
    for (process, table) in tables.into_iter().filter(|(_, table)| seen.insert(*table)) {
        let Some(Object::Files(table)) = objects.table.get(&table) else { continue };
        let numbers: BTreeMap<i32, Objref> = table.descs.iter().map(|desc| (desc.fd, desc.file)).collect();
        for (fd, objref) in &numbers {
            let epoll = matches!(objects.table.get(objref), Some(Object::File(f)) if f.record.kind == file_kind::EPOLL);
            if epoll && done.insert(*objref) {
                let entries = entries(process, *fd, &numbers, certainty, objects);
                let entries = entries.object(|| format!("fd {fd}")).task(|| process.label())?;
                if let Some(Object::File(file)) = objects.table.get_mut(objref) {
                    file.details = model::to_details(&entries);
                }
            }
        }
    }
    Ok(())
}

/// The entries of the epoll that is `epoll` in the table `numbers` of a process.
fn entries(
    process: &Process,
    epoll: i32,
    numbers: &BTreeMap<i32, Objref>,
    certainty: Certainty,
    objects: &Objects,
) -> Result<Vec<EpollEntry>> {
    let tid = process.witness;
    let info = process.proc.parse(&format!("fdinfo/{epoll}"), parse_fdinfo)?;
    let found = info.epoll().ok_or_else(|| Error::failed("its fdinfo is not an epoll's"))?;
    let mut before: BTreeMap<i32, u32> = BTreeMap::new();
    let mut entries = Vec::with_capacity(found.len());
    for anon::EpollEntry { fd, events, data, ino } in found {
        let before = before.entry(fd).or_default();
        let slot = EpollSlot { epoll, fd, before: *before };
        *before += 1;
        let there = numbers.get(&fd).copied().filter(|there| {
            let same = || matches!(kcmp_epoll((tid, fd), tid, slot), Ok(Ordering::Equal));
            match likely(objects, *there, ino) {
                Some(true) => true,
                Some(false) if certainty == Certainty::Likely && ino.is_some() => true,
                Some(false) => same(),
                None => false,
            }
        });
        let file = match there {
            Some(file) => file,
            None => objects
                .description_by(ino, |(other, fd)| kcmp_epoll((other, fd), tid, slot))?
                .ok_or_else(|| unknown(fd))?,
        };
        entries.push(EpollEntry { data, events, fd, file, pad: 0 });
    }
    Ok(entries)
}

/// Whether what has an entry's number is of the inode it watches (else `None`), and that makes it certain: a socket has an
/// inode, and only one description, of its own.
fn likely(objects: &Objects, there: Objref, ino: Option<u64>) -> Option<bool> {
    let Some(Object::File(file)) = objects.table.get(&there) else { return None };
    let socket = file.record.mode & libc::S_IFMT == libc::S_IFSOCK;
    match ino {
        Some(ino) if ino == file.record.ino => Some(socket),
        // On some file systems the kernel itself has other numbers.
        Some(_) if socket || file.record.dev == 0 => None,
        _ => Some(false),
    }
}

/// The error for an entry whose file nobody has.
fn unknown(fd: i32) -> Error {
    let what =
        format!("an epoll watches what was its fd {fd}, of which no process of the tree has a descriptor");
    Error::unsupported(what).advice(
        "somebody outside has: let the program take it out (EPOLL_CTL_DEL) before it closes its own descriptor",
    )
}

/// All that the epolls of an image watch.
fn all_entries(image: &Image) -> impl Iterator<Item = EpollEntry> {
    late::of_kind(image, file_kind::EPOLL).filter_map(|(_, file)| details_of(file).ok()).flatten()
}

/// The numbers under which something was added to the epolls of an image.
pub(crate) fn numbers(image: &Image) -> BTreeSet<i32> {
    all_entries(image).map(|entry| entry.fd).collect()
}

/// The numbers under which one description and no other was added to the epolls of an image, one for each.
pub(crate) fn own_numbers(image: &Image) -> BTreeMap<Objref, i32> {
    let mut files: BTreeMap<i32, BTreeSet<Objref>> = BTreeMap::new();
    for entry in all_entries(image) {
        files.entry(entry.fd).or_default().insert(entry.file);
    }
    let own = files.iter().filter(|(_, files)| files.len() == 1);
    own.flat_map(|(number, files)| files.iter().map(|file| (*file, *number))).collect()
}

/// The descriptions that epolls of an image watch.
pub(crate) fn watched(image: &Image) -> BTreeSet<Objref> {
    all_entries(image).map(|entry| entry.file).collect()
}

/// Entries to be added by processes, by their descriptor table: each with its epoll.
pub(crate) type Additions = BTreeMap<Objref, Vec<(Objref, EpollEntry)>>;

/// Decides who adds which entries.
pub(crate) fn additions(image: &Image, parts: &[Parts<'_>]) -> Result<Additions> {
    let mut additions = Additions::new();
    if late::of_kind(image, file_kind::EPOLL).next().is_none() {
        return Ok(additions);
    }
    let tables: Vec<(Objref, BTreeMap<i32, Objref>, BTreeSet<Objref>)> = parts
        .iter()
        .filter(|part| part.makes_files)
        .map(|part| {
            let descs = || part.table.descs.iter();
            let by_number = descs().map(|d| (d.fd, d.file)).collect();
            (part.process.task.files, by_number, descs().map(|d| d.file).collect())
        })
        .collect();
    for (epoll, file) in late::of_kind(image, file_kind::EPOLL) {
        let holders: Vec<_> = tables.iter().filter(|(.., files)| files.contains(&epoll)).collect();
        for entry in details_of::<EpollEntry>(file)? {
            let exact = holders.iter().find(|(_, numbers, _)| numbers.get(&entry.fd) == Some(&entry.file));
            if let Some((table, ..)) = exact.or(holders.first()) {
                additions.entry(*table).or_default().push((epoll, entry));
            }
        }
    }
    Ok(additions)
}

/// Adds entries, by a process that has all descriptors of ours yet.
pub(crate) fn restore(
    puppet: &mut Puppet,
    image: &Image,
    additions: &[(Objref, EpollEntry)],
    opened: &Opened,
) -> Result<()> {
    let (disarmed, armed): (Vec<_>, Vec<_>) =
        additions.iter().copied().partition(|(_, entry)| entry.events & ALWAYS == 0);
    // While there is nothing else an epoll could report.
    for (epoll, entry) in disarmed {
        disarm(puppet, image, epoll, &entry, opened)?;
    }
    let mut program = Program::new();
    for (epoll, entry) in armed {
        add(&mut program, epoll, &entry, entry.events, opened)?;
    }
    puppet.run(0, program).map_err(unwatchable)?;
    Ok(())
}

/// Says what to do when something cannot be watched.
fn unwatchable(error: ckpt_kernel::Error) -> Error {
    let cannot = error.errno() == Some(Errno::PERM);
    let error = Error::from(error);
    if cannot {
        let advice = "epoll watches no regular files: give a pipe or a terminal in place of what was one";
        return Error { kind: crate::error::ErrorKind::Failed, ..error }.advice(advice);
    }
    error
}

fn source(opened: &Opened, file: Objref) -> Result<i32> {
    let fd = opened.files.get(&file).or_else(|| opened.inherited.of(file));
    let fd =
        fd.ok_or_else(|| Error::bad_image(format!("an epoll watches file {file}, which cannot be opened")))?;
    Ok(fd.as_fd().as_raw_fd())
}

/// struct epoll_event.
fn event(events: u32, data: u64) -> Arg {
    Arg::In(events.to_ne_bytes().into_iter().chain(data.to_ne_bytes()).collect())
}

fn control(program: &mut Program, epoll: i32, operation: i32, fd: i32, event: Arg) {
    let args = [epoll.into(), operation.into(), fd.into(), event];
    program.call("epoll_ctl", fd as u64, libc::SYS_epoll_ctl, args);
}

/// Puts a description at its number and adds it.
fn add(program: &mut Program, epoll: Objref, entry: &EpollEntry, events: u32, opened: &Opened) -> Result<()> {
    let from = source(opened, entry.file)?;
    if from != entry.fd {
        let args = [from.into(), entry.fd.into(), libc::O_CLOEXEC.into()];
        program.call("dup3", entry.fd as u64, libc::SYS_dup3, args);
    }
    let data = event(events, entry.data);
    control(program, source(opened, epoll)?, libc::EPOLL_CTL_ADD, entry.fd, data);
    Ok(())
}

/// Adds an entry and has it reported, so that it is disarmed.
fn disarm(
    puppet: &mut Puppet,
    image: &Image,
    epoll: Objref,
    entry: &EpollEntry,
    opened: &Opened,
) -> Result<()> {
    let mut program = Program::new();
    add(&mut program, epoll, entry, entry.events | ANY, opened)?;
    let end = ready(&mut program, image, entry.file, opened)?;
    let epoll = source(opened, epoll)?;
    let args = [epoll.into(), Arg::Out(12), 1u64.into(), 0u64.into()];
    let wait = program.try_call("epoll_wait", libc::SYS_epoll_wait, args);
    if let Some(pipe) = end {
        program.call("read", 0, libc::SYS_read, [pipe.into(), Arg::Out(1), 1u64.into()]);
    }
    let outcomes = puppet.run(0, program).map_err(unwatchable)?;
    if outcomes.get(wait).is_none_or(|outcome| outcome.result != 1) {
        let mut program = Program::new();
        control(&mut program, epoll, libc::EPOLL_CTL_MOD, entry.fd, event(entry.events, entry.data));
        puppet.run(0, program)?;
    }
    Ok(())
}

/// Makes a file ready for a moment, if it is one that would not be and can be made so. Returns the pipe that has to
/// be read from afterwards.
fn ready(program: &mut Program, image: &Image, file: Objref, opened: &Opened) -> Result<Option<i32>> {
    let Some(watched) = image.file(file) else { return Ok(None) };
    match watched.record.kind {
        file_kind::TIMERFD if detail::<Timerfd>(watched)?.ticks == 0 => {
            /// TFD_IOC_SET_TICKS. The timer is set afterwards, which takes the expiration back.
            const SET_TICKS: u64 = 0x4008_5400;
            let timer = source(opened, file)?;
            let ticks = Arg::In(1u64.to_ne_bytes().to_vec());
            program.try_call("ioctl", libc::SYS_ioctl, [timer.into(), SET_TICKS.into(), ticks]);
            Ok(None)
        }
        file_kind::PIPE => {
            let empty = image.inode(watched.record.inode).is_some_and(|inode| inode.record.size == 0);
            let Some(pipe) = opened.inodes.get(&watched.record.inode).filter(|_| empty) else {
                return Ok(None);
            };
            let (write, read) = (pipe.fd.as_raw_fd(), pipe.read.as_ref().unwrap_or(&pipe.fd).as_raw_fd());
            program.call("write", 0, libc::SYS_write, [write.into(), Arg::In(vec![0]), 1u64.into()]);
            Ok(Some(read))
        }
        _ => Ok(None),
    }
}
