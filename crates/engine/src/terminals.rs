//! Controlling terminals: which session has which pty, and whose turn it is there.
//!
//! Only the leader of a session can take a terminal, and only those it forks afterwards have it, too. So it
//! takes it right after setsid(2). A member that has none at the checkpoint (it was forked before, or gave it up)
//! gives it up again. The foreground group is set when all groups are there. That the leader of a session
//! has ended means that nobody in it has a terminal: there is nothing to do.

use crate::{
    error::{Context, Error, Result},
    puppets::{Puppets, call, label},
    stage::Stage,
};
use ckpt_kernel::{
    program::{Arg, Program},
    puppet::Puppet,
    tty::{TIOCNOTTY, TIOCSCTTY, TIOCSPGRP},
};
use std::os::fd::RawFd;

/// The terminal of process `index`.
fn of(stage: &Stage<'_>, index: usize) -> Result<Option<RawFd>> {
    let tty = stage.processes.get(index).map_or(0, |process| process.task.tty);
    if tty == 0 {
        return Ok(None);
    }
    let fd = stage.terminals.get(&tty).copied();
    fd.map(Some).ok_or_else(|| Error::bad_image("its controlling terminal is none"))
}

/// A leader takes its terminal.
pub(crate) fn take(stage: &Stage<'_>, index: usize, puppet: &mut Puppet) -> Result<()> {
    let Some(fd) = of(stage, index)? else { return Ok(()) };
    call(puppet, "ioctl(TIOCSCTTY)", libc::SYS_ioctl, [fd.into(), TIOCSCTTY.into(), 0u64.into()])
        .task(|| stage.processes.get(index).map(label).unwrap_or_default())
}

/// When all processes are there: who gives its terminal up, and foreground groups.
pub(crate) fn settle(stage: &Stage<'_>, puppets: &mut Puppets) -> Result<()> {
    for (index, process) in stage.processes.iter().enumerate() {
        let task = &process.task;
        let leader = stage.processes.iter().position(|leader| leader.task.pid == task.sid);
        let Some(leader) = leader else { continue };
        let Some(fd) = of(stage, leader)? else { continue };
        if task.tty == 0 {
            let args = [fd.into(), TIOCNOTTY.into(), 0u64.into()];
            call(puppets.get(index)?, "ioctl(TIOCNOTTY)", libc::SYS_ioctl, args).task(|| label(process))?;
        } else if index == leader && task.tpgid != task.pgid {
            foreground(stage, index, fd, puppets).task(|| label(process))?;
        }
    }
    Ok(())
}

/// A leader puts the group that was it into the foreground, if it has members.
fn foreground(stage: &Stage<'_>, leader: usize, fd: RawFd, puppets: &mut Puppets) -> Result<()> {
    let Some(wanted) = stage.processes.get(leader).map(|process| process.task.tpgid) else { return Ok(()) };
    let Some(member) = stage.processes.iter().position(|process| process.task.pgid == wanted) else {
        return Ok(());
    };
    // With new ids only a member knows what it is called now.
    let mut question = Program::new();
    question.call("getpgid", 0, libc::SYS_getpgid, [0u64.into()]);
    let group = puppets.get(member)?.run(0, question)?.first().map_or(0, |outcome| outcome.result as i32);
    let args = [fd.into(), TIOCSPGRP.into(), Arg::In(group.to_le_bytes().to_vec())];
    call(puppets.get(leader)?, "ioctl(TIOCSPGRP)", libc::SYS_ioctl, args)
}
