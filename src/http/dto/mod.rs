//! What requests and answers look like on the wire, and how they become domain types and back.
//!
//! A body's type has one method that turns it into domain types: first whatever may be missing (400), then the rules
//! (422). Answers borrow what they show.

pub(crate) mod agents;
pub(crate) mod discovery;
pub(crate) mod operations;
#[cfg_attr(not(test), allow(dead_code, reason = "only the test that makes the document builds schemas"))]
pub(crate) mod schema;
pub(crate) mod transactions;

use std::fmt::Display;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

/// Anything that is written as its text: times, amounts, ids.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<T>(pub(crate) T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<T>,
    /// Where the next page begins; `null` on the last one.
    #[schema(required = true)]
    pub(crate) next_cursor: Option<String>,
}

/// All of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Items<T> {
    pub(crate) items: Vec<T>,
}
