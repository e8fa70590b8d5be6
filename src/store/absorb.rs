//! Events of other nodes within a batch: merged into the transactions that they belong to.
//!
//! What a transaction looks like is a function of the set of its events, whoever wrote them and in whatever order they
//! came, and of the facts that PostgreSQL is known to hold for its id. So merging the same events again changes nothing.
//! An earlier `recorded` event, or other facts, may file a transaction anew under another time and other parties.

use std::collections::HashSet;

use super::batch::Batch;
use super::codec::decode;
use super::error::StoreError;
use super::events::{EntryV1, Place, encode_entry};
use super::lookup::LedgerReader;
use super::tables::{held_key, held_prefix, id_key};
use crate::domain::event::FactsHash;
use crate::domain::fold::{Fold, fold};
use crate::domain::{AgentId, CopyNumber, Event, EventBody, LedgerEntry, TransactionId};

/// What merging events into one transaction came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// Events that were not held before.
    pub new_events: usize,
    /// Of these, those that wait for a `recorded` event.
    pub held: usize,
    /// Of these, those with other facts than the transaction's.
    pub conflicts: usize,
    /// All events with other facts than the transaction's, before.
    pub conflicts_before: usize,
    /// And after.
    pub conflicts_after: usize,
    /// What the transaction was before, if it was shown.
    pub before: Option<Fold>,
    /// What it is now, if it is shown.
    pub after: Option<Fold>,
}

impl Batch<'_> {
    /// Merges events of other nodes into their transaction; those held already are passed over. With no events it
    /// takes in what was held for a transaction that has just been recorded here.
    pub fn merge(&mut self, id: &TransactionId, entries: Vec<LedgerEntry>) -> Result<Merged, StoreError> {
        let stored = self.transaction(id)?;
        let held = self.held_events(id)?;
        let mut known: HashSet<_> = held.iter().map(|(_, event)| event.event_id).collect();
        let mut all: Vec<(u64, Event)> = Vec::new();
        if let Some(stored) = &stored {
            known.extend(stored.events.iter().map(|event| event.event_id));
            all.extend(stored.row.events.iter().copied().zip(stored.events.iter().cloned()));
        }
        let first_new = all.len() + held.len();
        all.extend(held);
        for entry in entries {
            if known.insert(entry.event.event_id) {
                all.push((self.append_copy(&entry)?, entry.event));
            }
        }
        let new_events = all.len() - first_new;
        let conflicts_before = stored.as_ref().map_or(0, |stored| conflicting(&stored.events, stored.events[0].facts));
        let before = stored.as_ref().map(|stored| stored.fold.clone());

        let central = self.central_facts.get(id_key(id).as_slice())?.map(|facts| *facts.value());
        let Some(first) = decisive(central, all.iter().map(|(_, event)| event)) else {
            for (place, event) in &all[first_new..] {
                self.held.insert(held_key(id, event.event_id).as_slice(), *place)?;
                self.head.held += 1;
            }
            let held = new_events;
            let (conflicts, conflicts_after) = (0, 0);
            return Ok(Merged { new_events, held, conflicts, conflicts_before, conflicts_after, before, after: None });
        };
        let facts = all[first].1.facts;
        let conflicts = conflicting(all[first_new..].iter().map(|(_, event)| event), facts);
        let conflicts_after = conflicting(all.iter().map(|(_, event)| event), facts);
        for (_, event) in &all[stored.as_ref().map_or(0, |stored| stored.events.len())..first_new] {
            self.held.remove(held_key(id, event.event_id).as_slice())?;
            self.head.held -= 1;
        }
        all[..=first].rotate_right(1);
        let after = fold(&facts, all.iter().map(|(_, event)| event))
            .ok_or_else(|| StoreError::Damaged(format!("the events of transaction {id} fold to nothing")))?;
        let places: Vec<u64> = all.iter().map(|(place, _)| *place).collect();
        match &stored {
            Some(stored) if stored.row.events == places => {}
            Some(stored) if stored.key.created_at == after.created_at && stored.events[0].facts == facts => {
                self.update(stored, &after, places)?;
            }
            Some(stored) => {
                self.unfile(id, stored)?;
                self.file(id, &after, places)?;
            }
            None => self.file(id, &after, places)?,
        }
        let after = Some(after);
        Ok(Merged { new_events, held: 0, conflicts, conflicts_before, conflicts_after, before, after })
    }

    /// Whether an entry can be read again once it is stored. What comes from elsewhere has to be asked about: our own
    /// events keep far below the limit of a record.
    pub fn can_hold(&self, entry: &LedgerEntry) -> bool {
        may_be_read_back(entry)
    }

    /// Whether any event waits for this transaction to be recorded.
    pub fn holds_events_for(&self, id: &TransactionId) -> Result<bool, StoreError> {
        Ok(!self.held_events(id)?.is_empty())
    }

    /// PostgreSQL holds this id with these facts.
    pub fn put_central_facts(&mut self, id: &TransactionId, facts: &FactsHash) -> Result<(), StoreError> {
        self.changed = true;
        self.central_facts.insert(id_key(id).as_slice(), facts)?;
        Ok(())
    }

    /// How many copies of other nodes' events there are, which is the number of the newest.
    pub fn copies(&self) -> u64 {
        self.head.totals.copies
    }

    /// The history of these agents has been read in full; others are not asked about.
    pub fn cover(&mut self, ids: &[AgentId]) -> Result<(), StoreError> {
        for id in ids {
            if self.ledger_agents.get(id.as_str())?.is_some_and(|covered| covered.value() == 0) {
                self.ledger_agents.insert(id.as_str(), 1)?;
                self.changed = true;
            }
        }
        Ok(())
    }

    /// Nobody's history has been read.
    pub fn uncover_all(&mut self) -> Result<(), StoreError> {
        let covered: Vec<String> = self
            .ledger_agents
            .iter()?
            .filter_map(|entry| match entry {
                Ok((id, covered)) => (covered.value() != 0).then(|| Ok(id.value().to_owned())),
                Err(error) => Some(Err(error)),
            })
            .collect::<Result<_, _>>()?;
        for id in &covered {
            self.ledger_agents.insert(id.as_str(), 0)?;
            self.changed = true;
        }
        Ok(())
    }

    /// An agent's transactions are followed from here on, as those of every agent that is registered here.
    pub fn follow(&mut self, id: &AgentId) -> Result<(), StoreError> {
        if self.ledger_agents.get(id.as_str())?.is_none() {
            self.ledger_agents.insert(id.as_str(), 0)?;
            self.changed = true;
        }
        Ok(())
    }

    /// An agent is not registered here any more: it is followed only while transactions of it are held.
    pub(super) fn unfollow(&mut self, id: &AgentId) -> Result<(), StoreError> {
        if self.known_agent_number(id)?.is_none() {
            self.ledger_agents.remove(id.as_str())?;
        }
        Ok(())
    }

    fn append_copy(&mut self, entry: &LedgerEntry) -> Result<u64, StoreError> {
        self.changed = true;
        self.head.totals.copies += 1;
        let number = self.head.totals.copies;
        self.copies.insert(number, encode_entry(entry).as_slice())?;
        Ok(Place::Copy(CopyNumber(number)).to_bits())
    }

    fn held_events(&self, id: &TransactionId) -> Result<Vec<(u64, Event)>, StoreError> {
        let mut held = Vec::new();
        if self.head.held == 0 {
            return Ok(held);
        }
        let prefix = held_prefix(id);
        for entry in self.held.range::<&[u8]>(prefix.as_slice()..)? {
            let (key, place) = entry?;
            if !key.value().starts_with(&prefix) {
                break;
            }
            let place = place.value();
            held.push((place, self.event(Place::from_bits(place))?));
        }
        Ok(held)
    }
}

