//! Restart: the ordered list of phases.
//!
//! | phase | why here |
//! |---|---|
//! | read | metadata, verified by sums before it is decoded |
//! | surroundings | root directory and mounts as the tasks are to have them |
//! | check | another machine: refused before anything is made |
//! | open | files and directories, by the coordinator, whose view of paths is the caller's; files that changed are refused |
//! | make | all processes, with their pids, parents, sessions and groups; from here on an error kills them |
//! | memory | areas, exe link, working directory: one program for each process |
//! | fill | page contents, read and verified beside; rseq needs its area in place |
//! | threads | all threads exist before any of them restores itself |
//! | descriptors | when nobody who shares the table needs ours any more, and every task there is can have a pidfd |
//! | late files | those of /proc show the tasks, by the ids they have now; then locks, which do not outlive a close |
//! | zombies | end; what their parents are sent is taken away again |
//! | restore | each thread by a program of its own, the leader also what they share; one that had ended ends |
//! | stop | those that were stopped, their parents not noticing |
//! | registers | calls in progress, then the slot, then registers and masks |
//! | settle | timers and watches of descriptors: time passes for them from now on |
//! | release | go; or, with a freezer, into it, and frozen before they are let go |

use crate::{
    error::{Context, Doing, Error, Result},
    freezer::Freezer,
    machine,
    options::{Input, Observer, Pids, RestartOptions, RestartReport, interrupted},
    plan::{Node, Terms, plan},
    puppets::{Puppets, Stage, label},
    resource::{
        file::{self, Made, OpenContext, directory::Removed, external, late::Late, lock},
        fs, layout, limits, mm,
        pages::{self, Target, Targets},
        pidns::Namespaces,
        signal,
    },
    restore::{self, Parts},
    scribe::Scribe,
    source,
    surroundings::Surroundings,
    task::ProcDir,
    terminal::{self, Loan},
};
use ckpt_image::{
    Chunk, Image, Object, Objref, model,
    record::{self, inode_kind, task_state, vma_kind},
};
use ckpt_kernel::{memory::Span, procfs, program::Program, puppet::Puppet, query, shared::SharedArea};
use ckpt_proc::maps::parse_maps;
use rustix::fs::OFlags;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// What the coordinator opened for the puppets, which are born with it.
pub(crate) struct Opened {
    pub(crate) files: BTreeMap<Objref, OwnedFd>,
    pub(crate) inherited: external::Inherited,
    pub(crate) inodes: BTreeMap<Objref, Made>,
    /// Unix sockets, until what waits in them is there.
    sockets: file::unix::Sockets,
    pub(crate) directories: BTreeMap<Objref, fs::Directories>,
    /// How what is opened late gets to them.
    pub(crate) late: Option<file::proc::Late>,
    /// How pidfds get to them, which entries of epolls may watch.
    pub(crate) pidfds: Option<Late>,
    /// Makes names.
    scribe: Scribe,
}

