//! Finding a provider: search, recommend, least loaded, random. Live agents only.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use super::Engine;
use super::agents::Profile;
use super::directory::{Entry, merged};
use super::error::Error;
use crate::domain::ranking::{RankBy, SearchQuery};
use crate::domain::{AvailabilityStatus, Capability};
use crate::store::minute_of;

/// How many draws are made before looking through all of them.
const MAX_DRAWS: usize = 64;

impl Engine {
    /// Agents with any of the capabilities that keep all the bounds: cost up, score down, availability, id.
    pub fn search(&self, query: &SearchQuery, limit: usize) -> Result<Vec<Profile>, Error> {
        let began = self.core().clock.monotonic();
        let view = self.core().readable()?;
        let live = view.directory.live();
        let ranks = query.capabilities.iter().filter_map(|capability| live.ranks(Some(capability)));
        let found: Vec<&Arc<Entry>> = merged(ranks, RankBy::Search, None)
            .take_while(|entry| query.max_cost.is_none_or(|max| entry.standing.cost_per_task <= max))
            .filter(|entry| entry.lease.is_live(began) && query.admits(&entry.standing))
            .take(limit)
            .collect();
        let profiles = self.profiles(&found, &view)?;
        let took = self.core().clock.monotonic().saturating_sub(began);
        self.core().metrics.searched(query.capabilities.iter().map(Capability::as_str), profiles.len(), took);
        Ok(profiles)
    }

    /// At most `top_n` agents that are online (or, if asked for, busy), in turns: successive calls visit every
    /// candidate before any twice. Each answer is in order of rank: score down, cost up, id.
    pub fn recommend(&self, capability: &Capability, top_n: usize, include_busy: bool) -> Result<Vec<Profile>, Error> {
        let monotonic = self.core().clock.monotonic();
        let view = self.core().readable()?;
        self.core().metrics.recommended(capability.as_str());
        let Some(ranks) = view.directory.live().ranks(Some(capability)) else { return Ok(Vec::new()) };
        let mut picked = self.core().rotation.next(capability, include_busy, ranks.by_score(), top_n, |entry| {
            let entry = view.directory.get(&entry.standing.agent_id)?;
            let takes_work = match entry.standing.availability {
                AvailabilityStatus::Online => true,
                AvailabilityStatus::Busy => include_busy,
                AvailabilityStatus::Maintenance | AvailabilityStatus::Offline => false,
            };
            let candidate = takes_work && is_live(entry, monotonic) && entry.capabilities.contains(capability);
            candidate.then(|| Arc::clone(entry))
        });
        picked.sort_by(|a, b| RankBy::Score.compare(&a.standing, &b.standing));
        self.profiles(&picked.iter().collect::<Vec<_>>(), &view)
    }

    /// The agent that was given the fewest transactions for this capability in the last hour; then cost up, score
    /// down, id. An online one, or a busy one if none is online.
    pub fn least_loaded(&self, capability: &Capability) -> Result<Option<Profile>, Error> {
        let moment = self.core().moment();
        let view = self.core().readable()?;
        let Some(ranks) = view.directory.live().ranks(Some(capability)) else { return Ok(None) };
        let minute = minute_of(moment.now);
        let least_of = |wanted: AvailabilityStatus| {
            let mut best: Option<(u64, &Arc<Entry>)> = None;
            for entry in ranks.iter(RankBy::Cost, None) {
                if entry.standing.availability != wanted || !is_live(entry, moment.monotonic) {
                    continue;
                }
                let load = view.loads.count(&entry.standing.agent_id, capability, minute);
                if best.is_none_or(|(least, _)| load < least) {
                    best = Some((load, entry));
                }
                if load == 0 {
                    // Nobody is less loaded, and those behind rank behind.
                    break;
                }
            }
            best.map(|(_, entry)| entry)
        };
        let picked = [AvailabilityStatus::Online, AvailabilityStatus::Busy].into_iter().find_map(least_of);
        Ok(self.profiles(picked.as_slice(), &view)?.pop())
    }

    /// Any online or busy agent, each with the same chance.
    pub fn random(&self, capability: Option<&Capability>) -> Result<Option<Profile>, Error> {
        let monotonic = self.core().clock.monotonic();
        let view = self.core().readable()?;
        let Some(ranks) = view.directory.live().ranks(capability) else { return Ok(None) };
        let candidate = |entry: &&Arc<Entry>| {
            let takes_work =
                matches!(entry.standing.availability, AvailabilityStatus::Online | AvailabilityStatus::Busy);
            takes_work && is_live(entry, monotonic)
        };
        let count = usize::try_from(ranks.len()).unwrap_or(usize::MAX);
        if count == 0 {
            return Ok(None);
        }
        let mut random = rand::rng();
        let drawn = (0..MAX_DRAWS).find_map(|_| ranks.draw(random.random_range(0..count)).filter(candidate));
        // Candidates are few among many, or there are none: look through all, beginning anywhere.
        let start = random.random_range(0..count);
        let picked = drawn.or_else(|| (0..count).filter_map(|step| ranks.draw((start + step) % count)).find(candidate));
        Ok(self.profiles(picked.as_slice(), &view)?.pop())
    }
}

fn is_live(entry: &Entry, monotonic: Duration) -> bool {
    entry.lease.is_live(monotonic)
}
