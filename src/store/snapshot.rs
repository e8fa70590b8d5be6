//! Reading one state of the store.

use std::collections::BTreeMap;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, TableHandle};

use super::error::StoreError;
use super::log::{self, LogHead};
use super::lookup::{self, LedgerReader};
use super::query::{self, Position, TransactionFilter, TransactionPage};
use super::records::{AgentV1, BalanceV1, TotalsV1, TransactionV1};
use super::tables::{self, BLOCK_KEY_BYTES, ParsedTally, Scope, Tally, TxKey, id_key};
use super::{blocks, codec};
use crate::domain::{Agent, AgentId, Capability, Currency, Event, Transaction, TransactionId};

/// One state of the store. It stays readable, and pins its pages, for as long as it is held.
pub struct Snapshot {
    transaction: ReadTransaction,
}

/// How many transactions were created for a provider and a capability in one minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Minutes since 1970.
    pub minute: u32,
    /// The provider.
    pub provider: AgentId,
    /// The capability.
    pub capability: Capability,
    /// How many.
    pub count: u32,
}

impl Snapshot {
    pub(super) fn new(transaction: ReadTransaction) -> Self {
        Self { transaction }
    }

    pub(super) fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<ReadOnlyTable<K, V>, StoreError> {
        self.transaction.open_table(definition).map_err(|error| match error {
            redb::TableError::TableDoesNotExist(_) => {
                StoreError::Damaged(format!("table `{}` is missing", definition.name()))
            }
            other => other.into(),
        })
    }

    /// Every table of this format is there; one that is not would look like an empty one to the next write.
    pub(super) fn require_tables(&self) -> Result<(), StoreError> {
        self.table(tables::LEDGER_LOG)?;
        self.table(tables::TRANSACTIONS)?;
        self.table(tables::TRANSACTION_IDS)?;
        self.table(tables::TALLIES)?;
        self.table(tables::AGENT_NUMBERS)?;
        self.table(tables::AGENTS)?;
        self.table(tables::AGENT_CHANGES)?;
        self.table(tables::TOMBSTONES)?;
        self.table(tables::RECEIPTS)?;
        self.table(tables::RECEIPT_AGES)?;
        Ok(())
    }

    /// The counters of the whole store.
    pub fn totals(&self) -> Result<TotalsV1, StoreError> {
        let row = self.table(tables::TALLIES)?.get(Tally::Totals.to_bytes().as_slice())?;
        row.map_or_else(|| Ok(TotalsV1::default()), |row| codec::decode(row.value()))
    }

    pub(super) fn log_head(&self) -> Result<LogHead, StoreError> {
        log::head(&self.table(tables::LEDGER_LOG)?)
    }

    pub(super) fn newest_transaction(&self) -> Result<Option<TxKey>, StoreError> {
        blocks::newest(&self.table(tables::TRANSACTIONS)?, Scope::ROWS)
    }

    /// One agent.
    pub fn agent(&self, id: &AgentId) -> Result<Option<Agent>, StoreError> {
        let row = self.table(tables::AGENTS)?.get(id.as_str())?;
        row.map(|row| codec::decode::<AgentV1>(row.value())?.into_domain()).transpose()
    }

