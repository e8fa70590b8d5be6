//! Pages of transactions: which index to walk, and how far.
//!
//! A page reads at most [`MAX_READ`] entries, whatever matches, and holds a bounded number of bytes.
//!
//! Entries of one microsecond are put into the order of their ids before they are filtered, so that a page may begin after
//! any entry. For that the ids of all of them are read, those before the place where the page begins as well, which are no
//! part of its [`MAX_READ`].
//!
//! A microsecond with more than [`MAX_READ`] transactions, as a program makes that gives thousands of rows one time, stays
//! in the order of its keys instead, which is that in which they came here; there the place of an id is looked up. Whether
//! there are so many is told by counting keys, and does not depend on the filter.

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
/// A page ends when so many keys were counted to tell how many transactions share a microsecond.
const MAX_COUNTED: usize = 10 * MAX_READ;
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
    Ok(read_page(snapshot, filter, limit, after, acknowledged)?.0)
}

/// A page, and how many entries were read for it.
fn read_page(
    snapshot: &Snapshot,
    filter: &TransactionFilter,
    limit: usize,
    after: Option<&Position>,
    acknowledged: Acknowledged,
) -> Result<(TransactionPage, usize), StoreError> {
    let nothing = (TransactionPage { items: Vec::new(), next: None }, 0);
    let Some(search) = search(snapshot, filter)? else { return Ok(nothing) };
    let ledger = snapshot.ledger()?;
    let mut counted = 0;
    let (mut after_key, mut starts_within, mut in_key_order) = (None, None, None);
    if let Some(after) = after {
        let count = count_at(&ledger, after.created_at)?;
        counted += count;
        if count > MAX_READ {
            // One that is older by now leads nowhere: rather than lose any, its microsecond is begun anew.
            let found = lookup::find(&ledger, &after.transaction_id)?.map(|found| found.key);
            after_key = found.filter(|key| key.created_at == after.created_at);
            in_key_order = Some(after.created_at);
        } else {
            starts_within = Some(after);
        }
    }
    let Some((first, last)) = bounds(filter, after, after_key) else { return Ok(nothing) };
    let direction = if filter.descending { Direction::Descending } else { Direction::Ascending };
    let entries = ledger.list(search.scope, first..=last, direction)?;
    let mut walk = Walk {
        filter,
        search,
        starts_within,
        in_key_order,
        limit,
        ledger: &ledger,
        acknowledged,
        read: 0,
        passed: 0,
        counted,
        bytes: 0,
        last: None,
        items: Vec::new(),
    };
    let mut group: Vec<(TxKey, u8)> = Vec::new();
    for entry in entries {
        let entry = entry?;
        if group.first().is_some_and(|(key, _)| key.created_at != entry.0.created_at)
            && walk.take_group(std::mem::take(&mut group))?
        {
            return walk.ends_at(after);
        }
        if walk.is_full() {
            return walk.ends_at(after);
        }
        group.push(entry);
        // What is too much to be put in order is too much for one page as well.
        if group.len() > MAX_READ {
            walk.take_group(group)?;
            return walk.ends_at(after);
        }
    }
    if walk.take_group(group)? {
        return walk.ends_at(after);
    }
    Ok((TransactionPage { items: walk.items, next: None }, walk.read + walk.passed))
}

