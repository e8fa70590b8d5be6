//! `verify`: everything that the file says twice is compared, everything that can be recomputed is.
//!
//! redb's own checksums first; then the hash chain of the ledger log, the shape of every block, the fold of every
//! transaction, every list and every counter against the records, in both directions, so that nothing is missing and
//! nothing is left over.

mod ledger;
mod registry;
mod replica;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use redb::ReadableDatabase;

use super::codec;
use super::error::{OpenError, StoreError};
use super::opening::{Purpose, guarded, open_error, open_stopped};
use super::records::{BalanceV1, TotalsV2};
use super::snapshot::Snapshot;
use super::tables::{LoadKey, ParsedTally, Tally};
use crate::domain::{Capability, Currency, Identity};

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
    let (mut opened, backend, identity) = open_stopped(path, Purpose::Look)?;
    let mut report = VerifyReport {
        bytes: backend.len().map_err(|error| open_error(path, error.into()))?,
        ..VerifyReport::default()
    };
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
    // Last: it is the less precise, and goes no further than the first page that is not as it was written.
    progress("pages", 0, report.bytes);
    match guarded(|| Ok::<_, StoreError>(opened.database.check_integrity()?)) {
        Ok(true) => {}
        Ok(false) => {
            report.find("redb's record of used pages is wrong; it is rebuilt when the file is served".to_owned())
        }
        Err(error) => report.find(format!("redb's check of its pages: {error}")),
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
    /// Entries of the lists of agents and of what is open.
    listed: u64,
    /// Rows of `transaction_ids`.
    ids: u64,
}

impl Check<'_> {
    fn everything(&mut self) -> Result<(), StoreError> {
        let mut expected = Expected::default();
        expected.totals.events = self.log()?;
        expected.totals.copies = self.copies()?;
        self.transactions(&mut expected)?;
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

    /// Every counter.
    fn tallies(&mut self, expected: &Expected) -> Result<(), StoreError> {
        let runs = self.snapshot.runs()?;
        let loads_from = self.snapshot.totals()?.loads_from;
        let mut balances = HashSet::new();
        let mut loads = HashMap::new();
        for entry in self.snapshot.tallies(&runs, &[])? {
            let (key, row) = entry?;
            match Tally::parse(&key) {
                Some(ParsedTally::Balance { agent, currency }) => {
                    let key = (agent, Currency::from_stored(currency));
                    let stored: BalanceV1 = codec::decode(&row)?;
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
                    loads.insert(key, super::query::load_count(&row)?);
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
