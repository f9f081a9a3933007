//! The one error type of the engine: what failed, on which task and object, why, what to do.

use crate::advice::{self, Tongue, Way};
use std::fmt;

/// Result of an engine operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of a failure; it decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Anything that has no class of its own: exit code 1.
    Failed,
    /// State that cannot be carried: exit code 3.
    Unsupported,
    /// A privilege or kernel feature is missing: exit code 4.
    Permission,
    /// The image is damaged, incomplete, hostile or for another machine: exit code 5.
    BadImage,
}

impl ErrorKind {
    /// The process exit code of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Unsupported => 3,
            ErrorKind::Permission => 4,
            ErrorKind::BadImage => 5,
        }
    }

    /// The class in one lower-case word, as `--json` prints it.
    pub fn word(self) -> &'static str {
        match self {
            ErrorKind::Failed => "failed",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Permission => "permission",
            ErrorKind::BadImage => "bad-image",
        }
    }
}

/// A failure. [`Error::said`] is one line: `pid 7 (bash), fd 3: what: why; advice`. `Display` is the same with that advice
/// alone which names nothing of a front end.
#[derive(Debug)]
pub struct Error {
    /// Class.
    pub kind: ErrorKind,
    /// The task, as `pid 7 (bash)`, when one is concerned.
    pub task: Option<String>,
    /// The object, as `fd 3` or `mapping 7f00-7f10`, when one is concerned.
    pub object: Option<String>,
    /// What failed.
    pub what: String,
    /// Why: the cause one level down.
    pub why: Option<String>,
    /// What the user can do about it: ways to choose from.
    pub advice: Vec<Way>,
    /// It may well be over in a moment.
    pub passing: bool,
}

impl Error {
    /// An error of `kind` with nothing but `what`.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Error {
            kind,
            task: None,
            object: None,
            what: what.into(),
            why: None,
            advice: Vec::new(),
            passing: false,
        }
    }

    /// A [`ErrorKind::Failed`] error.
    pub fn failed(what: impl Into<String>) -> Self {
        Error::new(ErrorKind::Failed, what)
    }

    /// A [`ErrorKind::Unsupported`] error.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, what)
    }

    /// A [`ErrorKind::Permission`] error.
    pub fn permission(what: impl Into<String>) -> Self {
        Error::new(ErrorKind::Permission, what)
    }

    /// A [`ErrorKind::BadImage`] error.
    pub fn bad_image(what: impl Into<String>) -> Self {
        Error::new(ErrorKind::BadImage, what)
    }

    /// An error from a refused system call or I/O operation; EPERM and EACCES make it
    /// [`ErrorKind::Permission`].
    pub fn os(what: impl Into<String>, cause: impl Into<std::io::Error>) -> Self {
        let cause = cause.into();
        let kind = match cause.kind() {
            std::io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            _ => ErrorKind::Failed,
        };
        Error { why: Some(cause_text(&cause)), ..Error::new(kind, what) }
    }

    /// Says that it may well be over in a moment.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.passing = true;
        self
    }

    /// Names the task, unless one is named already.
    #[must_use]
    pub fn task(mut self, task: impl Into<String>) -> Self {
        self.task.get_or_insert_with(|| task.into());
        self
    }

    /// Names the object, unless one is named already.
    #[must_use]
    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.object.get_or_insert_with(|| object.into());
        self
    }

    /// Gives the cause.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn advice(mut self, way: impl Into<Way>) -> Self {
        self.advice = vec![way.into()];
        self
    }

    /// Says what else would do.
    #[must_use]
    pub fn or(mut self, way: impl Into<Way>) -> Self {
        self.advice.push(way.into());
        self
    }

    /// The advice in the words of a front end.
    pub fn advised(&self, tongue: Tongue) -> Option<String> {
        advice::worded(&self.advice, tongue)
    }

    /// All of it in one line, in the words of a front end.
    pub fn said(&self, tongue: Tongue) -> String {
        let mut line = String::new();
        match (&self.task, &self.object) {
            (Some(task), Some(object)) => line.extend([task, ", ", object, ": "]),
            (Some(one), None) | (None, Some(one)) => line.extend([one, ": "]),
            (None, None) => {}
        }
        line.push_str(&self.what);
        if let Some(why) = &self.why {
            line.extend([": ", why]);
        }
        if let Some(advice) = self.advised(tongue) {
            line.extend(["; ", &advice]);
        }
        line
    }
}

/// Text of an I/O error without Rust's "(os error N)".
fn cause_text(cause: &std::io::Error) -> String {
    let text = cause.to_string();
    match text.find(" (os error") {
        Some(at) => text.get(..at).unwrap_or(&text).to_owned(),
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said(|_| None))
    }
}

impl std::error::Error for Error {}

impl From<ckpt_image::ReadError> for Error {
    fn from(cause: ckpt_image::ReadError) -> Self {
        match cause {
            ckpt_image::ReadError::Io { offset, source } => {
                Error::os(format!("read the image at byte {offset}"), source)
            }
            other => Error::bad_image(other.to_string()),
        }
    }
}

/// Adds context to results on their way up.
pub(crate) trait Context<T> {
    /// Names the task of an error.
    fn task(self, task: impl FnOnce() -> String) -> Result<T>;
    /// Names the object of an error.
    fn object(self, object: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn task(self, task: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.into().task(task()))
    }

    fn object(self, object: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.into().object(object()))
    }
}

/// Says what was being done when a system call or I/O operation failed.
pub(crate) trait Doing<T> {
    /// Turns the cause into an [`Error`] that begins with `what`.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::os(what(), e))
    }
}

/// Pids, descriptors and signals are below, addresses hardly ever (PID_MAX_LIMIT).
const MOST_NUMBER: u64 = 1 << 22;

impl From<ckpt_kernel::Error> for Error {
    fn from(cause: ckpt_kernel::Error) -> Self {
        use ckpt_kernel::Errno;
        let kind = match cause.errno() {
            Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS) => ErrorKind::Permission,
            _ => ErrorKind::Failed,
        };
        match cause {
            ckpt_kernel::Error::Os { call, errno } => {
                Error { why: Some(cause_text(&errno.into())), ..Error::new(kind, call) }
            }
            ckpt_kernel::Error::Call { what, object, errno, tid } => {
                let what = match object {
                    0 => what.to_owned(),
                    1..MOST_NUMBER => format!("{what} ({object})"),
                    address => format!("{what} ({address:#x})"),
                };
                Error { why: Some(cause_text(&errno.into())), ..Error::new(kind, what) }
                    .task(format!("task {tid}"))
            }
            killed @ ckpt_kernel::Error::Midwife { .. } => {
                Error::new(kind, killed.to_string()).advice("try again")
            }
            other => Error::new(kind, other.to_string()),
        }
    }
}
