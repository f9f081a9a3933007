//! Ptys whose master is in the tree, and slaves whose master is gone.
//!
//! **What the kernel knows.** A pty is a pair of terminals: what is written to the master becomes input of the
//! slave, by the rules of the slave's settings, and output of the slave is read from the master. The slave is
//! the file /dev/pts/N of a devpts file system; the master is /dev/ptmx (5:2), a new pty at each open(2). A
//! session has at most one *controlling* terminal, which its leader took; those forked afterwards have it, too.
//! A terminal has a foreground process group. When the last master is closed, all slaves are *hung up*: they
//! give end of file and EIO for ever.
//!
//! *Saved*, through a copy of a master (pidfd_getfd(2)): number (TIOCGPTN), settings and window of the slave,
//! TIOCGPTLCK, TIOCGPKT, TIOCGEXCL (Linux 3.8); owner and mode of /dev/pts/N; what waits both ways ([`flight`]).
//! Of each task: whose terminal it has (stat), and its foreground group.
//!
//! *Restored*: ptys are opened, and those with lower numbers kept meanwhile, until the right number comes; if
//! somebody has it, another is taken, with a warning. Slaves by TIOCGPTPEER (Linux 4.13). A session's leader
//! takes its terminal (TIOCSCTTY) before it makes the others: `maker.rs`. A slave without a master gets one
//! that is closed at once. Settings last, when what waits is in place.
//!
//! *Refused*: a line discipline other than N_TTY; a master whose /dev/pts is not found.
//! *Lost*: locked settings (TIOCSLCKTRMIOS); a Ctrl-S in effect; unread status of packet mode; of a foreground
//! group without members its number (it is the leader's then); a Ctrl-V just typed. What waits at a slave that
//! nobody ever opened.
//! *Lost, and named*: that somebody outside has an end, too.
//!
//! [`flight`]: super::flight

use super::{Descriptor, FileKind, Made, OpenContext};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    options::Observer,
    task::{Process, show},
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{self, FileDesc, Pty, Tty, file_kind, inode_kind, pty_flags},
};
use ckpt_kernel::tty::{self, Switch};
use ckpt_proc::link::FdLink;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Gid, Mode, OFlags, Stat, Uid, major, makedev, minor},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
};
use zerocopy::IntoBytes;

/// See the module.
pub(crate) struct End;

/// The device /dev/ptmx.
const PTMX: (u32, u32) = (5, 2);
/// Major number of slaves; the minor number is that of the pty.
pub(crate) const SLAVE_MAJOR: u32 = 136;
/// Keeps a hung-up slave apart from the pty that has its number, and inode, now.
const DEAD: u64 = 1 << 63;

impl FileKind for End {
    fn kind(&self) -> u32 {
        file_kind::PTY
    }

    /// Masters. Whether a slave's is inside is known only when all descriptors are: see [`adopt`].
    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place()
            && descriptor.file_type() == FileType::CharacterDevice
            && descriptor.stat.st_rdev == makedev(PTMX.0, PTMX.1)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        let master = descriptor.copy()?;
        let index = tty::index(master)?;
        let (path, stat) = slave(descriptor, index)?;
        let settings = tty::settings(master)?;
        refuse_discipline(&settings)?;
        let mut flags = 0;
        for (switch, flag) in [
            (Switch::Locked, pty_flags::LOCKED),
            (Switch::Packet, pty_flags::PACKET),
            (Switch::Exclusive, pty_flags::MASTER_EXCLUSIVE),
        ] {
            flags |= if switch.get(master)? { flag } else { 0 };
        }
        let pty = Pty { tty: settings, index, flags, ..Pty::default() };
        let (inode, _) = objects.inode((stat.st_dev, stat.st_ino), || inode(&path, &stat, pty));
        let mut file = descriptor.record(file_kind::PTY)?;
        file.record.inode = inode;
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let made = context.inodes.get(&file.record.inode);
        let master = made.and_then(|made| made.read.as_ref());
        let master = master.ok_or_else(|| Error::bad_image(format!("{}: no pty", show(&file.path))))?;
        let flags = OFlags::from_bits_retain(file.record.flags);
        let doing = || format!("open an end of a pty, {}", show(&file.path));
        if is_master(file) {
            let fd = rustix::io::dup(master).doing(doing)?;
            // O_ASYNC is set when there is an owner: see owner.rs.
            rustix::fs::fcntl_setfl(&fd, flags & OFlags::NONBLOCK).doing(doing)?;
            return Ok(Some(fd));
        }
        let kept = OFlags::RWMODE | OFlags::NONBLOCK | OFlags::LARGEFILE | OFlags::DSYNC | OFlags::SYNC;
        let fd = tty::peer(master, (flags & kept).bits()).map_err(|e| Error::from(e).object(doing()))?;
        Ok(Some(fd))
    }
}

