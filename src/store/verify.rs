//! `verify`: everything that the file says twice is compared, everything that can be recomputed is.
//!
//! redb's own checksums first; then the hash chain of the ledger log, the shape of every block, the fold of every
//! transaction, every list and every counter against the records, in both directions, so that nothing is missing and
//! nothing is left over.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata};

use super::block::{self, Entries};
use super::error::{OpenError, StoreError};
use super::event_record::EventV1;
use super::ledger::parties;
use super::log::{self, LogEntries};
use super::lookup::LedgerReader;
use super::records::{AgentV1, BalanceV1, ReceiptV1, TombstoneV1, TotalsV1, TransactionV1, status_code};
use super::snapshot::{LedgerTables, Snapshot};
use super::tables::{
    self, LoadKey, ParsedTally, Scope, Tally, TxKey, block_key, key_within, minute_of, parse_block_key,
};
use super::{blocks, codec, guarded, open_error, open_stopped};
use crate::domain::fold::fold;
use crate::domain::{Capability, Currency, EventBody, NodeId};

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
    let (mut opened, backend, node_id) = open_stopped(path)?;
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
        let mut check = Check { snapshot: &snapshot, node_id, report: std::mem::take(&mut report), progress };
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
    node_id: NodeId,
    report: VerifyReport,
    progress: &'a mut dyn FnMut(&'static str, u64, u64),
}

/// What the transactions say that the counters should be.
#[derive(Default)]
struct Expected {
    balances: HashMap<(u32, Currency), BalanceV1>,
    loads: HashMap<(u32, u32, Capability), u32>,
    totals: TotalsV1,
    /// Entries of the lists of agents and of what is open.
    listed: u64,
    /// Rows of `transaction_ids`.
    ids: u64,
}

