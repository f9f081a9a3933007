//! Leaks: what of the tree has a user outside of it.
//!
//! The kernel does not show its counts of users, so those outside are looked for: one pass over
//! /proc, and only when it was asked for. A *user* of a description has a descriptor of it
//! (kcmp(2)); a user of a pipe or of an unlinked file has a description of its inode, or maps it
//! MAP_SHARED; a user of a connection over a unix socket has its other end (sock_diag(7)); a user of
//! an address space, descriptor table, ... is a task (kcmp(2)). A private mapping is no user: what it
//! sees of others' writes is unspecified (mmap(2)). Nor is who opened a file with a name by that name.
//!
//! Not found: descriptions on their way through a socket, or that the kernel alone holds (io_uring,
//! loop devices); the other end of a socket of the network; tables that a thread outside has of its
//! own; processes that are not in our /proc.

use crate::{
    advice::Means,
    error::{Doing, Error, ErrorKind, Result},
    objects::Objects,
    resource::file::{pty, unix},
    task::{Process, show},
    tree::has_ended,
};
use ckpt_image::{
    Object, Objref, model,
    record::{file_kind, inode_kind, vma_kind},
};
use ckpt_kernel::{procfs, query::Kcmp};
use ckpt_proc::maps::{Mapping, parse_maps};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What a process can share with another as a whole, and what it is called.
const OF_TASKS: [(Kcmp, &str); 4] = [
    (Kcmp::Vm, "memory"),
    (Kcmp::Files, "table of file descriptors"),
    (Kcmp::Fs, "working directory"),
    (Kcmp::Sighand, "table of signal handlers"),
];

/// A process that uses an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: i32,
    /// Its name.
    pub comm: Vec<u8>,
    /// By what it holds the object: `fd 3`, `mapping 7f00-7f10`; none when the task itself does.
    pub place: Option<String>,
}

impl Holder {
    fn new(process: &Process, place: Option<String>) -> Holder {
        Holder { pid: process.pid, comm: process.comm.clone(), place }
    }

    fn label(&self) -> String {
        format!("pid {} ({})", self.pid, show(&self.comm))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label())?;
        self.place.as_ref().map_or(Ok(()), |place| write!(f, ", {place}"))
    }
}

/// An object of the tree with a user outside. `Display` is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The object, as `pipe` or `unlinked file /tmp/x`.
    pub what: String,
    /// Who has it in the tree: one of its users.
    pub inside: Holder,
    /// Who has it outside.
    pub outside: Holder,
}

impl Leak {
    fn shared(&self) -> String {
        format!("its {} is shared with {}, outside the tree", self.what, self.outside)
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.inside, self.shared())
    }
}

/// What a look at everybody outside has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// By process outside: each object once.
    pub(crate) leaks: Vec<Leak>,
    /// How many processes could not be looked into.
    pub(crate) hidden: usize,
}

impl Found {
    /// What to say of processes that could not be looked into.
    pub(crate) fn unknown(&self) -> Option<String> {
        let processes =
            if self.hidden == 1 { "1 process".into() } else { format!("{} processes", self.hidden) };
        (self.hidden != 0).then(|| {
            format!("{processes} outside the tree could not be looked into: they may share something")
        })
    }

    /// Refuses a container that is not closed.
    pub(crate) fn refuse(&self) -> Result<()> {
        let Some(leak) = self.leaks.first() else { return Ok(()) };
        let more = match self.leaks.len() {
            1 => String::new(),
            n => format!(" (-v lists {} more)", n - 1),
        };
        let error = Error::unsupported(leak.shared() + &more)
            .task(leak.inside.label())
            .advice("let one of them close it")
            .or(Means::Subtree);
        Err(match &leak.inside.place {
            Some(place) => error.object(place),
            None => error,
        })
    }
}

/// Looks for users of the tree's objects among all other processes but `ours`, which end with us. In
/// a tree that runs, what changes meanwhile may be missed.
pub(crate) fn find(objects: &Objects, ours: &[i32]) -> Result<Found> {
    let contents = Contents::of(objects)?;
    let mut found = Found::default();
    for pid in procfs::numbers(".").doing(|| "list /proc".to_owned())? {
        if objects.members.contains(&pid) || ours.contains(&pid) {
            continue;
        }
        let (looked, alive) = match Process::open(pid) {
            Ok(process) => {
                let looked = Look { process: &process, objects, contents: &contents }.look();
                (looked, !has_ended(&process))
            }
            Err(error) => (Err(error), false),
        };
        match looked {
            Ok(leaks) => found.leaks.extend(leaks),
            Err(error) if alive || error.kind == ErrorKind::Permission => found.hidden += 1,
            // It has ended.
            Err(_) => {}
        }
    }
    found.leaks.iter().for_each(|leak| tracing::info!("{leak}"));
    Ok(found)
}