/// Recreates the tasks of the image in `input` as children of the caller.
///
/// # Errors
/// Whatever fails, no task and no file stays behind.
pub fn restart(options: RestartOptions, input: Input, observer: &mut dyn Observer) -> Result<RestartReport> {
    let begin = Instant::now();
    let mut reader = if options.inspect { source::inspect(input, observer)? } else { source::open(input)? };
    let mut image = reader.metadata()?;
    file::identity::rename(&mut image, &options.map_files)?;
    let image = image;
    let parts = parts(&image)?;
    machine::check_processor(&image, options.force_cpu)?;
    machine::warn_of_reboot(&image, observer);
    let freezer = options.freezer.as_deref().map(Freezer::named).transpose()?;
    let surroundings = Surroundings::enter(&options)?;
    let opened = open(&image, &options, &mut reader, observer)?;
    let grown = file::identity::check(&image, &opened.files, &opened.inodes, &options, observer)?;
    let areas = areas(&image)?;
    let mut puppets = make(&image, &options, &opened, &areas, &mut reader, observer)?;
    let new_pids = options.pids == Pids::New;
    let born = puppets.credentials()?;
    let mut materials = Materials { image: &image, new_pids, parts, opened, areas, born };
    let page_bytes = build(&mut puppets, &mut materials, reader, observer)?;
    interrupted(observer)?;
    let inherited = &materials.opened.inherited;
    let pid = |index| puppets.get(index).ok().map(|puppet| puppet.pid());
    let terminal = if options.stands_in { Loan::make(&image, inherited, pid)? } else { None };
    if terminal::is_lost(&image) {
        observer.warn("its session had a terminal outside, which it cannot have again: it has none now");
    }
    // The freezer's cgroup is one of our own surroundings.
    drop(surroundings);
    let opened = &materials.opened;
    if options.truncate_files {
        file::identity::truncate(&image, &grown, &opened.files)?;
    }
    opened.scribe.keep(puppets.get(0)?.pid())?;
    let released = puppets.release(freezer.as_ref());
    let root = released.inspect_err(|_| drop(opened.scribe.discard()))?;
    terminal::tell_window(&image, inherited, root.pid());
    Ok(RestartReport {
        id: image.header.id,
        root,
        terminal,
        comm: image
            .processes
            .first()
            .and_then(|p| p.threads.first())
            .map_or_else(Vec::new, |t| t.comm.clone()),
        processes: image.processes.len(),
        threads: materials.parts.iter().map(|p| p.process.living().count()).sum(),
        page_bytes,
        total: begin.elapsed(),
    })
}

/// The living processes of an image. The first to use a shared object restores it.
fn parts(image: &Image) -> Result<Vec<Parts<'_>>> {
    let mut restored = BTreeSet::new();
    let living = |(_, process): &(usize, &model::Process)| process.task.state != task_state::ZOMBIE;
    let processes = image.processes.iter().enumerate().filter(living);
    let parts = processes.map(|(index, process)| {
        let missing = || Error::bad_image("the process lacks an object").task(label(process));
        let task = &process.task;
        Ok(Parts {
            index,
            process,
            mm: image.mm(task.mm).ok_or_else(missing)?,
            table: image.files(task.files).ok_or_else(missing)?,
            fs: image.fs(task.fs).ok_or_else(missing)?,
            sighand: image.sighand(task.sighand).ok_or_else(missing)?,
            signal: image.signal(task.signal).ok_or_else(missing)?,
            makes_mm: restored.insert(task.mm),
            makes_files: restored.insert(task.files),
            makes_fs: restored.insert(task.fs),
        })
    });
    let parts: Vec<Parts<'_>> = parts.collect::<Result<_>>()?;
    match parts.first() {
        Some(first) if first.index == 0 => Ok(parts),
        _ => Err(Error::unsupported("an image whose root is a zombie cannot be restarted")),
    }
}

/// The address spaces of an image.
fn spaces(image: &Image) -> impl Iterator<Item = (Objref, &model::Mm)> {
    image.objects.iter().filter_map(|(objref, object)| match object {
        Object::Mm(mm) => Some((*objref, mm)),
        _ => None,
    })
}

/// Descriptors that we need besides those of the fullest table.
const OWN_FILES: u64 = 64;

