//! Where everything lies in Redis.
//!
//! ```text
//! agent:{agent_id}               document, expires with the lease          } the older clients'
//! agents:all                     set of agent ids                          } schema
//! agents:capabilities:{cap}      set of agent ids                          }
//! tradepost:version:{agent_id}   version, then `+`, or `-` for a deletion; outlives the document by 30 days
//! tradepost:changes              stream: agent_id, version, kind (put, removed)
//! tradepost:outcomes:{agent_id}  hash: observer → counters; and how often it was written
//! tradepost:epoch                nonce; a new one means that this Redis lost its data
//! tradepost:bell:{agent_id}      Pub/Sub channel: `ledger` or `outcomes`
//! ```

use std::time::Duration;

use crate::domain::AgentVersion;

/// The set of all agent ids.
pub const ALL: &str = "agents:all";
/// What the sets of the agents with one capability begin with.
pub const CAPABILITIES: &str = "agents:capabilities:";
/// The stream of changes.
pub const CHANGES: &str = "tradepost:changes";
/// The nonce.
pub const EPOCH: &str = "tradepost:epoch";
/// The field of an agent's outcomes that counts how often they were written.
pub const OUTCOMES_WRITTEN: &str = "written";
/// What channels begin with.
pub const BELL: &str = "tradepost:bell:";
/// About how many changes the stream keeps.
pub const CHANGES_LENGTH: usize = 100_000;
/// How long a version outlives its document.
pub const VERSION_OUTLIVES: Duration = Duration::from_secs(30 * 24 * 3_600);
/// How many bytes a version has in Redis: its text and what became of the agent.
pub const VERSION_LENGTH: usize = 75;

/// The key of an agent's document.
pub fn document(agent_id: &str) -> String {
    format!("agent:{agent_id}")
}

/// The key of an agent's version.
pub fn version(agent_id: &str) -> String {
    format!("tradepost:version:{agent_id}")
}

/// The key of what was observed of an agent.
pub fn outcomes(agent_id: &str) -> String {
    format!("tradepost:outcomes:{agent_id}")
}

/// The channel for whoever owns an agent.
pub fn bell(agent_id: &str) -> String {
    format!("{BELL}{agent_id}")
}

/// What Redis remembers of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldVersion {
    /// It was registered or changed.
    Put(AgentVersion),
    /// It was deleted.
    Removed(AgentVersion),
}

impl HeldVersion {
    /// Reads the value of a version key; `None` for what no script of ours wrote.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() == VERSION_LENGTH)?;
        if let Some(version) = text.strip_suffix('+') {
            return AgentVersion::parse_wire(version).map(Self::Put);
        }
        AgentVersion::parse_wire(text.strip_suffix('-')?).map(Self::Removed)
    }

    /// The version.
    pub fn version(self) -> AgentVersion {
        match self {
            Self::Put(version) | Self::Removed(version) => version,
        }
    }
}
