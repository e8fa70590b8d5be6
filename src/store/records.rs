//! The stored shapes, and their way to and from the domain's types.
//!
//! Strings and numbers were checked when they came in, so reading takes them as they are; numbers that name one of a
//! closed set are checked, since a file may be damaged.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::codec::Record;
use super::error::StoreError;
use crate::domain::fold::Fold;
use crate::domain::{
    Agent, AgentId, AgentVersion, AvailabilityStatus, Baseline, Capabilities, Capacity, Counters, Currency, JsonObject,
    Money, Observation, ObserverId, Reputation, Timestamp, Total, TransactionStatus, Ttl,
};

macro_rules! record {
    ($type:ty, $version:literal, $name:literal) => {
        impl Record for $type {
            const VERSION: u8 = $version;
            const NAME: &'static str = $name;
        }
    };
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(what.to_owned())
}

/// An agent, and where it stands in the agent changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentV2 {
    agent_id: AgentId,
    name: String,
    capabilities: Capabilities,
    cost_per_task: Money,
    currency: Currency,
    billing_notes: Option<String>,
    availability: u8,
    capacity_per_hour: Capacity,
    last_updated: Timestamp,
    reputation: Reputation,
    metadata: JsonObject,
    revision: u64,
    ttl: Ttl,
    expires_at: Timestamp,
    expired: bool,
    version: AgentVersion,
    claimed: bool,
    baseline: Baseline,
    /// The key of a local agent's one entry in the agent changes.
    pub change_seq: Option<u64>,
    /// The store's age when this was written.
    pub written_at: StoreAge,
}
record!(AgentV2, 2, "agent");

impl AgentV2 {
    pub fn from_domain(agent: &Agent, change_seq: Option<u64>, written_at: StoreAge) -> Self {
        Self {
            agent_id: agent.agent_id.clone(),
            name: agent.name.clone(),
            capabilities: agent.capabilities.clone(),
            cost_per_task: agent.cost_per_task,
            currency: agent.currency.clone(),
            billing_notes: agent.billing_notes.clone(),
            availability: agent.availability as u8,
            capacity_per_hour: agent.capacity_per_hour,
            last_updated: agent.last_updated,
            reputation: agent.reputation,
            metadata: agent.metadata.clone(),
            revision: agent.revision,
            ttl: agent.ttl,
            expires_at: agent.expires_at,
            expired: agent.expired,
            version: agent.version,
            claimed: agent.claimed,
            baseline: agent.baseline.clone(),
            change_seq,
            written_at,
        }
    }

    pub fn into_domain(self) -> Result<Agent, StoreError> {
        let availability = AvailabilityStatus::ALL
            .into_iter()
            .find(|status| *status as u8 == self.availability)
            .ok_or_else(|| damaged("agent record: unknown availability"))?;
        Ok(Agent {
            agent_id: self.agent_id,
            name: self.name,
            capabilities: self.capabilities,
            cost_per_task: self.cost_per_task,
            currency: self.currency,
            billing_notes: self.billing_notes,
            availability,
            capacity_per_hour: self.capacity_per_hour,
            last_updated: self.last_updated,
            reputation: self.reputation,
            metadata: self.metadata,
            revision: self.revision,
            ttl: self.ttl,
            expires_at: self.expires_at,
            expired: self.expired,
            version: self.version,
            claimed: self.claimed,
            baseline: self.baseline,
        })
    }
}

/// How long a store has been open in all, in microseconds. Unlike the wall clock it never jumps, so what is kept for a
/// while is kept for at least that while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreAge(pub u64);

impl StoreAge {
    /// This age and a while.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// A while before this age; the store's beginning at the earliest.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// What is kept of a deleted agent until its lease would have run out everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TombstoneV2 {
    /// The last revision it had.
    pub revision: u64,
    /// The store's age at which this may be forgotten.
    pub keep_until: StoreAge,
    /// Its entry in the agent changes, if it was deleted here.
    pub change_seq: Option<u64>,
    /// The version of the deletion.
    pub version: AgentVersion,
    /// What of its observers' counters was folded.
    pub baseline: Baseline,
}
record!(TombstoneV2, 2, "tombstone");

/// This node's counters for one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservationV2 {
    pub observer: ObserverId,
    pub total: Counters,
    pub acked: Counters,
    pub offered: Counters,
}
record!(ObservationV2, 2, "observation");

impl ObservationV2 {
    pub fn from_domain(observation: &Observation) -> Self {
        let Observation { observer, total, acked, offered, .. } = *observation;
        Self { observer, total, acked, offered }
    }

