//! The central systems that a node replicates to, and what it remembers of each between two runs.

use std::fmt;

use super::ids::{AgentId, EventId};
use super::time::Timestamp;

/// A central system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sink {
    /// The registry's.
    Redis,
    /// The ledger's.
    Postgres,
}

impl Sink {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Redis, Self::Postgres];

    /// The name on the wire, in metrics and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sink| sink.as_str() == text)
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far this node and one PostgreSQL have told each other what they hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PostgresState {
    /// Own events up to this sequence number are there.
    pub acked_seq: u64,
    /// Copies of others' events up to this number are there.
    pub acked_copies: u64,
    /// The hash of the chain at `acked_seq`.
    pub fence_hash: [u8; 32],
    /// Which PostgreSQL the cursor belongs to.
    pub system_identifier: Option<String>,
    /// What was visible to the last complete read: a `pg_snapshot` as text.
    pub snapshot: Option<String>,
    /// A row whose absence says that PostgreSQL lost data.
    pub canary: Option<Canary>,
    /// The cursor began anew: whoever was read in full before must be again.
    pub restarted: bool,
}

/// The newest event seen in PostgreSQL, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canary {
    /// The event.
    pub event_id: EventId,
    /// The transaction that wrote it.
    pub xid: u64,
}

/// How far this node and one Redis have told each other what they hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RedisState {
    /// Agent changes up to this number are there.
    pub acked_change_seq: u64,
    /// Which data the cursors belong to.
    pub nonce: Option<String>,
    /// Which run of the server.
    pub run_id: Option<String>,
    /// The last entry read of the stream of changes.
    pub stream_cursor: Option<String>,
}

/// Which entry is parked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParkedKey {
    /// An own event, by its sequence number.
    Seq(u64),
    /// A copy of another node's event, by its number.
    Copy(u64),
    /// An agent.
    Agent(AgentId),
}

/// An entry that a sink refuses for its own content, set aside so that the rest goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedEntry {
    /// Which.
    pub key: ParkedKey,
    /// Why, in words.
    pub reason: String,
    /// Why, as the sink's code for it (an SQLSTATE, the first word of a Redis error), or a name of ours.
    pub code: String,
    /// When it was first refused.
    pub parked_at: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
}

/// The code under which an event is parked whose transaction id is taken by other facts.
pub const TRANSACTION_ID_CONFLICT: &str = "transaction_id_conflict";
