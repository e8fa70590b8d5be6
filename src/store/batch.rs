//! One write transaction: reads what decisions need, takes what was decided, keeps every index and counter in step.
//!
//! A batch applies changes that were decided already; nothing in here refuses. An error means that the disk failed or
//! the file is damaged, and the whole batch is dropped.

use std::sync::Arc;

use redb::WriteTransaction;

use super::Head;
use super::blocks::Blocks;
use super::codec;
use super::error::StoreError;
use super::lazy::Lazy;
use super::ledger::Known;
use super::log::{Log, LogHead};
use super::records::{ReceiptV1, StoreAge, TotalsV2};
use super::runs::{Runs, Waiting};
use super::sinks::Acknowledged;
use super::tables::{self, meta};
use crate::domain::{Identity, LogPosition, NodeId};

type Bytes = &'static [u8];

/// A write transaction in the making. The ledger's part of it is in [`ledger`](super::ledger) and
/// [`absorb`](super::absorb), the registry's in [`registry`](super::registry), that of sinks in [`sinks`](super::sinks).
pub struct Batch<'t> {
    pub(super) head: Head,
    meta: Lazy<'t, &'static str, Bytes>,
    pub(super) log: Log<'t>,
    pub(super) transactions: Blocks<'t>,
    pub(super) runs: Runs<'t>,
    pub(super) ids: Lazy<'t, Bytes, &'static [u8; 12]>,
    pub(super) tallies: Lazy<'t, Bytes, Bytes>,
    pub(super) numbers: Lazy<'t, &'static str, u32>,
    pub(super) copies: Lazy<'t, u64, Bytes>,
    pub(super) held: Lazy<'t, Bytes, u64>,
    pub(super) central_facts: Lazy<'t, Bytes, &'static [u8; 32]>,
    pub(super) ledger_agents: Lazy<'t, &'static str, u8>,
    pub(super) agents: Lazy<'t, &'static str, Bytes>,
    pub(super) changes: Lazy<'t, u64, &'static str>,
    pub(super) tombstones: Lazy<'t, &'static str, Bytes>,
    pub(super) observations: Lazy<'t, &'static str, Bytes>,
    pub(super) sinks: Lazy<'t, u8, Bytes>,
    pub(super) parked: Lazy<'t, Bytes, Bytes>,
    receipts: Lazy<'t, &'static [u8; 16], Bytes>,
    receipt_ages: Lazy<'t, &'static [u8; 24], ()>,
    totals_before: TotalsV2,
    pub(super) changed: bool,
    /// Loads of minutes before this one are not asked for any more.
    pub(super) load_window_from: u32,
}

