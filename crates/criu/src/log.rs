//! The log: what engines read when something went wrong.
//!
//! Lines are `(00.000123) text`, seconds and microseconds since the start; errors and warnings name the
//! part they come from: `(00.000123) Error (engine): text`. The file is opened in place and truncated, never
//! renamed over: a caller may hold it open or have it mounted. It is there even if nothing is said. The engine's tracing
//! events become lines by [`Log::listen`].

use crate::{
    failure::{Failure, Outcome},
    options::Options,
};
use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::{Stderr, Write},
    os::unix::fs::OpenOptionsExt,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tracing::{Event, Metadata, Subscriber, field::Field, field::Visit};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt},
    registry::Registry,
};

/// How much a line matters; the numbers are those of `-v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What made the action fail.
    Error = 1,
    /// What the caller should know.
    Warn = 2,
    /// What is done.
    Info = 3,
    /// How.
    Debug = 4,
}

/// Where the lines go. Clones are the same log.
#[derive(Clone, Debug)]
pub struct Log(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    start: Instant,
    verbosity: u8,
    sink: Sink,
    first_error: Option<String>,
}

#[derive(Debug)]
enum Sink {
    Stderr(Stderr),
    File(File),
}

impl Log {
    /// The log that `options` ask for.
    pub fn open(options: &Options) -> Outcome<Log> {
        let sink = match &options.log_file {
            None => Sink::Stderr(std::io::stderr()),
            Some(name) => {
                let path = options.in_work_dir(name);
                // It names addresses, paths and pids of the tasks: nobody else's business.
                let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path);
                let cause = |cause| Failure::os("log", format!("log file {}", path.display()), cause);
                Sink::File(file.map_err(cause)?)
            }
        };
        Ok(Log::new(sink, options.verbosity))
    }

    /// A log on standard error.
    pub fn stderr(verbosity: u8) -> Log {
        Log::new(Sink::Stderr(std::io::stderr()), verbosity)
    }

    fn new(sink: Sink, verbosity: u8) -> Log {
        let state = State { start: Instant::now(), verbosity, sink, first_error: None };
        Log(Arc::new(Mutex::new(state)))
    }

    /// What made the action fail, or will.
    pub fn error(&self, place: &str, text: impl AsRef<str>) {
        self.line(Level::Error, &format!("Error ({place}): "), text.as_ref());
    }

    /// What the caller should know.
    pub fn warn(&self, place: &str, text: impl AsRef<str>) {
        self.line(Level::Warn, &format!("Warn  ({place}): "), text.as_ref());
    }

    /// What is done.
    pub fn info(&self, text: impl AsRef<str>) {
        self.line(Level::Info, "", text.as_ref());
    }

    /// How it is done.
    pub fn debug(&self, text: impl AsRef<str>) {
        self.line(Level::Debug, "", text.as_ref());
    }

    /// `failure` as an error line.
    pub fn failure(&self, failure: &Failure) {
        self.error(failure.place(), failure.to_string());
    }

    /// The text of the first error, whatever the verbosity.
    pub fn first_error(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).first_error.clone()
    }

    /// Whether lines of `level` are written.
    pub fn wants(&self, level: Level) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).verbosity >= level as u8
    }

    /// Makes the engine's tracing events lines of this log, for the rest of the process.
    pub fn listen(&self) {
        let subscriber = Registry::default().with(Ear(self.clone()));
        // Somebody who listens already goes on.
        let _ = tracing::subscriber::set_global_default(subscriber);
    }

    fn line(&self, level: Level, prefix: &str, text: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = text.trim_end_matches('\n').replace(['\n', '\r'], " ");
        if level == Level::Error && state.first_error.is_none() {
            state.first_error = Some(text.clone());
        }
        if state.verbosity < level as u8 {
            return;
        }
        let since = state.start.elapsed();
        let line = format!("({:02}.{:06}) {prefix}{text}\n", since.as_secs(), since.subsec_micros());
        // One write a line, so that lines of several processes do not mix. A full disk is no reason to fail.
        let _ = match &mut state.sink {
            Sink::Stderr(stderr) => stderr.write_all(line.as_bytes()),
            Sink::File(file) => file.write_all(line.as_bytes()),
        };
    }
}

/// Listens to tracing events.
struct Ear(Log);

impl<S: Subscriber> Layer<S> for Ear {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.0.wants(level_of(metadata))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let text = format!("{}{}", text.message, text.fields);
        match level_of(event.metadata()) {
            Level::Error => self.0.error("engine", text),
            Level::Warn => self.0.warn("engine", text),
            Level::Info => self.0.info(text),
            Level::Debug => self.0.debug(text),
        }
    }
}

fn level_of(metadata: &Metadata<'_>) -> Level {
    match *metadata.level() {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warn,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    }
}

/// An event as text: `message field=value ...`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn options(dir: &std::path::Path, verbosity: u8) -> Options {
        let log_file = Some(PathBuf::from("x.log"));
        Options { images_dir: dir.to_owned(), log_file, verbosity, ..Options::default() }
    }

    fn lines(verbosity: u8) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&options(dir.path(), verbosity)).unwrap();
        log.error("engine", "one\ntwo");
        log.warn("dump", "w");
        log.info("i");
        log.debug("d");
        assert_eq!(log.first_error().as_deref(), Some("one two"));
        let text = std::fs::read_to_string(dir.path().join("x.log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_have_time_class_and_place() {
        let lines = lines(4);
        let rest: Vec<_> = lines.iter().map(|line| line.split_at(12)).collect();
        assert!(rest.iter().all(|(time, _)| time.starts_with("(00.") && time.ends_with(") ")), "{lines:?}");
        let rest: Vec<_> = rest.iter().map(|(_, text)| *text).collect();
        assert_eq!(rest, ["Error (engine): one two", "Warn  (dump): w", "i", "d"]);
    }

    #[test]
    fn verbosity_says_which() {
        assert_eq!([0, 1, 2, 3, 4].map(|verbosity| lines(verbosity).len()), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_file_is_opened_in_place_and_truncated() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        std::fs::write(&path, "old").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let _log = Log::open(&options(dir.path(), 2)).unwrap();
        let now = std::fs::metadata(&path).unwrap();
        assert_eq!((now.ino(), now.len()), (inode, 0));
    }

    #[test]
    fn events_become_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&options(dir.path(), 3)).unwrap();
        let subscriber = Registry::default().with(Ear(log));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(pid = 7, "frozen");
            tracing::debug!("not this");
            tracing::warn!("odd");
        });
        let text = std::fs::read_to_string(dir.path().join("x.log")).unwrap();
        let rest: Vec<_> = text.lines().map(|line| &line[12..]).collect();
        assert_eq!(rest, ["frozen pid=7", "Warn  (engine): odd"]);
    }
}
