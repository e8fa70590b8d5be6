//! Reading one state of the store.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, TableHandle};

use super::blocks::Direction;
use super::error::StoreError;
use super::events::{self, Place};
use super::log::{self, LogHead};
use super::lookup::{self, LedgerReader};
use super::query::{self, Position, TransactionFilter, TransactionPage};
use super::records::{AgentV2, BalanceV1, ObservationV2, StoreAge, TombstoneV2, TotalsV2, TransactionV1};
use super::run::overlaid;
use super::runs::{self, StoredRuns, Target, Waiting};
use super::sinks::{Acknowledged, parked_key};
use super::tables::{self, BLOCK_KEY_BYTES, ParsedTally, Scope, Tally, TxKey, id_key, meta};
use super::{blocks, codec};
use crate::domain::{
    Agent, AgentId, AgentVersion, Capability, Currency, Event, Observation, ParkedKey, Sink, Transaction, TransactionId,
};

/// The key and the value of a counter.
pub(super) type TallyRow = (Vec<u8>, Vec<u8>);

/// One state of the store. It stays readable, and pins its pages, for as long as it is held.
pub struct Snapshot {
    transaction: ReadTransaction,
    /// Open once somebody has looked an agent up, for all who do so after that.
    agents: OnceLock<ReadOnlyTable<&'static str, &'static [u8]>>,
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

/// A local agent that is claimed and has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangedAgent {
    /// The number of its change.
    pub change_seq: u64,
    /// Which agent.
    pub agent_id: AgentId,
    /// What became of it.
    pub state: ChangedState,
}

/// What became of an agent that changed.
#[derive(Debug, Clone, PartialEq)]
pub enum ChangedState {
    /// It is registered.
    Registered(Box<Agent>),
    /// It was deleted.
    Deleted {
        /// The version of the deletion.
        version: AgentVersion,
        /// How long the deletion is remembered yet, as of the last commit.
        keep: Duration,
    },
}

impl Snapshot {
    pub(super) fn new(transaction: ReadTransaction) -> Self {
        Self { transaction, agents: OnceLock::new() }
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
        self.table(tables::COPIES)?;
        self.table(tables::HELD)?;
        self.table(tables::CENTRAL_FACTS)?;
        self.table(tables::LEDGER_AGENTS)?;
        self.table(tables::TRANSACTION_IDS)?;
        self.table(tables::RUNS)?;
        self.table(tables::TALLIES)?;
        self.table(tables::AGENT_NUMBERS)?;
        self.table(tables::AGENTS)?;
        self.table(tables::AGENT_CHANGES)?;
        self.table(tables::TOMBSTONES)?;
        self.table(tables::OBSERVATIONS)?;
        self.table(tables::SINKS)?;
        self.table(tables::PARKED)?;
        self.table(tables::RECEIPTS)?;
        self.table(tables::RECEIPT_AGES)?;
        Ok(())
    }

    /// The counters of the whole store.
    pub fn totals(&self) -> Result<TotalsV2, StoreError> {
        let row = self.table(tables::META)?.get(meta::TOTALS)?;
        row.map_or_else(|| Ok(TotalsV2::default()), |row| codec::decode(row.value()))
    }

    pub(super) fn log_head(&self) -> Result<LogHead, StoreError> {
        log::head(&self.table(tables::LEDGER_LOG)?)
    }

    pub(super) fn newest_transaction(&self) -> Result<Option<TxKey>, StoreError> {
        blocks::newest(&self.table(tables::TRANSACTIONS)?, Scope::ROWS)
    }

    /// One agent.
    pub fn agent(&self, id: &AgentId) -> Result<Option<Agent>, StoreError> {
        let row = self.agents()?.get(id.as_str())?;
        row.map(|row| codec::decode::<AgentV2>(row.value())?.into_domain()).transpose()
    }

