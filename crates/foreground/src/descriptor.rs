//! Open descriptors that a command line names by number.

use rustix::{
    io::{Errno, dup},
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
    stdio::{stderr, stdin, stdout},
};
use std::os::fd::OwnedFd;

/// A duplicate of our descriptor `number`. Goes through a pidfd of ourselves: unlike a raw number this is checked
/// by the kernel.
///
/// # Errors
/// EBADF if it is not open, and what pidfd_getfd(2) says.
pub fn descriptor(number: i32) -> Result<OwnedFd, Errno> {
    match number {
        0 => dup(stdin()),
        1 => dup(stdout()),
        2 => dup(stderr()),
        number => pidfd_open(getpid(), PidfdFlags::empty())
            .and_then(|ourselves| pidfd_getfd(ourselves, number, PidfdGetfdFlags::empty())),
    }
}
