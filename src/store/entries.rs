//! Ledger events on their way out: own ones from the log, copies of others', each with what PostgreSQL keeps beside it.

use redb::{ReadOnlyTable, ReadableTable};

use super::codec;
use super::error::StoreError;
use super::events::{self, EntryV1};
use super::log::{self, LogRow};
use super::query;
use super::records::EventV1;
use super::snapshot::Snapshot;
use super::tables::{self, TxKey, id_key};
use crate::domain::{AgentId, CopyNumber, Event, EventBody, LedgerEntry};

type Rows = ReadOnlyTable<u64, &'static [u8]>;

/// How much is read at a time.
#[derive(Debug, Clone, Copy)]
pub struct Portion {
    /// At most so many events.
    pub max_events: usize,
    /// It ends with the event that brings it to so many bytes.
    pub max_bytes: usize,
}

impl Snapshot {
    /// Own events after `seq`, in order.
    pub fn log_after(&self, seq: u64, portion: Portion) -> Result<Vec<LedgerEntry>, StoreError> {
        let log = self.table(tables::LEDGER_LOG)?;
        let parties = Parties {
            copies: self.table(tables::COPIES)?,
            ids: self.table(tables::TRANSACTION_IDS)?,
            transactions: self.table(tables::TRANSACTIONS)?,
            log: self.table(tables::LEDGER_LOG)?,
        };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in log.range(seq.saturating_add(1)..)? {
            if entries.len() >= portion.max_events || bytes >= portion.max_bytes {
                break;
            }
            let (seq, row) = row?;
            let row = LogRow::parse(row.value())?;
            bytes += row.event.len();
            let event = codec::decode::<EventV1>(row.event)?.into_domain();
            entries.push(parties.complete(event, seq.value(), row.hash)?);
        }
        Ok(entries)
    }

    /// Copies of other nodes' events after `number`, in the order in which they came.
    pub fn copies_after(
        &self,
        CopyNumber(number): CopyNumber,
        portion: Portion,
    ) -> Result<Vec<(CopyNumber, LedgerEntry)>, StoreError> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in self.table(tables::COPIES)?.range(number.saturating_add(1)..)? {
            if entries.len() >= portion.max_events || bytes >= portion.max_bytes {
                break;
            }
            let (number, row) = row?;
            bytes += row.value().len();
            entries.push((CopyNumber(number.value()), codec::decode::<EntryV1>(row.value())?.into_domain()));
        }
        Ok(entries)
    }

    /// The hash of the ledger log's chain up to a row; all zeros for 0, `None` beyond the end.
    pub fn log_hash(&self, seq: u64) -> Result<Option<[u8; 32]>, StoreError> {
        log::hash(&self.table(tables::LEDGER_LOG)?, seq)
    }

    /// The agents whose transactions are followed, and whether their history has been read.
    pub fn ledger_agents(&self) -> Result<Vec<(AgentId, bool)>, StoreError> {
        let table = self.table(tables::LEDGER_AGENTS)?;
        let agents = table
            .iter()?
            .map(|entry| entry.map(|(id, covered)| (AgentId::from_stored(id.value()), covered.value() != 0)));
        Ok(agents.collect::<Result<_, _>>()?)
    }
}

/// Where the facts that an event belongs to are found.
struct Parties {
    log: Rows,
    copies: Rows,
    ids: ReadOnlyTable<&'static [u8], &'static [u8; 12]>,
    transactions: ReadOnlyTable<&'static [u8; 12], &'static [u8]>,
}

impl Parties {
    /// An own event with its transaction's parties, and the node that recorded it: the first of them, if several did.
    fn complete(&self, event: Event, node_seq: u64, hash: [u8; 32]) -> Result<LedgerEntry, StoreError> {
        let recorded = match &event.body {
            EventBody::Recorded(_) => event.clone(),
            _ => self.recorded(&event)?,
        };
        let EventBody::Recorded(facts) = &recorded.body else {
            unreachable!("only recorded events are looked for");
        };
        let (payer_agent, provider_agent) = (facts.payer_agent.clone(), facts.provider_agent.clone());
        let hash = Some(hash);
        Ok(LedgerEntry { event, payer_agent, provider_agent, recorded_by: recorded.node_id, node_seq, hash })
    }

    fn recorded(&self, event: &Event) -> Result<Event, StoreError> {
        let id = &event.transaction_id;
        let missing =
            || StoreError::Damaged(format!("transaction {id} was never recorded with the facts of its events"));
        let key = self.ids.get(id_key(id).as_slice())?.ok_or_else(missing)?;
        let row = query::row(&self.transactions, TxKey::from_bytes(key.value()))?;
        let recorded = events::read_all(&self.log, &self.copies, &row.events)?.into_iter();
        recorded
            .filter(|found| matches!(found.body, EventBody::Recorded(_)) && found.facts == event.facts)
            .min_by_key(|found| (found.at, found.event_id))
            .ok_or_else(missing)
    }
}
