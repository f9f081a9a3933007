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
    /// the structure its kind has, if any, locks: array of [`FileLock`].
    304 "FILE" [path, build_id, details, locks] struct File {
        /// [`file_kind`].
        pub kind: u32,
        /// open(2) flags, as in /proc/PID/fdinfo, without O_CLOEXEC.
        pub flags: u32,
        /// File offset.
        pub pos: u64,
        /// Inode that carries the contents, [`Inode`], or 0.
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
        /// Its pid, tid or process group id, or 0.
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
    /// A process group (F_OWNER_PGRP).
    pub const GROUP: u32 = 3;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[NONE, THREAD, PROCESS, GROUP];
}

wire! {
    /// A lock or lease on an open file description.
    struct FileLock {
        /// [`lock_kind`].
        pub kind: u32,
        /// F_RDLCK (0) or F_WRLCK (1).
        pub access: u32,
        /// Process that took it, 0 if it is not in the tree. A POSIX lock belongs to its descriptor table.
        pub pid: i32,
        /// Zero.
        pub pad: u32,
        /// First byte; 0 of what is of the whole file.
        pub start: u64,
        /// Bytes; 0: up to the end, whatever it becomes.
        pub len: u64,
    }
}

/// Values of [`FileLock::kind`].
pub mod lock_kind {
    /// fcntl(2) F_SETLK: of a process.
    pub const POSIX: u32 = 1;
    /// fcntl(2) F_OFD_SETLK: of the description.
    pub const OFD: u32 = 2;
    /// flock(2).
    pub const FLOCK: u32 = 3;
    /// fcntl(2) F_SETLEASE.
    pub const LEASE: u32 = 4;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[POSIX, OFD, FLOCK, LEASE];
}

wire! {
    /// Details of a POSIX message queue: its attributes, and whom it tells of a message (mq_notify(3)).
    struct Mqueue {
        /// Most messages.
        pub max_messages: u64,
        /// Most bytes of one.
        pub message_size: u64,
        /// Process that is told, 0 if there is none in the tree.
        pub notify_pid: i32,
        /// How: SIGEV_SIGNAL (0) or SIGEV_NONE (1).
        pub notify: u32,
        /// By which signal.
        pub signal: u32,
        /// Zero.
        pub pad: u32,
    }
}

wire! {
    /// Details of a unix socket. What waits in it, and its name in the file system, are those of its
    /// [`Inode`]; it has none if it has neither.
    struct UnixSocket {
        /// SOCK_STREAM (1), SOCK_DGRAM (2) or SOCK_SEQPACKET (5).
        pub kind: u32,
        /// [`unix_flags`].
        pub flags: u32,
        /// Halves that are shut down: 1 receiving, 2 sending.
        pub shutdown: u32,
        /// Of one that listens: how many may wait to be accepted.
        pub backlog: u32,
        /// st_ino of the socket it is connected to, or 0.
        pub peer: u64,
        /// Options that are on: [`unix_options`].
        pub options: u32,
        /// SO_SNDBUF, as getsockopt(2) gives it.
        pub send_buffer: u32,
        /// SO_RCVBUF, likewise.
        pub receive_buffer: u32,
        /// SO_RCVLOWAT.
        pub low_water: u32,
        /// SO_PEEK_OFF.
        pub peek_offset: i32,
        /// SO_LINGER in seconds, -1 if it is off.
        pub linger: i32,
        /// SO_PRIORITY.
        pub priority: u32,
        /// SO_MARK.
        pub mark: u32,
        /// SO_RCVTIMEO in microseconds, 0 if there is none.
        pub receive_timeout: u64,
        /// SO_SNDTIMEO, likewise.
        pub send_timeout: u64,
        /// st_dev of its name in the file system.
        pub name_dev: u64,
        /// st_ino of that.
        pub name_ino: u64,
        /// st_mtime of that, seconds.
        pub name_mtime_sec: i64,
        /// And nanoseconds.
        pub name_mtime_nsec: u32,
        /// Bytes of the address that are used.
        pub address_len: u32,
        /// What getsockname(2) gives, without the family: a path, or an abstract name behind a zero. Zeros behind it.
        pub address: [[u8; 16]; 7],
    }
}

impl UnixSocket {
    /// Longest address (sun_path).
    pub const MAX_ADDRESS: usize = 108;

    /// With this address, if it is not too long.
    pub fn with_address(self, address: &[u8]) -> Option<Self> {
        let mut wire = Self { address_len: address.len() as u32, address: Default::default(), ..self };
        let space = wire.address.as_flattened_mut().get_mut(..Self::MAX_ADDRESS)?;
        space.get_mut(..address.len())?.copy_from_slice(address);
        Some(wire)
    }

    /// Its address, empty if it has none.
    pub fn address(&self) -> &[u8] {
        let address = self.address.as_flattened();
        address.get(..self.address_len as usize).unwrap_or(address)
    }

    /// Whether all of its flags are set.
    pub fn is(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }
}

