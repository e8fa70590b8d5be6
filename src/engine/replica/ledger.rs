//! The ledger towards other nodes: own events and copies of others' out, others' events in.

use std::collections::BTreeMap;

use crate::domain::event::FactsHash;
use crate::domain::sink::TRANSACTION_ID_CONFLICT;
use crate::domain::{AgentId, CopyNumber, EventBody, LedgerEntry, LogPosition, NodeId, PostgresState, TransactionId};
use crate::engine::command::{Command, Effect, Session, Stop};
use crate::engine::{Engine, Error, Pending};
use crate::store::{Merged, Portion};

/// What taking in events of other nodes came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Absorbed {
    /// Events that were not held before.
    pub new_events: usize,
    /// Of these, those that wait for the `recorded` event of their transaction.
    pub held: usize,
    /// Of these, those whose facts are not their transaction's.
    pub conflicts: usize,
    /// Transactions that look different now, each once.
    pub touched: Vec<TransactionId>,
    /// Copies up to this number are known to be in PostgreSQL, as [`PostgresState::acked_copies`] says from here on.
    pub acked_copies: u64,
    /// The cursors were of an earlier id of this node, and were not written; see
    /// [`Outdated`](super::Saved::Outdated).
    pub outdated: bool,
}

/// An agent whose transactions this node follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerAgent {
    /// Which.
    pub agent_id: AgentId,
    /// Whether its history has been read in full from PostgreSQL.
    pub covered: bool,
}

impl Engine {
    /// The end of this node's ledger log.
    pub fn log_position(&self) -> LogPosition {
        self.core().view().log
    }

    /// Own events after `seq`, in order: at most `max_events`, ending with the one that brings them to `max_bytes`.
    pub fn log_after(&self, seq: u64, max_events: usize, max_bytes: usize) -> Result<Vec<LedgerEntry>, Error> {
        Ok(self.core().snapshot()?.log_after(seq, Portion { max_events, max_bytes })?)
    }

    /// Copies of other nodes' events after `number`, in the order in which they came; bounded like
    /// [`log_after`](Self::log_after).
    pub fn copies_after(
        &self,
        number: CopyNumber,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Vec<(CopyNumber, LedgerEntry)>, Error> {
        Ok(self.core().snapshot()?.copies_after(number, Portion { max_events, max_bytes })?)
    }

    /// Takes in events from PostgreSQL, whoever wrote them, and the cursors that go with them, in one durable commit.
    /// What is held already is passed over. An event whose facts do not hash to what it says, or that is larger
    /// than a record may be, is left out and counted.
    ///
    /// Of `state` everything is stored but `acked_copies`: that stays as it is stored, and follows the new copies where it
    /// was complete, since they came from PostgreSQL. It goes with the id of this node that it is for, as in
    /// [`save_postgres`](Self::save_postgres). Without a state the events came from elsewhere and have yet to be offered
    /// to it.
    pub fn absorb(&self, entries: Vec<LedgerEntry>, cursors: Option<(NodeId, PostgresState)>) -> Pending<Absorbed> {
        self.submit(Absorb { entries, cursors })
    }

    /// The agents whose transactions this node follows: those registered here; and while transactions of them are held,
    /// those that ever were, and those that it was told to [`follow`](Self::follow).
    pub fn ledger_agents(&self) -> Result<Vec<LedgerAgent>, Error> {
        let agents = self.core().snapshot()?.ledger_agents()?;
        Ok(agents.into_iter().map(|(agent_id, covered)| LedgerAgent { agent_id, covered }).collect())
    }

    /// The transactions of these agents are followed from here on, wherever the agents live, for as long as any of theirs
    /// are held.
    pub fn follow(&self, ids: Vec<AgentId>) -> Pending<()> {
        self.submit(Follow(ids))
    }

    /// The history of these agents has been read in full from PostgreSQL. Forgotten when
    /// [`save_postgres`](Self::save_postgres) says `restarted`.
    pub fn cover(&self, ids: Vec<AgentId>) -> Pending<()> {
        self.submit(Cover(ids))
    }

    /// PostgreSQL holds this id with these facts, so they stay. If they are not those shown here, they are from the
    /// moment their `recorded` event is held; until then what is shown does not change.
    pub fn central_row(&self, id: TransactionId, facts: FactsHash) -> Pending<()> {
        self.submit(CentralRow { id, facts })
    }

    /// The hash of the chain up to an own event; all zeros for 0, `None` beyond the end.
    pub fn log_hash(&self, seq: u64) -> Result<Option<[u8; 32]>, Error> {
        Ok(self.core().snapshot()?.log_hash(seq)?)
    }
}

struct Absorb {
    entries: Vec<LedgerEntry>,
    cursors: Option<(NodeId, PostgresState)>,
}

impl Command for Absorb {
    type Output = Absorbed;