/// Inodes of the tree whose contents nobody can have by a name, by device and inode.
#[derive(Default)]
struct Contents {
    /// What each is, a process that has it, and by what.
    users: BTreeMap<(u64, u64), (String, i32, String)>,
    /// Inode numbers of those that can be mapped.
    mappable: BTreeSet<u64>,
}

impl Contents {
    fn of(objects: &Objects) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut sockets = BTreeMap::new();
        for (pid, table) in objects.holders(Kcmp::Files) {
            let Some(Object::Files(table)) = objects.table.get(&table) else { continue };
            for desc in &table.descs {
                let Some(Object::File(file)) = objects.table.get(&desc.file) else { continue };
                contents.add_file(file, pid, || format!("fd {}", desc.fd));
                if [file_kind::UNIX, file_kind::EXTERNAL_SOCKET].contains(&file.record.kind) {
                    sockets.entry((file.record.dev, file.record.ino)).or_insert((pid, desc.fd));
                }
            }
        }
        contents.add_peers(&sockets)?;
        let anonymous: BTreeMap<Objref, (u64, u64)> = objects.inodes().collect();
        for (pid, mm) in objects.holders(Kcmp::Vm) {
            let Some(Object::Mm(mm)) = objects.table.get(&mm) else { continue };
            for vma in mm.vmas.iter().map(|vma| &vma.record) {
                let place = || format!("mapping {:x}-{:x}", vma.start, vma.end);
                match (vma.kind, objects.table.get(&vma.object)) {
                    (vma_kind::ANON_SHARED, Some(Object::Inode(inode))) => {
                        let Some(dev_ino) = anonymous.get(&vma.object) else { continue };
                        let what = match inode.record.kind {
                            inode_kind::SHMEM => "shared memory".to_owned(),
                            _ => format!("shared file {}", show(&inode.path)),
                        };
                        contents.add(*dev_ino, true, || (what, pid, place()));
                    }
                    (vma_kind::FILE_SHARED, Some(Object::File(file))) => contents.add_file(file, pid, place),
                    _ => {}
                }
            }
        }
        Ok(contents)
    }

    /// Adds the other ends of unix sockets, which the tree has not.
    fn add_peers(&mut self, sockets: &BTreeMap<(u64, u64), (i32, i32)>) -> Result<()> {
        let peers = if sockets.is_empty() { BTreeMap::new() } else { unix::peers()? };
        for ((dev, ino), (pid, fd)) in sockets {
            let peer = peers.get(ino).map(|peer| (*dev, *peer)).filter(|peer| !sockets.contains_key(peer));
            let user = || ("connection over a unix socket".to_owned(), *pid, format!("fd {fd}"));
            peer.into_iter().for_each(|peer| self.add(peer, false, user));
        }
        Ok(())
    }

    fn add_file(&mut self, file: &model::File, pid: i32, place: impl FnOnce() -> String) {
        let kind = file.record.kind;
        // All masters are one inode.
        let slave = kind == file_kind::PTY && !pty::is_master(file);
        let mappable = [file_kind::UNLINKED, file_kind::MEMFD].contains(&kind);
        if slave || mappable || [file_kind::PIPE, file_kind::EXTERNAL_PIPE].contains(&kind) {
            let dev_ino = (file.record.dev, file.record.ino);
            self.add(dev_ino, mappable, || (name(file), pid, place()));
        }
    }

    fn add(&mut self, dev_ino: (u64, u64), mappable: bool, user: impl FnOnce() -> (String, i32, String)) {
        self.users.entry(dev_ino).or_insert_with(user);
        if mappable {
            self.mappable.insert(dev_ino.1);
        }
    }
}

/// What a file is called.
fn name(file: &model::File) -> String {
    let path = show(&file.path);
    match file.record.kind {
        file_kind::PIPE | file_kind::EXTERNAL_PIPE if path.starts_with('/') => format!("FIFO {path}"),
        file_kind::PIPE | file_kind::EXTERNAL_PIPE => "pipe".to_owned(),
        file_kind::UNLINKED => format!("unlinked file {path}"),
        file_kind::MEMFD => format!("memfd {}", path.trim_start_matches("/memfd:")),
        file_kind::EXTERNAL_TTY | file_kind::PTY | file_kind::TTY_CURRENT => format!("terminal {path}"),
        file_kind::EXTERNAL_SOCKET => "socket".to_owned(),
        file_kind::UNIX => "unix socket".to_owned(),
        _ => format!("open file description of {path}"),
    }
}

