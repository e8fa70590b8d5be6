//! What the writer and all handles share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use tokio::sync::watch;

use super::directory::{Directory, Entry};
use super::error::Error;
use super::export::Exports;
use super::hang::{HANGING, Progress};
use super::lease::Moment;
use super::loads::Loads;
use super::replica::{CommitMark, SinkBoard};
use super::rotation::Rotation;
use crate::clock::Clock;
use crate::domain::{Agent, Identity, LogPosition, Ttl};
use crate::metrics::Metrics;
use crate::store::{Acknowledged, Snapshot, Store, StoreError, Totals};

/// One state of the store, that of the last commit, with what is derived from it.
///
/// Whoever reads in it waits for nothing: a read that begins in redb while the file grows waits until that is on the disk.
/// So the writer begins one after each commit, for everybody.
#[derive(Clone)]
pub struct View {
    /// The store as it was; or why there is nothing to be read at present.
    pub snapshot: Result<Arc<Snapshot>, StoreError>,
    /// This node, and who it was before.
    pub identity: Arc<Identity>,
    /// Every agent.
    pub directory: Directory,
    /// How much work each provider was given lately.
    pub loads: Loads,
    /// The store's counters.
    pub totals: Totals,
    /// The end of the ledger log.
    pub log: LogPosition,
    /// What PostgreSQL has acknowledged of the ledger.
    pub acknowledged: Acknowledged,
}

impl View {
    /// Of a store of which nothing has been read yet.
    fn of_nothing(identity: Arc<Identity>) -> Self {
        Self {
            snapshot: Err(StoreError::Closed),
            identity,
            directory: Directory::default(),
            loads: Loads::default(),
            totals: Totals::default(),
            log: LogPosition::default(),
            acknowledged: Acknowledged::default(),
        }
    }

    /// The store as it was.
    pub fn snapshot(&self) -> Result<&Arc<Snapshot>, StoreError> {
        self.snapshot.as_ref().map_err(Clone::clone)
    }

    /// All of an agent that the directory lists.
    pub fn agent(&self, entry: &Entry) -> Result<Agent, StoreError> {
        let id = &entry.standing.agent_id;
        self.snapshot()?.agent(id)?.ok_or_else(|| StoreError::Damaged(format!("agent {id} is listed but not there")))
    }
}

/// Why writes are refused.
#[derive(Debug)]
struct Failed {
    error: Error,
    /// Whether there is room for bookkeeping all the same.
    has_reserve: bool,
}

/// Shared state: only the writer changes it, everybody reads it without a lock.
pub struct Core {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub default_ttl: Ttl,
    pub rotation: Rotation,
    pub sinks: SinkBoard,
    pub exports: Exports,
    pub progress: Progress,
    view: ArcSwap<View>,
    commits: watch::Sender<CommitMark>,
    failed: ArcSwapOption<Failed>,
    closing: AtomicBool,
}

impl Core {
    pub fn new(
        store: Store,
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        default_ttl: Ttl,
    ) -> Self {
        Self {
            store,
            clock,
            metrics,
            default_ttl,
            rotation: Rotation::default(),
            sinks: SinkBoard::default(),
            exports: Exports::default(),
            progress: Progress::default(),
            view: ArcSwap::from_pointee(View::of_nothing(identity)),
            commits: watch::Sender::default(),
            failed: ArcSwapOption::empty(),
            closing: AtomicBool::new(false),
        }
    }

    /// Both clocks, now.
    pub fn moment(&self) -> Moment {
        Moment { now: self.clock.now(), monotonic: self.clock.monotonic() }
    }

    /// The view of the last commit, where the store can be read: the lists of one that cannot be may be out of date, and what
    /// they do not list may be there.
    pub fn readable(&self) -> Result<Guard<Arc<View>>, StoreError> {
        let view = self.view();
        view.snapshot()?;
        Ok(view)
    }

    /// The view of the last commit.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// The store as of the last commit.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, StoreError> {
        self.view().snapshot().cloned()
    }

    /// Lets go of the store's last state, which keeps what it was read from in memory: until there is another view, whoever
    /// reads is told why.
    pub fn withdraw_snapshot(&self, why: StoreError) {
        let view = View { snapshot: Err(why), ..View::clone(&self.view()) };
        self.view.store(Arc::new(view));
    }

    /// Puts a new view in the place of the last, and says how far the store has come.
    pub fn publish(&self, view: View, mark: CommitMark) {
        self.view.store(Arc::new(view));
        self.commits.send_if_modified(|last| std::mem::replace(last, mark) != mark);
    }

    /// How far the store has come, for those who wait for more.
    pub fn commits(&self) -> watch::Receiver<CommitMark> {
        self.commits.subscribe()
    }

    /// Why writes are refused at present, if they are.
    pub fn failed(&self) -> Option<Error> {
        if self.is_closing() {
            return Some(Error::Unavailable("the engine is closed".into()));
        }
        self.failure()
    }

    /// Why the store takes no writes at present, if it takes none.
    pub fn failure(&self) -> Option<Error> {
        self.failed.load().as_deref().map(|failed| failed.error.clone()).or_else(|| {
            let seconds = HANGING.as_secs();
            let hangs =
                || Error::Unavailable(format!("the disk has not answered a commit for {seconds} s or more").into());
            self.progress.hangs().then(hangs)
        })
    }

    /// The same for bookkeeping.
    pub fn failed_for_bookkeeping(&self) -> Option<Error> {
        let has_reserve = self.failed.load().as_deref().is_some_and(|failed| failed.has_reserve);
        self.failed().filter(|_| self.is_closing() || !has_reserve)
    }

    /// Refuses commands from here on.
    pub fn begin_closing(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// Whether commands are refused for good.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Says that writes are refused; those that are bookkeeping only if there is no reserve for them.
    pub fn set_failed(&self, error: Error, has_reserve: bool) {
        self.failed.store(Some(Arc::new(Failed { error, has_reserve })));
    }

    /// Says that writes are taken again.
    pub fn set_sound(&self) {
        self.failed.store(None);
    }

    /// Closes the store for good.
    pub fn close(&self) {
        self.begin_closing();
        self.withdraw_snapshot(StoreError::Closed);
        self.store.close();
    }
}
