//! How far long work got, for whoever watches.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// A line on stderr that is written over, if somebody watches.
pub struct Progress {
    terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    /// Watched only if stderr is a terminal.
    pub fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), last: None }
    }

    /// How far something got; of 0 means that the end is not known. At most ten times a second.
    pub fn show(&mut self, what: &str, done: u64, total: u64) {
        if !self.terminal || self.last.is_some_and(|last| last.elapsed() < Duration::from_millis(100)) {
            return;
        }
        self.last = Some(Instant::now());
        let share = match (done.min(total) * 100).checked_div(total) {
            Some(percent) => format!(" ({percent} %)"),
            None => String::new(),
        };
        // Only for the eye: a terminal that is gone loses nothing.
        let _ = write!(io::stderr().lock(), "\r\x1b[K{what}: {done}{share}");
    }

    /// Clears the line.
    pub fn end(&mut self) {
        if self.terminal && self.last.is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}
