//! The connection limit: who holds a slot, and which idle connection gives way when there are none left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Notify;

/// Descriptors that are not for connections: the store, the sockets, the other listener, the sinks.
const RESERVED_DESCRIPTORS: u64 = 128;
const MOST_CONNECTIONS: u64 = 4_096;
const FEWEST_CONNECTIONS: u64 = 16;

/// How many connections the descriptors allow; raises the soft limit to the hard one first.
pub(super) fn allowed_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let mut descriptors = limit.current;
    if limit.current != limit.maximum {
        match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
            Ok(()) => descriptors = limit.maximum,
            Err(error) => tracing::debug!(%error, "the limit on descriptors stays as it is"),
        }
    }
    let free = descriptors.unwrap_or(u64::MAX).saturating_sub(RESERVED_DESCRIPTORS);
    usize::try_from(free.clamp(FEWEST_CONNECTIONS, MOST_CONNECTIONS)).unwrap_or(usize::MAX)
}

/// All slots.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    /// Locked when a connection comes or goes, never by a request.
    taken: Mutex<Taken>,
    started: Instant,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    holders: HashMap<u64, Arc<Holder>>,
}

#[derive(Debug)]
struct Holder {
    /// Since when nothing is going on, in milliseconds after the start; 0 while something is.
    idle_since: AtomicU64,
    evicted: Notify,
}

/// One connection's slot; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    number: u64,
    holder: Arc<Holder>,
}

impl Slots {
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, taken: Mutex::default(), started: Instant::now() }))
    }

    /// A slot, if need be that of the connection that has been idle longest; `None` when none is idle.
    pub(super) fn take(&self) -> Option<Slot> {
        let mut taken = self.lock();
        if taken.holders.len() >= self.0.limit && !evict(&mut taken) {
            return None;
        }
        let number = taken.next;
        taken.next += 1;
        let holder = Arc::new(Holder { idle_since: AtomicU64::new(self.now()), evicted: Notify::new() });
        taken.holders.insert(number, Arc::clone(&holder));
        Some(Slot { slots: self.clone(), number, holder })
    }

    /// Tells the connection that has been idle longest to go.
    pub(super) fn evict_oldest_idle(&self) -> bool {
        evict(&mut self.lock())
    }

    /// Never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn evict(taken: &mut Taken) -> bool {
    let oldest = taken
        .holders
        .iter()
        .map(|(number, holder)| (holder.idle_since.load(Ordering::Relaxed), *number))
        .filter(|(since, _)| *since > 0)
        .min();
    let Some((_, number)) = oldest else { return false };
    if let Some(holder) = taken.holders.remove(&number) {
        holder.evicted.notify_one();
    }
    true
}

impl Slot {
    pub(super) fn set_busy(&self) {
        self.holder.idle_since.store(0, Ordering::Relaxed);
    }

    pub(super) fn set_idle(&self) {
        self.holder.idle_since.store(self.slots.now(), Ordering::Relaxed);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.holder.idle_since.load(Ordering::Relaxed) > 0
    }

    /// Waits until this connection has to go.
    pub(super) async fn evicted(&self) {
        self.holder.evicted.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().holders.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_idle_connection_gives_way_and_busy_ones_do_not() {
        let slots = Slots::new(2);
        let busy = slots.take().unwrap();
        busy.set_busy();
        let idle = slots.take().unwrap();
        let third = slots.take().unwrap();
        assert!(idle.evicted().now_or_never().is_some());
        assert!(busy.evicted().now_or_never().is_none());
        third.set_busy();
        assert!(slots.take().is_none());
        drop(busy);
        assert!(slots.take().is_some());
        drop(idle);
        third.set_idle();
        assert!(third.is_idle());
    }

    #[test]
    fn some_connections_are_always_allowed() {
        assert!((16..=4_096).contains(&allowed_connections()));
    }
}
