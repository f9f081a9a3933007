//! What a command says, and where.
//!
//! stdout carries data only. Messages for people go to stderr, each on one line that begins with
//! the command's name. With `--json` there is one JSON object per line on stdout; where stdout
//! belongs to something else (the image, the restarted program) the objects go to stderr, and
//! then nothing but JSON does.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::{
    args::Command,
    failure::{Failure, Outcome},
};

/// Where JSON goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Json {
    Off,
    Stdout,
    Stderr,
}

/// The voice of one command.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    name: &'static str,
    json: Json,
    log_file: bool,
}

impl Console {
    /// The voice of `command`.
    pub(crate) fn for_command(command: &Command) -> Console {
        let json = |wanted: bool, stdout_taken: bool| match (wanted, stdout_taken) {
            (false, _) => Json::Off,
            (true, false) => Json::Stdout,
            (true, true) => Json::Stderr,
        };
        let (name, json, log_file) = match command {
            Command::Checkpoint(args) => {
                ("checkpoint", json(args.json, args.to_stdout()), args.log.file.is_some())
            }
            Command::Restart(args) => ("restart", json(args.json, !args.no_wait), args.log.file.is_some()),
            Command::Info(args) => ("ckptinfo", json(args.json, false), false),
            Command::Bench(args) => ("ckpt bench", json(args.json, false), false),
            Command::Demo(_) => ("ckpt demo", Json::Off, false),
            _ => ("ckpt", Json::Off, false),
        };
        Console { name, json, log_file }
    }

    /// Whether reports are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json != Json::Off
    }

    /// Whether stderr is for text.
    pub(crate) fn stderr_is_text(&self) -> bool {
        self.json != Json::Stderr
    }

    /// A message for people.
    pub(crate) fn say(&self, text: &str) {
        if self.stderr_is_text() {
            // Nobody is left to be told when stderr is gone.
            let _ = writeln!(io::stderr(), "{}: {text}", self.name);
        }
    }

    /// A warning for people.
    pub(crate) fn warn(&self, text: &str) {
        self.say(&format!("warning: {}", text.replace(['\n', '\r'], " ")));
    }

    /// One JSON object, if JSON was asked for.
    pub(crate) fn report(&self, value: &Value) -> Outcome<()> {
        match self.json {
            Json::Off => Ok(()),
            Json::Stdout => data(&format!("{value}\n")),
            Json::Stderr => {
                let _ = writeln!(io::stderr(), "{value}");
                Ok(())
            }
        }
    }

    /// Says why the command failed; returns its exit code. Interrupted, it does not return: the
    /// process dies by the signal, as whoever sent it expects.
    pub(crate) fn fail(&self, failure: &Failure) -> u8 {
        if let Some(line) = failure.line() {
            self.say(&line);
            if self.log_file {
                tracing::error!("{line}");
            }
        }
        if let Some(value) = failure.json() {
            // stdout may be what failed; stderr has the same.
            let _ = self.report(&value);
        }
        if let Failure::Interrupted(signal, _) = failure {
            let _ = signal_hook::low_level::emulate_default_handler(*signal);
        }
        failure.exit_code()
    }
}

/// Writes to stdout. A reader that has gone is [`Failure::Unread`].
pub(crate) fn data(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Unread),
        Err(cause) => Err(Failure::os("stdout", cause)),
    }
}

/// An image id as a UUID.
pub(crate) fn uuid(id: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in id.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Milliseconds with microsecond resolution, as a JSON number.
pub(crate) fn millis(time: std::time::Duration) -> Value {
    json!(time.as_micros() as f64 / 1000.0)
}
