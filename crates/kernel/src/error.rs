//! Errors of the kernel crate: which call, on which task, which errno.

use rustix::io::Errno;

/// Result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call of the coordinator failed.
    #[error("{call}: {errno}")]
    Os {
        /// The call, as in the manual: `ptrace(PTRACE_SEIZE)`.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
    /// A system call run inside a task failed.
    #[error("{what} in task {tid}: {errno}")]
    Call {
        /// Thread it ran in.
        tid: i32,
        /// What it was for.
        what: &'static str,
        /// The address, descriptor or number it was about.
        object: u64,
        /// Its errno.
        errno: Errno,
    },
    /// The task ended meanwhile.
    #[error("task {tid} ended")]
    Gone {
        /// Thread.
        tid: i32,
    },
    /// A midwife, see `puppet/midwife.rs`, was killed.
    #[error("pid {pid}, which makes the first process for restart, was killed")]
    Midwife {
        /// Her pid.
        pid: i32,
    },
    /// The task did not stop in time (uninterruptible sleep).
    #[error("task {tid} did not stop within {seconds} s")]
    Timeout {
        /// Thread.
        tid: i32,
        /// How long we waited.
        seconds: u64,
    },
    /// The task stopped where it should not have.
    #[error("task {tid} stopped unexpectedly at {rip:#x} (wait status {status:#x})")]
    Unexpected {
        /// Thread.
        tid: i32,
        /// Where.
        rip: u64,
        /// Status from waitpid(2).
        status: i32,
    },
    /// No zero-filled tail of executable memory for the bootstrap stub.
    #[error("no room for the {need}-byte bootstrap stub in the vdso or any text mapping")]
    NoRoom {
        /// Bytes needed.
        need: usize,
    },
    /// The program needs more space than its bay has.
    #[error("a system call's arguments need {need} bytes, the slot has {have}")]
    TooBig {
        /// Bytes needed.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
}

impl Error {
    /// The errno behind this error, if there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Os { errno, .. } | Error::Call { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// Names the call of an errno.
pub(crate) trait Named<T> {
    /// Turns an errno into [`Error::Os`].
    fn named(self, call: &'static str) -> Result<T>;
}

impl<T> Named<T> for std::result::Result<T, Errno> {
    fn named(self, call: &'static str) -> Result<T> {
        self.map_err(|errno| Error::Os { call, errno })
    }
}
