//! Checkpoint: the ordered list of phases.
//!
//! | phase | why here |
//! |---|---|
//! | admit | refuses what can never work, before anything is opened |
//! | destination | an output that cannot be created must not cost the tasks a moment |
//! | survey | unsupported state is refused before the program is disturbed, and leaks are looked for if asked |
//! | guardian | from here on a killed coordinator leaves nothing behind |
//! | thaw | what a freezer cgroup holds stops before it can run; it is frozen again before it is let go |
//! | freeze | the whole tree stands still from here on |
//! | capture | process by process: a visit for what only the tasks know, then what is seen from outside; of a container leaks again, as now they are certain |
//! | write | metadata, then pages, which need nothing but the stopped tasks |
//! | settle | resume at once, or publish first and then kill |

use crate::{
    admit::Admission,
    capture::{Capture, capture},
    error::{Context, Error, ErrorKind, Result},
    freeze::thaw,
    frost::{Frost, Thawed},
    guard, leaks,
    objects::Objects,
    options::{After, CheckpointOptions, CheckpointReport, Observer, Output, Scope},
    output::{Destination, failure, same_file},
    resource::{file, file::epoll::Certainty, fs, mm},
    task::Process,
    tree::{self, Held},
};
use ckpt_image::{BLOCK_SIZE, Block, Object, Objref, Writer, model, record};
use ckpt_kernel::{query::Kcmp, tracee::Stopped};
use std::time::{Duration, Instant};

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
    file::raise_nofile();
    let root = Process::open(options.pid)?;
    let label = || root.label();
    let admission = Admission::of(&root)?;
    admission.admit(&root).task(label)?;
    let container = options.scope == Scope::Container;
    if container {
        admission.admit_init(&root).task(label)?;
    }
    let destination = Destination::open(output)?;
    let (surveyed, members) = survey(&admission, root.pid, &destination).task(label)?;
    let mut shared_outside = None;
    if container || options.report_shared {
        let found = leaks::find(&surveyed, &[own_pid()]).task(label)?;
        if container {
            found.refuse()?;
        } else if let Some(unknown) = found.unknown() {
            tracing::info!("{unknown}");
        }
        shared_outside = Some(found.leaks);
    }
    drop(surveyed);
    let frost = Frost::find(&members).task(label)?;
    let guardian = guard::post(&frost).task(label)?;
    drop(members);
    let frozen_at = Instant::now();
    // Outlives all holds: its threads are let go by it, after it has frozen them again.
    let thawed = frost.thaw(root.pid).task(label)?;
    let frozen = tree::freeze_tree(root.pid, &admission, thawed.seized(), observer).task(label)?;
    guardian.watch(&frozen.iter().map(|p| p.process.pid).collect::<Vec<_>>())?;
    let approve = |objects: &Objects, observer: &mut dyn Observer| {
        if !container {
            return Ok(());
        }
        let found = leaks::find(objects, &[own_pid(), guardian.pid()])?;
        found.unknown().iter().for_each(|unknown| observer.warn(unknown));
        found.refuse()
    };
    let mut capture = capture(frozen, observer, approve).task(label)?;
    let writer = Writer::new(destination.sink()?, Block::new(BLOCK_SIZE));
    let written = write(&capture, writer, &destination, observer).task(label)?;
    let mut report = CheckpointReport {
        id: capture.image.header.id,
        pid: root.pid,
        comm: root.comm.clone(),
        processes: capture.image.processes.len(),
        threads: capture.held.iter().map(|(_, threads)| threads.len()).sum(),
        shared_outside,
        page_bytes: written.pages * record::PAGE_SIZE as u64,
        image_bytes: written.bytes,
        frozen: Duration::ZERO,
        total: Duration::ZERO,
    };
    let held = std::mem::take(&mut capture.held);
    report.frozen = settle(options.after, held, thawed, destination, frozen_at)?;
    drop(guardian);
    report.total = begin.elapsed();
    Ok(report)
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Looks for state that cannot be carried while the tree runs undisturbed. As it opens and closes
/// things meanwhile, only a clear refusal counts, and only one that is there every time. Returns what it
/// has seen, and the members.
fn survey(admission: &Admission, root: i32, destination: &Destination) -> Result<(Objects, Vec<Process>)> {
    const TIMES: u32 = 3;
    let (mut objects, mut members) = (Objects::default(), Vec::new());
    for time in 1..=TIMES {
        objects = Objects::default();
        members = tree::members(root)?;
        match survey_once(admission, &members, &mut objects) {
            Err(e) if [ErrorKind::Unsupported, ErrorKind::Permission].contains(&e.kind) => {
                if time == TIMES {
                    return Err(e);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => {
                tracing::info!("the tree changes while it is looked at, not all of it was seen: {e}");
                break;
            }
            Ok(()) => break,
        }
    }
    let output = destination.stat()?;
    let own = |object: &Object| match object {
        Object::File(f) => same_file(&output, f.record.dev, f.record.ino) && output.st_rdev == 0,
        _ => false,
    };
    if objects.table.values().any(own) {
        return Err(Error::failed(
            "the image would be written to a file or pipe that the program itself has open",
        )
        .advice("write it elsewhere with -o"));
    }
    Ok((objects, members))
}

fn survey_once(admission: &Admission, members: &[Process], objects: &mut Objects) -> Result<()> {
    let mut tables = Vec::new();
    objects.members = members.iter().map(|process| process.pid).collect();
    for process in members.iter().filter(|process| !tree::has_ended(process)) {
        tables.push((process, survey_process(admission, process, objects).task(|| process.label())?));
    }
    file::adopt(&tables, Certainty::Likely, objects)
}

fn survey_process(admission: &Admission, process: &Process, objects: &mut Objects) -> Result<Objref> {
    admission.admit(process)?;
    let tid = process.witness;
    let (table, _) = objects.task(Kcmp::Files, tid, |o| file::checkpoint(process, o).map(Object::Files))?;
    objects.task(Kcmp::Vm, tid, |o| {
        let vmas = mm::areas(process, &mm::mappings(process)?, o)?;
        Ok(Object::Mm(model::Mm { vmas, ..model::Mm::default() }))
    })?;
    objects.task(Kcmp::Fs, tid, |_| fs::checkpoint(process).map(Object::Fs))?;
    objects.task(Kcmp::Sighand, tid, |_| Ok(Object::Sighand(model::Sighand::default())))?;
    Ok(table)
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

/// Publishes the image and lets the tasks go on, stop or end. Returns how long they stood still.
/// What was frozen by a cgroup is so again.
fn settle(
    after: After,
    held: Held,
    thawed: Thawed,
    destination: Destination,
    frozen_at: Instant,
) -> Result<Duration> {
    match after {
        After::Resume => {
            thaw_tree(held)?;
            thawed.freeze()?;
            let frozen = frozen_at.elapsed();
            destination.publish()?;
            Ok(frozen)
        }
        After::Stop => {
            destination.publish()?;
            // Pending when they are let go, so that not one instruction is run in between.
            signal_all(&held, rustix::process::Signal::STOP)?;
            thaw_tree(held)?;
            thawed.freeze()?;
            Ok(frozen_at.elapsed())
        }
        After::Kill => {
            destination.publish()?;
            let frozen = frozen_at.elapsed();
            signal_all(&held, rustix::process::Signal::KILL)?;
            held.into_iter().try_for_each(|(process, threads)| wait_end(&process, threads))?;
            // Only now: v1 would hold back even the killed.
            thawed.freeze()?;
            Ok(frozen)
        }
    }
}

fn thaw_tree(held: Held) -> Result<()> {
    held.into_iter().try_for_each(|(process, threads)| thaw(&process, threads))
}

/// Sends a signal to every process; one that is a zombie has no use for it.
fn signal_all(held: &Held, signal: rustix::process::Signal) -> Result<()> {
    let living = held.iter().filter(|(_, threads)| !threads.is_empty());
    living.map(|(process, _)| process).try_for_each(|p| p.signal(signal).task(|| p.label()))
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
