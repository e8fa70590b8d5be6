//! The handlers: each reads its request in the order of precedence, makes one call to the engine, and answers.
//!
//! The attribute above a handler describes its route, method, parameters and successes; the table in
//! [`router`](super::router) is what has it called, and a test compares the two. The problems that every route shares are
//! added by [`openapi`](super::openapi).

pub(crate) mod agents;
pub(crate) mod batch;
pub(crate) mod discovery;
pub(crate) mod export;
pub(crate) mod ledger;
pub(crate) mod operations;
