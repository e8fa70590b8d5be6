//! One write transaction: reads what decisions need, takes what was decided, keeps every index and counter in step.
//!
//! A batch applies changes that were decided already; nothing in here refuses. An error means that the disk failed or
//! the file is damaged, and the whole batch is dropped.

use redb::WriteTransaction;

use super::Head;
use super::blocks::Blocks;
use super::codec;
use super::error::StoreError;
use super::lazy::Lazy;
use super::ledger::Known;
use super::log::{Log, LogHead};
use super::records::{AgentV1, ReceiptV1, StoreAge, TombstoneV1, TotalsV1};
use super::tables::{self, Tally};
use crate::domain::{Agent, AgentId, NodeId};

type Bytes = &'static [u8];

/// A write transaction in the making. The ledger's part of it is in [`ledger`](super::ledger).
pub struct Batch<'t> {
    pub(super) node_id: NodeId,
    pub(super) head: Head,
    pub(super) log: Log<'t>,
    pub(super) transactions: Blocks<'t>,
    pub(super) ids: Lazy<'t, Bytes, &'static [u8; 12]>,
    pub(super) tallies: Lazy<'t, Bytes, Bytes>,
    pub(super) numbers: Lazy<'t, &'static str, u32>,
    agents: Lazy<'t, &'static str, Bytes>,
    changes: Lazy<'t, u64, &'static str>,
    tombstones: Lazy<'t, &'static str, Bytes>,
    receipts: Lazy<'t, &'static [u8; 16], Bytes>,
    receipt_ages: Lazy<'t, &'static [u8; 24], ()>,
    totals_before: TotalsV1,
    pub(super) changed: bool,
}

/// Whether a change of an agent is news for the registry of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// It is: the agent moves to the end of the agent changes.
    Yes,
    /// It is not, such as an expiry, which every node sees for itself.
    No,
}

impl<'t> Batch<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction, node_id: NodeId, head: Head) -> Self {
        Self {
            node_id,
            totals_before: head.totals,
            changed: false,
            head,
            log: Log::new(transaction),
            transactions: Blocks::new(transaction),
            ids: Lazy::new(transaction, tables::TRANSACTION_IDS),
            tallies: Lazy::new(transaction, tables::TALLIES),
            numbers: Lazy::new(transaction, tables::AGENT_NUMBERS),
            agents: Lazy::new(transaction, tables::AGENTS),
            changes: Lazy::new(transaction, tables::AGENT_CHANGES),
            tombstones: Lazy::new(transaction, tables::TOMBSTONES),
            receipts: Lazy::new(transaction, tables::RECEIPTS),
            receipt_ages: Lazy::new(transaction, tables::RECEIPT_AGES),
        }
    }

    /// Creates every table, so that readers find them.
    pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), StoreError> {
        let batch = Batch::new(transaction, NodeId::from_bytes([0; 16]), Head::empty());
        batch.log.create()?;
        batch.transactions.create()?;
        batch.ids.open()?;
        batch.tallies.open()?;
        batch.numbers.open()?;
        batch.agents.open()?;
        batch.changes.open()?;
        batch.tombstones.open()?;
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
            self.tallies.insert(Tally::Totals.to_bytes().as_slice(), codec::encode(&self.head.totals).as_slice())?;
        }
        Ok(self.head)
    }

    /// What is known for certain after a batch that changed nothing.
    pub(super) fn abandon(self) -> Known {
        self.head.known
    }

    /// This store's node.
    pub fn node_id(&self) -> NodeId {
        self.node_id
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

    // --- agents ---

    /// A stored agent.
    pub fn agent(&self, id: &AgentId) -> Result<Option<Agent>, StoreError> {
        self.stored_agent(id)?.map(AgentV1::into_domain).transpose()
    }

    fn stored_agent(&self, id: &AgentId) -> Result<Option<AgentV1>, StoreError> {
        self.agents.get(id.as_str())?.map(|row| codec::decode(row.value())).transpose()
    }

    /// Writes an agent, new or changed.
    pub fn put_agent(&mut self, agent: &Agent, publish: Publish) -> Result<(), StoreError> {
        self.changed = true;
        let id = agent.agent_id.as_str();
        let previous = match self.stored_agent(&agent.agent_id)?.map(|stored| stored.change_seq) {
            Some(seq) => Some(seq),
            None => {
                self.head.totals.agents += 1;
                self.take_tombstone(id)?
            }
        };
        let change_seq = match (publish, previous) {
            (Publish::No, Some(seq)) => seq,
            _ => self.next_change(id, previous)?,
        };
        self.agents.insert(id, codec::encode(&AgentV1::from_domain(agent, change_seq)).as_slice())?;
        Ok(())
    }

    /// Deletes an agent and keeps a tombstone for as long as its lease could run elsewhere.
    pub fn remove_agent(&mut self, agent: &Agent) -> Result<(), StoreError> {
        self.changed = true;
        let id = agent.agent_id.as_str();
        let previous = self.stored_agent(&agent.agent_id)?.map(|stored| stored.change_seq);
        let change_seq = self.next_change(id, previous)?;
        let tombstone =
            TombstoneV1 { revision: agent.revision, keep_until: self.age().after(agent.ttl.duration()), change_seq };
        self.tombstones.insert(id, codec::encode(&tombstone).as_slice())?;
        if self.agents.remove(id)?.is_some() {
            self.head.totals.agents -= 1;
        }
        let floor = &mut self.head.totals.revision_floor;
        *floor = (*floor).max(agent.revision);
        Ok(())
    }

    /// Forgets at most `limit` tombstones whose time has passed.
    pub fn purge_tombstones(&mut self, limit: usize) -> Result<usize, StoreError> {
        let mut due = Vec::new();
        for entry in self.tombstones.iter()? {
            let (id, row) = entry?;
            if codec::decode::<TombstoneV1>(row.value())?.keep_until <= self.age() {
                due.push(id.value().to_owned());
                if due.len() == limit {
                    break;
                }
            }
        }
        self.changed |= !due.is_empty();
        for id in &due {
            if let Some(seq) = self.take_tombstone(id)? {
                self.changes.remove(seq)?;
            }
        }
        Ok(due.len())
    }

    fn take_tombstone(&mut self, id: &str) -> Result<Option<u64>, StoreError> {
        let Some(row) = self.tombstones.remove(id)? else { return Ok(None) };
        Ok(Some(codec::decode::<TombstoneV1>(row.value())?.change_seq))
    }

    fn next_change(&mut self, id: &str, previous: Option<u64>) -> Result<u64, StoreError> {
        if let Some(previous) = previous {
            self.changes.remove(previous)?;
        }
        self.head.totals.change_seq += 1;
        let seq = self.head.totals.change_seq;
        self.changes.insert(seq, id)?;
        Ok(seq)
    }

    // --- receipts ---

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
    pub(super) fn empty() -> Self {
        Self {
            log: LogHead::default(),
            totals: TotalsV1::default(),
            newest_created: None,
            last_recorded: None,
            known: Known::default(),
        }
    }

    /// The counters of the whole store as of the last commit.
    pub fn totals(&self) -> &TotalsV1 {
        &self.totals
    }
}
