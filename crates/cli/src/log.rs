//! Where the engine's tracing goes: nowhere, to stderr (`-v`) or to a file (`-l`).

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, sync::Mutex};

use tracing_subscriber::filter::LevelFilter;

use crate::{
    args::LogArgs,
    failure::{Failure, Outcome},
};

/// Starts logging as asked. `-l` alone logs at level info, each `-v` one level more; without `-l`
/// the first `-v` is info.
pub(crate) fn start(args: &LogArgs) -> Outcome<()> {
    let level = match (args.verbose, args.file.is_some()) {
        (0, false) => return Ok(()),
        (0, true) | (1, false) => LevelFilter::INFO,
        (1, true) | (2, false) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let format = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_target(false);
    let started = match &args.file {
        Some(path) => {
            // A log names addresses, paths and pids of the program: nobody else's business.
            let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path);
            let file = file.map_err(|cause| Failure::os(format!("log file {}", path.display()), cause))?;
            format.with_writer(Mutex::new(file)).try_init()
        }
        None => format.with_writer(std::io::stderr).without_time().try_init(),
    };
    started.map_err(|cause| Failure::failed(format!("log: {cause}")))
}
