//! The end-to-end harness: fixtures, targets, the outside view of a process, and the tool under test.
//!
//! Black box: everything goes through the `ckpt` binary and `/proc`. See `README.md` for how to add a fixture.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

pub mod compare;
pub mod context;
pub mod diagnose;
pub mod directives;
pub mod fixture;
pub mod image;
pub mod runner;
pub mod sys;
pub mod target;
pub mod tool;
pub mod tree;
pub mod view;
