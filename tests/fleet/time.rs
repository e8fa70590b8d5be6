//! The time of a fleet: it passes for all alike, and each node's wall clock shows it with an error of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tradepost::clock::{Clock, SystemClock};
use tradepost::domain::Timestamp;

const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// The true time, shared by all clocks of a fleet.
#[derive(Debug)]
pub struct TrueTime {
    beginning_micros: i64,
    elapsed_micros: AtomicI64,
}

impl TrueTime {
    /// The beginning of this day: Redis tells its own time, and is to be about right.
    pub fn today() -> Arc<Self> {
        let now = SystemClock::default().now().as_micros();
        Arc::new(Self { beginning_micros: now - now % DAY_MICROS, elapsed_micros: AtomicI64::new(0) })
    }

    /// Time passes.
    pub fn advance(&self, by: Duration) {
        self.elapsed_micros.fetch_add(micros(by), Ordering::SeqCst);
    }
}

/// A node's clocks.
#[derive(Debug)]
pub struct NodeClock {
    time: Arc<TrueTime>,
    /// How far its wall clock is ahead.
    error_micros: AtomicI64,
}

impl NodeClock {
    /// Clocks that are right.
    pub fn new(time: &Arc<TrueTime>) -> Arc<Self> {
        Arc::new(Self { time: Arc::clone(time), error_micros: AtomicI64::new(0) })
    }

    /// Somebody sets the wall clock so far ahead of the true time, or behind it.
    pub fn set_ahead(&self, seconds: i64) {
        self.error_micros.store(seconds * 1_000_000, Ordering::SeqCst);
    }

    fn elapsed_micros(&self) -> i64 {
        self.time.elapsed_micros.load(Ordering::SeqCst)
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(
            self.time.beginning_micros + self.elapsed_micros() + self.error_micros.load(Ordering::SeqCst),
        )
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.elapsed_micros().unsigned_abs())
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).expect("a test's own duration")
}
