//! Freezer cgroups, v1 and v2: what is frozen there cannot run a visit's programs yet.

use crate::{
    error::{Error, Result},
    task::{ProcDir, Process, show},
};
use ckpt_proc::{
    cgroup::parse_cgroup,
    mountinfo::{Mount, parse_mountinfo},
};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};

/// Where freezer hierarchies are mounted: the v1 controller, the v2 tree.
#[derive(Debug)]
pub(crate) struct Freezers {
    v1: Option<PathBuf>,
    v2: Option<PathBuf>,
}

impl Freezers {
    /// Looks at our mounts.
    pub(crate) fn find() -> Result<Freezers> {
        let mounts = ProcDir::own()?.parse("mountinfo", parse_mountinfo)?;
        let is_freezer = |m: &Mount| {
            m.fstype == b"cgroup" && Mount::split_options(&m.super_options).any(|option| option == b"freezer")
        };
        let place = |m: &Mount| PathBuf::from(OsStr::from_bytes(&m.mount_point));
        Ok(Freezers {
            v1: mounts.iter().find(|m| is_freezer(m)).map(place),
            v2: mounts.iter().find(|m| m.fstype == b"cgroup2").map(place),
        })
    }

    /// Refuses a process in a cgroup that is frozen.
    pub(crate) fn refuse_frozen(&self, process: &Process) -> Result<()> {
        for cgroup in process.proc.parse("cgroup", parse_cgroup)? {
            let (mount, file) = match cgroup.controllers.as_slice() {
                [] => (&self.v2, "cgroup.events"),
                all if all.iter().any(|c| c == b"freezer") => (&self.v1, "freezer.state"),
                _ => continue,
            };
            let Some(mount) = mount else { continue };
            let below = cgroup.path.strip_prefix(b"/").unwrap_or(&cgroup.path);
            let state = std::fs::read_to_string(mount.join(OsStr::from_bytes(below)).join(file));
            let state = state.unwrap_or_default();
            if state.lines().any(|line| ["frozen 1", "FROZEN", "FREEZING"].contains(&line)) {
                let what = format!("its cgroup {} is frozen", show(&cgroup.path));
                return Err(Error::unsupported(what).advice("thaw it: checkpoint stops the program itself"));
            }
        }
        Ok(())
    }
}
