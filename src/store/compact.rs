//! Shrinking the file of a stopped store.

use std::path::Path;

use redb::Database;

use super::batch::Batch;
use super::error::{OpenError, StoreError};
use super::opening::{HeadError, Purpose, guarded, open_error, open_stopped, read_head};

/// What compacting a file came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactReport {
    /// The file's length before, in bytes.
    pub before_bytes: u64,
    /// And after.
    pub after_bytes: u64,
}

/// Shrinks the file of a stopped store, with everything in its place.
pub fn compact(path: &Path) -> Result<CompactReport, OpenError> {
    let fail = |error: StoreError| open_error(path, error);
    let (mut opened, backend, _) = open_stopped(path, Purpose::Rewrite)?;
    let before_bytes = backend.len().map_err(|error| fail(error.into()))?;
    guarded(|| {
        put_in_place(&opened.database)?;
        // Each pass moves what the last one freed; it says whether another may help.
        while opened.database.compact().map_err(|error| match error {
            redb::CompactionError::Storage(error) => StoreError::from(error),
            other => StoreError::Damaged(other.to_string()),
        })? {}
        Ok(())
    })
    .map_err(fail)?;
    opened.database.close().map_err(|error| fail(error.into()))?;
    let after_bytes = backend.len().map_err(|error| fail(error.into()))?;
    Ok(CompactReport { before_bytes, after_bytes })
}

/// Writes the changes that wait to where they belong.
fn put_in_place(database: &Database) -> Result<(), StoreError> {
    let head = read_head(database).map_err(HeadError::of_known)?;
    let transaction = database.begin_write()?;
    let mut batch = Batch::new(&transaction, head);
    batch.settle()?;
    batch.finish()?;
    Ok(transaction.commit()?)
}