/// Whether an end of a pty is the master.
pub(crate) fn is_master(file: &model::File) -> bool {
    file.record.rdev == makedev(PTMX.0, PTMX.1)
}

/// The pty as a record.
fn inode(path: &[u8], stat: &Stat, pty: Pty) -> Object {
    let record = record::Inode {
        kind: inode_kind::PTY,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: 0,
        capacity: 0,
    };
    Object::Inode(model::Inode { record, path: path.to_vec(), details: pty.as_bytes().to_vec() })
}

/// Path and state of a master's slave.
fn slave(master: &Descriptor<'_>, index: u32) -> Result<(Vec<u8>, Stat)> {
    let dir = master.path().strip_suffix(b"/ptmx").unwrap_or(b"/dev");
    let beside = [dir, format!("/{index}").as_bytes()].concat();
    let below = [dir, format!("/pts/{index}").as_bytes()].concat();
    for path in [beside, below, format!("/dev/pts/{index}").into_bytes()] {
        let found = rustix::fs::stat(path.as_slice());
        if let Ok(stat) = found
            && stat.st_rdev == makedev(SLAVE_MAJOR, index)
        {
            return Ok((path, stat));
        }
    }
    let what = format!("the pty with the number {index} is of another devpts than /dev/pts");
    Err(Error::unsupported(what).advice("do it where its /dev/pts is mounted"))
}

/// Refuses what is not an ordinary terminal (PPP, SLIP, ...).
pub(crate) fn refuse_discipline(settings: &Tty) -> Result<()> {
    match settings.line_cc {
        [0, ..] => Ok(()),
        [line, ..] => {
            Err(Error::unsupported(format!("a terminal with line discipline {line} cannot be carried yet")))
        }
    }
}

/// The record of a slave that is hung up: its master is closed, or it was taken away (vhangup(2)).
pub(crate) fn hung_up(descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
    let stat = &descriptor.stat;
    let pty = Pty { index: minor(stat.st_rdev), flags: pty_flags::HUNG_UP, ..Pty::default() };
    let path = match descriptor.target() {
        FdLink::Path { path, .. } => path,
        _ => &descriptor.link,
    };
    let (inode, _) = objects.inode((stat.st_dev, stat.st_ino | DEAD), || inode(path, stat, pty));
    let mut file = descriptor.record(file_kind::PTY)?;
    file.record.inode = inode;
    Ok(file)
}

