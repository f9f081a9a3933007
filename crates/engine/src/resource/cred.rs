//! Credentials of a thread: ids, groups, capability sets, securebits.
//!
//! *Saved*: from /proc/TID/status; threads with equal credentials share one record. *Restored*: by
//! the thread itself, groups and ids first under KEEPCAPS, then the bounding set, securebits,
//! capabilities, ambient set. Whoever restarts gets nothing they could not have given themselves:
//! the kernel checks each call against their own privileges. A puppet begins with those of the coordinator, and gives
//! up what the thread did not have. *Lost*: keyrings, LSM labels; with a warning: that no_new_privs was not set, when it
//! is of ours, and what our bounding set lacks. Nobody can undo these.

use crate::{
    error::{Error, Result},
    options::Observer,
    task::Process,
};
use ckpt_image::{
    Image,
    model::{Cred, Thread},
    record,
};
use ckpt_kernel::{
    program::{Arg, Program},
    puppet::Puppet,
};
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

/// What puppets have at first.
pub(crate) struct Born {
    cred: Cred,
    securebits: u32,
    no_new_privs: bool,
}

impl Born {
    /// Asks one of them.
    pub(crate) fn of(puppet: &mut Puppet) -> Result<Born> {
        let status = Process::open(puppet.pid())?.status()?;
        let mut question = Program::new();
        question.call("prctl(PR_GET_SECUREBITS)", 0, libc::SYS_prctl, [libc::PR_GET_SECUREBITS.into()]);
        let answers = puppet.run(0, question)?;
        let [securebits] = answers.as_slice() else { return Err(Error::failed("no answer of a puppet")) };
        let securebits = securebits.result as u32;
        Ok(Born { cred: checkpoint(&status), securebits, no_new_privs: status.no_new_privs })
    }

    /// Warns of what a thread of the image keeps of it though it did not have it.
    pub(crate) fn warn(&self, image: &Image, observer: &mut dyn Observer) {
        let threads = || image.processes.iter().flat_map(|process| process.living().map(|(_, t)| t));
        let tid = |thread: &Thread| thread.record.tid;
        if let Some(tid) = threads().find(|t| self.no_new_privs && t.record.no_new_privs == 0).map(tid) {
            observer.warn(&format!("{tid} has no_new_privs now, as restart does: nobody can take it back"));
        }
        let bounding = |t: &Thread| image.cred(t.record.cred).map_or(0, |cred| cred.record.cap_bounding);
        let ours = self.cred.record.cap_bounding;
        if let Some(thread) = threads().find(|t| bounding(t) & !ours != 0) {
            let (tid, lacks) = (tid(thread), bounding(thread) & !ours);
            observer.warn(&format!(
                "{tid} lacks {lacks:#x} in its capability bounding set now, as restart does: nobody can add to it"
            ));
        }
    }
}

/// Appends the calls that turn credentials `born` into those of `thread`.
pub(crate) fn restore(program: &mut Program, born: &Born, to: &Cred, thread: &Thread) {
    let prctl = libc::SYS_prctl;
    let securebits = thread.record.securebits;
    let from = &born.cred;
    if from == to && securebits == born.securebits {
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
    restore_capabilities(program, born, to, securebits);
}

fn restore_capabilities(program: &mut Program, born: &Born, to: &Cred, securebits: u32) {
    let from = &born.cred;
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
    if (securebits ^ born.securebits) & !SECBIT_KEEP_CAPS != 0 {
        capset(program, permitted, permitted, from.record.cap_inheritable);
        let bits = u64::from(securebits & !SECBIT_KEEP_CAPS);
        program.call("prctl(PR_SET_SECUREBITS)", bits, prctl, [libc::PR_SET_SECUREBITS.into(), bits.into()]);
    }
    capset(program, to.record.cap_effective, to.record.cap_permitted, to.record.cap_inheritable);
    let ambient = |what: i32, cap: u32| {
        [libc::PR_CAP_AMBIENT.into(), what.into(), cap.into(), 0u64.into(), 0u64.into()]
    };
    if from.record.cap_ambient & !to.record.cap_ambient != 0 {
        let args = ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0);
        program.call("prctl(PR_CAP_AMBIENT_CLEAR_ALL)", 0, prctl, args);
    }
    for cap in (0..CAPABILITIES).filter(|cap| to.record.cap_ambient >> cap & 1 != 0) {
        let args = ambient(libc::PR_CAP_AMBIENT_RAISE, cap);
        program.call("prctl(PR_CAP_AMBIENT_RAISE)", cap.into(), prctl, args);
    }
    let keep = u64::from(securebits & SECBIT_KEEP_CAPS != 0);
    program.try_call("prctl(PR_SET_KEEPCAPS)", prctl, [libc::PR_SET_KEEPCAPS.into(), keep.into()]);
}
