//! Ledger events on the move: as they leave their author's log and as other nodes and PostgreSQL keep them.

use super::event::Event;
use super::ids::{AgentId, NodeId};

/// One event with what is needed to find its place anywhere.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerEntry {
    /// The event.
    pub event: Event,
    /// The payer of its transaction.
    pub payer_agent: AgentId,
    /// The provider of its transaction.
    pub provider_agent: AgentId,
    /// The node that recorded the transaction.
    pub recorded_by: NodeId,
    /// Its place in its author's log, from 1; 0 for one that was adopted from a client without a log.
    pub node_seq: u64,
    /// The hash of its author's chain up to it; `None` for an adopted one.
    pub hash: Option<[u8; 32]>,
}

/// A place in a ledger log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogPosition {
    /// The sequence number of the newest event; 0 while there is none.
    pub seq: u64,
    /// The hash of the chain up to it; all zeros while there is none.
    pub hash: [u8; 32],
}

/// The place of a foreign event among those that this file holds, from 1, in the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CopyNumber(pub u64);
