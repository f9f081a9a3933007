//! Checkpoint: the ordered list of phases.
//!
//! | phase | why here |
//! |---|---|
//! | admit | refuses what can never work, before anything is opened |
//! | destination | an output that cannot be created must not cost the tasks a moment |
//! | pre-dump | whoever has a say may make the tree ready |
//! | survey | unsupported state is refused before the program is disturbed, and leaks are looked for if asked |
//! | guardian | from here on a killed coordinator leaves nothing behind |
//! | chill | freezes the cgroup that the caller named |
//! | thaw | what a freezer cgroup holds stops before it can run; it is frozen again before it is let go |
//! | freeze | the whole tree stands still from here on |
//! | network-lock | what is sent to the tree from here on is to wait |
//! | capture | process by process: a visit for what only the tasks know, then what is seen from outside; of a container leaks again, as now they are certain |
//! | write | metadata, then pages, which need nothing but the stopped tasks |
//! | post-dump | while the tree stands still yet, the last word |
//! | settle | resume at once, or publish first and then kill; network-unlock for all who go on |

use crate::{
    admit::Admission,
    capture::{Capture, capture},
    error::{Context, Error, Result},
    freeze::{Asked, thaw},
    frost::{Chill, Frost, Thawed},
    guard, halt, leaks,
    milestone::{Stage, pass, reach},
    objects::Objects,
    options::{After, CheckpointOptions, CheckpointReport, Observer, Output, Scope},
    output::{Destination, failure},
    resource::file,
    survey::{Surveyed, survey},
    task::Process,
    tree::{self, Held},
};
use ckpt_image::{BLOCK_SIZE, Block, Image, Writer, model, record, record::inode_kind, record::task_state};
use ckpt_kernel::reaper::Reaper;
use ckpt_kernel::tracee::Stopped;
use std::time::{Duration, Instant};

/// How long a tree goes on each time before it is stopped again.
const PAUSES_MS: [u64; 6] = [1, 3, 10, 30, 100, 300];

/// Writes an image of the tree below the process `options.pid` to `output`.
///
/// # Errors
/// Whatever fails, the tasks go on as if nothing had happened, and no file stands under the
/// final name.
pub fn checkpoint(
    options: &CheckpointOptions,
    output: Output,
    observer: &mut dyn Observer,
) -> Result<CheckpointReport> {
    let begin = Instant::now();
    file::raise_nofile(0);
    let mut network = Network::default();
    let done = attempt(options, output, &mut network, observer);
    if network.locked && (done.is_err() || options.after == After::Resume) {
        pass(observer, Stage::NetworkUnlock, options.pid);
    }
    Ok(CheckpointReport { total: begin.elapsed(), ..done? })
}

/// What [`Stage::NetworkLock`] stands for.
#[derive(Default)]
struct Network {
    locked: bool,
}

