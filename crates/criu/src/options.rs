//! What the front end can be asked: one plain model that the command line, configuration files and
//! the RPC fill in and the actions read.
//!
//! Text has become meaning here: an action never parses. Paths and names are bytes. What CRIU has and
//! this front end does not do yet has no field; `table.rs` refuses it by name.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write an image of a tree.
    Dump,
    /// Write the memory of a tree, which goes on.
    PreDump,
    /// Make a tree from an image.
    Restore,
    /// Say whether the kernel has what is needed.
    Check,
    /// Receive page contents for a dump elsewhere.
    PageServer,
    /// Serve pages on demand.
    LazyPages,
    /// Answer RPC requests on a socket of its own.
    Service,
    /// Answer RPC requests on this descriptor.
    Swrk(i32),
    /// Drop pages that a later image of the chain has.
    Dedup,
    /// Write what the processor has.
    CpuinfoDump,
    /// Compare it with what was written.
    CpuinfoCheck,
}

impl Action {
    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Action::Dump => "dump",
            Action::PreDump => "pre-dump",
            Action::Restore => "restore",
            Action::Check => "check",
            Action::PageServer => "page-server",
            Action::LazyPages => "lazy-pages",
            Action::Service => "service",
            Action::Swrk(_) => "swrk",
            Action::Dedup => "dedup",
            Action::CpuinfoDump => "cpuinfo dump",
            Action::CpuinfoCheck => "cpuinfo check",
        }
    }
}

/// How the network is kept from the tasks' TCP connections while they are dumped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkLock {
    /// By iptables rules.
    #[default]
    Iptables,
    /// By an nftables table.
    Nftables,
    /// Not at all: the caller does it, or it does not matter.
    Skip,
}

/// What is done about the cgroups of the tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManageCgroups {
    /// Nothing: the tasks are in the cgroup of who restores them. When the option is not given.
    #[default]
    Ignore,
    /// The tasks are put into theirs, which must be there; properties stay as they are.
    None,
    /// Missing ones are not made; properties are set.
    Props,
    /// Missing ones are made, and properties of these set. When the option is given without a mode.
    Soft,
    /// Missing ones are made, and properties of all set.
    Full,
    /// None may be there before; all are made, and properties set.
    Strict,
}

/// `[CONTROLLER:]PATH`: where cgroups of the tasks are put instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupRoot {
    /// Of this controller (list of names as in /proc/PID/cgroup), or of every one.
    pub controller: Option<Vec<u8>>,
    /// The new root, absolute in the hierarchy.
    pub path: PathBuf,
}

/// `--external`: something that is not part of the tree, by the caller's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The word itself, `KIND[ID]` or `KIND[ID]:KEY`: images call external files by it.
    pub word: Vec<u8>,
    /// What it means.
    pub what: Outside,
}

/// What an `--external` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outside {
    /// `mnt[KEY]:VALUE`: on dump KEY is a mount point of the tasks and VALUE its name in the image; on restore KEY is that
    /// name and VALUE the path that is bound there. Without VALUE it is empty.
    Mount {
        /// Between the brackets.
        key: Vec<u8>,
        /// After the colon.
        value: Vec<u8>,
    },
    /// `mnt[]` or `mnt[]:FLAGS`: every mount that comes from outside is external.
    MountAuto {
        /// `s`: those in a peer group with the outside, too (as `--enable-external-sharing`).
        sharing: bool,
        /// `m`: those that are slaves of the outside, too (as `--enable-external-masters`).
        masters: bool,
    },
    /// `dev[MAJOR/MINOR]:NAME` on dump: a mounted block device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Its name in the image.
        name: Vec<u8>,
    },
    /// `dev[NAME]:PATH` on restore.
    DevicePath {
        /// Its name in the image.
        name: Vec<u8>,
        /// The device here.
        path: PathBuf,
    },
    /// `file[MNT_ID:INODE]` (both hexadecimal): an open file; restored by `--inherit-fd fd[N]:file[MNT_ID:INODE]`.
    File {
        /// Mount id.
        mount: u64,
        /// Inode number.
        inode: u64,
    },
    /// `tty[RDEV:DEV]` (both hexadecimal): a terminal; restored by `--inherit-fd fd[N]:tty[RDEV:DEV]`.
    Tty {
        /// Device number of the terminal.
        rdev: u64,
        /// Device number of the file system it is on.
        dev: u64,
    },
    /// `unix[INODE]`: one end of a unix socket connection that leads outside.
    Unix {
        /// Inode number as /proc/PID/fd shows it.
        inode: u64,
    },
    /// `pipe[INODE]`: a pipe or FIFO.
    Pipe {
        /// Inode number as /proc/PID/fd shows it.
        inode: u64,
    },
    /// `net[INODE]:NAME`: a network namespace; restored by `--inherit-fd fd[N]:NAME`.
    Net {
        /// Inode number of the namespace.
        inode: u64,
        /// Its name in the image.
        name: Vec<u8>,
    },
    /// `pid[INODE]:NAME`: a pid namespace; restored by `--inherit-fd fd[N]:NAME`.
    Pid {
        /// Inode number of the namespace.
        inode: u64,
        /// Its name in the image.
        name: Vec<u8>,
    },
    /// `veth[IN]:OUT[@BRIDGE]` on restore: the outer end of the pair whose inner end is IN.
    Veth {
        /// Inner name.
        inner: Vec<u8>,
        /// Outer name.
        outer: Vec<u8>,
        /// Bridge the outer end is put into.
        bridge: Option<Vec<u8>>,
    },
    /// `macvlan[IN]:OUT` on restore: the device the macvlan IN is on.
    Macvlan {
        /// Name inside.
        inner: Vec<u8>,
        /// Device outside.
        outer: Vec<u8>,
    },
    /// `netdev[IN]:OUT` on restore: the device that is moved in and called IN.
    Netdev {
        /// Name inside.
        inner: Vec<u8>,
        /// Device outside.
        outer: Vec<u8>,
    },
}

