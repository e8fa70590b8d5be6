//! What can go wrong between us and the file.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

/// A read or a write of the store failed.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// The device has no room.
    #[error("no space left: {0}")]
    NoSpace(Arc<io::Error>),
    /// The device, or an earlier failure of it that redb has latched.
    #[error("I/O error: {0}")]
    Io(Arc<io::Error>),
    /// What was read is not what was written.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// Another file is under its name by now, or none.
    #[error("{} was removed, moved or replaced while it was served; put it back, or start again with what is there", .0.display())]
    Displaced(PathBuf),
    /// The store was closed, or replaced by a reopened one.
    #[error("the store is closed")]
    Closed,
}

/// A file could not be opened as a store.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process holds the file.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The file is damaged, or no store of ours. It was not changed.
    #[error("{}: {reason}; the file is left as it is", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written by a later version.
    #[error(
        "{}: file format {found}, but this version of tradepost knows only up to format {known}; use a newer tradepost",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The file's format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The file was written by an earlier version, in a format that nothing was ever released with.
    #[error(
        "{}: file format {found} is no longer read, this version of tradepost knows only format {known}; use the \
         tradepost that wrote it",
        .path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The file's format.
        found: u32,
        /// The only format known here.
        known: u32,
    },
    /// There is no such file.
    #[error("{} does not exist", .0.display())]
    NotFound(PathBuf),
    /// The file system said no.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpace(Arc::new(error))
            }
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl From<redb::StorageError> for StoreError {
    fn from(error: redb::StorageError) -> Self {
        match error {
            redb::StorageError::Io(error) => error.into(),
            redb::StorageError::Corrupted(what) => Self::Damaged(what),
            redb::StorageError::DatabaseClosed => Self::Closed,
            other => Self::Io(Arc::new(io::Error::other(other.to_string()))),
        }
    }
}

impl From<redb::TableError> for StoreError {
    fn from(error: redb::TableError) -> Self {
        match error {
            redb::TableError::Storage(error) => error.into(),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<redb::TransactionError> for StoreError {
    fn from(error: redb::TransactionError) -> Self {
        match error {
            redb::TransactionError::Storage(error) => error.into(),
            other => Self::Io(Arc::new(io::Error::other(other.to_string()))),
        }
    }
}

impl From<redb::CommitError> for StoreError {
    fn from(error: redb::CommitError) -> Self {
        match error {
            redb::CommitError::Storage(error) => error.into(),
            other => Self::Io(Arc::new(io::Error::other(other.to_string()))),
        }
    }
}

impl From<redb::DatabaseError> for StoreError {
    fn from(error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::Storage(error) => error.into(),
            other => Self::Damaged(other.to_string()),
        }
    }
}
