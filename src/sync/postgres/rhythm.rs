//! When to read what others wrote: every second for a minute after events of our own or for us.
//!
//! A node that is idle and whose connection stays looks every few seconds whether the server is still there. One that has
//! to connect for it looks less and less often.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::Instant;

/// How long after traffic others are looked for often.
const BUSY_FOR: Duration = Duration::from_secs(60);
/// How often then.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// How often then where it takes a connection each time.
const CROWDED_PAUSE: Duration = Duration::from_secs(3);
/// How often at first when there is no traffic, and at last.
const IDLE_PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// How often while the connection stays: a server that has died or frozen shows within ten seconds.
const WATCH_PAUSE: Duration = Duration::from_secs(4);
/// From this on a pause is worth closing a connection for that does not stay.
pub const LONG_PAUSE: Duration = Duration::from_millis(2_500);
/// The shortest time between two reads, however much is pushed.
pub const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// With how many others a server is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// Its connections last for all.
    Few,
    /// They may not, and each is given up after use.
    Crowd,
    /// A pooler is in between.
    Unknown,
}

/// When to read what others wrote.
pub struct Rhythm {
    random: StdRng,
    last_traffic: Instant,
    last_read: Option<Instant>,
    pause: Duration,
    /// Somebody called too soon after the last read; the next one makes up for it.
    is_called: bool,
}

impl Rhythm {
    pub fn new(random: StdRng) -> Self {
        Self { random, last_traffic: Instant::now(), last_read: None, pause: Duration::ZERO, is_called: false }
    }

    /// There were events of ours, or somebody asked: others may answer soon.
    pub fn traffic(&mut self) {
        self.last_traffic = Instant::now();
        self.pause = Duration::ZERO;
    }

    /// Something may have been missed.
    pub fn soon(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// Whether it is time to; `is_called`: whether somebody says so.
    pub fn is_due(&mut self, is_called: bool) -> bool {
        self.is_called |= is_called;
        self.pause().is_zero()
    }

    /// A read is done; whether there was anything, and with how many others the server is shared.
    pub fn read(&mut self, found: bool, company: Company) {
        let now = Instant::now();
        if found {
            self.last_traffic = now;
        }
        self.last_read = Some(now);
        self.is_called = false;
        let is_busy = now.duration_since(self.last_traffic) < BUSY_FOR;
        let base = match company {
            Company::Few | Company::Unknown if is_busy => BUSY_PAUSE,
            Company::Crowd if is_busy => CROWDED_PAUSE,
            Company::Few => WATCH_PAUSE,
            Company::Crowd | Company::Unknown => (self.pause * 3 / 2).clamp(IDLE_PAUSES.0, IDLE_PAUSES.1),
        };
        self.pause = base.mul_f64(self.random.random_range(0.8..=1.2));
    }

    /// How long to wait now.
    pub fn pause(&self) -> Duration {
        let pause = if self.is_called { SHORTEST_PAUSE } else { self.pause.max(SHORTEST_PAUSE) };
        self.last_read.map_or(Duration::ZERO, |last_read| pause.saturating_sub(last_read.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reads_often_for_a_minute_after_traffic_then_ever_less_often() {
        let mut rhythm = Rhythm::new(rand::make_rng());
        assert!(rhythm.is_due(false), "the first read waits for nothing");
        rhythm.read(false, Company::Unknown);
        assert!(!rhythm.is_due(false), "not twice at once");
        let started = Instant::now();
        let mut pauses = Vec::new();
        while started.elapsed() < Duration::from_secs(600) {
            let pause = rhythm.pause();
            pauses.push((started.elapsed(), pause));
            tokio::time::advance(pause).await;
            assert!(rhythm.is_due(false));
            rhythm.read(false, Company::Unknown);
        }
        for (at, pause) in &pauses {
            let range = if *at < BUSY_FOR { 0.8..=1.2 } else { 4.0..=36.0 };
            assert!(range.contains(&pause.as_secs_f64()), "{at:?}: {pause:?}");
        }
        assert!(pauses.last().expect("there were some").1 > Duration::from_secs(20));

        rhythm.traffic();
        assert!(rhythm.is_due(false) || rhythm.pause() <= SHORTEST_PAUSE, "traffic wakes at once");
        tokio::time::advance(SHORTEST_PAUSE).await;
        rhythm.read(true, Company::Unknown);
        assert!(rhythm.pause() < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_stays_is_looked_after_every_few_seconds() {
        let mut rhythm = Rhythm::new(rand::make_rng());
        tokio::time::advance(BUSY_FOR).await;
        for _ in 0..50 {
            rhythm.read(false, Company::Few);
            let pause = rhythm.pause();
            assert!((Duration::from_secs(3)..Duration::from_secs(5)).contains(&pause), "{pause:?}");
            tokio::time::advance(pause).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bell_that_rings_just_after_a_read_is_answered_soon_and_once() {
        let mut rhythm = Rhythm::new(rand::make_rng());
        tokio::time::advance(BUSY_FOR).await;
        rhythm.read(false, Company::Unknown);
        assert!(rhythm.pause() > Duration::from_secs(3), "an idle node does not look again for long");
        tokio::time::advance(SHORTEST_PAUSE / 2).await;
        assert!(!rhythm.is_due(true), "just now it looked");
        assert_eq!(rhythm.pause(), SHORTEST_PAUSE / 2);
        tokio::time::advance(SHORTEST_PAUSE / 2).await;
        assert!(rhythm.is_due(false), "it was called, if some time ago");
        rhythm.read(false, Company::Unknown);
        assert!(rhythm.pause() > Duration::from_secs(3));
    }
}
