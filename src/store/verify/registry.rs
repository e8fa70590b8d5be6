//! What is checked of the registry and of idempotency keys.

use std::collections::HashSet;

use redb::{ReadableTable, ReadableTableMetadata};

use super::Check;
use crate::domain::Counters;
use crate::store::codec;
use crate::store::error::StoreError;
use crate::store::records::{AgentV2, ObservationV2, ReceiptV1, TombstoneV2};
use crate::store::tables;

impl Check<'_> {
    /// The registry, its changes and the numbers of agents.
    pub(super) fn agents(&mut self) -> Result<(), StoreError> {
        let totals = self.snapshot.totals()?;
        let agents = self.snapshot.table(tables::AGENTS)?;
        let tombstones = self.snapshot.table(tables::TOMBSTONES)?;
        let changes = self.snapshot.table(tables::AGENT_CHANGES)?;
        let followed = self.snapshot.table(tables::LEDGER_AGENTS)?;
        let mut changed = Vec::new();
        for entry in agents.iter()? {
            let (id, row) = entry?;
            let record: AgentV2 = codec::decode(row.value())?;
            let change_seq = record.change_seq;
            changed.extend(change_seq.map(|seq| (id.value().to_owned(), seq)));
            let agent = record.into_domain()?;
            let is_local = agent.is_local(self.identity.node_id);
            if is_local && followed.get(id.value())?.is_none() {
                self.report.find(format!("agent {}: its transactions are not followed", agent.agent_id));
            }
            if change_seq.is_some() != (is_local && agent.claimed) {
                self.report.find(format!("agent {}: its changes are told by another than its owner", agent.agent_id));
            }
            if agent.agent_id.as_str() != id.value() {
                self.report.find(format!("agent {}: filed under {}", agent.agent_id, id.value()));
            }
            if tombstones.get(id.value())?.is_some() {
                self.report.find(format!("agent {}: both registered and deleted", agent.agent_id));
            }
            self.report.agents += 1;
            self.step("agents", self.report.agents, totals.agents);
        }
        for entry in tombstones.iter()? {
            let (id, row) = entry?;
            let tombstone: TombstoneV2 = codec::decode(row.value())?;
            if tombstone.revision > totals.revision_floor {
                self.report.find(format!("agent {}: deleted at a revision above the floor", id.value()));
            }
            changed.extend(tombstone.change_seq.map(|seq| (id.value().to_owned(), seq)));
        }
        for (id, seq) in &changed {
            let listed = changes.get(*seq)?.is_some_and(|found| found.value() == id);
            if !listed || *seq > totals.change_seq {
                self.report.find(format!("agent {id}: its change {seq} is not among the agent changes"));
            }
        }
        if changes.len()? != changed.len() as u64 {
            self.report.find(format!("agent changes: {} rows, but {} belong there", changes.len()?, changed.len()));
        }
        if totals.agents != self.report.agents {
            self.report.find(format!("totals: {} agents, but {} were found", totals.agents, self.report.agents));
        }
        for entry in self.snapshot.table(tables::OBSERVATIONS)?.iter()? {
            let (id, row) = entry?;
            let observation = codec::decode::<ObservationV2>(row.value())?.into_domain(id.value());
            let total = observation.total;
            let is_more = |told: Counters| told.successes > total.successes || told.failures > total.failures;
            if is_more(observation.acked) || is_more(observation.offered) {
                self.report.find(format!("agent {}: more was told of it than was observed", id.value()));
            }
        }
        let mut numbers = HashSet::new();
        for entry in self.snapshot.table(tables::AGENT_NUMBERS)?.iter()? {
            let (id, number) = entry?;
            let number = number.value();
            if number == 0 || number > totals.numbered_agents || !numbers.insert(number) {
                self.report.find(format!("agent {}: its number {number} is not its own", id.value()));
            }
        }
        if numbers.len() != totals.numbered_agents as usize {
            self.report.find(format!(
                "agent numbers: {} rows, but {} were given",
                numbers.len(),
                totals.numbered_agents
            ));
        }
        Ok(())
    }

    /// Idempotency keys and their ages, one to one.
    pub(super) fn receipts(&mut self) -> Result<(), StoreError> {
        let receipts = self.snapshot.table(tables::RECEIPTS)?;
        let ages = self.snapshot.table(tables::RECEIPT_AGES)?;
        for entry in receipts.iter()? {
            let (key, row) = entry?;
            let receipt: ReceiptV1 = codec::decode(row.value())?;
            if ages.get(&tables::receipt_age_key(receipt.at, key.value()))?.is_none() {
                self.report.find(format!("idempotency key for {}: it would never be forgotten", receipt.subject));
            }
        }
        if receipts.len()? != ages.len()? {
            self.report.find(format!("idempotency keys: {} rows, but {} ages", receipts.len()?, ages.len()?));
        }
        Ok(())
    }
}
