//! Pages of transactions: which index to walk, and how far.
//!
//! A page reads at most [`MAX_READ`] entries, whatever matches, and holds a bounded number of bytes. Entries of one
//! microsecond are put into the order of their ids before they are filtered, so that a page may begin after any entry.

use super::blocks::{self, Direction};
use super::error::StoreError;
use super::events::Place;
use super::lookup::{self, Found, LedgerReader, missing};
use super::records::{TransactionV1, status_of};
use super::sinks::Acknowledged;
use super::snapshot::{LedgerTables, Snapshot};
use super::tables::{Roles, Scope, TxKey};
use crate::domain::{
    AgentId, Capability, Event, EventBody, Role, Timestamp, Transaction, TransactionId, TransactionStatus,
};

/// The most entries that are read for one page.
pub const MAX_READ: usize = 10_000;
/// A page ends with the transaction that brings it to so many bytes of contexts and evidence.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Which transactions, and in what order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TransactionFilter {
    /// With this agent as a party.
    pub agent: Option<AgentId>,
    /// With that agent in this role; without an agent it filters nothing.
    pub role: Option<Role>,
    /// With this status.
    pub status: Option<TransactionStatus>,
    /// For this capability.
    pub capability: Option<Capability>,
    /// Created at or after.
    pub since: Option<Timestamp>,
    /// Created before.
    pub until: Option<Timestamp>,
    /// Newest first.
    pub descending: bool,
}

/// A place in the order of creation and id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// When the transaction there was created.
    pub created_at: Timestamp,
    /// Its id.
    pub transaction_id: TransactionId,
}

/// Some of the matches, and where to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct TransactionPage {
    /// In order.
    pub items: Vec<Transaction>,
    /// The last entry that was looked at, unless it was the last there is.
    pub next: Option<Position>,
}

pub fn page(
    snapshot: &Snapshot,
    filter: &TransactionFilter,
    limit: usize,
    after: Option<&Position>,
    acknowledged: Acknowledged,
) -> Result<TransactionPage, StoreError> {
    let Some(search) = search(snapshot, filter)? else {
        return Ok(TransactionPage { items: Vec::new(), next: None });
    };
    let Some((first, last)) = bounds(filter, after) else {
        return Ok(TransactionPage { items: Vec::new(), next: None });
    };
    let ledger = snapshot.ledger()?;
    let direction = if filter.descending { Direction::Descending } else { Direction::Ascending };
    let entries = blocks::walk(&ledger.transactions, search.scope, first..=last, direction, |value| {
        Ok(value.first().copied().unwrap_or_default())
    })?;
    let mut walk = Walk {
        filter,
        search,
        after,
        limit,
        ledger: &ledger,
        acknowledged,
        read: 0,
        bytes: 0,
        page: TransactionPage { items: Vec::new(), next: None },
    };
    let mut group: Vec<(TxKey, u8)> = Vec::new();
    for entry in entries {
        let entry = entry?;
        if group.first().is_some_and(|(key, _)| key.created_at != entry.0.created_at)
            && walk.take_group(std::mem::take(&mut group))?
        {
            return Ok(walk.page);
        }
        if walk.is_full() {
            return Ok(walk.page);
        }
        group.push(entry);
    }
    let stopped = walk.take_group(group)?;
    if !stopped {
        walk.page.next = None;
    }
    Ok(walk.page)
}

/// The transaction that a row and its events make.
pub fn transaction(
    ledger: &LedgerTables<'_>,
    acknowledged: Acknowledged,
    Found { key, row, recorded }: Found,
) -> Result<Transaction, StoreError> {
    let mut evidence = Vec::new();
    if row.has_evidence {
        let further = row.events.iter().skip(1).map(|bits| ledger.event(Place::from_bits(*bits)));
        let mut events: Vec<Event> = further.collect::<Result<_, _>>()?;
        events.retain(|event| event.facts == recorded.facts);
        events.sort_by_key(|event| (event.at, event.event_id));
        evidence = events.iter().flat_map(|event| event.body.evidence().iter().cloned()).collect();
    }
    let EventBody::Recorded(facts) = recorded.body else {
        let created_at = key.created_at;
        return Err(StoreError::Damaged(format!(
            "the transaction of {created_at} does not begin with a recorded event"
        )));
    };
    Ok(Transaction {
        transaction_id: recorded.transaction_id,
        created_at: key.created_at,
        facts,
        status: row.status()?,
        evidence,
        updated_at: row.updated_at,
        settled_at: row.settled_at,
        finality: acknowledged.finality(&row.events, |key| ledger.is_parked(key))?,
    })
}

/// A stored load count.
pub fn load_count(bytes: &[u8]) -> Result<u32, StoreError> {
    let bytes = bytes.try_into().map_err(|_| StoreError::Damaged("a load count is malformed".to_owned()))?;
    Ok(u32::from_le_bytes(bytes))
}

/// Where to look for matches.
#[derive(Debug, Clone, Copy)]
struct Search {
    scope: Scope,
    /// The number of the agent that was asked for, if any was.
    party: Option<u32>,
}

/// The narrowest place that holds all matches; `None` if nothing can match.
fn search(snapshot: &Snapshot, filter: &TransactionFilter) -> Result<Option<Search>, StoreError> {
    let party = match &filter.agent {
        None => None,
        Some(agent) => match snapshot.agent_number(agent)? {
            None => return Ok(None),
            number => number,
        },
    };
    let open_wanted = filter.status.is_some_and(TransactionStatus::is_open);
    let mut totals = snapshot.totals()?;
    let open: u64 = TransactionStatus::ALL.into_iter().filter(|s| s.is_open()).map(|s| *totals.of(s)).sum();
    // Few open transactions are quicker to look through than everything an agent ever did.
    let use_open = open_wanted && (party.is_none() || open <= MAX_READ as u64);
    let scope = match party {
        _ if use_open => Scope::OPEN,
        Some(number) => Scope::of_agent(number),
        None => Scope::ROWS,
    };
    Ok(Some(Search { scope, party }))
}

