//! What a caller may ask for, and what it is told.

use crate::{
    error::{Error, Result},
    leaks::Leak,
    milestone::Stage,
    policy::Policy,
    root::Root,
    terminal::Loan,
};
use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// What becomes of the tasks after a successful checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// They go on.
    #[default]
    Resume,
    /// They are killed (SIGKILL), once the image is complete.
    Kill,
    /// They stay stopped, as by SIGSTOP.
    Stop,
}

/// How much on its own the tree must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Not at all: what it shares with the outside is carried as far as it can be.
    #[default]
    Subtree,
    /// Wholly: its root is the init of a pid namespace, and whatever it shares with the outside is refused.
    Container,
}

/// What a descriptor is that the caller says is outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// A pipe or FIFO.
    Pipe,
    /// A socket.
    Socket,
    /// A terminal.
    Tty,
    /// Any file.
    File,
}

/// Something that is outside because the caller says so, whatever else is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// What it is.
    pub kind: Outside,
    /// Which one.
    pub id: Identity,
    /// What the image calls it, at most 64 bytes.
    pub name: Vec<u8>,
    /// How the caller has said all this, for messages.
    pub word: String,
}

/// Which descriptor is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Its path, or the number that /proc/PID/fd shows between brackets.
    Name(Vec<u8>),
    /// A terminal's own device number, and that of the file system it was opened in.
    Device {
        /// st_rdev.
        rdev: u64,
        /// st_dev.
        dev: u64,
    },
    /// A file's number in its file system, and the mount it was opened through.
    Inode {
        /// Id of the mount, as fdinfo has it.
        mount: i32,
        /// st_ino.
        ino: u64,
    },
}

/// Which external descriptors something takes the place of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Those of this number.
    Number(i32),
    /// Those the checkpoint gave this name.
    Name(Vec<u8>),
    /// Those that /proc/PID/fd showed like this, a path without its first slash, whether they are external or files
    /// with a name. There need be none.
    Link(Vec<u8>),
    /// A terminal with these device numbers. There need be none.
    Tty {
        /// Its own.
        rdev: u64,
        /// That of the file system it was opened in.
        dev: u64,
    },
}

/// Where an image goes.
#[derive(Debug)]
pub enum Output {
    /// A file: made without a name in the same directory (O_TMPFILE), linked when complete and synced.
    /// Where the file system cannot do that, written under a temporary name and renamed.
    File {
        /// Final name.
        path: PathBuf,
        /// Replace an existing file.
        overwrite: bool,
    },
    /// Any open descriptor: file, pipe or socket.
    Fd(OwnedFd),
}

/// Where an image comes from.
#[derive(Debug)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Any open descriptor: file, pipe or socket.
    Fd(OwnedFd),
}

/// What to checkpoint and how.
#[derive(Debug)]
pub struct CheckpointOptions {
    /// Process to checkpoint.
    pub pid: i32,
    /// What becomes of it.
    pub after: After,
    /// How much on its own it must be.
    pub scope: Scope,
    /// Look for what it shares with the outside and report it. That is a look at every process there is.
    pub report_shared: bool,
    /// What is outside, whatever else is known of it.
    pub external: Vec<External>,
    /// Refuse unlinked files with more bytes than this, holes not counted.
    pub ghost_limit: Option<u64>,
    /// Store contents of files that have a name, too.
    pub embed: Embed,
    /// What is refused although it could be carried in part.
    pub policy: Policy,
    /// A cgroup to freeze before the tasks are looked at, and to thaw afterwards, unless it is frozen already.
    pub freezer: Option<PathBuf>,
    /// The image has its name when [`Stage::PostDump`] is reached, also if the tasks go on; synced before they do.
    pub publish_early: bool,
}

impl CheckpointOptions {
    /// A checkpoint of the tree below `pid`, everything else as it is by default.
    pub fn new(pid: i32) -> CheckpointOptions {
        CheckpointOptions {
            pid,
            after: After::default(),
            scope: Scope::default(),
            report_shared: false,
            external: Vec::new(),
            ghost_limit: None,
            embed: Embed::default(),
            policy: Policy::default(),
            freezer: None,
            publish_early: false,
        }
    }
}

/// Which files with a name are embedded in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Embed {
    /// None.
    #[default]
    None,
    /// Those that are open.
    Open,
    /// Those, open or mapped, that match a glob: the path, or without a slash in the glob its last name.
    Matching(Vec<u8>),
}

/// Which process ids the restarted tasks get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pids {
    /// The original ones, in our pid namespace.
    #[default]
    Original,
    /// Whatever the kernel gives.
    New,
    /// The original ones, in a pid namespace of their own. Without the privilege to make one, in a
    /// user namespace of their own as well, where they have the ids of the caller alone.
    Namespace,
}