/// Opens everything the puppets will need.
fn open(
    image: &Image,
    options: &RestartOptions,
    reader: &mut source::ImageReader,
    observer: &mut dyn Observer,
) -> Result<Opened> {
    let numbers = image.objects.values().filter_map(|object| match object {
        Object::Files(table) => table.descs.last().map(|desc| desc.fd),
        _ => None,
    });
    let most = numbers.max().and_then(|fd| u64::try_from(fd).ok()).unwrap_or(0);
    let limit = file::raise_nofile(most + OWN_FILES);
    if most >= limit {
        let what = format!("fd {most} is a descriptor above the limit of open files ({limit})");
        return Err(Error::failed(what).advice("raise it (ulimit -n)"));
    }
    // Our own standard descriptors may be what the task inherits. What epolls watch is put at its number
    // while all of ours are there.
    let apart = file::epoll::highest(image).max(file::pidfd::all(image).next().map(|_| 0));
    let lowest = apart.map_or(3, |fd| fd.max(most as i32).saturating_add(1)).max(3);
    let park = |fd: OwnedFd| match fd.as_raw_fd() >= lowest {
        true => Ok(fd),
        false => rustix::io::fcntl_dupfd_cloexec(&fd, lowest).map_err(|e| {
            Error::os(format!("a descriptor above {}", lowest - 1), e)
                .advice(format!("raise the limit of open files ({limit})"))
        }),
    };
    let (scribe, removed) = (Scribe::default(), Removed::default());
    let mut inodes = BTreeMap::new();
    for (objref, object) in &image.objects {
        let Object::Inode(inode) = object else { continue };
        let made = match inode.record.kind {
            inode_kind::UNLINKED => file::unlinked::make(inode, &scribe)?,
            inode_kind::PIPE => file::pipe::make(inode, &scribe)?,
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
        let read = made.read.map(&park).transpose()?;
        inodes.insert(*objref, Made { fd: park(made.fd)?, read, ..made });
    }
    if options.pids == Pids::Original {
        await_original(image, reader, observer)?;
    }
    for (objref, made) in file::pty::make_all(image, observer)? {
        let read = made.read.map(&park).transpose()?;
        inodes.insert(objref, Made { fd: park(made.fd)?, read, ..made });
    }
    let sockets = file::unix::make(image, &scribe, &park)?;
    let context = OpenContext {
        image,
        options,
        scribe: &scribe,
        removed: &removed,
        inodes: &inodes,
        sockets: &sockets,
    };
    let files = file::open_all(&context, &park)?;
    file::pty::hang_up(image, &mut inodes);
    let mut directories = BTreeMap::new();
    for (objref, object) in &image.objects {
        if let Object::Fs(fs) = object {
            directories.insert(*objref, fs::prepare(fs, &removed, &scribe, &park)?);
        }
    }
    let inherited = external::inherit(image, &options.inherit, &park)?;
    let late = file::proc::Late::of(image)?;
    let pidfds = file::pidfd::all(image).next().map(|_| Late::new(lowest, &park)).transpose()?;
    Ok(Opened { files, inherited, inodes, sockets, directories, late, pidfds, scribe })
}

/// In `checkpoint --kill PID | restart` the original has its terminals and the names of its sockets, and ends only when it
/// has seen all of the image off: then the image is taken in first, and waited for its end.
fn await_original(
    image: &Image,
    reader: &mut source::ImageReader,
    observer: &mut dyn Observer,
) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let taken =
        || file::pty::wanted(image).any(|path| rustix::fs::stat(path).is_ok()) || file::unix::taken(image);
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

/// Addresses that are taken here or in any address space of the image.
fn taken(image: &Image) -> Result<Vec<Span>> {
    let own = ProcDir::own()?.parse_long("maps", parse_maps)?;
    let own = own.iter().map(|m| Span { start: m.start, len: m.len() as usize });
    Ok(spaces(image).flat_map(|(_, mm)| layout::taken(mm)).chain(own).collect())
}

/// Maps every object shared anonymously, where it is in nobody's way.
fn areas(image: &Image) -> Result<BTreeMap<Objref, SharedArea>> {
    let vmas = spaces(image).flat_map(|(_, mm)| &mm.vmas).map(|v| v.record);
    let shared: BTreeSet<Objref> =
        vmas.filter(|r| r.kind == vma_kind::ANON_SHARED).map(|r| r.object).collect();
    let mut taken = taken(image)?;
    let mut areas = BTreeMap::new();
    for (objref, inode) in shared.into_iter().filter_map(|o| Some((o, image.inode(o)?))) {
        let len = inode.record.size.next_multiple_of(record::PAGE_SIZE as u64);
        if len == 0 || len > layout::TASK_SIZE {
            return Err(Error::bad_image(format!("shared object {objref} of {len} bytes")));
        }
        let start = layout::free_range(&mut taken, len as usize)?;
        areas.insert(objref, SharedArea::map(Span { start, len: len as usize })?);
    }
    Ok(areas)
}

/// Makes all processes.
fn make(
    image: &Image,
    options: &RestartOptions,
    opened: &Opened,
    areas: &BTreeMap<Objref, SharedArea>,
    reader: &mut source::ImageReader,
    observer: &mut dyn Observer,
) -> Result<Puppets> {
    let namespaces = Namespaces::of(&image.processes);
    let home = |id| namespaces.home(id);
    let terms = Terms { apart: options.pids == Pids::Namespace, home: Some(&home) };
    let plan = plan(&nodes(&image.processes)?, &terms)?;
    let mut threads: BTreeMap<Objref, usize> = BTreeMap::new();
    for process in &image.processes {
        *threads.entry(process.task.mm).or_default() += process.threads.len();
    }
    let len = Puppet::slot_len(threads.into_values().max().unwrap_or(1));
    let start = layout::free_range(&mut taken(image)?, len)?;
    let stage = Stage {
        processes: &image.processes,
        pids: options.pids,
        namespaces,
        own_proc: options.mntns && options.pids == Pids::Namespace,
        slot: Span { start, len },
        areas: areas.values().map(SharedArea::span).collect(),
        terminals: opened.inodes.iter().map(|(objref, made)| (*objref, made.fd.as_raw_fd())).collect(),
        park: park_signal(image)?,
    };
    Puppets::make(&stage, &plan, reader, observer)
}

fn nodes(processes: &[model::Process]) -> Result<Vec<Node>> {
    let by_pid: BTreeMap<i32, &model::Process> = processes.iter().map(|p| (p.task.pid, p)).collect();
    processes.iter().map(|p| node(p, by_pid.get(&p.task.ppid).copied())).collect()
}

fn node(process: &model::Process, parent: Option<&model::Process>) -> Result<Node> {
    let record::Task { pid, ppid, pgid, sid, exit_signal, state, .. } = process.task;
    let (levels, parents) = (process.levels(), parent.map_or(&[][..], |parent| parent.levels()));
    let path = |levels: &[record::PidLevel]| levels.iter().map(|level| level.pidns).collect::<Vec<_>>();
    let depth = levels.len() - usize::from(process.is_init());
    let inside = path(levels).starts_with(&path(parents));
    if !inside || process.is_init() && depth != parents.len() {
        let what = "its pid namespace is not below its parent's";
        return Err(Error::bad_image(what).task(label(process)));
    }
    // Of its group as it is seen by itself and by its parent.
    let seen = |depth: usize| depth.checked_sub(1).and_then(|at| levels.get(at)).map_or(pgid, |l| l.pgid);
    Ok(Node {
        pid,
        ppid,
        pgid,
        sid,
        exit_signal,
        zombie: state == task_state::ZOMBIE,
        pidns: process.pidns(),
        init: process.is_init(),
        bound: !levels.is_empty() && seen(levels.len()) == 0 && seen(parents.len()) == 0,
    })
}

/// A signal that is pending nowhere.
fn park_signal(image: &Image) -> Result<i32> {
    let threads = image.processes.iter().flat_map(|p| &p.threads).flat_map(|t| &t.pending);
    let shared = image.objects.values().filter_map(|object| match object {
        Object::Signal(signal) => Some(&signal.pending),
        _ => None,
    });
    let pending = signal::mask_of(threads.chain(shared.flatten()));
    let never = [libc::SIGKILL, libc::SIGSTOP, libc::SIGCONT, libc::SIGTRAP, libc::SIGSEGV, libc::SIGCHLD];
    [libc::SIGURG, libc::SIGWINCH, libc::SIGUSR1, libc::SIGUSR2, libc::SIGIO, libc::SIGPROF]
        .into_iter()
        .chain(1..32)
        .filter(|signal| !never.contains(signal))
        .find(|signal| pending & 1 << (signal - 1) == 0)
        .ok_or_else(|| Error::unsupported("every signal is pending"))
}

/// What the processes of an image are built from.
struct Materials<'a> {
    image: &'a Image,
    new_pids: bool,
    parts: Vec<Parts<'a>>,
    opened: Opened,
    areas: BTreeMap<Objref, SharedArea>,
    /// What the puppets' credentials are at first.
    born: model::Cred,
}

