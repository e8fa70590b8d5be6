//! Soft round-robin for recommendations: every candidate is visited before any is visited twice.
//!
//! For each capability it keeps the candidates that the present round has not visited yet, best first. That set is a
//! clone of the directory's own (sharing structure), used up call by call, so neither a changed score nor a newcomer
//! makes a candidate come twice in a round. Whoever may not be recommended when its turn comes is looked at once more at
//! the round's end. It lives in memory only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::directory::{BY_SCORE, ByScore, Entry, Ranked};
use crate::domain::Capability;

/// So many capabilities are rotated over at most; beyond that, all rounds start again.
const MAX_ROUNDS: usize = 4_096;

/// The rounds under way, by capability and whether busy agents count.
#[derive(Debug, Default)]
pub struct Rotation {
    // Held by calls for recommendations only: briefly, unless few of many agents may be recommended.
    rounds: Mutex<HashMap<(Capability, bool), Round>>,
}

/// Those whom a round has not visited yet.
#[derive(Debug, Default)]
struct Round {
    left: ByScore,
    /// Those who were no candidates when their turn came.
    skipped: ByScore,
    /// Those left are the skipped ones.
    is_second_look: bool,
}

impl Round {
    /// The next one; `None` at the round's end.
    fn next(&mut self) -> Option<Ranked<BY_SCORE>> {
        if self.left.is_empty() && !self.is_second_look {
            (self.left, self.is_second_look) = (std::mem::take(&mut self.skipped), true);
        }
        self.left.remove_min()
    }

    /// Passes over one, for now.
    fn skip(&mut self, one: Ranked<BY_SCORE>) {
        if !self.is_second_look {
            self.skipped.insert(one);
        }
    }
}

impl Rotation {
    /// The next at most `count` candidates. `all` are those with the capability, best first; `candidate` gives the
    /// present entry of one that may be recommended now.
    pub fn next(
        &self,
        capability: &Capability,
        include_busy: bool,
        all: &ByScore,
        count: usize,
        candidate: impl Fn(&Entry) -> Option<Arc<Entry>>,
    ) -> Vec<Arc<Entry>> {
        let mut rounds = self.rounds.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if rounds.len() >= MAX_ROUNDS {
            rounds.clear();
        }
        let round = rounds.entry((capability.clone(), include_busy)).or_default();
        let mut picked: Vec<Arc<Entry>> = Vec::new();
        // Those visited at the end of the last round within this very call: this round still owes them a visit.
        let mut owed = Vec::new();
        let mut restarted = false;
        while picked.len() < count {
            let Some(next) = round.next() else {
                if restarted {
                    break;
                }
                restarted = true;
                *round = Round { left: all.clone(), ..Round::default() };
                continue;
            };
            let Some(entry) = candidate(next.entry()) else {
                round.skip(next);
                continue;
            };
            if picked.iter().any(|picked| picked.standing.agent_id == entry.standing.agent_id) {
                owed.push(next);
            } else {
                picked.push(entry);
            }
        }
        round.left.extend(owed);
        if all.is_empty() {
            rounds.remove(&(capability.clone(), include_busy));
        }
        picked
    }
}
