//! When each local agent's lease is renewed in Redis: at a third of its time, give or take a fifth, so that a fleet that
//! came back together does not renew together. Earlier, at half of what is left, if the last renewal found it running
//! out: a heartbeat in its last moments must reach Redis before the old end does.
//!
//! A schedule only: what is due is decided here, from outside come the time and the leases.

use std::collections::HashMap;
use std::time::Duration;

use rand::{Rng, RngExt};
use tokio::time::Instant;

use crate::domain::AgentId;
use crate::engine::replica::LocalLease;

/// No lease is renewed more often than this.
const SHORTEST: Duration = Duration::from_millis(100);

/// When each lease is due.
#[derive(Default)]
pub struct Leases {
    due: HashMap<AgentId, Instant>,
}

impl Leases {
    /// Makes every lease due, those that are not known yet too, when next asked.
    pub fn renew_all(&mut self, leases: &[LocalLease], now: Instant) {
        self.due = leases.iter().map(|lease| (lease.agent_id.clone(), now)).collect();
    }

    /// The leases that are due, each scheduled again. A lease that is new here was pushed with its agent just now.
    pub fn take_due<'a>(
        &mut self,
        leases: &'a [LocalLease],
        now: Instant,
        random: &mut dyn Rng,
    ) -> Vec<&'a LocalLease> {
        if self.due.len() > leases.len() {
            let live: std::collections::HashSet<&AgentId> = leases.iter().map(|lease| &lease.agent_id).collect();
            self.due.retain(|agent_id, _| live.contains(agent_id));
        }
        let mut taken = Vec::new();
        for lease in leases {
            let mut next = || {
                let pause = jittered(lease.ttl.duration() / 3, &mut *random);
                now + pause.min(lease.remaining / 2).max(SHORTEST)
            };
            match self.due.get_mut(&lease.agent_id) {
                Some(due) if *due <= now => {
                    *due = next();
                    taken.push(lease);
                }
                Some(_) => {}
                None => {
                    self.due.insert(lease.agent_id.clone(), next());
                }
            }
        }
        taken
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }
}

/// A time, give or take a fifth of it.
pub fn jittered(time: Duration, random: &mut dyn Rng) -> Duration {
    time.mul_f64(random.random_range(0.8..1.2)).max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::domain::{AgentVersion, NodeId, Ttl};

    fn lease(id: &str, seconds: i128) -> LocalLease {
        let ttl = Ttl::parse(seconds).unwrap();
        let version = AgentVersion { epoch: 1, seq: 1, node_id: NodeId::from_bytes([1; 16]) };
        LocalLease { agent_id: AgentId::from_stored(id), version, remaining: ttl.duration(), ttl }
    }

    #[test]
    fn each_lease_is_due_at_a_third_of_its_time_give_or_take_a_fifth() {
        let (mut leases, mut random, start) = (Leases::default(), StdRng::seed_from_u64(1), Instant::now());
        let local = [lease("short", 30), lease("long", 3_000)];
        assert!(leases.take_due(&local, start, &mut random).is_empty(), "just pushed");
        assert!(leases.take_due(&local, start + Duration::from_millis(7_900), &mut random).is_empty());
        let due = leases.take_due(&local, start + Duration::from_secs(12), &mut random);
        assert_eq!(due, [&local[0]]);
        assert!(leases.take_due(&local, start + Duration::from_secs(12), &mut random).is_empty());
        assert_eq!(leases.take_due(&local, start + Duration::from_secs(1_200), &mut random).len(), 2);
    }

    #[test]
    fn a_lease_that_runs_out_is_looked_at_ever_sooner() {
        let (mut leases, mut random, start) = (Leases::default(), StdRng::seed_from_u64(1), Instant::now());
        let ending = [LocalLease { remaining: Duration::from_secs(4), ..lease("a", 3_600) }];
        leases.renew_all(&ending, start);
        leases.take_due(&ending, start, &mut random);
        assert_eq!(leases.next_due(), Some(start + Duration::from_secs(2)));
        let ended = [LocalLease { remaining: Duration::ZERO, ..lease("a", 3_600) }];
        leases.take_due(&ended, start + Duration::from_secs(2), &mut random);
        assert_eq!(leases.next_due(), Some(start + Duration::from_secs(2) + SHORTEST));
    }

    #[test]
    fn all_are_due_at_once_after_a_break_and_what_is_gone_is_forgotten() {
        let (mut leases, mut random, now) = (Leases::default(), StdRng::seed_from_u64(1), Instant::now());
        let local = [lease("a", 3_600), lease("b", 3_600)];
        leases.renew_all(&local, now);
        assert_eq!(leases.take_due(&local, now, &mut random).len(), 2);
        assert!(leases.take_due(&local[..1], now, &mut random).is_empty());
        assert_eq!(leases.due.len(), 1);
        assert!(leases.next_due().unwrap() > now + Duration::from_secs(900));
    }
}
