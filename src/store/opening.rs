//! Opening a file: it is looked at, and is known for one of ours, of this format and whole, before anything in it changes.
//!
//! What it is opened for decides how much is checked first. An empty backend becomes a new store here; whatever else is
//! found damaged, foreign, older or newer is left as it is, and named.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use redb::{Database, ReadableDatabase, StorageBackend};

use super::backend::{Revocable, Revoker};
use super::batch::Batch;
use super::error::{OpenError, StoreError};
use super::file;
use super::ledger::Known;
use super::seal::Seal;
use super::snapshot::Snapshot;
use super::tables::{self, meta};
use super::trial::Trial;
use super::{FORMAT, Head, Mint};
use crate::domain::{Identity, NodeId};

/// How much of the file redb keeps in memory.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// A database that is open.
#[derive(Debug)]
pub struct Opened {
    pub database: Database,
    pub revoker: Revoker,
    /// What keeps back the writes of an opening; `None` where they went to the disk at once.
    pub trial: Option<Arc<Trial>>,
    /// Whether a write has failed.
    pub failed: AtomicBool,
}

impl Opened {
    /// Whether what is written reaches the disk.
    pub fn takes_writes(&self) -> bool {
        self.trial.as_ref().is_none_or(|trial| trial.is_adopted())
    }
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To answer from it, and to write: the checksum of every page is checked first.
    Serve,
    /// The same, where nobody has touched it since it was closed in order: nothing needs to be checked.
    Continue,
    /// To put its pages in order.
    Rewrite,
    /// To look at it, whatever is wrong with it; nothing in it is changed.
    Look,
}

/// Opens the file of a stopped store for work on the whole of it.
pub fn open_stopped(path: &Path, purpose: Purpose) -> Result<(Opened, Arc<dyn StorageBackend>, Identity), OpenError> {
    let locked = file::open_existing(path)?;
    let (opened, identity) = open_ours(&locked.backend, path, purpose, read_identity)?;
    if purpose == Purpose::Rewrite {
        Seal::of(path, locked.id).break_open().map_err(|error| open_error(path, error.into()))?;
    }
    Ok((opened, locked.backend, identity))
}

/// Opens what `recognise` takes for a store of ours, and changes nothing in it unless it does, nor for a look.
pub fn open_ours<T>(
    backend: &Arc<dyn StorageBackend>,
    shown: &Path,
    purpose: Purpose,
    recognise: impl FnOnce(&Database) -> Result<T, HeadError>,
) -> Result<(Opened, T), OpenError> {
    let fail = |error: StoreError| open_error(shown, error);
    let trial = Arc::new(Trial::of(Arc::clone(backend)).map_err(|error| fail(error.into()))?);
    let opened = open_database(trial.clone(), purpose == Purpose::Serve).map_err(fail)?;
    let recognised = guarded(|| recognise(&opened.database)).map_err(|error| head_error(shown, error))?;
    if purpose != Purpose::Look {
        trial.adopt().map_err(|error| fail(error.into()))?;
    }
    Ok((opened, recognised))
}

/// Opens a database as it is; with `check`, every page's checksum first.
pub fn open_database(backend: Arc<dyn StorageBackend>, check: bool) -> Result<Opened, StoreError> {
    let (revocable, revoker) = Revocable::new(backend);
    let database = guarded(|| {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(check)
            .create_with_backend(revocable)?;
        Ok::<_, StoreError>(database)
    })?;
    Ok(Opened { database, revoker, trial: None, failed: AtomicBool::new(false) })
}

/// redb may panic on a file that was altered behind its back; to a caller that is damage like any other.
pub fn guarded<T, E: From<StoreError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(StoreError::Damaged(format!("reading it made no sense: {text}")).into())
    })
}

/// Makes an empty database a new store.
pub fn initialise(database: &Database, mint: Mint<'_>) -> Result<(), StoreError> {
    let mut random = [0; 10];
    mint.random.fill_bytes(&mut random);
    let node_id = NodeId::mint(mint.now, random);
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(tables::META)?;
        table.insert(meta::FORMAT, FORMAT.to_le_bytes().as_slice())?;
        table.insert(meta::NODE_ID, node_id.as_bytes().as_slice())?;
    }
    Batch::create_tables(&transaction, node_id)?;
    transaction.commit()?;
    Ok(())
}

