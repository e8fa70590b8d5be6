//! The ledger's part of a [`Batch`]: recording and deciding, and everything that is kept in step with them.
//!
//! A transaction is *filed* under a [`TxKey`]: its record, the way from its id, its places in the lists of its parties
//! and of what is open, its part in totals, balances and load. [`Batch::file`] does all of that and [`Batch::unfile`]
//! takes all of it back, so that one that turns out to be older than it seemed can be filed again elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch::Batch;
use super::codec;
use super::counters::Counters;
use super::error::StoreError;
use super::event_record::encode_event;
use super::lookup::{self, LedgerReader};
use super::query;
use super::records::{BalanceV1, TransactionV1, status_code};
use super::tables::{LoadKey, Roles, Scope, Tally, TxKey, id_key, key_within, minute_of};
use crate::domain::fold::{Fold, fold};
use crate::domain::{
    AgentId, Capability, Currency, Event, EventBody, Facts, Timestamp, TransactionId, TransactionStatus,
};

/// How many agents' numbers are kept from one batch to the next.
const MAX_KNOWN_NUMBERS: usize = 65_536;

/// What the file is known to hold without looking, from one batch to the next.
#[derive(Debug, Default)]
pub struct Known {
    numbers: HashMap<AgentId, u32>,
    balances: Counters<(u32, Currency), BalanceV1>,
    loads: Counters<(u32, u32, Capability), u32>,
}

/// A transaction with all its events.
#[derive(Debug, Clone)]
pub struct StoredTransaction {
    key: TxKey,
    row: TransactionV1,
    events: Vec<Event>,
    /// What the events fold to.
    pub fold: Fold,
}

impl StoredTransaction {
    /// The status as it is stored.
    pub fn status(&self) -> TransactionStatus {
        self.fold.status
    }

    /// The facts.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.fold.facts
    }
}

/// A transaction, and where it is filed.
pub(super) struct Filing<'a> {
    pub key: TxKey,
    pub row: &'a TransactionV1,
    pub transaction_id: &'a TransactionId,
    pub facts: &'a Facts,
}

/// Whether something is put in or taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    In,
    Out,
}

impl LedgerReader for Batch<'_> {
    fn row(&self, key: TxKey) -> Result<Option<TransactionV1>, StoreError> {
        self.transactions.get(Scope::ROWS, key, codec::decode)?.transpose()
    }

    fn event(&self, reference: u64) -> Result<Event, StoreError> {
        self.log.read(reference)
    }

    fn listed(&self, id: &TransactionId) -> Result<Option<TxKey>, StoreError> {
        Ok(self.ids.get(id_key(id).as_slice())?.map(|key| TxKey::from_bytes(key.value())))
    }
}

