//! Targets of the magic links of `/proc/PID/fd` (proc_pid_fd(5)) and `/proc/PID/ns` (proc_pid_ns(5)), as
//! readlink(2) gives them. Nothing in them is escaped.

use crate::text::{dec, strip_deleted};

/// Reads `TYPE:[INODE]`, the target of a link in `/proc/PID/ns` (proc_pid_ns(5)), for example
/// `mnt:[4026531841]`: the type and the inode, which names the namespace. `None` for any other form.
///
/// Pipes and sockets have that form too (`pipe:[1234]`); see [`FdLink::parse`].
pub fn namespace_id(target: &[u8]) -> Option<(&[u8], u64)> {
    let colon = memchr::memchr(b':', target)?;
    let (kind, rest) = target.split_at_checked(colon)?;
    if kind.is_empty() || !kind.iter().all(|b| b.is_ascii_lowercase() || *b == b'_') {
        return None;
    }
    Some((kind, dec(rest.strip_prefix(b":[")?.strip_suffix(b"]")?)?))
}

/// The types of namespaces(7), as links of open files name them.
const NAMESPACES: [&[u8]; 8] = [b"cgroup", b"ipc", b"mnt", b"net", b"pid", b"time", b"user", b"uts"];

/// What an open file is, from the target of its link in `/proc/PID/fd` (proc_pid_fd(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdLink<'a> {
    /// `pipe:[INODE]`: a pipe(2); a FIFO with a name is a [`FdLink::Path`].
    Pipe(u64),
    /// `socket:[INODE]`.
    Socket(u64),
    /// `TYPE:[INODE]`: a namespace, by type (`net`, `mnt`, ...) and inode.
    Namespace(&'a [u8], u64),
    /// `anon_inode:NAME`: the kind, without brackets if it has them (`eventfd`, `eventpoll`, `inotify`, ...).
    AnonInode(&'a [u8]),
    /// `/memfd:NAME (deleted)`: memfd_create(2). A file `memfd:NAME` in the root directory, unlinked, reads the
    /// same; its device tells.
    Memfd(&'a [u8]),
    /// A path below the reader's root directory.
    Path {
        /// The path, without ` (deleted)`.
        path: &'a [u8],
        /// Whether ` (deleted)` was behind it: unlinked, or a name that happens to end so (`st_nlink` tells).
        deleted: bool,
    },
    /// None of these, for example `dmabuf:` or a link of another kernel release.
    Other(&'a [u8]),
}

impl<'a> FdLink<'a> {
    /// Reads a link's target (proc_pid_fd(5)).
    pub fn parse(target: &'a [u8]) -> FdLink<'a> {
        if target.starts_with(b"/") {
            let (path, deleted) = strip_deleted(target);
            return match path.strip_prefix(b"/memfd:") {
                Some(name) if deleted => FdLink::Memfd(name),
                _ => FdLink::Path { path, deleted },
            };
        }
        if let Some(name) = target.strip_prefix(b"anon_inode:") {
            let bare = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]"));
            return FdLink::AnonInode(bare.unwrap_or(name));
        }
        match namespace_id(target) {
            Some((b"pipe", inode)) => FdLink::Pipe(inode),
            Some((b"socket", inode)) => FdLink::Socket(inode),
            Some((kind, inode)) if NAMESPACES.contains(&kind) => FdLink::Namespace(kind, inode),
            _ => FdLink::Other(target),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces() {
        assert_eq!(namespace_id(b"mnt:[4026531841]"), Some((&b"mnt"[..], 4026531841)));
        assert_eq!(namespace_id(b"pid_for_children:[1]"), Some((&b"pid_for_children"[..], 1)));
        for bad in [&b""[..], b"mnt", b"mnt:[]", b"mnt:[1", b":[1]", b"/a:[1]", b"mnt:[1] (deleted)"] {
            assert_eq!(namespace_id(bad), None);
        }
    }

    #[test]
    fn links() {
        assert_eq!(FdLink::parse(b"pipe:[7]"), FdLink::Pipe(7));
        assert_eq!(FdLink::parse(b"socket:[7]"), FdLink::Socket(7));
        assert_eq!(FdLink::parse(b"net:[7]"), FdLink::Namespace(b"net", 7));
        assert_eq!(FdLink::parse(b"anon_inode:[eventfd]"), FdLink::AnonInode(b"eventfd"));
        assert_eq!(FdLink::parse(b"anon_inode:inotify"), FdLink::AnonInode(b"inotify"));
        assert_eq!(FdLink::parse(b"/memfd:a b (deleted)"), FdLink::Memfd(b"a b"));
        assert_eq!(FdLink::parse(b"/a\nb (deleted)"), FdLink::Path { path: b"/a\nb", deleted: true });
        assert_eq!(FdLink::parse(b"/a:[1]"), FdLink::Path { path: b"/a:[1]", deleted: false });
        assert_eq!(FdLink::parse(b"new:[7]"), FdLink::Other(b"new:[7]"));
        assert_eq!(FdLink::parse(b"weird"), FdLink::Other(b"weird"));
    }
}
