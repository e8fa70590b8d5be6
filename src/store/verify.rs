//! `verify`: everything that the file says twice is compared, everything that can be recomputed is.
//!
//! redb's own checksums first; then the hash chain of the ledger log, the fold of every transaction, every index row
//! and every counter against the records, in both directions, so that nothing is missing and nothing is left over.

mod registry;
mod replica;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata};

use super::absorb::decisive;
use super::codec;
use super::error::{OpenError, StoreError};
use super::events::{self, Place};
use super::log::{self, LogRow};
use super::records::{BalanceV1, EventV1, TotalsV2, TransactionV1, status_code};
use super::snapshot::Snapshot;
use super::tables::{
    self, LoadKey, OPEN_SCOPE, ParsedTally, Roles, Tally, TxKey, id_key, index_key, index_target, minute_of,
};
use super::{guarded, open_error, open_stopped};
use crate::domain::fold::fold;
use crate::domain::{Capability, Currency, EventBody, Identity};

/// The most findings that are kept in words; further ones are only counted.
const MAX_FINDINGS: usize = 100;
/// How many records pass between two reports of progress.
const PROGRESS_EVERY: u64 = 4_096;

/// What a file holds and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// What is wrong, in words; empty for a sound file.
    pub findings: Vec<String>,
    /// Findings beyond those in words.
    pub further_findings: u64,
    /// Agents found.
    pub agents: u64,
    /// Transactions found.
    pub transactions: u64,
    /// Ledger events found.
    pub events: u64,
    /// The file's length.
    pub bytes: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn find(&mut self, finding: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.further_findings += 1;
        }
    }
}

/// Checks the file of a stopped store. `progress` is called with what is being checked, how much is done and of how
/// much.
///
/// # Errors
///
/// When the file cannot be opened at all; what is wrong within it stands in the report.
pub fn verify(path: &Path, progress: &mut dyn FnMut(&'static str, u64, u64)) -> Result<VerifyReport, OpenError> {
    let (mut opened, backend, identity) = open_stopped(path)?;
    let mut report = VerifyReport {
        bytes: backend.len().map_err(|error| open_error(path, error.into()))?,
        ..VerifyReport::default()
    };
    progress("pages", 0, report.bytes);
    match guarded(|| Ok::<_, StoreError>(opened.database.check_integrity()?)) {
        Ok(true) => {}
        Ok(false) => report.find("redb's record of used pages was wrong, and has been rebuilt".to_owned()),
        Err(error) => {
            report.find(format!("redb's check of its pages: {error}"));
            return Ok(report);
        }
    }
    let checked = guarded(|| {
        let snapshot = Snapshot::new(opened.database.begin_read()?);
        let mut check = Check { snapshot: &snapshot, identity, report: std::mem::take(&mut report), progress };
        let outcome = check.everything();
        report = check.report;
        outcome
    });
    if let Err(error) = checked {
        report.find(error.to_string());
    }
    Ok(report)
}

struct Check<'a> {
    snapshot: &'a Snapshot,
    identity: Identity,
    report: VerifyReport,
    progress: &'a mut dyn FnMut(&'static str, u64, u64),
}

/// What the transactions say that the counters should be.
#[derive(Default)]
struct Expected {
    balances: HashMap<(u32, Currency), BalanceV1>,
    loads: HashMap<(u32, u32, Capability), u32>,
    totals: TotalsV2,
    index_rows: u64,
}

