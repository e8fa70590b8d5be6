//! The ledger in a real PostgreSQL.

mod common;

#[path = "sync_postgres/access.rs"]
mod access;
#[path = "sync_postgres/batches.rs"]
mod batches;
#[path = "sync_postgres/book.rs"]
mod book;
#[path = "sync_postgres/schema.rs"]
mod schema;