    fn agents(&self) -> Result<&ReadOnlyTable<&'static str, &'static [u8]>, StoreError> {
        if let Some(table) = self.agents.get() {
            return Ok(table);
        }
        let table = self.table(tables::AGENTS)?;
        Ok(self.agents.get_or_init(|| table))
    }

    /// Visits every agent, by id. For starting up, not for requests.
    pub fn for_each_agent(&self, mut visit: impl FnMut(Agent)) -> Result<(), StoreError> {
        for entry in self.agents()?.iter()? {
            visit(codec::decode::<AgentV2>(entry?.1.value())?.into_domain()?);
        }
        Ok(())
    }

    /// At most `max` agents of the agent changes after `change_seq`, oldest change first.
    pub fn changes_after(&self, change_seq: u64, max: usize) -> Result<Vec<ChangedAgent>, StoreError> {
        let tombstones = self.table(tables::TOMBSTONES)?;
        let age = StoreAge(self.totals()?.age_micros);
        let mut changes = Vec::new();
        for entry in self.table(tables::AGENT_CHANGES)?.range(change_seq.saturating_add(1)..)?.take(max) {
            let (seq, id) = entry?;
            let agent_id = AgentId::from_stored(id.value());
            let state = match (self.agent(&agent_id)?, tombstones.get(id.value())?) {
                (Some(agent), _) => ChangedState::Registered(Box::new(agent)),
                (None, Some(row)) => {
                    let tombstone: TombstoneV2 = codec::decode(row.value())?;
                    let keep = Duration::from_micros(tombstone.keep_until.0.saturating_sub(age.0));
                    ChangedState::Deleted { version: tombstone.version, keep }
                }
                (None, None) => return Err(StoreError::Damaged(format!("agent {agent_id} changed but is not there"))),
            };
            changes.push(ChangedAgent { change_seq: seq.value(), agent_id, state });
        }
        Ok(changes)
    }

    /// How many agents changed after `change_seq`.
    pub fn changes_len(&self, change_seq: u64) -> Result<u64, StoreError> {
        Ok(self.table(tables::AGENT_CHANGES)?.range(change_seq.saturating_add(1)..)?.count() as u64)
    }

    /// What this node has observed of agents' work and has not been told to be held centrally.
    pub fn unacked_observations(&self) -> Result<Vec<Observation>, StoreError> {
        self.observations_where(|observation| observation.total != observation.acked)
    }

    /// All that this node has observed of agents' work.
    pub fn all_observations(&self) -> Result<Vec<Observation>, StoreError> {
        self.observations_where(|_| true)
    }

    fn observations_where(&self, wanted: impl Fn(&Observation) -> bool) -> Result<Vec<Observation>, StoreError> {
        let mut observations = Vec::new();
        for entry in self.table(tables::OBSERVATIONS)?.iter()? {
            let (id, row) = entry?;
            let observation = codec::decode::<ObservationV2>(row.value())?.into_domain(id.value());
            if wanted(&observation) {
                observations.push(observation);
            }
        }
        Ok(observations)
    }

    /// Visits the loads of `minute` and later. For starting up, not for requests.
    pub fn for_each_load(&self, minute: u32, mut visit: impl FnMut(Load)) -> Result<(), StoreError> {
        let names: BTreeMap<u32, AgentId> = self
            .table(tables::AGENT_NUMBERS)?
            .iter()?
            .map(|entry| entry.map(|(id, number)| (number.value(), AgentId::from_stored(id.value()))))
            .collect::<Result<_, _>>()?;
        let malformed = || StoreError::Damaged("a load count is malformed".to_owned());
        for entry in self.tallies(&self.runs()?, &Tally::loads_from(minute))? {
            let (key, row) = entry?;
            let Some(ParsedTally::Load(load)) = Tally::parse(&key) else { return Err(malformed()) };
            visit(Load {
                minute: load.minute,
                provider: names.get(&load.provider).cloned().ok_or_else(malformed)?,
                capability: Capability::from_stored(load.capability),
                count: query::load_count(&row)?,
            });
        }
        Ok(())
    }

