//! The rules for pid namespaces below that of the tree's root: numbers that a kernel can have given.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Fault, Place, rule};
use crate::model::Process;
use crate::record::{PidLevel, children_pidns, task_state};

/// Most pid namespaces below another one (MAX_PID_NS_LEVEL).
const MAX_LEVELS: usize = 32;

/// A pid namespace of an image.
#[derive(Default)]
struct Namespace {
    /// The numbers of those it is in, its own the last.
    path: Vec<u32>,
    /// Ids in use.
    tids: BTreeSet<i32>,
    /// Its process 1, if that is in it and in no deeper one, and whether that lives.
    init: Option<bool>,
}

/// Holds the processes of an image to the rules.
pub(super) fn check(processes: &[Process]) -> Result<(), Fault> {
    let mut namespaces: BTreeMap<u32, Namespace> = BTreeMap::new();
    for (index, process) in processes.iter().enumerate() {
        let place = Place::Process(index, process.task.pid);
        check_process(process, &mut namespaces).map_err(|what| Fault { place, what })?;
    }
    for (index, process) in processes.iter().enumerate() {
        let place = Place::Process(index, process.task.pid);
        check_namespaces(process, &namespaces).map_err(|what| Fault { place, what })?;
    }
    Ok(())
}

/// Gathers the namespaces from what the processes say of them.
fn check_process(process: &Process, namespaces: &mut BTreeMap<u32, Namespace>) -> Check {
    let levels = process.levels();
    rule(levels.len() <= MAX_LEVELS, "it is in too many pid namespaces")?;
    for thread in &process.threads {
        rule(thread.levels.len() == levels.len(), "its threads are in different pid namespaces")?;
        let mut path = Vec::with_capacity(levels.len());
        for (level, leaders) in thread.levels.iter().zip(levels) {
            let of_process = |level: &PidLevel| (level.pidns, level.pgid, level.sid);
            rule(of_process(level) == of_process(leaders), "its threads are in different pid namespaces")?;
            let numbered = ![children_pidns::OWN, children_pidns::NEW].contains(&level.pidns);
            rule(numbered, "a pid namespace without a number")?;
            rule(level.tid > 0 && level.pgid >= 0 && level.sid >= 0, "an id in a pid namespace is none")?;
            path.push(level.pidns);
            let namespace = namespaces.entry(level.pidns).or_default();
            if namespace.path.is_empty() {
                namespace.path.clone_from(&path);
            }
            rule(namespace.path == path, "a pid namespace is in two others")?;
            rule(namespace.tids.insert(level.tid), "its id in a pid namespace is taken")?;
        }
    }
    let Some(namespace) = levels.last().and_then(|last| namespaces.get_mut(&last.pidns)) else {
        return Ok(());
    };
    if process.is_init() {
        let lives = process.task.state != task_state::ZOMBIE;
        // It takes no signal that would kill another, SIGKILL (from outside) excepted.
        rule(lives || [0, 9].contains(&(process.task.exit_code & 0x7f)), "process 1 has ended as it cannot")?;
        namespace.init = Some(lives);
    }
    Ok(())
}

fn check_namespaces(process: &Process, namespaces: &BTreeMap<u32, Namespace>) -> Check {
    for level in process.levels() {
        let namespace = namespaces.get(&level.pidns);
        let init =
            namespace.and_then(|namespace| namespace.init).ok_or("a pid namespace without process 1")?;
        let alone = namespace.is_some_and(|namespace| namespace.tids.len() == 1);
        rule(init || alone, "process 1 of its pid namespace has ended")?;
    }
    match process.task.children_pidns {
        children_pidns::OWN => return Ok(()),
        children_pidns::NEW => {}
        number => {
            let path = namespaces.get(&number).map(|namespace| namespace.path.as_slice());
            let own: Vec<u32> = process.levels().iter().map(|level| level.pidns).collect();
            let below = path.is_some_and(|path| path.len() > own.len() && path.starts_with(&own));
            rule(below, "its children are in a pid namespace that is not below its own")?;
        }
    }
    rule(process.threads.len() == 1, "it has threads, and its children are in another pid namespace")?;
    rule(process.task.state != task_state::ZOMBIE, "a zombie has no more children")
}
