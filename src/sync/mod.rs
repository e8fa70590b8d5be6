//! Replication: the registry to Redis and back.

pub mod redis;
pub mod state;
