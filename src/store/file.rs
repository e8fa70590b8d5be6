//! The file on disk: created whole or not at all, private, and held by one process.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{iter, thread};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::ahead::WrittenAhead;
use super::error::OpenError;
use super::seal::FileId;

/// How often a lock that somebody holds is tried again.
const LOCK_TRIES: usize = 50;
/// How long after the last time.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A locked file, as a backend. The lock lasts until the last clone of the backend is gone.
#[derive(Debug)]
pub struct LockedFile {
    /// The backend over the file.
    pub backend: Arc<dyn StorageBackend>,
    /// Which file it is.
    pub id: FileId,
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
    if is_taken(path).map_err(io_error(path))? {
        return Ok(());
    }
    let directory = parent_of(path);
    create_directory(&directory)?;
    // Two processes may get here at once: the directory's lock lets one of them create.
    let handle = File::open(&directory).map_err(io_error(&directory))?;
    handle.lock().map_err(io_error(&directory))?;
    if is_taken(path).map_err(io_error(path))? {
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

/// Whether anything lies under `path`: a link too, for what it points to may only be unmounted for now.
fn is_taken(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a file private that has been recognised as a store.
pub fn make_private(path: &Path) -> Result<(), OpenError> {
    let private = || {
        if fs::metadata(path)?.permissions().mode() & 0o077 == 0 {
            return Ok(());
        }
        fs::set_permissions(path, Permissions::from_mode(0o600))
    };
    private().map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

/// Writes and syncs a file beside the store and removes it again: whether the disk takes writes, found out without the
/// store.
pub fn try_disk(path: &Path, bytes: usize) -> io::Result<()> {
    let scratch = parent_of(path).join(".tradepost.probe");
    let written =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&scratch).and_then(|mut file| {
            file.write_all(&vec![0xa5; bytes])?;
            // The same call as the store's own.
            file.sync_data()
        });
    let removed = fs::remove_file(&scratch);
    written.and(removed)
}

/// Opens and locks an existing file.
pub fn open_existing(path: &Path) -> Result<LockedFile, OpenError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound(path.to_owned()),
        io::ErrorKind::IsADirectory => {
            OpenError::Damaged { path: path.to_owned(), reason: "it is a directory".to_owned() }
        }
        _ => OpenError::Io { path: path.to_owned(), source },
    })?;
    let metadata = file.metadata().map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
    if metadata.len() == 0 {
        return Err(OpenError::Damaged { path: path.to_owned(), reason: "it is empty".to_owned() });
    }
    lock(file, path)
}

/// Locks a file. Who holds it may do so for a moment only: a process that this one is starting has what this one had open
/// until it runs its own program, and would keep a store from being opened again that was just closed.
fn lock(file: File, path: &Path) -> Result<LockedFile, OpenError> {
    let mut pauses = iter::repeat_n(LOCK_PAUSE, LOCK_TRIES);
    loop {
        match (file.try_lock(), pauses.next()) {
            (Ok(()), _) => break,
            (Err(TryLockError::WouldBlock), Some(pause)) => thread::sleep(pause),
            (Err(TryLockError::WouldBlock), None) => return Err(OpenError::InUse(path.to_owned())),
            (Err(TryLockError::Error(source)), _) => return Err(OpenError::Io { path: path.to_owned(), source }),
        }
    }
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let id = FileId::of(&file.metadata().map_err(io_error)?);
    let backend = FileBackend::new(file).map_err(|error| io_error(io::Error::other(error.to_string())))?;
    let backend = WrittenAhead::new(Arc::new(backend)).map_err(io_error)?;
    Ok(LockedFile { backend: Arc::new(backend), id })
}

/// The directory that a path lies in.
pub fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
