//! The first puppet, and the pid namespace that begins with it.
//!
//! The tasks of a namespace need a process 1. If their root was not one, it is an init that makes
//! the root, waits for all that end, its own children and orphans, and ends when nobody is left.

use crate::{
    advice::{Means, Way},
    error::{Doing, Error, Result},
    options::Observer,
    resource::{file::placement, layout},
    stage::Stage,
};
use ckpt_kernel::{
    Errno,
    memory::Span,
    procfs,
    program::{Arg, Program},
    puppet::{Parent, Puppet, Spawn},
};
use rustix::{pipe::PipeFlags, process::getegid, process::geteuid};
use std::os::fd::{AsRawFd, OwnedFd};

const RSEQ_UNREGISTER: u64 = 1;

/// An init and how it is heard.
#[derive(Debug)]
pub(crate) struct Household {
    /// Process 1.
    pub(crate) init: Puppet,
    /// Where it says how the root ended.
    pub(crate) status: OwnedFd,
    /// The other end: the init has it, by the same number.
    report: OwnedFd,
    areas: Vec<Span>,
}

impl Household {
    /// Makes the init.
    pub(crate) fn found(
        stage: &Stage<'_>,
        parent: Parent<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Household> {
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).doing(|| "pipe2".to_owned())?;
        let init = spawn_first(stage, parent, observer)?;
        Ok(Household { init, status: pipe.0, report: pipe.1, areas: stage.areas.clone() })
    }

    /// Makes the init ready to go: of all that was ours it keeps a page of code and the pipe.
    pub(crate) fn settle(&mut self, root: i32) -> Result<()> {
        let mut program = Program::new();
        for area in &self.areas {
            let args = [area.start.into(), (area.len as u64).into()];
            program.call("munmap", area.start, libc::SYS_munmap, args);
        }
        program.call("chdir", 0, libc::SYS_chdir, [Arg::In(b"/\0".to_vec())]);
        let name = Arg::In(b"ckpt-init\0".to_vec());
        program.call("prctl(PR_SET_NAME)", 0, libc::SYS_prctl, [libc::PR_SET_NAME.into(), name]);
        let report = self.report.as_raw_fd();
        placement::close(&mut program, 0, report as u32 - 1);
        placement::close(&mut program, report + 1, u32::MAX);
        self.init.run(0, program)?;
        Ok(self.init.become_init(root, report)?)
    }
}

/// Makes process 1 of a new pid namespace.
pub(crate) fn spawn_first(
    stage: &Stage<'_>,
    parent: Parent<'_>,
    observer: &mut dyn Observer,
) -> Result<Puppet> {
    let Stage { slot, park: signal, .. } = *stage;
    let spawn =
        |namespaces| Puppet::spawn(&Spawn { set_tid: &[], namespaces, parent, inside: None, slot, signal });
    let made = match spawn(libc::CLONE_NEWPID) {
        Err(error @ ckpt_kernel::Error::Os { call: "clone3", errno: Errno::PERM }) => {
            tracing::debug!("a pid namespace alone: {error}");
            observer.warn("without CAP_SYS_ADMIN, the tasks are in a new user namespace, too");
            spawn(libc::CLONE_NEWPID | libc::CLONE_NEWUSER).map(|puppet| (puppet, true))
        }
        other => other.map(|puppet| (puppet, false)),
    };
    let (mut puppet, with_users) = made.map_err(|error| {
        let advice: Way = match error.errno() {
            Some(Errno::PERM) => {
                "it needs CAP_SYS_ADMIN, or user namespaces for everybody (user.max_user_namespaces)".into()
            }
            Some(Errno::NOSPC) => {
                "there are too many already (user.max_pid_namespaces, user.max_user_namespaces)".into()
            }
            Some(Errno::NOTTY) => "it needs Linux 6.11".into(),
            _ => Means::NoNamespace.into(),
        };
        Error::from(error).advice(advice)
    })?;
    if with_users {
        map_ids(puppet.pid())?;
    }
    strip(stage, &mut puppet)?;
    if stage.own_proc {
        let mut program = Program::new();
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let [proc, place] = [b"proc\0".to_vec(), b"/proc\0".to_vec()].map(Arg::In);
        let args = [proc.clone(), place, proc, flags.into(), 0u64.into()];
        program.call("mount of /proc", 0, libc::SYS_mount, args);
        puppet
            .run(0, program)
            .map_err(|e| Error::from(e).advice("the root directory needs a directory proc"))?;
    }
    Ok(puppet)
}

/// In the user namespace of `pid` there are our own user and group, by the numbers they have here.
fn map_ids(pid: i32) -> Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{user} {user} 1")),
        ("gid_map", format!("{group} {group} 1")),
    ] {
        let written =
            procfs::write(&format!("{pid}/{file}"), &text).doing(|| format!("write /proc/{pid}/{file}"));
        written
            .map_err(|e| e.advice("user namespaces may be restricted here; then it needs CAP_SYS_ADMIN"))?;
    }
    Ok(())
}

/// Begins with an empty address space: everything of ours goes but slot and shared areas.
pub(crate) fn strip(stage: &Stage<'_>, puppet: &mut Puppet) -> Result<()> {
    let mut program = Program::new();
    let (area, size, sig, _) = puppet.thread(0)?.rseq()?;
    if area != 0 {
        let args = [area.into(), size.into(), RSEQ_UNREGISTER.into(), sig.into()];
        program.call("rseq", area, libc::SYS_rseq, args);
    }
    // If ours were ignored, zombies would vanish.
    let default = [libc::SIGCHLD.into(), Arg::In(vec![0; 32]), 0u64.into(), 8u64.into()];
    program.call("rt_sigaction", libc::SIGCHLD as u64, libc::SYS_rt_sigaction, default);
    layout::strip(&mut program, &stage.areas, stage.slot);
    puppet.run(0, program)?;
    Ok(())
}
