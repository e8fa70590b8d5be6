//! What one node has observed of an agent's work, as counters that only grow, so that it may be told more than once.
//!
//! Every node that observes an agent, its owner included, keeps cumulative counters under an observer id. The owner
//! folds what lies above the *baseline* that it keeps beside the agent; the baseline travels with the agent, so that
//! whoever takes it over folds nothing twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::{AgentId, ObserverId};
use super::reputation::HIGHEST;

/// What an observer has seen of an agent, in all.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Outcomes that were a success.
    pub successes: u64,
    /// Outcomes that were a failure.
    pub failures: u64,
    /// How far the score was to move: the sum of ±weight of the outcomes and of all corrections.
    pub score: f64,
}

impl Counters {
    /// One outcome. A score cannot move further than from one end to the other; were larger weights summed up as they
    /// are, small ones after them would be lost in their last digit.
    pub fn outcome(success: bool, weight: f64) -> Self {
        let weight = weight.min(HIGHEST);
        if success {
            Self { successes: 1, failures: 0, score: weight }
        } else {
            Self { successes: 0, failures: 1, score: -weight }
        }
    }

    /// One correction of the score.
    pub fn correction(delta: f64) -> Self {
        Self { score: delta.clamp(-HIGHEST, HIGHEST), ..Self::default() }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            successes: self.successes.saturating_add(other.successes),
            failures: self.failures.saturating_add(other.failures),
            score: finite(self.score + other.score),
        }
    }

    /// What this has beyond `other`; counts stop at 0.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            successes: self.successes.saturating_sub(other.successes),
            failures: self.failures.saturating_sub(other.failures),
            score: finite(self.score - other.score),
        }
    }

    /// What this has beyond a baseline of the same observer. `None` if that is nothing, or if it is behind the baseline:
    /// a central system that lost data shows older counters for a while.
    pub fn above(self, baseline: Option<&Self>) -> Option<Self> {
        let baseline = baseline.copied().unwrap_or_default();
        let behind = self.successes < baseline.successes || self.failures < baseline.failures;
        let above = self.minus(baseline);
        (!behind && !above.is_zero()).then_some(above)
    }

    /// Whether this is what `later` was before.
    pub fn is_behind(&self, later: Self) -> bool {
        self.successes <= later.successes && self.failures <= later.failures && *self != later
    }

    /// Whether there is nothing in it.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// A sum of finite weights may leave the range of doubles; its end says as much about a score within 0 to 5.
fn finite(sum: f64) -> f64 {
    if sum.is_nan() { 0.0 } else { sum.clamp(f64::MIN, f64::MAX) }
}

/// How much of each observer's counters an agent's reputation already holds.
pub type Baseline = BTreeMap<ObserverId, Counters>;

/// The most observers that a baseline holds: far more than a fleet has nodes, and small enough that an agent always fits
/// into its record and its document. Whoever can write to the central system could otherwise grow both without end.
pub const MAX_OBSERVERS: usize = 4_096;

/// Notes in a baseline what was observed where the agent lives. That has always been folded, so it always has room: the
/// oldest observer gives way, of whom a full baseline folds nothing again.
pub fn hold(baseline: &mut Baseline, observer: ObserverId, total: Counters) {
    while baseline.len() >= MAX_OBSERVERS && !baseline.contains_key(&observer) {
        baseline.pop_first();
    }
    baseline.insert(observer, total);
}

/// This node's counters for one agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Of whom.
    pub agent_id: AgentId,
    /// Under which id.
    pub observer: ObserverId,
    /// All that was observed.
    pub total: Counters,
    /// What Redis is known to hold of it.
    pub acked: Counters,
    /// What Redis was told last, or is about to be told: until it is acknowledged, Redis may hold either.
    pub offered: Counters,
}

impl Observation {
    /// What Redis is not known to hold.
    pub fn unacked(&self) -> Counters {
        self.total.minus(self.acked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_and_subtract_and_never_leave_the_numbers() {
        let three = Counters::outcome(true, 1.5).plus(Counters::outcome(false, 0.5)).plus(Counters::correction(-2.0));
        assert_eq!(three, Counters { successes: 1, failures: 1, score: -1.0 });
        assert_eq!(three.minus(Counters::outcome(true, 1.5)), Counters { successes: 0, failures: 1, score: -2.5 });
        assert!(three.minus(three).is_zero());
        let most = Counters { successes: u64::MAX, failures: 0, score: f64::MAX };
        let sum = most.plus(most);
        assert_eq!((sum.successes, sum.score), (u64::MAX, f64::MAX));
        assert_eq!(Counters::default().minus(most).successes, 0);
    }

    #[test]
    fn no_weight_is_so_large_that_later_ones_are_lost_beside_it() {
        let mut total = Counters::outcome(false, 1e17).plus(Counters::correction(-1e300));
        for _ in 0..6 {
            let before = total;
            total = total.plus(Counters::outcome(true, 0.5));
            assert_eq!(total.minus(before).score, 0.5);
        }
    }

    #[test]
    fn a_full_baseline_has_room_for_what_was_observed_at_home_and_grows_no_further() {
        let observer = |number: u128| ObserverId::from_bytes(number.to_be_bytes());
        let mut baseline = Baseline::new();
        for number in 0..MAX_OBSERVERS as u128 + 3 {
            hold(&mut baseline, observer(number), Counters::outcome(true, 1.0));
        }
        assert_eq!(baseline.len(), MAX_OBSERVERS);
        assert!(!baseline.contains_key(&observer(2)) && baseline.contains_key(&observer(3)));
        hold(&mut baseline, observer(3), Counters::default());
        assert_eq!((baseline.len(), baseline[&observer(3)]), (MAX_OBSERVERS, Counters::default()));
    }
}
