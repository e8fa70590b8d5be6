//! What the engine offers to replication: the ledger and the registry as other nodes see them, in and out.
//!
//! The engine knows nothing of Redis or PostgreSQL. It hands out what is new (own events, copies of others' events,
//! changed agents, observations), takes in what came from elsewhere, and keeps each sink's cursors. Whatever comes in is
//! merged: the order, the grouping and the repetition of what arrives make no difference.

mod agents;
mod backlog;
pub mod board;
pub mod ledger;
mod outcomes;
pub mod registry;
pub mod state;

pub use board::{SinkBoard, SinkRequest, SinkState, SinkStatus};
pub(super) use ledger::merge;
pub use ledger::{Absorbed, LedgerAgent};
pub use registry::{AbsorbedAgents, AgentChange, LocalLease, RegistryLink, RemoteAgent};
pub use state::{CommitMark, ForkReason, Saved};

pub use crate::domain::{
    Canary, CopyNumber, Identity, LedgerEntry, LogPosition, Observation, ParkedEntry, ParkedKey, PostgresState,
    RedisState, Sink,
};
