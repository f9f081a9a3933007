//! The only list of file kinds. No more than one of them claims a descriptor.

use crate::resource::file::{
    FileKind, chardev, current, directory, epoll, eventfd, external, inotify, memfd, mqueue, path, pidfd,
    pipe, proc, pty, regular, signalfd, timerfd, unix, unlinked,
};

/// All kinds.
pub(crate) const FILE_KINDS: &[&dyn FileKind] = &[
    &proc::KernelFile,
    &path::Path,
    &pty::End,
    &current::Current,
    &external::Terminal,
    &external::Pipe,
    &unix::Socket,
    &external::Socket,
    &external::Named,
    &pipe::InnerPipe,
    &unlinked::Unlinked,
    &regular::Regular,
    &directory::Directory,
    &chardev::CharDevice,
    &memfd::Memfd,
    &mqueue::Mqueue,
    &eventfd::Eventfd,
    &epoll::Epoll,
    &signalfd::Signalfd,
    &timerfd::Timerfd,
    &pidfd::Pidfd,
    &inotify::Inotify,
];
