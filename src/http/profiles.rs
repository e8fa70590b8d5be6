//! Answers to look-ups, kept as they were written: most agents are looked at far more often than they change.
//!
//! An answer is kept with the [`Glimpse`] of the agent that was taken before it was made, and is of use for as long as the
//! directory shows the same. Only the lease is written anew each time, for heartbeats move it.
//!
//! There is a fixed number of places, two for each agent's id; of those who share two, the last two stay. A new answer takes
//! the place of the agent's last one. So the memory is bounded, and nobody waits.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::dto::agents::{Lease, Profile};
use super::reply::{to_json, write_json};
use crate::domain::AgentId;
use crate::engine::{self, Glimpse};

/// Pairs of places.
const PAIRS: usize = 8_192;
/// Longer answers are made each time.
const LONGEST: usize = 1_024;
/// How long a lease is as JSON, at most.
const LEASE: usize = 128;

/// The answers that are kept.
pub(crate) struct Profiles {
    /// The last answer comes first.
    pairs: Box<[[ArcSwapOption<Kept>; 2]]>,
    hasher: RandomState,
}

struct Kept {
    agent_id: AgentId,
    glimpse: Glimpse,
    revision: u64,
    ttl_seconds: u32,
    text: Box<[u8]>,
    /// Where the lease stands in the text.
    lease: Range<usize>,
}

impl Default for Profiles {
    fn default() -> Self {
        let pairs = std::iter::repeat_with(Default::default).take(PAIRS).collect();
        Self { pairs, hasher: RandomState::new() }
    }
}

impl Profiles {
    /// The answer for this agent as it is now, and its revision, if one is kept.
    pub(crate) fn answer(&self, id: &AgentId, glimpse: Glimpse) -> Option<(Vec<u8>, u64)> {
        self.pair_of(id).iter().find_map(|place| {
            let kept = place.load();
            let kept = kept.as_ref().filter(|kept| kept.glimpse.shows_the_same_as(&glimpse))?;
            Some((kept.with_lease_of(glimpse), kept.revision))
        })
    }

    /// Writes the answer for an agent, and keeps it. The glimpse was taken before the profile was read.
    pub(crate) fn write(&self, glimpse: Option<Glimpse>, profile: &engine::Profile) -> Vec<u8> {
        let shown = Profile::from(profile);
        let text = to_json(&shown);
        if let Some(glimpse) = glimpse.filter(|_| text.len() <= LONGEST) {
            self.keep(Kept {
                agent_id: profile.agent.agent_id.clone(),
                glimpse,
                revision: profile.agent.revision,
                ttl_seconds: profile.agent.ttl.seconds(),
                lease: shown.lease_within(&text),
                text: text.as_slice().into(),
            });
        }
        text
    }

    fn keep(&self, kept: Kept) {
        let [last, before] = self.pair_of(&kept.agent_id);
        let is_another = last.load().as_ref().is_some_and(|last| last.agent_id != kept.agent_id);
        let replaced = last.swap(Some(Arc::new(kept)));
        if is_another {
            before.store(replaced);
        }
    }

    fn pair_of(&self, id: &AgentId) -> &[ArcSwapOption<Kept>; 2] {
        &self.pairs[self.hasher.hash_one(id) as usize % PAIRS]
    }
}

impl Kept {
    fn with_lease_of(&self, glimpse: Glimpse) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.text.len() + LEASE);
        text.extend_from_slice(&self.text[..self.lease.start]);
        write_json(&mut text, &Lease::of(self.ttl_seconds, glimpse.expires_at, glimpse.lease));
        text.extend_from_slice(&self.text[self.lease.end..]);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::domain::{AgentId, Timestamp, Weight};
    use crate::engine::{Engine, Location, Options, Precondition};
    use crate::http::dto::agents::{PatchBody, RegistrationBody};
    use crate::http::json::parse_object;

    /// Microseconds since it was made, turned by hand.
    #[derive(Debug, Default)]
    struct Turned(AtomicU64);

    impl Clock for Turned {
        fn now(&self) -> Timestamp {
            Timestamp::parse("2026-11-22T23:50:31Z").unwrap().after(self.monotonic())
        }

        fn monotonic(&self) -> Duration {
            Duration::from_micros(self.0.load(Ordering::SeqCst))
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_what_would_be_written_anew() {
        let clock = Arc::new(Turned::default());
        let options = Options { clock: clock.clone(), ..Options::new(Location::Memory) };
        let engine = Engine::open(options).unwrap();
        let profiles = Profiles::default();
        let id = AgentId::from_stored("thon");
        // Whether it was kept, while it was always what the store says.
        let look = || {
            let glimpse = engine.glimpse(&id).expect("it is there");
            let kept = profiles.answer(&id, glimpse);
            let profile = engine.agent(&id).expect("it is there");
            let anew = profiles.write(Some(glimpse), &profile);
            assert_eq!(anew, to_json(&Profile::from(&profile)));
            kept.inspect(|kept| assert_eq!(*kept, (anew, profile.agent.revision))).is_some()
        };
        let body = br#"{"agent_id":"thon","name":",\"origin\":{","capabilities":["sql"],"cost_per_task":1.5,
            "metadata":{"lease":{"ttl_seconds":10},"origin":{}},"ttl_seconds":10}"#;
        let registration = parse_object::<RegistrationBody>(body).unwrap().registration().unwrap();
        engine.register(registration, None).await.unwrap();
        assert!(!look() && look());

        clock.0.fetch_add(3_000_000, Ordering::SeqCst);
        let renewed = engine.heartbeat(&id).await.unwrap();
        assert!(look(), "only the lease was renewed");
        assert_eq!(engine.glimpse(&id).unwrap().expires_at, renewed);

        engine.observe_outcome(id.clone(), true, Weight::default(), None).await.unwrap();
        assert!(!look() && look());
        let patch = parse_object::<PatchBody>(br#"{"metadata":{}}"#).unwrap().patch().unwrap();
        engine.update(id.clone(), patch, Precondition::None).await.unwrap();
        assert!(!look() && look());

        clock.0.fetch_add(20_000_000, Ordering::SeqCst);
        look();
        let expired = profiles.answer(&id, engine.glimpse(&id).unwrap()).unwrap().0;
        assert!(String::from_utf8(expired).unwrap().contains(r#""state":"expired""#));
        engine.unregister(id.clone(), Precondition::None).await.unwrap();
        assert!(engine.glimpse(&id).is_none());
    }

    #[tokio::test]
    async fn an_agent_that_changes_has_one_place_and_a_long_answer_none() {
        let engine = Engine::open(Options::new(Location::Memory)).unwrap();
        let profiles = Profiles::default();
        let count = || profiles.pairs.iter().flatten().filter(|place| place.load().is_some()).count();
        let look = async |id: &str, metadata: &str| {
            let body = format!(
                r#"{{"agent_id":"{id}","name":"x","capabilities":[],"cost_per_task":1,"metadata":{{"x":"{metadata}"}}}}"#
            );
            let registration = parse_object::<RegistrationBody>(body.as_bytes()).unwrap().registration().unwrap();
            engine.replace(registration, Precondition::None).await.unwrap();
            let id = AgentId::from_stored(id);
            profiles.write(engine.glimpse(&id), &engine.agent(&id).unwrap());
        };
        for change in 0..20 {
            look("busy", &change.to_string()).await;
        }
        assert_eq!(count(), 1);
        look("long", &"x".repeat(LONGEST)).await;
        assert_eq!(count(), 1);
        engine.close();
        assert!(engine.glimpse(&AgentId::from_stored("busy")).is_none(), "what cannot be read is not shown");
    }
}
