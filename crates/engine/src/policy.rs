//! What a tree may have to do with the outside: refused unless the caller knows of it.
//!
//! `checkpoint` carries what it can and says at restart what is missing. An engine that drives us through the
//! `criu` front end wants to be told beforehand: then each of these is refused, before the tree is touched,
//! until an option says that the caller will provide it again. Locks and sockets are refused where they are
//! recorded (`resource/file/{lock,external}.rs`), terminals and sessions here.

use crate::{
    advice::Means,
    error::{Context, Error, Result},
    objects::Objects,
    resource::file::{external, pty},
    task::{Process, show},
};
use ckpt_image::{Object, record::file_kind};
use ckpt_kernel::{query::Kcmp, tty};
use rustix::fs::{major, minor};

/// What is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Nothing.
    #[default]
    Permissive,
    /// All that is not allowed.
    Strict(Allowed),
}

/// What a strict policy allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// A session whose leader is outside, and terminals from outside.
    pub shell_job: bool,
    /// Connected unix sockets whose peer is outside.
    pub ext_unix_sk: bool,
    /// Established TCP connections.
    pub tcp_established: bool,
    /// Locks and leases on files.
    pub file_locks: bool,
}

impl Policy {
    /// Whether what `allowed` picks is refused.
    pub(crate) fn refuses(self, allowed: impl FnOnce(Allowed) -> bool) -> bool {
        matches!(self, Policy::Strict(all) if !allowed(all))
    }

    /// Whether anything is.
    pub(crate) fn is_strict(self) -> bool {
        self != Policy::Permissive
    }
}

/// Refuses terminals and sessions from outside. `members` are the living processes of the tree, the root first.
pub(crate) fn check<'a>(members: impl IntoIterator<Item = &'a Process>, objects: &Objects) -> Result<()> {
    if !objects.policy.refuses(|allowed| allowed.shell_job) {
        return Ok(());
    }
    for (index, process) in members.into_iter().enumerate() {
        // It may have ended since.
        let Ok(stat) = process.stat() else { continue };
        if index == 0 && !objects.members.contains(&stat.session) {
            let what = format!("the leader of its session ({}) is outside the tree", stat.session);
            return Err(Error::unsupported(what).advice(Means::ShellJob).task(process.label()));
        }
        let (major, index) = tty::split_device(stat.tty_nr as u32);
        if stat.tty_nr != 0 && !is_inside(major, index, objects) {
            let what = "its controlling terminal is outside the tree";
            return Err(Error::unsupported(what).advice(Means::ShellJob).task(process.label()));
        }
    }
    terminals(objects)
}

/// Refuses descriptors of terminals from outside.
fn terminals(objects: &Objects) -> Result<()> {
    for (pid, table) in objects.holders(Kcmp::Files) {
        let Some(Object::Files(table)) = objects.table.get(&table) else { continue };
        for desc in &table.descs {
            let Some(Object::File(file)) = objects.table.get(&desc.file) else { continue };
            let record = &file.record;
            let outside = record.kind == file_kind::EXTERNAL_TTY
                && external::name(file).is_none()
                && !is_inside(major(record.rdev), minor(record.rdev), objects);
            if outside {
                let what = format!("the terminal {} is outside the tree", show(&file.path));
                let error =
                    Error::unsupported(what).advice(Means::ShellJob).object(format!("fd {}", desc.fd));
                return Err(error)
                    .task(|| Process::open(pid).map_or_else(|_| format!("pid {pid}"), |p| p.label()));
            }
        }
    }
    Ok(())
}

/// Whether a terminal is a pty whose master is in the tree.
fn is_inside(major: u32, index: u32, objects: &Objects) -> bool {
    major == pty::SLAVE_MAJOR && pty::of_index(objects, index).is_some()
}
