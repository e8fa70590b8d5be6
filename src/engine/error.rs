//! Why the engine did not do what it was asked.

use std::sync::Arc;

use thiserror::Error;

use crate::domain::{Invalid, Refusal};
use crate::store::StoreError;

/// A command or a query did not go through.
#[derive(Debug, Clone, Error)]
pub enum Error {
    /// The request is against a rule; nothing was written.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The queue in front of the writer is full; nothing was written.
    #[error("too many writes are waiting; try again shortly")]
    Overloaded,
    /// There was no room for the commit. Nothing was acknowledged; the outcome is known after the store recovered.
    #[error("no space is left for the store: {0}")]
    StorageFull(Arc<str>),
    /// The store cannot answer, or a commit failed with unknown outcome. Nothing was acknowledged.
    #[error("the store is unavailable: {0}")]
    Unavailable(Arc<str>),
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Refused(invalid.into())
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSpace(source) => Self::StorageFull(source.to_string().into()),
            other => Self::Unavailable(other.to_string().into()),
        }
    }
}
