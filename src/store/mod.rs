//! The store: one redb file that holds the registry, the ledger and its log.
//!
//! One [`Batch`] of decided changes is one durable redb transaction; a [`Snapshot`] reads one state of it. The store
//! knows no clock, no threads and no policy. It never answers from a file that it has found damaged, and it never puts
//! an empty store in the place of one.
//!
//! Deliberately absent: retries. After a failed write the outcome is unknown and redb refuses further writes; whoever
//! owns the store calls [`Store::reopen`].

mod absorb;
mod again;
mod ahead;
mod backend;
mod backlog;
mod batch;
mod block;
mod blocks;
mod codec;
#[cfg(test)]
mod codec_tests;
mod counters;
mod entries;
mod error;
mod event_record;
mod events;
mod file;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod lazy;
mod ledger;
mod log;
mod lookup;
mod query;
mod records;
mod registry;
mod reserve;
mod run;
mod runs;
mod seal;
mod sinks;
mod snapshot;
mod tables;
mod trial;
mod verify;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use rand::Rng;
use redb::{Database, Durability, ReadableDatabase, StorageBackend};

pub use absorb::Merged;
pub use batch::Batch;
pub use entries::Portion;
pub use error::{OpenError, StoreError};
pub use file::create_directory;
pub use ledger::StoredTransaction;
pub use query::{Position, TransactionFilter, TransactionPage};
pub use records::{
    BalanceSideV1 as BalanceSide, BalanceV1 as Balance, ReceiptV1 as Receipt, StoreAge, TotalsV2 as Totals,
};
pub use registry::{Publish, PurgedRemote};
pub use sinks::Acknowledged;
pub use snapshot::{ChangedAgent, ChangedState, Load, Snapshot};
pub use tables::{TxKey, minute_of};
pub use verify::{VerifyReport, verify};

use self::again::WrittenAgain;
use self::backend::{Revocable, Revoker};
use self::ledger::Known;
use self::log::LogHead;
use self::reserve::Reserve;
use self::runs::Waiting;
use self::seal::Seal;
use self::tables::meta;
use self::trial::Trial;
use crate::domain::{Identity, NodeId, Timestamp};

/// The format that this version writes, and the only one that it reads.
pub const FORMAT: u32 = 4;
/// The name of the file in a data directory.
pub const FILE_NAME: &str = "tradepost.redb";
/// How much a probe writes: enough that a disk with room for a page or two does not pass for one with room.
const PROBE_BYTES: usize = 256 * 1024;
/// How much of the file redb keeps in memory.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// An open store.
#[derive(Debug)]
pub struct Store {
    // Both are gone once the store is closed, and with the backend the lock on the file.
    backend: Mutex<Option<Arc<dyn StorageBackend>>>,
    opened: ArcSwapOption<Opened>,
    path: Option<PathBuf>,
    /// What is kept back for a full disk; only beside a file.
    reserve: Option<Reserve>,
    /// What is put there when the store is closed; only beside a file.
    seal: Option<Seal>,
    identity: ArcSwap<Identity>,
}

#[derive(Debug)]
struct Opened {
    database: Database,
    revoker: Revoker,
    /// What keeps back the writes of an opening; `None` where they went to the disk at once.
    trial: Option<Arc<Trial>>,
    /// Whether a write has failed.
    failed: AtomicBool,
}

impl Opened {
    fn takes_writes(&self) -> bool {
        self.trial.as_ref().is_none_or(|trial| trial.is_adopted())
    }
}

/// What a new store's node id is minted from.
pub struct Mint<'a> {
    /// The wall clock.
    pub now: Timestamp,
    /// Chance.
    pub random: &'a mut dyn Rng,
}

/// What the next batch continues from; known after opening and after every commit.
#[derive(Debug)]
pub struct Head {
    identity: Arc<Identity>,
    log: LogHead,
    totals: Totals,
    newest_created: Option<Timestamp>,
    /// When the last transaction was recorded here, which a clock that went back may have put before the newest.
    last_recorded: Option<Timestamp>,
    /// How many events wait for their transaction to be recorded.
    held: u64,
    waiting: Waiting,
    acknowledged: Acknowledged,
    known: Known,
}

impl Head {
    /// For one batch. What is known goes along and comes back only with what was committed.
    fn lend(&mut self) -> Self {
        Self { identity: Arc::clone(&self.identity), known: std::mem::take(&mut self.known), ..*self }
    }
}

impl Store {
    /// Opens the file at `path`, creating it (and its directory) if it does not exist.
    pub fn open_file(path: &Path, mint: Mint<'_>) -> Result<(Self, Head), OpenError> {
        file::create_if_missing(path, |locked| {
            let (store, _) =
                Self::open_backend(locked.backend, Some(path.to_owned()), Mint { now: mint.now, random: mint.random })?;
            store.close();
            Ok(())
        })?;
        let locked = file::open_existing(path)?;
        let seal = Seal::of(path, locked.id);
        let (store, head) = Self::open_for(locked.backend, Some(path.to_owned()), Some(seal), mint)?;
        file::make_private(path)?;
        // A disk that is full already has no room to keep back. It is taken when there is some, before writes are.
        store.keep_reserve().ok();
        Ok((store, head))
    }

