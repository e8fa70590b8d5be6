//! Leases: how long agents live without a sign of life.
//!
//! A lease is a deadline in monotonic time, so a wall clock that jumps expires nobody and revives nobody. Heartbeats
//! move it without the writer and without a lock; only the writer ends it, by exchanging the very deadline that it saw
//! pass, so a heartbeat that came just before is never overlooked.
//!
//! The lease of a remote agent is confirmed from outside, up to a time that its node renews. What lies beyond it is
//! *grace*: the agent is stale then, and lives on until its node can be asked.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{AgentId, Timestamp, Ttl};

const ENDED: u64 = 0;
/// How long a remote lease that ran out is waited for, since its end is asked about before it is believed.
const ASKING: Duration = Duration::from_secs(5);

/// One agent's lease, shared by all versions of its entry in the directory.
#[derive(Debug)]
pub struct Lease {
    /// Microseconds of monotonic time, or [`ENDED`].
    deadline: AtomicU64,
    /// The same moment by the wall clock as it was when the lease was last renewed; for people.
    expires_at: AtomicI64,
    /// Of a remote agent's: until when it is confirmed, at or before the deadline. Unused for a local one.
    confirmed_until: AtomicU64,
    /// Of a remote agent's: whether it cannot be confirmed now.
    unconfirmed: AtomicBool,
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The wall clock.
    pub now: Timestamp,
    /// Monotonic time.
    pub monotonic: Duration,
}

/// The lease had ended: only the writer can begin a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;

impl Lease {
    /// A lease that begins now.
    pub fn begin(moment: Moment, ttl: Ttl) -> Self {
        Self::until(deadline(moment.monotonic, ttl.duration()), moment.now.after(ttl.duration()))
    }

    /// A remote agent's lease that runs for `remaining` yet.
    pub fn remote(moment: Moment, remaining: Duration) -> Self {
        let lease = Self::until(deadline(moment.monotonic, remaining + ASKING), moment.now.after(remaining));
        lease.confirmed_until.store(deadline(moment.monotonic, remaining), Ordering::Release);
        lease
    }

    /// A remote agent's lease of which only its length is known: stale for one of it.
    pub fn unconfirmed(moment: Moment, ttl: Ttl) -> Self {
        let lease = Self::remote(moment, ttl.duration());
        lease.unconfirmed.store(true, Ordering::Release);
        lease
    }

    fn until(deadline: u64, expires_at: Timestamp) -> Self {
        Self {
            deadline: AtomicU64::new(deadline),
            expires_at: AtomicI64::new(expires_at.as_micros()),
            confirmed_until: AtomicU64::new(deadline),
            unconfirmed: AtomicBool::new(false),
        }
    }

    /// A lease that ended at `expired_at`.
    pub fn ended(expired_at: Timestamp) -> Self {
        Self::until(ENDED, expired_at)
    }

    /// Renews; when it expires now.
    pub fn renew(&self, moment: Moment, ttl: Ttl) -> Result<Timestamp, Ended> {
        let next = deadline(moment.monotonic, ttl.duration());
        self.set_deadline(|current| current.max(next))?;
        let expires_at = moment.now.after(ttl.duration());
        self.expires_at.store(expires_at.as_micros(), Ordering::Release);
        Ok(expires_at)
    }

    /// A local agent's, for so long at a time: when it was last renewed, in monotonic time.
    pub fn renewed_at(&self, ttl: Ttl) -> Duration {
        Duration::from_micros(self.deadline.load(Ordering::Acquire)).saturating_sub(ttl.duration())
    }

    /// A remote agent's: confirmed for `remaining` from now; whether it ends earlier for that. Nothing happens to a lease
    /// that has ended.
    pub fn confirm(&self, moment: Moment, remaining: Duration) -> bool {
        let next = deadline(moment.monotonic, remaining + ASKING);
        let Ok(previous) = self.set_deadline(|_| next) else { return false };
        self.confirmed_until.store(deadline(moment.monotonic, remaining), Ordering::Release);
        self.expires_at.store(moment.now.after(remaining).as_micros(), Ordering::Release);
        self.unconfirmed.store(false, Ordering::Release);
        next < previous
    }

