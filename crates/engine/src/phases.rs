//! The phases in which fresh puppets become the processes of an image. Their order, and why it is that, is at the head
//! of `restart.rs`.

use crate::{
    error::{Context, Doing, Error, Result},
    opened::Opened,
    options::{Observer, interrupted},
    puppets::{Puppets, label},
    resource::{
        cred,
        file::{self, late::Tasks, lock},
        layout, limits, mm,
        pages::{self, Target, Targets},
        signal,
    },
    restore::{self, Parts},
    source,
};
use ckpt_image::{Chunk, Image, Objref, record::task_state};
use ckpt_kernel::{procfs, program::Program, puppet::Puppet, query, shared::SharedArea};
use rustix::fs::OFlags;
use std::collections::BTreeMap;

/// What the processes of an image are built from.
pub(crate) struct Materials<'a> {
    pub(crate) image: &'a Image,
    pub(crate) new_pids: bool,
    pub(crate) parts: Vec<Parts<'a>>,
    pub(crate) opened: Opened,
    pub(crate) areas: BTreeMap<Objref, SharedArea>,
    /// What the puppets' credentials are at first.
    pub(crate) born: cred::Born,
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

/// A descriptor table for each process that has had one in common with others.
pub(crate) fn tables(
    puppets: &mut Puppets,
    materials: &Materials<'_>,
    observer: &mut dyn Observer,
) -> Result<()> {
    let Some(private) = &materials.opened.private else { return Ok(()) };
    materials.each(puppets, observer, |p, puppet, _| private.leave(puppet, p.process.task.files))
}

/// Every descriptor in its place. Ours are closed meanwhile, as far as they are of no use any more.
pub(crate) fn descriptors(
    puppets: &mut Puppets,
    materials: &mut Materials<'_>,
    observer: &mut dyn Observer,
) -> Result<()> {
    let additions = file::epoll::additions(materials.image, &materials.parts)?;
    materials.each(puppets, observer, |p, puppet, _| {
        let entries = additions.get(&p.process.task.files).map_or(&[][..], Vec::as_slice);
        if p.makes_files {
            restore::descriptors(puppet, materials.image, p, entries, &materials.opened)
        } else {
            Ok(())
        }
    })?;
    materials.opened.files.close_unchanged();
    materials.finish(puppets, observer)
}

/// Address spaces, directories and page contents.
pub(crate) fn memory(
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
    tracing::info!("memory is laid out: {} address spaces", targets.spaces.len());
    let bytes = fill(reader, image, &targets, observer)?;
    tracing::info!("memory is filled: {bytes} bytes");
    file::unlinked::set_times(image, &opened.inodes);
    // Seals may forbid both contents and mappings.
    file::memfd::seal(image, &opened.inodes)?;
    Ok(bytes)
}

