//! What the metrics' gauges show, read from the published view at scrape: no scan, whatever the store holds.

use std::ops::ControlFlow;

use super::Engine;
use super::replica::SinkState;
use crate::domain::{AgentId, Capability, Sink};
use crate::metrics::{SinkGauges, StateSource};

impl StateSource for Engine {
    fn agents_online(&self) -> u64 {
        self.core().view().directory.online()
    }

    fn capability_agents(&self, capability: &str) -> Option<u64> {
        let view = self.core().view();
        view.directory.live().ranks(Some(&Capability::from_stored(capability))).map(|ranks| ranks.len())
    }

    fn visit_capabilities(&self, visit: &mut dyn FnMut(&str, u64) -> ControlFlow<()>) {
        let view = self.core().view();
        for (capability, count) in view.directory.live().capabilities() {
            if visit(capability.as_str(), count).is_break() {
                return;
            }
        }
    }

    fn capability_agents_total(&self) -> u64 {
        self.core().view().directory.capability_memberships()
    }

    fn reputation_score(&self, agent_id: &str) -> Option<f64> {
        let view = self.core().view();
        let entry = view.directory.get(&AgentId::from_stored(agent_id))?;
        (entry.local && !entry.expired).then_some(entry.standing.score)
    }

    fn visit_reputations(&self, visit: &mut dyn FnMut(&str, f64) -> ControlFlow<()>) {
        let view = self.core().view();
        let Some(all) = view.directory.live().ranks(None) else { return };
        for entry in all.iter(crate::domain::ranking::RankBy::AgentId, None).filter(|entry| entry.local) {
            if visit(entry.standing.agent_id.as_str(), entry.standing.score).is_break() {
                return;
            }
        }
    }

    fn reputation_totals(&self) -> (u64, f64) {
        self.core().view().directory.local_scores()
    }

    fn transactions_by_status(&self) -> Option<[u64; 4]> {
        Some(self.core().view().totals.transactions)
    }

    fn is_ready(&self) -> bool {
        self.core().failed().is_none()
    }

    fn file_bytes(&self) -> u64 {
        self.core().store.bytes().unwrap_or(0)
    }

    fn writer_queue_depth(&self) -> usize {
        self.queue_depth()
    }

    fn sink_gauges(&self) -> Vec<SinkGauges> {
        let gauges = |sink: Sink| {
            let status = self.sinks().status(sink);
            SinkGauges {
                sink: sink.as_str(),
                states: SinkState::ALL.into_iter().map(|state| (state.as_str(), state == status.state)).collect(),
                backlog: status.backlog,
                lag: status.lag,
                parked: status.parked,
            }
        };
        Sink::ALL.into_iter().map(gauges).collect()
    }
}
