//! What to do about an error: ways out, each in words of its own or by a means that the engine offers.
//!
//! The engine does not know what a front end calls its means, or whether it offers them at all. So an error says which are
//! meant, and the front end that prints it has the words: a [`Tongue`].

use crate::task::show;
use std::borrow::Cow;

/// Something that a caller can ask of the engine, and that would be a way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Means {
    /// Another place for the image.
    Elsewhere,
    /// A descriptor for the image.
    OutputFd,
    /// To replace an image that is there.
    Overwrite,
    /// [`Scope::Subtree`](crate::Scope::Subtree).
    Subtree,
    /// [`Allowed::shell_job`](crate::Allowed).
    ShellJob,
    /// [`Allowed::ext_unix_sk`](crate::Allowed).
    ExtUnixSk,
    /// [`Allowed::file_locks`](crate::Allowed).
    FileLocks,
    /// [`CheckpointOptions::external`](crate::CheckpointOptions), of a file.
    External,
    /// [`RestartOptions::inherit`](crate::RestartOptions), in the place of this descriptor.
    Inherit {
        /// Its number.
        fd: i32,
        /// What the checkpoint called it.
        name: Option<Vec<u8>>,
        /// What /proc/PID/fd showed.
        link: Vec<u8>,
    },
    /// [`RestartOptions::map_files`](crate::RestartOptions).
    MapFiles,
    /// [`RestartOptions::force_files`](crate::RestartOptions).
    ForceFiles,
    /// [`RestartOptions::force_cpu`](crate::RestartOptions).
    ForceCpu,
    /// [`Pids::New`](crate::Pids::New).
    NewPids,
    /// [`Pids::Namespace`](crate::Pids::Namespace).
    Namespace,
    /// Not that.
    NoNamespace,
    /// No [`RestartOptions::mntns`](crate::RestartOptions).
    NoMntns,
}

/// What a front end calls a means; nothing if it does not offer it.
pub type Tongue = fn(&Means) -> Option<Cow<'static, str>>;

impl Means {
    /// One of each, for whoever wants to know that they have words for all.
    pub fn all() -> Vec<Means> {
        use Means::{
            Elsewhere, ExtUnixSk, External, FileLocks, ForceCpu, ForceFiles, Inherit, MapFiles, Namespace,
            NewPids, NoMntns, NoNamespace, OutputFd, Overwrite, ShellJob, Subtree,
        };
        let link = b"/dev/null".to_vec();
        let unnamed = Inherit { fd: 3, name: None, link: link.clone() };
        let named = Inherit { fd: 3, name: Some(b"log".to_vec()), link };
        vec![
            Elsewhere,
            OutputFd,
            Overwrite,
            Subtree,
            ShellJob,
            ExtUnixSk,
            FileLocks,
            External,
            unnamed,
            named,
            MapFiles,
            ForceFiles,
            ForceCpu,
            NewPids,
            Namespace,
            NoNamespace,
            NoMntns,
        ]
    }
}

/// One way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// In words that are true of every front end.
    Words(Cow<'static, str>),
    /// By a means.
    Means(Means),
}

impl From<&'static str> for Way {
    fn from(words: &'static str) -> Way {
        Way::Words(words.into())
    }
}

impl From<String> for Way {
    fn from(words: String) -> Way {
        Way::Words(words.into())
    }
}

impl From<Means> for Way {
    fn from(means: Means) -> Way {
        Way::Means(means)
    }
}

/// The ways that `tongue` has words for: `a`, `a, or b`, `a, b, or c`. Nothing if there are none.
pub(crate) fn worded(ways: &[Way], tongue: Tongue) -> Option<String> {
    let words = |way: &Way| match way {
        Way::Words(words) => Some(words.clone()),
        Way::Means(means) => tongue(means),
    };
    let mut all: Vec<_> = ways.iter().filter_map(words).collect();
    let last = all.pop()?;
    Some(if all.is_empty() { last.into_owned() } else { format!("{}, or {last}", all.join(", ")) })
}

/// The words for [`Means::Inherit`], given the option with a descriptor of the caller's and a name (`name`).
pub fn inherit(option: &str, name: &[u8]) -> Cow<'static, str> {
    format!("give what takes its place with {option}{}", show(name)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// A number for each kind, in the order of `all`: who adds one has to say here where it is.
    fn place(means: &Means) -> usize {
        match means {
            Means::Elsewhere => 0,
            Means::OutputFd => 1,
            Means::Overwrite => 2,
            Means::Subtree => 3,
            Means::ShellJob => 4,
            Means::ExtUnixSk => 5,
            Means::FileLocks => 6,
            Means::External => 7,
            Means::Inherit { name: None, .. } => 8,
            Means::Inherit { .. } => 9,
            Means::MapFiles => 10,
            Means::ForceFiles => 11,
            Means::ForceCpu => 12,
            Means::NewPids => 13,
            Means::Namespace => 14,
            Means::NoNamespace => 15,
            Means::NoMntns => 16,
        }
    }

    #[test]
    fn all_are_there() {
        let places: Vec<_> = Means::all().iter().map(place).collect();
        assert_eq!(places, (0..=16).collect::<Vec<_>>());
    }

    #[test]
    fn a_front_end_has_the_words() {
        let error = Error::failed("it is").advice("wait").or(Means::MapFiles).or(Means::NewPids);
        let some: Tongue = |means| (*means == Means::NewPids).then(|| "renumber".into());
        let all: Tongue = |means| Some(format!("{means:?}").into());
        assert_eq!(error.said(|_| None), "it is; wait");
        assert_eq!(error.said(some), "it is; wait, or renumber");
        assert_eq!(error.said(all), "it is; wait, MapFiles, or NewPids");
        assert_eq!(error.to_string(), "it is; wait", "nobody's words are in none's");
        let error = Error::failed("it is").advice(Means::MapFiles);
        assert_eq!((error.said(some), error.advised(some)), ("it is".to_owned(), None));
    }
}
