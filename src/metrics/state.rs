//! Gauges that describe state, read from a [`StateSource`] at every scrape.
//!
//! Of the gauges by an outside label the first [`LIMIT`] values get a series. One whose entity is gone loses it, which
//! makes room for another. So a scrape looks up what was admitted before and visits no more than it takes to fill the
//! room, however many there are.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use super::bounded::{LIMIT, OTHER, family, label};
use super::{SinkGauges, StateSource};
use crate::domain::TransactionStatus;

/// What the gauges remember from scrape to scrape. Scrapes take turns.
#[derive(Default)]
pub(super) struct StateGauges(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    capabilities: Admitted,
    agents: Admitted,
    /// While the store is unavailable nothing is acknowledged, so the last counts that were read stay the best answer.
    by_status: Option<[u64; 4]>,
}

/// The label values that have a series.
type Admitted = HashSet<Arc<str>>;

impl StateGauges {
    /// The families of all state gauges. That of the transactions by status is missing only as long as the store has
    /// not been readable at any scrape.
    pub(super) fn collect(&self, state: &dyn StateSource) -> Vec<MetricFamily> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut families = vec![
            gauges(
                "marketplace_agents_online",
                "Live agents with status online.",
                vec![gauge(Vec::new(), state.agents_online() as f64)],
            ),
            gauges(
                "tradepost_store_file_bytes",
                "Size of the store's file.",
                vec![gauge(Vec::new(), state.file_bytes() as f64)],
            ),
            gauges(
                "tradepost_store_ready",
                "1 while the store takes writes.",
                vec![gauge(Vec::new(), f64::from(u8::from(state.is_ready())))],
            ),
            gauges(
                "tradepost_store_writer_queue_depth",
                "Commands that wait for the writer.",
                vec![gauge(Vec::new(), state.writer_queue_depth() as f64)],
            ),
            gauges(
                "marketplace_agents_by_capability",
                "Live agents, by capability.",
                by_capability(&mut memory.capabilities, state),
            ),
            gauges(
                "marketplace_agent_reputation_score",
                "Reputation scores of live local agents, 0 to 5; that of _other is the mean of the rest.",
                reputations(&mut memory.agents, state),
            ),
        ];
        if let Some(counts) = state.transactions_by_status() {
            memory.by_status = Some(counts);
        }
        if let Some(counts) = memory.by_status {
            let samples = TransactionStatus::ALL
                .into_iter()
                .zip(counts)
                .map(|(status, count)| gauge(vec![label("status", status.as_str())], count as f64));
            families.push(gauges(
                "marketplace_transactions_by_status",
                "Transactions known here, by status.",
                samples.collect(),
            ));
        }
        families.extend(sinks(&state.sink_gauges()));
        // The encoder refuses families without samples.
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

fn by_capability(admitted: &mut Admitted, state: &dyn StateSource) -> Vec<proto::Metric> {
    let lookup = |capability: &str| state.capability_agents(capability).filter(|agents| *agents > 0);
    let values = refresh(admitted, lookup, |visit| state.visit_capabilities(visit));
    let rest = if values.len() < LIMIT {
        lookup(OTHER)
    } else {
        let shown: u64 = values.iter().map(|(_, agents)| agents).sum();
        Some(state.capability_agents_total().saturating_sub(shown)).filter(|agents| *agents > 0)
    };
    let values = values.iter().map(|(value, agents)| (&**value, *agents as f64));
    samples("capability", values, rest.map(|agents| agents as f64))
}

fn reputations(admitted: &mut Admitted, state: &dyn StateSource) -> Vec<proto::Metric> {
    let lookup = |agent_id: &str| state.reputation_score(agent_id);
    let values = refresh(admitted, lookup, |visit| state.visit_reputations(visit));
    let rest = if values.len() < LIMIT {
        lookup(OTHER)
    } else {
        let shown: f64 = values.iter().map(|(_, score)| score).sum();
        let (agents, total) = state.reputation_totals();
        let agents = agents.saturating_sub(values.len() as u64);
        // Clamped, because the difference of two sums may miss a bound by a rounding error.
        (agents > 0).then(|| ((total - shown) / agents as f64).clamp(0.0, 5.0))
    };
    samples("agent_id", values.iter().map(|(value, score)| (&**value, *score)), rest)
}

/// Drops what is gone, admits what is new while there is room, and returns what each admitted value stands at.
///
/// Fewer than [`LIMIT`] mean that all values but a literal [`OTHER`] are among them.
fn refresh<V: Copy>(
    admitted: &mut Admitted,
    lookup: impl Fn(&str) -> Option<V>,
    visit: impl FnOnce(&mut dyn FnMut(&str, V) -> ControlFlow<()>),
) -> Vec<(Arc<str>, V)> {
    let mut values = Vec::with_capacity(admitted.len());
    admitted.retain(|value| match lookup(value) {
        Some(current) => {
            values.push((Arc::clone(value), current));
            true
        }
        None => false,
    });
    if admitted.len() < LIMIT {
        visit(&mut |value, current| {
            if value != OTHER && !admitted.contains(value) {
                let value: Arc<str> = Arc::from(value);
                admitted.insert(Arc::clone(&value));
                values.push((value, current));
            }
            if admitted.len() < LIMIT { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
    values
}

fn sinks(sinks: &[SinkGauges]) -> Vec<MetricFamily> {
    let each = |value: fn(&SinkGauges) -> f64| {
        sinks.iter().map(|sink| gauge(vec![label("sink", sink.sink)], value(sink))).collect::<Vec<_>>()
    };
    let states = sinks.iter().flat_map(|sink| {
        sink.states.iter().map(|(state, is_in_it)| {
            let labels = vec![label("sink", sink.sink), label("state", state)];
            gauge(labels, f64::from(u8::from(*is_in_it)))
        })
    });
    vec![
        gauges("tradepost_sync_state", "1 for the state that the sink is in.", states.collect()),
        gauges(
            "tradepost_sync_backlog",
            "Entries that the sink has not acknowledged.",
            each(|sink| sink.backlog as f64),
        ),
        gauges(
            "tradepost_sync_lag_seconds",
            "Age of the oldest entry that the sink has not acknowledged.",
            each(|sink| sink.lag.as_secs_f64()),
        ),
        gauges(
            "tradepost_sync_parked",
            "Entries that the sink refuses for their own content.",
            each(|sink| sink.parked as f64),
        ),
    ]
}

fn samples<'a>(name: &str, values: impl Iterator<Item = (&'a str, f64)>, rest: Option<f64>) -> Vec<proto::Metric> {
    let mut metrics: Vec<_> =
        values.chain(rest.map(|rest| (OTHER, rest))).map(|(value, at)| gauge(vec![label(name, value)], at)).collect();
    // Hash order would shuffle the page at every scrape.
    metrics.sort_by(|one, other| one.get_label()[0].value().cmp(other.get_label()[0].value()));
    metrics
}

fn gauges(name: &str, help: &str, metrics: Vec<proto::Metric>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, metrics)
}

fn gauge(labels: Vec<LabelPair>, value: f64) -> proto::Metric {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(value);
    let mut metric = proto::Metric::from_label(labels);
    metric.set_gauge(gauge);
    metric
}
