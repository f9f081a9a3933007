//! Collecting a frozen tree: everything but page contents becomes records and objects.
//!
//! Each process is visited once, for what only its tasks know; the rest is read from outside. What
//! processes share (kcmp(2) says so) is one object with one objref.

use crate::{
    error::{Context, Error, Result},
    freeze::FrozenThread,
    guard, header,
    names::Names,
    objects::Objects,
    options::{CheckpointOptions, Embed, Observer, interrupted},
    policy,
    resource::{call, cred, file, fs, limits, mm, pages, signal, thread, timers},
    survey::Descriptors,
    task::Process,
    tree::{FrozenProcess, Held},
    visiting::{slot_address, slots_in, statuses, texts_in, visitors},
};
use ckpt_image::{
    Image, Object, model,
    record::{self, task_state},
};
use ckpt_kernel::{
    program::{Arg, Outcome, Program},
    query::Kcmp,
    visit::{Traces, Visit},
};
use ckpt_proc::{maps::Mapping, stat::Stat, status::Status};
use std::collections::BTreeMap;

/// A frozen tree and everything of it but page contents.
pub(crate) struct Capture {
    /// Its processes and their threads, in the image's order.
    pub(crate) held: Held,
    /// The metadata.
    pub(crate) image: Image,
    /// Pages to store of each address space, with the process it is read through.
    pub(crate) memory: Vec<(usize, pages::Plan)>,
    /// Pages to store of contents without a name.
    pub(crate) contents: pages::Contents,
}

impl Capture {
    /// Bytes of pages to be read.
    pub(crate) fn bytes(&self) -> u64 {
        self.memory.iter().map(|(_, plan)| plan.bytes()).sum::<u64>() + self.contents.bytes()
    }
}

/// What the tasks of a process answered during a visit.
struct Answers {
    process: Vec<Outcome>,
    descriptors: file::Numbers,
    /// Of the witness.
    stat: Stat,
    mappings: Vec<Mapping>,
    timers: Vec<ckpt_proc::timers::Timer>,
    threads: Vec<Vec<Outcome>>,
    statuses: Vec<Status>,
    stopped: Vec<Outcome>,
    mlock_future: u32,
}

/// What has been collected so far.
#[derive(Default)]
struct Collector {
    held: Held,
    processes: Vec<model::Process>,
    objects: Objects,
    memory: Vec<(usize, pages::Plan)>,
    names: Names,
    /// Of stopped children: the wait status their parent has yet to see, by pid.
    unseen: BTreeMap<i32, i32>,
}

