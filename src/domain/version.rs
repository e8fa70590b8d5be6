//! Which of two copies of an agent is the newer one, on whatever nodes they were written.
//!
//! A registration begins a new *epoch* above every epoch that its node knew for the id, so the newest registration wins
//! and an agent that moves to another host takes its id along. Within an epoch `seq` counts what its owner published.
//!
//! An epoch from elsewhere is believed up to a year ahead of this node's clock. No fixed bound would do: above the highest
//! epoch that is believed an owner could not register, while that of a moment later is believed a moment later.

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
/// The highest epoch, and the highest sequence number, that is read at all: the last microsecond of the year 9999.
pub const HIGHEST_TOLD: u64 = 253_402_300_799_999_999;
const DAY_MICROS: u64 = 24 * 3_600 * 1_000_000;
const YEAR_MICROS: u64 = 365 * DAY_MICROS;

/// The highest epoch from elsewhere that is believed at a time.
pub fn highest_believed(now: Timestamp) -> u64 {
    micros(now).saturating_add(YEAR_MICROS).min(HIGHEST_TOLD)
}

fn is_kept(epoch: u64, now: Timestamp) -> bool {
    epoch <= highest_believed(now).saturating_add(DAY_MICROS)
}

fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(0)
}

impl AgentVersion {
    /// The version of a registration at `now`, above every epoch known for the id. A clock that is ahead can win once
    /// with this, not for ever: the next registration goes beyond it. Of a clock that was further ahead than anybody
    /// believes, by more than this one may have been set back since, nothing is kept.
    pub fn begin(now: Timestamp, last_epoch: u64, node_id: NodeId) -> Self {
        let above = if is_kept(last_epoch, now) { last_epoch.saturating_add(1) } else { 1 };
        Self { epoch: micros(now).max(above), seq: 1, node_id }
    }

    /// Whether a version from elsewhere counts; one that does not is as good as none.
    pub fn is_believed_at(self, now: Timestamp) -> bool {
        self.epoch <= highest_believed(now)
    }

    /// Whether a version that is held here counts; one that does not is of a clock that was further ahead than anybody
    /// believes, unless it is this clock that is behind.
    pub fn is_kept_at(self, now: Timestamp) -> bool {
        is_kept(self.epoch, now)
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
        let is_in_range = version.epoch <= HIGHEST_TOLD && version.seq <= HIGHEST_TOLD;
        (is_in_range && version.to_wire() == text).then_some(version)
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

    #[test]
    fn above_whatever_is_believed_a_registration_begins_that_is_believed_a_moment_later() {
        let at = |micros: u64| Timestamp::from_micros(i64::try_from(micros).unwrap());
        let now = 1_800_000_000_000_000;
        let highest = version(highest_believed(at(now)), HIGHEST_TOLD, 9);
        assert!(highest.is_believed_at(at(now)) && !version(highest.epoch + 1, 1, 1).is_believed_at(at(now)));
        let next = AgentVersion::begin(at(now), highest.epoch, NodeId::from_bytes([1; 16]));
        assert!(next > highest && next.is_believed_at(at(now + 1)));
        let set_back = AgentVersion::begin(at(now - DAY_MICROS), highest.epoch, NodeId::from_bytes([1; 16]));
        assert_eq!(set_back, next);
        let of_a_wrong_clock = 2 * now;
        assert_eq!(AgentVersion::begin(at(now), of_a_wrong_clock, NodeId::from_bytes([1; 16])).epoch, now);
    }
}
