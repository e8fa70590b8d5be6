//! Towards PostgreSQL: own events, then copies of others' events, then what was set aside.
//!
//! Somebody else's locks, deadlocks and time-outs make batches smaller. An entry that stays in the way is set aside, as is
//! one that is refused for its content; [`parked`](super::parked) tries them again.

use std::collections::HashMap;
use std::time::Duration;

use super::checks::Checks;
use super::errors::{Kind, Trouble};
use super::link::Link;
use super::merge::{Conflict, Offer, Refused};
use super::parked::ParkedRun;
use super::push::{MAX_BYTES, MAX_EVENTS, Push, Pushed, Window, waiting_for_locks};
use super::session::Session;
use super::worker::Postgres;
use crate::domain::{AgentId, CopyNumber, LogPosition, NodeId, ParkedEntry, ParkedKey, PostgresState, Sink};

/// How often an entry may stand in the way before it is set aside.
const STRIKES: u32 = 3;

/// What was learned about pushing, kept across connections.
pub struct Drain {
    /// The most events of the next batch.
    limit: usize,
    /// The last batch had to be taken apart.
    in_pieces: bool,
    pub(super) window: Window,
    checks: Checks,
    strikes: HashMap<ParkedKey, u32>,
    pub(super) parked: ParkedRun,
}

/// What came of pushing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Drained {
    pub pushed: u64,
    pub more: bool,
}

impl Drain {
    pub fn new() -> Self {
        Self {
            limit: MAX_EVENTS,
            in_pieces: false,
            window: Window::default(),
            checks: Checks::default(),
            strikes: HashMap::new(),
            parked: ParkedRun::through_all(),
        }
    }

    /// Tries everything that was set aside again, at once.
    pub fn retry_all(&mut self) {
        self.parked = ParkedRun::through_all();
        // Whoever asks has changed something, or it is another server.
        self.checks = Checks::default();
    }

    /// How long until what was set aside is to be tried again.
    pub fn until_retry(&self) -> Duration {
        self.parked.until_due()
    }

    /// Counts what was in the way; those offers that were so too often are set aside.
    fn strike(&mut self, keys: &[ParkedKey]) {
        for key in keys {
            *self.strikes.entry(key.clone()).or_default() += 1;
        }
    }

    fn is_struck_out(&self, key: &ParkedKey) -> bool {
        self.strikes.get(key).is_some_and(|strikes| *strikes >= STRIKES)
    }
}

/// A batch that is to be pushed, and where it leaves the cursors.
struct Batch {
    offers: Vec<Offer>,
    to: LogPosition,
    /// The cursors once it is there.
    after: PostgresState,
}

impl Postgres {
    /// Pushes one batch of what comes first.
    pub(super) async fn push_some(&mut self, link: &mut Link) -> Result<Drained, Trouble> {
        let fence = link.fence.expect("our place was taken before");
        let (node_id, state) = self.cursors()?;
        if let Some(batch) = self.next_batch(&state, fence)? {
            return self.push_batch(link, node_id, fence, batch).await;
        }
        if state.restarted {
            // All was offered again; what was refused before may have got through.
            self.save(node_id, PostgresState { restarted: false, ..state }).await?;
            self.drain.retry_all();
            return Ok(Drained { pushed: 0, more: true });
        }
        self.push_parked(link, fence).await
    }

    /// The next of our own events, or, when there are none, of copies.
    fn next_batch(&self, state: &PostgresState, fence: LogPosition) -> Result<Option<Batch>, Trouble> {
        let mut own = self.engine.log_after(state.acked_seq, self.drain.limit, MAX_BYTES)?;
        if state.acked_seq < fence.seq {
            // What is behind the fence was there once: it is offered again without moving the fence.
            own.retain(|entry| entry.node_seq <= fence.seq);
        }
        if let Some(last) = own.last() {
            let reached = LogPosition { seq: last.node_seq, hash: last.hash.expect("own events are chained") };
            let after = PostgresState { acked_seq: reached.seq, fence_hash: reached.hash, ..state.clone() };
            let to = if reached.seq > fence.seq { reached } else { fence };
            let offers = own.into_iter().map(|entry| Offer { key: ParkedKey::Seq(entry.node_seq), entry }).collect();
            return Ok(Some(Batch { offers, to, after }));
        }
        let copies = self.engine.copies_after(CopyNumber(state.acked_copies), self.drain.limit, MAX_BYTES)?;
        let Some((CopyNumber(last), _)) = copies.last() else { return Ok(None) };
        let after = PostgresState { acked_copies: *last, ..state.clone() };
        let offers =
            copies.into_iter().map(|(CopyNumber(number), entry)| Offer { key: ParkedKey::Copy(number), entry });
        Ok(Some(Batch { offers: offers.collect(), to: fence, after }))
    }

