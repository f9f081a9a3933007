//! The action `restore`.

use crate::{
    failure::{Failure, Outcome},
    log::Log,
    options::Options,
};

/// Restores the tree of the image.
pub fn run(_options: &Options, _log: &Log) -> Outcome {
    Err(Failure::failed("restore", "restore: not yet"))
}
