//! A trading post for AI agents: a registry of agents, a ledger of what they owe each other, discovery over both, in
//! one binary and one file.
//!
//! The binary is a sidecar beside an agent; see the README. As a library, [`Engine`] opens a file (or memory) and offers
//! every operation:
//!
//! ```
//! use tradepost::domain::{AgentId, Capability, Decision, Currency, Facts, JsonObject, Money, NewTransaction};
//! use tradepost::{Engine, Location, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::open(Options::new(Location::Memory))?;
//! let facts = Facts {
//!     payer_agent: AgentId::parse("payer_agent", "genesis")?,
//!     provider_agent: AgentId::parse("provider_agent", "thon")?,
//!     capability: Capability::parse("capability", "python")?,
//!     amount: Money::parse("18.50")?,
//!     currency: Currency::default(),
//!     context: JsonObject::default(),
//! };
//! let recorded = engine.record(NewTransaction { transaction_id: None, facts }, None).wait()?;
//! engine.decide(recorded.value.transaction_id, Decision::Settle, None).wait()?;
//! let balances = engine.balance(&AgentId::parse("agent", "thon")?)?;
//! assert_eq!(balances[&Currency::default()].earned.settled.to_string(), "18.5");
//! # Ok(())
//! # }
//! ```
//!
//! Who may import whom: `main → cli → app → { http, sync, exporter } → engine → store → domain`; [`clock`], [`metrics`],
//! [`access`] and [`tls`] are leaves that anyone may use.

pub mod access;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod engine;
pub mod exporter;
pub mod http;
pub mod metrics;
pub mod store;
pub mod sync;
pub mod tls;

pub use engine::{
    AgentFilter, Balance, BalanceSide, Engine, Error, Export, Idempotency, LeaseState, Location, OpenError, Options,
    Page, PageRequest, Pending, Precondition, Profile, Receipt, StoreStatus, TransactionFilter,
};
