//! Replication: the registry to Redis, the ledger to PostgreSQL, and what other nodes wrote back from there.
//!
//! Deliberately absent: redb and HTTP.

pub mod postgres;
pub mod tls;
