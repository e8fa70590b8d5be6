//! The ledger in a real PostgreSQL.

mod common;

#[path = "sync_postgres/access.rs"]
mod access;
#[path = "sync_postgres/backlog.rs"]
mod backlog;
#[path = "sync_postgres/batches.rs"]
mod batches;
#[path = "sync_postgres/book.rs"]
mod book;
#[path = "sync_postgres/lost.rs"]
mod lost;
#[path = "sync_postgres/market.rs"]
mod market;
#[path = "sync_postgres/node.rs"]
mod node;
#[path = "sync_postgres/parties.rs"]
mod parties;
#[path = "sync_postgres/reading.rs"]
mod reading;
#[path = "sync_postgres/rules.rs"]
mod rules;
#[path = "sync_postgres/schema.rs"]
mod schema;
#[path = "sync_postgres/strange.rs"]
mod strange;
#[path = "sync_postgres/sweeping.rs"]
mod sweeping;
