//! CRIU's command line in front of the engine, for container engines that drive CRIU.
//!
//! [`main`] is the program: words become [`options::Options`], and one module per action acts on them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod dump;
mod external;
pub mod failure;
pub mod log;
pub mod options;
mod ready;
pub mod restore;
mod scripts;
pub mod stats;
pub mod watch;
mod words;

use failure::{Failure, Outcome};
use log::Log;
use options::{Action, Options};
use std::ffi::OsString;

/// The version of CRIU whose interface this is; engines compare the line.
pub const VERSION: &str = "4.2";

/// The program `criu`: `words` are its arguments, the first its name. Gives the exit code, 0 or 1.
pub fn main(words: Vec<OsString>) -> u8 {
    if words.iter().any(|word| word == "--version" || word == "-V") {
        println!("Version: {VERSION}");
        return 0;
    }
    let asked = words::parse(words).and_then(|(action, options)| {
        let log = Log::open(&options)?;
        Ok((action, options, log))
    });
    match asked {
        Ok((action, options, log)) => {
            log.listen();
            u8::from(act(action, &options, &log).is_err())
        }
        Err(failure) => {
            eprintln!("criu: {failure}");
            1
        }
    }
}

/// Does `action`, and logs what came of it.
pub fn act(action: Action, options: &Options, log: &Log) -> Outcome {
    let done = match action {
        Action::Dump => dump::run(options, log),
        Action::Restore => restore::run(options, log),
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
