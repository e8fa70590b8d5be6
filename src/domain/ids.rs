//! Identifiers: small strings with a grammar, and UUIDs.
//!
//! `parse` enforces the grammar and belongs at the edge. `from_stored` does not: what lies in the store was checked
//! when it was written, and other programs' ids may be outside our patterns.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::refusal::Invalid;
use super::time::Timestamp;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a string that was checked before it was stored.
            pub fn from_stored(text: &str) -> Self {
                Self(Arc::from(text))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id! {
    /// An agent's id: `[A-Za-z0-9_-]{1,255}`, chosen by the agent.
    AgentId
}
text_id! {
    /// What an agent can do: 1 to 255 characters, trimmed, lower case, no control characters.
    Capability
}
text_id! {
    /// A currency or unit of account: `[A-Z0-9]{3,10}`.
    Currency
}
text_id! {
    /// A transaction's id: `[A-Za-z0-9_-]{1,32}`; a minted one is a UUIDv7 as 32 hex digits.
    TransactionId
}

fn is_word(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

impl AgentId {
    /// Checks the grammar; `field` names the culprit in the error.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        if is_word(text, 255) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(Invalid::new(field, "an agent id is 1 to 255 of the characters A-Z a-z 0-9 _ -"))
        }
    }
}

impl TransactionId {
    /// The most characters of any, whoever made it.
    pub const LONGEST: usize = 32;

    /// Checks the grammar.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        if is_word(text, Self::LONGEST) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(Invalid::new(field, "a transaction id is 1 to 32 of the characters A-Z a-z 0-9 _ -"))
        }
    }

    /// A new id, which says when the transaction was recorded and which of that microsecond it is: a UUIDv7 as 32
    /// lower-case hex digits.
    ///
    /// RFC 9562 leaves 74 bits beside the milliseconds. The first 12 are the fraction of the millisecond in 4 096ths
    /// (its section 6.2, method 3), the next 8 the `tie`; 54 are random, too many to guess an id or to mint one twice.
    pub fn mint(recorded_at: Timestamp, tie: u8, random: [u8; 7]) -> Self {
        let micros = u64::try_from(recorded_at.as_micros()).unwrap_or(0);
        // Rounded up, so that rounding down on the way back gives the same microsecond.
        let fraction = (micros % 1_000 * 4_096).div_ceil(1_000);
        let mut bits = [0; 10];
        bits[..2].copy_from_slice(&(fraction as u16).to_be_bytes());
        // The variant takes the two bits above the tie.
        let random =
            u64::from_be_bytes([0, random[0], random[1], random[2], random[3], random[4], random[5], random[6]]);
        bits[2..].copy_from_slice(&(u64::from(tie) << 54 | random & ((1 << 54) - 1)).to_be_bytes());
        let uuid = uuid::Builder::from_unix_timestamp_millis(micros / 1_000, &bits).into_uuid();
        let mut buffer = Uuid::encode_buffer();
        Self(Arc::from(&*uuid.simple().encode_lower(&mut buffer)))
    }

    /// What [`mint`](Self::mint) put into the id: when, and which of that microsecond. Any other UUIDv7 that is written
    /// in the same way is read just so: what comes out is a hint that must be verified.
    pub fn minted_at(&self) -> Option<(Timestamp, u8)> {
        let text = self.0.as_bytes();
        let is_minted = text.len() == 32
            && text[12] == b'7'
            && matches!(text[16], b'8' | b'9' | b'a' | b'b')
            && text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_minted {
            return None;
        }
        let number = u128::from_str_radix(&self.0, 16).ok()?;
        let millis = i64::try_from(number >> 80).ok()?;
        let fraction = (number >> 64) as i64 & 0xfff;
        let tie = (number >> 54) as u8;
        Some((Timestamp::from_micros(millis * 1_000 + fraction * 1_000 / 4_096), tie))
    }
}

impl Capability {
    /// Trims, lower-cases and checks.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        let canonical = text.trim().to_lowercase();
        let length = canonical.chars().count();
        if !(1..=255).contains(&length) {
            return Err(Invalid::new(field, "a capability has 1 to 255 characters"));
        }
        if canonical.chars().any(char::is_control) {
            return Err(Invalid::new(field, "a capability has no control characters"));
        }
        Ok(Self(Arc::from(canonical)))
    }
}

