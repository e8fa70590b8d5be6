//! A clock that stands still until it is turned.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tradepost::clock::Clock;
use tradepost::domain::Timestamp;

#[derive(Debug)]
pub struct ManualClock {
    wall: AtomicI64,
    monotonic: AtomicU64,
}

impl ManualClock {
    pub fn at(wall_micros: i64) -> Arc<Self> {
        Arc::new(Self { wall: AtomicI64::new(wall_micros), monotonic: AtomicU64::new(0) })
    }

    /// Time passes.
    pub fn advance(&self, by: Duration) {
        self.wall.fetch_add(micros(by), Ordering::SeqCst);
        self.monotonic.fetch_add(micros(by).unsigned_abs(), Ordering::SeqCst);
    }

    /// Somebody sets the wall clock forward.
    pub fn jump_wall(&self, by: Duration) {
        self.wall.fetch_add(micros(by), Ordering::SeqCst);
    }

    /// Somebody sets the wall clock back.
    pub fn jump_wall_back(&self, by: Duration) {
        self.wall.fetch_sub(micros(by), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.wall.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.monotonic.load(Ordering::SeqCst))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).expect("a test's own duration")
}
