//! The ledger log: every event that this node wrote, in commit order, chained by hashes.
//!
//! `hash(n) = blake3(hash(n - 1) ‖ event bytes(n))`, and the hash before the first is all zeros. The event bytes hold
//! the sequence number and the node, so no event can be changed, moved, dropped or slipped in without the chain showing
//! it. The log is the audit trail and the outbox in one.
//!
//! Consecutive events share a row of up to [`MAX_ROW_BYTES`], so that a page of redb's is full of them; the row's key is
//! the first one's sequence number. For each event it holds the length of its bytes as a
//! [number](super::block::write_number), the chain's hash up to and including it, and the bytes.

use std::ops::ControlFlow;

use redb::{ReadableTable, WriteTransaction};

use super::block::{read_number, write_number};
use super::codec;
use super::error::StoreError;
use super::event_record::EventV1;
use super::lazy::Lazy;
use super::tables;
use crate::domain::Event;

const HASH_BYTES: usize = 32;
/// The most bytes of several events in one row; one alone may be larger.
pub const MAX_ROW_BYTES: usize = 3_900;

/// The hash of the chain up to an event.
pub type ChainHash = [u8; HASH_BYTES];

/// The end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogHead {
    /// The sequence number of the newest event; 0 while there is none.
    pub seq: u64,
    /// Its hash.
    pub hash: ChainHash,
}

/// An event as it lies in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEntry<'a> {
    /// Its place in the log.
    pub seq: u64,
    /// The chain's hash up to and including it.
    pub hash: ChainHash,
    /// The encoded event.
    pub event: &'a [u8],
}

/// The events of a row, in order.
#[derive(Debug)]
pub struct LogEntries<'a> {
    seq: u64,
    rest: &'a [u8],
    is_first: bool,
}

impl<'a> LogEntries<'a> {
    /// Of the row with the key `first`.
    pub fn of(first: u64, row: &'a [u8]) -> Self {
        Self { seq: first, rest: row, is_first: true }
    }
}

impl<'a> Iterator for LogEntries<'a> {
    type Item = Result<LogEntry<'a>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() && !self.is_first {
            return None;
        }
        let seq = self.seq;
        let mut read = || {
            let length = usize::try_from(read_number(&mut self.rest)?).ok()?;
            let (hash, rest) = self.rest.split_first_chunk::<HASH_BYTES>()?;
            let (event, rest) = rest.split_at_checked(length)?;
            self.rest = rest;
            Some(LogEntry { seq, hash: *hash, event })
        };
        let entry = read();
        if entry.is_none() {
            // Nothing behind the damage can be read.
            self.rest = &[];
        }
        self.is_first = false;
        self.seq = self.seq.wrapping_add(1);
        Some(entry.ok_or_else(|| StoreError::Damaged(format!("ledger log: row {seq} is malformed"))))
    }
}

/// The hash of the chain after one more event.
pub fn chain(previous: &ChainHash, event: &[u8]) -> ChainHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous);
    hasher.update(event);
    *hasher.finalize().as_bytes()
}

/// The log within a write transaction. Its last row is kept aside while it grows, and written by [`flush`](Self::flush).
pub struct Log<'t> {
    table: Lazy<'t, u64, &'static [u8]>,
    last: Option<LastRow>,
    /// The bytes of the event that is being appended.
    event: Vec<u8>,
}

struct LastRow {
    first: u64,
    bytes: Vec<u8>,
    changed: bool,
}

impl<'t> Log<'t> {
    pub fn new(transaction: &'t WriteTransaction) -> Self {
        Self { table: Lazy::new(transaction, tables::LEDGER_LOG), last: None, event: Vec::new() }
    }

    /// Creates the table, so that readers find it.
    pub fn create(&self) -> Result<(), StoreError> {
        self.table.open().map(drop)
    }