impl Check<'_> {
    fn everything(&mut self) -> Result<(), StoreError> {
        self.log()?;
        let expected = self.transactions()?;
        self.tallies(&expected)?;
        self.agents()?;
        self.receipts()
    }

    fn step(&mut self, what: &'static str, done: u64, of: u64) {
        if done.is_multiple_of(PROGRESS_EVERY) {
            (self.progress)(what, done, of);
        }
    }

    /// The chain: no gap, no change, no event in another's place.
    fn log(&mut self) -> Result<(), StoreError> {
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
                    Ok(event) if event.node_seq == seq && event.author() == self.node_id => {}
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
        Ok(())
    }

    /// The blocks of every scope: sorted, apart, no larger than they may be. How many entries the lists have.
    fn blocks(&mut self, ledger: &LedgerTables) -> Result<u64, StoreError> {
        let length = ledger.transactions.len()?;
        let mut listed = 0;
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
                    listed += 1;
                    if value.len() != 1 {
                        find("an entry is not one byte");
                    }
                    if ledger.row(key).is_ok_and(|row| row.is_none()) {
                        find(&format!("an entry points to no transaction of {}", key.created_at));
                    }
                }
            }
            self.step("blocks", done as u64, length);
        }
        Ok(listed)
    }

    /// Every transaction: its fold, its places in the lists; and that every event belongs to exactly one.
    fn transactions(&mut self) -> Result<Expected, StoreError> {
        let ledger = self.snapshot.ledger()?;
        let listed = self.blocks(&ledger)?;
        let length = self.snapshot.totals()?.transactions.iter().sum();
        let mut expected = Expected::default();
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
            for seq in &row.events {
                if !seen_events.insert(*seq) {
                    self.report.find(format!("ledger log: event {seq} belongs to two transactions"));
                }
            }
            let events = match row.events.iter().map(|seq| ledger.event(*seq)).collect::<Result<Vec<_>, _>>() {
                Ok(events) => events,
                Err(error) => {
                    self.report.find(format!("the transaction of {}: {error}", key.created_at));
                    continue;
                }
            };
            self.transaction(key, &row, &events, &ledger, &mut expected)?;
            self.report.transactions += 1;
            self.step("transactions", self.report.transactions, length);
        }
        let (found, wanted) = (seen_events.len() as u64, self.report.events);
        if found != wanted {
            self.report
                .find(format!("ledger log: {} of {wanted} events belong to no transaction", wanted.abs_diff(found)));
        }
        if ledger.ids.len()? != expected.ids {
            self.report.find(format!("transaction ids: {} rows, but {} belong there", ledger.ids.len()?, expected.ids));
        }
        if listed != expected.listed {
            self.report.find(format!("transactions: {listed} entries in lists, but {} belong there", expected.listed));
        }
        expected.totals.events = self.report.events;
        Ok(expected)
    }

    fn transaction(
        &mut self,
        key: TxKey,
        row: &TransactionV1,
        events: &[crate::domain::Event],
        ledger: &LedgerTables,
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
            if blocks::get(&ledger.transactions, scope, key, |found| found == [value])? != Some(true) {
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

    /// Every counter.
    fn tallies(&mut self, expected: &Expected) -> Result<(), StoreError> {
        let table = self.snapshot.table(tables::TALLIES)?;
        let loads_from = self.snapshot.totals()?.loads_from;
        let mut balances = HashSet::new();
        let mut loads = HashMap::new();
        for entry in table.iter()? {
            let (key, row) = entry?;
            match Tally::parse(key.value()) {
                Some(ParsedTally::Totals) => {}
                Some(ParsedTally::Balance { agent, currency }) => {
                    let key = (agent, Currency::from_stored(currency));
                    let stored: BalanceV1 = codec::decode(row.value())?;
                    // What transactions that moved away leave behind is nothing.
                    if expected.balances.get(&key).copied().unwrap_or_default() != stored {
                        self.report.find(format!(
                            "balances: agent number {agent} in {currency} is not the sum of its transactions"
                        ));
                    }
                    balances.insert(key);
                }
                Some(ParsedTally::Load(LoadKey { minute, provider, capability })) => {
                    let key = (minute, provider, Capability::from_stored(capability));
                    loads.insert(key, super::query::load_count(row.value())?);
                }
                None => self.report.find("counters: a row with a key that means nothing".to_owned()),
            }
        }
        let missing = expected.balances.keys().filter(|key| !balances.contains(*key)).count();
        if missing > 0 {
            self.report.find(format!("balances: {missing} are missing"));
        }
        // What came before may be forgotten in part.
        let kept = |key: &&(u32, u32, Capability)| key.0 >= loads_from;
        for key in loads.keys().filter(kept) {
            if expected.loads.get(key) != loads.get(key) {
                self.report.find(format!("load: provider number {} of minute {} is miscounted", key.1, key.0));
            }
        }
        let missing = expected.loads.keys().filter(kept).filter(|key| !loads.contains_key(*key)).count();
        if missing > 0 {
            self.report.find(format!("load: {missing} counts are missing"));
        }
        let totals = self.snapshot.totals()?;
        if totals.events != expected.totals.events || totals.transactions != expected.totals.transactions {
            let (stored, counted) = (totals.transactions, expected.totals.transactions);
            self.report.find(format!(
                "totals: {} events and {stored:?} transactions by status, but {} and {counted:?} were found",
                totals.events, expected.totals.events
            ));
        }
        Ok(())
    }

    /// The registry, its changes and the numbers of agents.
    fn agents(&mut self) -> Result<(), StoreError> {
        let totals = self.snapshot.totals()?;
        let agents = self.snapshot.table(tables::AGENTS)?;
        let tombstones = self.snapshot.table(tables::TOMBSTONES)?;
        let changes = self.snapshot.table(tables::AGENT_CHANGES)?;
        let mut changed = Vec::new();
        for entry in agents.iter()? {
            let (id, row) = entry?;
            let record: AgentV1 = codec::decode(row.value())?;
            changed.push((id.value().to_owned(), record.change_seq));
            let agent = record.into_domain()?;
            if agent.agent_id.as_str() != id.value() {
                self.report.find(format!("agent {}: filed under {}", agent.agent_id, id.value()));
            }
            if tombstones.get(id.value())?.is_some() {
                self.report.find(format!("agent {}: both registered and deleted", agent.agent_id));
            }
            self.report.agents += 1;
            self.step("agents", self.report.agents, totals.agents);
        }
        for entry in tombstones.iter()? {
            let (id, row) = entry?;
            let tombstone: TombstoneV1 = codec::decode(row.value())?;
            if tombstone.revision > totals.revision_floor {
                self.report.find(format!("agent {}: deleted at a revision above the floor", id.value()));
            }
            changed.push((id.value().to_owned(), tombstone.change_seq));
        }
        for (id, seq) in &changed {
            let listed = changes.get(*seq)?.is_some_and(|found| found.value() == id);
            if !listed || *seq > totals.change_seq {
                self.report.find(format!("agent {id}: its change {seq} is not among the agent changes"));
            }
        }
        if changes.len()? != changed.len() as u64 {
            self.report.find(format!("agent changes: {} rows, but {} belong there", changes.len()?, changed.len()));
        }
        if totals.agents != self.report.agents {
            self.report.find(format!("totals: {} agents, but {} were found", totals.agents, self.report.agents));
        }
        let mut numbers = HashSet::new();
        for entry in self.snapshot.table(tables::AGENT_NUMBERS)?.iter()? {
            let (id, number) = entry?;
            let number = number.value();
            if number == 0 || number > totals.numbered_agents || !numbers.insert(number) {
                self.report.find(format!("agent {}: its number {number} is not its own", id.value()));
            }
        }
        if numbers.len() != totals.numbered_agents as usize {
            self.report.find(format!(
                "agent numbers: {} rows, but {} were given",
                numbers.len(),
                totals.numbered_agents
            ));
        }
        Ok(())
    }

    /// Idempotency keys and their ages, one to one.
    fn receipts(&mut self) -> Result<(), StoreError> {
        let receipts = self.snapshot.table(tables::RECEIPTS)?;
        let ages = self.snapshot.table(tables::RECEIPT_AGES)?;
        for entry in receipts.iter()? {
            let (key, row) = entry?;
            let receipt: ReceiptV1 = codec::decode(row.value())?;
            if ages.get(&tables::receipt_age_key(receipt.at, key.value()))?.is_none() {
                self.report.find(format!("idempotency key for {}: it would never be forgotten", receipt.subject));
            }
        }
        if receipts.len()? != ages.len()? {
            self.report.find(format!("idempotency keys: {} rows, but {} ages", receipts.len()?, ages.len()?));
        }
        Ok(())
    }
}
