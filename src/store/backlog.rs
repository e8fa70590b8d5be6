//! What a sink lacks, in numbers, and the one event that others lean on.

use redb::ReadableTable;

use super::entries::Portion;
use super::error::StoreError;
use super::events::Place;
use super::query;
use super::sinks::{parked_range, parse_parked_key};
use super::snapshot::Snapshot;
use super::tables::{self, TxKey, id_key};
use crate::domain::{CopyNumber, LedgerEntry, Sink, TransactionId};

const ONE: Portion = Portion { max_events: 1, max_bytes: usize::MAX };

impl Snapshot {
    /// The number of the newest copy of another node's event; 0 while there is none.
    pub fn copy_position(&self) -> Result<CopyNumber, StoreError> {
        Ok(CopyNumber(self.table(tables::COPIES)?.last()?.map_or(0, |(number, _)| number.value())))
    }

    /// How many entries a sink has refused and not taken since.
    pub fn parked_count(&self, sink: Sink) -> Result<u64, StoreError> {
        let table = self.table(tables::PARKED)?;
        let mut count = 0;
        for row in table.range::<&[u8]>(parked_range(sink).as_slice()..)? {
            let (key, _) = row?;
            if parse_parked_key(key.value()).is_none_or(|(found, _)| found != sink) {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    /// The `recorded` event whose facts a transaction shows, as its author wrote it.
    pub fn recorded_entry(&self, id: &TransactionId) -> Result<Option<LedgerEntry>, StoreError> {
        let key = self.table(tables::TRANSACTION_IDS)?.get(id_key(id).as_slice())?.map(|key| *key.value());
        let Some(key) = key else { return Ok(None) };
        let row = query::row(&self.table(tables::TRANSACTIONS)?, TxKey::from_bytes(&key))?;
        let Some(first) = row.events.first() else { return Ok(None) };
        Ok(match Place::from_bits(*first) {
            Place::Log(seq) => self.log_after(seq - 1, ONE)?.pop(),
            Place::Copy(CopyNumber(number)) => {
                self.copies_after(CopyNumber(number - 1), ONE)?.pop().map(|(_, entry)| entry)
            }
        })
    }
}
