//! The engine's observer: warnings, a progress bar on a terminal, cancellation by a signal.

use std::{
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ckpt_engine::{Interruption, Observer, Stage};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::Console;

/// Nothing is drawn for an operation shorter than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// Watches one operation.
pub(crate) struct Progress<'a> {
    console: &'a Console,
    warnings: Vec<String>,
    cancel: Arc<AtomicUsize>,
    begun: Instant,
    moved: u64,
    /// Measures from the beginning, on the screen once the operation has taken long enough.
    bar: ProgressBar,
    shown: bool,
    may_show: bool,
}

impl<'a> Progress<'a> {
    /// `cancel` holds the number of the signal that ends the operation, or 0.
    pub(crate) fn new(console: &'a Console, cancel: Arc<AtomicUsize>) -> Self {
        let may_show = console.stderr_is_text() && std::io::stderr().is_terminal();
        let template = "{bytes} of {total_bytes} {wide_bar} {bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_style(style);
        Progress {
            console,
            warnings: Vec::new(),
            cancel,
            begun: Instant::now(),
            moved: 0,
            bar,
            shown: false,
            may_show,
        }
    }

    /// Takes the bar off the screen; returns the warnings.
    pub(crate) fn end(self) -> Vec<String> {
        self.bar.finish_and_clear();
        self.warnings
    }
}

impl Observer for Progress<'_> {
    fn total(&mut self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    fn advance(&mut self, bytes: u64) {
        self.moved = self.moved.saturating_add(bytes);
        if !self.may_show {
            return;
        }
        if !self.shown && self.begun.elapsed() >= PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
            self.shown = true;
        }
        self.bar.set_position(self.moved);
    }

    fn warn(&mut self, text: &str) {
        self.bar.suspend(|| self.console.warn(text));
        self.warnings.push(text.to_owned());
    }

    fn cancelled(&self) -> Option<String> {
        (self.cancel.load(Ordering::Relaxed) != 0).then(|| "interrupted by a signal".to_owned())
    }

    fn interruption(&self) -> Interruption {
        Arc::clone(&self.cancel).into()
    }

    fn reached(&mut self, _: Stage, _: i32) -> Result<(), String> {
        Ok(())
    }
}
