//! The ledger in PostgreSQL: what this node wrote goes there, what concerns its agents comes back.
//!
//! Deliberately absent: anything that a transaction-mode pooler could not carry.

pub mod config;
pub mod errors;
pub mod schema;
pub mod session;
