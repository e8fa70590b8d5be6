//! One write transaction: reads what decisions need, takes what was decided, keeps every index and counter in step.
//!
//! A batch applies changes that were decided already; nothing in here refuses. An error means that the disk failed or
//! the file is damaged, and the whole batch is dropped.

use std::collections::HashMap;
use std::sync::Arc;

use redb::{ReadableTable, Table, WriteTransaction};

use super::codec;
use super::error::StoreError;
use super::query;
use super::records::{BalanceV1, ReceiptV1, StoreAge, TotalsV2, TransactionV1, status_code};
use super::sinks::Acknowledged;
use super::tables::{self, LoadKey, OPEN_SCOPE, ParsedTally, Roles, Tally, TxKey, id_key, index_key, meta, minute_of};
use super::{Head, events, log};
use crate::domain::fold::{Fold, fold};
use crate::domain::transaction::Finality;
use crate::domain::{
    AgentId, Capability, Currency, Event, EventBody, Facts, Identity, LogPosition, NodeId, Timestamp, TransactionId,
    TransactionStatus,
};

type Bytes = &'static [u8];

/// A write transaction in the making.
pub struct Batch<'t> {
    pub(super) head: Head,
    pub(super) meta: Table<'t, &'static str, Bytes>,
    pub(super) log: Table<'t, u64, Bytes>,
    pub(super) copies: Table<'t, u64, Bytes>,
    pub(super) held: Table<'t, Bytes, u64>,
    pub(super) central_facts: Table<'t, Bytes, &'static [u8; 32]>,
    pub(super) ledger_agents: Table<'t, &'static str, u8>,
    transactions: Table<'t, &'static [u8; 12], Bytes>,
    ids: Table<'t, Bytes, &'static [u8; 12]>,
    index: Table<'t, &'static [u8; 16], u8>,
    tallies: Table<'t, Bytes, Bytes>,
    numbers: Table<'t, &'static str, u32>,
    pub(super) agents: Table<'t, &'static str, Bytes>,
    pub(super) changes: Table<'t, u64, &'static str>,
    pub(super) tombstones: Table<'t, &'static str, Bytes>,
    pub(super) observations: Table<'t, &'static str, Bytes>,
    pub(super) sinks: Table<'t, u8, Bytes>,
    pub(super) parked: Table<'t, Bytes, Bytes>,
    receipts: Table<'t, &'static [u8; 16], Bytes>,
    receipt_ages: Table<'t, &'static [u8; 24], ()>,
    totals_before: TotalsV2,
    pub(super) changed: bool,
    // Counters that many commands of one batch touch are written once, at its end.
    known_numbers: HashMap<AgentId, u32>,
    balances: HashMap<(u32, Currency), BalanceV1>,
    loads: HashMap<(u32, u32, Capability), u32>,
    load_window_from: u32,
}

/// A transaction with all its events.
#[derive(Debug, Clone)]
pub struct StoredTransaction {
    pub(super) key: TxKey,
    pub(super) row: TransactionV1,
    /// In the order of `row.events`.
    pub(super) events: Vec<Event>,
    /// What the events fold to.
    pub fold: Fold,
}

