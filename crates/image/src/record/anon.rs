//! Details of files that are kernel objects without a place in the file system: eventfd, epoll,
//! signalfd, timerfd, pidfd, inotify.

use super::*;

wire! {
    /// Details of a FILE of kind EVENTFD: exactly one.
    struct Eventfd {
        /// The counter.
        pub count: u64,
        /// 1: EFD_SEMAPHORE.
        pub semaphore: u32,
        /// Zero.
        pub pad: u32,
    }
}

wire! {
    /// Details of a FILE of kind EPOLL: one for each entry.
    struct EpollEntry {
        /// What epoll_wait(2) gives.
        pub data: u64,
        /// EPOLL* bits, those included that epoll_ctl(2) adds; an entry that EPOLLONESHOT has disarmed
        /// lacks them.
        pub events: u32,
        /// The number under which it was added; whatever has that number now.
        pub fd: i32,
        /// What it watches, [`File`].
        pub file: i32,
        /// Zero.
        pub pad: u32,
    }
}

wire! {
    /// Details of a FILE of kind SIGNALFD: exactly one.
    struct Signalfd {
        /// Signals it takes; bit 0 is signal 1.
        pub mask: u64,
    }
}

wire! {
    /// Details of a FILE of kind TIMERFD: exactly one. Times are nanoseconds.
    struct Timerfd {
        /// clockid_t.
        pub clock: u32,
        /// TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET as it was last set.
        pub flags: u32,
        /// Until it expires; 0 when it is not armed.
        pub remaining: u64,
        /// Of a periodic timer.
        pub interval: u64,
        /// When it expires by its clock, if it is armed and was set with TFD_TIMER_ABSTIME.
        pub deadline: u64,
        /// Expirations not read yet.
        pub ticks: u64,
    }
}

wire! {
    /// Details of a FILE of kind PIDFD: exactly one. O_EXCL among the flags of the FILE: it is of a thread
    /// (PIDFD_THREAD).
    struct Pidfd {
        /// Process or thread of the tree, 0 for one that has ended and been waited for.
        pub pid: i32,
        /// Zero.
        pub pad: u32,
    }
}

wire! {
    /// Details of a FILE of kind INOTIFY: one for each watch, ascending.
    struct InotifyWatch {
        /// Watch descriptor.
        pub wd: i32,
        /// IN_* events, and IN_ONESHOT and IN_EXCL_UNLINK.
        pub mask: u32,
        /// What it watches: a [`File`] of kind PATH.
        pub file: i32,
        /// Zero.
        pub pad: u32,
    }
}
