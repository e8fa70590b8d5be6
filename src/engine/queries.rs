//! What can be asked of the engine: each query reads one view, which is one state of the store and the directory of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::Engine;
use super::agents::{Glimpse, Profile};
use super::core::View;
use super::cursor;
use super::directory::{Entry, merged};
use super::error::Error;
use crate::domain::ranking::RankBy;
use crate::domain::{
    Agent, AgentId, AvailabilityStatus, Capability, Currency, Event, NodeId, Refusal, Transaction, TransactionId,
};
use crate::store::{Balance, TransactionFilter};

/// The most entries that are looked at for one page.
const MAX_READ: usize = 10_000;
/// A page ends with the agent that brings it to so many bytes of metadata and notes.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Which agents, and in what order.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentFilter {
    /// With this capability.
    pub capability: Option<Capability>,
    /// With this availability.
    pub availability: Option<AvailabilityStatus>,
    /// The order.
    pub sort_by: RankBy,
    /// Whether expired agents are shown too.
    pub include_expired: bool,
}

/// Which page of a list.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest<'a> {
    /// At most so many entries.
    pub limit: usize,
    /// The `next_cursor` of the page before, unless it is the first. A stranger is refused as invalid `cursor`.
    pub cursor: Option<&'a str>,
}

/// A page of a list. It may be short although there is more: look at the cursor.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// In order.
    pub items: Vec<T>,
    /// Where the next page begins; `None` at the end.
    pub next_cursor: Option<String>,
}

/// The store in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// This node.
    pub node_id: NodeId,
    /// Where the file is; `None` in memory.
    pub path: Option<PathBuf>,
    /// Its length.
    pub bytes: u64,
    /// Agents stored, live or expired.
    pub agents: u64,
    /// Transactions stored.
    pub transactions: u64,
    /// Ledger events stored, own ones and copies.
    pub events: u64,
    /// Why writes are refused at present, if they are.
    pub failure: Option<String>,
}

impl Engine {
    /// One agent, live or expired.
    pub fn agent(&self, id: &AgentId) -> Result<Profile, Error> {
        let view = self.core().readable()?;
        let entry = view.directory.get(id).ok_or_else(|| Refusal::AgentNotFound(id.clone()))?;
        Ok(self.profile(view.agent(entry)?, entry))
    }

    /// What the directory shows of an agent, without looking into the store; `None` also while the store is not sound, when
    /// only the store can tell what can be read.
    pub fn glimpse(&self, id: &AgentId) -> Option<Glimpse> {
        let core = self.core();
        if core.failed().is_some() {
            return None;
        }
        let view = core.view();
        Some(Glimpse::new(view.directory.get(id)?, core.clock.monotonic()))
    }

    /// A page of agents.
    pub fn agents(&self, filter: &AgentFilter, page: PageRequest<'_>) -> Result<Page<Profile>, Error> {
        let after = page.cursor.map(|cursor| cursor::to_standing(filter.sort_by, cursor)).transpose()?;
        let view = self.core().readable()?;
        let monotonic = self.core().clock.monotonic();
        let live = view.directory.live().ranks(filter.capability.as_ref());
        let expired = view.directory.expired().ranks(filter.capability.as_ref()).filter(|_| filter.include_expired);
        let mut items: Vec<Profile> = Vec::new();
        let mut bytes = 0;
        let mut last: Option<&Arc<Entry>> = None;
        let mut more = false;
        let entries = merged(live.into_iter().chain(expired), filter.sort_by, after.as_ref());
        for (read, entry) in entries.enumerate() {
            if items.len() >= page.limit || read >= MAX_READ || bytes >= MAX_PAGE_BYTES {
                more = true;
                break;
            }
            last = Some(entry);
            let shown = filter.include_expired || entry.lease.is_live(monotonic);
            if !shown || filter.availability.is_some_and(|wanted| entry.standing.availability != wanted) {
                continue;
            }
            let agent = view.agent(entry)?;
            bytes += agent.metadata.as_str().len() + agent.billing_notes.as_ref().map_or(0, String::len);
            items.push(self.profile(agent, entry));
        }
        let next_cursor = last.filter(|_| more).map(|entry| cursor::of_agent(filter.sort_by, &entry.standing));
        Ok(Page { items, next_cursor })
    }

    /// Every capability that live agents have, and how many have it.
    pub fn capabilities(&self) -> Result<BTreeMap<Capability, u64>, Error> {
        let view = self.core().readable()?;
        Ok(view.directory.live().capabilities().map(|(capability, count)| (capability.clone(), count)).collect())
    }

    /// What an agent paid and earned, by currency; empty for one that no transaction names.
    pub fn balance(&self, id: &AgentId) -> Result<BTreeMap<Currency, Balance>, Error> {
        Ok(self.core().snapshot()?.balances(id)?)
    }

    /// One transaction.
    pub fn transaction(&self, id: &TransactionId) -> Result<Transaction, Error> {
        let view = self.core().view();
        let found = view.snapshot()?.transaction(id, view.acknowledged)?;
        Ok(found.ok_or_else(|| Refusal::TransactionNotFound(id.clone()))?)
    }

    /// A page of transactions.
    pub fn transactions(&self, filter: &TransactionFilter, page: PageRequest<'_>) -> Result<Page<Transaction>, Error> {
        let after = page.cursor.map(cursor::to_position).transpose()?;
        let view = self.core().view();
        let found = view.snapshot()?.transactions(filter, page.limit, after.as_ref(), view.acknowledged)?;
        Ok(Page { items: found.items, next_cursor: found.next.as_ref().map(cursor::of_transaction) })
    }

    /// A transaction's events, oldest first.
    pub fn events(&self, id: &TransactionId) -> Result<Vec<Event>, Error> {
        let found = self.core().snapshot()?.events(id)?;
        Ok(found.ok_or_else(|| Refusal::TransactionNotFound(id.clone()))?)
    }

    /// The store in numbers.
    pub fn status(&self) -> Result<StoreStatus, Error> {
        let core = self.core();
        let view = core.view();
        let totals = view.totals;
        Ok(StoreStatus {
            node_id: view.identity.node_id,
            path: core.store.path().map(ToOwned::to_owned),
            bytes: core.store.bytes()?,
            failure: core.failed().map(|error| error.to_string()),
            agents: totals.agents,
            transactions: totals.transactions.iter().sum(),
            events: totals.events + totals.copies,
        })
    }

    /// Whether the store answers a read and takes writes.
    pub fn ready(&self) -> Result<(), Error> {
        match self.core().failed() {
            Some(error) => Err(error),
            None => Ok(self.core().snapshot()?.totals().map(drop)?),
        }
    }

    /// The full profiles of directory entries, in order.
    pub(super) fn profiles(&self, entries: &[&Arc<Entry>], view: &View) -> Result<Vec<Profile>, Error> {
        entries.iter().map(|entry| Ok(self.profile(view.agent(entry)?, entry))).collect()
    }

    fn profile(&self, agent: Agent, entry: &Entry) -> Profile {
        Profile::new(agent, &entry.lease, self.core().clock.monotonic(), entry.local)
    }
}
