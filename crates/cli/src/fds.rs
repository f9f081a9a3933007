//! Open descriptors that the command line names by number.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::failure::{Failure, Outcome};

/// A duplicate of our descriptor `number`, which `option` named. Goes through a pidfd of ourselves:
/// unlike a raw number this is checked by the kernel.
pub(crate) fn ours(option: &str, number: i32) -> Outcome<OwnedFd> {
    let copy = match number {
        0 => std::io::stdin().as_fd().try_clone_to_owned(),
        1 => std::io::stdout().as_fd().try_clone_to_owned(),
        2 => std::io::stderr().as_fd().try_clone_to_owned(),
        number => pidfd_open(getpid(), PidfdFlags::empty())
            .and_then(|ourselves| pidfd_getfd(ourselves, number, PidfdGetfdFlags::empty()))
            .map_err(std::io::Error::from),
    };
    copy.map_err(|cause| match cause.raw_os_error() {
        Some(code) if code == rustix::io::Errno::BADF.raw_os_error() => {
            Failure::usage(format!("{option}: descriptor {number} is not open"))
        }
        _ => Failure::os(format!("{option} {number}"), cause),
    })
}

/// Makes fd 0 read from /dev/null.
pub(crate) fn empty_stdin() -> Outcome<()> {
    let null = File::open("/dev/null").map_err(|cause| Failure::os("/dev/null", cause))?;
    rustix::stdio::dup2_stdin(null).map_err(|cause| Failure::os("stdin", cause))
}