/// Why a file is not taken for one of ours.
pub enum HeadError {
    Format(u32),
    Store(StoreError),
}

impl HeadError {
    /// What it means in a file that was recognised before.
    pub fn of_known(self) -> StoreError {
        match self {
            Self::Format(found) => StoreError::Damaged(format!("its format turned to {found}")),
            Self::Store(error) => error,
        }
    }
}

impl<E: Into<StoreError>> From<E> for HeadError {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

/// Whether the file is one of ours, of a format that this version knows; whose it is.
pub fn read_identity(database: &Database) -> Result<Identity, HeadError> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(tables::META) {
        Err(redb::TableError::TableDoesNotExist(_)) => {
            return Err(StoreError::Damaged("it is a redb file, but not one of tradepost's".to_owned()).into());
        }
        other => other?,
    };
    let field = |name: &'static str| -> Result<Vec<u8>, StoreError> {
        let row = table.get(name)?.ok_or_else(|| StoreError::Damaged(format!("meta record `{name}` is missing")))?;
        Ok(row.value().to_vec())
    };
    let malformed = |name: &str| StoreError::Damaged(format!("meta record `{name}` is malformed"));
    let format = field(meta::FORMAT)?.try_into().map(u32::from_le_bytes).map_err(|_| malformed(meta::FORMAT))?;
    if format == 0 {
        return Err(malformed(meta::FORMAT).into());
    }
    if format != FORMAT {
        return Err(HeadError::Format(format));
    }
    let node_id = field(meta::NODE_ID)?.try_into().map(NodeId::from_bytes).map_err(|_| malformed(meta::NODE_ID))?;
    let earlier = table.get(meta::EARLIER_IDS)?.map(|row| row.value().to_vec()).unwrap_or_default();
    let (ids, rest) = earlier.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(malformed(meta::EARLIER_IDS).into());
    }
    Ok(Identity { node_id, earlier: ids.iter().map(|id| NodeId::from_bytes(*id)).collect() })
}

/// Where the next batch goes on. What every write relies on is checked here.
pub fn read_head(database: &Database) -> Result<Head, HeadError> {
    let identity = Arc::new(read_identity(database)?);
    let transaction = database.begin_read()?;
    let snapshot = Snapshot::new(transaction);
    snapshot.require_tables()?;
    let newest_created = snapshot.newest_transaction()?.map(|key| key.created_at);
    let head = Head {
        identity,
        log: snapshot.log_head()?,
        totals: snapshot.totals()?,
        newest_created,
        last_recorded: newest_created,
        held: snapshot.held_len()?,
        waiting: snapshot.waiting()?,
        acknowledged: snapshot.acknowledged()?,
        known: Known::default(),
    };
    if head.log.seq != head.totals.events {
        let (rows, counted) = (head.log.seq, head.totals.events);
        return Err(
            StoreError::Damaged(format!("the ledger log ends at row {rows}, but {counted} were written")).into()
        );
    }
    Ok(head)
}

/// The same to whoever opens the file at `path`.
pub fn head_error(path: &Path, error: HeadError) -> OpenError {
    match error {
        HeadError::Format(found) if found < FORMAT => OpenError::Older { path: path.to_owned(), found, known: FORMAT },
        HeadError::Format(found) => OpenError::Newer { path: path.to_owned(), found, known: FORMAT },
        HeadError::Store(error) => open_error(path, error),
    }
}

/// What an error of the store means to whoever opens the file at `path`.
pub fn open_error(path: &Path, error: StoreError) -> OpenError {
    let path = path.to_owned();
    match error {
        StoreError::Damaged(reason) => OpenError::Damaged { path, reason },
        StoreError::NoSpace(source) | StoreError::Io(source) => match source.kind() {
            // This is how redb says that a file is not one of its own.
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
                OpenError::Damaged { path, reason: source.to_string() }
            }
            kind => OpenError::Io { path, source: std::io::Error::new(kind, source.to_string()) },
        },
        StoreError::Closed | StoreError::Displaced(_) => {
            OpenError::Damaged { path, reason: "it went away while it was opened".to_owned() }
        }
    }
}