    async fn push_batch(
        &mut self,
        link: &mut Link,
        node_id: NodeId,
        fence: LogPosition,
        batch: Batch,
    ) -> Result<Drained, Trouble> {
        let Batch { mut offers, to, after } = batch;
        let all = offers.len();
        let mut refused = Vec::new();
        offers.retain(|offer| {
            let struck_out = self.drain.is_struck_out(&offer.key);
            if struck_out {
                refused.push(in_the_way(&offer.key));
            }
            !struck_out
        });
        let session = link.session().await?;
        let pushed = match self.push_offers(session, &offers, fence, to).await {
            Err(trouble) if trouble.kind == Kind::Contention => {
                self.yield_to(session, &offers, &trouble).await?;
                return Ok(Drained { pushed: 0, more: true });
            }
            other => other?,
        };
        refused.extend(pushed.refused);
        self.prepare_and_commit(session, &refused, pushed.shared).await?;
        link.fence = Some(to);
        self.follow.wrote(pushed.xid);
        self.save(node_id, after).await?;
        self.ring_for(offers.iter().map(|offer| &offer.entry));
        self.report_conflicts(pushed.conflicts).await?;
        self.drain.limit = (self.drain.limit * 2).min(MAX_EVENTS);
        self.drain.in_pieces = pushed.in_pieces;
        self.drain.strikes.clear();
        Ok(Drained { pushed: (all - refused.len()) as u64, more: true })
    }

    /// Everything of a push but its commit.
    pub(super) async fn push_offers(
        &mut self,
        session: &mut Session,
        offers: &[Offer],
        from: LogPosition,
        to: LogPosition,
    ) -> Result<Pushed, Trouble> {
        let engine = self.engine.clone();
        let recall = move |id: &crate::domain::TransactionId| Ok(engine.recorded(id)?);
        let push = Push {
            node_id: self.engine.identity().node_id,
            from,
            to,
            offers,
            recall: &recall,
            now: self.clock.now(),
            in_pieces: self.drain.in_pieces,
        };
        push.run(session, &mut self.drain.window, &mut self.drain.checks).await
    }

    /// What was refused is set aside first, and those to follow are followed: were it the other way round, a crash in
    /// between would lose it.
    async fn prepare_and_commit(
        &mut self,
        session: &mut Session,
        refused: &[Refused],
        shared: Vec<AgentId>,
    ) -> Result<(), Trouble> {
        self.follow_payers(session, shared).await?;
        if !refused.is_empty() {
            let now = self.clock.now();
            let entries: Vec<_> = refused
                .iter()
                .map(|refused| ParkedEntry {
                    key: refused.key.clone(),
                    reason: refused.reason.clone(),
                    code: refused.code.clone(),
                    parked_at: now,
                    attempts: 1,
                })
                .collect();
            tracing::warn!(
                sink = Sink::Postgres.as_str(),
                entries = entries.len(),
                first = entries[0].reason,
                "entries are refused and set aside"
            );
            if let Err(error) = self.engine.park(Sink::Postgres, entries).await {
                session.rollback().await?;
                return Err(error.into());
            }
        }
        session.commit().await
    }

    /// Follows the payers of transactions that another node recorded before this one.
    pub(super) async fn follow_payers(&mut self, session: &Session, shared: Vec<AgentId>) -> Result<(), Trouble> {
        if !shared.is_empty()
            && let Err(error) = self.engine.follow(shared).await
        {
            session.rollback().await?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Somebody is in the way of these offers: try less at once, and find out which of them are concerned.
    async fn yield_to(&mut self, session: &mut Session, offers: &[Offer], trouble: &Trouble) -> Result<(), Trouble> {
        tracing::debug!(sink = Sink::Postgres.as_str(), offers = offers.len(), reason = %trouble, "somebody is in the way");
        if let [only] = offers {
            self.drain.strike(std::slice::from_ref(&only.key));
            return Ok(());
        }
        let waiting = waiting_for_locks(session, offers).await?;
        if waiting.is_empty() {
            self.drain.limit = (offers.len() / 2).max(1);
        } else {
            self.drain.strike(&waiting);
        }
        Ok(())
    }

    /// Ids that are taken: what is central of them is taken in, and shown from then on.
    pub(super) async fn report_conflicts(&mut self, conflicts: Vec<Conflict>) -> Result<(), Trouble> {
        for Conflict { transaction_id, facts, central } in conflicts {
            tracing::error!(%transaction_id, "the id is taken by another transaction in PostgreSQL, which stays");
            let (node_id, state) = self.cursors()?;
            self.absorb(central, node_id, state).await?;
            self.engine.central_row(transaction_id, facts).await?;
        }
        Ok(())
    }
}

/// An offer that somebody is in the way of, as one that is refused for the time being.
pub(super) fn in_the_way(key: &ParkedKey) -> Refused {
    Refused {
        key: key.clone(),
        code: "55P03".to_owned(),
        constraint: None,
        reason: "another session keeps its row locked, or is in the way in some other manner".to_owned(),
    }
}
