//! What `verify` checks of the ledger: its log, the blocks of transactions, and every transaction.

use std::collections::HashSet;

use redb::{ReadableTable, ReadableTableMetadata};

use super::{Check, Expected};
use crate::domain::fold::fold;
use crate::domain::{Event, EventBody};
use crate::store::absorb::decisive;
use crate::store::block::{self, Entries};
use crate::store::error::StoreError;
use crate::store::event_record::EventV1;
use crate::store::events::Place;
use crate::store::ledger::parties;
use crate::store::log::{self, LogEntries};
use crate::store::lookup::LedgerReader;
use crate::store::records::{TransactionV1, status_code};
use crate::store::run::Merge;
use crate::store::runs::{StoredRuns, Target};
use crate::store::snapshot::LedgerTables;
use crate::store::tables::{self, Scope, TxKey, block_key, id_key, key_within, minute_of, parse_block_key};
use crate::store::{blocks, codec};

impl Check<'_> {
    /// The chain: no gap, no change, no event in another's place. How many events it has.
    pub(super) fn log(&mut self) -> Result<u64, StoreError> {
        let table = self.snapshot.table(tables::LEDGER_LOG)?;
        let length = self.snapshot.totals()?.events;
        let mut previous = [0; 32];
        let mut expected_seq = 1;
        for row in table.iter()? {
            let (first, row) = row?;
            let (first, row) = (first.value(), row.value());
            if first != expected_seq {
                self.report
                    .find(format!("ledger log: event {expected_seq} is missing, a row of event {first} follows"));
                expected_seq = first;
            }
            let began_with = self.report.events;
            for entry in LogEntries::of(first, row) {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        self.report.find(error.to_string());
                        break;
                    }
                };
                let seq = entry.seq;
                expected_seq = seq + 1;
                if log::chain(&previous, entry.event) != entry.hash {
                    self.report.find(format!("ledger log: the hash of event {seq} is not that of its content"));
                }
                previous = entry.hash;
                match codec::decode::<EventV1>(entry.event) {
                    Ok(event) if event.node_seq == seq && self.identity.is_own(event.author()) => {}
                    Ok(event) => {
                        let (author, written) = (event.author(), event.node_seq);
                        self.report.find(format!("ledger log: event {seq} is event {written} of node {author}"));
                    }
                    Err(error) => self.report.find(format!("ledger log: event {seq}: {error}")),
                }
                self.report.events += 1;
                self.step("ledger log", self.report.events, length);
            }
            if self.report.events > began_with + 1 && row.len() > log::MAX_ROW_BYTES {
                self.report.find(format!("ledger log: the row of event {first} is too large"));
            }
        }
        Ok(self.report.events)
    }

    /// The changes that wait: each run sorted, its keys sound. How many entries they put into lists.
    fn waiting(&mut self, ledger: &LedgerTables<'_>, runs: &StoredRuns) -> Result<u64, StoreError> {
        for run in runs.iter() {
            let run = run?;
            let mut previous = None;
            for index in 0..run.len() {
                let (key, _) = run.entry(index)?;
                if previous >= Some(key) {
                    self.report.find("waiting changes: a run is not sorted".to_owned());
                }
                if Target::parse(key).is_none_or(|target| target.to_key() != key) {
                    self.report.find("waiting changes: a key means nothing".to_owned());
                }
                previous = Some(key);
            }
        }
        let mut listed = 0;
        for change in Merge::all(&runs.iter().collect::<Result<Vec<_>, _>>()?, blocks::Direction::Ascending)? {
            let (key, change) = change?;
            let (Some(Target::Listed(scope, key)), Some(value)) = (Target::parse(key), change) else { continue };
            listed += 1;
            if value.len() != 1 {
                self.report.find(format!("waiting changes: an entry of {scope} is not one byte"));
            }
            if ledger.row(key).is_ok_and(|row| row.is_none()) {
                let at = key.created_at;
                self.report.find(format!("waiting changes: an entry of {scope} points to no transaction of {at}"));
            }
        }
        Ok(listed)
    }

    /// The blocks of every scope: sorted, apart, no larger than they may be. How many entries the lists have.
    fn blocks(&mut self, ledger: &LedgerTables<'_>) -> Result<u64, StoreError> {
        let length = ledger.transactions.len()?;
        let runs = ledger.runs()?;
        let mut listed = self.waiting(ledger, runs)?;
        let mut previous: Option<(Scope, TxKey)> = None;
        for (done, row) in ledger.transactions.iter()?.enumerate() {
            let (row_key, block) = row?;
            let (scope, first) = parse_block_key(row_key.value());
            let mut find = |what: &str| {
                self.report.find(format!("transactions: the block of {} from {}: {what}", scope, first.created_at));
            };
            if block_key(scope, first) != *row_key.value() {
                find("its key is not a time");
            }
            if previous >= Some((scope, first)) {
                find("it overlaps the one before");
            }
            let count = Entries::of(first, block.value()).count();
            if count > block::MAX_ENTRIES || (count > 1 && block.value().len() > block::MAX_BYTES) {
                find("it is too large");
            }
            for entry in Entries::of(first, block.value()) {
                let (key, value) = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        find(&error.to_string());
                        break;
                    }
                };
                previous = Some((scope, key));
                if scope != Scope::ROWS {
                    if value.len() != 1 {
                        find("an entry is not one byte");
                    }
                    if runs.get(Target::Listed(scope, key))?.is_some() {
                        // What waits counts instead.
                        continue;
                    }
                    listed += 1;
                    if ledger.row(key).is_ok_and(|row| row.is_none()) {
                        find(&format!("an entry points to no transaction of {}", key.created_at));
                    }
                }
            }
            self.step("blocks", done as u64, length);
        }
        Ok(listed)
    }

    /// Every transaction: its fold, its places in the lists; and that every event belongs to exactly one, or waits.
    pub(super) fn transactions(&mut self, expected: &mut Expected) -> Result<(), StoreError> {
        let ledger = self.snapshot.ledger()?;
        let central = self.snapshot.table(tables::CENTRAL_FACTS)?;
        let listed = self.blocks(&ledger)?;
        let length = self.snapshot.totals()?.transactions.iter().sum();
        let mut seen_events = HashSet::new();
        let everything = TxKey::MIN..=TxKey::MAX;
        let rows = blocks::walk(&ledger.transactions, Scope::ROWS, everything, blocks::Direction::Ascending, |row| {
            Ok(codec::decode::<TransactionV1>(row))
        })?;
        for entry in rows {
            let (key, row) = entry?;
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    self.report.find(format!("the transaction of {}: {error}", key.created_at));
                    continue;
                }
            };
            for bits in &row.events {
                if !seen_events.insert(*bits) {
                    let place = Place::from_bits(*bits);
                    self.report.find(format!("ledger events: {place} belongs to two transactions"));
                }
            }
            let events = row.events.iter().map(|bits| ledger.event(Place::from_bits(*bits)));
            let events = match events.collect::<Result<Vec<_>, _>>() {
                Ok(events) => events,
                Err(error) => {
                    self.report.find(format!("the transaction of {}: {error}", key.created_at));
                    continue;
                }
            };
            let central_facts = match events.first() {
                Some(first) => central.get(id_key(&first.transaction_id).as_slice())?.map(|facts| *facts.value()),
                None => None,
            };
            if decisive(central_facts, &events) != Some(0) {
                self.report.find(format!(
                    "the transaction of {}: it does not begin with the recorded event that decides what it is",
                    key.created_at
                ));
            }
            self.transaction(key, &row, &events, &ledger, expected)?;
            self.report.transactions += 1;
            self.step("transactions", self.report.transactions, length);
        }
        self.held(&ledger, &mut seen_events)?;
        let (found, wanted) = (seen_events.len() as u64, self.report.events);
        if found != wanted {
            self.report.find(format!("ledger events: {} of {wanted} belong to no transaction", wanted.abs_diff(found)));
        }
        if ledger.ids.len()? != expected.ids {
            self.report.find(format!("transaction ids: {} rows, but {} belong there", ledger.ids.len()?, expected.ids));
        }
        if listed != expected.listed {
            self.report.find(format!("transactions: {listed} entries in lists, but {} belong there", expected.listed));
        }
        Ok(())
    }

    fn transaction(
        &mut self,
        key: TxKey,
        row: &TransactionV1,
        events: &[Event],
        ledger: &LedgerTables<'_>,
        expected: &mut Expected,
    ) -> Result<(), StoreError> {
        let Some((first, EventBody::Recorded(facts))) = events.first().map(|first| (first, &first.body)) else {
            self.report.find(format!("the transaction of {} has no recorded event", key.created_at));
            return Ok(());
        };
        let id = &first.transaction_id;
        let mut differ = |what: &str| self.report.find(format!("transaction {id}: {what}"));
        if facts.hash() != first.facts {
            differ("its facts do not hash to what its events say");
        }
        if events.iter().any(|event| event.transaction_id != *id) {
            differ("it holds another transaction's event");
        }
        let Some(fold) = fold(&first.facts, events) else {
            differ("its events fold to nothing");
            return Ok(());
        };
        let status = row.status()?;
        if status != fold.status {
            differ(&format!("its status is {status}, but its events fold to {}", fold.status));
        }
        if row.updated_at != fold.updated_at || row.settled_at != fold.settled_at {
            differ("its times are not those of its events");
        }
        if row.has_evidence == fold.evidence.is_empty() {
            differ("its evidence is not that of its events");
        }
        if key.created_at != fold.created_at {
            differ("it is filed under another time than it was created at");
        }
        let listed = ledger.listed(id)?;
        if key_within(id) == Some(key) {
            if listed.is_some() {
                differ("its id says where it is, and is listed all the same");
            }
        } else {
            expected.ids += 1;
            if listed != Some(key) {
                differ("its id does not lead to it");
            }
        }
        let numbers =
            self.snapshot.agent_number(&facts.payer_agent)?.zip(self.snapshot.agent_number(&facts.provider_agent)?);
        if numbers != Some((row.payer, row.provider)) {
            differ("its parties' numbers are not theirs");
        }
        let open = status.is_open().then(|| (Scope::OPEN, status_code(status)));
        let places = parties(row).map(|(agent, roles)| (Scope::of_agent(agent), roles.0)).chain(open);
        for (scope, value) in places {
            if !ledger.lists(scope, key, value)? {
                differ(&format!("its place in the list of {scope} is missing or wrong"));
            }
            expected.listed += 1;
        }
        *expected.totals.of(status) += 1;
        let mut add = |agent: u32, paid: bool| {
            let balance = expected.balances.entry((agent, facts.currency.clone())).or_default();
            let side = if paid { &mut balance.paid } else { &mut balance.earned };
            if let Some(total) = side.of(status) {
                total.add(facts.amount);
            }
        };
        add(row.payer, true);
        add(row.provider, false);
        let minute = minute_of(key.created_at);
        *expected.loads.entry((minute, row.provider, facts.capability.clone())).or_default() += 1;
        Ok(())
    }
}