    /// A remote agent's: nobody can confirm it now; it lives on for `grace` beyond the time it is confirmed until.
    pub fn hold(&self, grace: Duration) {
        let confirmed_until = Duration::from_micros(self.confirmed_until.load(Ordering::Acquire));
        // One that has ended has nothing to hold; the same below.
        self.set_deadline(|current| current.max(deadline(confirmed_until, grace))).ok();
        self.unconfirmed.store(true, Ordering::Release);
    }

    /// A remote agent's: it was not found where it should be, and is stale for `grace` from now.
    pub fn doubt(&self, moment: Moment, grace: Duration) {
        self.set_deadline(|_| deadline(moment.monotonic, grace)).ok();
        self.unconfirmed.store(true, Ordering::Release);
    }

    /// A remote agent's that was held: it can be confirmed again, and lives on for `grace` at most until it is.
    pub fn release(&self, moment: Moment, grace: Duration) {
        if self.unconfirmed.load(Ordering::Acquire) {
            self.set_deadline(|current| current.min(deadline(moment.monotonic, grace))).ok();
        }
    }

    /// The deadline before.
    fn set_deadline(&self, next: impl Fn(u64) -> u64) -> Result<u64, Ended> {
        let set = |current| (current != ENDED).then(|| next(current));
        self.deadline.fetch_update(Ordering::AcqRel, Ordering::Acquire, set).map_err(|_| Ended)
    }

    /// A remote agent's: whether it runs without being confirmed.
    pub fn is_stale(&self, monotonic: Duration) -> bool {
        self.unconfirmed.load(Ordering::Acquire) || self.confirmed_until.load(Ordering::Acquire) <= micros(monotonic)
    }

    /// How long it is confirmed for yet: for a local agent how long it runs. Zero once it has ended.
    pub fn remaining(&self, monotonic: Duration, local: bool) -> Duration {
        let end = self.deadline.load(Ordering::Acquire);
        let end = if local { end } else { end.min(self.confirmed_until.load(Ordering::Acquire)) };
        Duration::from_micros(end.saturating_sub(micros(monotonic)))
    }

    /// Whether it runs.
    pub fn is_live(&self, monotonic: Duration) -> bool {
        self.deadline.load(Ordering::Acquire) > micros(monotonic)
    }

    /// When it expires or expired, by the wall clock.
    pub fn expires_at(&self) -> Timestamp {
        Timestamp::from_micros(self.expires_at.load(Ordering::Acquire))
    }

    /// Ends it if its time has passed. For the writer only.
    fn end_if_due(&self, monotonic: Duration) -> Due {
        let seen = self.deadline.load(Ordering::Acquire);
        if seen > micros(monotonic) {
            return Due::NotBefore(seen);
        }
        match self.deadline.compare_exchange(seen, ENDED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Due::Ended,
            Err(renewed) => Due::NotBefore(renewed),
        }
    }

    fn deadline(&self) -> u64 {
        self.deadline.load(Ordering::Acquire)
    }
}

enum Due {
    Ended,
    NotBefore(u64),
}

