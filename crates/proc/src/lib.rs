//! Pure parsers of kernel text.
//!
//! Every function here takes the bytes of a `/proc` file somebody else has read and gives a struct back. There
//! is no I/O, so each parser is tested on captured input, and no global state. Names and paths are bytes: the
//! kernel promises no encoding. Nothing panics, whatever the input; memory used is proportional to the input,
//! so whoever reads the file sets the limit.
//!
//! The rule for what is an error: a field the caller will rely on that is absent or not of its documented form
//! is a [`ParseError`]; a *line or key* that is not known is not, because every kernel release adds some.
//! Fields that only newer kernels print are `Option`s and say so.
//!
//! | file | parser |
//! |---|---|
//! | `/proc/PID/maps`, `smaps` | [`maps::parse_maps`], [`smaps::parse_smaps`] |
//! | `/proc/PID/stat`, `status` | [`stat::parse_stat`], [`status::parse_status`] |
//! | `/proc/PID/fdinfo/FD` | [`fdinfo::parse_fdinfo`] |
//! | `/proc/PID/timers`, `/proc/timer_list` | [`timers::parse_timers`], [`timer_list::parse_timer_list`] |
//! | `/proc/PID/mountinfo`, `cgroup` | [`mountinfo::parse_mountinfo`], [`cgroup::parse_cgroup`] |
//! | `/proc/PID/syscall`, `wchan` | [`syscall::parse_syscall`], [`syscall::parse_wchan`] |
//! | `/proc/PID/auxv` | [`auxv::parse_auxv`] |
//! | targets of `/proc/PID/fd/*`, `ns/*` | [`link::namespace_id`], [`link::FdLink::parse`] |
//! | sock_diag(7) of unix sockets | [`unix_diag::parse_unix_diag`] |
//! | an ELF file | [`elf::build_id`] |

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod anon;
pub mod auxv;
pub mod cgroup;
pub mod elf;
mod error;
pub mod fdinfo;
pub mod link;
pub mod maps;
pub mod mountinfo;
pub mod signals;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod syscall;
mod text;
pub mod timer_list;
pub mod timers;
pub mod unix_diag;

pub use error::{ParseError, Problem};
