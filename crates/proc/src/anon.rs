//! What `/proc/PID/fdinfo/FD` says of eventfd, epoll, signalfd, timerfd, pidfd, inotify and fanotify descriptors.

use crate::fdinfo::FdInfo;
use crate::text::{cut_at, dec, hex, oct, signed, skip_blanks, words};

/// An eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eventfd {
    /// `eventfd-count:`.
    pub count: u64,
    /// `eventfd-semaphore:` (Linux 6.5).
    pub semaphore: Option<bool>,
}

/// A `tfd:` line of an epoll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollEntry {
    /// The number under which it was added.
    pub fd: i32,
    /// Its events.
    pub events: u32,
    /// What epoll_wait(2) gives.
    pub data: u64,
    /// Inode of what it watches (Linux 4.7).
    pub ino: Option<u64>,
}

/// A timerfd. Times are nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timerfd {
    /// `clockid:`.
    pub clock: u32,
    /// `ticks:`, expirations not read yet. Those of a periodic timer are counted only when somebody asks
    /// for them, or for its time.
    pub ticks: u64,
    /// `settime flags:`.
    pub flags: u32,
    /// `it_value:`, until it expires.
    pub value: u64,
    /// `it_interval:`.
    pub interval: u64,
}

/// An `inotify` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode that is watched.
    pub ino: u64,
    /// Its device: major, minor.
    pub dev: (u32, u32),
    /// IN_* bits.
    pub mask: u32,
    /// Type and bytes of its file handle, see name_to_handle_at(2); `None` where the file system has none.
    pub handle: Option<(i32, Vec<u8>)>,
}

impl FdInfo {
    /// Of an eventfd.
    pub fn eventfd(&self) -> Option<Eventfd> {
        let semaphore = match self.value(b"eventfd-semaphore") {
            None => None,
            Some(b"0") => Some(false),
            Some(b"1") => Some(true),
            Some(_) => return None,
        };
        Some(Eventfd { count: hex(self.value(b"eventfd-count")?)?, semaphore })
    }

    /// Of an epoll: its entries, in the order of the files they watch, by number among those of one file.
    pub fn epoll(&self) -> Option<Vec<EpollEntry>> {
        self.values(b"tfd").map(epoll_entry).collect()
    }

    /// Of a signalfd: the signals it takes; bit 0 is signal 1.
    pub fn signalfd(&self) -> Option<u64> {
        hex(self.value(b"sigmask")?)
    }

    /// Of a timerfd.
    pub fn timerfd(&self) -> Option<Timerfd> {
        Some(Timerfd {
            clock: dec(self.value(b"clockid")?)?,
            ticks: dec(self.value(b"ticks")?)?,
            flags: oct(self.value(b"settime flags")?)?,
            value: nanoseconds(self.value(b"it_value")?)?,
            interval: nanoseconds(self.value(b"it_interval")?)?,
        })
    }

    /// Of a pidfd: the id of its task as the reader of /proc knows it; 0 when that is in another pid
    /// namespace, -1 when it has ended and been waited for.
    pub fn pidfd(&self) -> Option<i32> {
        signed(self.value(b"Pid")?)
    }

    /// Of an inotify: its watches, the newest first.
    pub fn inotify(&self) -> Option<Vec<InotifyWatch>> {
        self.values(b"inotify").map(inotify_watch).collect()
    }
}

/// `28 events:       19 data:               1c  pos:0 ino:21fd sdev:f`
fn epoll_entry(text: &[u8]) -> Option<EpollEntry> {
    let (fd, rest) = cut_at(text, b" events:")?;
    let (events, rest) = cut_at(skip_blanks(rest), b" data:")?;
    let mut rest = words(rest);
    let (fd, events, data) = (dec(fd)?, hex(events)?, hex(rest.next()?)?);
    let ino = rest.find_map(|word| word.strip_prefix(b"ino:")).map(hex);
    Some(EpollEntry { fd, events, data, ino: if let Some(ino) = ino { Some(ino?) } else { None } })
}

/// `(1, 500000000)`
fn nanoseconds(text: &[u8]) -> Option<u64> {
    let inner = text.strip_prefix(b"(")?.strip_suffix(b")")?;
    let (seconds, rest) = cut_at(inner, b", ")?;
    dec::<u64>(seconds)?.checked_mul(1_000_000_000)?.checked_add(dec(rest)?)
}