impl Batch<'_> {
    /// A stored transaction with its events.
    pub fn transaction(&self, id: &TransactionId) -> Result<Option<StoredTransaction>, StoreError> {
        let Some(found) = lookup::find(self, id)? else { return Ok(None) };
        let events = found.events(self)?;
        let fold = fold_of(&events)?;
        Ok(Some(StoredTransaction { key: found.key, row: found.row, events, fold }))
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

    /// The first key of a microsecond that is behind all that are taken.
    pub fn free_key(&self, created_at: Timestamp) -> Result<TxKey, StoreError> {
        let first = TxKey::first_at(created_at);
        if self.head.newest_created.is_none_or(|newest| newest < created_at) {
            return Ok(first);
        }
        let taken = self.transactions.newest_within(Scope::ROWS, first..=TxKey::last_at(created_at))?;
        Ok(taken.map_or(first, |taken| TxKey { created_at, tie: taken.tie + 1 }))
    }

    /// Appends the `recorded` event of a transaction that is not stored yet, and files the transaction under the key
    /// that [`free_key`](Self::free_key) gave for the time of the event.
    pub fn record(&mut self, key: TxKey, event: &Event) -> Result<(), StoreError> {
        let EventBody::Recorded(facts) = &event.body else {
            unreachable!("only a recorded event starts a transaction");
        };
        let payer = self.agent_number(&facts.payer_agent)?;
        let provider = self.agent_number(&facts.provider_agent)?;
        let seq = self.append(event)?;
        let row = TransactionV1::new(payer, provider, event.at, seq);
        self.file(&Filing { key, row: &row, transaction_id: &event.transaction_id, facts })?;
        self.head.last_recorded = Some(key.created_at);
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
        stored.row.set_status(after);
        stored.row.updated_at = fold.updated_at;
        stored.row.settled_at = fold.settled_at;
        stored.row.has_evidence = !fold.evidence.is_empty();
        self.transactions.put(Scope::ROWS, stored.key, &codec::encode(&stored.row));
        if before != after {
            if after.is_open() {
                self.transactions.put(Scope::OPEN, stored.key, &[status_code(after)]);
            } else {
                self.transactions.remove(Scope::OPEN, stored.key);
            }
            self.count(&stored.row, &fold.facts, before, Change::Out)?;
            self.count(&stored.row, &fold.facts, after, Change::In)?;
        }
        Ok(fold)
    }

    /// Files a transaction: see the [module](self). Nothing may be filed under its key or under its id.
    pub(super) fn file(&mut self, filing: &Filing<'_>) -> Result<(), StoreError> {
        let Filing { key, row, transaction_id, facts } = *filing;
        let status = row.status()?;
        self.changed = true;
        self.transactions.put(Scope::ROWS, key, &codec::encode(row));
        if status.is_open() {
            self.transactions.put(Scope::OPEN, key, &[status_code(status)]);
        }
        for (agent, roles) in parties(row) {
            self.transactions.put(Scope::of_agent(agent), key, &[roles.0]);
        }
        if key_within(transaction_id) != Some(key)
            && self.ids.insert(id_key(transaction_id).as_slice(), &key.to_bytes())?.is_some()
        {
            return Err(StoreError::Damaged(format!("transaction {transaction_id} is filed twice")));
        }
        self.head.newest_created = self.head.newest_created.max(Some(key.created_at));
        self.count(row, facts, status, Change::In)?;
        self.count_load(key.created_at, row.provider, &facts.capability, Change::In)
    }

    /// Takes a transaction out of everything that [`file`](Self::file) put it into. Its events and its parties' numbers
    /// stay.
    // Until transactions come from elsewhere, only the tests move one.
    #[cfg_attr(not(test), expect(dead_code, reason = "what is recorded here never has to move"))]
    pub(super) fn unfile(&mut self, filing: &Filing<'_>) -> Result<(), StoreError> {
        let Filing { key, row, transaction_id, facts } = *filing;
        let status = row.status()?;
        self.changed = true;
        self.transactions.remove(Scope::ROWS, key);
        self.transactions.remove(Scope::OPEN, key);
        for (agent, _) in parties(row) {
            self.transactions.remove(Scope::of_agent(agent), key);
        }
        if key_within(transaction_id) != Some(key) {
            self.ids.remove(id_key(transaction_id).as_slice())?;
        }
        self.count(row, facts, status, Change::Out)?;
        self.count_load(key.created_at, row.provider, &facts.capability, Change::Out)
    }

    fn append(&mut self, event: &Event) -> Result<u64, StoreError> {
        self.changed = true;
        self.head.totals.events += 1;
        self.log.append(&mut self.head.log, |seq, bytes| encode_event(event, seq, bytes))
    }

    /// The number of an agent, which is given one when a transaction first names it.
    pub(super) fn agent_number(&mut self, id: &AgentId) -> Result<u32, StoreError> {
        if let Some(number) = self.head.known.numbers.get(id) {
            return Ok(*number);
        }
        let stored = self.numbers.get(id.as_str())?.map(|number| number.value());
        let number = match stored {
            Some(number) => number,
            None => {
                self.changed = true;
                self.head.totals.numbered_agents += 1;
                self.numbers.insert(id.as_str(), self.head.totals.numbered_agents)?;
                self.head.totals.numbered_agents
            }
        };
        self.head.known.numbers.insert(id.clone(), number);
        Ok(number)
    }

    /// Totals by status, and the balances of both parties.
    fn count(
        &mut self,
        row: &TransactionV1,
        facts: &Facts,
        status: TransactionStatus,
        change: Change,
    ) -> Result<(), StoreError> {
        let total = self.head.totals.of(status);
        match change {
            Change::In => *total += 1,
            Change::Out => *total -= 1,
        }
        for (agent, is_payer) in [(row.payer, true), (row.provider, false)] {
            let tallies = &self.tallies;
            let balance = self.head.known.balances.touch((agent, facts.currency.clone()), || {
                let key = Tally::Balance { agent, currency: &facts.currency }.to_bytes();
                let stored = tallies.get(key.as_slice())?;
                Ok::<_, StoreError>(stored.map(|row| codec::decode(row.value())).transpose()?.unwrap_or_default())
            })?;
            let side = if is_payer { &mut balance.paid } else { &mut balance.earned };
            match (side.of(status), change) {
                (Some(total), Change::In) => total.add(facts.amount),
                (Some(total), Change::Out) => total.subtract(facts.amount),
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// The load of a minute, unless that minute is forgotten already.
    fn count_load(
        &mut self,
        at: Timestamp,
        provider: u32,
        capability: &Capability,
        change: Change,
    ) -> Result<(), StoreError> {
        let minute = minute_of(at);
        if minute < self.head.totals.loads_from {
            return Ok(());
        }
        let tallies = &self.tallies;
        let count = self.head.known.loads.touch((minute, provider, capability.clone()), || {
            let load = LoadKey { minute, provider, capability: capability.as_str() };
            let stored = tallies.get(Tally::Load(load).to_bytes().as_slice())?;
            stored.map_or(Ok(0), |row| query::load_count(row.value()))
        })?;
        *count = match change {
            Change::In => count.saturating_add(1),
            Change::Out => count.saturating_sub(1),
        };
        Ok(())
    }

    /// Forgets at most `limit` load counts of minutes before `minute`.
    pub fn purge_loads(&mut self, minute: u32, limit: usize) -> Result<usize, StoreError> {
        let range = Tally::loads_from(0)..Tally::loads_from(minute);
        let due = self
            .tallies
            .range::<&[u8]>(range.start.as_slice()..range.end.as_slice())?
            .take(limit)
            .map(|entry| entry.map(|(key, _)| key.value().to_vec()))
            .collect::<Result<Vec<_>, _>>()?;
        if due.is_empty() {
            return Ok(0);
        }
        self.changed = true;
        // One that comes late must not begin a count anew of which the rest is gone.
        self.head.totals.loads_from = self.head.totals.loads_from.max(minute);
        self.head.known.loads.retain(|(counted, ..)| *counted >= minute);
        for key in &due {
            self.tallies.remove(key.as_slice())?;
        }
        Ok(due.len())
    }

    /// Writes what was staged.
    pub(super) fn finish_ledger(&mut self) -> Result<(), StoreError> {
        self.log.flush()?;
        self.transactions.flush()?;
        let (tallies, known) = (&mut self.tallies, &mut self.head.known);
        known.balances.write(|(agent, currency), balance| {
            let key = Tally::Balance { agent: *agent, currency }.to_bytes();
            tallies.insert(key.as_slice(), codec::encode(&balance).as_slice()).map(drop)
        })?;
        known.loads.write(|(minute, provider, capability), count| {
            let load = LoadKey { minute: *minute, provider: *provider, capability: capability.as_str() };
            let key = Tally::Load(load).to_bytes();
            if count == 0 {
                return tallies.remove(key.as_slice()).map(drop);
            }
            tallies.insert(key.as_slice(), count.to_le_bytes().as_slice()).map(drop)
        })?;
        if known.numbers.len() > MAX_KNOWN_NUMBERS {
            known.numbers.clear();
        }
        Ok(())
    }
}

/// The parties of a transaction and their roles: two agents, or one that is both.
pub(super) fn parties(row: &TransactionV1) -> impl Iterator<Item = (u32, Roles)> + use<> {
    let (payer, provider) = (row.payer, row.provider);
    let roles = if payer == provider { Roles::PAYER.both(Roles::PROVIDER) } else { Roles::PAYER };
    std::iter::once((payer, roles)).chain((payer != provider).then_some((provider, Roles::PROVIDER)))
}

fn fold_of(events: &[Event]) -> Result<Fold, StoreError> {
    let facts = events.first().map(|event| event.facts).unwrap_or_default();
    fold(&facts, events)
        .ok_or_else(|| StoreError::Damaged("a transaction's events do not begin with a recorded one".to_owned()))
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