/// Bits of [`UnixSocket::flags`].
pub mod unix_flags {
    /// It listens.
    pub const LISTENING: u32 = 1;
    /// It was connected to one that is closed.
    pub const CLOSED: u32 = 1 << 1;
    /// And it has yet to be told that this one had not read everything (ECONNRESET).
    pub const RESET: u32 = 1 << 2;
    /// Its name in the file system is gone, or another file's.
    pub const REMOVED: u32 = 1 << 3;
    /// For datagrams, it is connected to one outside whose address a second UnixSocket holds.
    pub const OUTSIDE: u32 = 1 << 4;
    /// Every bit above; a reader refuses any other.
    pub const ALL: u32 = LISTENING | CLOSED | RESET | REMOVED | OUTSIDE;
}

/// Bits of [`UnixSocket::options`].
pub mod unix_options {
    /// SO_PASSCRED.
    pub const PASSCRED: u32 = 1;
    /// SO_PASSSEC.
    pub const PASSSEC: u32 = 1 << 1;
    /// SO_PASSPIDFD.
    pub const PASSPIDFD: u32 = 1 << 2;
    /// SO_KEEPALIVE.
    pub const KEEPALIVE: u32 = 1 << 3;
    /// SO_REUSEADDR.
    pub const REUSEADDR: u32 = 1 << 4;
    /// SO_BROADCAST.
    pub const BROADCAST: u32 = 1 << 5;
    /// SO_OOBINLINE.
    pub const OOBINLINE: u32 = 1 << 6;
    /// SO_DONTROUTE.
    pub const DONTROUTE: u32 = 1 << 7;
    /// SO_TIMESTAMP, as it was first.
    pub const TIMESTAMP: u32 = 1 << 8;
    /// SO_TIMESTAMPNS, as it was first.
    pub const TIMESTAMPNS: u32 = 1 << 9;
    /// SO_TIMESTAMP of 64 bits.
    pub const TIMESTAMP_NEW: u32 = 1 << 10;
    /// SO_TIMESTAMPNS of 64 bits.
    pub const TIMESTAMPNS_NEW: u32 = 1 << 11;
    /// SO_RXQ_OVFL.
    pub const RXQ_OVFL: u32 = 1 << 12;
    /// SO_SELECT_ERR_QUEUE.
    pub const SELECT_ERR_QUEUE: u32 = 1 << 13;
    /// SO_LOCK_FILTER.
    pub const LOCK_FILTER: u32 = 1 << 14;
    /// SO_INQ (Linux 6.17).
    pub const INQ: u32 = 1 << 15;
    /// SO_PASSRIGHTS is off (Linux 6.16).
    pub const NO_RIGHTS: u32 = 1 << 16;
    /// Every bit above; a reader refuses any other.
    pub const ALL: u32 = (NO_RIGHTS << 1) - 1;
}

wire! {
    /// A message that waits in a unix socket that keeps their borders. They are the contents, in order.
    struct UnixMessage {
        /// st_ino of the socket that sent it, or 0: one that is closed and has no name.
        pub sender: u64,
        /// Its bytes.
        pub len: u32,
        /// Zero.
        pub pad: u32,
    }
}

wire! {
    /// Details of a file that comes from outside: what the checkpoint called it (`--external`).
    struct ExternalName {
        /// Zeros behind it.
        pub name: [[u8; 16]; 4],
    }
}

impl ExternalName {
    /// Longest name.
    pub const MAX: usize = 64;

    /// With this name, if it is not too long.
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut wire = Self::default();
        wire.name.as_flattened_mut().get_mut(..name.len())?.copy_from_slice(name);
        Some(wire)
    }

    /// The name.
    pub fn bytes(&self) -> &[u8] {
        let name = self.name.as_flattened();
        name.split(|b| *b == 0).next().unwrap_or(name)
    }
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
    /// A unix socket that is not connected to the outside, or only sends there: [`super::UnixSocket`].
    pub const UNIX: u32 = 13;
    /// A file of a file system that shows the kernel's state (proc, sysfs, cgroup): [`super::ProcFile`].
    pub const PROC: u32 = 22;
    /// An end of a pty, by its device: 5:2 is the master, the others are slaves. Its [`Inode`](super::Inode) is the pty.
    pub const PTY: u32 = 14;
    /// /dev/tty (5:0), the terminal of who opened it: a pty, its [`Inode`](super::Inode), or, without one, outside. Its
    /// details are those of `EXTERNAL_TTY`.
    pub const TTY_CURRENT: u32 = 15;
    /// A terminal whose other side is outside. Its details: one [`Tty`](super::Tty), or the name the checkpoint gave it, or none.
    pub const EXTERNAL_TTY: u32 = 16;
    /// A pipe or FIFO whose other end is outside.
    pub const EXTERNAL_PIPE: u32 = 17;
    /// A socket whose peer is outside.
    pub const EXTERNAL_SOCKET: u32 = 18;
    /// memfd_create(2): its contents are in the image.
    pub const MEMFD: u32 = 19;
    /// POSIX message queue: its contents are the system's.
    pub const MQUEUE: u32 = 21;
    /// Any other file that the checkpoint was told is outside.
    pub const EXTERNAL_FILE: u32 = 32;
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
        UNIX,
        PTY,
        TTY_CURRENT,
        PROC,
        EXTERNAL_TTY,
        EXTERNAL_PIPE,
        EXTERNAL_SOCKET,
        MEMFD,
        MQUEUE,
        EXTERNAL_FILE,
    ];
}

