//! How much work each provider was given lately, by capability: what the least loaded agent is found by.
//!
//! Derived from the store's counts by the minute. The last hour is the current minute and the 60 before it, so a
//! transaction counts for 60 to 61 minutes.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::HashMap;

use crate::domain::{AgentId, Capability};

/// How many minutes before the current one count.
pub const WINDOW_MINUTES: u32 = 60;
/// The most providers and capabilities that are counted at a time; those that come later go by as if they had no load. It
/// bounds what a flood of made-up names can take of the memory.
const MAX_WINDOWS: usize = 100_000;

type Key = (AgentId, Capability);

/// Counts by the minute, oldest first, of one provider and capability.
type Window = Arc<[(u32, u32)]>;

/// The counts, for readers; a clone shares structure.
#[derive(Debug, Clone, Default)]
pub struct Loads {
    windows: HashMap<Key, Window>,
}

/// Which windows a minute touched, so that they can be dropped when it has passed. The writer's own.
#[derive(Debug, Default)]
pub struct LoadMinutes {
    touched: BTreeMap<u32, Vec<Key>>,
}

impl Loads {
    /// Transactions of the last hour; `minute` is now.
    pub fn count(&self, provider: &AgentId, capability: &Capability, minute: u32) -> u64 {
        let oldest = minute.saturating_sub(WINDOW_MINUTES);
        self.windows.get(&(provider.clone(), capability.clone())).map_or(0, |window| {
            // What another clock, or this one once, dates in the future is not of the last hour.
            let of_the_hour = window.iter().filter(|(at, _)| (oldest..=minute).contains(at));
            of_the_hour.map(|(_, count)| u64::from(*count)).sum()
        })
    }

    /// Adds `count` transactions of a minute.
    pub fn add(
        &mut self,
        minutes: &mut LoadMinutes,
        provider: &AgentId,
        capability: &Capability,
        minute: u32,
        count: u32,
    ) {
        let key = (provider.clone(), capability.clone());
        let mut window: Vec<(u32, u32)> = match self.windows.get(&key) {
            Some(window) => window.to_vec(),
            None if self.windows.len() >= MAX_WINDOWS => return,
            None => Vec::new(),
        };
        match window.binary_search_by_key(&minute, |(at, _)| *at) {
            Ok(found) => window[found].1 = window[found].1.saturating_add(count),
            Err(place) => {
                window.insert(place, (minute, count));
                minutes.touched.entry(minute).or_default().push(key.clone());
            }
        }
        self.windows.insert(key, window.into());
    }

    /// Adds a transaction that another node recorded; `now` is the current minute. One of an hour ago is not asked for any
    /// more, and one that lies more than an hour ahead, by a clock that is wrong, would take a place for as long as that.
    pub fn add_from_elsewhere(
        &mut self,
        minutes: &mut LoadMinutes,
        provider: &AgentId,
        capability: &Capability,
        minute: u32,
        now: u32,
    ) {
        if (now.saturating_sub(WINDOW_MINUTES)..=now.saturating_add(WINDOW_MINUTES)).contains(&minute) {
            self.add(minutes, provider, capability, minute, 1);
        }
    }

    /// Takes back one transaction of a minute.
    pub fn remove(&mut self, provider: &AgentId, capability: &Capability, minute: u32) {
        let key = (provider.clone(), capability.clone());
        let Some(window) = self.windows.get(&key) else { return };
        let rest = window.iter().map(|(at, count)| (*at, count.saturating_sub(u32::from(*at == minute))));
        let rest: Window = rest.collect();
        self.windows.insert(key, rest);
    }

    /// Drops what lies before the window that ends with `minute`.
    pub fn drop_before_window(&mut self, minutes: &mut LoadMinutes, minute: u32) {
        let oldest = minute.saturating_sub(WINDOW_MINUTES);
        let kept = minutes.touched.split_off(&oldest);
        for key in std::mem::replace(&mut minutes.touched, kept).into_values().flatten() {
            let Some(window) = self.windows.get(&key) else { continue };
            let rest: Window = window.iter().copied().filter(|(at, _)| *at >= oldest).collect();
            if rest.is_empty() {
                self.windows.remove(&key);
            } else {
                self.windows.insert(key, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_counts_for_an_hour_and_is_dropped_after_it() {
        let (provider, capability) = (AgentId::from_stored("p"), Capability::from_stored("sql"));
        let (mut loads, mut minutes) = (Loads::default(), LoadMinutes::default());
        loads.add(&mut minutes, &provider, &capability, 100, 1);
        loads.add(&mut minutes, &provider, &capability, 130, 2);
        loads.add(&mut minutes, &provider, &capability, 130, 1);
        assert_eq!(loads.count(&provider, &capability, 160), 4);
        assert_eq!(loads.count(&provider, &capability, 129), 1, "not what is yet to come");
        assert_eq!(loads.count(&provider, &capability, 161), 3);
        loads.remove(&provider, &capability, 130);
        assert_eq!(loads.count(&provider, &capability, 161), 2);
        loads.add(&mut minutes, &provider, &capability, 130, 1);
        loads.drop_before_window(&mut minutes, 161);
        assert_eq!(loads.count(&provider, &capability, 130), 3);
        loads.drop_before_window(&mut minutes, 500);
        assert!(loads.windows.is_empty() && minutes.touched.is_empty());
    }

    #[test]
    fn what_comes_late_or_from_a_clock_far_ahead_takes_no_place() {
        let (provider, capability) = (AgentId::from_stored("p"), Capability::from_stored("sql"));
        let (mut loads, mut minutes) = (Loads::default(), LoadMinutes::default());
        for minute in [0, 939, 1_061, u32::MAX] {
            loads.add_from_elsewhere(&mut minutes, &provider, &capability, minute, 1_000);
            assert!(loads.windows.is_empty() && minutes.touched.is_empty(), "{minute}");
            loads.remove(&provider, &capability, minute);
        }
        for minute in [940, 1_000, 1_001] {
            loads.add_from_elsewhere(&mut minutes, &provider, &capability, minute, 1_000);
        }
        assert_eq!(loads.count(&provider, &capability, 1_000), 2);
        assert_eq!(loads.count(&provider, &capability, 1_001), 2, "a clock that is a little ahead is counted in time");
    }

    #[test]
    fn a_flood_of_names_is_counted_up_to_a_bound_and_makes_room_again() {
        let (mut loads, mut minutes) = (Loads::default(), LoadMinutes::default());
        let sql = Capability::from_stored("sql");
        let provider = |number: usize| AgentId::from_stored(&format!("p{number}"));
        for number in 0..MAX_WINDOWS + 10 {
            loads.add(&mut minutes, &provider(number), &sql, 100, 1);
        }
        assert_eq!(loads.windows.len(), MAX_WINDOWS);
        loads.add(&mut minutes, &provider(0), &sql, 101, 1);
        assert_eq!(loads.count(&provider(0), &sql, 101), 2, "who is counted goes on being counted");
        assert_eq!(loads.count(&provider(MAX_WINDOWS), &sql, 101), 0);
        loads.drop_before_window(&mut minutes, 161);
        assert_eq!(loads.windows.len(), 1);
        loads.add(&mut minutes, &provider(MAX_WINDOWS), &sql, 161, 1);
        assert_eq!(loads.count(&provider(MAX_WINDOWS), &sql, 161), 1);
    }
}
