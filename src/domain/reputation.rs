//! Reputation: a score from 0 to 5 and the counts behind it.

use serde::{Deserialize, Serialize};

use super::observation::Counters;
use super::refusal::Invalid;

pub const HIGHEST: f64 = 5.0;

/// What agents that used an agent made of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Reputation {
    /// From 0 to 5, unrounded; starts at 0.
    pub score: f64,
    /// Outcomes observed.
    pub total_feedback: u64,
    /// Outcomes that were a success.
    pub successful_tasks: u64,
    /// Outcomes that were a failure.
    pub failed_tasks: u64,
}

/// How far one outcome moves the score: finite and above 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weight(f64);

/// A correction of the score: finite, of either sign.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Delta(f64);

impl Weight {
    /// Checks that the weight is finite and above 0.
    pub fn parse(weight: f64) -> Result<Self, Invalid> {
        if weight.is_finite() && weight > 0.0 {
            Ok(Self(weight))
        } else {
            Err(Invalid::new("weight", "must be a finite number above 0"))
        }
    }
}

impl Default for Weight {
    /// 1.
    fn default() -> Self {
        Self(1.0)
    }
}

impl Weight {
    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Delta {
    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }

    /// Checks that the delta is finite.
    pub fn parse(delta: f64) -> Result<Self, Invalid> {
        if delta.is_finite() { Ok(Self(delta)) } else { Err(Invalid::new("delta", "must be a finite number")) }
    }
}

impl Reputation {
    /// The reputation after one outcome: the score moves by ±`weight` within 0 to 5, and the counts rise.
    #[must_use]
    pub fn observed(self, success: bool, weight: Weight) -> Self {
        self.folded(Counters::outcome(success, weight.0))
    }

    /// The reputation after a correction: the score moves within 0 to 5, the counts stay.
    #[must_use]
    pub fn adjusted(self, delta: Delta) -> Self {
        self.folded(Counters::correction(delta.0))
    }

    /// The reputation with what an observer saw: counts add up, the score moves within 0 to 5.
    #[must_use]
    pub fn folded(mut self, seen: Counters) -> Self {
        self.successful_tasks = self.successful_tasks.saturating_add(seen.successes);
        self.failed_tasks = self.failed_tasks.saturating_add(seen.failures);
        self.total_feedback = self.total_feedback.saturating_add(seen.successes).saturating_add(seen.failures);
        self.moved(seen.score)
    }

    /// The score as it is shown: rounded to 2 places.
    pub fn shown_score(&self) -> f64 {
        (self.score * 100.0).round() / 100.0
    }

    fn moved(mut self, by: f64) -> Self {
        self.score = (self.score + by).clamp(0.0, HIGHEST);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_stays_within_0_and_5_and_counts_add_up() {
        let mut reputation = Reputation::default().observed(false, Weight::default());
        assert_eq!(reputation.score, 0.0);
        for _ in 0..7 {
            reputation = reputation.observed(true, Weight::default());
        }
        assert_eq!(reputation.score, 5.0);
        assert_eq!((reputation.total_feedback, reputation.successful_tasks, reputation.failed_tasks), (8, 7, 1));
        let adjusted = reputation.adjusted(Delta::parse(-0.555).unwrap());
        assert_eq!(adjusted.shown_score(), 4.45);
        assert_eq!(adjusted.total_feedback, 8);
    }

    #[test]
    fn weights_and_deltas_are_finite() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Weight::parse(bad).is_err(), "{bad}");
        }
        assert!(Delta::parse(f64::NEG_INFINITY).is_err());
        assert!(Delta::parse(-2.0).is_ok());
    }
}
