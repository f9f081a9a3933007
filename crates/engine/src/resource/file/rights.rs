//! As whom files are opened.
//!
//! Root may restart what was a user's program, and that user may have put a link where the program had a file: what is opened
//! through it must be what the program could have opened. Besides, an open file remembers whose rights it was
//! opened with, and some files of /proc ask for those. So a file is opened with the effective ids of a task that has it. What that
//! one may not open was opened before it gave up rights, or by somebody else: it is opened with ours, if it is
//! the very file, by device and inode, and no other that was made since. The same goes for FIFOs and for what an inotify watches. Of
//! working and root directories an image has the paths alone, but they are the kernel's own: no link is on the way there, or
//! it is another directory. A socket for datagrams is connected with the rights of who has it, or not any more.

use super::identity::born_since;
use crate::{
    advice::Means,
    error::{Doing, Error, ErrorKind, Result},
    options::RestartOptions,
    resource::fs,
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{self, task_state},
};
use rustix::{
    fs::{Gid, ResolveFlags, Uid},
    process::{getegid, geteuid, getgroups},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};
use std::{collections::BTreeMap, os::fd::OwnedFd};

/// CAP_DAC_OVERRIDE (capabilities(7)): who has it may open anything.
const DAC_OVERRIDE: u64 = 1 << 1;

/// The rights of a task that has a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// When the image was begun, in nanoseconds since 1970.
    time: u64,
}

/// By file, contents and directories; those that are to be opened with our own are not in it, or have none.
pub(crate) type Holders = BTreeMap<Objref, Option<Rights>>;

/// Which tasks' rights files, FIFOs and directories are to be opened with: none but ours, unless we are root; and not if files that changed are welcome.
pub(crate) fn holders(image: &Image, options: &RestartOptions) -> Holders {
    let mut holders = Holders::new();
    let rights = |thread: &model::Thread| {
        let Some(Object::Cred(cred)) = image.objects.get(&thread.record.cred) else { return None };
        let record::Cred { uid: [.., uid], gid: [.., gid], cap_effective, .. } = cred.record;
        let privileged = uid == 0 || cap_effective & DAC_OVERRIDE != 0;
        let rights = || Rights { uid, gid, groups: cred.groups.clone(), time: image.header.time };
        Some((!privileged).then(rights))
    };
    let living = || image.processes.iter().filter(|p| p.task.state != task_state::ZOMBIE);
    let may_all = |(_, thread)| !matches!(rights(thread), Some(Some(_)));
    if !geteuid().is_root() || options.force_files || living().flat_map(model::Process::living).all(may_all) {
        return holders;
    }
    for process in living() {
        let table = image.files(process.task.files).map_or(&[][..], |table| &table.descs);
        let mapped = image
            .mm(process.task.mm)
            .into_iter()
            .flat_map(|mm| mm.vmas.iter().map(|vma| vma.record.object).chain([mm.record.exe]));
        let files: Vec<Objref> = table.iter().map(|desc| desc.file).chain(mapped).collect();
        let inodes = files.iter().filter_map(|file| Some(image.file(*file)?.record.inode));
        let objects: Vec<Objref> = files.iter().copied().chain(inodes).chain([process.task.fs]).collect();
        for rights in process.living().filter_map(|(_, thread)| rights(thread)) {
            for object in &objects {
                match &rights {
                    None => drop(holders.insert(*object, None)),
                    some => drop(holders.entry(*object).or_insert_with(|| some.clone())),
                }
            }
        }
    }
    holders
}

impl Rights {
    /// Opens a file with these rights, or else, if it is what `record` says, with ours.
    pub(super) fn open(&self, record: &record::File, open: impl Fn() -> Result<OwnedFd>) -> Result<OwnedFd> {
        self.or_ours(&open, || Ok(self.same(record, Some(open()?))))
    }

    /// A file, if it is the very one that a record is about.
    pub(super) fn same(&self, record: &record::File, fd: Option<OwnedFd>) -> Option<OwnedFd> {
        fd.filter(|fd| {
            let stat = rustix::fs::fstat(fd);
            let same = stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (record.dev, record.ino));
            same && !born_since(fd, self.time)
        })
    }

    /// Opens a directory of a task's with these rights, or else, if it is the one that the kernel called `path`, with ours.
    pub(crate) fn enter(
        &self,
        path: &[u8],
        open: impl Fn(&[u8], ResolveFlags) -> Result<OwnedFd>,
    ) -> Result<OwnedFd> {
        let inside = fs::inside(path);
        self.or_ours(
            || open(&inside, ResolveFlags::empty()),
            || {
                let fd = open(path, ResolveFlags::NO_SYMLINKS).ok();
                Ok(fd.filter(|fd| !born_since(fd, self.time)))
            },
        )
    }

    /// Does something with these rights, or, if they are not enough, with ours: `ours` has nothing when that was another file.
    pub(super) fn or_ours<T>(
        &self,
        theirs: impl FnOnce() -> Result<T>,
        ours: impl FnOnce() -> Result<Option<T>>,
    ) -> Result<T> {
        let refused = match self.lend(theirs)? {
            Err(error) if error.kind == ErrorKind::Permission => error,
            other => return other,
        };
        ours()?.ok_or_else(|| {
            refused
                .why(format!("user {} may not, and it is another file than the program had open", self.uid))
                .advice("put the original back")
                .or(Means::ForceFiles)
        })
    }

    /// Does something with ours but for CAP_SYS_ADMIN: files of a task that is not made yet cannot be opened with its own, and
    /// pagemap asks for that one.
    pub(super) fn spare_admin<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let all = capabilities(None).doing(|| "capget".to_owned())?;
        let fewer = CapabilitySets { effective: all.effective - CapabilitySet::SYS_ADMIN, ..all };
        set_capabilities(None, fewer).doing(|| "capset".to_owned())?;
        let done = work();
        set_capabilities(None, all).doing(|| "take our own capabilities back".to_owned())?;
        Ok(done)
    }

    /// Does something with these rights instead of ours.
    pub(super) fn lend<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let (uid, gid, groups) = (geteuid(), getegid(), getgroups().doing(|| "getgroups".to_owned())?);
        let dumpable = rustix::process::dumpable_behavior().doing(|| "prctl(PR_GET_DUMPABLE)".to_owned())?;
        let theirs: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let become_them = || {
            set_thread_groups(&theirs)?;
            set_thread_res_gid(None, Gid::from_raw(self.gid), None)?;
            set_thread_res_uid(None, Uid::from_raw(self.uid), None)
        };
        let done = become_them().map(|()| work());
        // With the user come all capabilities back. Whoever changes ids is not dumpable any more.
        set_thread_res_uid(None, uid, None)
            .and_then(|()| set_thread_res_gid(None, gid, None))
            .and_then(|()| set_thread_groups(&groups))
            .and_then(|()| rustix::process::set_dumpable_behavior(dumpable))
            .doing(|| "take our own rights back".to_owned())?;
        done.map_err(|cause| Error::os(format!("take on the rights of user {}", self.uid), cause))
    }
}
