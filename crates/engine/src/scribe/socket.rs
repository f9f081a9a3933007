//! Names of unix sockets, which are made by bind(2).
//!
//! The address of a socket is what was given to bind(2), which follows links on the way to it. So its directory is opened
//! first, as that of any name, and after the call the name must be in there. A dead socket that was left behind where
//! the name was is put aside, and comes back if the restart fails.

use super::{
    Desk, fresh_name,
    journal::{Likeness, Step},
};
use ckpt_kernel::Errno;
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
};

/// The name of a socket.
#[derive(Clone, Debug)]
pub(crate) struct Name<'a> {
    /// Where it is.
    pub(crate) path: &'a [u8],
    /// What bind(2) was given: that, or a way to it from a directory above.
    pub(crate) address: &'a [u8],
    /// Its mode, owner and group.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// When it was modified, that is made: seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Its device and inode.
    pub(crate) dev_ino: (u64, u64),
}

const WORDS: usize = 7;

impl<'a> Name<'a> {
    /// As the scribe is told.
    pub(super) fn request(&self) -> Vec<u8> {
        let (sec, nsec) = (self.mtime.0 as u64, self.mtime.1.into());
        let (dev, ino) = self.dev_ino;
        let words = [self.mode.into(), self.uid.into(), self.gid.into(), sec, nsec, dev, ino];
        let words: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        [self.path, self.address, &words].join(&0)
    }

