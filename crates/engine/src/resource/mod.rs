//! One module per kernel resource, both directions side by side.

pub(crate) mod call;
pub(crate) mod cred;
pub(crate) mod file;
pub(crate) mod fs;
pub(crate) mod layout;
pub(crate) mod limits;
pub(crate) mod mm;
pub(crate) mod pages;
pub(crate) mod pidns;
pub(crate) mod signal;
pub(crate) mod thread;
pub(crate) mod timers;
