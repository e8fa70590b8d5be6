//! The ledger log: every event that this node wrote, in commit order, chained by hashes.
//!
//! `hash(n) = blake3(hash(n - 1) ‖ event bytes(n))`, and the hash before the first is all zeros. The event bytes hold
//! the sequence number and the node, so no row can be changed, moved, dropped or slipped in without the chain showing
//! it. The log is the audit trail and the outbox in one.

use redb::{ReadableTable, Table};

use super::codec;
use super::error::StoreError;
use super::records::EventV1;
use crate::domain::Event;

const HASH_BYTES: usize = 32;

/// The end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogHead {
    /// The sequence number of the newest row; 0 while there is none.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; HASH_BYTES],
}

/// A row of the log, taken apart.
pub struct LogRow<'a> {
    /// The chain's hash up to and including this row.
    pub hash: [u8; HASH_BYTES],
    /// The encoded event.
    pub event: &'a [u8],
}

impl<'a> LogRow<'a> {
    pub fn parse(row: &'a [u8]) -> Result<Self, StoreError> {
        let (hash, event) = row
            .split_first_chunk::<HASH_BYTES>()
            .ok_or_else(|| StoreError::Damaged("a row of the ledger log is too short".to_owned()))?;
        Ok(Self { hash: *hash, event })
    }
}

/// The hash of the chain after one more event.
pub fn chain(previous: &[u8; HASH_BYTES], event: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    hasher.update(event);
    *hasher.finalize().as_bytes()
}

/// Appends one event; its sequence number.
pub fn append(table: &mut Table<'_, u64, &[u8]>, head: &mut LogHead, event: &Event) -> Result<u64, StoreError> {
    let seq = head.seq + 1;
    let bytes = codec::encode(&EventV1::from_domain(event, seq));
    let hash = chain(&head.hash, &bytes);
    let mut row = Vec::with_capacity(HASH_BYTES + bytes.len());
    row.extend_from_slice(&hash);
    row.extend_from_slice(&bytes);
    table.insert(seq, row.as_slice())?;
    *head = LogHead { seq, hash };
    Ok(seq)
}

/// Reads one event. A row that is missing, or that holds another row's event, is damage.
pub fn read(table: &impl ReadableTable<u64, &'static [u8]>, seq: u64) -> Result<Event, StoreError> {
    let row = table.get(seq)?.ok_or_else(|| StoreError::Damaged(format!("ledger log row {seq} is missing")))?;
    let record: EventV1 = codec::decode(LogRow::parse(row.value())?.event)?;
    if record.node_seq == seq {
        Ok(record.into_domain())
    } else {
        Err(StoreError::Damaged(format!("ledger log row {seq} holds the event of row {}", record.node_seq)))
    }
}

/// The hash of the chain up to a row; all zeros before the first, `None` beyond the last.
pub fn hash(table: &impl ReadableTable<u64, &'static [u8]>, seq: u64) -> Result<Option<[u8; HASH_BYTES]>, StoreError> {
    if seq == 0 {
        return Ok(Some(LogHead::default().hash));
    }
    table.get(seq)?.map(|row| Ok(LogRow::parse(row.value())?.hash)).transpose()
}

/// The end of the log as it is stored.
pub fn head(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<LogHead, StoreError> {
    match table.last()? {
        None => Ok(LogHead::default()),
        Some((seq, row)) => Ok(LogHead { seq: seq.value(), hash: LogRow::parse(row.value())?.hash }),
    }
}
