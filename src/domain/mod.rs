//! What a trading post is, as pure types and functions of (state, input, now).
//!
//! Nothing here does I/O, reads a clock, rolls dice or knows of redb, HTTP or threads, so every rule can be tested
//! by calling it. A value of one of these types is proof that it keeps its rules: parse at the edge, trust inside.

pub mod agent;
mod digits;
pub mod entry;
pub mod event;
pub mod fold;
pub mod identity;
pub mod ids;
pub mod json;
pub mod ledger;
pub mod money;
pub mod observation;
pub mod ranking;
pub mod refusal;
pub mod registration;
pub mod reputation;
pub mod sink;
pub mod time;
pub mod transaction;
pub mod version;

pub use agent::{Agent, AvailabilityStatus, Capabilities, Capacity, Ttl};
pub use entry::{CopyNumber, LedgerEntry, LogPosition};
pub use event::{Event, EventBody, EventKind, ResolutionOutcome};
pub use fold::Fold;
pub use identity::Identity;
pub use ids::{AgentId, Capability, Currency, EventId, NodeId, ObserverId, TransactionId};
pub use json::JsonObject;
pub use ledger::Decision;
pub use money::{Money, Total};
pub use observation::{Baseline, Counters, MAX_OBSERVERS, Observation};
pub use refusal::{Invalid, Refusal};
pub use registration::{AgentPatch, Registration};
pub use reputation::{Delta, Reputation, Weight};
pub use sink::{Canary, ParkedEntry, ParkedKey, PostgresState, RedisState, Sink};
pub use time::Timestamp;
pub use transaction::{Facts, NewTransaction, Role, Transaction, TransactionStatus};
pub use version::AgentVersion;