/// What to restart and how.
#[derive(Debug, Default)]
pub struct RestartOptions {
    /// Which ids the tasks get.
    pub pids: Pids,
    /// The directory that is the root of the tasks' file system: every path of the image is one below
    /// it, and no link leads out of it.
    pub root: Option<PathBuf>,
    /// Give the tasks a mount namespace of their own; with [`Pids::Namespace`], with a /proc of that.
    pub mntns: bool,
    /// Prove the whole image before the first task is made, and not while it is.
    pub inspect: bool,
    /// Go on although a file changed since the checkpoint.
    pub force_files: bool,
    /// Cut files that are open for writing and have grown back to the size they had.
    pub truncate_files: bool,
    /// What was at or below the first path is at or below the second.
    pub map_files: Vec<(PathBuf, PathBuf)>,
    /// Go on although the processor lacks features that the checkpointed one had.
    pub force_cpu: bool,
    /// A freezer cgroup, absolute or below the mount of one: the tasks are left frozen in it.
    pub freezer: Option<PathBuf>,
    /// The tasks are left stopped, as by SIGSTOP.
    pub stopped: bool,
    /// The root becomes a sibling of the caller: a child of its parent, which is to wait for it. Its exit signal is
    /// then that of the caller. Not with [`Pids::Namespace`].
    pub sibling: bool,
    /// The caller waits for the program: if the caller is in the foreground of its terminal, the program is to be.
    pub stands_in: bool,
    /// For external descriptors: which, and the descriptor of ours that takes their place.
    pub inherit: Vec<(Place, OwnedFd)>,
}

/// Told about progress and about things the user should know; called from any of the working threads, one
/// at a time.
pub trait Observer: Send {
    /// How many bytes of memory are to be moved in all, once known.
    fn total(&mut self, bytes: u64);
    /// `bytes` more have been moved.
    fn advance(&mut self, bytes: u64);
    /// A state that was carried only in part; the operation goes on.
    fn warn(&mut self, text: &str);
    /// Asked between steps: why the operation is to give up, undo what it did and fail.
    fn cancelled(&self) -> Option<String>;
    /// Looked at while it waits for whoever writes or reads the image.
    fn interruption(&self) -> Interruption;
    /// The action on the tree below `pid` has come to a stage; an error makes it fail. A restart may call it with the
    /// root directory and mounts that the tasks are to have.
    fn reached(&mut self, stage: Stage, pid: i32) -> Result<(), String>;
}

/// Says, in any thread, whether a signal asks to give up.
#[derive(Clone, Debug, Default)]
pub struct Interruption(Arc<AtomicUsize>);

impl From<Arc<AtomicUsize>> for Interruption {
    /// `signal` holds the number of the signal, or 0.
    fn from(signal: Arc<AtomicUsize>) -> Interruption {
        Interruption(signal)
    }
}

impl Interruption {
    /// Fails when it does.
    pub(crate) fn check(&self) -> std::io::Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(std::io::Error::other("interrupted by a signal")),
        }
    }
}

/// Fails when the operation is to be given up.
pub(crate) fn interrupted(observer: &dyn Observer) -> Result<()> {
    observer.cancelled().map_or(Ok(()), |why| Err(Error::failed(why)))
}

/// An observer that ignores everything.
#[derive(Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn total(&mut self, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn warn(&mut self, _: &str) {}
    fn cancelled(&self) -> Option<String> {
        None
    }
    fn interruption(&self) -> Interruption {
        Interruption::default()
    }
    fn reached(&mut self, _: Stage, _: i32) -> Result<(), String> {
        Ok(())
    }
}

/// What a checkpoint did.
#[derive(Clone, Debug)]
pub struct CheckpointReport {
    /// Identity of the image.
    pub id: [u8; 16],
    /// Root of the tree.
    pub pid: i32,
    /// Its name.
    pub comm: Vec<u8>,
    /// Processes saved.
    pub processes: usize,
    /// Threads saved.
    pub threads: usize,
    /// What the tree shares with the outside, if that was looked for.
    pub shared_outside: Option<Vec<Leak>>,
    /// Unlinked files carried, and the bytes of them that are not holes.
    pub unlinked: (usize, u64),
    /// Files embedded, and their bytes.
    pub embedded: (usize, u64),
    /// Bytes of page contents stored.
    pub page_bytes: u64,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// How long the tasks stood still.
    pub frozen: Duration,
    /// How long it all took.
    pub total: Duration,
}

/// What a restart did.
#[derive(Debug)]
pub struct RestartReport {
    /// Identity of the image.
    pub id: [u8; 16],
    /// The root of the new tree.
    pub root: Root,
    /// The caller's terminal, if the program has it now.
    pub terminal: Option<Loan>,
    /// Its name.
    pub comm: Vec<u8>,
    /// Processes made.
    pub processes: usize,
    /// Threads made.
    pub threads: usize,
    /// Whether some of the processes are stopped.
    pub stopped: bool,
    /// Bytes of page contents put in place.
    pub page_bytes: u64,
    /// How long it all took.
    pub total: Duration,
}
