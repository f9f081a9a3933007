//! Names of unix sockets, which are made by bind(2).
//!
//! The address of a socket is what was given to bind(2), which follows links on the way to it. So its directory is opened
//! first, as that of any name, and after the call the name must be in there. A dead socket that was left behind where
//! the name was is put aside, and comes back if the restart fails.

use super::{Lasting, fresh_name, parent, unmake};
use ckpt_kernel::Errno;
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
pub(super) fn last(
    socket: BorrowedFd<'_>,
    wanted: &Name<'_>,
    lasting: &mut Vec<Lasting>,
) -> Result<OwnedFd, Errno> {
    let (dir, name, _) = parent(wanted.path, false)?;
    enter(wanted)?;
    let aside = put_aside(dir.as_fd(), &name, wanted)?;
    let bound = bind(socket, wanted.address, wanted.mode)
        .and_then(|()| rustix::fs::statat(&dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW));
    match bound {
        Ok(stat) if is_socket(&stat) => {
            let place = rustix::io::dup(&dir)?;
            lasting.push(Lasting { dir, name, dev_ino: (stat.st_dev, stat.st_ino), aside });
            let name = lasting.last().map(|last| last.name.as_slice()).unwrap_or_default();
            dress(place.as_fd(), name, wanted)?;
            Ok(place)
        }
        failed => {
            if let Some(aside) = aside {
                let _ = rustix::fs::renameat(&dir, aside, &dir, name);
            }
            // It was made, elsewhere.
            failed.and(Err(Errno::XDEV))
        }
    }
}

/// Binds a socket to a name that is taken away at once: to another one where it is taken.
pub(super) fn briefly(socket: BorrowedFd<'_>, wanted: &Name<'_>) -> Result<OwnedFd, Errno> {
    let (dir, name, mut above) = parent(wanted.path, true)?;
    enter(wanted)?;
    let bound = fresh_name(&name, |fresh| {
        let suffix = fresh.get(name.len()..).unwrap_or_default();
        bind(socket, &[wanted.address, suffix].concat(), wanted.mode).map_err(|error| match error {
            Errno::ADDRINUSE => Errno::EXIST,
            other => other,
        })?;
        let dressed = dress(dir.as_fd(), fresh, wanted);
        rustix::fs::unlinkat(&dir, fresh, AtFlags::empty())?;
        dressed?;
        rustix::io::dup(&dir)
    });
    drop(dir);
    unmake(&mut above);
    bound
}

/// Goes where the address leads from.
fn enter(wanted: &Name<'_>) -> Result<(), Errno> {
    if wanted.address.starts_with(b"/") {
        return Ok(());
    }
    rustix::process::chdir(wanted.base().unwrap_or(b"/"))
}

/// Renames what was left behind at a name, if that is the wanted socket and nobody has it any more; gives its new
/// name.
fn put_aside(dir: BorrowedFd<'_>, name: &[u8], wanted: &Name<'_>) -> Result<Option<Vec<u8>>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        other if !wanted.is(&other?) => return Err(Errno::EXIST),
        _ => {}
    }
    if is_taken(wanted.address)? {
        return Err(Errno::ADDRINUSE);
    }
    let mut aside = Vec::new();
    fresh_name(&[name, b".old"].concat(), |fresh| {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(dir, name, dir, fresh, flags)?;
        aside = fresh.to_vec();
        rustix::io::dup(dir)
    })?;
    Ok(Some(aside))
}

fn bind(socket: BorrowedFd<'_>, address: &[u8], mode: u32) -> Result<(), Errno> {
    // Nobody may use it who may not later on.
    rustix::process::umask(Mode::from_raw_mode(!mode & 0o777));
    let bound = to_address(address).and_then(|address| rustix::net::bind(socket, &address));
    rustix::process::umask(Mode::empty());
    bound
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