/// How many transactions share a microsecond; no more than one more than can be put in order are counted.
fn count_at(ledger: &LedgerTables<'_>, at: Timestamp) -> Result<usize, StoreError> {
    let within = TxKey::first_at(at)..=TxKey::last_at(at);
    let keys = blocks::walk(&ledger.transactions, Scope::ROWS, within, Direction::Ascending, |_| Ok(()))?;
    let mut count = 0;
    for key in keys.take(MAX_READ + 1) {
        key?;
        count += 1;
    }
    Ok(count)
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

/// The least and the greatest key that may match; `None` if there is none. `after_key` is the place of `after`, where its
/// microsecond is in the order of keys.
fn bounds(filter: &TransactionFilter, after: Option<&Position>, after_key: Option<TxKey>) -> Option<(TxKey, TxKey)> {
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
    if let Some(key) = after_key {
        if filter.descending {
            last = last.min(key.previous()?);
        } else {
            first = first.max(key.next()?);
        }
    }
    (first <= last).then_some((first, last))
}

struct Walk<'a> {
    filter: &'a TransactionFilter,
    search: Search,
    /// Where the page begins, if that is within a microsecond that is put in the order of ids.
    starts_within: Option<&'a Position>,
    /// The microsecond that the page begins in, if it stays in the order of keys.
    in_key_order: Option<Timestamp>,
    limit: usize,
    ledger: &'a LedgerTables<'a>,
    acknowledged: Acknowledged,
    read: usize,
    /// Entries before the place where the page begins, whose ids were read to find it.
    passed: usize,
    counted: usize,
    bytes: usize,
    /// The last entry that was looked at.
    last: Option<TxKey>,
    items: Vec<Transaction>,
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.holds_enough() || self.read >= MAX_READ || self.counted >= MAX_COUNTED
    }

    fn holds_enough(&self) -> bool {
        self.items.len() >= self.limit || self.bytes >= MAX_PAGE_BYTES
    }

    /// The page, with the place where the next one begins: behind the last entry that was looked at.
    fn ends_at(self, after: Option<&Position>) -> Result<(TransactionPage, usize), StoreError> {
        let next = match self.last {
            None => after.cloned(),
            Some(key) => Some(Position { created_at: key.created_at, transaction_id: self.id(key)? }),
        };
        Ok((TransactionPage { items: self.items, next }, self.read + self.passed))
    }

    /// Takes the entries of one microsecond, as many of them as the page has room for; whether it ends before the last.
    fn take_group(&mut self, group: Vec<(TxKey, u8)>) -> Result<bool, StoreError> {
        let Some((TxKey { created_at, .. }, _)) = group.first().copied() else { return Ok(false) };
        // Alone in its microsecond, an entry needs no id to be put in order, and is often sorted out without one.
        let starts_here = self.starts_within.is_some_and(|start| start.created_at == created_at);
        let is_in_order = !starts_here && (group.len() == 1 || self.is_too_large(created_at, group.len())?);
        if is_in_order {
            let mut remaining = group.into_iter();
            while let Some((key, value)) = remaining.next() {
                self.read += 1;
                self.look_at(key, value)?;
                if self.is_full() && remaining.len() > 0 {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        if self.read > 0 && self.read + group.len() > MAX_READ {
            // All of it is to be read, which is for the next page to do.
            return Ok(true);
        }
        let all = group.len();
        let mut ordered = Vec::with_capacity(all);
        for (key, value) in group {
            ordered.push((self.id(key)?, key, value));
        }
        ordered.sort_unstable();
        if self.filter.descending {
            ordered.reverse();
        }
        ordered.retain(|(id, key, _)| !self.is_past(key.created_at, id));
        self.read += ordered.len();
        self.passed += all - ordered.len();
        let mut remaining = ordered.into_iter();
        while let Some((_, key, value)) = remaining.next() {
            self.look_at(key, value)?;
            if self.holds_enough() && remaining.len() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether so many transactions share a microsecond, of which `here` were found, that they stay in the order of their
    /// keys.
    fn is_too_large(&mut self, created_at: Timestamp, here: usize) -> Result<bool, StoreError> {
        if here > MAX_READ || self.in_key_order == Some(created_at) {
            return Ok(true);
        }
        if self.search.scope == Scope::ROWS {
            return Ok(false);
        }
        let count = count_at(self.ledger, created_at)?;
        self.counted += count;
        Ok(count > MAX_READ)
    }

    /// Takes an entry if it matches.
    fn look_at(&mut self, key: TxKey, value: u8) -> Result<(), StoreError> {
        self.last = Some(key);
        if let Some(row) = self.candidate(key, value)? {
            let transaction = self.transaction(key, row)?;
            self.take(transaction);
        }
        Ok(())
    }

    fn id(&self, key: TxKey) -> Result<TransactionId, StoreError> {
        Ok(lookup::begin(self.ledger, key, self.row(key)?)?.recorded.transaction_id)
    }

    fn transaction(&self, key: TxKey, row: TransactionV1) -> Result<Transaction, StoreError> {
        transaction(self.ledger, self.acknowledged, lookup::begin(self.ledger, key, row)?)
    }

    fn row(&self, key: TxKey) -> Result<TransactionV1, StoreError> {
        self.ledger.row(key)?.ok_or_else(|| missing(key))
    }

    /// Whether an entry lies at or before the place where the page begins.
    fn is_past(&self, created_at: Timestamp, id: &TransactionId) -> bool {
        self.starts_within.is_some_and(|after| {
            let (here, start) = ((created_at, id), (after.created_at, &after.transaction_id));
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
        if self.filter.capability.as_ref().is_none_or(|wanted| transaction.facts.capability == *wanted) {
            let evidence: usize = transaction.evidence.iter().map(String::len).sum();
            self.bytes += transaction.facts.context.as_str().len() + evidence;
            self.items.push(transaction);
        }
    }
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
