//! The ledger towards other nodes: own events and copies of others' out, others' events in.

use crate::domain::{AgentId, LogPosition, TransactionId};
use crate::engine::{Engine, Error};

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

    /// The hash of the chain up to an own event; all zeros for 0, `None` beyond the end.
    pub fn log_hash(&self, seq: u64) -> Result<Option<[u8; 32]>, Error> {
        Ok(self.core().store.snapshot()?.log_hash(seq)?)
    }
}