/// `--inherit-fd fd[N]:NAME`: a descriptor of ours takes the place of what the image calls NAME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InheritFd {
    /// Our descriptor.
    pub fd: i32,
    /// Absolute path, `pipe:[INODE]`, `socket:[INODE]`, `tty[..]`, `file[..]` or a name given by `--external`. CRIU's
    /// callers leave out the leading slash of a path.
    pub name: Vec<u8>,
}

/// `--ext-mount-map`: the older way to say what `--external mnt` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountMap {
    /// `auto`: as `--external mnt[]`.
    Auto,
    /// `KEY:VALUE`, as in `--external mnt[KEY]:VALUE`.
    Pair(Vec<u8>, Vec<u8>),
}

/// Where an existing namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NsPlace {
    /// That of this process.
    Process(i32),
    /// This file of nsfs.
    File(PathBuf),
}

/// Kinds of namespaces that can be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum NsKind {
    Net,
    Uts,
    Ipc,
    Time,
    Pid,
    User,
    Mnt,
    Cgroup,
}

/// `--join-ns KIND:PLACE[,EXTRA]`: the tasks are put into a namespace that is there instead of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinNs {
    /// Which.
    pub kind: NsKind,
    /// Where.
    pub place: NsPlace,
    /// What follows the comma (`UID,GID` for a user namespace).
    pub extra: Option<String>,
}

/// `--ext-unix-sk`: unix sockets whose other end is outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExtUnix {
    /// Refused.
    #[default]
    Refuse,
    /// Any may be.
    Any,
    /// Those of these inode numbers may be (`--ext-unix-sk=INODE`, repeatable).
    These(Vec<u64>),
}

/// How much `check` looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckScope {
    /// What the engine cannot do without.
    #[default]
    Basic,
    /// And what it makes use of (`--extra`).
    Extra,
    /// And everything else that has a name (`--all`).
    All,
}

