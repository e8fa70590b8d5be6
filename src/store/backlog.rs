//! What a sink lacks, in numbers, and the one event that others lean on.

use redb::{ReadableTable, ReadableTableMetadata};

use super::entries::Portion;
use super::error::StoreError;
use super::events::Place;
use super::lookup;
use super::snapshot::Snapshot;
use super::tables;
use crate::domain::{CopyNumber, LedgerEntry, TransactionId};

const ONE: Portion = Portion { max_events: 1, max_bytes: usize::MAX };

impl Snapshot {
    /// The number of the newest copy of another node's event; 0 while there is none.
    pub fn copy_position(&self) -> Result<CopyNumber, StoreError> {
        Ok(CopyNumber(self.table(tables::COPIES)?.last()?.map_or(0, |(number, _)| number.value())))
    }

    /// How many events wait for their transaction to be recorded.
    pub(super) fn held_len(&self) -> Result<u64, StoreError> {
        Ok(self.table(tables::HELD)?.len()?)
    }

    /// The `recorded` event whose facts a transaction shows, as its author wrote it.
    pub fn recorded_entry(&self, id: &TransactionId) -> Result<Option<LedgerEntry>, StoreError> {
        let Some(found) = lookup::find(&self.ledger()?, id)? else { return Ok(None) };
        let Some(first) = found.row.events.first() else { return Ok(None) };
        Ok(match Place::from_bits(*first) {
            Place::Log(seq) => self.log_after(seq - 1, ONE)?.pop(),
            Place::Copy(CopyNumber(number)) => {
                self.copies_after(CopyNumber(number - 1), ONE)?.pop().map(|(_, entry)| entry)
            }
        })
    }
}
