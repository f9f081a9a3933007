//! Signals that end a command, and names of signals.

use ckpt_engine::Error;
pub(crate) use ckpt_foreground::{Passing, name};

use crate::failure::{Failure, Outcome};

/// Handlers that turn a signal into a request to give up. Dropping it takes them away.
pub(crate) struct Cancel(ckpt_foreground::Cancel);

impl std::ops::Deref for Cancel {
    type Target = ckpt_foreground::Cancel;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Cancel {
    /// Installs the handlers.
    pub(crate) fn new() -> Outcome<Cancel> {
        Ok(Cancel(ckpt_foreground::Cancel::new()?))
    }

    /// `failure` of several operations; an interruption if a signal came meanwhile.
    pub(crate) fn blame(&self, failure: Failure) -> Failure {
        match self.signal() {
            Some(signal) => Failure::Interrupted(signal, Box::new(Error::failed("interrupted"))),
            None => failure,
        }
    }

    /// `error` of an operation; an interruption if a signal asked for it.
    pub(crate) fn explain(&self, error: Error) -> Failure {
        match self.signal() {
            Some(signal) => Failure::Interrupted(signal, Box::new(error)),
            None => error.into(),
        }
    }
}

/// The number of a signal by its name, with or without SIG, or by its number.
pub(crate) fn parse(text: &str) -> Result<i32, String> {
    let word = text.to_ascii_uppercase();
    let short = word.strip_prefix("SIG").unwrap_or(&word);
    let named = |number: &i32| signal_hook::low_level::signal_name(*number) == Some(&format!("SIG{short}"));
    match word.parse().ok().filter(|number| (1..=31).contains(number)).or_else(|| (1..=31).find(named)) {
        Some(number) => Ok(number),
        None => Err(format!("{text:?} is not a signal")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(text), Ok(15), "{text}");
        }
        for text in ["", "0", "99", "SIG", "TERMX", "-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