wire! {
    /// Details of a [`file_kind::PROC`] file.
    struct ProcFile {
        /// Whose file it is: [`proc_owner`].
        pub owner: u32,
        /// Length of the path's beginning that is the file system's root.
        pub root: u32,
        /// The process whose directory it is in, the first component below the root, or 0.
        pub pid: i32,
        /// The thread whose directory below task/ it is in, or 0.
        pub tid: i32,
        /// Of a process outside: when it was started, in clock ticks since boot.
        pub start: u64,
    }
}

/// Values of [`ProcFile::owner`].
pub mod proc_owner {
    /// The kernel's: of no task.
    pub const KERNEL: u32 = 0;
    /// A task of the image.
    pub const TASK: u32 = 1;
    /// A process outside.
    pub const OUTSIDE: u32 = 2;
    /// A task that had ended.
    pub const DEAD: u32 = 3;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[KERNEL, TASK, OUTSIDE, DEAD];
}

wire! {
    /// Settings of a terminal: `struct termios2` and `struct winsize`.
    struct Tty {
        /// Input modes.
        pub iflag: u32,
        /// Output modes.
        pub oflag: u32,
        /// Control modes.
        pub cflag: u32,
        /// Local modes.
        pub lflag: u32,
        /// Line discipline, then 19 control characters.
        pub line_cc: [u8; 20],
        /// Input speed, bits per second.
        pub ispeed: u32,
        /// Output speed, bits per second.
        pub ospeed: u32,
        /// Window: rows, columns, width and height in pixels.
        pub window: [u16; 4],
    }
}

wire! {
    /// A pseudoterminal: the one structure in the details of an [`Inode`] of that kind. Its contents are first what
    /// waits at the master, then what waits at the slave.
    struct Pty {
        /// Settings of the slave.
        pub tty: Tty,
        /// Its number: the slave is /dev/pts/N.
        pub index: u32,
        /// [`pty_flags`].
        pub flags: u32,
        /// Bytes that wait at the master.
        pub output: u32,
        /// Bytes that wait at the slave.
        pub input: u32,
    }
}

/// Bits of [`Pty::flags`].
pub mod pty_flags {
    /// The slave cannot be opened (TIOCSPTLCK).
    pub const LOCKED: u32 = 1;
    /// Packet mode (TIOCPKT).
    pub const PACKET: u32 = 1 << 1;
    /// The slave cannot be opened again (TIOCEXCL).
    pub const EXCLUSIVE: u32 = 1 << 2;
    /// The same flag of the master, without effect.
    pub const MASTER_EXCLUSIVE: u32 = 1 << 3;
    /// The master is closed: the slaves are dead.
    pub const HUNG_UP: u32 = 1 << 4;
    /// No slave has ever been opened.
    pub const UNOPENED: u32 = 1 << 5;
    /// Every bit above; a reader refuses any other.
    pub const ALL: u32 = LOCKED | PACKET | EXCLUSIVE | MASTER_EXCLUSIVE | HUNG_UP | UNOPENED;
}

wire! {
    /// Contents: an unlinked regular file, memory shared anonymously, a pipe, a memfd, a pty, a unix socket, or an embedded file. Its pages
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
        /// st_size, bytes; of a pipe or pty: bytes waiting in it.
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
    /// A pty; its path is the slave's, its details are one [`Pty`](super::Pty).
    pub const PTY: u32 = 4;
    /// memfd_create(2).
    pub const MEMFD: u32 = 5;
    /// A regular file with a name, embedded in the image.
    pub const EMBEDDED: u32 = 6;
    /// What waits in a unix socket; its path, mode and owner are those of its name in the file system.
    pub const UNIX: u32 = 7;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[UNLINKED, SHMEM, PIPE, PTY, MEMFD, EMBEDDED, UNIX];
}

wire! {
    /// Details of a pipe: one [`pipe_part`], those of its contents in order.
    struct PipePart {
        /// [`pipe_part`].
        pub kind: u32,
        /// Bytes of a packet.
        pub len: u32,
    }
}

/// Values of [`PipePart::kind`].
pub mod pipe_part {
    /// The pipe is a FIFO that has been unlinked.
    pub const UNLINKED: u32 = 1;
    /// A packet waits (O_DIRECT); what the packets leave of the contents has no borders.
    pub const PACKET: u32 = 2;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[UNLINKED, PACKET];
}

wire! {
    /// Details of a memfd.
    struct Memfd {
        /// F_GET_SEALS.
        pub seals: u32,
        /// Zero.
        pub pad: u32,
    }
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