/// A look at one process outside.
struct Look<'a> {
    process: &'a Process,
    objects: &'a Objects,
    contents: &'a Contents,
}

impl Look<'_> {
    fn look(&self) -> Result<Vec<Leak>> {
        let stat = self.process.stat()?;
        // Threads of the kernel only borrow memory.
        if stat.is_kthread() || has_ended(self.process) {
            return Ok(Vec::new());
        }
        // A main thread that has ended holds nothing; any other holds what they share.
        let pid = self.process.pid;
        let living = |tid: &i32| !stat.state.has_ended() || *tid != pid;
        let tid = self.process.tids()?.into_iter().find(living).unwrap_or(pid);
        let mut leaks = Vec::new();
        let mut whole = BTreeSet::new();
        for (kind, what) in OF_TASKS {
            if let Some(inside) = self.objects.holder(kind, tid)? {
                whole.insert(kind);
                leaks.push(self.leak(what.to_owned(), (inside, None), None));
            }
        }
        let mut seen = BTreeSet::new();
        if !whole.contains(&Kcmp::Files) {
            self.descriptors(tid, &mut seen, &mut leaks)?;
        }
        if !whole.contains(&Kcmp::Vm) && !self.contents.mappable.is_empty() {
            self.mappings(tid, &mut seen, &mut leaks)?;
        }
        // A child that a running tree has made since its members were listed is no stranger.
        if !leaks.is_empty() && self.is_below()? {
            leaks.clear();
        }
        Ok(leaks)
    }

    fn leak(&self, what: String, (pid, place): (i32, Option<String>), outside: Option<String>) -> Leak {
        let comm = Process::open(pid).map_or_else(|_| b"?".to_vec(), |process| process.comm);
        Leak { what, inside: Holder { pid, comm, place }, outside: Holder::new(self.process, outside) }
    }

    /// The contents with this identity, once.
    fn contents(&self, dev_ino: (u64, u64), seen: &mut BTreeSet<(u64, u64)>, place: String) -> Option<Leak> {
        let (what, pid, inside) = self.contents.users.get(&dev_ino).filter(|_| seen.insert(dev_ino))?;
        Some(self.leak(what.clone(), (*pid, Some(inside.clone())), Some(place)))
    }

    fn descriptors(&self, tid: i32, seen: &mut BTreeSet<(u64, u64)>, leaks: &mut Vec<Leak>) -> Result<()> {
        let mut descriptions = BTreeSet::new();
        let dir = self.process.proc.dir(&format!("task/{tid}/fd"))?;
        for fd in dir.numbers(".")? {
            // It may have been closed since.
            let Ok(dev_ino) = dir.identity(&fd.to_string()) else { continue };
            let place = format!("fd {fd}");
            if self.contents.users.contains_key(&dev_ino) {
                leaks.extend(self.contents(dev_ino, seen, place));
                continue;
            }
            let Ok(Some((pid, inside, objref))) = self.objects.same_description(dev_ino, tid, fd) else {
                continue;
            };
            let Some(Object::File(file)) = self.objects.table.get(&objref) else { continue };
            if descriptions.insert(objref) {
                leaks.push(self.leak(name(file), (pid, Some(format!("fd {inside}"))), Some(place)));
            }
        }
        Ok(())
    }

    fn mappings(&self, tid: i32, seen: &mut BTreeSet<(u64, u64)>, leaks: &mut Vec<Leak>) -> Result<()> {
        let maps = self.process.proc.parse_long(&format!("task/{tid}/maps"), parse_maps)?;
        let candidate = |m: &&Mapping| m.shared && self.contents.mappable.contains(&m.inode);
        for m in maps.iter().filter(candidate) {
            // Some file systems show a device of their own in maps; the link needs a capability.
            let name = format!("map_files/{:x}-{:x}", m.start, m.end);
            let shown = (rustix::fs::makedev(m.dev.0, m.dev.1), m.inode);
            let dev_ino = self.process.proc.identity(&name).unwrap_or(shown);
            leaks.extend(self.contents(dev_ino, seen, format!("mapping {:x}-{:x}", m.start, m.end)));
        }
        Ok(())
    }

    /// Whether the process descends from a member of the tree.
    fn is_below(&self) -> Result<bool> {
        let mut ppid = self.process.stat()?.ppid;
        while ppid > 0 && !self.objects.members.contains(&ppid) {
            ppid = Process::open(ppid)?.stat()?.ppid;
        }
        Ok(ppid > 0)
    }
}
