//! What replication keeps in the file for itself, how it is woken, and how a copied file becomes a node of its own.

use std::fmt;

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