fn deadline(from: Duration, duration: Duration) -> u64 {
    micros(from.saturating_add(duration)).max(ENDED + 1)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Which lease to look at next. One entry for each agent, at or before its deadline; a heartbeat leaves it alone, and
/// when its time comes it moves to the deadline that it finds then.
#[derive(Debug, Default)]
pub struct LeaseQueue {
    due: BTreeSet<(u64, AgentId)>,
    queued: HashMap<AgentId, u64>,
}

impl LeaseQueue {
    /// Watches an agent's new lease.
    pub fn watch(&mut self, id: &AgentId, lease: &Lease) {
        let deadline = lease.deadline();
        match self.queued.get(id) {
            Some(queued) if *queued <= deadline => {}
            _ => self.put(id, deadline),
        }
    }

    /// Stops watching an agent.
    pub fn forget(&mut self, id: &AgentId) {
        if let Some(queued) = self.queued.remove(id) {
            self.due.remove(&(queued, id.clone()));
        }
    }

    /// How long until the next look.
    pub fn until_next(&self, monotonic: Duration) -> Option<Duration> {
        let (deadline, _) = self.due.first()?;
        Some(Duration::from_micros(deadline.saturating_sub(micros(monotonic))))
    }

    /// Ends at most `limit` leases whose time has passed; `lease_of` finds an agent's present lease.
    pub fn end_due<'a>(
        &mut self,
        monotonic: Duration,
        limit: usize,
        lease_of: impl Fn(&AgentId) -> Option<&'a Lease>,
    ) -> Vec<AgentId> {
        let mut ended = Vec::new();
        while ended.len() < limit && self.due.first().is_some_and(|(at, _)| *at <= micros(monotonic)) {
            let (_, id) = self.due.pop_first().expect("the first entry was just seen");
            self.queued.remove(&id);
            match lease_of(&id).map(|lease| lease.end_if_due(monotonic)) {
                Some(Due::Ended) => ended.push(id),
                Some(Due::NotBefore(deadline)) => self.put(&id, deadline),
                None => {}
            }
        }
        ended
    }

    fn put(&mut self, id: &AgentId, deadline: u64) {
        self.forget(id);
        self.queued.insert(id.clone(), deadline);
        self.due.insert((deadline, id.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(seconds: u64) -> Moment {
        Moment { now: Timestamp::from_micros(0), monotonic: Duration::from_secs(seconds) }
    }

    #[test]
    fn a_heartbeat_moves_the_deadline_and_the_queue_follows_when_it_looks() {
        let (id, ttl) = (AgentId::from_stored("a"), Ttl::parse(10).unwrap());
        let lease = Lease::begin(moment(0), ttl);
        let mut queue = LeaseQueue::default();
        queue.watch(&id, &lease);
        lease.renew(moment(8), ttl).unwrap();
        assert!(queue.end_due(Duration::from_secs(11), 10, |_| Some(&lease)).is_empty());
        assert_eq!(queue.until_next(Duration::from_secs(11)), Some(Duration::from_secs(7)));
        assert_eq!(queue.end_due(Duration::from_secs(18), 10, |_| Some(&lease)), [id]);
        assert_eq!(lease.renew(moment(18), ttl), Err(Ended));
        assert_eq!(queue.until_next(Duration::ZERO), None);
    }

    #[test]
    fn a_remote_lease_is_stale_beyond_what_is_confirmed_and_while_nobody_can_confirm_it() {
        let seconds = Duration::from_secs;
        let lease = Lease::remote(moment(0), seconds(10));
        assert!(lease.is_live(seconds(9)) && !lease.is_stale(seconds(9)));
        assert!(lease.is_live(seconds(12)) && lease.is_stale(seconds(12)), "its end is asked about first");
        assert_eq!((lease.remaining(seconds(4), false), lease.remaining(seconds(12), false)), (seconds(6), seconds(0)));
        assert!(!lease.is_live(seconds(16)));

        lease.hold(seconds(100));
        lease.hold(seconds(100));
        assert!(lease.is_stale(seconds(1)) && lease.is_live(seconds(109)) && !lease.is_live(seconds(110)));
        lease.release(moment(50), seconds(20));
        assert!(lease.is_stale(seconds(51)) && lease.is_live(seconds(69)) && !lease.is_live(seconds(70)));
        assert!(!lease.confirm(moment(60), seconds(30)));
        assert!(!lease.is_stale(seconds(89)) && lease.is_stale(seconds(91)));
        lease.release(moment(61), seconds(1));
        assert!(lease.is_live(seconds(89)), "what is confirmed needs no releasing");
        assert!(lease.confirm(moment(61), seconds(9)), "it ends earlier than it was watched for");
        lease.doubt(moment(70), seconds(5));
        assert!(lease.is_stale(seconds(71)) && !lease.is_live(seconds(75)));
    }

    #[test]
    fn a_shorter_lease_is_looked_at_earlier_and_a_forgotten_one_never() {
        let id = AgentId::from_stored("a");
        let mut queue = LeaseQueue::default();
        queue.watch(&id, &Lease::begin(moment(0), Ttl::parse(1_000).unwrap()));
        queue.watch(&id, &Lease::begin(moment(0), Ttl::parse(5).unwrap()));
        assert_eq!(queue.until_next(Duration::ZERO), Some(Duration::from_secs(5)));
        queue.forget(&id);
        assert_eq!(queue.until_next(Duration::ZERO), None);
    }
}