    pub fn into_domain(self, agent_id: &str) -> Observation {
        let agent_id = AgentId::from_stored(agent_id);
        let Self { observer, total, acked, offered } = self;
        Observation { agent_id, observer, total, acked, offered }
    }
}

/// Where a transaction stands: the fold's answer, and where its events lie.
///
/// The facts are not repeated here; they are in the `recorded` event, which is the first of `events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionV1 {
    /// The payer's number.
    pub payer: u32,
    /// The provider's number.
    pub provider: u32,
    status: u8,
    /// When its newest event happened.
    pub updated_at: Timestamp,
    /// When it was settled.
    pub settled_at: Option<Timestamp>,
    /// Whether any of its events brings evidence.
    pub has_evidence: bool,
    /// The places of its events (see [`Place`](super::events::Place)), the `recorded` one whose facts count first.
    pub events: Vec<u64>,
}
record!(TransactionV1, 1, "transaction");

impl TransactionV1 {
    /// The record of a transaction that has just been recorded, and of which nothing else is known.
    pub fn recorded(payer: u32, provider: u32, recorded_at: Timestamp, place: u64) -> Self {
        Self {
            payer,
            provider,
            status: status_code(TransactionStatus::Pending),
            updated_at: recorded_at,
            settled_at: None,
            has_evidence: false,
            events: vec![place],
        }
    }

    /// The record of what a transaction's events fold to; `events` are their places, the `recorded` one whose facts count
    /// first.
    pub fn new(payer: u32, provider: u32, fold: &Fold, events: Vec<u64>) -> Self {
        Self {
            payer,
            provider,
            status: status_code(fold.status),
            updated_at: fold.updated_at,
            settled_at: fold.settled_at,
            has_evidence: !fold.evidence.is_empty(),
            events,
        }
    }

    pub fn status(&self) -> Result<TransactionStatus, StoreError> {
        status_of(self.status)
    }
}

/// The byte that stands for a status, here and in the list of open transactions.
pub fn status_code(status: TransactionStatus) -> u8 {
    match status {
        TransactionStatus::Pending => 0,
        TransactionStatus::Settled => 1,
        TransactionStatus::Cancelled => 2,
        TransactionStatus::Disputed => 3,
    }
}

/// The status that a byte stands for.
pub fn status_of(code: u8) -> Result<TransactionStatus, StoreError> {
    TransactionStatus::ALL
        .into_iter()
        .find(|status| status_code(*status) == code)
        .ok_or_else(|| damaged("transaction record: unknown status"))
}

/// How much one agent paid and earned in one currency; cancelled amounts are in neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BalanceV1 {
    pub paid: BalanceSideV1,
    pub earned: BalanceSideV1,
}
record!(BalanceV1, 1, "balance");

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BalanceSideV1 {
    pub pending: Total,
    pub settled: Total,
    pub disputed: Total,
}

impl BalanceSideV1 {
    /// The sum for one status; there is none for cancelled transactions.
    pub fn of(&mut self, status: TransactionStatus) -> Option<&mut Total> {
        match status {
            TransactionStatus::Pending => Some(&mut self.pending),
            TransactionStatus::Settled => Some(&mut self.settled),
            TransactionStatus::Disputed => Some(&mut self.disputed),
            TransactionStatus::Cancelled => None,
        }
    }
}

/// The counters of the whole store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TotalsV2 {
    /// Agents stored, live or expired.
    pub agents: u64,
    /// Own ledger events.
    pub events: u64,
    /// Copies of other nodes' ledger events.
    pub copies: u64,
    /// Transactions by status, in the order of [`TransactionStatus::ALL`].
    pub transactions: [u64; 4],
    /// Agents that were given a number because a transaction names them.
    pub numbered_agents: u32,
    /// The newest entry of the agent changes.
    pub change_seq: u64,
    /// The highest revision that a deleted agent had.
    pub revision_floor: u64,
    /// See [`StoreAge`].
    pub age_micros: u64,
    /// The first minute from which on all loads are counted; those before it may have been forgotten, in part or all.
    pub loads_from: u32,
}
record!(TotalsV2, 2, "totals");

impl TotalsV2 {
    pub fn of(&mut self, status: TransactionStatus) -> &mut u64 {
        &mut self.transactions[usize::from(status_code(status))]
    }
}

/// What is remembered of a request with an idempotency key: a hash and an id, never the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptV1 {
    /// The hash of its method, path and body.
    pub request: [u8; 32],
    /// Whether it created its subject.
    pub created: bool,
    /// The id of the agent or transaction that it wrote.
    pub subject: String,
    /// The store's age when it was remembered, so that it can be forgotten.
    pub at: StoreAge,
}
record!(ReceiptV1, 1, "receipt");
