//! The only list of file kinds. The first that claims a descriptor takes it.

use crate::resource::file::{
    FileKind, chardev, directory, epoll, eventfd, external, inotify, path, pidfd, pipe, regular, signalfd,
    timerfd, unlinked,
};

/// All kinds, in the order in which they are asked.
pub(crate) const FILE_KINDS: &[&dyn FileKind] = &[
    &path::Path,
    &external::Terminal,
    &external::Pipe,
    &external::Socket,
    &pipe::InnerPipe,
    &unlinked::Unlinked,
    &regular::Regular,
    &directory::Directory,
    &chardev::CharDevice,
    &eventfd::Eventfd,
    &epoll::Epoll,
    &signalfd::Signalfd,
    &timerfd::Timerfd,
    &pidfd::Pidfd,
    &inotify::Inotify,
];
