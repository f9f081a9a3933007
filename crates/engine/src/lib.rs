//! The engine: a coordinator outside the tasks that checkpoints and restarts them.
//!
//! [`checkpoint`] and [`restart`] are the two entry points; `checkpoint.rs` and `restart.rs` hold
//! the ordered phase lists, `resource/` one module per kernel resource with both directions.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod checkpoint;
mod error;
mod freeze;
mod guard;
mod objects;
mod options;
mod output;
// Until restart.rs carries the plans out.
#[allow(dead_code)]
mod plan;
mod registry;
mod resource;
mod restart;
mod source;
mod task;

pub use checkpoint::checkpoint;
pub use error::{Error, ErrorKind, Result};
pub use options::{
    After, CheckpointOptions, CheckpointReport, Input, Observer, Output, RestartOptions, RestartReport,
    Silent,
};
pub use restart::restart;
