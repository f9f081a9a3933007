//! Restart: the ordered list of phases.
//!
//! | phase | why here |
//! |---|---|
//! | read | metadata, verified by sums before it is decoded |
//! | check | another machine: refused before anything is made |
//! | surroundings | root directory and mounts as the tasks are to have them |
//! | open | files and directories, by the coordinator, whose view of paths is the caller's; files that changed are refused |
//! | make | all processes, with their pids, parents, sessions and groups; from here on an error kills them |
//! | tables | where they have shared one, each process gets its own: before there are threads |
//! | memory | areas, exe link, working directory: one program for each process |
//! | fill | page contents, read and verified beside; rseq needs its area in place |
//! | threads | all threads exist before any of them restores itself |
//! | watched files | pidfds, and what epolls watch of /proc: every task is there, no entry of an epoll yet |
//! | descriptors | with entries of epolls; nobody who shares the table needs ours any more |
//! | late files | others of /proc show the tasks, by the ids they have now, and their descriptors |
//! | locks | they do not outlive the close of any descriptor of their file |
//! | zombies | end; what their parents are sent is taken away again |
//! | part | from a root that nobody waits for and that is to have a parent-death signal; from another when it is released |
//! | restore | each thread by a program of its own, the leader also what they share; one that had ended ends |
//! | stop | those that were stopped, their parents not noticing |
//! | registers | calls in progress, then the slot, then registers and masks |
//! | settle | timers and watches of descriptors: time passes for them from now on |
//! | pre-resume | the last word of whoever has a say; others are had before *surroundings*, after *make* and here |
//! | release | go; or, with a freezer, into it, and frozen before they are let go |

use crate::{
    error::{Context, Error, Result},
    freezer::Freezer,
    halt, machine,
    milestone::{Stage, pass, reach},
    opened::{self, Opened},
    options::{Input, Observer, Pids, RestartOptions, RestartReport, interrupted},
    phases::{self, Materials},
    puppets::Puppets,
    resource::{file, limits},
    restore,
    source::{self, ImageReader},
    stage,
    surroundings::Surroundings,
    terminal::{self, Loan},
};
use ckpt_image::{Image, model, record::task_state};
use std::time::Instant;

/// Recreates the tasks of the image in `input` as children of the caller.
///
/// # Errors
/// Whatever fails, no task and no file stays behind.
pub fn restart(options: RestartOptions, input: Input, observer: &mut dyn Observer) -> Result<RestartReport> {
    let begin = Instant::now();
    if options.sibling && options.pids == Pids::Namespace {
        return Err(Error::failed("the root of a pid namespace of its own cannot be a child of our parent"));
    }
    limits::raise_own();
    let name = match &input {
        Input::File(path) => path.display().to_string(),
        Input::Fd(_) => "the image".to_owned(),
    };
    let mut reader =
        if options.inspect { source::inspect(input, observer)? } else { source::open(input, observer)? };
    let mut image = reader.metadata().map_err(Error::from).object(|| name)?;
    file::identity::rename(&mut image, &options.map_files)?;
    let image = image;
    let parts = restore::parts(&image)?;
    machine::check_processor(&image, options.force_cpu)?;
    machine::warn_of_reboot(&image, observer);
    let freezer = options.freezer.as_deref().map(Freezer::named).transpose()?;
    reach(observer, Stage::PreRestore, image.tree.root)?;
    let surroundings = Surroundings::enter(&options)?;
    let opened = opened::open(&image, &options, &mut reader, observer)?;
    let grown = file::identity::check(&image, &opened.files, &opened.inodes, &options, observer)?;
    tracing::info!("opened: {} files, {} inodes", opened.files.len(), opened.inodes.len());
    let areas = stage::areas(&image)?;
    let mut puppets = stage::make(&image, &options, &opened, &areas, &mut reader, observer)?;
    let root = puppets.get(0)?.pid();
    reach(observer, Stage::SetupNamespaces, root)?;
    reach(observer, Stage::PostSetupNamespaces, root)?;
    let new_pids = options.pids == Pids::New;
    let born = puppets.credentials()?;
    born.warn(&image, observer);
    let mut materials = Materials { image: &image, new_pids, parts, opened, areas, born };
    let page_bytes = build(&mut puppets, &mut materials, reader, observer)?;
    reach(observer, Stage::PostRestore, root)?;
    reach(observer, Stage::NetworkUnlock, root)?;
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
    reach(observer, Stage::PreResume, root)?;
    if options.truncate_files {
        file::identity::truncate(&image, &grown, &opened.files)?;
    }
    if options.stopped {
        phases::stop_all(&mut puppets, &materials)?;
    }
    // Pending when they are let go: it interrupts the calls they are in, as it would have.
    terminal::tell_window(&image, inherited, root);
    opened.scribe.keep(root)?;
    let released = puppets.release(freezer.as_ref());
    let root = released.inspect_err(|_| drop(opened.scribe.discard()))?;
    if options.stopped {
        halt::await_stop(root.pid());
    }
    pass(observer, Stage::PostResume, root.pid());
    Ok(RestartReport {
        id: image.header.id,
        root,
        terminal,
        comm: leader(&image).map_or_else(Vec::new, |leader| leader.comm.clone()),
        processes: image.processes.len(),
        threads: materials.parts.iter().map(|p| p.process.living().count()).sum(),
        stopped: options.stopped || image.processes.iter().any(|p| p.task.state == task_state::STOPPED),
        page_bytes,
        total: begin.elapsed(),
    })
}

/// The leader of the root.
fn leader(image: &Image) -> Option<&model::Thread> {
    image.processes.first()?.threads.first()
}

/// Turns fresh puppets into the processes of the image. Returns the bytes of pages.
fn build(
    puppets: &mut Puppets,
    materials: &mut Materials<'_>,
    mut reader: ImageReader,
    observer: &mut dyn Observer,
) -> Result<u64> {
    let image = materials.image;
    phases::tables(puppets, materials, observer)?;
    let page_bytes = phases::memory(puppets, materials, &mut reader, observer)?;
    file::pty::settle(image, &materials.opened.inodes)?;
    let Opened { sockets, inodes, holders, .. } = &mut materials.opened;
    file::unix::settle(image, sockets, inodes, holders, observer)?;
    phases::threads(puppets, materials, observer)?;
    let tasks = phases::tasks(puppets, image);
    phases::watched_files(puppets, materials, &tasks, observer)?;
    phases::descriptors(puppets, materials, observer)?;
    phases::late_files(puppets, materials, &tasks, observer)?;
    phases::locks(puppets, materials, observer)?;
    phases::zombies(puppets, materials)?;
    phases::part(puppets, image)?;
    phases::restore_tasks(puppets, materials, &tasks, observer)?;
    let running = phases::stops(puppets, &materials.parts)?;
    phases::registers(puppets, &running)?;
    file::settle(image, &materials.opened.files, &materials.opened.holders)?;
    Ok(page_bytes)
}