/// The least and the greatest key that may match; `None` if there is none.
fn bounds(filter: &TransactionFilter, after: Option<&Position>) -> Option<(TxKey, TxKey)> {
    let mut first = TxKey::first_at(filter.since.unwrap_or(Timestamp::from_micros(i64::MIN)));
    let newest = match filter.until {
        Some(until) => Timestamp::from_micros(until.as_micros().checked_sub(1)?),
        None => Timestamp::from_micros(i64::MAX),
    };
    let mut last = TxKey::last_at(newest);
    if let Some(after) = after {
        if filter.descending {
            last = last.min(TxKey::last_at(after.created_at));
        } else {
            first = first.max(TxKey::first_at(after.created_at));
        }
    }
    (first <= last).then_some((first, last))
}

struct Walk<'a> {
    filter: &'a TransactionFilter,
    search: Search,
    after: Option<&'a Position>,
    limit: usize,
    ledger: &'a LedgerTables<'a>,
    acknowledged: Acknowledged,
    read: usize,
    bytes: usize,
    page: TransactionPage,
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.page.items.len() >= self.limit || self.read >= MAX_READ || self.bytes >= MAX_PAGE_BYTES
    }

    /// Takes the entries of one microsecond; whether the page ends within them.
    fn take_group(&mut self, group: Vec<(TxKey, u8)>) -> Result<bool, StoreError> {
        // Alone in its microsecond, an entry needs no id to be put in order, and is often sorted out without one.
        let needs_order = group.len() > 1 || group.first().is_some_and(|(key, _)| self.starts_at(*key));
        if !needs_order {
            for (key, value) in group {
                self.read += 1;
                let Some(row) = self.candidate(key, value)? else {
                    self.page.next = None;
                    self.skip(key)?;
                    continue;
                };
                let transaction = self.transaction(key, row)?;
                self.take(transaction);
            }
            return Ok(false);
        }
        let mut loaded = Vec::with_capacity(group.len());
        for (key, value) in group {
            let row = self.row(key)?;
            loaded.push((self.transaction(key, row)?, key, value));
        }
        loaded.sort_by(|a, b| a.0.transaction_id.cmp(&b.0.transaction_id));
        if self.filter.descending {
            loaded.reverse();
        }
        loaded.retain(|(transaction, ..)| !self.is_past(transaction));
        let mut remaining = loaded.into_iter();
        while let Some((transaction, key, value)) = remaining.next() {
            self.read += 1;
            if self.candidate(key, value)?.is_some() {
                self.take(transaction);
            } else {
                self.page.next = Some(position(&transaction));
            }
            if self.is_full() && remaining.len() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn transaction(&self, key: TxKey, row: TransactionV1) -> Result<Transaction, StoreError> {
        transaction(self.ledger, self.acknowledged, lookup::begin(self.ledger, key, row)?)
    }

    fn row(&self, key: TxKey) -> Result<TransactionV1, StoreError> {
        self.ledger.row(key)?.ok_or_else(|| missing(key))
    }

    /// Whether the page begins within this microsecond.
    fn starts_at(&self, key: TxKey) -> bool {
        self.after.is_some_and(|after| after.created_at == key.created_at)
    }

    /// Whether an entry lies at or before the place where the page begins.
    fn is_past(&self, transaction: &Transaction) -> bool {
        self.after.is_some_and(|after| {
            let here = (transaction.created_at, &transaction.transaction_id);
            let start = (after.created_at, &after.transaction_id);
            if self.filter.descending { here >= start } else { here <= start }
        })
    }

    /// The entry's row, if all but the capability match.
    fn candidate(&self, key: TxKey, value: u8) -> Result<Option<TransactionV1>, StoreError> {
        let (filter, Search { scope, party }) = (self.filter, self.search);
        let passes = match scope {
            Scope::ROWS => true,
            Scope::OPEN => filter.status == Some(status_of(value)?),
            _ => filter.role.is_none_or(|role| Roles(value).include(role)),
        };
        if !passes {
            return Ok(None);
        }
        let row = self.row(key)?;
        let party_matches = match party {
            Some(party) if scope == Scope::OPEN => {
                let pays = row.payer == party && filter.role != Some(Role::Provider);
                let earns = row.provider == party && filter.role != Some(Role::Payer);
                pays || earns
            }
            _ => true,
        };
        let status = row.status()?;
        Ok((party_matches && filter.status.is_none_or(|wanted| status == wanted)).then_some(row))
    }

    fn take(&mut self, transaction: Transaction) {
        self.page.next = Some(position(&transaction));
        if self.filter.capability.as_ref().is_none_or(|wanted| transaction.facts.capability == *wanted) {
            let evidence: usize = transaction.evidence.iter().map(String::len).sum();
            self.bytes += transaction.facts.context.as_str().len() + evidence;
            self.page.items.push(transaction);
        }
    }

    /// Passes over an entry; its id is looked up only if the page ends here.
    fn skip(&mut self, key: TxKey) -> Result<(), StoreError> {
        if self.is_full() {
            let row = self.row(key)?;
            self.page.next = Some(position(&self.transaction(key, row)?));
        }
        Ok(())
    }
}

fn position(transaction: &Transaction) -> Position {
    Position { created_at: transaction.created_at, transaction_id: transaction.transaction_id.clone() }
}
