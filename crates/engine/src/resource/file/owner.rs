//! Signal-driven I/O: whom a file signals, with which signal, and whether it does (O_ASYNC).
//!
//! *Saved*: owner and signal of an open description, asked of a copy (pidfd_getfd(2), Linux 5.6) with
//! F_GETOWN_EX and F_GETSIG; O_ASYNC is among its flags. *Restored*: by the leader, as whom it signals
//! depends on who asked for it; O_ASYNC last, through the first descriptor of the description.
//! *Refused*: an owner that is neither a process or process group of the tree nor one of the threads. *Lost*: an
//! owner that has ended (the kernel says nobody then); by which of several descriptors O_ASYNC was set (si_fd), and
//! through them by which of several processes with other credentials.

use super::Descriptor;
use crate::{
    error::{Error, Result},
    task::{Process, show, stat_of},
};
use ckpt_image::{
    Image, Object, model,
    record::{self, owner_kind},
};
use ckpt_kernel::{
    program::{Arg, Program},
    query,
};
use rustix::fs::OFlags;
use std::collections::BTreeSet;

const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;
const F_OWNER_PID: i32 = 1;
const F_OWNER_PGRP: i32 = 2;

/// Adds the owner to the record of a new open description.
pub(crate) fn checkpoint(
    descriptor: &Descriptor<'_>,
    file: &mut model::File,
    members: &BTreeSet<i32>,
) -> Result<()> {
    let process = descriptor.process;
    let is_path = OFlags::from_bits_retain(descriptor.flags).contains(OFlags::PATH);
    let Some(copy) = descriptor.copy.as_ref().filter(|_| !is_path) else { return Ok(()) };
    let (kind, owner) = query::file_owner(copy)?;
    file.record.owner_signal = query::file_signal(copy)?;
    if owner == 0 {
        return Ok(());
    }
    let ours = match kind {
        F_OWNER_PID => members.contains(&owner),
        F_OWNER_TID => process.tids()?.contains(&owner),
        F_OWNER_PGRP => members.iter().any(|pid| is_in_group(*pid, owner)),
        _ => false,
    };
    if !ours {
        let who = match kind {
            F_OWNER_PID | F_OWNER_TID => Process::open(owner).map_or(format!("task {owner}"), |p| p.label()),
            _ => format!("process group {owner}"),
        };
        let what =
            format!("{} signals {who} (F_SETOWN), which cannot be carried yet", show(&descriptor.link));
        return Err(
            Error::unsupported(what).advice("checkpoint it together with that one, or at another moment")
        );
    }
    file.record.owner_kind = match kind {
        F_OWNER_PID => owner_kind::PROCESS,
        F_OWNER_PGRP => owner_kind::GROUP,
        _ => owner_kind::THREAD,
    };
    file.record.owner = owner;
    Ok(())
}

/// Whether a process lives and is in a group.
fn is_in_group(pid: i32, group: i32) -> bool {
    stat_of(pid).is_some_and(|stat| stat.pgrp == group && !stat.state.has_ended())
}

/// The process groups that files of an image signal.
pub(crate) fn groups(image: &Image) -> BTreeSet<i32> {
    let group = |object: &Object| match object {
        Object::File(file) if file.record.owner_kind == owner_kind::GROUP => Some(file.record.owner),
        _ => None,
    };
    image.objects.values().filter_map(group).collect()
}

/// Sets owners, signals and O_ASYNC of all descriptions in `table`. `id` gives the new id of an owner.
pub(crate) fn restore(
    program: &mut Program,
    image: &Image,
    table: &model::FileTable,
    id: impl Fn(u32, i32) -> Option<i32>,
) -> Result<()> {
    let mut done = BTreeSet::new();
    for desc in &table.descs {
        let Some(file) = image.file(desc.file) else { continue };
        let record = &file.record;
        let signals = record.owner_kind != owner_kind::NONE || record.owner_signal != 0 || is_async(record);
        if !signals || !done.insert(desc.file) {
            continue;
        }
        let mut fcntl = |command: i32, arg: Arg| {
            program.call("fcntl", desc.fd as u64, libc::SYS_fcntl, [desc.fd.into(), command.into(), arg]);
        };
        if record.owner_kind != owner_kind::NONE {
            let kind = match record.owner_kind {
                owner_kind::PROCESS => F_OWNER_PID,
                owner_kind::GROUP => F_OWNER_PGRP,
                _ => F_OWNER_TID,
            };
            let owner = id(record.owner_kind, record.owner).ok_or_else(|| {
                Error::bad_image(format!("fd {} signals a task that is not in the image", desc.fd))
            })?;
            fcntl(F_SETOWN_EX, Arg::In([kind, owner].iter().flat_map(|word| word.to_le_bytes()).collect()));
        }
        if record.owner_signal != 0 {
            fcntl(F_SETSIG, u64::from(record.owner_signal).into());
        }
        if is_async(record) {
            fcntl(libc::F_SETFL, u64::from(record.flags).into());
        }
    }
    Ok(())
}

fn is_async(record: &record::File) -> bool {
    record.flags & libc::O_ASYNC as u32 != 0
}