/// Where a pty can be reached while the tree stands still.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    pub(crate) inode: Objref,
    /// Device and inode of the slave.
    pub(crate) identity: (u64, u64),
    /// Who has the master, and by which number.
    pub(crate) master: Option<(&'a Process, i32, u32)>,
    /// Who has a slave.
    pub(crate) slave: Option<(&'a Process, i32)>,
}

/// Makes the terminals whose masters are in the tree part of the image. `tables` are its processes, with the
/// objrefs of their descriptor tables.
pub(crate) fn adopt<'a>(
    tables: impl IntoIterator<Item = (&'a Process, Objref)>,
    objects: &mut Objects,
) -> Result<Vec<Known<'a>>> {
    if !objects.has_file(&[file_kind::PTY, file_kind::EXTERNAL_TTY, file_kind::TTY_CURRENT]) {
        return Ok(Vec::new());
    }
    let mut known: BTreeMap<Objref, Known<'a>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut descs: Vec<(&Process, FileDesc)> = Vec::new();
    for (process, table) in tables.into_iter().filter(|(_, table)| seen.insert(*table)) {
        let Some(Object::Files(table)) = objects.table.get(&table) else { continue };
        descs.extend(table.descs.iter().map(|desc| (process, *desc)));
    }
    let identities: BTreeMap<Objref, (u64, u64)> = objects.inodes().collect();
    for (process, desc) in descs {
        let Some(Object::File(file)) = objects.table.get(&desc.file) else { continue };
        let (record, master) = (file.record, is_master(file));
        let inode = match record.kind {
            file_kind::PTY => Some(record.inode),
            file_kind::EXTERNAL_TTY if major(record.rdev) == SLAVE_MAJOR => {
                objects.known_inode((record.dev, record.ino))
            }
            file_kind::TTY_CURRENT => {
                current(process, desc.fd, objects).object(|| format!("fd {}", desc.fd))?
            }
            _ => None,
        };
        let Some(inode) = inode else { continue };
        if let Some(Object::File(file)) = objects.table.get_mut(&desc.file) {
            file.record.inode = inode;
            file.details.clear();
            if record.kind == file_kind::EXTERNAL_TTY {
                file.record.kind = file_kind::PTY;
            }
        }
        let identity = identities.get(&inode).copied().unwrap_or_default();
        let known = known.entry(inode).or_insert(Known { inode, identity, master: None, slave: None });
        if master {
            known.master.get_or_insert((process, desc.fd, record.flags));
        } else {
            known.slave.get_or_insert((process, desc.fd));
        }
    }
    Ok(known.into_values().collect())
}

/// The pty behind a descriptor of /dev/tty, if its master is inside.
fn current(process: &Process, fd: i32, objects: &Objects) -> Result<Option<Objref>> {
    let copy = process.descriptor(fd)?;
    let (major, index) = tty::device(&copy)?;
    Ok(if major == SLAVE_MAJOR { of_index(objects, index) } else { None })
}

/// The living pty with a number.
pub(crate) fn of_index(objects: &Objects, index: u32) -> Option<Objref> {
    let living = |pty: Pty| pty.flags & pty_flags::HUNG_UP == 0 && pty.index == index;
    objects.table.iter().find_map(|(objref, object)| match object {
        Object::Inode(inode) if inode.pty().is_some_and(living) => Some(*objref),
        _ => None,
    })
}

/// The controlling terminal of a process, if its master is inside.
pub(crate) fn controlling(process: &Process, objects: &Objects) -> Result<Objref> {
    let (major, index) = tty::split_device(process.stat()?.tty_nr as u32);
    let pty = (major == SLAVE_MAJOR).then(|| of_index(objects, index));
    Ok(pty.flatten().unwrap_or(0))
}

/// Looks at what only the slave's side tells, when all stands still.
pub(crate) fn look_at_slave(known: &Known<'_>, controls: bool, objects: &mut Objects) -> Result<()> {
    let Some((process, fd, _)) = known.master else { return Ok(()) };
    let mut flags = 0;
    if let Some((process, fd)) = known.slave {
        let exclusive = process.descriptor(fd).and_then(|slave| Ok(Switch::Exclusive.get(&slave)?))?;
        flags |= if exclusive { pty_flags::EXCLUSIVE } else { 0 };
    } else if !controls && !events(&process.descriptor(fd)?)?.contains(PollFlags::HUP) {
        // Nobody here has a slave, and it was not closed: it was never opened, or somebody outside has it.
        let outside = super::flight::held_outside(known.identity, &objects.members)?;
        flags |= if outside.is_none() { pty_flags::UNOPENED } else { 0 };
    }
    edit(objects, known.inode, |pty| pty.flags |= flags);
    Ok(())
}

/// Changes the details of a pty.
pub(crate) fn edit(objects: &mut Objects, inode: Objref, change: impl FnOnce(&mut Pty)) {
    let Some(Object::Inode(inode)) = objects.table.get_mut(&inode) else { return };
    let Some(mut pty) = inode.pty() else { return };
    change(&mut pty);
    inode.record.size = u64::from(pty.output) + u64::from(pty.input);
    inode.details = pty.as_bytes().to_vec();
}

/// What poll(2) says of a terminal right now; asking makes the kernel deliver what is on its way.
pub(crate) fn events(tty: &OwnedFd) -> Result<PollFlags> {
    let mut polled = [PollFd::new(tty, PollFlags::IN | PollFlags::OUT | PollFlags::PRI)];
    poll(&mut polled, Some(&Timespec::default())).doing(|| "poll a terminal".to_owned())?;
    let [polled] = polled;
    Ok(polled.revents())
}

