//! The survey: what cannot be carried is looked for while the tree runs undisturbed.
//!
//! As it opens and closes things meanwhile, only a clear refusal counts, and only one that is there
//! every time. Which objects are the same matters only to who looks for users outside, or has said
//! what is outside; else the processes are gone through side by side, each for itself.

use crate::{
    admit::Admission,
    advice::Means,
    error::{Context, Error, ErrorKind, Result},
    objects::Objects,
    options::CheckpointOptions,
    output::{Destination, same_file},
    policy,
    resource::{file, fs, mm},
    task::Process,
    tree,
};
use ckpt_image::{Object, Objref, model};
use ckpt_kernel::query::Kcmp;
use ckpt_proc::status::Status;
use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

/// Processes that are not worth a thread of ours.
const FEW: usize = 8;

/// What a survey has seen.
#[derive(Default)]
pub(crate) struct Surveyed {
    /// The objects; not all of them, if users outside are not to be looked for.
    pub(crate) objects: Objects,
    /// The descriptors of each process, by pid. They may be others when it stands still, as may the process.
    pub(crate) descriptors: Descriptors,
}

/// Descriptors by pid.
pub(crate) type Descriptors = BTreeMap<i32, file::Numbers>;

/// Surveys the tree below `options.pid`. Returns what it has seen, and the members.
pub(crate) fn survey(
    admission: &Admission,
    options: &CheckpointOptions,
    destination: &Destination,
    look_outside: bool,
) -> Result<(Surveyed, Vec<Process>)> {
    const TIMES: u32 = 3;
    let mut time = 1;
    let (seen, members) = loop {
        let members = tree::members(options.pid)?;
        let together = look_outside || !options.external.is_empty() || options.policy.is_strict();
        let surveyed = match together {
            true => one_by_one(admission, &members, options),
            false => side_by_side(admission, &members, options),
        };
        match surveyed {
            Err(e) if [ErrorKind::Unsupported, ErrorKind::Permission].contains(&e.kind) => {
                if time == TIMES {
                    return Err(e);
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => {
                tracing::info!("the tree changes while it is looked at, not all of it was seen: {e}");
                break (Vec::new(), members);
            }
            Ok(seen) => break (seen, members),
        }
        time += 1;
    };
    tracing::info!("surveyed: {} processes", members.len());
    refuse_destination(&seen, destination)?;
    let whole = seen.into_iter().reduce(|mut whole, share| {
        whole.descriptors.extend(share.descriptors);
        whole
    });
    Ok((whole.unwrap_or_default(), members))
}

/// Refuses an output that the tree has open itself.
fn refuse_destination(seen: &[Surveyed], destination: &Destination) -> Result<()> {
    let output = destination.stat()?;
    let own = |object: &Object| match object {
        Object::File(f) => same_file(&output, f.record.dev, f.record.ino),
        _ => false,
    };
    let is_open = |seen: &Surveyed| {
        seen.objects.table.values().any(own)
            || seen.descriptors.values().any(|numbers| numbers.names(output.st_dev, output.st_ino))
    };
    if output.st_rdev != 0 || !seen.iter().any(is_open) {
        return Ok(());
    }
    Err(Error::failed("the image would be written to a file or pipe that the program itself has open")
        .advice(Means::Elsewhere))
}

fn pids(members: &[Process]) -> BTreeSet<i32> {
    members.iter().map(|process| process.pid).collect()
}

/// Looks at all, and tells which objects are the same.
fn one_by_one(
    admission: &Admission,
    members: &[Process],
    options: &CheckpointOptions,
) -> Result<Vec<Surveyed>> {
    let mut seen = Surveyed { objects: Objects::of(pids(members), options), ..Surveyed::default() };
    let tables = look(admission, members, &mut seen)?;
    file::adopt(&tables, false, &mut seen.objects)?;
    file::external::check_used(&seen.objects)?;
    policy::check(tables.iter().map(|(process, _)| *process), &seen.objects)?;
    Ok(vec![seen])
}

/// Looks at all, on as many processors as there are.
fn side_by_side(
    admission: &Admission,
    members: &[Process],
    options: &CheckpointOptions,
) -> Result<Vec<Surveyed>> {
    let pids = pids(members);
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let share = members.len().div_ceil(processors).max(FEW);
    let whole = share >= members.len();
    let survey = |members| {
        let mut seen = Surveyed { objects: Objects::guessing(pids.clone(), options), ..Surveyed::default() };
        let tables = look(admission, members, &mut seen)?;
        // Only whoever has seen all descriptors can say what nobody has.
        if whole {
            file::adopt(&tables, false, &mut seen.objects)?;
        }
        Ok(seen)
    };
    let mut shares = members.chunks(share);
    let first = shares.next().unwrap_or_default();
    thread::scope(|scope| {
        let others: Vec<_> = shares.map(|members| scope.spawn(move || survey(members))).collect();
        let failed = |_| Err(Error::failed("a thread of the survey failed"));
        let others = others.into_iter().map(|other| other.join().unwrap_or_else(failed));
        std::iter::once(survey(first)).chain(others).collect()
    })
}

/// Looks at `members`; gives the descriptor tables of those that live.
fn look<'a>(
    admission: &Admission,
    members: &'a [Process],
    seen: &mut Surveyed,
) -> Result<Vec<(&'a Process, Objref)>> {
    let mut tables = Vec::new();
    for process in members {
        let Ok(stat) = process.stat() else { continue };
        if !stat.process_has_ended() {
            let looked = admission.admit(process, &stat).and_then(|status| {
                admission.admit_threads(process, &stat, &status)?;
                look_at(process, &status, seen)
            });
            tables.push((process, looked.task(|| process.label())?));
        }
    }
    Ok(tables)
}

fn look_at(process: &Process, status: &Status, seen: &mut Surveyed) -> Result<Objref> {
    let tid = process.witness;
    let Surveyed { objects, descriptors } = seen;
    let (table, _) = objects.task(Kcmp::Files, tid, |o| {
        let mut numbers = match o.is_guessing() {
            true => file::Numbers::guess(process)?,
            false => file::Numbers::of(process)?,
        };
        let table = file::checkpoint(process, &mut numbers, o)?;
        descriptors.insert(process.pid, numbers);
        Ok(Object::Files(table))
    })?;
    objects.task(Kcmp::Vm, tid, |o| {
        let vmas = mm::areas(process, &mm::mappings(process)?, o)?;
        Ok(Object::Mm(model::Mm { vmas, ..model::Mm::default() }))
    })?;
    objects.task(Kcmp::Fs, tid, |_| fs::checkpoint(process, status).map(Object::Fs))?;
    objects.task(Kcmp::Sighand, tid, |_| Ok(Object::Sighand(model::Sighand::default())))?;
    Ok(table)
}
