//! Which agents a commit changes that is not published yet.
//!
//! From the moment a commit is on the disk the store shows it; the directory shows it a little later. Whoever has seen it
//! in the store must not be shown what was before it, so from before the commit until after it is published, an agent that
//! it changes is looked up in the store, and heartbeats for it wait for the writer.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::AgentId;

/// How many marks there are. An agent shares its mark with others, who are then looked up in the store as well.
const MARKS: u64 = 64 * WORDS as u64;
const WORDS: usize = 64;

/// Agents, by a mark each. The writer marks them and clears all marks; everybody reads.
#[derive(Debug)]
pub struct Unpublished {
    marks: [AtomicU64; WORDS],
    hasher: RandomState,
}

impl Default for Unpublished {
    fn default() -> Self {
        Self { marks: [const { AtomicU64::new(0) }; WORDS], hasher: RandomState::new() }
    }
}

impl Unpublished {
    /// Before the commit that changes this agent.
    pub fn mark(&self, id: &AgentId) {
        let (word, bit) = self.place_of(id);
        word.fetch_or(bit, Ordering::Release);
    }

    /// After what was committed is published.
    pub fn clear(&self) {
        // A word that is clear already stays in the readers' caches.
        for word in self.marks.iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
            word.store(0, Ordering::Release);
        }
    }

    /// Whether the directory may not show yet what the store shows of this agent. Ask before you take a view: if not, a view
    /// taken from then on shows at least what the store showed to anybody before.
    pub fn may_hold(&self, id: &AgentId) -> bool {
        let (word, bit) = self.place_of(id);
        word.load(Ordering::Acquire) & bit != 0
    }

    fn place_of(&self, id: &AgentId) -> (&AtomicU64, u64) {
        let mark = self.hasher.hash_one(id) % MARKS;
        (&self.marks[(mark / 64) as usize], 1 << (mark % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_may_be_held_until_all_is_cleared() {
        let unpublished = Unpublished::default();
        let ids: Vec<_> = (0..50).map(|number| AgentId::from_stored(&format!("agent-{number}"))).collect();
        let held = || ids.iter().filter(|id| unpublished.may_hold(id)).count();
        assert_eq!(held(), 0);
        unpublished.mark(&ids[0]);
        assert!(unpublished.may_hold(&ids[0]));
        assert!(held() < 25, "one mark is not for all");
        ids.iter().for_each(|id| unpublished.mark(id));
        assert_eq!(held(), 50);
        unpublished.clear();
        assert_eq!(held(), 0);
    }
}
