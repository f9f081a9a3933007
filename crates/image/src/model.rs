//! The decoded metadata of an image: plain data. A checkpoint fills it, a restart plans from it.
//!
//! Where a wire record has more to it than its fixed body, the structure here wraps it as
//! `record` beside the decoded fields. Counts kept in records (`nr_threads`, `nr_vmas`,
//! `nr_tasks`) must agree with the collections; [`Image::check`] holds them to it.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::record::{
    self, EpollEntry, FileDesc, FileLock, Header, HeaderArch, InotifyWatch, Objref, PidLevel, PosixTimer,
    Pty, Record, SigAction, Task, Tree, file_kind, inode_kind, task_state,
};
use crate::table::Table;

/// A queued signal: `siginfo_t` as PTRACE_PEEKSIGINFO gives it.
pub type Siginfo = [u8; 128];

/// Everything in an image but page contents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// First record.
    pub header: Header,
    /// uts release, version and machine of the kernel the image was taken on.
    pub uts: [Vec<u8>; 3],
    /// Processor features.
    pub arch: HeaderArch,
    /// Counts and root of the tree.
    pub tree: Tree,
    /// Processes in tree order: the root first, a parent before its children.
    pub processes: Vec<Process>,
    /// What they share.
    pub objects: Table<Object>,
}

/// A thread group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// Its record.
    pub task: Task,
    /// Its threads, the leader first. A zombie may have none.
    pub threads: Vec<Thread>,
}

impl Process {
    /// Its ids in the pid namespaces below that of the tree's root which it is in, the outermost first.
    pub fn levels(&self) -> &[PidLevel] {
        self.threads.first().map_or(&[], |leader| &leader.levels)
    }

    /// The number of the pid namespace it is in, 0 for that of the tree's root.
    pub fn pidns(&self) -> u32 {
        self.levels().last().map_or(0, |level| level.pidns)
    }

    /// Whether it is process 1 of a pid namespace below that of the tree's root.
    pub fn is_init(&self) -> bool {
        self.levels().last().is_some_and(|level| level.tid == 1)
    }

    /// The threads that live, with their places: all but a leader that has ended.
    pub fn living(&self) -> impl Iterator<Item = (usize, &Thread)> {
        self.threads.iter().enumerate().filter(|(_, thread)| !thread.has_ended())
    }
}

/// A thread.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Thread {
    /// Its record.
    pub record: record::Thread,
    /// Name, at most 15 bytes.
    pub comm: Vec<u8>,
    /// Register state in the processor's xsave layout (NT_X86_XSTATE), 576 bytes or more.
    pub xstate: Vec<u8>,
    /// Signals pending for this thread alone, oldest first.
    pub pending: Vec<Siginfo>,
    /// Affinity mask as sched_getaffinity(2) gives it.
    pub affinity: Vec<u8>,
    /// Its ids in the pid namespaces below that of the tree's root which it is in.
    pub levels: Vec<PidLevel>,
}

impl Thread {
    /// Whether it is a leader that has ended while others live.
    pub fn has_ended(&self) -> bool {
        self.record.state == task_state::ZOMBIE
    }
}

/// A shared object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Address space.
    Mm(Mm),
    /// Descriptor table.
    Files(FileTable),
    /// Open file description or mapped file.
    File(File),
    /// Contents without a name.
    Inode(Inode),
    /// Root, cwd, umask.
    Fs(Fs),
    /// Signal handlers.
    Sighand(Sighand),
    /// Limits, timers, shared pending signals: large, and few.
    Signal(Box<Signal>),
    /// Credentials.
    Cred(Cred),
}

impl Object {
    /// `TYPE` of the object's first record, as OBJREF holds it.
    pub fn objtype(&self) -> u32 {
        match self {
            Self::Mm(_) => record::Mm::TYPE,
            Self::Files(_) => record::FileTable::TYPE,
            Self::File(_) => record::File::TYPE,
            Self::Inode(_) => record::Inode::TYPE,
            Self::Fs(_) => record::Fs::TYPE,
            Self::Sighand(_) => record::Sighand::TYPE,
            Self::Signal(_) => record::Signal::TYPE,
            Self::Cred(_) => record::Cred::TYPE,
        }
    }

    /// `NAME` of the object's first record.
    pub fn name(&self) -> &'static str {
        record::name_of(self.objtype()).unwrap_or("?")
    }
}

/// An address space.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mm {
    /// Its record.
    pub record: record::Mm,
    /// Auxiliary vector, as in /proc/PID/auxv.
    pub auxv: Vec<u8>,
    /// Areas, ascending.
    pub vmas: Vec<Vma>,
}