/// Settings under which what is written to the master arrives unchanged and without an echo, and under which
/// changing to `settings` leaves alone what waits.
pub(crate) fn literal(settings: &Tty) -> Tty {
    const VMIN: usize = 7;
    let mut line_cc = [0; 20];
    if settings.lflag & libc::ICANON == 0
        && let Some(min) = line_cc.get_mut(VMIN)
    {
        *min = 1;
    }
    Tty { iflag: 0, oflag: 0, lflag: settings.lflag & libc::ICANON, line_cc, ..*settings }
}

/// The ptys of an image, with their paths.
fn ptys(image: &Image) -> impl Iterator<Item = (Objref, &model::Inode, Pty)> {
    image.objects.iter().filter_map(|(objref, object)| match object {
        Object::Inode(inode) => Some((*objref, inode, inode.pty()?)),
        _ => None,
    })
}

/// Paths of the slaves that an image wants to have again.
pub(crate) fn wanted(image: &Image) -> impl Iterator<Item = &[u8]> {
    let living = |(_, _, pty): &(Objref, &model::Inode, Pty)| pty.flags & pty_flags::HUNG_UP == 0;
    ptys(image).filter(living).map(|(_, inode, _)| inode.path.as_slice())
}

/// Makes all ptys of an image.
pub(crate) fn make_all(image: &Image, observer: &mut dyn Observer) -> Result<Vec<(Objref, Made)>> {
    let masters: BTreeMap<Objref, &model::File> = image
        .objects
        .values()
        .filter_map(|object| match object {
            Object::File(file) if file.record.kind == file_kind::PTY && is_master(file) => {
                Some((file.record.inode, file))
            }
            _ => None,
        })
        .collect();
    let mut sorted: Vec<_> = ptys(image).collect();
    // The living first: a number is of no use to the dead.
    sorted.sort_by_key(|(_, _, pty)| (pty.flags & pty_flags::HUNG_UP, pty.index));
    let mut spare = Vec::new();
    let mut made = Vec::new();
    for (objref, inode, pty) in sorted {
        let path = masters.get(&objref).map_or(b"/dev/ptmx".as_slice(), |file| &file.path);
        let (master, index) = obtain(path, pty.index, &mut spare)?;
        if index != pty.index && pty.flags & pty_flags::HUNG_UP == 0 {
            let old = show(&inode.path);
            observer.warn(&format!("{old} is taken: what was {old} has the number {index} now"));
        }
        let one = make(inode, &pty, master).object(|| format!("the pty {}", show(&inode.path)))?;
        made.push((objref, one));
    }
    Ok(made)
}

/// Opens masters until one has the number `wanted`, or it is clear that somebody has it: the kernel gives the
/// lowest number that is free. The others become `spare`.
fn obtain(path: &[u8], wanted: u32, spare: &mut Vec<(OwnedFd, u32)>) -> Result<(OwnedFd, u32)> {
    loop {
        if let Some(at) = spare.iter().position(|(_, index)| *index == wanted) {
            return Ok(spare.swap_remove(at));
        }
        let taken = spare.iter().any(|(_, index)| *index > wanted);
        match if taken { Ok(None) } else { open_master(path).map(Some) } {
            Ok(Some(master)) => {
                let index = tty::index(&master)?;
                spare.push((master, index));
            }
            Err(error) if spare.is_empty() => return Err(error),
            _ => {
                // The lowest: others that are still wanted are higher.
                let lowest =
                    spare.iter().enumerate().min_by_key(|(_, (_, index))| *index).map_or(0, |(at, _)| at);
                return Ok(spare.swap_remove(lowest));
            }
        }
    }
}

/// Makes a pty.
fn open_master(path: &[u8]) -> Result<OwnedFd> {
    let doing = || format!("open {}", show(path));
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    if rustix::fs::stat(path).doing(doing)?.st_rdev != makedev(PTMX.0, PTMX.1) {
        return Err(Error::failed(format!("{} is not the device that makes ptys", show(path))));
    }
    rustix::fs::open(path, flags, Mode::empty()).doing(doing)
}

