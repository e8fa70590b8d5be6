//! The ledger in PostgreSQL: what this node wrote goes there, what concerns its agents comes back.
//!
//! Deliberately absent: anything that a transaction-mode pooler could not carry.

pub mod adopt;
pub mod checks;
pub mod config;
mod drain;
mod ensure;
pub mod errors;
pub mod fence;
mod follow;
mod link;
pub mod merge;
mod parked;
pub mod payload;
mod place;
pub mod pull;
pub mod push;
mod rhythm;
pub mod rows;
pub mod schema;
pub mod session;
pub mod sweep;
pub mod worker;

pub use worker::Postgres;
