//! Central systems that fail while sidecars trade: whatever happens, central ends up with exactly what was acknowledged.

mod common;

#[path = "sync_faults/counted.rs"]
mod counted;
#[path = "sync_faults/fault.rs"]
mod fault;
#[path = "sync_faults/market.rs"]
mod market;
#[path = "sync_faults/poison.rs"]
mod poison;
#[path = "sync_faults/traders.rs"]
mod traders;
