//! What a sink lacks, in numbers, and the one event that others lean on.

use crate::domain::{CopyNumber, LedgerEntry, Sink, TransactionId};
use crate::engine::{Engine, Error};

impl Engine {
    /// The number of the newest copy of another node's event.
    pub fn copy_position(&self) -> Result<CopyNumber, Error> {
        Ok(self.core().snapshot()?.copy_position()?)
    }

    /// How many entries of a sink are parked, as of the last commit. Kept, not counted.
    pub fn parked_count(&self, sink: Sink) -> u64 {
        self.core().view().acknowledged.parked(sink)
    }

    /// The `recorded` event whose facts a transaction shows here, own or a copy: a decision whose transaction PostgreSQL
    /// does not know brings it along.
    pub fn recorded(&self, id: &TransactionId) -> Result<Option<LedgerEntry>, Error> {
        Ok(self.core().snapshot()?.recorded_entry(id)?)
    }
}
