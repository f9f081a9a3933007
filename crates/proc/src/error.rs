//! The one error of this crate.

/// A file of the kernel's that does not have its documented form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{file} line {line}: {what}")]
pub struct ParseError {
    /// Name of the file below `/proc/PID` (or `/proc`), for example `"maps"`.
    pub file: &'static str,
    /// Line counted from 1; 0 when the complaint is about the file as a whole.
    pub line: usize,
    /// What is wrong there.
    pub what: Problem,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The named field or line is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The named field is there and is not what proc(5) says it is (or does not fit its type).
    #[error("{0} is malformed")]
    Malformed(&'static str),
}
