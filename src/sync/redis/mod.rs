//! Redis: the registry that all nodes share, a view that they can rebuild at any time.
//!
//! Redis Cluster is deliberately absent: the scripts touch keys of several slots, so one primary holds them all.

pub mod document;
pub mod errors;
pub mod keys;
pub mod scripts;
