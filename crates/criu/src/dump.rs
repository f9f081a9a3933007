//! The action `dump`.

use crate::{
    failure::{Failure, Outcome},
    log::Log,
    options::Options,
};

/// Dumps the tree below `options.tree`.
pub fn run(_options: &Options, _log: &Log) -> Outcome {
    Err(Failure::failed("dump", "dump: not yet"))
}
