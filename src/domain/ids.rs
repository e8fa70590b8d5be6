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

    /// A new id: a UUIDv7 of `now` and 10 random bytes, as 32 lower-case hex digits.
    pub fn mint(now: Timestamp, random: [u8; 10]) -> Self {
        let mut buffer = Uuid::encode_buffer();
        Self(Arc::from(&*uuid_v7(now, random).simple().encode_lower(&mut buffer)))
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
    fn minted_transaction_ids_are_version_7_and_sort_by_time() {
        let early = TransactionId::mint(Timestamp::from_micros(1_000_000), [0xff; 10]);
        let late = TransactionId::mint(Timestamp::from_micros(2_000_000), [0; 10]);
        assert_eq!(early.as_str().len(), 32);
        assert_eq!(&early.as_str()[12..13], "7");
        assert!(early < late);
    }
}