    /// Those of the agents that are stored, in the order asked for.
    pub fn agents<'a>(&self, ids: impl IntoIterator<Item = &'a AgentId>) -> Result<Vec<Agent>, StoreError> {
        let table = self.table(tables::AGENTS)?;
        let mut agents = Vec::new();
        for id in ids {
            if let Some(row) = table.get(id.as_str())? {
                agents.push(codec::decode::<AgentV1>(row.value())?.into_domain()?);
            }
        }
        Ok(agents)
    }

    /// Visits every agent, by id. For starting up, not for requests.
    pub fn for_each_agent(&self, mut visit: impl FnMut(Agent)) -> Result<(), StoreError> {
        for entry in self.table(tables::AGENTS)?.iter()? {
            visit(codec::decode::<AgentV1>(entry?.1.value())?.into_domain()?);
        }
        Ok(())
    }

    /// Visits the loads of `minute` and later. For starting up, not for requests.
    pub fn for_each_load(&self, minute: u32, mut visit: impl FnMut(Load)) -> Result<(), StoreError> {
        let names: BTreeMap<u32, AgentId> = self
            .table(tables::AGENT_NUMBERS)?
            .iter()?
            .map(|entry| entry.map(|(id, number)| (number.value(), AgentId::from_stored(id.value()))))
            .collect::<Result<_, _>>()?;
        let malformed = || StoreError::Damaged("a load count is malformed".to_owned());
        for entry in self.table(tables::TALLIES)?.range(Tally::loads_from(minute).as_slice()..)? {
            let (key, row) = entry?;
            let Some(ParsedTally::Load(load)) = Tally::parse(key.value()) else { return Err(malformed()) };
            visit(Load {
                minute: load.minute,
                provider: names.get(&load.provider).cloned().ok_or_else(malformed)?,
                capability: Capability::from_stored(load.capability),
                count: query::load_count(row.value())?,
            });
        }
        Ok(())
    }

    /// What an agent paid and earned, by currency; empty for one that no transaction names.
    pub fn balances(&self, id: &AgentId) -> Result<BTreeMap<Currency, BalanceV1>, StoreError> {
        let Some(number) = self.agent_number(id)? else { return Ok(BTreeMap::new()) };
        let first = Tally::balances_of(number);
        let mut balances = BTreeMap::new();
        for entry in self.table(tables::TALLIES)?.range(first.as_slice()..)? {
            let (key, row) = entry?;
            match Tally::parse(key.value()) {
                Some(ParsedTally::Balance { agent, currency }) if agent == number => {
                    balances.insert(Currency::from_stored(currency), codec::decode(row.value())?);
                }
                _ => break,
            }
        }
        Ok(balances)
    }

    pub(super) fn agent_number(&self, id: &AgentId) -> Result<Option<u32>, StoreError> {
        Ok(self.table(tables::AGENT_NUMBERS)?.get(id.as_str())?.map(|number| number.value()))
    }

    /// One transaction.
    pub fn transaction(&self, id: &TransactionId) -> Result<Option<Transaction>, StoreError> {
        let reader = self.ledger()?;
        let Some(found) = lookup::find(&reader, id)? else { return Ok(None) };
        query::transaction(&reader, found.key, &found.row).map(Some)
    }

    /// A transaction's events, oldest first.
    pub fn events(&self, id: &TransactionId) -> Result<Option<Vec<Event>>, StoreError> {
        let reader = self.ledger()?;
        let Some(found) = lookup::find(&reader, id)? else { return Ok(None) };
        let mut events = found.events(&reader)?;
        events.sort_by_key(|event| (event.at, event.event_id));
        Ok(Some(events))
    }

    /// A page of the transactions that match, in order of creation and id. See [`TransactionPage`].
    pub fn transactions(
        &self,
        filter: &TransactionFilter,
        limit: usize,
        after: Option<&Position>,
    ) -> Result<TransactionPage, StoreError> {
        query::page(self, filter, limit, after)
    }

    /// The ledger's tables, for reading several things in them.
    pub(super) fn ledger(&self) -> Result<LedgerTables, StoreError> {
        Ok(LedgerTables {
            log: self.table(tables::LEDGER_LOG)?,
            transactions: self.table(tables::TRANSACTIONS)?,
            ids: self.table(tables::TRANSACTION_IDS)?,
        })
    }
}

/// The ledger's tables in one snapshot.
pub(super) struct LedgerTables {
    pub log: ReadOnlyTable<u64, &'static [u8]>,
    pub transactions: ReadOnlyTable<&'static [u8; BLOCK_KEY_BYTES], &'static [u8]>,
    pub ids: ReadOnlyTable<&'static [u8], &'static [u8; 12]>,
}

impl LedgerReader for LedgerTables {
    fn row(&self, key: TxKey) -> Result<Option<TransactionV1>, StoreError> {
        blocks::get(&self.transactions, Scope::ROWS, key, codec::decode)?.transpose()
    }

    fn event(&self, reference: u64) -> Result<Event, StoreError> {
        log::read(&self.log, reference)
    }

    fn listed(&self, id: &TransactionId) -> Result<Option<TxKey>, StoreError> {
        Ok(self.ids.get(id_key(id).as_slice())?.map(|key| TxKey::from_bytes(key.value())))
    }
}
