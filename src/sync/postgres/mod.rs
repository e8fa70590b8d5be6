//! The ledger in PostgreSQL: what this node wrote goes there, what concerns its agents comes back.
//!
//! Deliberately absent: anything that a transaction-mode pooler could not carry.

pub mod adopt;
pub mod config;
pub mod errors;
pub mod fence;
pub mod merge;
pub mod payload;
pub mod pull;
pub mod push;
pub mod rows;
pub mod schema;
pub mod session;