/// Gives a new pty what it is to have before anybody has it as its terminal.
fn make(inode: &model::Inode, pty: &Pty, master: OwnedFd) -> Result<Made> {
    let slave = if pty.flags & pty_flags::UNOPENED == 0 {
        Switch::Locked.set(&master, false)?;
        let slave = tty::peer(&master, OFlags::RDWR.bits())?;
        own(&slave, &inode.record)?;
        slave
    } else {
        rustix::io::dup(&master).doing(|| "dup of a master".to_owned())?
    };
    // Later it would send SIGWINCH.
    tty::set_window(&master, &pty.tty)?;
    if pty.flags & pty_flags::HUNG_UP == 0 {
        tty::set_modes(&master, &literal(&pty.tty))?;
    }
    Ok(Made { read: Some(master), ..Made::new(slave) })
}

/// Owner and mode of /dev/pts/N.
fn own(slave: &OwnedFd, record: &record::Inode) -> Result<()> {
    let stat = rustix::fs::fstat(slave).doing(|| "stat".to_owned())?;
    if (stat.st_uid, stat.st_gid) != (record.uid, record.gid) {
        let (uid, gid) = (Uid::from_raw(record.uid), Gid::from_raw(record.gid));
        rustix::fs::fchown(slave, Some(uid), Some(gid)).doing(|| "chown".to_owned())?;
    }
    if (stat.st_mode ^ record.mode) & 0o7777 != 0 {
        let mode = Mode::from_raw_mode(record.mode & 0o7777);
        rustix::fs::fchmod(slave, mode).doing(|| "chmod".to_owned())?;
    }
    Ok(())
}

/// Closes the masters of those that are hung up; from here on they are.
pub(crate) fn hang_up(image: &Image, inodes: &mut BTreeMap<Objref, Made>) {
    for (objref, _, pty) in ptys(image) {
        if pty.flags & pty_flags::HUNG_UP != 0
            && let Some(made) = inodes.get_mut(&objref)
        {
            made.read = None;
        }
    }
}

/// Gives all ptys what they get when everything that waits is in place.
pub(crate) fn settle(image: &Image, inodes: &BTreeMap<Objref, Made>) -> Result<()> {
    for (objref, inode, pty) in ptys(image) {
        let Some(made) = inodes.get(&objref) else { continue };
        let Some(master) = &made.read else { continue };
        settle_one(&pty, master, made).object(|| format!("the pty {}", show(&inode.path)))?;
    }
    Ok(())
}

fn settle_one(pty: &Pty, master: &OwnedFd, made: &Made) -> Result<()> {
    events(master)?;
    events(&made.fd)?;
    tty::set_modes(master, &pty.tty)?;
    let is = |flag: u32| pty.flags & flag != 0;
    // The flag is that of the end it is set through.
    for (fd, flag) in [(&made.fd, pty_flags::EXCLUSIVE), (master, pty_flags::MASTER_EXCLUSIVE)] {
        if is(flag) {
            Switch::Exclusive.set(fd, true)?;
        }
    }
    if is(pty_flags::PACKET) {
        Switch::Packet.set(master, true)?;
    }
    Ok(Switch::Locked.set(master, is(pty_flags::LOCKED))?)
}

/// Puts what waited into a new pty: first what is to wait at the master, then at the slave. `at` is where in
/// both `data` begins.
pub(crate) fn fill(made: &Made, pty: &Pty, at: u64, data: &[u8]) -> Result<()> {
    let Some(master) = &made.read else {
        return Err(Error::bad_image("a pty without a master holds something"));
    };
    let output = u64::from(pty.output).saturating_sub(at).min(data.len() as u64) as usize;
    let (output, input) = data.split_at_checked(output).unwrap_or_default();
    for (fd, mut data) in [(&made.fd, output), (master, input)] {
        while !data.is_empty() {
            // More than a pty holds would wait for ever.
            if !events(fd)?.contains(PollFlags::OUT) {
                return Err(Error::bad_image("more waits in a pty than it can hold"));
            }
            let n = rustix::io::write(fd.as_fd(), data.get(..data.len().min(1024)).unwrap_or_default())
                .doing(|| "fill a pty".to_owned())?;
            data = data.get(n..).unwrap_or_default();
        }
    }
    Ok(())
}