    /// What the scribe was told.
    pub(super) fn of_request(request: &'a [u8]) -> Option<Name<'a>> {
        let mut parts = request.splitn(3, |byte| *byte == 0);
        let (path, address, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let mut words = [0u64; WORDS];
        for (word, bytes) in words.iter_mut().zip(rest.chunks_exact(8)) {
            *word = u64::from_le_bytes(*bytes.first_chunk()?);
        }
        let [mode, uid, gid, sec, nsec, dev, ino] = words;
        let (mode, uid, gid) = (mode as u32, uid as u32, gid as u32);
        Some(Name { path, address, mode, uid, gid, mtime: (sec as i64, nsec as u32), dev_ino: (dev, ino) })
    }

    /// The directory from which its address is a way to its path, if that is not the root.
    pub(crate) fn base(&self) -> Option<&'a [u8]> {
        let way = self.address.strip_prefix(b"./").unwrap_or(self.address);
        self.path.strip_suffix(way)?.strip_suffix(b"/").filter(|base| !base.is_empty())
    }

    /// Whether a file is that socket, or one that a restart made of it: it has its time, too.
    fn is(&self, stat: &Stat) -> bool {
        let same_time = (stat.st_mtime, stat.st_mtime_nsec as u32) == self.mtime && stat.st_uid == self.uid;
        is_socket(stat) && ((stat.st_dev, stat.st_ino) == self.dev_ino || same_time)
    }
}

fn is_socket(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket
}

/// Whether somebody has a socket with this address, a path or an abstract name behind a zero. Nobody there notices: a
/// socket for datagrams asks.
pub(crate) fn is_taken(address: &[u8]) -> Result<bool, Errno> {
    let asking =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&asking, &to_address(address)?) {
        Ok(()) | Err(Errno::PROTOTYPE | Errno::ACCESS | Errno::PERM) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An address as system calls have it.
pub(crate) fn to_address(address: &[u8]) -> Result<SocketAddrUnix, Errno> {
    match address.strip_prefix(&[0]) {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(address),
    }
}

/// Binds a socket to a name that stays if all goes well.
pub(super) fn last(desk: &mut Desk<'_>, socket: BorrowedFd<'_>, wanted: &Name<'_>) -> Result<OwnedFd, Errno> {
    let (dir, name) = desk.parent(wanted.path, false)?;
    enter(wanted)?;
    put_aside(desk, &dir, &name, wanted)?;
    bind(desk, socket, (&dir, &name), wanted.address, wanted)?;
    rustix::io::dup(&dir)
}

/// Binds a socket to a name that is taken away at once: to another one where it is taken.
pub(super) fn briefly(
    desk: &mut Desk<'_>,
    socket: BorrowedFd<'_>,
    wanted: &Name<'_>,
) -> Result<OwnedFd, Errno> {
    let (dir, name) = desk.parent(wanted.path, true)?;
    enter(wanted)?;
    fresh_name(&name, |fresh| {
        let suffix = fresh.get(name.len()..).unwrap_or_default();
        let address = [wanted.address, suffix].concat();
        bind(desk, socket, (&dir, fresh), &address, wanted).map_err(|error| match error {
            Errno::ADDRINUSE => Errno::EXIST,
            other => other,
        })
    })?;
    rustix::io::dup(&dir)
}

/// Goes where the address leads from.
fn enter(wanted: &Name<'_>) -> Result<(), Errno> {
    if wanted.address.starts_with(b"/") {
        return Ok(());
    }
    rustix::process::chdir(wanted.base().unwrap_or(b"/"))
}

/// Renames what was left behind at a name, if that is the wanted socket and nobody has it any more.
fn put_aside(desk: &mut Desk<'_>, dir: &Rc<OwnedFd>, name: &[u8], wanted: &Name<'_>) -> Result<(), Errno> {
    let old = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if !wanted.is(&old) {
        return Err(Errno::EXIST);
    }
    if is_taken(wanted.address)? {
        return Err(Errno::ADDRINUSE);
    }
    fresh_name(&[name, b".old"].concat(), |fresh| {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        desk.take(Step::aside(dir, fresh, name, &old), || {
            rustix::fs::renameat_with(dir, name, dir, fresh, flags)?;
            rustix::fs::statat(dir, fresh, AtFlags::SYMLINK_NOFOLLOW)
        })
    })
    .and_then(|stat| desk.know(Likeness::of(&stat)))
}

/// Binds a socket to an address that is to lead to a place: a directory and a name in it.
fn bind(
    desk: &mut Desk<'_>,
    socket: BorrowedFd<'_>,
    (dir, name): (&Rc<OwnedFd>, &[u8]),
    address: &[u8],
    wanted: &Name<'_>,
) -> Result<(), Errno> {
    let address = to_address(address)?;
    desk.take(Step::new(dir, name, Likeness::new(FileType::Socket)), || {
        // Nobody may use it who may not later on.
        rustix::process::umask(Mode::from_raw_mode(!wanted.mode & 0o777));
        let bound = rustix::net::bind(socket, &address);
        rustix::process::umask(Mode::empty());
        bound
    })?;
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_socket(&stat) => desk.know(Likeness::of(&stat))?,
        // It was made, elsewhere.
        _ => return Err(Errno::XDEV),
    }
    dress(dir.as_fd(), name, wanted)
}

/// Gives a new name its owner and time.
fn dress(dir: BorrowedFd<'_>, name: &[u8], wanted: &Name<'_>) -> Result<(), Errno> {
    const NO_LINK: AtFlags = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), NO_LINK)?;
    let time = Timespec { tv_sec: wanted.mtime.0, tv_nsec: wanted.mtime.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(dir, name, &times, NO_LINK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let name = Name {
            path: b"/a/b/sock",
            address: b"./b/sock",
            mode: 0o140600,
            uid: 1,
            gid: 2,
            mtime: (-3, 4),
            dev_ino: (5, u64::MAX),
        };
        let request = name.request();
        let back = Name::of_request(&request).unwrap();
        assert_eq!(format!("{back:?}"), format!("{name:?}"));
        assert_eq!(back.base(), Some(&b"/a"[..]));
        assert_eq!(Name { address: b"c/sock", ..back.clone() }.base(), None);
        assert_eq!(Name { address: b"/a/b/sock", ..back }.base(), None);
    }
}
