//! What is checked of replication: copies of other nodes' events, events that wait, cursors, parked entries.

use std::collections::HashSet;

use redb::{ReadableTable, ReadableTableMetadata};

use super::Check;
use crate::domain::ParkedKey;
use crate::store::error::StoreError;
use crate::store::events::{self, EntryV1, Place};
use crate::store::sinks::{ParkedV1, parse_parked_key};
use crate::store::snapshot::LedgerTables;
use crate::store::tables::{self, held_key};
use crate::store::{codec, lookup};

impl Check<'_> {
    /// Copies of other nodes' events: no gap, and each is a record of what it should be. How many there are.
    pub(super) fn copies(&mut self) -> Result<u64, StoreError> {
        let table = self.snapshot.table(tables::COPIES)?;
        let length = table.len()?;
        let mut expected = 1;
        for entry in table.iter()? {
            let (number, row) = entry?;
            let number = number.value();
            if number != expected {
                self.report.find(format!("copies: {expected} is missing, {number} follows"));
            }
            expected = number + 1;
            if let Err(error) = codec::decode::<EntryV1>(row.value()) {
                self.report.find(format!("copies: {number}: {error}"));
            }
            self.report.events += 1;
            self.step("copies", number, length);
        }
        Ok(length)
    }

    /// Events that wait for their transaction to be recorded.
    pub(super) fn held(&mut self, ledger: &LedgerTables<'_>, seen: &mut HashSet<u64>) -> Result<(), StoreError> {
        for entry in self.snapshot.table(tables::HELD)?.iter()? {
            let (key, bits) = entry?;
            let place = Place::from_bits(bits.value());
            let Place::Copy(number) = place else {
                self.report.find(format!("held events: {place} was written here and waits for nothing"));
                continue;
            };
            if !seen.insert(bits.value()) {
                self.report.find(format!("held events: {place} is shown as well"));
            }
            let event = match events::read_copy(ledger.copies()?, number) {
                Ok(entry) => entry.event,
                Err(error) => {
                    self.report.find(format!("held events: {error}"));
                    continue;
                }
            };
            if key.value() != held_key(&event.transaction_id, event.event_id) {
                self.report.find(format!("held events: {place} is filed under another id"));
            }
            if lookup::find(ledger, &event.transaction_id).is_ok_and(|found| found.is_some()) {
                self.report.find(format!("held events: {place} waits for what is here"));
            }
        }
        Ok(())
    }

    /// What replication keeps: cursors within what there is, parked entries that exist.
    pub(super) fn sinks(&mut self) -> Result<(), StoreError> {
        let (totals, postgres) = (self.snapshot.totals()?, self.snapshot.postgres_state()?);
        let redis = self.snapshot.redis_state()?;
        if postgres.acked_seq > totals.events || postgres.acked_copies > totals.copies {
            self.report.find("postgres: more is acknowledged than there is".to_owned());
        }
        if redis.acked_change_seq > totals.change_seq {
            self.report.find("redis: more is acknowledged than there is".to_owned());
        }
        for entry in self.snapshot.table(tables::PARKED)?.iter()? {
            let (key, row) = entry?;
            let exists = match parse_parked_key(key.value()) {
                Some((_, ParkedKey::Seq(seq))) => (1..=totals.events).contains(&seq),
                Some((_, ParkedKey::Copy(number))) => (1..=totals.copies).contains(&number),
                Some((_, ParkedKey::Agent(_))) => true,
                None => false,
            };
            if !exists {
                self.report.find("parked entries: one that is not there is parked".to_owned());
            }
            codec::decode::<ParkedV1>(row.value())?;
        }
        Ok(())
    }
}
