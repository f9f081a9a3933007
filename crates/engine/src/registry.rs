//! The only list of file kinds. The first that claims a descriptor takes it.

use crate::resource::file::{
    FileKind, chardev, current, directory, external, path, pipe, pty, regular, unlinked,
};

/// All kinds, in the order in which they are asked.
pub(crate) const FILE_KINDS: &[&dyn FileKind] = &[
    &path::Path,
    &pty::End,
    &current::Current,
    &external::Terminal,
    &external::Pipe,
    &external::Socket,
    &pipe::InnerPipe,
    &unlinked::Unlinked,
    &regular::Regular,
    &directory::Directory,
    &chardev::CharDevice,
];