impl<'t> Batch<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction, head: Head) -> Result<Self, StoreError> {
        Ok(Self {
            totals_before: head.totals,
            changed: false,
            head,
            log: transaction.open_table(tables::LEDGER_LOG)?,
            copies: transaction.open_table(tables::COPIES)?,
            held: transaction.open_table(tables::HELD)?,
            central_facts: transaction.open_table(tables::CENTRAL_FACTS)?,
            ledger_agents: transaction.open_table(tables::LEDGER_AGENTS)?,
            transactions: transaction.open_table(tables::TRANSACTIONS)?,
            ids: transaction.open_table(tables::TRANSACTION_IDS)?,
            index: transaction.open_table(tables::TRANSACTION_INDEX)?,
            tallies: transaction.open_table(tables::TALLIES)?,
            numbers: transaction.open_table(tables::AGENT_NUMBERS)?,
            agents: transaction.open_table(tables::AGENTS)?,
            changes: transaction.open_table(tables::AGENT_CHANGES)?,
            tombstones: transaction.open_table(tables::TOMBSTONES)?,
            observations: transaction.open_table(tables::OBSERVATIONS)?,
            sinks: transaction.open_table(tables::SINKS)?,
            parked: transaction.open_table(tables::PARKED)?,
            meta: transaction.open_table(tables::META)?,
            receipts: transaction.open_table(tables::RECEIPTS)?,
            receipt_ages: transaction.open_table(tables::RECEIPT_AGES)?,
            known_numbers: HashMap::new(),
            balances: HashMap::new(),
            loads: HashMap::new(),
            load_window_from: 0,
        })
    }

    /// Creates every table, so that readers find them.
    pub(super) fn create_tables(transaction: &WriteTransaction, node_id: NodeId) -> Result<(), StoreError> {
        Batch::open(transaction, Head::of_new_store(node_id)).map(drop)
    }

    /// Whether anything is to be committed.
    pub(super) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Writes the counters; what the next batch continues from.
    pub(super) fn finish(mut self) -> Result<Head, StoreError> {
        for ((agent, currency), balance) in &self.balances {
            let key = Tally::Balance { agent: *agent, currency }.to_bytes();
            self.tallies.insert(key.as_slice(), codec::encode(balance).as_slice())?;
        }
        for ((minute, provider, capability), count) in &self.loads {
            let load = LoadKey { minute: *minute, provider: *provider, capability: capability.as_str() };
            let key = Tally::Load(load).to_bytes();
            if *count == 0 {
                self.tallies.remove(key.as_slice())?;
            } else {
                self.tallies.insert(key.as_slice(), count.to_le_bytes().as_slice())?;
            }
        }
        if self.head.totals != self.totals_before {
            self.tallies.insert(Tally::Totals.to_bytes().as_slice(), codec::encode(&self.head.totals).as_slice())?;
        }
        Ok(self.head)
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

    // --- ledger ---

    /// A stored transaction with its events.
    pub fn transaction(&self, id: &TransactionId) -> Result<Option<StoredTransaction>, StoreError> {
        let Some(key) = self.ids.get(id_key(id).as_slice())?.map(|key| TxKey::from_bytes(key.value())) else {
            return Ok(None);
        };
        let row = query::row(&self.transactions, key)?;
        let events = events::read_all(&self.log, &self.copies, &row.events)?;
        let fold = fold_of(&events)?;
        Ok(Some(StoredTransaction { key, row, events, fold }))
    }

    /// How far a transaction got.
    pub fn finality(&self, stored: &StoredTransaction) -> Result<Finality, StoreError> {
        Acknowledged::read(&self.sinks)?.finality(&self.parked, &stored.row.events)
    }

    /// The time to record a transaction at: now, and after the last one unless the clock went back by more than a
    /// second, so that transactions of one node hardly ever share a microsecond.
    pub fn recording_time(&self, now: Timestamp) -> Timestamp {
        match self.head.last_recorded {
            Some(last) if last >= now && last.as_micros() - now.as_micros() < 1_000_000 => {
                Timestamp::from_micros(last.as_micros() + 1)
            }
            _ => now,
        }
    }

    /// Appends the `recorded` event of a transaction that is not stored yet.
    pub fn record(&mut self, event: &Event) -> Result<(), StoreError> {
        let EventBody::Recorded(facts) = &event.body else {
            unreachable!("only a recorded event starts a transaction");
        };
        debug_assert_eq!(facts.hash(), event.facts);
        let seq = self.append(event)?;
        let fold = fold_of(std::slice::from_ref(event))?;
        self.file(&event.transaction_id, &fold, vec![seq])?;
        self.head.last_recorded = Some(event.at);
        Ok(())
    }

    /// Appends a further event to a transaction; what it folds to from here on.
    pub fn decide(&mut self, mut stored: StoredTransaction, event: Event) -> Result<Fold, StoreError> {
        let before = stored.fold.status;
        let seq = self.append(&event)?;
        stored.row.events.push(seq);
        stored.events.push(event);
        let fold = fold_of(&stored.events)?;
        let after = fold.status;
        let row = TransactionV1::new(stored.row.payer, stored.row.provider, &fold, stored.row.events);
        self.transactions.insert(&stored.key.to_bytes(), codec::encode(&row).as_slice())?;
        if before != after {
            let open = index_key(OPEN_SCOPE, stored.key);
            if after.is_open() {
                self.index.insert(&open, status_code(after))?;
            } else {
                self.index.remove(&open)?;
            }
            *self.head.totals.of(before) -= 1;
            *self.head.totals.of(after) += 1;
            self.move_amounts(&row, &fold.facts, Some(before), Some(after))?;
        }
        Ok(fold)
    }

    /// Writes a transaction that is not filed, with all that is derived from it: id, index, counters, balances, load.
    pub(super) fn file(&mut self, id: &TransactionId, fold: &Fold, places: Vec<u64>) -> Result<(), StoreError> {
        let payer = self.agent_number(&fold.facts.payer_agent)?;
        let provider = self.agent_number(&fold.facts.provider_agent)?;
        let key = self.free_key(fold.created_at)?;
        let row = TransactionV1::new(payer, provider, fold, places);
        self.transactions.insert(&key.to_bytes(), codec::encode(&row).as_slice())?;
        if self.ids.insert(id_key(id).as_slice(), &key.to_bytes())?.is_some() {
            return Err(StoreError::Damaged(format!("transaction {id} was recorded twice")));
        }
        if fold.status.is_open() {
            self.index.insert(&index_key(OPEN_SCOPE, key), status_code(fold.status))?;
        }
        for (number, roles) in Roles::of(&row) {
            self.index.insert(&index_key(number, key), roles.0)?;
        }
        *self.head.totals.of(fold.status) += 1;
        self.move_amounts(&row, &fold.facts, None, Some(fold.status))?;
        if let Some(load) = self.load_mut(fold.created_at, provider, &fold.facts.capability)? {
            *load += 1;
        }
        self.head.newest_created = self.head.newest_created.max(Some(key.created_at));
        Ok(())
    }

    /// Takes back all that [`file`](Self::file) wrote.
    pub(super) fn unfile(&mut self, id: &TransactionId, stored: &StoredTransaction) -> Result<(), StoreError> {
        let StoredTransaction { key, row, fold, .. } = stored;
        self.transactions.remove(&key.to_bytes())?;
        self.ids.remove(id_key(id).as_slice())?;
        self.index.remove(&index_key(OPEN_SCOPE, *key))?;
        for (number, _) in Roles::of(row) {
            self.index.remove(&index_key(number, *key))?;
        }
        *self.head.totals.of(fold.status) -= 1;
        self.move_amounts(row, &fold.facts, Some(fold.status), None)?;
        if let Some(load) = self.load_mut(fold.created_at, row.provider, &fold.facts.capability)? {
            *load = load.saturating_sub(1);
        }
        Ok(())
    }

    fn append(&mut self, event: &Event) -> Result<u64, StoreError> {
        self.changed = true;
        self.head.totals.events += 1;
        log::append(&mut self.log, &mut self.head.log, event)
    }

    fn free_key(&self, created_at: Timestamp) -> Result<TxKey, StoreError> {
        let first = TxKey::first_at(created_at);
        if self.head.newest_created.is_none_or(|newest| newest < created_at) {
            return Ok(first);
        }
        let last = TxKey { created_at, tie: u32::MAX };
        let taken =
            self.transactions.range::<&[u8; 12]>(&first.to_bytes()..=&last.to_bytes())?.next_back().transpose()?;
        Ok(taken.map_or(first, |(key, _)| TxKey { created_at, tie: TxKey::from_bytes(key.value()).tie + 1 }))
    }

    /// The number of an agent that a transaction names.
    pub(super) fn known_agent_number(&self, id: &AgentId) -> Result<Option<u32>, StoreError> {
        Ok(self.numbers.get(id.as_str())?.map(|number| number.value()))
    }

    fn agent_number(&mut self, id: &AgentId) -> Result<u32, StoreError> {
        if let Some(number) = self.known_numbers.get(id) {
            return Ok(*number);
        }
        let number = match self.known_agent_number(id)? {
            Some(number) => number,
            None => {
                self.head.totals.numbered_agents += 1;
                self.numbers.insert(id.as_str(), self.head.totals.numbered_agents)?;
                self.head.totals.numbered_agents
            }
        };
        self.known_numbers.insert(id.clone(), number);
        Ok(number)
    }

    fn move_amounts(
        &mut self,
        row: &TransactionV1,
        facts: &Facts,
        from: Option<TransactionStatus>,
        to: Option<TransactionStatus>,
    ) -> Result<(), StoreError> {
        for (agent, is_payer) in [(row.payer, true), (row.provider, false)] {
            let balance = self.balance_mut(agent, &facts.currency)?;
            let side = if is_payer { &mut balance.paid } else { &mut balance.earned };
            if let Some(total) = from.and_then(|status| side.of(status)) {
                total.subtract(facts.amount);
            }
            if let Some(total) = to.and_then(|status| side.of(status)) {
                total.add(facts.amount);
            }
        }
        Ok(())
    }

    fn balance_mut(&mut self, agent: u32, currency: &Currency) -> Result<&mut BalanceV1, StoreError> {
        use std::collections::hash_map::Entry;
        match self.balances.entry((agent, currency.clone())) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let stored = self.tallies.get(Tally::Balance { agent, currency }.to_bytes().as_slice())?;
                let balance = stored.map(|row| codec::decode(row.value())).transpose()?.unwrap_or_default();
                Ok(entry.insert(balance))
            }
        }
    }

    /// The load of a minute; `None` for one that has been forgotten.
    fn load_mut(
        &mut self,
        at: Timestamp,
        provider: u32,
        capability: &Capability,
    ) -> Result<Option<&mut u32>, StoreError> {
        let minute = minute_of(at);
        if minute < self.load_window_from {
            self.forget_loads_through(minute);
        }
        if minute < self.head.totals.loads_from {
            return Ok(None);
        }
        let key = (minute, provider, capability.clone());
        if !self.loads.contains_key(&key) {
            let load = LoadKey { minute, provider, capability: capability.as_str() };
            let stored = self.tallies.get(Tally::Load(load).to_bytes().as_slice())?;
            self.loads.insert(key.clone(), stored.map_or(Ok(0), |row| query::load_count(row.value()))?);
        }
        Ok(Some(self.loads.get_mut(&key).expect("inserted above")))
    }

    /// Loads of minutes before `minute` are not asked for any more, and not counted.
    pub fn count_loads_from(&mut self, minute: u32) {
        self.load_window_from = minute;
    }

    fn forget_loads_through(&mut self, minute: u32) {
        self.head.totals.loads_from = self.head.totals.loads_from.max(minute.saturating_add(1));
    }

    /// Forgets at most `limit` load counts of minutes before `minute`.
    pub fn purge_loads(&mut self, minute: u32, limit: usize) -> Result<usize, StoreError> {
        let range = Tally::loads_from(0)..Tally::loads_from(minute);
        let due = self
            .tallies
            .range(range.start.as_slice()..range.end.as_slice())?
            .take(limit)
            .map(|entry| entry.map(|(key, _)| key.value().to_vec()))
            .collect::<Result<Vec<_>, _>>()?;
        self.changed |= !due.is_empty();
        if let Some(ParsedTally::Load(last)) = due.last().and_then(|key| Tally::parse(key)) {
            self.forget_loads_through(last.minute);
        }
        for key in &due {
            self.tallies.remove(key.as_slice())?;
        }
        Ok(due.len())
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
    pub(super) fn of_new_store(node_id: NodeId) -> Self {
        Self {
            identity: Arc::new(Identity { node_id, earlier: Vec::new() }),
            log: log::LogHead::default(),
            totals: TotalsV2::default(),
            newest_created: None,
            last_recorded: None,
        }
    }

    /// The end of the ledger log as of the last commit.
    pub fn log_position(&self) -> LogPosition {
        LogPosition { seq: self.log.seq, hash: self.log.hash }
    }

    /// The counters of the whole store as of the last commit.
    pub fn totals(&self) -> &TotalsV2 {
        &self.totals
    }
}

impl StoredTransaction {
    /// The status as it is stored.
    pub fn status(&self) -> TransactionStatus {
        self.fold.status
    }

    /// When the newest event of one of these nodes happened.
    pub fn newest_of(&self, identity: &Identity) -> Option<Timestamp> {
        self.events.iter().filter(|event| identity.is_own(event.node_id)).map(|event| event.at).max()
    }

    /// The facts.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.fold.facts
    }
}

fn fold_of(events: &[Event]) -> Result<Fold, StoreError> {
    let facts = events.first().map(|event| event.facts).unwrap_or_default();
    fold(&facts, events)
        .ok_or_else(|| StoreError::Damaged("a transaction's events do not begin with a recorded one".to_owned()))
}