impl Currency {
    /// Checks the grammar.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        let allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
        if (3..=10).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(Invalid::new(field, "a currency is 3 to 10 of the characters A-Z 0-9"))
        }
    }
}

impl Default for Currency {
    /// `USD`.
    fn default() -> Self {
        Self::from_stored("USD")
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new UUIDv7 (RFC 9562) of `now` and 10 random bytes.
            pub fn mint(now: Timestamp, random: [u8; 10]) -> Self {
                Self(uuid_v7(now, random))
            }

            /// Reads any of the usual spellings of a UUID.
            pub fn parse(text: &str) -> Option<Self> {
                Uuid::try_parse(text).ok().map(Self)
            }

            /// Takes the 16 bytes of a UUID.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The 16 bytes of the UUID.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

uuid_id! {
    /// One sidecar's store; minted when the file is created.
    NodeId
}
uuid_id! {
    /// One ledger event.
    EventId
}
uuid_id! {
    /// Who observes an agent: one series of cumulative counters. A file that was copied or restored goes on under a new
    /// one.
    ObserverId
}

impl NodeId {
    /// The author of events that were adopted from clients which write none.
    pub const NIL: Self = Self(Uuid::nil());
}

fn uuid_v7(now: Timestamp, random: [u8; 10]) -> Uuid {
    let millis = u64::try_from(now.as_micros() / 1_000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammars_accept_and_refuse_at_their_edges() {
        assert!(AgentId::parse("agent_id", &"a".repeat(255)).is_ok());
        for bad in ["", "a b", "é", "a/b", "a.b", &"a".repeat(256)] {
            assert!(AgentId::parse("agent_id", bad).is_err(), "{bad:?}");
        }
        assert!(TransactionId::parse("transaction_id", &"a".repeat(32)).is_ok());
        assert!(TransactionId::parse("transaction_id", &"a".repeat(33)).is_err());
        for good in ["USD", "EUR", "USDC2", "ABCDEFGHIJ"] {
            assert!(Currency::parse("currency", good).is_ok(), "{good:?}");
        }
        for bad in ["", "US", "usd", "ABCDEFGHIJK", "U D"] {
            assert!(Currency::parse("currency", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn capabilities_are_trimmed_and_lower_cased() {
        assert_eq!(Capability::parse("capability", "  PyThon ").unwrap().as_str(), "python");
        assert!(Capability::parse("capability", &"ü".repeat(255)).is_ok());
        for bad in ["", "   ", "a\u{7}b", &"x".repeat(256)] {
            assert!(Capability::parse("capability", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn minted_transaction_ids_are_version_7_sort_by_time_and_say_when() {
        let mint = |micros, tie, random| TransactionId::mint(Timestamp::from_micros(micros), tie, [random; 7]);
        let early = mint(1_000_000, 0, 0xff);
        assert_eq!(early.as_str().len(), 32);
        assert_eq!(&early.as_str()[12..13], "7");
        assert!(early < mint(1_000_001, 0, 0), "they sort within a millisecond too");
        assert_ne!(mint(5, 0, 0), mint(5, 0, 1));
        for micros in (0..2_000).chain([1_795_391_431_767_109, Timestamp::MAX.as_micros()]) {
            for (tie, random) in [(0, 0), (0, 0xff), (255, 0), (255, 0xff), (77, 0x5a)] {
                assert_eq!(mint(micros, tie, random).minted_at(), Some((Timestamp::from_micros(micros), tie)));
            }
        }
        let before_1970 = mint(-1, 0, 0);
        assert_eq!(before_1970.minted_at(), Some((Timestamp::from_micros(0), 0)), "a time that it cannot hold");
    }

    #[test]
    fn ids_that_are_not_written_like_minted_ones_say_nothing() {
        let minted = TransactionId::mint(Timestamp::from_micros(1_795_391_431_767_109), 3, [9; 7]).to_string();
        let mut version_4 = minted.clone();
        version_4.replace_range(12..13, "4");
        let mut other_variant = minted.clone();
        other_variant.replace_range(16..17, "c");
        for text in [&minted[1..], &minted.to_uppercase(), &version_4, &other_variant, "t1", &"g".repeat(32)] {
            assert_eq!(TransactionId::from_stored(text).minted_at(), None, "{text}");
        }
        let latest = TransactionId::from_stored(&format!("{}7fffbfff{}", "f".repeat(12), "f".repeat(12)));
        assert!(latest.minted_at().is_some(), "as large as one gets");
    }
}