/// Collects everything of a frozen tree. `surveyed` are the descriptors that were seen when it ran; `observer` is told which
/// timeouts are not known exactly, `approve` has a look at its objects.
pub(crate) fn capture(
    tree: Vec<FrozenProcess>,
    options: &CheckpointOptions,
    surveyed: &mut Descriptors,
    observer: &mut dyn Observer,
    approve: impl FnOnce(&Objects, &mut dyn Observer) -> Result<()>,
) -> Result<Capture> {
    let members = tree.iter().map(|member| member.process.pid).collect();
    let objects = Objects::of(members, options);
    let mut all = Collector { names: Names::of(&tree)?, objects, ..Collector::default() };
    let header = header::header()?;
    let mut stopped: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for member in tree.iter().filter(|member| member.stopped) {
        stopped.entry(member.process.stat()?.ppid).or_default().push(member.process.pid);
    }
    for member in tree {
        interrupted(observer)?;
        let label = member.process.label();
        tracing::debug!("capture {label}: {} threads", member.threads.len());
        let children = stopped.remove(&member.process.pid).unwrap_or_default();
        let surveyed = surveyed.remove(&member.process.pid);
        match member.is_zombie() {
            true => all.zombie(member),
            false => all.process(member, &children, surveyed, observer),
        }
        .task(|| label)?;
    }
    let tables = all.processes.iter().map(|p| p.task.files);
    let tables: Vec<_> = all.held.iter().map(|(process, _)| process).zip(tables).collect();
    let looks = file::adopt(&tables, true, &mut all.objects)?;
    file::external::check_used(&all.objects)?;
    let ptys = file::pty::adopt(tables, &mut all.objects)?;
    for ((process, _), one) in all.held.iter().zip(&mut all.processes) {
        one.task.tty = file::pty::controlling(process, &all.objects)?;
    }
    for pty in &ptys {
        let controls = all.processes.iter().any(|process| process.task.tty == pty.inode);
        file::pty::look_at_slave(pty, controls, &mut all.objects)?;
    }
    let living = all.held.iter().filter(|(_, threads)| !threads.is_empty()).map(|(process, _)| process);
    policy::check(living, &all.objects)?;
    approve(&all.objects, observer)?;
    match &options.embed {
        Embed::None => {}
        Embed::Open => file::embedded::adopt(None, &mut all.objects)?,
        Embed::Matching(pattern) => file::embedded::adopt(Some(pattern), &mut all.objects)?,
    }
    file::flight::carry(&ptys, &all.objects)?.take(&mut all.held, &mut all.objects)?;
    looks.take(&mut all.held, &mut all.objects)?;
    let mut image = Image { header, uts: header::uts(), processes: all.processes, ..Image::default() };
    image.tree = record::Tree {
        nr_tasks: image.processes.len() as u32,
        nr_threads: image.processes.iter().map(|p| p.threads.len() as u32).sum(),
        root: image.processes.first().map_or(0, |p| p.task.pid),
        pad: 0,
    };
    let contents = std::mem::take(&mut all.objects.contents);
    image.objects = all.objects.table;
    let mm = image.processes.first().and_then(|p| image.mm(p.task.mm));
    if let Some(((root, _), mm)) = all.held.first().zip(mm) {
        image.arch = header::arch(root.witness, mm, &image.processes)?;
    }
    all.names.apply(&mut image)?;
    let contents = pages::Contents::plan(contents, &image)?;
    Ok(Capture { held: all.held, image, memory: all.memory, contents })
}

impl Collector {
    /// A zombie is its ids, its name and its status.
    fn zombie(&mut self, member: FrozenProcess) -> Result<()> {
        let process = member.process;
        let leader = remains(&process, &mut self.objects)?;
        let parent_tid = member.parent_tid;
        let task = record::Task {
            nr_threads: 1,
            parent_tid,
            ..task(&process, &process.stat()?, task_state::ZOMBIE)
        };
        self.processes.push(model::Process { task, threads: vec![leader] });
        self.held.push((process, Vec::new()));
        Ok(())
    }

