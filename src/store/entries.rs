//! Ledger events on their way out: own ones from the log, copies of others', each with what PostgreSQL keeps beside it.

use std::ops::ControlFlow;

use redb::ReadableTable;

use super::error::StoreError;
use super::event_record::EventV1;
use super::events::EntryV1;
use super::log::{self, ChainHash, LogEntry};
use super::snapshot::{LedgerTables, Snapshot};
use super::{codec, lookup, tables};
use crate::domain::{AgentId, CopyNumber, Event, EventBody, LedgerEntry};

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
        let ledger = self.ledger()?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        log::visit_after(&ledger.log, seq, |LogEntry { seq, hash, event }| {
            if entries.len() >= portion.max_events || bytes >= portion.max_bytes {
                return Ok(ControlFlow::Break(()));
            }
            bytes += event.len();
            let event = codec::decode::<EventV1>(event)?.into_domain();
            entries.push(complete(&ledger, event, seq, hash)?);
            Ok(ControlFlow::Continue(()))
        })?;
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

/// An own event with its transaction's parties, and the node that recorded it: the first of them, if several did.
fn complete(
    ledger: &LedgerTables<'_>,
    event: Event,
    node_seq: u64,
    hash: ChainHash,
) -> Result<LedgerEntry, StoreError> {
    let of_another;
    let recorded = match &event.body {
        EventBody::Recorded(_) => &event,
        _ => {
            of_another = recorded(ledger, &event)?;
            &of_another
        }
    };
    let EventBody::Recorded(facts) = &recorded.body else {
        unreachable!("only recorded events are looked for");
    };
    let (payer_agent, provider_agent) = (facts.payer_agent.clone(), facts.provider_agent.clone());
    let (recorded_by, hash) = (recorded.node_id, Some(hash));
    Ok(LedgerEntry { event, payer_agent, provider_agent, recorded_by, node_seq, hash })
}

/// The earliest `recorded` event with the facts of `event`.
fn recorded(ledger: &LedgerTables<'_>, event: &Event) -> Result<Event, StoreError> {
    let id = &event.transaction_id;
    let missing = || StoreError::Damaged(format!("transaction {id} was never recorded with the facts of its events"));
    let found = lookup::find(ledger, id)?.ok_or_else(missing)?;
    if found.recorded.facts == event.facts && matches!(found.recorded.body, EventBody::Recorded(_)) {
        // The first in the record is the earliest with its facts.
        return Ok(found.recorded);
    }
    let others = found.events(ledger)?.into_iter();
    others
        .filter(|found| matches!(found.body, EventBody::Recorded(_)) && found.facts == event.facts)
        .min_by_key(|found| (found.at, found.event_id))
        .ok_or_else(missing)
}