impl Check<'_> {
    fn everything(&mut self) -> Result<(), StoreError> {
        self.log()?;
        self.copies()?;
        let expected = self.transactions()?;
        self.tallies(&expected)?;
        self.agents()?;
        self.sinks()?;
        self.receipts()
    }

    fn step(&mut self, what: &'static str, done: u64, of: u64) {
        if done.is_multiple_of(PROGRESS_EVERY) {
            (self.progress)(what, done, of);
        }
    }

    /// The chain: no gap, no change, no row in another's place.
    fn log(&mut self) -> Result<(), StoreError> {
        let table = self.snapshot.table(tables::LEDGER_LOG)?;
        let length = table.len()?;
        let mut previous = [0; 32];
        let mut expected_seq = 1;
        for entry in table.iter()? {
            let (seq, row) = entry?;
            let seq = seq.value();
            if seq != expected_seq {
                self.report.find(format!("ledger log: row {expected_seq} is missing, row {seq} follows"));
            }
            expected_seq = seq + 1;
            let row = LogRow::parse(row.value())?;
            if log::chain(&previous, row.event) != row.hash {
                self.report.find(format!("ledger log: the hash of row {seq} is not that of its content"));
            }
            previous = row.hash;
            match codec::decode::<EventV1>(row.event) {
                Ok(event) if event.node_seq == seq && self.identity.is_own(event.author()) => {}
                Ok(event) => {
                    let (author, written) = (event.author(), event.node_seq);
                    self.report.find(format!("ledger log: row {seq} holds row {written} of node {author}"));
                }
                Err(error) => self.report.find(format!("ledger log: row {seq}: {error}")),
            }
            self.report.events += 1;
            self.step("ledger log", self.report.events, length);
        }
        Ok(())
    }

    /// Every transaction: its fold, its index rows; and that every event belongs to exactly one.
    fn transactions(&mut self) -> Result<Expected, StoreError> {
        let table = self.snapshot.table(tables::TRANSACTIONS)?;
        let log = self.snapshot.table(tables::LEDGER_LOG)?;
        let copies = self.snapshot.table(tables::COPIES)?;
        let ids = self.snapshot.table(tables::TRANSACTION_IDS)?;
        let index = self.snapshot.table(tables::TRANSACTION_INDEX)?;
        let length = table.len()?;
        let mut expected = Expected::default();
        let mut seen_events = HashSet::new();
        for entry in table.iter()? {
            let (key, row) = entry?;
            let key = TxKey::from_bytes(key.value());
            let row: TransactionV1 = match codec::decode(row.value()) {
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
            let events = match events::read_all(&log, &copies, &row.events) {
                Ok(events) => events,
                Err(error) => {
                    self.report.find(format!("the transaction of {}: {error}", key.created_at));
                    continue;
                }
            };
            self.transaction(key, &row, &events, &ids, &index, &mut expected)?;
            self.report.transactions += 1;
            self.step("transactions", self.report.transactions, length);
        }
        self.held(&mut seen_events)?;
        let (found, wanted) = (seen_events.len() as u64, self.report.events);
        if found != wanted {
            self.report.find(format!("ledger events: {} of {wanted} belong to no transaction", wanted.abs_diff(found)));
        }
        if ids.len()? != length {
            self.report.find(format!("transaction ids: {} rows for {length} transactions", ids.len()?));
        }
        if index.len()? != expected.index_rows {
            self.report.find(format!(
                "transaction index: {} rows, but {} belong there",
                index.len()?,
                expected.index_rows
            ));
        }
        for entry in index.iter()? {
            let (key, _) = entry?;
            let target = index_target(key.value());
            if table.get(&target.to_bytes())?.is_none() {
                self.report.find(format!("transaction index: a row points to no transaction of {}", target.created_at));
            }
        }
        expected.totals.copies = copies.len()?;
        expected.totals.events = log.len()?;
        Ok(expected)
    }

    fn transaction(
        &mut self,
        key: TxKey,
        row: &TransactionV1,
        events: &[crate::domain::Event],
        ids: &impl ReadableTable<&'static [u8], &'static [u8; 12]>,
        index: &impl ReadableTable<&'static [u8; 16], u8>,
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
        let central = self.snapshot.table(tables::CENTRAL_FACTS)?.get(id_key(id).as_slice())?.map(|row| *row.value());
        let placed: Vec<_> = row.events.iter().copied().zip(events.iter().cloned()).collect();
        if decisive(central, &placed) != Some(0) {
            differ("it does not begin with the recorded event that decides what it is");
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
        if ids.get(id_key(id).as_slice())?.is_none_or(|found| *found.value() != key.to_bytes()) {
            differ("its id does not lead to it");
        }
        let numbers =
            self.snapshot.agent_number(&facts.payer_agent)?.zip(self.snapshot.agent_number(&facts.provider_agent)?);
        if numbers != Some((row.payer, row.provider)) {
            differ("its parties' numbers are not theirs");
        }
        let mut rows: Vec<(u32, u8)> = Roles::of(row).into_iter().map(|(number, roles)| (number, roles.0)).collect();
        if status.is_open() {
            rows.push((OPEN_SCOPE, status_code(status)));
        }
        for (scope, value) in &rows {
            if index.get(&index_key(*scope, key))?.is_none_or(|found| found.value() != *value) {
                differ("a row of its index is missing or wrong");
            }
        }
        expected.index_rows += rows.len() as u64;
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

    /// Every counter.
    fn tallies(&mut self, expected: &Expected) -> Result<(), StoreError> {
        let table = self.snapshot.table(tables::TALLIES)?;
        let mut balances = 0;
        let totals = self.snapshot.totals()?;
        let mut loads = HashMap::new();
        for entry in table.iter()? {
            let (key, row) = entry?;
            match Tally::parse(key.value()) {
                Some(ParsedTally::Totals) => {}
                Some(ParsedTally::Balance { agent, currency }) => {
                    let stored: BalanceV1 = codec::decode(row.value())?;
                    let computed = expected.balances.get(&(agent, Currency::from_stored(currency)));
                    // A party whose only transaction turned out to be another's keeps a row of zeros.
                    balances += usize::from(computed.is_some());
                    if computed.copied().unwrap_or_default() != stored {
                        self.report.find(format!(
                            "balances: agent number {agent} in {currency} is not the sum of its transactions"
                        ));
                    }
                }
                Some(ParsedTally::Load(LoadKey { minute, provider, capability })) => {
                    let key = (minute, provider, Capability::from_stored(capability));
                    loads.insert(key, super::query::load_count(row.value())?);
                }
                None => self.report.find("counters: a row with a key that means nothing".to_owned()),
            }
        }
        if balances != expected.balances.len() {
            let missing = expected.balances.len() - balances;
            self.report.find(format!("balances: {missing} rows are missing"));
        }
        // What lies before is being forgotten, and counted no more.
        loads.retain(|key, _| key.0 >= totals.loads_from);
        for (key, stored) in &loads {
            if expected.loads.get(key) != Some(stored) {
                self.report.find(format!("load: provider number {} of minute {} is miscounted", key.1, key.0));
            }
        }
        let counted = expected.loads.keys().filter(|key| key.0 >= totals.loads_from);
        let missing = counted.filter(|key| !loads.contains_key(*key)).count();
        if missing > 0 {
            self.report.find(format!("load: {missing} counts are missing"));
        }
        if totals.copies != expected.totals.copies {
            let (stored, counted) = (totals.copies, expected.totals.copies);
            self.report.find(format!("totals: {stored} copies of events, but {counted} were found"));
        }
        if totals.events != expected.totals.events || totals.transactions != expected.totals.transactions {
            let (stored, counted) = (totals.transactions, expected.totals.transactions);
            self.report.find(format!(
                "totals: {} events and {stored:?} transactions by status, but {} and {counted:?} were found",
                totals.events, expected.totals.events
            ));
        }
        Ok(())
    }
}
