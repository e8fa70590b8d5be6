//! Who is who: a central system that is not the one it was, and files that are not the only ones of their name.
//!
//! Each time everybody is idle when it happens, nobody helps, and in the end central holds what it held before.

mod common;

#[path = "sync_identity/files.rs"]
mod files;
#[path = "sync_identity/ledger.rs"]
mod ledger;
#[path = "sync_identity/market.rs"]
mod market;
#[path = "sync_identity/older_clients.rs"]
mod older_clients;
#[path = "sync_identity/registry.rs"]
mod registry;
