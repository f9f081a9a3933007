//! Freezer cgroups, v1 and v2: what they hold, and whether that is frozen.
//!
//! Frozen, a task runs no instruction; a tracer may stop it all the same. In v2 it enters the stop
//! at once, in v1 when it is thawed, before it returns to the program. What is under ptrace and
//! stopped counts as frozen, and stays frozen when the tracer lets it go.

use crate::{
    error::{Doing, Error, Result},
    task::{ProcDir, Process, show},
};
use ckpt_proc::{
    cgroup::{Cgroup, parse_cgroup},
    mountinfo::{Mount, parse_mountinfo},
};
use rustix::fs::{Access, access, statfs};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const CGROUP_SUPER_MAGIC: i64 = 0x27_e0eb;
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// The two kinds of freezer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// The controller `freezer`.
    V1,
    /// `cgroup.freeze`, which every cgroup has but the root.
    V2,
}

impl Version {
    /// Its file that freezes, and what is written there to freeze and to thaw.
    fn control(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Version::V1 => ("freezer.state", ["FROZEN", "THAWED"]),
            Version::V2 => ("cgroup.freeze", ["1", "0"]),
        }
    }
}

/// A cgroup that can be frozen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Freezer {
    path: PathBuf,
    version: Version,
}

impl Freezer {
    /// How messages name it.
    pub(crate) fn label(&self) -> String {
        format!("cgroup {}", self.path.display())
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path.join(name)).unwrap_or_default()
    }

    /// Freezes or thaws it, without waiting.
    pub(crate) fn set(&self, frozen: bool) -> Result<()> {
        let (file, [on, off]) = self.version.control();
        std::fs::write(self.path.join(file), if frozen { on } else { off })
            .doing(|| format!("{}: write {file}", self.label()))
    }

    /// Whether it has been told to be frozen, itself and not by a cgroup above it.
    pub(crate) fn is_set(&self) -> bool {
        let file = match self.version {
            Version::V1 => "freezer.self_freezing",
            Version::V2 => "cgroup.freeze",
        };
        self.read(file).trim() == "1"
    }

    /// Whether all its tasks are frozen, by it or by a cgroup above.
    pub(crate) fn is_frozen(&self) -> bool {
        match self.version {
            Version::V1 => self.read("freezer.state").trim() == "FROZEN",
            Version::V2 => self.read("cgroup.events").lines().any(|line| line == "frozen 1"),
        }
    }

    /// Whether its tasks are to be frozen, or are.
    fn is_freezing(&self) -> bool {
        self.is_frozen() || self.version == Version::V1 && self.read("freezer.state").trim() == "FREEZING"
    }

    /// Freezes it, and waits until all its tasks are.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.freeze_unless(|| Ok(()))
    }

    /// The same; an error of `meanwhile` ends the wait.
    pub(crate) fn freeze_unless(&self, meanwhile: impl Fn() -> Result<()>) -> Result<()> {
        meanwhile()?;
        self.set(true)?;
        self.wait_rest(meanwhile)
    }

    /// Waits until all its tasks are frozen. Whoever thaws it meanwhile wants them to run.
    fn wait_rest(&self, meanwhile: impl Fn() -> Result<()>) -> Result<()> {
        // How many looks there are for each time it is told again, as v1 forgets a task that is on its way to a stop when it
        // is told. Not more often: it may be thawed between a look and that.
        const LOOKS: u32 = 20;
        let (done, mut looks) = (|| self.is_frozen() || !self.is_set(), 0);
        self.wait_until(done, || {
            meanwhile()?;
            looks += 1;
            if looks % LOOKS == 0 && !done() { self.set(true) } else { Ok(()) }
        })
    }

    /// Waits until all its tasks are frozen.
    fn wait_frozen(&self, meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        self.wait_until(|| self.is_frozen(), meanwhile)
    }

    /// Waits for `done`, as long as tasks may take to come to rest.
    fn wait_until(&self, done: impl Fn() -> bool, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let begun = Instant::now();
        loop {
            meanwhile()?;
            if done() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let what = format!("{} is being frozen, but not all of its tasks come to rest", self.label());
                return Err(Error::failed(what).advice("see which of them is in state D or runs"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The tasks in it and below it; not those in cgroups below that are frozen themselves, unless
    /// these are among `set`.
    pub(crate) fn tids(&self, set: &BTreeSet<Freezer>) -> Vec<i32> {
        let file = match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        };
        let mut tids: Vec<i32> = self.read(file).lines().filter_map(|line| line.parse().ok()).collect();
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let below = Freezer { path: entry.path(), version: self.version };
                if set.contains(&below) || !below.is_set() {
                    tids.extend(below.tids(set));
                }
            }
        }
        tids
    }

    /// Moves a process there.
    fn take(&self, pid: i32) -> Result<()> {
        let written = std::fs::write(self.path.join("cgroup.procs"), pid.to_string());
        written.doing(|| format!("{}: move pid {pid} there", self.label()))
    }
}