/// Everything that options say. Each field: its option, what it means, its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `-t`: the process whose tree is dumped. None; a dump needs it.
    pub tree: Option<i32>,
    /// `-D`: the directory of the image, which must be there. `.`.
    pub images_dir: PathBuf,
    /// `-W`: where log, pid file and statistics go, relative names taken from here. The images directory.
    pub work_dir: Option<PathBuf>,
    /// `-o`: log file, relative to the work directory. None: standard error.
    pub log_file: Option<PathBuf>,
    /// `-v`: 0 nothing, 1 errors, 2 and warnings, 3 and information, 4 and debugging. 2.
    pub verbosity: u8,
    /// `--pidfile`: made anew with the root's pid in it; relative to the work directory. None.
    pub pidfile: Option<PathBuf>,
    /// `-r`: root directory of the restored tasks. None: ours.
    pub root: Option<PathBuf>,
    /// `-R`: after the dump the tasks go on. False: they are killed.
    pub leave_running: bool,
    /// `-s`: after the dump (or the restore) they are left stopped, every thread in state T. False.
    pub leave_stopped: bool,
    /// `-d`: restore returns when the tasks run. False: it waits for the root and exits when that does.
    pub restore_detached: bool,
    /// `-S`: the root becomes a child of our parent. False.
    pub restore_sibling: bool,
    /// `-j`: the terminal (and session) of the tasks belongs to somebody outside; on restore it is ours. False.
    pub shell_job: bool,
    /// `--tcp-established`: connections are carried. False: refused.
    pub tcp_established: bool,
    /// `--tcp-close`: connections are closed ones after the restore. False.
    pub tcp_close: bool,
    /// `--skip-in-flight`: connections not yet accepted are dropped. False: refused.
    pub skip_in_flight: bool,
    /// `-x`: unix sockets whose other end is outside. Refused.
    pub ext_unix_sk: ExtUnix,
    /// `-l`: file locks are carried. False: refused.
    pub file_locks: bool,
    /// `--link-remap`: unlinked files that have names still may be linked to a name of ours. False: refused.
    pub link_remap: bool,
    /// `--ghost-limit`: most bytes of an unlinked file (suffixes K, M, G). 1 MiB.
    pub ghost_limit: u64,
    /// `--external`: what is outside. Nothing.
    pub external: Vec<External>,
    /// `--inherit-fd`: what takes the place of external things. Nothing.
    pub inherit_fd: Vec<InheritFd>,
    /// `-M`: the older form of `--external mnt`. Nothing.
    pub ext_mount_map: Vec<MountMap>,
    /// `--enable-external-sharing`: external mounts found by `auto` may be in a peer group with the outside. False.
    pub enable_external_sharing: bool,
    /// `--enable-external-masters`: ... may be slaves of the outside. False.
    pub enable_external_masters: bool,
    /// `--manage-cgroups`. Ignore.
    pub manage_cgroups: ManageCgroups,
    /// `--cgroup-root`. None.
    pub cgroup_root: Vec<CgroupRoot>,
    /// `--freeze-cgroup`: the tasks are stopped by freezing this cgroup (a path in the file system). None.
    pub freeze_cgroup: Option<PathBuf>,
    /// `--empty-ns net`: the network namespace is made, with nothing in it. False.
    pub empty_net_ns: bool,
    /// `-J`. None.
    pub join_ns: Vec<JoinNs>,
    /// `--evasive-devices`: any path to a device with the same number does. False.
    pub evasive_devices: bool,
    /// `--action-script`: commands for the shell, run at each stage, in this order. None.
    pub action_scripts: Vec<OsString>,
    /// `--timeout`: how long tasks may take to stop; zero is no limit. 10 seconds.
    pub timeout: Duration,
    /// `--network-lock`. Iptables.
    pub network_lock: NetworkLock,
    /// `--status-fd`: one NUL byte is written to it when the image is complete, or the tasks run. None.
    pub status_fd: Option<i32>,
    /// `--feature`: what `check` is asked for. Nothing in particular.
    pub features: Vec<String>,
    /// `--extra`, `--all`: how much `check` looks at. Basic.
    pub check_scope: CheckScope,
    /// `--cpu-cap`: what of the processor is compared.
    pub cpu_cap: CpuCap,
}

/// `--cpu-cap`: what of the processor must be here that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCap {
    /// `cpu`, `ins`: every feature that has instructions of its own.
    pub features: bool,
    /// `fpu`: register state (xsave components).
    pub state: bool,
}

impl Default for CpuCap {
    fn default() -> Self {
        CpuCap { features: true, state: true }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tree: None,
            images_dir: PathBuf::from("."),
            work_dir: None,
            log_file: None,
            verbosity: 2,
            pidfile: None,
            root: None,
            leave_running: false,
            leave_stopped: false,
            restore_detached: false,
            restore_sibling: false,
            shell_job: false,
            tcp_established: false,
            tcp_close: false,
            skip_in_flight: false,
            ext_unix_sk: ExtUnix::Refuse,
            file_locks: false,
            link_remap: false,
            ghost_limit: 1 << 20,
            external: Vec::new(),
            inherit_fd: Vec::new(),
            ext_mount_map: Vec::new(),
            enable_external_sharing: false,
            enable_external_masters: false,
            manage_cgroups: ManageCgroups::Ignore,
            cgroup_root: Vec::new(),
            freeze_cgroup: None,
            empty_net_ns: false,
            join_ns: Vec::new(),
            evasive_devices: false,
            action_scripts: Vec::new(),
            timeout: Duration::from_secs(10),
            network_lock: NetworkLock::Iptables,
            status_fd: None,
            features: Vec::new(),
            check_scope: CheckScope::Basic,
            cpu_cap: CpuCap::default(),
        }
    }
}

impl Options {
    /// The work directory: the images directory unless there is another.
    pub fn work_dir(&self) -> &Path {
        self.work_dir.as_deref().unwrap_or(&self.images_dir)
    }

    /// `name` as seen from the work directory.
    pub fn in_work_dir(&self, name: &Path) -> PathBuf {
        self.work_dir().join(name)
    }
}