    fn is_bookkeeping(&self) -> bool {
        self.entries.is_empty()
    }

    fn run(self, session: &mut Session<'_, '_>) -> Result<Absorbed, Stop> {
        let copies_before = session.batch.copies();
        let mut absorbed = Absorbed::default();
        let mut by_transaction: BTreeMap<TransactionId, Vec<LedgerEntry>> = BTreeMap::new();
        for entry in self.entries {
            let (event_id, node_id) = (entry.event.event_id, entry.event.node_id);
            let flaw = if !is_sound(&entry) {
                "a ledger event does not hold the facts that it names; left out"
            } else if !session.batch.can_hold(&entry) {
                "a ledger event is larger than a record may be; left out"
            } else {
                by_transaction.entry(entry.event.transaction_id.clone()).or_default().push(entry);
                continue;
            };
            tracing::warn!(%event_id, %node_id, "{flaw}");
            session.after_commit(Effect::Conflicted { reason: "malformed", times: 1 });
        }
        for (id, entries) in by_transaction {
            let merged = merge(&id, entries, session)?;
            absorbed.new_events += merged.new_events;
            absorbed.held += merged.held;
            absorbed.conflicts += merged.conflicts;
            if merged.before != merged.after {
                absorbed.touched.push(id);
            }
        }
        let stored = session.batch.postgres_state()?;
        absorbed.acked_copies = stored.acked_copies;
        let node_id = session.batch.node_id();
        absorbed.outdated = self.cursors.as_ref().is_some_and(|(of, _)| *of != node_id);
        if let Some((_, state)) = self.cursors.filter(|(of, _)| *of == node_id) {
            if stored.acked_copies == copies_before {
                absorbed.acked_copies = session.batch.copies();
            }
            let state = PostgresState { acked_copies: absorbed.acked_copies, ..state };
            if state != stored {
                session.batch.put_postgres_state(&state)?;
            }
        }
        Ok(absorbed)
    }
}

fn is_sound(entry: &LedgerEntry) -> bool {
    match &entry.event.body {
        EventBody::Recorded(facts) => facts.hash() == entry.event.facts,
        _ => true,
    }
}

/// Merges events into their transaction, and says what follows from it outside the store. Nothing of it counts as decided
/// here.
pub fn merge(id: &TransactionId, entries: Vec<LedgerEntry>, session: &mut Session<'_, '_>) -> Result<Merged, Stop> {
    let merged = session.batch.merge(id, entries)?;
    let filed = |fold: &crate::domain::Fold| {
        (fold.facts.provider_agent.clone(), fold.facts.capability.clone(), fold.created_at)
    };
    let (before, after) = (merged.before.as_ref().map(filed), merged.after.as_ref().map(filed));
    if merged.after.is_some() && before != after {
        for (place, counts) in [(before, false), (after, true)] {
            if let Some((provider, capability, at)) = place {
                session.after_commit(Effect::LoadMoved { provider, capability, at, counts });
            }
        }
    }
    let (was, is) =
        (merged.before.as_ref().and_then(|fold| fold.conflict), merged.after.as_ref().and_then(|fold| fold.conflict));
    if let Some(conflict) = is.filter(|_| was != is) {
        tracing::warn!(transaction_id = %id, conflict = conflict.as_str(), "two nodes' decisions disagree; it is disputed");
        session.after_commit(Effect::Conflicted { reason: conflict.as_str(), times: 1 });
    }
    if merged.conflicts_after > merged.conflicts_before {
        let times = merged.conflicts_after - merged.conflicts_before;
        tracing::warn!(transaction_id = %id, events = times, "events claim other facts for a transaction's id");
        session.after_commit(Effect::Conflicted { reason: TRANSACTION_ID_CONFLICT, times });
    }
    Ok(merged)
}

struct Cover(Vec<AgentId>);

impl Command for Cover {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        Ok(session.batch.cover(&self.0)?)
    }
}

struct Follow(Vec<AgentId>);

impl Command for Follow {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        self.0.iter().try_for_each(|id| Ok(session.batch.follow(id)?))
    }
}

struct CentralRow {
    id: TransactionId,
    facts: FactsHash,
}

impl Command for CentralRow {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        session.batch.put_central_facts(&self.id, &self.facts)?;
        merge(&self.id, Vec::new(), session).map(drop)
    }
}
