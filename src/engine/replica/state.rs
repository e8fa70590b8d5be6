//! What replication keeps in the file for itself, how it is woken, and how a copied file becomes a node of its own.

use std::fmt;

use tokio::sync::watch;

use super::outcomes::split_observer;
use crate::domain::{Agent, Identity, NodeId, ParkedEntry, ParkedKey, PostgresState, RedisState, Sink};
use crate::engine::command::{Command, Session, Stop};
use crate::engine::{Engine, Error, Page, PageRequest, Pending, cursor};
use crate::store::Publish;

/// How far the store has come. Replication reads on when a mark moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommitMark {
    /// The newest own event.
    pub log_seq: u64,
    /// The newest change of a local agent.
    pub change_seq: u64,
    /// Rises with every observation of an agent's work.
    pub observation_seq: u64,
}

/// How it was found out that another file goes by this node's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkReason {
    /// PostgreSQL holds another log under it.
    Ledger,
    /// Redis holds newer agents under it, or the same versions with other content.
    Registry,
}

impl fmt::Display for ForkReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ledger => "PostgreSQL holds another ledger log under this node's id",
            Self::Registry => "Redis holds agents under this node's id that this file did not write",
        })
    }
}

/// What came of writing cursors down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Saved {
    /// They are stored.
    Yes,
    /// They are of an earlier id of this node, and were set back when it got its present one: nothing was written.
    Outdated,
}

impl Engine {
    /// Who this node is, and who it was before.
    pub fn identity(&self) -> Identity {
        Identity::clone(&self.core().view().identity)
    }

    /// Goes on as a new node, since another file goes by the id `known_as`, and answers with the new id. Where this node
    /// does not go by that id any more nothing is done: both sinks find a copy out at about the same time.
    ///
    /// The log keeps its chain, its numbers and its event ids; local agents stay here, but are told to others only once
    /// they show a sign of life; what was observed and is not acknowledged goes on under new observer ids. The cursors of
    /// both sinks begin anew: read them again. What is still being written of those of the earlier id is
    /// [`Outdated`](Saved::Outdated) from here on.
    pub fn fork(&self, known_as: NodeId, why: ForkReason) -> Pending<NodeId> {
        self.submit(Fork { known_as, why })
    }

    /// How far the store has come; changes after each durable commit that has brought something for a sink.
    pub fn commits(&self) -> watch::Receiver<CommitMark> {
        self.core().commits()
    }

    /// The cursors of PostgreSQL. Whoever means to write them later reads the node's id first: it says whose they are.
    pub fn postgres_state(&self) -> Result<PostgresState, Error> {
        Ok(self.core().snapshot()?.postgres_state()?)
    }

    /// Writes the cursors that PostgreSQL has for `node_id`, if this node still goes by it. `restarted` says that
    /// everybody's history has to be read again.
    pub fn save_postgres(&self, node_id: NodeId, state: PostgresState) -> Pending<Saved> {
        self.submit(SavePostgres { node_id, state })
    }

    /// The cursors of Redis; see [`postgres_state`](Self::postgres_state).
    pub fn redis_state(&self) -> Result<RedisState, Error> {
        Ok(self.core().snapshot()?.redis_state()?)
    }

    /// Writes the cursors that Redis has for `node_id`, if this node still goes by it.
    pub fn save_redis(&self, node_id: NodeId, state: RedisState) -> Pending<Saved> {
        self.submit(SaveRedis { node_id, state })
    }

    /// Sets entries aside that a sink refuses; those that are parked already are written anew.
    pub fn park(&self, sink: Sink, entries: Vec<ParkedEntry>) -> Pending<()> {
        self.submit(Park { sink, entries })
    }

    /// Takes entries back from where they were set aside.
    pub fn unpark(&self, sink: Sink, keys: Vec<ParkedKey>) -> Pending<()> {
        self.submit(Unpark { sink, keys })
    }

    /// A page of a sink's parked entries: own events, then copies, then agents, each in order.
    pub fn parked(&self, sink: Sink, page: PageRequest<'_>) -> Result<Page<ParkedEntry>, Error> {
        let PageRequest { limit, cursor } = page;
        let after = cursor.map(cursor::to_parked).transpose()?;
        let mut items = self.core().snapshot()?.parked(sink, after.as_ref(), limit.saturating_add(1))?;
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|entry| cursor::of_parked(&entry.key));
        Ok(Page { items, next_cursor })
    }
}

struct Fork {
    known_as: NodeId,
    why: ForkReason,
}

impl Command for Fork {
    type Output = NodeId;

    fn run(self, session: &mut Session<'_, '_>) -> Result<NodeId, Stop> {
        let before = session.batch.node_id();
        if before != self.known_as {
            return Ok(before);
        }
        let node_id = NodeId::mint(session.moment.now, session.random_bytes());
        let (local, observed) = session.batch.local_and_observed()?;
        for id in &local {
            let agent = session.require_agent(id)?;
            session.put_keeping_lease(&Agent { claimed: false, ..agent }, Publish::No)?;
        }
        for id in &observed {
            split_observer(id, session)?;
        }
        session.batch.rename_node(node_id)?;
        let PostgresState { system_identifier, .. } = session.batch.postgres_state()?;
        let restarted = PostgresState { system_identifier, restarted: true, ..PostgresState::default() };
        session.batch.put_postgres_state(&restarted)?;
        session.batch.uncover_all()?;
        let redis = session.batch.redis_state()?;
        session.batch.put_redis_state(&RedisState { acked_change_seq: 0, ..redis })?;
        tracing::warn!(%before, now = %node_id, agents = local.len(), "{}; this file goes on as a new node", self.why);
        Ok(node_id)
    }
}

struct SavePostgres {
    node_id: NodeId,
    state: PostgresState,
}

impl Command for SavePostgres {
    type Output = Saved;

    fn is_bookkeeping(&self) -> bool {
        true
    }

    fn run(self, session: &mut Session<'_, '_>) -> Result<Saved, Stop> {
        if session.batch.node_id() != self.node_id {
            return Ok(Saved::Outdated);
        }
        if self.state.restarted {
            session.batch.uncover_all()?;
        }
        session.batch.put_postgres_state(&self.state)?;
        Ok(Saved::Yes)
    }
}

struct SaveRedis {
    node_id: NodeId,
    state: RedisState,
}

impl Command for SaveRedis {
    type Output = Saved;

    fn is_bookkeeping(&self) -> bool {
        true
    }

    fn run(self, session: &mut Session<'_, '_>) -> Result<Saved, Stop> {
        if session.batch.node_id() != self.node_id {
            return Ok(Saved::Outdated);
        }
        session.batch.put_redis_state(&self.state)?;
        Ok(Saved::Yes)
    }
}

struct Park {
    sink: Sink,
    entries: Vec<ParkedEntry>,
}

impl Command for Park {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        self.entries.iter().try_for_each(|entry| Ok(session.batch.park(self.sink, entry)?))
    }
}

struct Unpark {
    sink: Sink,
    keys: Vec<ParkedKey>,
}

impl Command for Unpark {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        self.keys.iter().try_for_each(|key| Ok(session.batch.unpark(self.sink, key)?))
    }
}
