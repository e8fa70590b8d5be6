//! The registry towards other nodes: changed agents, leases and observations out, remote agents in.

use std::time::Duration;

use crate::domain::{Agent, AgentId, AgentVersion, Ttl};

/// What has become of a local agent since it was last told.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentChange {
    /// It is registered, like this.
    Put {
        /// The change's number; a later change of the same agent moves it.
        change_seq: u64,
        /// The agent.
        agent: Box<Agent>,
        /// How long its lease runs yet; zero once it has expired.
        remaining: Duration,
    },
    /// It was deleted.
    Removed {
        /// The change's number.
        change_seq: u64,
        /// Which agent.
        agent_id: AgentId,
        /// The version of the deletion, above every version of the agent.
        version: AgentVersion,
        /// How long the deletion is remembered yet.
        keep: Duration,
    },
}

impl AgentChange {
    /// The change's number.
    pub fn change_seq(&self) -> u64 {
        match self {
            Self::Put { change_seq, .. } | Self::Removed { change_seq, .. } => *change_seq,
        }
    }
}

/// The lease of an agent that lives here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLease {
    /// Which agent.
    pub agent_id: AgentId,
    /// Its version, as it was last published.
    pub version: AgentVersion,
    /// How long the lease runs yet.
    pub remaining: Duration,
    /// How long a lease lasts from its renewal.
    pub ttl: Ttl,
}

/// An agent of another node, as its document says.
///
/// Of the agent's own fields, `expired`, `expires_at` and `claimed` are not looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteAgent {
    /// The agent. Its reputation is its owner's, without what is observed here.
    pub agent: Agent,
    /// How long its lease runs yet.
    pub remaining: Duration,
}

/// What taking in agents of other nodes came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AbsorbedAgents {
    /// Agents that are new or newer.
    pub taken: usize,
    /// Agents that are held in the same or a newer version.
    pub ignored: usize,
    /// Local agents that were registered anew elsewhere; they are remote from here on.
    pub superseded: Vec<AgentId>,
}

/// Whether remote agents can be confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryLink {
    /// Redis answers: each lease runs for as long as it says.
    Up,
    /// Redis does not answer: remote agents stay discoverable, stale, for at most this long.
    Down {
        /// Counted from the end of each lease.
        stale_for: Duration,
    },
    /// Redis answers again, but has lost these: each is stale for one lease time, unless it comes back.
    Unconfirmed(Vec<AgentId>),
}