    /// What an agent paid and earned, by currency; empty for one that no transaction names.
    pub fn balances(&self, id: &AgentId) -> Result<BTreeMap<Currency, BalanceV1>, StoreError> {
        let Some(number) = self.agent_number(id)? else { return Ok(BTreeMap::new()) };
        let mut balances = BTreeMap::new();
        for entry in self.tallies(&self.runs()?, &Tally::balances_of(number))? {
            let (key, row) = entry?;
            match Tally::parse(&key) {
                Some(ParsedTally::Balance { agent, currency }) if agent == number => {
                    balances.insert(Currency::from_stored(currency), codec::decode(&row)?);
                }
                _ => break,
            }
        }
        Ok(balances)
    }

    /// The changes that wait.
    pub(super) fn runs(&self) -> Result<StoredRuns, StoreError> {
        StoredRuns::of(&self.table(tables::RUNS)?)
    }

    pub(super) fn waiting(&self) -> Result<Waiting, StoreError> {
        StoredRuns::waiting(&self.table(tables::RUNS)?)
    }

    /// Counters by their keys from `first` on, as they are with what waits.
    pub(super) fn tallies<'a>(
        &self,
        runs: &'a StoredRuns,
        first: &[u8],
    ) -> Result<impl Iterator<Item = Result<TallyRow, StoreError>> + use<'a>, StoreError> {
        let stored = self.table(tables::TALLIES)?.range(first..)?;
        let stored = stored.map(|row| {
            let (key, value) = row?;
            Ok((key.value().to_vec(), value.value().to_vec()))
        });
        let changes = runs.within(Target::Tally(first), None, Direction::Ascending)?.map(|entry| {
            let (target, change) = entry?;
            let Target::Tally(key) = target else { return Err(runs::strange()) };
            Ok((key.to_vec(), change.map(<[u8]>::to_vec)))
        });
        Ok(overlaid(stored, changes, Direction::Ascending))
    }

    pub(super) fn agent_number(&self, id: &AgentId) -> Result<Option<u32>, StoreError> {
        Ok(self.table(tables::AGENT_NUMBERS)?.get(id.as_str())?.map(|number| number.value()))
    }

    /// One transaction. `acknowledged` is that of this state of the store, or of an earlier one.
    pub fn transaction(
        &self,
        id: &TransactionId,
        acknowledged: Acknowledged,
    ) -> Result<Option<Transaction>, StoreError> {
        let ledger = self.ledger()?;
        lookup::find(&ledger, id)?.map(|found| query::transaction(&ledger, acknowledged, found)).transpose()
    }

    /// A transaction's events, oldest first; those with other facts than its own are left out.
    pub fn events(&self, id: &TransactionId) -> Result<Option<Vec<Event>>, StoreError> {
        let reader = self.ledger()?;
        let Some(found) = lookup::find(&reader, id)? else { return Ok(None) };
        let mut events = found.events(&reader)?;
        events.retain(|event| event.facts == found.recorded.facts);
        events.sort_by_key(|event| (event.at, event.event_id));
        Ok(Some(events))
    }

    /// A page of the transactions that match, in order of creation and id. See [`TransactionPage`]. `acknowledged` is as
    /// for [`transaction`](Self::transaction).
    pub fn transactions(
        &self,
        filter: &TransactionFilter,
        limit: usize,
        after: Option<&Position>,
        acknowledged: Acknowledged,
    ) -> Result<TransactionPage, StoreError> {
        query::page(self, filter, limit, after, acknowledged)
    }

    /// The ledger's tables, for reading several things in them.
    pub(super) fn ledger(&self) -> Result<LedgerTables<'_>, StoreError> {
        Ok(LedgerTables {
            snapshot: self,
            copies: OnceCell::new(),
            runs: OnceCell::new(),
            parked: OnceCell::new(),
            log: self.table(tables::LEDGER_LOG)?,
            transactions: self.table(tables::TRANSACTIONS)?,
            ids: self.table(tables::TRANSACTION_IDS)?,
        })
    }
}

