//! A transaction: immutable facts, and the status that its events fold to.

use std::fmt;

use super::event::FactsHash;
use super::ids::{AgentId, Capability, Currency, TransactionId};
use super::json::JsonObject;
use super::money::Money;
use super::refusal::Invalid;
use super::time::Timestamp;

/// What a transaction is about; never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who pays.
    pub payer_agent: AgentId,
    /// Who is paid.
    pub provider_agent: AgentId,
    /// For what.
    pub capability: Capability,
    /// How much, above 0.
    pub amount: Money,
    /// Of what.
    pub currency: Currency,
    /// The parties' own data.
    pub context: JsonObject,
}

impl Facts {
    /// blake3 over the facts, each behind its length, so that no two different facts meet in one text.
    pub fn hash(&self) -> FactsHash {
        let mut hasher = blake3::Hasher::new();
        let amount = self.amount.to_string();
        for part in [
            self.payer_agent.as_str(),
            self.provider_agent.as_str(),
            self.capability.as_str(),
            &amount,
            self.currency.as_str(),
            self.context.as_str(),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// A transaction to be recorded; every value checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTransaction {
    /// Its id; minted when absent.
    pub transaction_id: Option<TransactionId>,
    /// Its facts.
    pub facts: Facts,
}

/// Checks an amount: above 0.
pub fn parse_amount(amount: Money) -> Result<Money, Invalid> {
    if amount.is_positive() { Ok(amount) } else { Err(Invalid::new("amount", "must be above 0")) }
}

/// Where a transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionStatus {
    /// Recorded, not decided.
    Pending,
    /// Done and owed.
    Settled,
    /// Void.
    Cancelled,
    /// Contested.
    Disputed,
}

impl TransactionStatus {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Settled, Self::Cancelled, Self::Disputed];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Settled => "settled",
            Self::Cancelled => "cancelled",
            Self::Disputed => "disputed",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| Invalid::new(field, "must be one of pending, settled, cancelled, disputed"))
    }

    /// Whether somebody still has to act: pending or disputed.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Disputed)
    }
}

impl fmt::Display for TransactionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which side of a transaction an agent is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It pays.
    Payer,
    /// It is paid.
    Provider,
}

impl Role {
    /// Reads the name on the wire.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        match text {
            "payer" => Ok(Self::Payer),
            "provider" => Ok(Self::Provider),
            _ => Err(Invalid::new(field, "must be payer or provider")),
        }
    }
}

/// How far a transaction's newest event got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    /// It is durable on this node.
    Local,
    /// PostgreSQL holds it too.
    Central,
}

impl Finality {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Central => "central",
        }
    }
}

/// A transaction as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Transaction {
    /// Its id.
    pub transaction_id: TransactionId,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// Its facts.
    pub facts: std::sync::Arc<Facts>,
    /// Where it stands.
    pub status: TransactionStatus,
    /// All evidence, in order.
    pub evidence: Vec<String>,
    /// When its newest event happened.
    pub updated_at: Timestamp,
    /// When it was settled; see [`Fold::settled_at`](super::fold::Fold::settled_at).
    pub settled_at: Option<Timestamp>,
    /// How far its newest event got.
    pub finality: Finality,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            payer_agent: AgentId::from_stored("a"),
            provider_agent: AgentId::from_stored("bc"),
            capability: Capability::from_stored("python"),
            amount: Money::parse("1.50").unwrap(),
            currency: Currency::default(),
            context: JsonObject::default(),
        }
    }

    #[test]
    fn equal_facts_hash_alike_and_shifted_ones_do_not() {
        let same = Facts { amount: Money::parse("1.5").unwrap(), ..facts() };
        assert_eq!(facts().hash(), same.hash());
        let shifted =
            Facts { payer_agent: AgentId::from_stored("ab"), provider_agent: AgentId::from_stored("c"), ..facts() };
        assert_ne!(facts().hash(), shifted.hash());
    }

    #[test]
    fn amounts_are_above_zero() {
        for text in ["0", "-1", "0.000"] {
            assert!(parse_amount(Money::parse(text).unwrap()).is_err(), "{text}");
        }
        assert!(parse_amount(Money::parse("0.000000001").unwrap()).is_ok());
    }
}