/// The phases.
fn attempt(
    options: &CheckpointOptions,
    output: Output,
    network: &mut Network,
    observer: &mut dyn Observer,
) -> Result<CheckpointReport> {
    let root = Process::open(options.pid)?;
    let label = || root.label();
    let admission = Admission::of(&root)?;
    admission.admit(&root, &root.stat()?).task(label)?;
    let container = options.scope == Scope::Container;
    if container {
        admission.admit_init(&root).task(label)?;
    }
    let destination = Destination::open(output)?;
    reach(observer, Stage::PreDump, root.pid)?;
    let look_outside = container || options.report_shared;
    let (surveyed, members) = survey(&admission, options, &destination, look_outside).task(label)?;
    let Surveyed { objects, mut descriptors } = surveyed;
    let mut shared_outside = None;
    if look_outside {
        let found = leaks::find(&objects, &[own_pid()]).task(label)?;
        if container {
            found.refuse()?;
        } else if let Some(unknown) = found.unknown() {
            tracing::info!("{unknown}");
        }
        shared_outside = Some(found.leaks);
    }
    drop(objects);
    // Outlives all holds, and what is thawed for them.
    let chill = options.freezer.as_deref().map(Chill::find).transpose()?;
    let mut frost = Frost::find(&members).task(label)?;
    let guardian = guard::post(&frost, chill.as_ref()).task(label)?;
    // Ends before the guardian does.
    let chill = chill;
    if let Some(chill) = &chill {
        chill.cast(observer)?;
        frost = Frost::find(&members).task(label)?;
    }
    let reaper = Reaper::start();
    drop(members);
    let frozen_at = Instant::now();
    // Outlives all holds: its threads are let go by it, after it has frozen them again.
    let thawed = frost.thaw(root.pid).task(label)?;
    let approve = |objects: &Objects, observer: &mut dyn Observer| {
        if !container {
            return Ok(());
        }
        let found = leaks::find(objects, &[own_pid(), guardian.pid()])?;
        found.unknown().iter().for_each(|unknown| observer.warn(unknown));
        found.refuse()
    };
    // What is only a matter of moments is over when the tree has gone on for some.
    let mut pauses = PAUSES_MS.iter().filter(|_| thawed.seized().is_empty());
    let capture = loop {
        let frozen = tree::freeze_tree(root.pid, &admission, Asked::lent(thawed.seized()), observer);
        let captured = frozen.and_then(|frozen| {
            guardian.watch(&frozen.iter().map(|p| p.process.pid).collect::<Vec<_>>())?;
            tracing::info!("the tree stands still: {} processes", frozen.len());
            network.lock(root.pid, observer)?;
            capture(frozen, options, &mut descriptors, observer, approve)
        });
        match (captured, pauses.next()) {
            (Err(error), Some(ms)) if error.passing => {
                tracing::info!("once more in {ms} ms: {error}");
                std::thread::sleep(Duration::from_millis(*ms));
            }
            (other, _) => break other.task(label)?,
        }
    };
    drop(reaper);
    thawed.confine().task(label)?;
    tracing::info!("captured: {} objects", capture.image.objects.len());
    let writer = Writer::new(destination.sink(observer.interruption())?, Block::new(BLOCK_SIZE));
    let written = write(&capture, writer, &destination, observer).task(label)?;
    tracing::info!("written: {} pages, {} bytes", written.pages, written.bytes);
    let mut report = report(&root, &capture, &written);
    report.shared_outside = shared_outside;
    let Capture { held, image, .. } = capture;
    let still = Still { options, held, image, thawed, destination, frozen_at };
    report.frozen = still.settle(network, observer)?;
    chill.map_or(Ok(()), Chill::end)?;
    if options.after == After::Stop {
        halt::await_stop(root.pid);
    }
    drop(guardian);
    Ok(report)
}

impl Network {
    /// Once, however often the tree is stopped.
    fn lock(&mut self, pid: i32, observer: &mut dyn Observer) -> Result<()> {
        if !std::mem::replace(&mut self.locked, true) {
            reach(observer, Stage::NetworkLock, pid)?;
        }
        Ok(())
    }

    fn unlock(&mut self, pid: i32, observer: &mut dyn Observer) -> Result<()> {
        self.locked = false;
        reach(observer, Stage::NetworkUnlock, pid)
    }
}

