//! Credentials of a thread: ids, groups, capability sets, securebits.
//!
//! *Saved*: from /proc/TID/status; threads with equal credentials share one record. *Restored*: by
//! the thread itself, groups and ids first under KEEPCAPS, then the bounding set, securebits,
//! capabilities, ambient set. Whoever restarts gets nothing they could not have given themselves:
//! the kernel checks each call against their own privileges. *Lost*: keyrings, LSM labels.

use crate::{error::Result, task::Process};
use ckpt_image::{
    model::{Cred, Thread},
    record,
};
use ckpt_kernel::program::{Arg, Program};
use ckpt_proc::status::Status;
use zerocopy::IntoBytes;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// One past the highest capability number that fits the sets.
const CAPABILITIES: u32 = 64;
const SECBIT_KEEP_CAPS: u32 = 1 << 4;

/// The credentials /proc/TID/status shows.
pub(crate) fn checkpoint(status: &Status) -> Cred {
    let ids = |ids: ckpt_proc::status::Ids| [ids.real, ids.effective, ids.saved, ids.fs];
    Cred {
        record: record::Cred {
            uid: ids(status.uid),
            gid: ids(status.gid),
            cap_inheritable: status.cap_inheritable,
            cap_permitted: status.cap_permitted,
            cap_effective: status.cap_effective,
            cap_bounding: status.cap_bounding,
            cap_ambient: status.cap_ambient,
        },
        groups: status.groups.clone(),
    }
}

/// The credentials of process `pid`: what its offspring starts with.
pub(crate) fn of(pid: i32) -> Result<Cred> {
    Ok(checkpoint(&Process::open(pid)?.status()?))
}

/// Appends the calls that turn credentials `from` into those of `thread`.
pub(crate) fn restore(program: &mut Program, from: &Cred, to: &Cred, thread: &Thread) {
    let prctl = libc::SYS_prctl;
    let securebits = thread.record.securebits;
    if from == to && securebits == 0 {
        return;
    }
    for cap in 0..CAPABILITIES {
        let bit = 1u64 << cap;
        if from.record.cap_bounding & bit != 0 && to.record.cap_bounding & bit == 0 {
            program.call(
                "prctl(PR_CAPBSET_DROP)",
                cap.into(),
                prctl,
                [libc::PR_CAPBSET_DROP.into(), cap.into()],
            );
        }
    }
    if from.groups != to.groups {
        let count = to.groups.len() as u64;
        program.call(
            "setgroups",
            0,
            libc::SYS_setgroups,
            [count.into(), Arg::In(to.groups.as_bytes().to_vec())],
        );
    }
    let [real, effective, saved, fs] = to.record.gid;
    program.call(
        "setresgid",
        real.into(),
        libc::SYS_setresgid,
        [real.into(), effective.into(), saved.into()],
    );
    program.try_call("setfsgid", libc::SYS_setfsgid, [fs.into()]);
    let [real, effective, saved, fs] = to.record.uid;
    program.try_call("prctl(PR_SET_KEEPCAPS)", prctl, [libc::PR_SET_KEEPCAPS.into(), 1u64.into()]);
    program.call(
        "setresuid",
        real.into(),
        libc::SYS_setresuid,
        [real.into(), effective.into(), saved.into()],
    );
    program.try_call("setfsuid", libc::SYS_setfsuid, [fs.into()]);
    restore_capabilities(program, from, to, securebits);
}

fn restore_capabilities(program: &mut Program, from: &Cred, to: &Cred, securebits: u32) {
    let prctl = libc::SYS_prctl;
    // Effective capabilities were lost with the ids: raise what is permitted, to be able to go on.
    let capset = |program: &mut Program, effective: u64, permitted: u64, inheritable: u64| {
        let header = [CAPABILITY_VERSION_3, 0];
        let half = |set: u64, high: bool| (if high { set >> 32 } else { set }) as u32;
        let data = [false, true].map(|h| [half(effective, h), half(permitted, h), half(inheritable, h)]);
        let args = [Arg::In(header.as_bytes().to_vec()), Arg::In(data.as_bytes().to_vec())];
        program.call("capset", permitted, libc::SYS_capset, args);
    };
    let permitted = from.record.cap_permitted;
    if securebits != 0 && securebits != SECBIT_KEEP_CAPS {
        capset(program, permitted, permitted, from.record.cap_inheritable);
        let bits = u64::from(securebits & !SECBIT_KEEP_CAPS);
        program.call("prctl(PR_SET_SECUREBITS)", bits, prctl, [libc::PR_SET_SECUREBITS.into(), bits.into()]);
    }
    capset(program, to.record.cap_effective, to.record.cap_permitted, to.record.cap_inheritable);
    for cap in (0..CAPABILITIES).filter(|cap| to.record.cap_ambient >> cap & 1 != 0) {
        let args = [
            libc::PR_CAP_AMBIENT.into(),
            libc::PR_CAP_AMBIENT_RAISE.into(),
            cap.into(),
            0u64.into(),
            0u64.into(),
        ];
        program.call("prctl(PR_CAP_AMBIENT_RAISE)", cap.into(), prctl, args);
    }
    let keep = u64::from(securebits & SECBIT_KEEP_CAPS != 0);
    program.try_call("prctl(PR_SET_KEEPCAPS)", prctl, [libc::PR_SET_KEEPCAPS.into(), keep.into()]);
}