/// `wd:1 ino:3c4a7 sdev:fe00000 mask:fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000`
fn inotify_watch(text: &[u8]) -> Option<InotifyWatch> {
    let value = |name: &[u8]| words(text).find_map(|word| word.strip_prefix(name));
    let handle = match value(b"f_handle:") {
        Some(bytes) => Some((hex(value(b"fhandle-type:")?)?, octets(bytes)?)),
        None => None,
    };
    Some(InotifyWatch {
        wd: hex(value(b"wd:")?)?,
        ino: hex(value(b"ino:")?)?,
        dev: device(hex(value(b"sdev:")?)?),
        mask: hex(value(b"mask:")?)?,
        handle,
    })
}

/// Major and minor of a device as the kernel itself has them in one number.
fn device(sdev: u32) -> (u32, u32) {
    (sdev >> 20, sdev & 0xf_ffff)
}

/// Two hexadecimal digits for each byte.
fn octets(text: &[u8]) -> Option<Vec<u8>> {
    let pairs = text.chunks_exact(2);
    if pairs.remainder().is_empty() { pairs.map(hex::<u8>).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdinfo::parse_fdinfo;

    fn info(lines: &str) -> FdInfo {
        parse_fdinfo(format!("pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t20\n{lines}").as_bytes())
            .unwrap_or_default()
    }

    #[test]
    fn eventfd() {
        let old = info("eventfd-count: ffffffffffffffff\neventfd-id: 1\n").eventfd();
        assert_eq!(old, Some(Eventfd { count: u64::MAX, semaphore: None }));
        let new = info("eventfd-count:                5\neventfd-id: 1\neventfd-semaphore: 1\n").eventfd();
        assert_eq!(new, Some(Eventfd { count: 5, semaphore: Some(true) }));
        assert_eq!(info("eventfd-count: 1\neventfd-semaphore: 2\n").eventfd(), None);
        assert_eq!(info("").eventfd(), None);
    }

    #[test]
    fn epoll() {
        let lines = "tfd:        4 events:       19 data:                4  pos:0 ino:1fa3f1 sdev:5\n\
                     tfd:        3 events: c0000019 data: ffffffffffffffff  pos:0 ino:14 sdev:10\n";
        let first = EpollEntry { fd: 4, events: 0x19, data: 4, ino: Some(0x1f_a3f1) };
        let second = EpollEntry { fd: 3, events: 0xc000_0019, data: u64::MAX, ino: Some(0x14) };
        assert_eq!(info(lines).epoll(), Some(vec![first, second]));
        assert_eq!(info("").epoll(), Some(Vec::new()));
        let old = info("tfd:        7 events:        0 data:                0\n").epoll();
        assert_eq!(old, Some(vec![EpollEntry { fd: 7, events: 0, data: 0, ino: None }]));
        assert_eq!(info("tfd: -1 events: 0 data: 0\n").epoll(), None);
        assert_eq!(info("tfd: 1 events: 0 data: 0 pos:0 ino:x\n").epoll(), None);
    }

    #[test]
    fn timerfd() {
        let timer = "clockid: 0\nticks: 3\nsettime flags: 03\nit_value: (0, 49406829)\nit_interval: (1, 5)\n";
        let (value, interval) = (49_406_829, 1_000_000_005);
        assert_eq!(info(timer).timerfd(), Some(Timerfd { clock: 0, ticks: 3, flags: 3, value, interval }));
        assert_eq!(info(&timer.replace("(1, 5)", "(99999999999999, 5)")).timerfd(), None);
        assert_eq!(info(&timer.replace("ticks", "tocks")).timerfd(), None);
    }

    #[test]
    fn pidfd_and_signalfd() {
        assert_eq!(info("Pid:\t-1\nNSpid:\t-1\n").pidfd(), Some(-1));
        assert_eq!(info("Pid:\t30665\nNSpid:\t30665\t2\n").pidfd(), Some(30665));
        assert_eq!(info("sigmask:\t8000000000000200\n").signalfd(), Some(1 << 63 | 1 << 9));
    }

    #[test]
    fn inotify() {
        let line = "inotify wd:a ino:3c4a7 sdev:fe00001 mask:84000002 ignored_mask:0";
        let handle = "fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000";
        let plain = InotifyWatch { wd: 10, ino: 0x3_c4a7, dev: (254, 1), mask: 0x8400_0002, handle: None };
        let bytes = vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 0];
        let full = InotifyWatch { handle: Some((1, bytes)), ..plain.clone() };
        assert_eq!(info(&format!("{line} {handle}\n{line} \n")).inotify(), Some(vec![full, plain]));
        assert_eq!(info(&format!("{line} {handle}0\n")).inotify(), None);
    }
}
