//! Which of two copies of an agent is the newer one, on whatever nodes they were written.
//!
//! A registration begins a new *epoch* above every epoch that its node knew for the id, so the newest registration wins
//! and an agent that moves to another host takes its id along. Within an epoch `seq` counts what its owner published.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::NodeId;
use super::time::Timestamp;

/// The version of an agent. Sorts by epoch, then sequence number, then node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AgentVersion {
    /// When the agent was registered, in microseconds since 1970, or later if an older registration said so.
    pub epoch: u64,
    /// How many changes its owner has published in this epoch; the registration is the first.
    pub seq: u64,
    /// The owner.
    pub node_id: NodeId,
}

/// The digits of a `u64` in decimal, so that texts compare as numbers do.
const DIGITS: usize = 20;
/// The highest epoch, and the highest sequence number, that is believed from elsewhere: the last microsecond of the year
/// 9999. A version at the very top of its range could never be exceeded, and would take its agent away for ever.
pub const HIGHEST_TOLD: u64 = 253_402_300_799_999_999;

impl AgentVersion {
    /// The version of a registration at `now`, above every epoch known for the id. A clock that is ahead can win once
    /// with this, not for ever: the next registration goes beyond it.
    pub fn begin(now: Timestamp, last_epoch: u64, node_id: NodeId) -> Self {
        let now = u64::try_from(now.as_micros()).unwrap_or(0);
        Self { epoch: now.max(last_epoch.saturating_add(1)), seq: 1, node_id }
    }

    /// The version of the next change that the same owner publishes.
    #[must_use]
    pub fn next(self) -> Self {
        Self { seq: self.seq.saturating_add(1), ..self }
    }

    /// Fixed width: two such texts compare as the versions do.
    pub fn to_wire(self) -> String {
        self.to_string()
    }

    /// Reads what [`to_wire`](Self::to_wire) writes up to [`HIGHEST_TOLD`], and nothing else.
    pub fn parse_wire(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
            if digits { text.parse().ok() } else { None }
        };
        let mut parts = text.split('.');
        let (epoch, seq, node) = (parts.next()?, parts.next()?, parts.next()?);
        let version = Self { epoch: number(epoch)?, seq: number(seq)?, node_id: NodeId::parse(node)? };
        let is_believed = version.epoch <= HIGHEST_TOLD && version.seq <= HIGHEST_TOLD;
        (is_believed && version.to_wire() == text).then_some(version)
    }
}

impl fmt::Display for AgentVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = uuid::Uuid::from_bytes(*self.node_id.as_bytes());
        write!(f, "{:020}.{:020}.{}", self.epoch, self.seq, node.simple())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(epoch: u64, seq: u64, node: u8) -> AgentVersion {
        AgentVersion { epoch, seq, node_id: NodeId::from_bytes([node; 16]) }
    }

    #[test]
    fn texts_compare_as_versions_do_and_read_back() {
        let sorted = [
            version(0, 0, 0),
            version(0, 0, 9),
            version(0, 10, 0),
            version(9, 1, 255),
            version(10, 0, 0),
            version(HIGHEST_TOLD, HIGHEST_TOLD, 255),
        ];
        assert!(sorted.windows(2).all(|pair| pair[0] < pair[1] && pair[0].to_wire() < pair[1].to_wire()));
        for version in sorted {
            assert_eq!(AgentVersion::parse_wire(&version.to_wire()), Some(version));
        }
    }

    #[test]
    fn strangers_are_refused() {
        let good = version(1, 2, 3).to_wire();
        for beyond in
            [version(HIGHEST_TOLD + 1, 0, 0), version(0, HIGHEST_TOLD + 1, 0), version(u64::MAX, u64::MAX, 255)]
        {
            assert_eq!(AgentVersion::parse_wire(&beyond.to_wire()), None, "{beyond}");
        }
        let upper = version(1, 2, 0xab).to_wire().to_uppercase();
        for bad in ["", "1.2.3", &good[1..], &format!("{good}0"), &format!("{good}.1"), &good.replace('0', "+"), &upper]
        {
            assert_eq!(AgentVersion::parse_wire(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_registration_goes_beyond_the_last_epoch_known_even_of_a_wrong_clock() {
        let node = NodeId::from_bytes([1; 16]);
        let far = AgentVersion::begin(Timestamp::from_micros(9_000), 0, node);
        let next = AgentVersion::begin(Timestamp::from_micros(50), far.epoch, node);
        assert_eq!((far.epoch, next.epoch), (9_000, 9_001));
        assert_eq!(AgentVersion::begin(Timestamp::from_micros(-1), 0, node).epoch, 1);
    }
}