impl<'a> Materials<'a> {
    /// One phase: something is done to each living process. What it begins to run goes on while the next
    /// one's turn comes.
    fn each(
        &self,
        puppets: &mut Puppets,
        observer: &mut dyn Observer,
        mut phase: impl FnMut(&Parts<'a>, &mut Puppet, &mut dyn Observer) -> Result<()>,
    ) -> Result<()> {
        self.parts.iter().try_for_each(|p| {
            interrupted(observer)?;
            puppets.get(p.index).and_then(|puppet| phase(p, puppet, observer)).task(|| label(p.process))
        })
    }

    /// Waits for the end of what a phase has begun.
    fn finish(&self, puppets: &mut Puppets, observer: &mut dyn Observer) -> Result<()> {
        self.each(puppets, observer, |_, puppet, _| Ok(puppet.finish()?))
    }

    /// Where puppets have what is shared anonymously, until they are done with it.
    fn staging(&self) -> layout::Staging {
        self.areas.iter().map(|(objref, area)| (*objref, area.span())).collect()
    }
}

/// Turns fresh puppets into the processes of the image. Returns the bytes of pages.
fn build(
    puppets: &mut Puppets,
    materials: &mut Materials<'_>,
    mut reader: source::ImageReader,
    observer: &mut dyn Observer,
) -> Result<u64> {
    let page_bytes = memory(puppets, materials, &mut reader, observer)?;
    file::pty::settle(materials.image, &materials.opened.inodes)?;
    let Opened { sockets, inodes, .. } = &mut materials.opened;
    file::unix::settle(materials.image, sockets, inodes)?;
    threads(puppets, materials, observer)?;
    let tids = pids(puppets, materials.image, Puppet::tid);
    file::pidfd::open_late(materials.image, &tids, puppets, &mut materials.opened.files)?;
    let materials = &*materials;
    descriptors(puppets, materials, observer)?;
    late_files(puppets, materials, observer)?;
    // A descriptor of the file that is closed later would take a process's locks with it.
    let takers = lock::takers(materials.image, &materials.parts)?;
    materials.each(puppets, observer, |p, puppet, _| match takers.get(&p.index) {
        Some(locks) => lock::restore(puppet, locks),
        None => Ok(()),
    })?;
    zombies(puppets, materials)?;
    let tasks = pids(puppets, materials.image, Puppet::own_tid);
    let ids = restore::Ids { tasks, groups: groups(puppets, materials)? };
    materials.each(puppets, observer, |p, puppet, observer| {
        // Before it may no longer be looked at by the likes of us.
        limits::restore_oom(puppet.pid(), p.signal, observer);
        mm::restore_coredump_filter(puppet.tid(puppet.first()), p.mm)?;
        restore::tasks(puppet, materials.image, p, &ids, &materials.born)
    })?;
    materials.finish(puppets, observer)?;
    let (stopped, running): (Vec<&Parts<'_>>, Vec<_>) = materials
        .parts
        .iter()
        .partition(|p| p.process.task.state == task_state::STOPPED && !shares_mm(&materials.parts, p));
    // A stopped child's parent is told, by a signal it has had once: that must be taken from its
    // queue while it can still run a program.
    for p in stopped.into_iter().rev() {
        stop(puppets, &materials.parts, p).task(|| label(p.process))?;
    }
    registers(puppets, &running)?;
    file::settle(materials.image, &materials.opened.files)?;
    Ok(page_bytes)
}

/// Every descriptor in its place.
fn descriptors(puppets: &mut Puppets, materials: &Materials<'_>, observer: &mut dyn Observer) -> Result<()> {
    let additions = file::epoll::additions(materials.image, &materials.parts)?;
    materials.each(puppets, observer, |p, puppet, _| {
        let entries = additions.get(&p.process.task.files).map_or(&[][..], Vec::as_slice);
        if p.makes_files {
            restore::descriptors(puppet, materials.image, p, entries, &materials.opened)
        } else {
            Ok(())
        }
    })?;
    materials.finish(puppets, observer)
}

/// Address spaces, directories and page contents.
fn memory(
    puppets: &mut Puppets,
    materials: &Materials<'_>,
    reader: &mut source::ImageReader,
    observer: &mut dyn Observer,
) -> Result<u64> {
    let Materials { image, opened, areas, .. } = materials;
    let staging = materials.staging();
    let mut spaces = BTreeMap::new();
    materials.each(puppets, observer, |p, puppet, _| restore::memory(puppet, image, p, opened, &staging))?;
    materials.each(puppets, observer, |p, puppet, _| {
        puppet.finish()?;
        if p.makes_mm {
            restore::check_vdso(puppet.pid(), image, p)?;
            spaces.insert(p.process.task.mm, target(puppet, p)?);
        }
        Ok(())
    })?;
    // What a filler leaves in the areas goes with the targets.
    let targets = Targets { spaces, areas, inodes: &opened.inodes };
    let bytes = fill(reader, image, &targets, observer)?;
    file::unlinked::set_times(image, &opened.inodes);
    // Seals may forbid both contents and mappings.
    file::memfd::seal(image, &opened.inodes)?;
    Ok(bytes)
}

/// The threads of all processes, and what is done to memory that is filled.
fn threads(puppets: &mut Puppets, materials: &Materials<'_>, observer: &mut dyn Observer) -> Result<()> {
    let staging = materials.staging();
    materials.each(puppets, observer, |p, puppet, _| {
        restore::threads(puppet, p.process, materials.new_pids)?;
        if materials.new_pids {
            restore::rename_tids(puppet, p)?;
        }
        if p.makes_mm { restore::finish(puppet, p, &staging) } else { Ok(()) }
    })?;
    materials.finish(puppets, observer)
}

/// Files that show the tasks themselves, now that they all exist.
fn late_files(puppets: &mut Puppets, materials: &Materials<'_>, observer: &mut dyn Observer) -> Result<()> {
    let Materials { image, opened, .. } = materials;
    if opened.late.is_none() {
        return Ok(());
    }
    let mut tasks = file::proc::Tasks::new();
    for (index, process) in image.processes.iter().enumerate() {
        let Ok(puppet) = puppets.get(index) else { continue };
        let tids = process.threads.iter().map(|t| t.record.tid).enumerate();
        tasks.extend(tids.map(|(thread, tid)| (tid, (puppet.tid(thread), puppet.own_tid(thread)))));
    }
    let files = file::proc::open_all(image, &tasks, observer)?;
    materials.each(puppets, observer, |p, puppet, _| {
        if p.makes_files { file::proc::hand_over(puppet, image, p, opened, &files) } else { Ok(()) }
    })
}

/// Makes processes that are not stopped ready to go.
fn registers(puppets: &mut Puppets, running: &[&Parts<'_>]) -> Result<()> {
    let mut going = Vec::with_capacity(running.len());
    for p in running {
        let calls = puppets.get(p.index).and_then(|puppet| restore::calls(puppet, p));
        going.push(calls.task(|| label(p.process))?);
    }
    // Whoever shares an address space is done with the slot only now.
    for p in running.iter().filter(|p| p.makes_mm) {
        puppets.get(p.index)?.close_slot().task(|| label(p.process))?;
    }
    for (p, going) in running.iter().zip(going) {
        let puppet = puppets.get(p.index)?;
        restore::registers(puppet, p, going).task(|| label(p.process))?;
        restore::masks(puppet, p).task(|| label(p.process))?;
        if p.process.task.state == task_state::STOPPED {
            query::kill(puppet.pid(), libc::SIGSTOP).task(|| label(p.process))?;
        }
    }
    Ok(())
}

/// Whether another process has the same address space.
fn shares_mm(parts: &[Parts<'_>], p: &Parts<'_>) -> bool {
    parts.iter().any(|other| other.index != p.index && other.process.task.mm == p.process.task.mm)
}

/// Finishes a process that was stopped by a job-control signal, and stops it.
fn stop(puppets: &mut Puppets, parts: &[Parts<'_>], p: &Parts<'_>) -> Result<()> {
    let puppet = puppets.get(p.index)?;
    let going = restore::calls(puppet, p)?;
    puppet.close_slot()?;
    restore::registers(puppet, p, going)?;
    puppet.stop()?;
    restore::masks(puppet, p)?;
    let task = &p.process.task;
    let Some(parent) = parts.iter().find(|parent| parent.process.task.pid == task.ppid) else {
        return Ok(());
    };
    if task.exit_code == 0 {
        puppets.see_stop(parent.index, p.index)?;
    }
    // One that was pending before is still the only one.
    if signal::mask_of(&parent.signal.pending) & 1 << (libc::SIGCHLD - 1) == 0 {
        puppets.forget_signal(parent.index, libc::SIGCHLD)?;
    }
    Ok(())
}

/// Where the pages of an address space go.
fn target<'a>(puppet: &mut Puppet, parts: &Parts<'a>) -> Result<Target<'a>> {
    let pid = puppet.pid();
    let mem = procfs::open(&format!("{pid}/mem"), OFlags::WRONLY);
    let mem = mem.doing(|| "open /proc/PID/mem".to_owned())?;
    let filler = pages::filler(puppet, &parts.mm.vmas);
    Ok(Target { pid, label: label(parts.process), vmas: &parts.mm.vmas, mem: mem.into(), filler })
}

/// Reads all page chunks and puts them in place, up to the verified end of the image.
fn fill(
    reader: &mut source::ImageReader,
    image: &Image,
    targets: &Targets<'_>,
    observer: &mut dyn Observer,
) -> Result<u64> {
    let mut bytes = 0;
    let mut in_order = |chunk: &Chunk| {
        interrupted(observer)?;
        let len = chunk.data().len() as u64;
        bytes += len;
        observer.advance(len);
        targets.fill_contents(image, chunk)
    };
    source::chunks(reader, &mut in_order, &|chunk| targets.fill_memory(chunk))?;
    Ok(bytes)
}

/// Lets those end that had ended.
fn zombies(puppets: &mut Puppets, materials: &Materials<'_>) -> Result<()> {
    let image = materials.image;
    let by_pid: BTreeMap<i32, usize> = image.processes.iter().map(|p| p.task.pid).zip(0..).collect();
    for (index, process) in image.processes.iter().enumerate() {
        let task = &process.task;
        if task.state == task_state::ZOMBIE {
            let dress = puppets
                .get(index)
                .and_then(|puppet| restore::zombie(puppet, image, process, &materials.born));
            let parent = by_pid.get(&task.ppid).copied();
            dress
                .and_then(|()| puppets.end(index, task.exit_code, task.exit_signal, parent))
                .task(|| label(process))?;
        }
    }
    Ok(())
}

/// The id each process group that a file signals has now, asked of one that is in it.
fn groups(puppets: &mut Puppets, materials: &Materials<'_>) -> Result<BTreeMap<i32, i32>> {
    let mut groups = BTreeMap::new();
    for group in file::owner::groups(materials.image) {
        let Some(p) = materials.parts.iter().find(|p| p.process.task.pgid == group) else { continue };
        let mut program = Program::new();
        program.call("getpgid", 0, libc::SYS_getpgid, [0u64.into()]);
        let outcomes =
            puppets.get(p.index)?.run(0, program).map_err(|e| Error::from(e).task(label(p.process)))?;
        groups.extend(outcomes.first().map(|outcome| (group, outcome.result as i32)));
    }
    Ok(groups)
}

/// The id each task of the image has now: to itself (`own_tid`), or to us (`tid`).
fn pids(puppets: &mut Puppets, image: &Image, id: impl Fn(&Puppet, usize) -> i32) -> BTreeMap<i32, i32> {
    let mut pids = BTreeMap::new();
    for (index, process) in image.processes.iter().enumerate() {
        let Ok(puppet) = puppets.get(index) else { continue };
        let tids = process.threads.iter().map(|t| t.record.tid).enumerate();
        pids.extend(tids.map(|(thread, tid)| (tid, id(puppet, thread))));
    }
    pids
}