impl<'t> Batch<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction, head: Head) -> Self {
        Self {
            totals_before: head.totals,
            changed: false,
            load_window_from: 0,
            head,
            meta: Lazy::new(transaction, tables::META),
            log: Log::new(transaction),
            transactions: Blocks::new(transaction),
            runs: Runs::new(transaction),
            ids: Lazy::new(transaction, tables::TRANSACTION_IDS),
            tallies: Lazy::new(transaction, tables::TALLIES),
            numbers: Lazy::new(transaction, tables::AGENT_NUMBERS),
            copies: Lazy::new(transaction, tables::COPIES),
            held: Lazy::new(transaction, tables::HELD),
            central_facts: Lazy::new(transaction, tables::CENTRAL_FACTS),
            ledger_agents: Lazy::new(transaction, tables::LEDGER_AGENTS),
            agents: Lazy::new(transaction, tables::AGENTS),
            changes: Lazy::new(transaction, tables::AGENT_CHANGES),
            tombstones: Lazy::new(transaction, tables::TOMBSTONES),
            observations: Lazy::new(transaction, tables::OBSERVATIONS),
            sinks: Lazy::new(transaction, tables::SINKS),
            parked: Lazy::new(transaction, tables::PARKED),
            receipts: Lazy::new(transaction, tables::RECEIPTS),
            receipt_ages: Lazy::new(transaction, tables::RECEIPT_AGES),
        }
    }

    /// Creates every table, so that readers find them.
    pub(super) fn create_tables(transaction: &WriteTransaction, node_id: NodeId) -> Result<(), StoreError> {
        let batch = Batch::new(transaction, Head::of_new_store(node_id));
        batch.meta.open()?;
        batch.log.create()?;
        batch.transactions.create()?;
        batch.runs.create()?;
        batch.ids.open()?;
        batch.tallies.open()?;
        batch.numbers.open()?;
        batch.copies.open()?;
        batch.held.open()?;
        batch.central_facts.open()?;
        batch.ledger_agents.open()?;
        batch.agents.open()?;
        batch.changes.open()?;
        batch.tombstones.open()?;
        batch.observations.open()?;
        batch.sinks.open()?;
        batch.parked.open()?;
        batch.receipts.open()?;
        batch.receipt_ages.open()?;
        Ok(())
    }

    /// Whether anything is to be committed.
    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Writes what was staged, and the counters; what the next batch continues from.
    pub(super) fn finish(mut self) -> Result<Head, StoreError> {
        self.finish_ledger()?;
        if self.head.totals != self.totals_before {
            self.meta.insert(meta::TOTALS, codec::encode(&self.head.totals).as_slice())?;
        }
        Ok(self.head)
    }

    /// What is known for certain after a batch that changed nothing.
    pub(super) fn abandon(self) -> Known {
        self.head.known
    }

    /// This store's node.
    pub fn node_id(&self) -> NodeId {
        self.head.identity.node_id
    }

    /// This store's node, and who it was before.
    pub fn identity(&self) -> &Identity {
        &self.head.identity
    }

    /// Goes on under another id. What was written under the present one stays this store's own.
    pub fn rename_node(&mut self, node_id: NodeId) -> Result<(), StoreError> {
        self.changed = true;
        let mut earlier = vec![self.head.identity.node_id];
        earlier.extend(&self.head.identity.earlier);
        let bytes: Vec<u8> = earlier.iter().flat_map(|id| *id.as_bytes()).collect();
        self.meta.insert(meta::EARLIER_IDS, bytes.as_slice())?;
        self.meta.insert(meta::NODE_ID, node_id.as_bytes().as_slice())?;
        self.head.identity = Arc::new(Identity { node_id, earlier });
        Ok(())
    }

    /// How long this store has been open in all: a time that no wall clock can jump.
    pub fn age(&self) -> StoreAge {
        StoreAge(self.head.totals.age_micros)
    }

    /// Moves the age on. It is written with the next change.
    pub fn grow_to(&mut self, age: StoreAge) {
        self.head.totals.age_micros = self.head.totals.age_micros.max(age.0);
    }

    /// A revision that no deleted agent has passed.
    pub fn revision_floor(&self) -> u64 {
        self.head.totals.revision_floor
    }

    /// What is remembered of an idempotency key.
    pub fn receipt(&self, key: &str) -> Result<Option<ReceiptV1>, StoreError> {
        self.receipts.get(&tables::receipt_key(key))?.map(|row| codec::decode(row.value())).transpose()
    }

    /// Remembers an idempotency key.
    pub fn put_receipt(&mut self, key: &str, receipt: &ReceiptV1) -> Result<(), StoreError> {
        self.changed = true;
        let key = tables::receipt_key(key);
        self.receipts.insert(&key, codec::encode(receipt).as_slice())?;
        self.receipt_ages.insert(&tables::receipt_age_key(receipt.at, &key), ())?;
        Ok(())
    }

    /// Forgets at most `limit` idempotency keys that were used before `before`.
    pub fn purge_receipts(&mut self, before: StoreAge, limit: usize) -> Result<usize, StoreError> {
        let first = [0; 24];
        let end = tables::receipt_age_key(before, &[0; 16]);
        let due = self
            .receipt_ages
            .range::<&[u8; 24]>(&first..&end)?
            .take(limit)
            .map(|entry| entry.map(|(key, _)| *key.value()))
            .collect::<Result<Vec<_>, _>>()?;
        self.changed |= !due.is_empty();
        for age in &due {
            let key: &[u8; 16] = age[8..].try_into().expect("24 bytes less 8 are 16");
            self.receipts.remove(key)?;
            self.receipt_ages.remove(age)?;
        }
        Ok(due.len())
    }
}

impl Head {
    fn of_new_store(node_id: NodeId) -> Self {
        Self {
            identity: Arc::new(Identity { node_id, earlier: Vec::new() }),
            log: LogHead::default(),
            totals: TotalsV2::default(),
            newest_created: None,
            last_recorded: None,
            held: 0,
            waiting: Waiting::default(),
            acknowledged: Acknowledged::default(),
            known: Known::default(),
        }
    }

    /// This store's node, and who it was before, as of the last commit.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The counters of the whole store as of the last commit.
    pub fn totals(&self) -> &TotalsV2 {
        &self.totals
    }

    /// The end of the ledger log as of the last commit.
    pub fn log_position(&self) -> LogPosition {
        LogPosition { seq: self.log.seq, hash: self.log.hash }
    }

    /// What PostgreSQL has acknowledged as of the last commit.
    pub fn acknowledged(&self) -> Acknowledged {
        self.acknowledged
    }
}