    /// Appends the event that `encode` writes for the sequence number that it is given; that number.
    pub fn append(&mut self, head: &mut LogHead, encode: impl FnOnce(u64, &mut Vec<u8>)) -> Result<u64, StoreError> {
        let seq = head.seq + 1;
        self.event.clear();
        encode(seq, &mut self.event);
        let event = &self.event;
        let hash = chain(&head.hash, event);
        let mut last = match self.last.take() {
            Some(last) => Some(last),
            None => self.stored_last()?,
        };
        // A length takes at most 10 bytes.
        if last.as_ref().is_none_or(|last| last.bytes.len() + 10 + HASH_BYTES + event.len() > MAX_ROW_BYTES) {
            if let Some(full) = last.filter(|full| full.changed) {
                self.table.insert(full.first, full.bytes.as_slice())?;
            }
            last = Some(LastRow { first: seq, bytes: Vec::with_capacity(MAX_ROW_BYTES), changed: true });
        }
        let mut last = last.expect("it was begun above");
        write_number(&mut last.bytes, event.len() as u64);
        last.bytes.extend_from_slice(&hash);
        last.bytes.extend_from_slice(event);
        last.changed = true;
        self.last = Some(last);
        *head = LogHead { seq, hash };
        Ok(seq)
    }

    fn stored_last(&self) -> Result<Option<LastRow>, StoreError> {
        let row = self.table.open()?.last()?;
        Ok(row.map(|(first, row)| {
            let mut bytes = Vec::with_capacity(MAX_ROW_BYTES);
            bytes.extend_from_slice(row.value());
            LastRow { first: first.value(), bytes, changed: false }
        }))
    }

    /// As [`read`], with what was appended in this transaction.
    pub fn read(&self, seq: u64) -> Result<Event, StoreError> {
        match &self.last {
            Some(last) if last.first <= seq => event_within(last.first, &last.bytes, seq),
            _ => read(self.table.open()?, seq),
        }
    }

    /// Writes what is kept aside.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        if let Some(last) = self.last.take().filter(|last| last.changed) {
            self.table.insert(last.first, last.bytes.as_slice())?;
        }
        Ok(())
    }
}

/// Reads one event. One that is missing, or has another's place, is damage.
pub fn read(table: &impl ReadableTable<u64, &'static [u8]>, seq: u64) -> Result<Event, StoreError> {
    let row = table.range(..=seq)?.next_back().transpose()?;
    let (first, row) = row.ok_or_else(|| missing(seq))?;
    event_within(first.value(), row.value(), seq)
}

