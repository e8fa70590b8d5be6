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
mod compact;
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
mod opening;
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

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use rand::Rng;
use redb::{Database, Durability, ReadableDatabase, StorageBackend};

pub use absorb::Merged;
pub use batch::Batch;
pub use compact::{CompactReport, compact};
pub use entries::Portion;
pub use error::{OpenError, StoreError};
pub use file::create_directory;
pub use ledger::StoredTransaction;
pub use query::{Position, TransactionFilter, TransactionPage};
pub use records::{
    BalanceSideV1 as BalanceSide, BalanceV1 as Balance, ReceiptV1 as Receipt, StoreAge, TotalsV2 as Totals,
};
pub use registry::{Publish, PurgedAgents};
pub use seal::FileId;
pub use sinks::Acknowledged;
pub use snapshot::{ChangedAgent, ChangedState, Load, Snapshot};
pub use tables::{TxKey, minute_of};
pub use verify::{VerifyReport, verify};

pub(crate) use self::opening::open_error;

use self::again::WrittenAgain;
use self::ledger::Known;
use self::log::LogHead;
use self::opening::{HeadError, Opened, Purpose, guarded, head_error, initialise, open_database, open_ours, read_head};
use self::reserve::Reserve;
use self::runs::Waiting;
use self::seal::Seal;
use self::tables::meta;
use self::trial::Trial;
use crate::domain::{Identity, NodeId, Timestamp};

/// The format that this version writes, and the only one that it reads.
pub const FORMAT: u32 = 5;
/// The name of the file in a data directory.
pub const FILE_NAME: &str = "tradepost.redb";
/// How much a probe writes: enough that a disk with room for a page or two does not pass for one with room.
const PROBE_BYTES: usize = 256 * 1024;

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
        let reserve = path.as_deref().map(Reserve::of);
        Ok((Self { backend: Mutex::new(Some(backend)), opened, path, reserve, seal }, head))
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
    ///
    /// It waits while a commit makes the file longer, so it is for whoever commits; others read in what that shows them.
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
        self.check_place()?;
        self.check_access()?;
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
            Ok(result)
        })
        .inspect_err(|_| opened.failed.store(true, Ordering::Relaxed))
    }

    /// Whether the file is where it was opened. What is written to one that was removed or replaced is gone with this
    /// process, and who starts next finds another store, or none.
    pub fn check_place(&self) -> Result<(), StoreError> {
        match (&self.seal, &self.path) {
            (Some(seal), Some(path)) if !seal.is_in_its_place() => Err(StoreError::Displaced(path.clone())),
            _ => Ok(()),
        }
    }

    /// Whether redb still reads and writes. It does not once a read has failed, of which only its reader was told.
    pub fn check_access(&self) -> Result<(), StoreError> {
        match self.opened.load().as_deref() {
            Some(opened) if opened.revoker.has_failed_to_read() => {
                Err(StoreError::Io(Arc::new(io::Error::other("the file could not be read"))))
            }
            _ => Ok(()),
        }
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
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write).
    pub fn probe(&self) -> Result<(), StoreError> {
        let opened = self.opened.load();
        let opened = opened.as_ref().ok_or(StoreError::Closed)?;
        probe(&opened.database).inspect_err(|_| opened.failed.store(true, Ordering::Relaxed))
    }

    /// Throws the open database away and opens the file anew, checking every page's checksum. Snapshots of the old
    /// one fail from here on.
    ///
    /// Nothing reaches the disk, so that it can be read from even where it takes no writes. Before the next write comes
    /// [`resume`](Self::resume). `node_id` says whose file it was.
    pub fn reopen(&self, node_id: NodeId) -> Result<Head, StoreError> {
        if let Some(old) = self.opened.swap(None) {
            old.revoker.revoke();
        }
        let trial = Arc::new(Trial::of(self.backend()?)?);
        let opened = open_database(trial.clone(), true)?;
        let head = guarded(|| read_head(&opened.database)).map_err(HeadError::of_known)?;
        // A change of identity may have been committed although its commit failed.
        if !head.identity.is_own(node_id) {
            return Err(StoreError::Damaged("it is another node's file now".to_owned()));
        }
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
            // The last owner closes the database, which writes what makes the next opening quick.
            Some(Ok(opened)) => {
                let is_sound = opened.takes_writes() && !opened.failed.load(Ordering::Relaxed);
                guarded(|| opened.database.close().map_err(StoreError::from)).is_ok() && is_sound
            }
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

fn probe(database: &Database) -> Result<(), StoreError> {
    for fill in [true, false] {
        let transaction = database.begin_write()?;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// A file whose syncs fail for as long as it is told so.
    #[derive(Debug)]
    struct Unsteady {
        file: Arc<dyn StorageBackend>,
        fails: AtomicBool,
    }

    impl StorageBackend for Unsteady {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            if self.fails.load(Ordering::SeqCst) { Err(io::Error::other("injected")) } else { self.file.sync_data() }
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.file.write(offset, data)
        }
    }

    #[test]
    fn a_file_whose_disk_failed_a_probe_or_its_closing_is_not_sealed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        let mut random = StdRng::seed_from_u64(1);
        Store::open_file(&path, Mint { now: Timestamp::from_micros(1), random: &mut random }).unwrap().0.close();
        for (fails_probe, fails_closing) in [(false, false), (true, false), (false, true)] {
            let locked = file::open_existing(&path).unwrap();
            let file = Arc::new(Unsteady { file: locked.backend, fails: AtomicBool::new(false) });
            let seal = || Seal::of(&path, locked.id);
            let mint = Mint { now: Timestamp::from_micros(1), random: &mut random };
            let (store, _) = Store::open_for(file.clone(), Some(path.clone()), Some(seal()), mint).unwrap();
            file.fails.store(fails_probe, Ordering::SeqCst);
            assert_eq!(store.probe().is_err(), fails_probe);
            file.fails.store(fails_closing, Ordering::SeqCst);
            store.close();
            assert_eq!(seal().is_whole(), !fails_probe && !fails_closing);
        }
    }
}
