//! The file on disk: created whole or not at all, private, and held by one process.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::error::OpenError;

/// A locked file, as a backend. The lock lasts until the last clone of the backend is gone.
#[derive(Debug)]
pub struct LockedFile {
    /// The backend over the file.
    pub backend: Arc<dyn StorageBackend>,
}

/// Creates the directory, 0700, and those above it.
pub fn create_directory(path: &Path) -> Result<(), OpenError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

/// Creates a store at `path` unless there is one. `initialise` is given an empty, private, locked file under a
/// temporary name; only what it has completed and synced appears under `path`.
///
/// So a file of no length under `path` is always damage, never a store that a crash left half made.
pub fn create_if_missing(
    path: &Path,
    initialise: impl FnOnce(LockedFile) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    if path.try_exists().map_err(io_error(path))? {
        return Ok(());
    }
    let directory = parent_of(path);
    create_directory(&directory)?;
    // Two processes may get here at once: the directory's lock lets one of them create.
    let handle = File::open(&directory).map_err(io_error(&directory))?;
    handle.lock().map_err(io_error(&directory))?;
    if path.try_exists().map_err(io_error(path))? {
        return Ok(());
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let temporary = directory.join(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&temporary)(error)),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error(&temporary))?;
    let initialised =
        lock(file, &temporary).and_then(initialise).and_then(|()| fs::rename(&temporary, path).map_err(io_error(path)));
    if let Err(error) = initialised {
        // What is left under the temporary name is nobody's; the next attempt would remove it as well.
        fs::remove_file(&temporary).ok();
        return Err(error);
    }
    handle.sync_all().map_err(io_error(&directory))
}

/// Opens and locks an existing file and makes it private.
pub fn open_existing(path: &Path) -> Result<LockedFile, OpenError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound(path.to_owned()),
        io::ErrorKind::IsADirectory => {
            OpenError::Damaged { path: path.to_owned(), reason: "it is a directory".to_owned() }
        }
        _ => OpenError::Io { path: path.to_owned(), source },
    })?;
    let metadata = file.metadata().map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    if metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    }
    if metadata.len() == 0 {
        return Err(OpenError::Damaged { path: path.to_owned(), reason: "it is empty".to_owned() });
    }
    lock(file, path)
}

fn lock(file: File, path: &Path) -> Result<LockedFile, OpenError> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => return Err(OpenError::Io { path: path.to_owned(), source }),
    }
    let backend = FileBackend::new(file)
        .map_err(|error| OpenError::Io { path: path.to_owned(), source: io::Error::other(error.to_string()) })?;
    Ok(LockedFile { backend: Arc::new(backend) })
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