    /// Visits the threads of a process, then collects everything. `children` are those that are
    /// stopped.
    fn process(
        &mut self,
        member: FrozenProcess,
        children: &[i32],
        surveyed: Option<file::Numbers>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let FrozenProcess { process, threads: frozen, stopped, parent_tid } = member;
        let own: Vec<i32> = children.iter().map(|pid| self.names.seen_by(process.pid, *pid)).collect();
        let (frozen, mut answers) = visit(&process, frozen, &own, surveyed, observer)?;
        let unseen = children.iter().zip(&answers.stopped).filter_map(|(pid, o)| Some((*pid, unseen(o)?)));
        self.unseen.extend(unseen);
        let mut threads = threads(&process, &frozen, &answers, &mut self.objects)?;
        if process.witness != process.pid {
            threads.insert(0, ended_leader(&process, &mut self.objects)?);
        }
        let mut answered = answers.process.split_at_checked(signal::SIGNALS as usize).unwrap_or_default();
        let sighand = signal::checkpoint(answered.0)?;
        answered = answered.1.split_at_checked(3).unwrap_or_default();
        let mut shared = record::Signal::default();
        timers::checkpoint_itimers(answered.0, &mut shared);
        answered = answered.1.split_at_checked(17).unwrap_or_default();
        limits::checkpoint(&process, answered.0, &mut shared)?;
        answered = answered.1.split_at_checked(mm::QUESTIONS).unwrap_or_default();
        let timers = timers::checkpoint_posix(&answers.timers, answered.1)?;
        let (pid, tid, objects) = (process.pid, process.witness, &mut self.objects);
        let witness = frozen.first().zip(answers.statuses.first());
        let (witness, status) = witness.ok_or_else(|| Error::failed("the process ended"))?;
        let pending = signal::checkpoint_pending(&process, &witness.thread, true, status)?;
        let (mm, new) = objects.task(Kcmp::Vm, tid, |objects| {
            let vmas = mm::areas(&process, &answers.mappings, objects)?;
            mm::checkpoint(&process, &answers.stat, answered.0, answers.mlock_future, vmas, objects)
                .map(Object::Mm)
        })?;
        if let Some(Object::Mm(space)) = objects.table.get(&mm).filter(|_| new) {
            self.memory.push((self.held.len(), pages::plan(&process, mm, space)?));
        }
        let state = if stopped { task_state::STOPPED } else { task_state::RUNNING };
        let task = record::Task {
            mm,
            files: objects
                .task(Kcmp::Files, tid, |o| {
                    file::checkpoint(&process, &mut answers.descriptors, o).map(Object::Files)
                })?
                .0,
            fs: objects.task(Kcmp::Fs, tid, |_| fs::checkpoint(&process, status).map(Object::Fs))?.0,
            sighand: objects.task(Kcmp::Sighand, tid, |_| Ok(Object::Sighand(sighand)))?.0,
            signal: objects.add(Object::Signal(Box::new(model::Signal { record: shared, pending, timers }))),
            nr_threads: threads.len() as u32,
            exit_code: self.unseen.get(&pid).copied().unwrap_or(0),
            parent_tid,
            ..match process.witness == process.pid {
                true => task(&process, &answers.stat, state),
                false => task(&process, &process.stat()?, state),
            }
        };
        self.processes.push(model::Process { task, threads });
        self.held.push((process, frozen.into_iter().map(|f| f.thread).collect()));
        Ok(())
    }
}

/// What is left of a leader that has ended: name and owner.
fn remains(process: &Process, objects: &mut Objects) -> Result<model::Thread> {
    let cred = objects.cred(cred::checkpoint(&process.thread_status(process.pid)?));
    let record = record::Thread { tid: process.pid, cred, ..record::Thread::default() };
    Ok(model::Thread { record, comm: process.stat()?.comm, ..model::Thread::default() })
}

/// A leader that has ended while others live.
fn ended_leader(process: &Process, objects: &mut Objects) -> Result<model::Thread> {
    let exit_code = thread::leader_end(&process.stat()?)?;
    let mut leader = remains(process, objects)?;
    (leader.record.state, leader.record.exit_code) = (task_state::ZOMBIE, exit_code);
    Ok(leader)
}

/// Ids and state of a process.
fn task(process: &Process, stat: &Stat, state: u32) -> record::Task {
    record::Task {
        pid: process.pid,
        ppid: stat.ppid,
        pgid: stat.pgrp,
        sid: stat.session,
        state,
        exit_signal: stat.exit_signal,
        exit_code: if state == task_state::ZOMBIE { stat.exit_code } else { 0 },
        tpgid: stat.tpgid.max(0),
        ..record::Task::default()
    }
}