/// Where freezer hierarchies are mounted.
#[derive(Debug)]
pub(crate) struct Freezers {
    mounts: Vec<Freezer>,
}

impl Freezers {
    /// Looks at our mounts.
    pub(crate) fn find() -> Result<Freezers> {
        let mounts = ProcDir::own()?.parse_long("mountinfo", parse_mountinfo)?;
        let version = |m: &Mount| match m.fstype.as_slice() {
            b"cgroup2" => Some(Version::V2),
            b"cgroup" if Mount::split_options(&m.super_options).any(|o| o == b"freezer") => Some(Version::V1),
            _ => None,
        };
        let place = |m: &Mount| PathBuf::from(OsStr::from_bytes(&m.mount_point));
        let freezer = |m: &Mount| Some(Freezer { version: version(m)?, path: place(m) });
        let mut mounts: Vec<Freezer> = mounts.iter().filter_map(freezer).collect();
        // One of each; the sort is stable.
        mounts.sort_by_key(|mount| mount.version);
        mounts.dedup_by_key(|mount| mount.version);
        Ok(Freezers { mounts })
    }

    /// The root of the hierarchy that a line of /proc/PID/cgroup is about, and the cgroup there.
    fn place(&self, cgroup: &Cgroup) -> Option<(&Freezer, Freezer)> {
        let version = match cgroup.controllers.as_slice() {
            [] => Version::V2,
            all if all.iter().any(|c| c == b"freezer") => Version::V1,
            _ => return None,
        };
        let root = self.mounts.iter().find(|mount| mount.version == version)?;
        let below = OsStr::from_bytes(cgroup.path.strip_prefix(b"/").unwrap_or(&cgroup.path));
        let path = if below.is_empty() { root.path.clone() } else { root.path.join(below) };
        Some((root, Freezer { path, version }))
    }

    /// The cgroups by which the threads of a process are frozen; all of these come to rest before
    /// this returns. Places in the hierarchies that are `known` are not looked at again.
    pub(crate) fn freezing(
        &self,
        process: &Process,
        known: &mut BTreeSet<Vec<u8>>,
    ) -> Result<BTreeSet<Freezer>> {
        let mut found = BTreeSet::new();
        for tid in process.tids()? {
            let Ok(text) = process.proc.read_long(&format!("task/{tid}/cgroup")) else { continue };
            if !known.insert(text.clone()) {
                continue;
            }
            let cgroups = parse_cgroup(&text).map_err(|e| Error::failed(e.to_string()))?;
            for (root, own) in cgroups.iter().filter_map(|cgroup| self.place(cgroup)) {
                let above = own.path.ancestors().take_while(|path| path.starts_with(&root.path));
                let above = above.map(|path| Freezer { path: path.to_owned(), ..own });
                let set: BTreeSet<Freezer> = above.filter(Freezer::is_set).collect();
                if !set.is_empty() {
                    own.wait_frozen(|| Ok(()))?;
                } else if own.is_freezing() {
                    let what = format!("its {} is frozen by one above it that is not seen here", own.label());
                    return Err(Error::unsupported(what).advice("thaw it, or do it further outside"));
                }
                found.extend(set);
            }
        }
        Ok(found)
    }
}

