//! Why a command ends other than well, in words, in JSON and as an exit code.

use ckpt_engine::{Error, Means, advice};
use serde_json::{Value, json};
use std::borrow::Cow;

/// What `checkpoint` and `restart` call what the engine advises.
fn tongue(means: &Means) -> Option<Cow<'static, str>> {
    Some(Cow::Borrowed(match means {
        Means::Elsewhere => "write it elsewhere with -o",
        Means::OutputFd => "give a pipe or device with --output-fd",
        Means::Overwrite => "replace it with -f",
        Means::Subtree => "leave -c out: then the tree is taken as far as it can be",
        Means::External => "leave it outside: --external file[PATH]:NAME",
        Means::Inherit { name: Some(name), .. } => return Some(advice::inherit("--inherit-fd FD:", name)),
        Means::Inherit { fd, .. } => {
            return Some(advice::inherit("--inherit-fd ", format!("{fd}=FD").as_bytes()));
        }
        Means::MapFiles => "say where it is with --map-file OLD=NEW",
        Means::ForceFiles => "go on with --force-files",
        Means::ForceCpu => "go on with --force-cpu",
        Means::NewPids => "restart with --new-pids",
        Means::Namespace => "restart with --pidns",
        Means::NoNamespace => "leave --pidns out",
        Means::NoMntns => "leave --mntns out",
        // Nothing is refused that these allow.
        Means::ShellJob | Means::ExtUnixSk | Means::FileLocks => return None,
    }))
}

/// Exit code of wrong usage.
pub(crate) const USAGE: u8 = 2;

/// Result of a command: its exit code.
pub(crate) type Outcome<T = u8> = Result<T, Failure>;

/// The end of a command that did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine, or something that fits its error type.
    Failed(Box<Error>),
    /// The arguments make no sense together.
    Usage(String),
    /// Interrupted by this signal; everything is undone.
    Interrupted(i32, Box<Error>),
    /// Whoever read our stdout closed it: not an error.
    Unread,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Failed(Box::new(error))
    }
}

impl Failure {
    /// A usage failure.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Failure::Usage(text.into())
    }

    /// A failure of class "failed".
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Error::failed(text).into()
    }

    /// A refused system call or I/O operation.
    pub(crate) fn os(what: impl Into<String>, cause: impl Into<std::io::Error>) -> Self {
        Error::os(what, cause).into()
    }

    /// The exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Failed(error) => error.kind.exit_code(),
            Failure::Usage(_) => USAGE,
            Failure::Interrupted(signal, _) => 128u8.saturating_add(u8::try_from(*signal).unwrap_or(0)),
            Failure::Unread => 0,
        }
    }

    /// One line for people; none when there is nothing to say.
    pub(crate) fn line(&self) -> Option<String> {
        let text = match self {
            Failure::Failed(error) | Failure::Interrupted(_, error) => error.said(tongue),
            Failure::Usage(text) => text.clone(),
            Failure::Unread => return None,
        };
        Some(text.replace(['\n', '\r'], " "))
    }

    /// `{"error": {...}}`.
    pub(crate) fn json(&self) -> Option<Value> {
        Some(match self {
            Failure::Failed(error) => error_json(error, error.kind.word(), self.exit_code()),
            Failure::Interrupted(_, error) => error_json(error, "interrupted", self.exit_code()),
            Failure::Usage(text) => usage_json(text, None),
            Failure::Unread => return None,
        })
    }
}

/// `error` as JSON.
fn error_json(error: &Error, kind: &str, exit_code: u8) -> Value {
    json!({"error": {
        "kind": kind,
        "exit_code": exit_code,
        "message": error.said(tongue),
        "task": error.task,
        "object": error.object,
        "what": error.what,
        "why": error.why,
        "advice": error.advised(tongue),
    }})
}

/// A usage error as JSON.
pub(crate) fn usage_json(what: &str, advice: Option<&str>) -> Value {
    json!({"error": {
        "kind": "usage",
        "exit_code": USAGE,
        "message": what,
        "task": null,
        "object": null,
        "what": what,
        "why": null,
        "advice": advice,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_and_one_object() {
        let error =
            Error::unsupported("a socket\nwith a peer").task("pid 7 (x)").object("fd 3").advice("close it");
        let failure = Failure::from(error);
        assert_eq!(failure.exit_code(), 3);
        assert_eq!(failure.line().unwrap(), "pid 7 (x), fd 3: a socket with a peer; close it");
        let value = failure.json().unwrap();
        assert_eq!(value["error"]["kind"], "unsupported");
        assert_eq!(value["error"]["object"], "fd 3");
        assert_eq!(value["error"]["exit_code"], 3);
    }

    /// Every option that is advised is one of the commands', by its whole name.
    #[test]
    fn advice_names_our_own_options() {
        let commands = crate::args::grammar();
        let options: Vec<String> = ["checkpoint", "restart"]
            .into_iter()
            .flat_map(|name| commands.find_subcommand(name).unwrap().get_arguments())
            .flat_map(|arg| {
                let short = arg.get_short().map(|short| format!("-{short}"));
                arg.get_long().map(|long| format!("--{long}")).into_iter().chain(short)
            })
            .collect();
        let mut silent = Vec::new();
        for means in Means::all() {
            let Some(words) = tongue(&means) else {
                silent.push(means);
                continue;
            };
            let named: Vec<_> = words.split([' ', ':']).filter(|word| word.starts_with('-')).collect();
            assert!(!named.is_empty(), "{words}");
            assert!(named.iter().all(|name| options.iter().any(|option| option == name)), "{words}");
            let failure = Failure::from(Error::failed("x").advice("wait").or(means));
            assert_eq!(failure.line().unwrap(), format!("x; wait, or {words}"));
            assert_eq!(failure.json().unwrap()["error"]["advice"], format!("wait, or {words}"));
        }
        assert_eq!(silent, [Means::ShellJob, Means::ExtUnixSk, Means::FileLocks]);
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        assert_eq!(Failure::usage("x").exit_code(), 2);
        assert_eq!(Failure::failed("x").exit_code(), 1);
        assert_eq!(Failure::from(Error::permission("x")).exit_code(), 4);
        assert_eq!(Failure::from(Error::bad_image("x")).exit_code(), 5);
        assert_eq!(Failure::Interrupted(15, Error::failed("x").into()).exit_code(), 143);
    }
}