/// What is known when the image is complete.
fn report(root: &Process, capture: &Capture, written: &Written) -> CheckpointReport {
    CheckpointReport {
        id: capture.image.header.id,
        pid: root.pid,
        comm: root.comm.clone(),
        processes: capture.image.processes.len(),
        threads: capture.held.iter().map(|(_, threads)| threads.len()).sum(),
        shared_outside: None,
        unlinked: capture.contents.of_kind(&capture.image, inode_kind::UNLINKED),
        embedded: capture.contents.of_kind(&capture.image, inode_kind::EMBEDDED),
        page_bytes: written.pages * record::PAGE_SIZE as u64,
        image_bytes: written.bytes,
        frozen: Duration::ZERO,
        total: Duration::ZERO,
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// What was written.
struct Written {
    pages: u64,
    bytes: u64,
}

/// Writes the image. A stream that breaks off ends in an ERROR record.
fn write(
    capture: &Capture,
    mut writer: Writer<crate::output::Sink>,
    destination: &Destination,
    observer: &mut dyn Observer,
) -> Result<Written> {
    observer.total(capture.bytes());
    match write_all(capture, &mut writer, observer) {
        Ok(pages) => {
            let (_, bytes) = writer.tail().map_err(|e| failure(&e))?;
            Ok(Written { pages, bytes })
        }
        Err(error) => {
            if destination.is_stream() {
                let _ = writer.error(error.to_string().as_bytes());
            }
            Err(error)
        }
    }
}

/// Metadata, then pages; how many were stored.
fn write_all(
    capture: &Capture,
    writer: &mut Writer<crate::output::Sink>,
    observer: &mut dyn Observer,
) -> Result<u64> {
    capture.image.write(writer).map_err(|e| failure(&e))?;
    let mut stored = 0;
    for (index, plan) in &capture.memory {
        let Some((process, _)) = capture.held.get(*index) else { continue };
        stored += plan.write(process, writer, observer).task(|| process.label())?.stored_pages;
    }
    Ok(stored + capture.contents.write(writer, observer)?.stored_pages)
}

/// A tree that stands still, and its complete image.
struct Still<'a> {
    options: &'a CheckpointOptions,
    held: Held,
    image: Image,
    thawed: Thawed,
    destination: Destination,
    frozen_at: Instant,
}

impl Still<'_> {
    /// Publishes the image and lets the tasks go on, stop or end. Returns how long they stood still.
    /// What was frozen by a cgroup is so again.
    fn settle(mut self, network: &mut Network, observer: &mut dyn Observer) -> Result<Duration> {
        let (pid, after) = (self.options.pid, self.options.after);
        if after != After::Resume || self.options.publish_early {
            self.destination.publish()?;
        }
        reach(observer, Stage::PostDump, pid).inspect_err(|_| self.destination.withdraw())?;
        let Still { held, thawed, mut destination, frozen_at, .. } = self;
        match after {
            After::Resume => {
                thaw_tree(held)?;
                thawed.freeze()?;
                let frozen = frozen_at.elapsed();
                network.unlock(pid, observer).inspect_err(|_| destination.withdraw())?;
                destination.publish()?;
                Ok(frozen)
            }
            After::Stop => {
                // Pending when they are let go, so that not one instruction is run in between. In one that is stopped already it
                // would be pending until it goes on.
                let is_stopped = |process: &model::Process| process.task.state == task_state::STOPPED;
                let running = held.iter().zip(&self.image.processes).filter(|(_, p)| !is_stopped(p));
                signal_all(running.map(|(held, _)| held), rustix::process::Signal::STOP)?;
                thaw_tree(held)?;
                thawed.freeze()?;
                Ok(frozen_at.elapsed())
            }
            After::Kill => {
                let frozen = frozen_at.elapsed();
                // v1 would hold back even the killed.
                thawed.release()?;
                signal_all(&held, rustix::process::Signal::KILL)?;
                // There is time for it now.
                self.image.objects.clear();
                wait_for_all(held, &self.image.processes)?;
                thawed.freeze()?;
                Ok(frozen)
            }
        }
    }
}

fn thaw_tree(held: Held) -> Result<()> {
    held.into_iter().try_for_each(|(process, threads)| thaw(&process, threads))
}

/// Sends a signal to every process; one that is a zombie has no use for it.
fn signal_all<'a>(
    held: impl IntoIterator<Item = &'a (Process, Vec<Stopped>)>,
    signal: rustix::process::Signal,
) -> Result<()> {
    let living = held.into_iter().filter(|(_, threads)| !threads.is_empty());
    living.map(|(process, _)| process).try_for_each(|p| p.signal(signal).task(|| p.label()))
}

/// Waits for the end of all, which have been sent SIGKILL. Process 1 of a pid namespace ends when all
/// others of it have been waited for, by us and by their parents.
fn wait_for_all(held: Held, processes: &[model::Process]) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let of_image = held.into_iter().zip(processes).rev();
    let (mut inits, others): (Vec<_>, Vec<_>) =
        of_image.partition(|(_, process)| process.is_init() || process.task.pid == 1);
    others.into_iter().try_for_each(|((process, threads), _)| wait_end(&process, threads))?;
    inits.sort_by_key(|(_, process)| std::cmp::Reverse(process.levels().len()));
    let deadline = Instant::now() + PATIENCE;
    for ((_, threads), _) in inits {
        // A parent outside may take its time: it is not waited for.
        for mut thread in threads.into_iter().rev() {
            thread.wait_end_until(deadline);
        }
    }
    Ok(())
}

/// Waits for the end of a process that has been sent SIGKILL.
fn wait_end(process: &Process, threads: Vec<Stopped>) -> Result<()> {
    const PATIENCE_MS: i64 = 10_000;
    // The leader can only be waited for when the others have been.
    threads.into_iter().rev().for_each(Stopped::wait_end);
    if process.wait_end(PATIENCE_MS) {
        return Ok(());
    }
    Err(Error::failed("the process did not end within 10 s of SIGKILL").task(process.label()))
}
