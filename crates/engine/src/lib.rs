//! The engine: a coordinator outside the tasks that checkpoints and restarts them.
//!
//! [`checkpoint`] and [`restart`] are the two entry points; `checkpoint.rs` and `restart.rs` hold
//! the ordered phase lists, `resource/` one module per kernel resource with both directions.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod admit;
pub mod advice;
mod capture;
mod checkpoint;
mod error;
mod freeze;
mod freezer;
mod frost;
mod guard;
mod halt;
mod header;
mod household;
mod leaks;
mod machine;
mod maker;
mod milestone;
mod names;
mod objects;
mod opened;
mod options;
mod output;
mod phases;
mod plan;
mod policy;
mod puppets;
mod registry;
mod resource;
mod restart;
mod restore;
mod root;
mod scribe;
mod source;
mod stage;
mod surroundings;
mod survey;
mod task;
mod terminal;
mod terminals;
mod tree;
mod visiting;

pub use advice::{Means, Tongue};
pub use checkpoint::checkpoint;
pub use ckpt_kernel::hear_of_children;
pub use error::{Error, ErrorKind, Result};
pub use leaks::{Holder, Leak};
pub use machine::processor;
pub use milestone::Stage;
pub use options::{
    After, CheckpointOptions, CheckpointReport, Embed, External, Identity, Input, Interruption, Observer,
    Output, Outside, Pids, Place, RestartOptions, RestartReport, Scope, Silent,
};
pub use policy::{Allowed, Policy};
pub use restart::restart;
pub use root::Root;
pub use terminal::Loan;
