//! Leaving a restarted program to itself.

use ckpt_engine::RestartReport;
use rustix::process::{getpgid, getpgrp, getppid, getsid, setpgid};

/// The last thing of all that a command does which does not wait for the program. If a member of a shell's pipeline is
/// restarted it is in our process group; who ends as the last of a group that its parent could continue has the kernel send
/// SIGHUP and SIGCONT to those that are stopped. So we go over to our parent's group, unless that is in another session.
pub fn leave(report: &RestartReport) {
    let parent = getppid().filter(|parent| getsid(Some(*parent)) == getsid(None));
    let group = parent.and_then(|parent| getpgid(Some(parent)).ok());
    if let Some(group) = group.filter(|group| report.stopped && *group != getpgrp()) {
        let _ = setpgid(None, Some(group));
    }
}
