//! The state machine of a sink: pure, so that every path through it is tested with time that nobody waits for.
//!
//! ```text
//!  connecting ──connected──► catching_up ◄──behind── live
//!      ▲  │                     │   └────caught up────►│
//!      │  └──────── failed ─────┴────────── failed ────┤
//!      │                                               ▼
//!      └────────────── timer, or asked to ─── backoff | halted
//! ```
//!
//! Every state leads back to `connecting` by a timer, whatever happens: nothing here needs an operator or a new write
//! to go on. Pauses are decorrelated jitter: each is drawn between the shortest and three times the last one, which
//! keeps many nodes that lost the same server from coming back together (Marc Brooker, "Exponential Backoff And
//! Jitter", AWS Architecture Blog, 2015).

use std::time::Duration;

use rand::{Rng, RngExt};

use crate::engine::replica::SinkState;

/// The shortest pause before another attempt.
pub const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// The longest one; also that of a sink which only somebody else can mend, and may at any time.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Why a sink cannot be worked with at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub class: FailureClass,
    /// In words, without any secret; shown in the status and the log.
    pub reason: String,
}

/// What can be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// It is not reachable, or broke off: connect again.
    Unreachable,
    /// It was reached, and asks to come again: a conflict, a time-out, a server that starts or has no room.
    Busy,
    /// It refuses us as we are configured: a password, a missing database, table or right.
    Misconfigured,
    /// Our own store could not be read or written.
    Store,
}

impl FailureClass {
    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Busy => "busy",
            Self::Misconfigured => "misconfigured",
            Self::Store => "store",
        }
    }
}

impl Failure {
    /// A failure of a class.
    pub fn new(class: FailureClass, reason: impl Into<String>) -> Self {
        Self { class, reason: reason.into() }
    }
}

/// Where a sink stands, and how long its last pause was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    state: SinkState,
    last_pause: Duration,
}

impl Default for Machine {
    fn default() -> Self {
        Self { state: SinkState::Connecting, last_pause: SHORTEST_PAUSE }
    }
}

impl Machine {
    /// Where it stands.
    pub fn state(&self) -> SinkState {
        self.state
    }

    /// The connection stands, and says who it is. What it lacks is not known yet.
    pub fn connected(&mut self) {
        self.state = SinkState::CatchingUp;
    }

    /// A round of work went through: with `more` to do, or with nothing left. Only the latter makes the next pause short
    /// again, so that a sink that breaks at the same entry each time is not hammered.
    pub fn worked(&mut self, more: bool) {
        if more {
            self.state = SinkState::CatchingUp;
        } else {
            self.state = SinkState::Live;
            self.last_pause = SHORTEST_PAUSE;
        }
    }

    /// A round takes so long that nobody knows whether all is well.
    pub fn slow(&mut self) {
        self.state = SinkState::CatchingUp;
    }

    /// The connection is given up; how long to pause before [`retry`](Self::retry).
    pub fn failed(&mut self, class: FailureClass, random: &mut dyn Rng) -> Duration {
        if class == FailureClass::Misconfigured {
            self.state = SinkState::Halted;
            return LONGEST_PAUSE;
        }
        self.state = SinkState::Backoff;
        let widest = (self.last_pause * 3).min(LONGEST_PAUSE);
        self.last_pause = random.random_range(SHORTEST_PAUSE..=widest.max(SHORTEST_PAUSE));
        self.last_pause
    }

    /// The pause is over, or somebody asked not to wait for its end.
    pub fn retry(&mut self) {
        self.state = SinkState::Connecting;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_good_day_is_connecting_catching_up_live() {
        let mut machine = Machine::default();
        assert_eq!(machine.state(), SinkState::Connecting);
        machine.connected();
        assert_eq!(machine.state(), SinkState::CatchingUp);
        machine.worked(true);
        assert_eq!(machine.state(), SinkState::CatchingUp);
        machine.worked(false);
        assert_eq!(machine.state(), SinkState::Live);
        machine.worked(true);
        assert_eq!(machine.state(), SinkState::CatchingUp);
    }

    #[test]
    fn pauses_grow_within_their_bounds_and_are_short_again_after_a_success() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut machine = Machine::default();
            let mut last = SHORTEST_PAUSE;
            let mut longest = Duration::ZERO;
            for _ in 0..50 {
                let pause = machine.failed(FailureClass::Unreachable, &mut random);
                assert_eq!(machine.state(), SinkState::Backoff);
                assert!((SHORTEST_PAUSE..=LONGEST_PAUSE).contains(&pause), "seed {seed}: {pause:?}");
                assert!(pause <= (last * 3).max(SHORTEST_PAUSE), "seed {seed}: {pause:?} after {last:?}");
                (last, longest) = (pause, longest.max(pause));
                machine.retry();
                assert_eq!(machine.state(), SinkState::Connecting);
            }
            assert!(
                longest > Duration::from_secs(5),
                "seed {seed}: fifty failures never paused longer than {longest:?}"
            );
            machine.connected();
            machine.worked(false);
            assert!(machine.failed(FailureClass::Busy, &mut random) <= SHORTEST_PAUSE * 3);
        }
    }

    #[test]
    fn a_connection_that_breaks_before_it_caught_up_goes_on_pausing_longer() {
        let mut random = StdRng::seed_from_u64(1);
        let mut machine = Machine::default();
        let mut pauses = Vec::new();
        for _ in 0..60 {
            machine.connected();
            machine.worked(true);
            pauses.push(machine.failed(FailureClass::Unreachable, &mut random));
            machine.retry();
        }
        assert!(pauses.iter().max() > Some(&Duration::from_secs(5)));
    }

    #[test]
    fn what_only_somebody_else_can_mend_is_asked_for_every_15_seconds() {
        let mut random = StdRng::seed_from_u64(1);
        let mut machine = Machine::default();
        for _ in 0..3 {
            assert_eq!(machine.failed(FailureClass::Misconfigured, &mut random), LONGEST_PAUSE);
            assert_eq!(machine.state(), SinkState::Halted);
            machine.retry();
        }
        // What comes after it is mended starts with a short pause.
        assert!(machine.failed(FailureClass::Unreachable, &mut random) <= SHORTEST_PAUSE * 3);
    }
}
