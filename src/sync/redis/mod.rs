//! Redis: the registry that all nodes share, a view that they can rebuild at any time.
//!
//! Redis Cluster is deliberately absent: the scripts touch keys of several slots, so one primary holds them all.

pub mod bells;
pub mod document;
pub mod errors;
mod inbound;
pub mod intake;
pub mod keys;
pub mod leases;
pub mod link;
mod outbound;
pub mod outcomes;
pub mod push;
pub mod scan;
pub mod scripts;
pub mod stream;
pub mod told;
mod worker;

pub use bells::Ringer;
pub use worker::{Redis, Session};