impl Freezer {
    /// The same, for tasks of ours alone.
    pub(crate) fn named(path: &Path) -> Result<Freezer> {
        let freezer = Freezer::at(path)?;
        freezer.refuse_bystanders()?;
        Ok(freezer)
    }

    /// The freezer cgroup that a user means by `path`: absolute, or below the mount of a freezer.
    pub(crate) fn at(path: &Path) -> Result<Freezer> {
        let mounts = Freezers::find()?.mounts;
        let what = |text: &str| format!("the freezer cgroup {}: {text}", path.display());
        let places: Vec<PathBuf> = mounts.iter().map(|mount| mount.path.join(path)).collect();
        let mut there: Vec<&PathBuf> = places.iter().filter(|place| place.exists()).collect();
        there.dedup();
        let path = match there.as_slice() {
            [one] => *one,
            [] => {
                return Err(
                    Error::failed(what("there is none")).advice("make it with mkdir below a cgroup mount")
                );
            }
            _ => return Err(Error::failed(what("there are two")).advice("give an absolute path")),
        };
        let magic = statfs(path).doing(|| what("statfs"))?.f_type;
        let version = match magic {
            CGROUP_SUPER_MAGIC => Version::V1,
            CGROUP2_SUPER_MAGIC => Version::V2,
            _ => {
                return Err(
                    Error::failed(what("that is no cgroup")).advice("name a directory of a cgroup mount")
                );
            }
        };
        let (file, _) = version.control();
        if !path.join(file).exists() {
            let error = Error::failed(what(&format!("it has no {file}")));
            return Err(
                error.advice("it takes a cgroup of the v1 controller freezer or of v2, and not its root")
            );
        }
        for name in [file, "cgroup.procs"] {
            access(path.join(name), Access::WRITE_OK).doing(|| what(&format!("write {name}")))?;
        }
        Ok(Freezer { path: path.clone(), version })
    }

    /// Moves processes, all stopped by us, into it and freezes it.
    pub(crate) fn confine(&self, pids: Vec<i32>) -> Result<Custody> {
        self.refuse_bystanders()?;
        let freezers = Freezers::find()?;
        let own = ProcDir::own()?.parse_long("cgroup", parse_cgroup)?;
        let places = own.iter().filter_map(|cgroup| freezers.place(cgroup));
        let home = places.map(|(_, own)| own).find(|own| own.version == self.version);
        let custody = Custody { freezer: self.clone(), frozen: self.is_set(), home, pids };
        custody.pids.iter().try_for_each(|pid| self.take(*pid))?;
        self.freeze()?;
        Ok(custody)
    }

    /// Refuses a cgroup with tasks that we would freeze.
    fn refuse_bystanders(&self) -> Result<()> {
        match self.tids(&BTreeSet::new()).first() {
            Some(tid) if !self.is_freezing() => {
                let what = format!("{} holds {}, which would be frozen, too", self.label(), name(*tid));
                Err(Error::failed(what).advice("name an empty cgroup, or one that is frozen"))
            }
            _ => Ok(()),
        }
    }
}

/// How messages name a task.
pub(crate) fn name(tid: i32) -> String {
    let comm = ckpt_kernel::procfs::read(&format!("{tid}/comm")).unwrap_or_default();
    format!("pid {tid} ({})", show(comm.trim_ascii_end()))
}

/// Processes in a cgroup that we froze. Dropped, they go back to where they were, and the cgroup
/// becomes what it was.
#[derive(Debug)]
pub(crate) struct Custody {
    freezer: Freezer,
    /// Whether it was frozen before us.
    frozen: bool,
    home: Option<Freezer>,
    pids: Vec<i32>,
}

impl Custody {
    /// Waits for those that nobody traces any more: they leave their stops, and freeze then. Whoever has
    /// thawed the cgroup meanwhile wants them to run.
    pub(crate) fn wait(&self) -> Result<()> {
        self.freezer.wait_rest(|| Ok(()))
    }

    /// Leaves them there.
    pub(crate) fn keep(mut self) {
        self.pids.clear();
        self.frozen = true;
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        for pid in &self.pids {
            let _ = self.home.as_ref().map(|home| home.take(*pid));
        }
        if !self.frozen {
            let _ = self.freezer.set(false);
        }
    }
}
