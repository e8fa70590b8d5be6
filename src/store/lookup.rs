//! From a transaction's id to the transaction, within a snapshot or within the batch that is being made.

use super::error::StoreError;
use super::events::Place;
use super::records::TransactionV1;
use super::tables::{TxKey, key_within};
use crate::domain::{Event, TransactionId};

/// Where the parts of a transaction are read from.
pub trait LedgerReader {
    /// The record under a key.
    fn row(&self, key: TxKey) -> Result<Option<TransactionV1>, StoreError>;
    /// The event in a place.
    fn event(&self, place: Place) -> Result<Event, StoreError>;
    /// Where `transaction_ids` says that the transaction is.
    fn listed(&self, id: &TransactionId) -> Result<Option<TxKey>, StoreError>;
}

/// A transaction that was found.
pub struct Found {
    /// Where.
    pub key: TxKey,
    /// Its record.
    pub row: TransactionV1,
    /// The `recorded` event whose facts count.
    pub recorded: Event,
}

impl Found {
    /// Its events, as the record lists them.
    pub fn events(&self, reader: &impl LedgerReader) -> Result<Vec<Event>, StoreError> {
        let further = self.row.events.iter().skip(1).map(|bits| reader.event(Place::from_bits(*bits)));
        std::iter::once(Ok(self.recorded.clone())).chain(further).collect()
    }
}

/// Looks where the id itself points to first: that is where most transactions are, and costs no row.
pub fn find(reader: &impl LedgerReader, id: &TransactionId) -> Result<Option<Found>, StoreError> {
    if let Some(key) = key_within(id)
        && let Some(found) = at(reader, key)?
        && found.recorded.transaction_id == *id
    {
        return Ok(Some(found));
    }
    let Some(key) = reader.listed(id)? else { return Ok(None) };
    let found = at(reader, key)?.ok_or_else(|| missing(key))?;
    if found.recorded.transaction_id != *id {
        return Err(StoreError::Damaged(format!("the id {id} leads to transaction {}", found.recorded.transaction_id)));
    }
    Ok(Some(found))
}

fn at(reader: &impl LedgerReader, key: TxKey) -> Result<Option<Found>, StoreError> {
    reader.row(key)?.map(|row| begin(reader, key, row)).transpose()
}

/// The transaction of a record that was read already.
pub fn begin(reader: &impl LedgerReader, key: TxKey, row: TransactionV1) -> Result<Found, StoreError> {
    let first = row
        .events
        .first()
        .ok_or_else(|| StoreError::Damaged(format!("the transaction of {} has no events", key.created_at)))?;
    let recorded = reader.event(Place::from_bits(*first))?;
    Ok(Found { key, row, recorded })
}

/// What it means that a key leads to nothing.
pub fn missing(key: TxKey) -> StoreError {
    StoreError::Damaged(format!("the transaction of {} is missing", key.created_at))
}