/// A virtual memory area.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vma {
    /// Its record.
    pub record: record::Vma,
    /// Name given by PR_SET_VMA_ANON_NAME.
    pub anon_name: Vec<u8>,
}

/// A descriptor table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileTable {
    /// Descriptors, ascending by number.
    pub descs: Vec<FileDesc>,
}

/// An open file description, or a file that is only mapped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    /// Its record.
    pub record: record::File,
    /// Path, without " (deleted)".
    pub path: Vec<u8>,
    /// ELF build-id, empty when there is none.
    pub build_id: Vec<u8>,
    /// What only its kind has; see [`details`].
    pub details: Vec<u8>,
    /// Locks and leases held through it.
    pub locks: Vec<FileLock>,
}

impl File {
    /// The objects it refers to.
    pub fn references(&self) -> impl Iterator<Item = Objref> {
        let watched = match self.record.kind {
            file_kind::EPOLL => {
                details::<EpollEntry>(&self.details).map(|d| d.iter().map(|e| e.file).collect())
            }
            file_kind::INOTIFY => {
                details::<InotifyWatch>(&self.details).map(|d| d.iter().map(|w| w.file).collect())
            }
            _ => None,
        };
        let watched: Vec<Objref> = watched.unwrap_or_default();
        Some(self.record.inode).filter(|inode| *inode != 0).into_iter().chain(watched)
    }
}

/// The path of a directory or FIFO that had been removed, as it once was. Such a path ends as in
/// /proc/PID/mountinfo, and as no other path does.
pub fn removed(path: &[u8]) -> Option<&[u8]> {
    path.strip_suffix(b"//deleted")
}

/// The path that stands for something removed that once was at `path`.
pub fn as_removed(path: &[u8]) -> Vec<u8> {
    [path, b"//deleted"].concat()
}

/// The structures in the details of a file or an inode; `None` if they are no whole number.
pub fn details<T: FromBytes>(bytes: &[u8]) -> Option<Vec<T>> {
    let items = bytes.chunks_exact(size_of::<T>());
    items.remainder().is_empty().then(|| items.filter_map(|item| T::read_from_bytes(item).ok()).collect())
}

/// The details that these structures are.
pub fn to_details<T: IntoBytes + Immutable>(items: &[T]) -> Vec<u8> {
    items.as_bytes().to_vec()
}

/// Contents without a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inode {
    /// Its record.
    pub record: record::Inode,
    /// Path it once had.
    pub path: Vec<u8>,
    /// What only its kind has; see [`details`].
    pub details: Vec<u8>,
}

impl Inode {
    /// What it is as a pty, if it is one.
    pub fn pty(&self) -> Option<Pty> {
        let one = details::<Pty>(&self.details).filter(|ptys| ptys.len() == 1);
        one.filter(|_| self.record.kind == inode_kind::PTY)?.into_iter().next()
    }
}

/// Filesystem context.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fs {
    /// Its record.
    pub record: record::Fs,
    /// Working directory.
    pub cwd: Vec<u8>,
    /// Root directory.
    pub root: Vec<u8>,
}

/// Signal handlers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sighand {
    /// Exactly 64: signals 1 to 64.
    pub actions: Vec<SigAction>,
}

/// What the threads of a process share besides handlers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signal {
    /// Its record.
    pub record: record::Signal,
    /// Signals pending for the process, oldest first.
    pub pending: Vec<Siginfo>,
    /// timer_create(2) timers.
    pub timers: Vec<PosixTimer>,
}

/// Credentials.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cred {
    /// Its record.
    pub record: record::Cred,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Gives `Image` a getter per kind of object.
macro_rules! getters {
    ($($name:ident $variant:ident $doc:literal;)*) => {
        impl Image {
            $(
                #[doc = $doc]
                pub fn $name(&self, objref: Objref) -> Option<&$variant> {
                    match self.objects.get(&objref) {
                        Some(getters!(@object $name $variant found)) => Some(found),
                        _ => None,
                    }
                }
            )*
        }
    };
    (@object files $variant:ident $found:ident) => { Object::Files($found) };
    (@object $name:ident $variant:ident $found:ident) => { Object::$variant($found) };
}

getters! {
    mm Mm "The address space with this number.";
    files FileTable "The descriptor table with this number.";
    file File "The file with this number.";
    inode Inode "The unnamed contents with this number.";
    fs Fs "The filesystem context with this number.";
    sighand Sighand "The signal handlers with this number.";
    signal Signal "The shared signal state with this number.";
    cred Cred "The credentials with this number.";
}
