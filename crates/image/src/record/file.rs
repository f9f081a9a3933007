//! Descriptors, files and the filesystem context: the records of 301-399 and 451.

use super::*;

wire! {
    /// A descriptor table. Field: array of [`FileDesc`], ascending.
    301 "FILE_TABLE" [descs] struct FileTable {}
}

wire! {
    /// One descriptor of a table.
    struct FileDesc {
        /// Number.
        pub fd: i32,
        /// FD_CLOEXEC is bit 0.
        pub flags: u32,
        /// Open file description, [`File`].
        pub file: i32,
        /// Zero.
        pub pad: u32,
    }
}

wire! {
    /// An open file description, or a file that is only mapped. Fields: path (bytes, as
    /// /proc/PID/fd showed it without " (deleted)"), ELF build-id (may be empty), details: an array of
    /// the structure its kind has, if any.
    304 "FILE" [path, build_id, details] struct File {
        /// [`file_kind`].
        pub kind: u32,
        /// open(2) flags, as in /proc/PID/fdinfo, without O_CLOEXEC.
        pub flags: u32,
        /// File offset.
        pub pos: u64,
        /// Inode that carries the contents of an unlinked file, [`Inode`], or 0.
        pub inode: i32,
        /// st_mode.
        pub mode: u32,
        /// st_dev.
        pub dev: u64,
        /// st_ino.
        pub ino: u64,
        /// st_rdev.
        pub rdev: u64,
        /// st_size at the checkpoint.
        pub size: u64,
        /// st_mtime: seconds and nanoseconds.
        pub mtime_sec: i64,
        /// Nanoseconds part of st_mtime.
        pub mtime_nsec: u32,
        /// Zero.
        pub pad: u32,
        /// Whom the file signals (F_SETOWN_EX): [`owner_kind`].
        pub owner_kind: u32,
        /// Its pid or tid, or 0.
        pub owner: i32,
        /// With which signal (F_SETSIG), 0 for SIGIO.
        pub owner_signal: u32,
        /// Zero.
        pub pad2: u32,
    }
}

/// Values of [`File::owner_kind`].
pub mod owner_kind {
    /// Nobody.
    pub const NONE: u32 = 0;
    /// A thread (F_OWNER_TID).
    pub const THREAD: u32 = 1;
    /// A process (F_OWNER_PID).
    pub const PROCESS: u32 = 2;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[NONE, THREAD, PROCESS];
}

/// Values of [`File::kind`].
pub mod file_kind {
    /// Regular file with a name.
    pub const REGULAR: u32 = 1;
    /// Directory.
    pub const DIRECTORY: u32 = 2;
    /// Opened with O_PATH.
    pub const PATH: u32 = 3;
    /// Character device.
    pub const CHARDEV: u32 = 4;
    /// Regular file without a name: its contents are in the image.
    pub const UNLINKED: u32 = 5;
    /// An end of a pipe with all its ends inside: what waits in it is in the image.
    pub const PIPE: u32 = 6;
    /// eventfd(2): [`super::Eventfd`].
    pub const EVENTFD: u32 = 7;
    /// epoll(7): [`super::EpollEntry`].
    pub const EPOLL: u32 = 8;
    /// signalfd(2): [`super::Signalfd`].
    pub const SIGNALFD: u32 = 9;
    /// timerfd_create(2): [`super::Timerfd`].
    pub const TIMERFD: u32 = 10;
    /// pidfd_open(2): [`super::Pidfd`].
    pub const PIDFD: u32 = 11;
    /// inotify(7): [`super::InotifyWatch`].
    pub const INOTIFY: u32 = 12;
    /// A terminal whose other side is outside.
    pub const EXTERNAL_TTY: u32 = 16;
    /// A pipe or FIFO whose other end is outside.
    pub const EXTERNAL_PIPE: u32 = 17;
    /// A socket whose peer is outside.
    pub const EXTERNAL_SOCKET: u32 = 18;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[
        REGULAR,
        DIRECTORY,
        PATH,
        CHARDEV,
        UNLINKED,
        PIPE,
        EVENTFD,
        EPOLL,
        SIGNALFD,
        TIMERFD,
        PIDFD,
        INOTIFY,
        EXTERNAL_TTY,
        EXTERNAL_PIPE,
        EXTERNAL_SOCKET,
    ];
}

wire! {
    /// Contents without a name: an unlinked regular file, memory shared anonymously, or a pipe. Its pages
    /// are stored in [`Pgarr`] chunks addressed by file offset. Fields: path it once had, details: an array
    /// of the structure its kind has, if any.
    310 "INODE" [path, details] struct Inode {
        /// [`inode_kind`].
        pub kind: u32,
        /// st_mode.
        pub mode: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// st_size, bytes; of a pipe: bytes waiting in it.
        pub size: u64,
        /// Of a pipe: its capacity in bytes (F_GETPIPE_SZ), else 0.
        pub capacity: u64,
    }
}

/// Values of [`Inode::kind`].
pub mod inode_kind {
    /// Unlinked regular file.
    pub const UNLINKED: u32 = 1;
    /// mmap(MAP_SHARED | MAP_ANONYMOUS).
    pub const SHMEM: u32 = 2;
    /// A pipe with all its ends inside.
    pub const PIPE: u32 = 3;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[UNLINKED, SHMEM, PIPE];
}

wire! {
    /// Filesystem context. Fields: cwd, root.
    451 "FS" [cwd, root] struct Fs {
        /// File mode creation mask.
        pub umask: u32,
        /// Zero.
        pub pad: u32,
    }
}