/// Asks the tasks what only they know.
fn visit(
    process: &Process,
    frozen: Vec<FrozenThread>,
    stopped: &[i32],
    surveyed: Option<file::Numbers>,
    observer: &mut dyn Observer,
) -> Result<(Vec<FrozenThread>, Answers)> {
    let stat = process.witness_stat()?;
    let mut maps = mm::mappings(process)?;
    let timers = process.proc.parse("timers", ckpt_proc::timers::parse_timers)?;
    let mut questions = Program::new();
    let mut descriptors = file::Numbers::again(process, surveyed)?;
    descriptors.questions(&mut questions);
    signal::questions(&mut questions);
    timers::itimer_questions(&mut questions);
    limits::questions(&mut questions);
    mm::questions(&mut questions);
    timers::posix_questions(&mut questions, &timers);
    thread::questions(&mut questions);
    let statuses = statuses(process, &frozen)?;
    let (visitors, mut kept) = visitors(process, frozen, &statuses)?;
    let texts = texts_in(&maps);
    let traces = Traces::find(process.witness, &texts, &slots_in(&maps));
    let spans = traces.spans();
    if visitors.iter().any(|visitor| guard::is_inside(visitor.thread.tid(), &visitor.raw, &spans)) {
        let what = "a checkpoint that was killed has left it, and it is not yet back in its own code";
        return Err(Error::failed(what).advice("try again in a moment").passing());
    }
    let mut visit = Visit::enter(process.pid, visitors, &texts, slot_address(&maps, kept.len())?)?;
    visit.unmap_stale(&traces.slots)?;
    maps.retain(|m| !traces.slots.iter().any(|slot| slot.start == m.start));
    let mlock_future = mm::future_locks(process, visit.slot())?;
    visit.start(0, questions)?;
    for index in 1..visit.len() {
        let mut questions = Program::new();
        thread::questions(&mut questions);
        visit.start(index, questions)?;
    }
    let mut of_descriptors = visit.finish(0)?;
    let mut answers = of_descriptors.split_off(descriptors.len().min(of_descriptors.len()));
    if !descriptors.take(&of_descriptors) {
        descriptors = descriptors.relist(process)?;
        let mut questions = Program::new();
        descriptors.questions(&mut questions);
        descriptors.take(&visit.run(0, questions)?);
    }
    let mut thread_answers = vec![answers.split_off(answers.len().saturating_sub(thread::QUESTIONS))];
    let stopped = visit.run(0, stop_questions(stopped))?;
    for index in 1..visit.len() {
        thread_answers.push(visit.finish(index)?);
    }
    for (index, kept) in kept.iter_mut().enumerate().filter(|(_, kept)| kept.unsettled) {
        let (raw, saved, settled) = call::resume(process, &mut visit, index, kept.tid)?;
        settled.warn(kept.tid, observer);
        (kept.raw, kept.saved, kept.restart) = (raw, saved, settled.restart);
    }
    let threads = visit.leave()?;
    let frozen = threads.into_iter().zip(kept).map(|(thread, kept)| FrozenThread { thread, kept }).collect();
    let answers = Answers {
        process: answers,
        descriptors,
        stat,
        mappings: maps,
        timers,
        threads: thread_answers,
        statuses,
        stopped,
        mlock_future,
    };
    Ok((frozen, answers))
}

/// Asks a parent what it has yet to be told about its stopped `children`.
fn stop_questions(children: &[i32]) -> Program {
    let mut questions = Program::new();
    for pid in children {
        let options = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
        let info = Arg::Out(size_of::<model::Siginfo>());
        let args = [libc::P_PID.into(), (*pid).into(), info, options.into(), 0u64.into()];
        questions.try_call("waitid", libc::SYS_waitid, args);
    }
    questions
}

/// The wait status in an answer to [`stop_questions`].
fn unseen(answer: &Outcome) -> Option<i32> {
    const SI_PID: usize = 16;
    const SI_STATUS: usize = 24;
    let (pid, signal) = (answer.word(SI_PID) as u32, answer.word(SI_STATUS) as u32);
    (answer.ok() && pid != 0).then_some((signal as i32 & 0xff) << 8 | 0x7f)
}

fn threads(
    process: &Process,
    frozen: &[FrozenThread],
    answers: &Answers,
    objects: &mut Objects,
) -> Result<Vec<model::Thread>> {
    let mut threads = Vec::with_capacity(frozen.len());
    for ((frozen, answers), status) in frozen.iter().zip(&answers.threads).zip(&answers.statuses) {
        let cred = objects.cred(cred::checkpoint(status));
        threads.push(thread::checkpoint(process, frozen, answers, cred, status)?);
    }
    Ok(threads)
}
