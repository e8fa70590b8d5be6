//! Leases: how long agents live without a sign of life.
//!
//! A lease is a deadline in monotonic time, so a wall clock that jumps expires nobody and revives nobody. Heartbeats
//! move it without the writer and without a lock; only the writer ends it, by exchanging the very deadline that it saw
//! pass, so a heartbeat that came just before is never overlooked.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{AgentId, Timestamp, Ttl};

const ENDED: u64 = 0;

/// One agent's lease, shared by all versions of its entry in the directory.
#[derive(Debug)]
pub struct Lease {
    /// Microseconds of monotonic time, or [`ENDED`].
    deadline: AtomicU64,
    /// The same moment by the wall clock as it was when the lease was last renewed; for people.
    expires_at: AtomicI64,
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
        Self {
            deadline: AtomicU64::new(deadline(moment, ttl)),
            expires_at: AtomicI64::new(moment.now.after(ttl.duration()).as_micros()),
        }
    }

    /// A lease that ended at `expired_at`.
    pub fn ended(expired_at: Timestamp) -> Self {
        Self { deadline: AtomicU64::new(ENDED), expires_at: AtomicI64::new(expired_at.as_micros()) }
    }

    /// Renews; when it expires now.
    pub fn renew(&self, moment: Moment, ttl: Ttl) -> Result<Timestamp, Ended> {
        let next = deadline(moment, ttl);
        self.deadline
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |current| {
                (current != ENDED).then_some(current.max(next))
            })
            .map_err(|_| Ended)?;
        let expires_at = moment.now.after(ttl.duration());
        self.expires_at.store(expires_at.as_micros(), Ordering::Release);
        Ok(expires_at)
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

fn deadline(moment: Moment, ttl: Ttl) -> u64 {
    micros(moment.monotonic + ttl.duration()).max(ENDED + 1)
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
