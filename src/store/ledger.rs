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
use super::events::{self, Place};
use super::lazy::Lazy;
use super::lookup::{self, LedgerReader};
use super::query;
use super::records::{BalanceV1, TransactionV1, status_code};
use super::runs::{Runs, Target};
use super::tables::{LoadKey, ParsedTally, Roles, Scope, Tally, TxKey, id_key, key_within, minute_of};
use crate::domain::fold::{Fold, fold};
use crate::domain::transaction::Finality;
use crate::domain::{
    AgentId, Capability, Currency, Event, EventBody, Facts, Identity, Sink, Timestamp, TransactionId, TransactionStatus,
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
    pub(super) key: TxKey,
    pub(super) row: TransactionV1,
    /// In the order of `row.events`.
    pub(super) events: Vec<Event>,
    /// What the events fold to.
    pub fold: Fold,
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

    fn event(&self, place: Place) -> Result<Event, StoreError> {
        match place {
            Place::Log(seq) => self.log.read(seq),
            Place::Copy(number) => Ok(events::read_copy(self.copies.open()?, number)?.event),
        }
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

    /// How far a transaction got.
    pub fn finality(&self, stored: &StoredTransaction) -> Result<Finality, StoreError> {
        self.head.acknowledged.finality(&stored.row.events, |key| self.is_parked(Sink::Postgres, key))
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
        let row = TransactionV1::recorded(payer, provider, event.at, seq);
        self.enter(key, &event.transaction_id, facts, &row)?;
        self.head.last_recorded = Some(key.created_at);
        Ok(())
    }

    /// Appends a further event to a transaction; what it folds to from here on.
    pub fn decide(&mut self, mut stored: StoredTransaction, event: Event) -> Result<Fold, StoreError> {
        let seq = self.append(&event)?;
        let mut places = std::mem::take(&mut stored.row.events);
        places.push(seq);
        stored.events.push(event);
        let fold = fold_of(&stored.events)?;
        self.update(&stored, &fold, places)?;
        Ok(fold)
    }

    /// Writes what a transaction with further events has become. Its time and its facts must be what they were.
    pub(super) fn update(
        &mut self,
        stored: &StoredTransaction,
        fold: &Fold,
        places: Vec<u64>,
    ) -> Result<(), StoreError> {
        let StoredTransaction { key, row: TransactionV1 { payer, provider, .. }, .. } = *stored;
        let (before, after) = (stored.fold.status, fold.status);
        self.changed = true;
        let row = TransactionV1::new(payer, provider, fold, places);
        self.transactions.put(Scope::ROWS, key, &codec::encode(&row));
        if before != after {
            if after.is_open() {
                self.transactions.put(Scope::OPEN, key, &[status_code(after)]);
            } else {
                self.transactions.remove(Scope::OPEN, key);
            }
            self.count(&row, &fold.facts, before, Change::Out)?;
            self.count(&row, &fold.facts, after, Change::In)?;
        }
        Ok(())
    }

    /// Files a transaction that is not filed, at the time and for the parties that its events fold to: see the
    /// [module](self). `places` are those of its events.
    pub(super) fn file(&mut self, id: &TransactionId, fold: &Fold, places: Vec<u64>) -> Result<(), StoreError> {
        let payer = self.agent_number(&fold.facts.payer_agent)?;
        let provider = self.agent_number(&fold.facts.provider_agent)?;
        let key = self.free_key(fold.created_at)?;
        self.enter(key, id, &fold.facts, &TransactionV1::new(payer, provider, fold, places))
    }

    fn enter(&mut self, key: TxKey, id: &TransactionId, facts: &Facts, row: &TransactionV1) -> Result<(), StoreError> {
        let status = row.status()?;
        self.changed = true;
        self.transactions.put(Scope::ROWS, key, &codec::encode(row));
        if status.is_open() {
            self.transactions.put(Scope::OPEN, key, &[status_code(status)]);
        }
        for (agent, roles) in parties(row) {
            self.runs.change_list(Scope::of_agent(agent), key, Some(&[roles.0]));
        }
        if key_within(id) != Some(key) && self.ids.insert(id_key(id).as_slice(), &key.to_bytes())?.is_some() {
            return Err(StoreError::Damaged(format!("transaction {id} is filed twice")));
        }
        self.head.newest_created = self.head.newest_created.max(Some(key.created_at));
        self.count(row, facts, status, Change::In)?;
        self.count_load(key.created_at, row.provider, &facts.capability, Change::In)
    }

    /// Takes a transaction out of everything that [`file`](Self::file) put it into. Its events and its parties' numbers
    /// stay.
    pub(super) fn unfile(&mut self, id: &TransactionId, stored: &StoredTransaction) -> Result<(), StoreError> {
        let StoredTransaction { key, row, fold, .. } = stored;
        let (key, status) = (*key, fold.status);
        self.changed = true;
        self.transactions.remove(Scope::ROWS, key);
        if status.is_open() {
            self.transactions.remove(Scope::OPEN, key);
        }
        for (agent, _) in parties(row) {
            self.runs.change_list(Scope::of_agent(agent), key, None);
        }
        if key_within(id) != Some(key) {
            self.ids.remove(id_key(id).as_slice())?;
        }
        self.count(row, &fold.facts, status, Change::Out)?;
        self.count_load(key.created_at, row.provider, &fold.facts.capability, Change::Out)
    }

    fn append(&mut self, event: &Event) -> Result<u64, StoreError> {
        self.changed = true;
        self.head.totals.events += 1;
        self.log.append(&mut self.head.log, |seq, bytes| encode_event(event, seq, bytes))
    }

    /// The number of an agent that a transaction names.
    pub(super) fn known_agent_number(&self, id: &AgentId) -> Result<Option<u32>, StoreError> {
        Ok(self.numbers.get(id.as_str())?.map(|number| number.value()))
    }

    /// The number of an agent, which is given one when a transaction first names it.
    pub(super) fn agent_number(&mut self, id: &AgentId) -> Result<u32, StoreError> {
        if let Some(number) = self.head.known.numbers.get(id) {
            return Ok(*number);
        }
        let number = match self.known_agent_number(id)? {
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
            let (runs, tallies) = (&self.runs, &self.tallies);
            let balance = self.head.known.balances.touch((agent, facts.currency.clone()), || {
                let tally = Tally::Balance { agent, currency: &facts.currency };
                let stored = stored_tally(runs, tallies, tally, codec::decode)?;
                Ok::<_, StoreError>(stored.transpose()?.unwrap_or_default())
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

    /// The load of a minute, unless nobody asks for it any more: then it is forgotten from here on. One that was forgotten
    /// under a clock that was ahead is counted again once the clock is right, from what is left of it.
    fn count_load(
        &mut self,
        at: Timestamp,
        provider: u32,
        capability: &Capability,
        change: Change,
    ) -> Result<(), StoreError> {
        let minute = minute_of(at);
        if minute < self.load_window_from {
            self.forget_loads_through(minute);
            return Ok(());
        }
        let (runs, tallies) = (&self.runs, &self.tallies);
        let count = self.head.known.loads.touch((minute, provider, capability.clone()), || {
            let load = LoadKey { minute, provider, capability: capability.as_str() };
            stored_tally(runs, tallies, Tally::Load(load), query::load_count)?.unwrap_or(Ok(0))
        })?;
        *count = match change {
            Change::In => count.saturating_add(1),
            Change::Out => count.saturating_sub(1),
        };
        Ok(())
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
        if self.runs.have_tally_within(&range.start, &range.end)? {
            self.settle()?;
        }
        let due = self
            .tallies
            .range::<&[u8]>(range.start.as_slice()..range.end.as_slice())?
            .take(limit)
            .map(|entry| entry.map(|(key, _)| key.value().to_vec()))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(ParsedTally::Load(last)) = due.last().and_then(|key| Tally::parse(key)) else { return Ok(0) };
        self.changed = true;
        // No later minute is given up than one that had a load: from there on every load is counted, and can be verified.
        self.forget_loads_through(last.minute);
        self.head.known.loads.retain(|(counted, ..)| *counted > last.minute);
        for key in &due {
            self.tallies.remove(key.as_slice())?;
        }
        Ok(due.len())
    }

    /// Writes what was staged.
    pub(super) fn finish_ledger(&mut self) -> Result<(), StoreError> {
        let (runs, known) = (&mut self.runs, &mut self.head.known);
        known.balances.write(|(agent, currency), balance| {
            let key = Tally::Balance { agent: *agent, currency }.to_bytes();
            runs.change_tally(&key, Some(&codec::encode(&balance)));
        });
        known.loads.write(|(minute, provider, capability), count| {
            let load = LoadKey { minute: *minute, provider: *provider, capability: capability.as_str() };
            runs.change_tally(&Tally::Load(load).to_bytes(), (count > 0).then_some(&count.to_le_bytes()));
        });
        if known.numbers.len() > MAX_KNOWN_NUMBERS {
            known.numbers.clear();
        }
        if self.runs.are_full(&self.head.waiting) {
            self.settle()?;
        } else {
            self.runs.flush(&mut self.head.waiting)?;
        }
        self.log.flush()?;
        self.transactions.flush()
    }

    /// Leaves what waits in runs where it is as long as it can: the disk is short of room.
    pub fn put_off_settling(&mut self) {
        self.runs.put_off();
    }

    /// Has everything that waits in runs written to where it belongs.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        self.changed = true;
        let (transactions, tallies) = (&mut self.transactions, &mut self.tallies);
        self.runs.drain(&mut self.head.waiting, |target, change| match (target, change) {
            (Target::Listed(scope, key), Some(roles)) => {
                transactions.put(scope, key, roles);
                Ok(())
            }
            (Target::Listed(scope, key), None) => {
                transactions.remove(scope, key);
                Ok(())
            }
            (Target::Tally(key), Some(value)) => tallies.insert(key, value).map(drop),
            (Target::Tally(key), None) => tallies.remove(key).map(drop),
        })
    }
}

/// What `read` makes of a counter as it is stored, if it is.
fn stored_tally<T>(
    runs: &Runs<'_>,
    tallies: &Lazy<'_, &'static [u8], &'static [u8]>,
    tally: Tally<'_>,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<Option<T>, StoreError> {
    let key = tally.to_bytes();
    if let Some(change) = runs.tally(&key)? {
        return Ok(change.map(|value| read(&value)));
    }
    Ok(tallies.get(key.as_slice())?.map(|row| read(row.value())))
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
