//! Whether the disk hangs: a disk that does not answer gives nobody an error.
//!
//! It goes by the time that really passes, which is the disk's, whatever clock leases follow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When the writer has got no further within a commit for this long, the disk hangs.
pub const HANGING: Duration = Duration::from_secs(8);
/// Between commits.
const NEVER: u64 = u64::MAX;

/// How far the writer is: it says so, and everybody asks.
#[derive(Debug)]
pub struct Progress {
    since: Instant,
    /// When a commit last got further, in microseconds; [`NEVER`] while there is none.
    last: AtomicU64,
    /// Of which such moment the log says that it lasts.
    told: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { since: Instant::now(), last: AtomicU64::new(NEVER), told: AtomicU64::new(NEVER) }
    }
}

impl Progress {
    /// The commit that is under way, or begins now, has got further.
    pub fn made(&self) {
        self.last.store(self.now(), Ordering::Release);
    }

    /// The commit has ended, well or not.
    pub fn ended(&self) {
        let last = self.last.swap(NEVER, Ordering::AcqRel);
        if last != NEVER && self.told.load(Ordering::Acquire) == last {
            tracing::info!("the disk has answered the commit");
        }
    }

    /// Whether the disk hangs. The first to find out says so in the log.
    pub fn hangs(&self) -> bool {
        let last = self.last.load(Ordering::Acquire);
        let took = Duration::from_micros(self.now().saturating_sub(last));
        if last == NEVER || took < HANGING {
            return false;
        }
        if self.told.swap(last, Ordering::AcqRel) != last {
            tracing::error!("the disk does not answer a commit; nothing more is taken until it does");
        }
        true
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(NEVER)
    }
}
