//! All matching transactions of one snapshot, and for how long that may be held.
//!
//! A snapshot keeps the pages of its state from being used again, so while one is held the file grows with every commit. How
//! long an export takes is up to whoever reads it; so its snapshot is taken away by the writer when the file has grown too
//! much meanwhile, or when the disk is full.
//!
//! Deliberately absent: a limit of time. While little is written, an export stands in nobody's way.

use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};

use super::Engine;
use super::error::Error;
use crate::domain::Transaction;
use crate::store::{Acknowledged, Position, Snapshot, StoreError, TransactionFilter};

/// How much a file may grow beside an export however small it was: that is some thousand commits, within which a small file
/// is long read, and a disk that has no room for it is as good as full.
const GROWTH_BYTES: u64 = 256 * 1024 * 1024;

/// All matching transactions of one snapshot, in chunks.
pub struct Export {
    held: Arc<Mutex<Held>>,
    /// As of the same state.
    acknowledged: Acknowledged,
    filter: TransactionFilter,
    next: Next,
}

/// The snapshot, or why it was taken away.
type Held = Result<Arc<Snapshot>, Error>;

enum Next {
    From(Option<Position>),
    End,
}

impl Export {
    /// The next matches, at most `max` and possibly none; `None` at the end.
    ///
    /// # Errors
    ///
    /// When the store cannot be read any more, or not for this export, which has taken too long; what was exported so far
    /// is then not all.
    pub fn next_chunk(&mut self, max: usize) -> Result<Option<Vec<Transaction>>, Error> {
        let Next::From(after) = &self.next else { return Ok(None) };
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = held.as_ref().map_err(Error::clone)?;
        let page = snapshot.transactions(&self.filter, max, after.as_ref(), self.acknowledged)?;
        self.next = match page.next {
            Some(position) => Next::From(Some(position)),
            None => Next::End,
        };
        Ok(Some(page.items))
    }
}

impl Engine {
    /// All matching transactions of one snapshot. It pins that snapshot's pages while it is held, and is broken off when the
    /// file has become too large meanwhile, or the disk is full.
    pub fn export(&self, filter: &TransactionFilter) -> Result<Export, Error> {
        let core = self.core();
        let bytes = core.store.bytes()?;
        let view = core.view();
        let held = core.exports.begin(Arc::clone(view.snapshot()?), bytes);
        Ok(Export { held, acknowledged: view.acknowledged, filter: filter.clone(), next: Next::From(None) })
    }
}

/// The exports that are under way.
#[derive(Default)]
pub struct Exports(Mutex<Vec<UnderWay>>);

struct UnderWay {
    held: Weak<Mutex<Held>>,
    /// The length of the file when it began.
    bytes: u64,
}

impl Exports {
    fn begin(&self, snapshot: Arc<Snapshot>, bytes: u64) -> Arc<Mutex<Held>> {
        let held = Arc::new(Mutex::new(Ok(snapshot)));
        let mut exports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Where nothing is written nobody else clears them away.
        exports.retain(|export| export.held.strong_count() > 0);
        exports.push(UnderWay { held: Arc::downgrade(&held), bytes });
        held
    }

    /// Breaks off those beside which the file has grown too much. Its length is asked for only if there are any.
    pub fn break_off_slow(&self, bytes: impl FnOnce() -> Result<u64, StoreError>) {
        let mut exports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if exports.is_empty() {
            return;
        }
        // Where not even that can be told, the next commit fails as well.
        let Ok(now) = bytes() else { return };
        exports.retain(|export| {
            let why = format!("while it was read the file grew from {} to {now} bytes", export.bytes);
            export.is_to_go_on(has_grown_too_much(export.bytes, now).then_some(&why))
        });
    }

    /// Breaks off all, whose pages may be the room that is needed.
    pub fn break_off_on_full_disk(&self) {
        let mut exports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        exports.retain(|export| export.is_to_go_on(Some("the disk is full")));
    }
}

impl UnderWay {
    /// Whether it is still to be looked after. One that is being read at this moment is not broken off yet.
    fn is_to_go_on(&self, broken_off_because: Option<&str>) -> bool {
        let Some(held) = self.held.upgrade() else { return false };
        let Some(why) = broken_off_because else { return true };
        let mut held = match held.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return true,
        };
        let error = format!("the export was broken off: {why}, and what it reads cannot be used again before it ends");
        *held = Err(Error::Unavailable(error.into()));
        false
    }
}

/// As much again as it was is what an export of all of a large file is given.
fn has_grown_too_much(from: u64, to: u64) -> bool {
    to > from.saturating_mul(2).saturating_add(GROWTH_BYTES)
}
