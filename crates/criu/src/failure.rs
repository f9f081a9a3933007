//! Why an action ends other than well.

use ckpt_engine::Error;

/// Result of an action or a part of one.
pub type Outcome<T = ()> = Result<T, Failure>;

/// The end of an action that did not do what it was asked. `Display` is one line; whoever runs the action
/// logs it, nobody below.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine, or something that fits its error type: task, object, what, why, what to do.
    #[error("{0}")]
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
        Failure::failed(place, Error::os(what, cause).to_string())
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