/// Which of the events is the `recorded` one that decides what the transaction is: the earliest with the facts that
/// PostgreSQL holds, or else the earliest of all. `None` if there is no `recorded` event.
pub fn decisive<'e>(
    central: Option<FactsHash>,
    events: impl IntoIterator<Item = &'e Event, IntoIter: Clone>,
) -> Option<usize> {
    let recorded = events.into_iter().enumerate().filter(|(_, event)| matches!(event.body, EventBody::Recorded(_)));
    let earliest = |facts: Option<FactsHash>| {
        let candidates = recorded.clone().filter(|(_, event)| facts.is_none_or(|facts| event.facts == facts));
        candidates.min_by_key(|(_, event)| (event.at, event.event_id)).map(|(index, _)| index)
    };
    central.and_then(|facts| earliest(Some(facts))).or_else(|| earliest(None))
}

/// Far below what a record may hold; entries as small as that need not be tried.
const SURELY_FITS: usize = 256 * 1024;
/// At least what a text or an id takes besides its bytes, stored or in memory.
const PER_TEXT: usize = 64;

fn may_be_read_back(entry: &LedgerEntry) -> bool {
    let (id, payer, provider) = (&entry.event.transaction_id, &entry.payer_agent, &entry.provider_agent);
    let mut bytes = id.as_str().len() + payer.as_str().len() + provider.as_str().len();
    let mut add = |text: &str| bytes += text.len() + PER_TEXT;
    match &entry.event.body {
        EventBody::Recorded(facts) => {
            let ids = [facts.payer_agent.as_str(), facts.provider_agent.as_str(), facts.capability.as_str()];
            ids.into_iter().chain([facts.currency.as_str(), facts.context.as_str()]).for_each(add);
        }
        EventBody::Settled => {}
        EventBody::Cancelled { reason } => reason.iter().for_each(|text| add(text)),
        EventBody::Disputed { reason, evidence } => reason.iter().chain(evidence).for_each(|text| add(text)),
        EventBody::EvidenceAdded { evidence } => evidence.iter().for_each(|text| add(text)),
        EventBody::Resolved { note, decisions, .. } => {
            note.iter().for_each(|text| add(text));
            bytes += decisions.len() * PER_TEXT;
        }
    }
    bytes <= SURELY_FITS || decode::<EntryV1>(&encode_entry(entry)).is_ok()
}

fn conflicting<'a>(events: impl IntoIterator<Item = &'a Event>, facts: FactsHash) -> usize {
    events.into_iter().filter(|event| event.facts != facts).count()
}
