//! Replication: the registry to Redis, the ledger to PostgreSQL, and what other nodes wrote back from there.
//!
//! Deliberately absent: redb and HTTP.

pub mod driver;
pub mod postgres;
pub mod state;
pub mod tls;

/// The URL of a central system, as it is at present; read at every connect.
pub type CurrentUrl = std::sync::Arc<arc_swap::ArcSwap<secrecy::SecretString>>;
