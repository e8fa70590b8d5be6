//! What tests that try again and again have tried, for the table of `tests/trials.sh`.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::json;

/// The trials of one fault class. When it is dropped it appends one line of JSON to the file that
/// `TRADEPOST_TRIALS_REPORT` names; without that it does nothing. A panic is a failure.
pub struct Trials {
    class: &'static str,
    seed: Option<u64>,
    began: Instant,
    ran: AtomicU64,
    failed: AtomicU64,
}

impl Trials {
    /// `seed` is what they all follow from, if anything is.
    pub fn of(class: &'static str, seed: impl Into<Option<u64>>) -> Self {
        let (ran, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { class, seed: seed.into(), began: Instant::now(), ran, failed }
    }

    /// So many more were run.
    pub fn ran(&self, more: u64) {
        self.ran.fetch_add(more, Ordering::Relaxed);
    }

    /// So many of them failed, of which the test will speak.
    pub fn failed(&self, more: u64) {
        self.failed.fetch_add(more, Ordering::Relaxed);
    }
}

impl Drop for Trials {
    fn drop(&mut self) {
        let Some(report) = std::env::var_os("TRADEPOST_TRIALS_REPORT") else { return };
        let failed = self.failed.load(Ordering::Relaxed).max(u64::from(std::thread::panicking()));
        let line = json!({
            "class": self.class, "trials": self.ran.load(Ordering::Relaxed), "failures": failed, "seed": self.seed,
            "seconds": self.began.elapsed().as_secs_f64(),
        });
        let written = OpenOptions::new().append(true).create(true).open(&report);
        let written = written.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            // Nothing better can be done while a test may be failing; a row that is missing fails the table.
            eprintln!("{}: {error}", report.display());
        }
    }
}