    /// A store that is gone with the process.
    pub fn open_memory(mint: Mint<'_>) -> Result<(Self, Head), OpenError> {
        Self::open_backend(Arc::new(redb::backends::InMemoryBackend::new()), None, mint)
    }

    /// Opens over any backend; an empty one is made into a new store. `path` is for messages.
    pub fn open_backend(
        backend: Arc<dyn StorageBackend>,
        path: Option<PathBuf>,
        mint: Mint<'_>,
    ) -> Result<(Self, Head), OpenError> {
        Self::open_for(backend, path, None, mint)
    }

    fn open_for(
        backend: Arc<dyn StorageBackend>,
        path: Option<PathBuf>,
        seal: Option<Seal>,
        mint: Mint<'_>,
    ) -> Result<(Self, Head), OpenError> {
        let shown = path.clone().unwrap_or_else(|| PathBuf::from("memory"));
        let fail = |error: StoreError| open_error(&shown, error);
        // One for all reopenings: it knows what a failed sync was to write.
        let backend: Arc<dyn StorageBackend> = Arc::new(WrittenAgain::new(backend));
        let is_new = backend.len().map_err(|error| fail(error.into()))? == 0;
        let (opened, head) = if is_new {
            let opened = open_database(Arc::clone(&backend), false).map_err(fail)?;
            initialise(&opened.database, mint).map_err(fail)?;
            let head = guarded(|| read_head(&opened.database)).map_err(|error| head_error(&shown, error))?;
            (opened, head)
        } else {
            let is_whole = seal.as_ref().is_some_and(Seal::is_whole);
            let purpose = if is_whole { Purpose::Continue } else { Purpose::Serve };
            open_ours(&backend, &shown, purpose, |database| {
                let head = read_head(database)?;
                if let Some(seal) = &seal {
                    // One that stays, for whatever reason, is not that of the file any more once it is written to.
                    seal.break_open().ok();
                }
                Ok(head)
            })?
        };
        let opened = ArcSwapOption::new(Some(Arc::new(opened)));
        let identity = ArcSwap::new(Arc::clone(&head.identity));
        let reserve = path.as_deref().map(Reserve::of);
        Ok((Self { backend: Mutex::new(Some(backend)), opened, path, reserve, seal, identity }, head))
    }

    /// This store's node.
    pub fn node_id(&self) -> NodeId {
        self.identity.load().node_id
    }