/// The ledger's tables in one snapshot; those of replication are opened when one is needed.
pub(super) struct LedgerTables<'a> {
    snapshot: &'a Snapshot,
    copies: OnceCell<ReadOnlyTable<u64, &'static [u8]>>,
    runs: OnceCell<StoredRuns>,
    parked: OnceCell<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    pub log: ReadOnlyTable<u64, &'static [u8]>,
    pub transactions: ReadOnlyTable<&'static [u8; BLOCK_KEY_BYTES], &'static [u8]>,
    pub ids: ReadOnlyTable<&'static [u8], &'static [u8; 12]>,
}

impl LedgerTables<'_> {
    /// The copies of other nodes' events.
    pub fn copies(&self) -> Result<&ReadOnlyTable<u64, &'static [u8]>, StoreError> {
        opened(&self.copies, || self.snapshot.table(tables::COPIES))
    }

    /// The changes that wait.
    pub fn runs(&self) -> Result<&StoredRuns, StoreError> {
        opened(&self.runs, || self.snapshot.runs())
    }

    /// The entries of a list, each of which is one byte.
    pub fn list(
        &self,
        scope: Scope,
        range: RangeInclusive<TxKey>,
        direction: Direction,
    ) -> Result<impl Iterator<Item = Result<(TxKey, u8), StoreError>>, StoreError> {
        let byte = |value: &[u8]| value.first().copied().unwrap_or_default();
        let changes = match scope.is_of_agent() {
            false => None,
            true => {
                let (first, last) = (Target::Listed(scope, *range.start()), Target::Listed(scope, *range.end()));
                Some(self.runs()?.within(first, Some(last), direction)?.map(move |entry| {
                    let (target, change) = entry?;
                    let Target::Listed(_, key) = target else { return Err(runs::strange()) };
                    Ok((key, change.map(byte)))
                }))
            }
        };
        let stored = blocks::walk(&self.transactions, scope, range, direction, move |value| Ok(byte(value)))?;
        Ok(overlaid(stored, changes.into_iter().flatten(), direction))
    }

    /// Whether an entry of a list is there, with this value.
    pub fn lists(&self, scope: Scope, key: TxKey, value: u8) -> Result<bool, StoreError> {
        if scope.is_of_agent()
            && let Some(change) = self.runs()?.get(Target::Listed(scope, key))?
        {
            return Ok(change == Some(&[value]));
        }
        Ok(blocks::get(&self.transactions, scope, key, |found| found == [value])? == Some(true))
    }

    /// Whether PostgreSQL refuses an entry.
    pub fn is_parked(&self, key: &ParkedKey) -> Result<bool, StoreError> {
        let parked = opened(&self.parked, || self.snapshot.table(tables::PARKED))?;
        Ok(parked.get(parked_key(Sink::Postgres, key).as_slice())?.is_some())
    }
}

fn opened<T>(cell: &OnceCell<T>, open: impl FnOnce() -> Result<T, StoreError>) -> Result<&T, StoreError> {
    if let Some(table) = cell.get() {
        return Ok(table);
    }
    let table = open()?;
    Ok(cell.get_or_init(|| table))
}

impl LedgerReader for LedgerTables<'_> {
    fn row(&self, key: TxKey) -> Result<Option<TransactionV1>, StoreError> {
        blocks::get(&self.transactions, Scope::ROWS, key, codec::decode)?.transpose()
    }

    fn event(&self, place: Place) -> Result<Event, StoreError> {
        match place {
            Place::Log(seq) => log::read(&self.log, seq),
            Place::Copy(number) => Ok(events::read_copy(self.copies()?, number)?.event),
        }
    }

    fn listed(&self, id: &TransactionId) -> Result<Option<TxKey>, StoreError> {
        Ok(self.ids.get(id_key(id).as_slice())?.map(|key| TxKey::from_bytes(key.value())))
    }
}