/// The threads of all processes, and what is done to memory that is filled.
pub(crate) fn threads(
    puppets: &mut Puppets,
    materials: &Materials<'_>,
    observer: &mut dyn Observer,
) -> Result<()> {
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

/// What the tasks of an image are called now.
pub(crate) fn tasks(puppets: &mut Puppets, image: &Image) -> Tasks {
    let mut tasks = Tasks::new();
    for (index, process) in image.processes.iter().enumerate() {
        let Ok(puppet) = puppets.get(index) else { continue };
        let tids = process.threads.iter().map(|t| t.record.tid).enumerate();
        tasks.extend(tids.map(|(thread, tid)| (tid, (puppet.tid(thread), puppet.own_tid(thread)))));
    }
    tasks
}

/// What shows the tasks, now that they are there, and epolls may watch.
pub(crate) fn watched_files(
    puppets: &mut Puppets,
    materials: &mut Materials<'_>,
    tasks: &Tasks,
    observer: &mut dyn Observer,
) -> Result<()> {
    let Opened { late: Some(late), files, holders, .. } = &mut materials.opened else { return Ok(()) };
    file::pidfd::open_late(materials.image, tasks, puppets, files)?;
    file::proc::open_late(materials.image, tasks, |file| !late.is_last(file), files, holders, observer)
}

/// What shows the tasks and their descriptors, now that they have both.
pub(crate) fn late_files(
    puppets: &mut Puppets,
    materials: &mut Materials<'_>,
    tasks: &Tasks,
    observer: &mut dyn Observer,
) -> Result<()> {
    let Opened { late: Some(late), files, holders, .. } = &mut materials.opened else { return Ok(()) };
    file::proc::open_late(materials.image, tasks, |file| late.is_last(file), files, holders, observer)?;
    let materials = &*materials;
    let opened = &materials.opened;
    let Some(late) = &opened.late else { return Ok(()) };
    materials.each(puppets, observer, |p, puppet, _| {
        if !p.makes_files {
            return Ok(());
        }
        late.complete(puppet, p.table, opened).object(|| "files of /proc".to_owned())
    })
}

/// The locks of files.
pub(crate) fn locks(
    puppets: &mut Puppets,
    materials: &Materials<'_>,
    observer: &mut dyn Observer,
) -> Result<()> {
    let takers = lock::takers(materials.image, &materials.parts)?;
    materials.each(puppets, observer, |p, puppet, _| match takers.get(&p.index) {
        Some(locks) => lock::restore(puppet, locks),
        None => Ok(()),
    })
}

/// A root that nobody waits for is an orphan before its parent's end is anything to it: others see of a restart that fails
/// no more than they must.
pub(crate) fn part(puppets: &Puppets, image: &Image) -> Result<()> {
    let threads = image.processes.first().map_or(&[][..], |root| &root.threads);
    if threads.iter().any(|thread| thread.record.pdeath_signal != 0) { puppets.part() } else { Ok(()) }
}

/// Each thread restores itself.
pub(crate) fn restore_tasks(
    puppets: &mut Puppets,
    materials: &Materials<'_>,
    tasks: &Tasks,
    observer: &mut dyn Observer,
) -> Result<()> {
    let tasks = tasks.iter().map(|(id, (_, own))| (*id, *own)).collect();
    let ids = restore::Ids { tasks, groups: groups(puppets, materials)? };
    materials.each(puppets, observer, |p, puppet, observer| {
        // Before it may no longer be looked at by the likes of us.
        limits::restore_oom(puppet.pid(), p.signal, observer);
        mm::restore_coredump_filter(puppet.tid(puppet.first()), p.mm)?;
        restore::tasks(puppet, materials.image, p, &ids, &materials.born)
    })?;
    materials.finish(puppets, observer)
}

/// Stops those that were stopped; gives the others.
pub(crate) fn stops<'p, 'a>(puppets: &mut Puppets, parts: &'p [Parts<'a>]) -> Result<Vec<&'p Parts<'a>>> {
    let (stopped, running): (Vec<&Parts<'_>>, Vec<_>) =
        parts.iter().partition(|p| p.process.task.state == task_state::STOPPED && !shares_mm(parts, p));
    // A stopped child's parent is told, by a signal it has had once: that must be taken from its
    // queue while it can still run a program.
    for p in stopped.into_iter().rev() {
        stop(puppets, parts, p).task(|| label(p.process))?;
    }
    Ok(running)
}

/// Makes processes that are not stopped ready to go.
pub(crate) fn registers(puppets: &mut Puppets, running: &[&Parts<'_>]) -> Result<()> {
    let mut going = Vec::with_capacity(running.len());
    for p in running {
        let calls = puppets.get(p.index).and_then(|puppet| restore::calls(puppet, p));
        going.push(calls.task(|| label(p.process))?);
    }
    // Whoever shares an address space is done with the slot only now.
    let steps = [Puppet::begin_to_close_slot, Puppet::go_on_closing_slot, Puppet::finish_closing_slot];
    for step in steps {
        for p in running.iter().filter(|p| p.makes_mm) {
            step(puppets.get(p.index)?).task(|| label(p.process))?;
        }
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

/// Stops all processes, as soon as they are let go: not one instruction is run before that.
pub(crate) fn stop_all(puppets: &mut Puppets, materials: &Materials<'_>) -> Result<()> {
    let running = |p: &&Parts<'_>| p.process.task.state != task_state::STOPPED;
    materials.parts.iter().filter(running).try_for_each(|p| {
        let pid = puppets.get(p.index)?.pid();
        query::kill(pid, libc::SIGSTOP).task(|| label(p.process))
    })
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
pub(crate) fn zombies(puppets: &mut Puppets, materials: &Materials<'_>) -> Result<()> {
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
