//! Open descriptors that the command line names by number.

use std::{fs::File, os::fd::OwnedFd};

use rustix::io::Errno;

use crate::failure::{Failure, Outcome};

/// A duplicate of our descriptor `number`, which `option` named.
pub(crate) fn ours(option: &str, number: i32) -> Outcome<OwnedFd> {
    ckpt_foreground::descriptor(number).map_err(|cause| match cause {
        Errno::BADF => Failure::usage(format!("{option}: descriptor {number} is not open")),
        cause => Failure::os(format!("{option} {number}"), cause),
    })
}

/// Makes fd 0 read from /dev/null.
pub(crate) fn empty_stdin() -> Outcome<()> {
    let null = File::open("/dev/null").map_err(|cause| Failure::os("/dev/null", cause))?;
    rustix::stdio::dup2_stdin(null).map_err(|cause| Failure::os("stdin", cause))
}
