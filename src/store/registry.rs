//! The registry within a batch: agents of this node and of others, the changes to be told, tombstones, observations.
//!
//! A local agent that this file claims has one entry in the agent changes, others have none. A tombstone remembers the version of a deletion
//! for as long as its lease could run elsewhere, and beyond that while its epoch lies ahead of the clock: forgotten
//! before, a registration that a wrong clock dated would stand above every later one.

use super::batch::Batch;
use super::codec;
use super::error::StoreError;
use super::records::{AgentV2, ObservationV2, StoreAge, TombstoneV2};
use crate::domain::agent::Departed;
use crate::domain::{Agent, AgentId, AgentVersion, Observation, Timestamp};

/// Whether a change of an agent is news for the registry of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// It is: a local agent that is claimed moves to the end of the agent changes.
    Yes,
    /// It is not, such as an expiry, which every node sees for itself.
    No,
}

/// How far [`Batch::purge_expired`] looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgedAgents {
    /// The agents that were forgotten.
    pub forgotten: Vec<AgentId>,
    /// Where to go on; `None` after the last agent.
    pub next: Option<AgentId>,
}

impl Batch<'_> {
    /// A stored agent.
    pub fn agent(&self, id: &AgentId) -> Result<Option<Agent>, StoreError> {
        self.stored_agent(id)?.map(AgentV2::into_domain).transpose()
    }

    fn stored_agent(&self, id: &AgentId) -> Result<Option<AgentV2>, StoreError> {
        self.agents.get(id.as_str())?.map(|row| codec::decode(row.value())).transpose()
    }

    /// Writes an agent, new or changed.
    pub fn put_agent(&mut self, agent: &Agent, publish: Publish) -> Result<(), StoreError> {
        self.changed = true;
        let id = agent.agent_id.as_str();
        let previous = match self.stored_agent(&agent.agent_id)? {
            Some(stored) => stored.change_seq,
            None => {
                self.head.totals.agents += 1;
                self.take_tombstone(id)?.and_then(|tombstone| tombstone.change_seq)
            }
        };
        let is_local = agent.is_local(self.node_id());
        let change_seq = match (is_local && agent.claimed, publish, previous) {
            (true, Publish::No, Some(seq)) => Some(seq),
            (true, _, previous) => Some(self.next_change(id, previous)?),
            (false, _, previous) => {
                self.forget_change(previous)?;
                None
            }
        };
        if is_local {
            self.follow(&agent.agent_id)?;
        } else {
            self.unfollow(&agent.agent_id)?;
        }
        let record = AgentV2::from_domain(agent, change_seq, self.age());
        self.agents.insert(id, codec::encode_readable(&record)?.as_slice())?;
        Ok(())
    }

    /// Deletes an agent and keeps a tombstone for as long as its lease could run elsewhere. The deletion of a local
    /// agent is news.
    pub fn remove_agent(&mut self, agent: &Agent, version: AgentVersion) -> Result<(), StoreError> {
        self.changed = true;
        let id = agent.agent_id.as_str();
        let previous = self.stored_agent(&agent.agent_id)?.and_then(|stored| stored.change_seq);
        let change_seq = if agent.is_local(self.node_id()) { Some(self.next_change(id, previous)?) } else { None };
        let tombstone = TombstoneV2 {
            revision: agent.revision,
            keep_until: self.age().after(agent.ttl.duration()),
            change_seq,
            version,
            baseline: agent.baseline.clone(),
        };
        self.tombstones.insert(id, codec::encode_readable(&tombstone)?.as_slice())?;
        self.unfollow(&agent.agent_id)?;
        self.take_agent(agent)
    }

    fn take_agent(&mut self, agent: &Agent) -> Result<(), StoreError> {
        if self.agents.remove(agent.agent_id.as_str())?.is_some() {
            self.head.totals.agents -= 1;
        }
        let floor = &mut self.head.totals.revision_floor;
        *floor = (*floor).max(agent.revision);
        Ok(())
    }

    /// Moves a local agent, or the deletion of one, to the end of the agent changes. Nothing happens to a remote one.
    pub fn touch(&mut self, id: &AgentId) -> Result<(), StoreError> {
        if let Some(mut stored) = self.stored_agent(id)? {
            if let Some(previous) = stored.change_seq {
                stored.change_seq = Some(self.next_change(id.as_str(), Some(previous))?);
                self.agents.insert(id.as_str(), codec::encode_readable(&stored)?.as_slice())?;
            }
        } else if let Some(mut tombstone) = self.tombstone(id)?
            && let Some(previous) = tombstone.change_seq
        {
            tombstone.change_seq = Some(self.next_change(id.as_str(), Some(previous))?);
            self.tombstones.insert(id.as_str(), codec::encode_readable(&tombstone)?.as_slice())?;
        }
        Ok(())
    }

    fn tombstone(&self, id: &AgentId) -> Result<Option<TombstoneV2>, StoreError> {
        self.tombstones.get(id.as_str())?.map(|row| codec::decode(row.value())).transpose()
    }

    /// What is remembered of a deleted agent.
    pub fn departed(&self, id: &AgentId) -> Result<Option<Departed>, StoreError> {
        let tombstone = self.tombstone(id)?;
        Ok(tombstone.map(|TombstoneV2 { version, baseline, .. }| Departed { version, baseline }))
    }

    /// Forgets at most `limit` tombstones whose time has passed, on the store's clock and on the wall's.
    pub fn purge_tombstones(&mut self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let mut due = Vec::new();
        for entry in self.tombstones.iter()? {
            let (id, row) = entry?;
            let tombstone: TombstoneV2 = codec::decode(row.value())?;
            if tombstone.keep_until <= self.age() && has_passed(tombstone.version, now) {
                due.push(id.value().to_owned());
                if due.len() == limit {
                    break;
                }
            }
        }
        self.changed |= !due.is_empty();
        for id in &due {
            let tombstone = self.take_tombstone(id)?;
            self.forget_change(tombstone.and_then(|tombstone| tombstone.change_seq))?;
            self.observations.remove(id.as_str())?;
        }
        Ok(due.len())
    }

    /// Forgets agents that expired before `before`, looking at no more than `limit` agents from `from` on. Of a local one
    /// nobody is told: what others know of it ended with its lease. Whoever has its id next begins anew.
    pub fn purge_expired(
        &mut self,
        before: StoreAge,
        now: Timestamp,
        from: Option<&AgentId>,
        limit: usize,
    ) -> Result<PurgedAgents, StoreError> {
        let mut due = Vec::new();
        let mut next = None;
        let from = from.map_or("", AgentId::as_str);
        for (looked_at, entry) in self.agents.range(from..)?.enumerate() {
            let (id, row) = entry?;
            if looked_at == limit {
                next = Some(AgentId::from_stored(id.value()));
                break;
            }
            let record: AgentV2 = codec::decode(row.value())?;
            let (old, change_seq) = (record.written_at < before, record.change_seq);
            let agent = record.into_domain()?;
            if old && agent.expired && has_passed(agent.version, now) {
                due.push((agent, change_seq));
            }
        }
        self.changed |= !due.is_empty();
        for (agent, change_seq) in &due {
            self.forget_change(*change_seq)?;
            if agent.is_local(self.node_id()) {
                self.unfollow(&agent.agent_id)?;
            }
            self.take_agent(agent)?;
            self.observations.remove(agent.agent_id.as_str())?;
        }
        Ok(PurgedAgents { forgotten: due.into_iter().map(|(agent, _)| agent.agent_id).collect(), next })
    }

    fn take_tombstone(&mut self, id: &str) -> Result<Option<TombstoneV2>, StoreError> {
        self.tombstones.remove(id)?.map(|row| codec::decode(row.value())).transpose()
    }

    fn next_change(&mut self, id: &str, previous: Option<u64>) -> Result<u64, StoreError> {
        self.changed = true;
        self.forget_change(previous)?;
        self.head.totals.change_seq += 1;
        let seq = self.head.totals.change_seq;
        self.changes.insert(seq, id)?;
        Ok(seq)
    }

    fn forget_change(&mut self, previous: Option<u64>) -> Result<(), StoreError> {
        if let Some(previous) = previous {
            self.changes.remove(previous)?;
        }
        Ok(())
    }

    /// What this node has observed of an agent.
    pub fn observation(&self, id: &AgentId) -> Result<Option<Observation>, StoreError> {
        let row = self.observations.get(id.as_str())?;
        row.map(|row| Ok(codec::decode::<ObservationV2>(row.value())?.into_domain(id.as_str()))).transpose()
    }

    /// Writes what this node has observed of an agent.
    pub fn put_observation(&mut self, observation: &Observation) -> Result<(), StoreError> {
        self.changed = true;
        let record = ObservationV2::from_domain(observation);
        self.observations.insert(observation.agent_id.as_str(), codec::encode_readable(&record)?.as_slice())?;
        Ok(())
    }

    /// Forgets what this node has observed of an agent.
    pub fn remove_observation(&mut self, id: &AgentId) -> Result<(), StoreError> {
        self.changed |= self.observations.remove(id.as_str())?.is_some();
        Ok(())
    }

    /// The ids of all agents that this node owns, and of all that it has observed. For a change of identity only.
    pub fn local_and_observed(&self) -> Result<(Vec<AgentId>, Vec<AgentId>), StoreError> {
        let mut local = Vec::new();
        for entry in self.agents.iter()? {
            let agent = codec::decode::<AgentV2>(entry?.1.value())?.into_domain()?;
            if agent.is_local(self.node_id()) {
                local.push(agent.agent_id);
            }
        }
        let observed = self
            .observations
            .iter()?
            .map(|entry| entry.map(|(id, _)| AgentId::from_stored(id.value())))
            .collect::<Result<_, _>>()?;
        Ok((local, observed))
    }
}

/// Whether a registration made now would stand above `version` without knowing of it.
fn has_passed(version: AgentVersion, now: Timestamp) -> bool {
    u64::try_from(now.as_micros()).is_ok_and(|now| version.epoch < now)
}
