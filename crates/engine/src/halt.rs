//! Trees that are left stopped, as by SIGSTOP.
//!
//! The signal is pending in every process that runs when it is let go, so that not one instruction of the program is executed. To
//! act on it each thread has to run all the same, in the kernel, and with many threads or a busy machine that takes
//! its time: whoever is told that a tree has been left stopped looks at it at once, and is to find every thread in state T.

use crate::{
    frost::{Frost, is_stopped},
    task::stat_of,
    tree,
};
use std::time::{Duration, Instant};

/// How long is waited at most: somebody else may have let them go on before they were seen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until every thread of the tree below `root` has been seen to be stopped, or to have ended. What is frozen stops when it
/// is thawed.
pub(crate) fn await_stop(root: i32) {
    let members = match tree::members(root) {
        Ok(members) => members,
        Err(error) => return tracing::warn!("it was sent SIGSTOP, and is not waited for: {error}"),
    };
    if !Frost::find(&members).is_ok_and(|frost| frost.is_empty()) {
        return;
    }
    let deadline = Instant::now() + PATIENCE;
    let runs = |tid: i32| stat_of(tid).is_some_and(|stat| !stat.state.has_ended()) && !is_stopped(tid);
    for tid in members.iter().flat_map(|process| process.tids().unwrap_or_default()) {
        while runs(tid) {
            if Instant::now() > deadline {
                tracing::warn!("thread {tid} was sent SIGSTOP, and has not been seen to be stopped");
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
