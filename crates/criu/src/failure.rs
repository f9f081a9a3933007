//! Why an action ends other than well.

use ckpt_engine::{Error, Means, advice};
use std::borrow::Cow;

/// Result of an action or a part of one.
pub type Outcome<T = ()> = Result<T, Failure>;

/// The end of an action that did not do what it was asked. `Display` is one line; whoever runs the action
/// logs it, nobody below.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine, or something that fits its error type: task, object, what, why, what to do.
    #[error("{}", .0.said(tongue))]
    Engine(Box<Error>),
    /// The options are wrong, make no sense together, or ask for what is not done yet.
    #[error("{0}")]
    Options(String),
    /// Anything else, with its place for the log.
    #[error("{text}")]
    Failed {
        /// A word for the part that failed, such as `stats`.
        place: &'static str,
        /// The line.
        text: String,
    },
}

/// What CRIU calls what the engine advises. What it has no option for is not advised.
fn tongue(means: &Means) -> Option<Cow<'static, str>> {
    Some(Cow::Borrowed(match means {
        Means::Elsewhere => "write it elsewhere with --images-dir",
        Means::ShellJob => "give --shell-job if the restarter has another for it",
        Means::ExtUnixSk => "give --ext-unix-sk if the restarter has another for it",
        Means::FileLocks => "give --file-locks to take it again at the restore",
        Means::External => "leave it outside: --external file[MOUNT:INODE]",
        Means::Inherit { name: Some(name), .. } => {
            return Some(advice::inherit("--inherit-fd fd[FD]:", name));
        }
        // As callers of CRIU do, without the first slash.
        Means::Inherit { link, .. } => {
            let bare = link.strip_prefix(b"/").unwrap_or(link);
            return Some(advice::inherit("--inherit-fd fd[FD]:", bare));
        }
        Means::OutputFd
        | Means::Overwrite
        | Means::Subtree
        | Means::MapFiles
        | Means::ForceFiles
        | Means::ForceCpu
        | Means::NewPids
        | Means::Namespace
        | Means::NoNamespace
        | Means::NoMntns => return None,
    }))
}

/// `what: why`.
pub(crate) fn told(what: impl Into<String>, cause: impl Into<std::io::Error>) -> String {
    Error::os(what, cause).to_string()
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Engine(Box::new(error))
    }
}

impl Failure {
    /// Wrong options.
    pub fn options(text: impl Into<String>) -> Failure {
        Failure::Options(text.into())
    }

    /// Something that failed at `place`.
    pub fn failed(place: &'static str, text: impl Into<String>) -> Failure {
        Failure::Failed { place, text: text.into() }
    }

    /// A system call or I/O operation that was refused: `what: why`.
    pub fn os(place: &'static str, what: impl Into<String>, cause: impl Into<std::io::Error>) -> Failure {
        Failure::failed(place, told(what, cause))
    }

    /// The word between the brackets of `Error (place)`.
    pub fn place(&self) -> &'static str {
        match self {
            Failure::Engine(_) => "engine",
            Failure::Options(_) => "options",
            Failure::Failed { place, .. } => place,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::TABLE;

    /// Every option that is advised is one of the table that works, by its whole name.
    #[test]
    fn advice_names_no_option_that_criu_has_not() {
        for means in Means::all() {
            let failure = Failure::from(Error::failed("x").advice("wait").or(means.clone()));
            let line = failure.to_string();
            let named: Vec<_> = line.split([' ', ':']).filter(|word| word.starts_with('-')).collect();
            let works = |name: &&&str| {
                TABLE.iter().any(|opt| **name == format!("--{}", opt.long) && opt.refusal().is_none())
            };
            assert_eq!(named.iter().filter(works).count(), usize::from(tongue(&means).is_some()), "{line}");
            assert_eq!(named.len(), usize::from(tongue(&means).is_some()), "{line}");
        }
    }

    #[test]
    fn advice_in_words_of_criu() {
        let line = |means| Failure::from(Error::failed("x").advice(means)).to_string();
        assert_eq!(line(Means::MapFiles), "x");
        let link = b"/dev/null".to_vec();
        let unnamed = Means::Inherit { fd: 3, name: None, link: link.clone() };
        assert_eq!(line(unnamed), "x; give what takes its place with --inherit-fd fd[FD]:dev/null");
        let named = Means::Inherit { fd: 3, name: Some(b"unix[7]".to_vec()), link };
        assert_eq!(line(named), "x; give what takes its place with --inherit-fd fd[FD]:unix[7]");
    }
}