    /// This store's node, and who it was before.
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.load_full()
    }

    /// Where the file is; `None` for other backends.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The length of the file, in bytes.
    pub fn bytes(&self) -> Result<u64, StoreError> {
        Ok(self.backend()?.len()?)
    }

    /// One state of the store, for reading. A held snapshot keeps its pages from being reused.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let opened = self.opened.load();
        let opened = opened.as_ref().ok_or(StoreError::Closed)?;
        Ok(Snapshot::new(opened.database.begin_read()?))
    }

    /// Collects changes and commits them durably, all or none. When `changes` fails, nothing is written.
    ///
    /// # Errors
    ///
    /// After an error the outcome is unknown (the commit may be on disk) and the store takes no further writes until
    /// [`reopen`](Self::reopen).
    pub fn write<R>(
        &self,
        head: &mut Head,
        changes: impl FnOnce(&mut Batch<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let opened = self.opened.load();
        let opened = opened.as_ref().ok_or(StoreError::Closed)?;
        assert!(opened.takes_writes(), "nothing is written to a store that was reopened and not resumed");
        guarded(|| {
            let mut transaction = opened.database.begin_write()?;
            transaction
                .set_durability(Durability::Immediate)
                .map_err(|error| StoreError::Damaged(format!("durable commits are refused: {error}")))?;
            let mut batch = Batch::new(&transaction, head.lend());
            let result = changes(&mut batch)?;
            if !batch.is_changed() {
                // Refusals and idle housekeeping cost no sync.
                head.known = batch.abandon();
                transaction.abort()?;
                return Ok(result);
            }
            let after = batch.finish()?;
            transaction.commit()?;
            *head = after;
            self.identity.store(Arc::clone(&head.identity));
            Ok(result)
        })
        .inspect_err(|_| opened.failed.store(true, Ordering::Relaxed))
    }

    /// Whether the disk takes writes, as far as that can be told without the store: readers are not disturbed. A disk
    /// that has no room for the reserve and a probe is full.
    pub fn try_disk(&self) -> Result<(), StoreError> {
        self.keep_reserve()?;
        match &self.path {
            Some(path) => Ok(file::try_disk(path, PROBE_BYTES)?),
            None => Ok(()),
        }
    }

    /// Keeps room back for a full disk, unless that is done already.
    pub fn keep_reserve(&self) -> Result<(), StoreError> {
        Ok(self.reserve.as_ref().map_or(Ok(()), Reserve::take)?)
    }

    /// Gives up what was kept back for a full disk.
    pub fn release_reserve(&self) -> Result<(), StoreError> {
        Ok(self.reserve.as_ref().map_or(Ok(()), Reserve::release)?)
    }

    /// Writes, syncs and removes a row of [`PROBE_BYTES`], to find out whether the disk takes writes.
    pub fn probe(&self) -> Result<(), StoreError> {
        let opened = self.opened.load();
        let opened = opened.as_ref().ok_or(StoreError::Closed)?;
        for fill in [true, false] {
            let transaction = opened.database.begin_write()?;
            {
                let mut table = transaction.open_table(tables::META)?;
                if fill {
                    table.insert(meta::PROBE, vec![0xa5; PROBE_BYTES].as_slice())?;
                } else {
                    table.remove(meta::PROBE)?;
                }
            }
            transaction.commit()?;
        }
        Ok(())
    }

    /// Throws the open database away and opens the file anew, checking every page's checksum. Snapshots of the old
    /// one fail from here on.
    ///
    /// Nothing reaches the disk, so that it can be read from even where it takes no writes. Before the next write comes
    /// [`resume`](Self::resume).
    pub fn reopen(&self) -> Result<Head, StoreError> {
        if let Some(old) = self.opened.swap(None) {
            old.revoker.revoke();
        }
        let trial = Arc::new(Trial::of(self.backend()?)?);
        let opened = open_database(trial.clone(), true)?;
        let head = guarded(|| read_head(&opened.database)).map_err(HeadError::of_known)?;
        // A change of identity may have been committed although its commit failed.
        if !head.identity.is_own(self.node_id()) {
            return Err(StoreError::Damaged("it is another node's file now".to_owned()));
        }
        self.identity.store(Arc::clone(&head.identity));
        self.opened.store(Some(Arc::new(Opened { trial: Some(trial), ..opened })));
        Ok(head)
    }

    /// Writes what reopening has kept back; from here on writes are possible.
    ///
    /// # Errors
    ///
    /// The disk took a part of it at most; only [`reopen`](Self::reopen) helps.
    pub fn resume(&self) -> Result<(), StoreError> {
        let opened = self.opened.load();
        let opened = opened.as_ref().ok_or(StoreError::Closed)?;
        Ok(opened.trial.as_ref().map_or(Ok(()), |trial| trial.adopt())?)
    }

    /// Closes the file and lets go of its lock. Snapshots that are still held fail from here on, and keep the lock
    /// until they are dropped.
    pub fn close(&self) {
        let in_order = match self.opened.swap(None).map(Arc::try_unwrap) {
            // The last owner drops the database, which writes what makes the next opening quick.
            Some(Ok(opened)) => opened.takes_writes() && !opened.failed.load(Ordering::Relaxed),
            // A reader that is under way would do so too late.
            Some(Err(shared)) => {
                shared.revoker.revoke();
                false
            }
            None => false,
        };
        let backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (true, Some(seal)) = (in_order, &self.seal) {
            // Without a seal the next opening checks every page, and that is all.
            seal.put().ok();
        }
        drop(backend);
    }

    fn backend(&self) -> Result<Arc<dyn StorageBackend>, StoreError> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(StoreError::Closed)
    }
}

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
    drop(opened);
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

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
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
fn open_stopped(path: &Path, purpose: Purpose) -> Result<(Opened, Arc<dyn StorageBackend>, Identity), OpenError> {
    let backend = file::open_existing(path)?.backend;
    let (opened, identity) = open_ours(&backend, path, purpose, read_identity)?;
    Ok((opened, backend, identity))
}

/// Opens what `recognise` takes for a store of ours, and changes nothing in it unless it does, nor for a look.
fn open_ours<T>(
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

fn open_database(backend: Arc<dyn StorageBackend>, check: bool) -> Result<Opened, StoreError> {
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
fn guarded<T, E: From<StoreError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(StoreError::Damaged(format!("reading it made no sense: {text}")).into())
    })
}

fn initialise(database: &Database, mint: Mint<'_>) -> Result<(), StoreError> {
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

enum HeadError {
    Format(u32),
    Store(StoreError),
}

impl HeadError {
    /// What it means in a file that was recognised before.
    fn of_known(self) -> StoreError {
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
fn read_identity(database: &Database) -> Result<Identity, HeadError> {
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
fn read_head(database: &Database) -> Result<Head, HeadError> {
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

fn head_error(path: &Path, error: HeadError) -> OpenError {
    match error {
        HeadError::Format(found) if found < FORMAT => OpenError::Older { path: path.to_owned(), found, known: FORMAT },
        HeadError::Format(found) => OpenError::Newer { path: path.to_owned(), found, known: FORMAT },
        HeadError::Store(error) => open_error(path, error),
    }
}

fn open_error(path: &Path, error: StoreError) -> OpenError {
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
        StoreError::Closed => OpenError::Damaged { path, reason: "it closed while it was opened".to_owned() },
    }
}
