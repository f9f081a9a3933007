//! CRIU's command line in front of the engine, for container engines that drive CRIU.
//!
//! [`main`] is the program: words become [`options::Options`], and one module per action acts on them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod check;
pub mod config;
pub mod cpuinfo;
pub mod dump;
mod external;
pub mod failure;
pub mod features;
pub mod log;
pub mod options;
pub mod parse;
mod ready;
pub mod restore;
mod scripts;
pub mod stats;
mod table;
mod values;
pub mod watch;

use config::Places;
use failure::{Failure, Outcome};
use log::Log;
use options::{Action, Options};
use parse::Request;
use std::{ffi::OsString, io::Write};

/// The version of CRIU whose interface this is; engines compare the line.
pub const VERSION: &str = "4.2";

/// The program `criu`: `words` are its arguments, the first its name. Gives the exit code, 0 or 1.
pub fn main(words: &[OsString]) -> u8 {
    match parse::parse(words.get(1..).unwrap_or_default(), &Places::of_environment()) {
        Ok(Request::Version) => say(&format!("Version: {VERSION}\n")),
        Ok(Request::Help) => say(&table::help()),
        Ok(Request::Nothing) => {
            eprint!("{}", table::help());
            1
        }
        Ok(Request::Act(action, options)) => logged(action, &options),
        Err(failure) => refuse(&failure),
    }
}

/// Writes to standard output. Whoever closed it wants no more of it.
pub(crate) fn say(text: &str) -> u8 {
    let _ = std::io::stdout().write_all(text.as_bytes());
    0
}

/// An error before there is a log.
fn refuse(failure: &Failure) -> u8 {
    eprintln!("criu: {failure}");
    1
}

/// Does `action` with a log.
fn logged(action: Action, options: &Options) -> u8 {
    let log = match Log::open(options) {
        Ok(log) => log,
        Err(failure) => return refuse(&failure),
    };
    log.listen();
    log.info(format!("Version: {VERSION} (ckpt {}), {}", env!("CARGO_PKG_VERSION"), action.word()));
    u8::from(act(action, options, &log).is_err())
}

/// Does `action`, and logs what came of it.
pub fn act(action: Action, options: &Options, log: &Log) -> Outcome {
    let done = match action {
        Action::Dump => dump::run(options, log),
        Action::Restore => restore::run(options, log),
        Action::Check => check::run(options, log),
        Action::CpuinfoDump => cpuinfo::dump(options, log),
        Action::CpuinfoCheck => cpuinfo::check(options, log),
        other => Err(Failure::options(format!("{}: not supported yet", other.word()))),
    };
    if let Err(failure) = &done {
        log.failure(failure);
        match action {
            Action::Dump | Action::PreDump => log.error("dump", "Dumping FAILED."),
            Action::Restore => log.error("restore", "Restoring FAILED."),
            _ => {}
        }
    }
    done
}