/// Visits the events after `seq` in order, for as long as `visit` says to go on.
pub fn visit_after(
    table: &impl ReadableTable<u64, &'static [u8]>,
    seq: u64,
    mut visit: impl FnMut(LogEntry<'_>) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    // What is wanted may begin within a row.
    let begins = table.range(..=seq)?.next_back().transpose()?.map_or(0, |(first, _)| first.value());
    for row in table.range(begins..)? {
        let (first, row) = row?;
        for entry in LogEntries::of(first.value(), row.value()) {
            let entry = entry?;
            if entry.seq > seq && visit(entry)?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The hash of the chain up to an event; all zeros before the first, `None` beyond the last.
pub fn hash(table: &impl ReadableTable<u64, &'static [u8]>, seq: u64) -> Result<Option<ChainHash>, StoreError> {
    let Some((first, row)) = table.range(..=seq)?.next_back().transpose()? else {
        return Ok((seq == 0).then_some(LogHead::default().hash));
    };
    for entry in LogEntries::of(first.value(), row.value()) {
        let entry = entry?;
        if entry.seq == seq {
            return Ok(Some(entry.hash));
        }
    }
    Ok(None)
}

fn event_within(first: u64, row: &[u8], seq: u64) -> Result<Event, StoreError> {
    for entry in LogEntries::of(first, row) {
        let entry = entry?;
        if entry.seq == seq {
            let record: EventV1 = codec::decode(entry.event)?;
            return if record.node_seq == seq {
                Ok(record.into_domain())
            } else {
                let found = record.node_seq;
                Err(StoreError::Damaged(format!("ledger log: event {seq} should be here, not event {found}")))
            };
        }
    }
    Err(missing(seq))
}

fn missing(seq: u64) -> StoreError {
    StoreError::Damaged(format!("ledger log: event {seq} is missing"))
}

/// The end of the log as it is stored.
pub fn head(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<LogHead, StoreError> {
    let Some((first, row)) = table.last()? else { return Ok(LogHead::default()) };
    let mut head = LogHead::default();
    for entry in LogEntries::of(first.value(), row.value()) {
        let entry = entry?;
        head = LogHead { seq: entry.seq, hash: entry.hash };
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;
    use redb::{Database, ReadableDatabase};

    use super::*;
    use crate::domain::{EventBody, EventId, NodeId, Timestamp, TransactionId};
    use crate::store::event_record::encode_event;

    fn event(number: usize, length: usize) -> Event {
        Event {
            event_id: EventId::from_bytes([number as u8; 16]),
            transaction_id: TransactionId::from_stored("t"),
            facts: [3; 32],
            round: 0,
            node_id: NodeId::from_bytes([1; 16]),
            at: Timestamp::from_micros(number as i64),
            body: EventBody::Cancelled { reason: Some("x".repeat(length)) },
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_appended_is_read_back_in_pages_and_chained(
            batches in prop::collection::vec(
                prop::collection::vec(prop_oneof![8 => 0_usize..300, 1 => 3_000_usize..9_000], 0..40), 1..6,
            ),
        ) {
            let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
            let mut head = LogHead::default();
            let mut written: Vec<Event> = Vec::new();
            for batch in batches {
                let transaction = database.begin_write().unwrap();
                let mut log = Log::new(&transaction);
                log.create().unwrap();
                for length in batch {
                    let event = event(written.len(), length);
                    let seq = log.append(&mut head, |seq, to| encode_event(&event, seq, to)).unwrap();
                    written.push(event);
                    prop_assert_eq!(seq, written.len() as u64);
                    for seq in [1, seq / 2 + 1, seq] {
                        prop_assert_eq!(&log.read(seq).unwrap(), &written[seq as usize - 1]);
                    }
                    prop_assert!(log.read(seq + 1).is_err());
                }
                log.flush().unwrap();
                drop(log);
                transaction.commit().unwrap();
                let table = database.begin_read().unwrap().open_table(tables::LEDGER_LOG).unwrap();
                prop_assert_eq!(super::head(&table).unwrap(), head);
                let mut previous = [0; HASH_BYTES];
                let mut seq = 0;
                for row in table.iter().unwrap() {
                    let (first, row) = row.unwrap();
                    let entries: Vec<_> = LogEntries::of(first.value(), row.value()).map(Result::unwrap).collect();
                    prop_assert!(entries.len() == 1 || row.value().len() <= MAX_ROW_BYTES);
                    for entry in entries {
                        seq += 1;
                        prop_assert_eq!(entry.seq, seq);
                        previous = chain(&previous, entry.event);
                        prop_assert_eq!(entry.hash, previous);
                        prop_assert_eq!(&read(&table, seq).unwrap(), &written[seq as usize - 1]);
                    }
                }
                prop_assert_eq!(seq, written.len() as u64);
                prop_assert_eq!(hash(&table, seq).unwrap(), Some(head.hash));
                prop_assert_eq!(hash(&table, seq + 1).unwrap(), None);
                prop_assert_eq!(hash(&table, 0).unwrap(), Some([0; HASH_BYTES]));
                for after in [0, seq / 3, seq / 2, seq, seq + 1] {
                    let mut visited = Vec::new();
                    visit_after(&table, after, |entry| {
                        assert_eq!(hash(&table, entry.seq).unwrap(), Some(entry.hash));
                        visited.push(entry.seq);
                        Ok(if visited.len() == 40 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                    })
                    .unwrap();
                    prop_assert_eq!(visited, (after + 1..=seq).take(40).collect::<Vec<_>>());
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(first: u64, row: Vec<u8>) {
            for entry in LogEntries::of(first, &row) {
                drop(entry);
            }
        }
    }
}
