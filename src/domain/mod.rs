//! What a trading post is, as pure types and functions of (state, input, now).
//!
//! Nothing here does I/O, reads a clock, rolls dice or knows of redb, HTTP or threads, so every rule can be tested
//! by calling it. A value of one of these types is proof that it keeps its rules: parse at the edge, trust inside.

pub mod agent;
pub mod event;
pub mod fold;
pub mod ids;
pub mod json;
pub mod ledger;
pub mod money;
pub mod ranking;
pub mod refusal;
pub mod reputation;
pub mod time;
pub mod transaction;

pub use agent::{Agent, AgentPatch, AvailabilityStatus, Capabilities, Capacity, Registration, Ttl};
pub use event::{Event, EventBody, EventKind, ResolutionOutcome};
pub use fold::Fold;
pub use ids::{AgentId, Capability, Currency, EventId, NodeId, TransactionId};
pub use json::JsonObject;
pub use ledger::Decision;
pub use money::{Money, Total};
pub use refusal::{Invalid, Refusal};
pub use reputation::{Delta, Reputation, Weight};
pub use time::Timestamp;
pub use transaction::{Facts, NewTransaction, Role, Transaction, TransactionStatus};
