//! Metric families, handed out as typed handles: whoever knows an outcome counts it here, once.
//!
//! Invariants:
//! - Names, types and labels of the `marketplace_*` families never change: dashboards are built on them.
//! - Every family is bounded. A label whose values come from outside has at most 1 000 of them plus `_other`, in which
//!   all later values (and one that is literally `_other`) share.
//! - Counting never waits for a scrape for longer than it takes to copy 1 000 pointers, and allocates only when a new
//!   label value is admitted.
//! - A scrape costs the same at 10 and at 1 000 000 transactions: what describes state is read from the
//!   [`StateSource`]'s own counters.
//!
//! Each [`Metrics`] has a registry of its own; there is none for the whole process.

mod bounded;
mod marketplace;
mod node;
mod state;
mod summary;
mod sync;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Registry, TextEncoder};

use crate::domain::TransactionStatus;

use bounded::Outcome;
use marketplace::Marketplace;
use node::Node;
use state::StateGauges;
use sync::Replication;

/// The `Content-Type` of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The values of the label `sink`.
const SINKS: [&str; 2] = ["redis", "postgres"];

/// How a register call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterResult {
    /// The agent is registered.
    Success,
    /// A live agent has the id.
    Duplicate,
    /// It was refused, or could not be stored, for any other reason.
    Error,
}

/// The counters of one process. Cheap to clone; every clone counts into the same registry.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

struct Families {
    registry: Registry,
    marketplace: Marketplace,
    node: Node,
    sync: Replication,
    state: StateGauges,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let marketplace = Marketplace::register(&registry);
        let node = Node::register(&registry);
        let sync = Replication::register(&registry);
        Self(Arc::new(Families { registry, marketplace, node, sync, state: StateGauges::default() }))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// A register call was answered.
    pub fn registered(&self, result: RegisterResult) {
        self.0.marketplace.registrations.of(result).inc();
    }

    /// An agent was unregistered.
    pub fn unregistered(&self) {
        self.0.marketplace.unregistrations.inc();
    }

    /// An outcome was taken down for an agent.
    pub fn outcome_observed(&self, agent_id: &str, success: bool) {
        self.0.marketplace.task_outcomes.count(agent_id, |outcomes| outcomes.add(Outcome::from(success)));
    }

    /// A transaction was recorded here.
    pub fn recorded(&self, capability: &str, currency: &str, amount: f64) {
        self.recorded_many(capability, currency, 1, amount);
    }

    /// So many were, of so much together.
    pub fn recorded_many(&self, capability: &str, currency: &str, transactions: u32, amount: f64) {
        self.0.marketplace.transactions.count(capability, |count| count.add_many(transactions));
        self.0.marketplace.amounts.count(currency, |sum| sum.add(amount));
    }

    /// A transaction's status was changed by a decision made here.
    pub fn transitioned(&self, from: TransactionStatus, to: TransactionStatus) {
        self.0.marketplace.transitions.with_label_values(&[from.as_str(), to.as_str()]).inc();
    }

    /// A transaction of this capability was disputed here.
    pub fn disputed(&self, capability: &str) {
        self.0.marketplace.disputes.count(capability, bounded::Count::add);
    }

    /// A transaction was settled, so long after it was created.
    pub fn settled_after(&self, since_creation: Duration) {
        self.0.marketplace.settlement_duration.observe(since_creation.as_secs_f64());
    }

    /// A search was answered; it counts once for every capability asked for.
    pub fn searched<'a>(&self, capabilities: impl IntoIterator<Item = &'a str>, results: usize, took: Duration) {
        for capability in capabilities {
            self.0.marketplace.searches.count(capability, bounded::Count::add);
        }
        self.0.marketplace.search_duration.observe(took.as_secs_f64());
        self.0.marketplace.search_results.observe(results as u64);
    }

    /// A recommendation was answered.
    pub fn recommended(&self, capability: &str) {
        self.0.marketplace.recommendations.count(capability, bounded::Count::add);
    }

    /// Events of several nodes disagree: the name of a [`Conflict`](crate::domain::fold::Conflict), or
    /// `transaction_id_conflict` for events with other facts than their transaction's, or `malformed`.
    pub fn ledger_conflict(&self, reason: &'static str, times: usize) {
        self.0.node.ledger_conflicts.with_label_values(&[reason]).inc_by(times as u64);
    }

    /// So many commands became durable in one commit.
    pub fn committed(&self, commands: usize, took: Duration) {
        self.0.node.commit_batch_size.observe(commands as f64);
        self.0.node.commit_duration.observe(took.as_secs_f64());
    }

    /// A request on the API was answered. `route` is the route's pattern or `_other`, never the raw path.
    pub fn http_request(&self, route: &str, method: &'static str, status: u16, took: Duration) {
        self.0.node.http_request(route, method, status, took);
    }

    /// A sink has acknowledged so many entries.
    pub fn pushed(&self, sink: &'static str, entries: u64) {
        self.0.sync.pushed.with_label_values(&[sink]).inc_by(entries);
    }

    /// So many entries of others were taken in from a sink.
    pub fn pulled(&self, sink: &'static str, entries: u64) {
        self.0.sync.pulled.with_label_values(&[sink]).inc_by(entries);
    }

    /// So many agents of this node were registered anew on another.
    pub fn superseded(&self, agents: usize) {
        self.0.sync.superseded.inc_by(agents as u64);
    }

    /// A sink failed.
    pub fn sync_failed(&self, sink: &'static str, class: &'static str) {
        self.0.sync.errors.with_label_values(&[sink, class]).inc();
    }

    /// The text exposition: counters, and the gauges of `state` as they are now.
    ///
    /// Builds the whole page and waits for `state` to be read: not for a thread that must not block. While the store is
    /// unavailable, the transactions by status stay at what the last scrape before saw.
    pub fn render(&self, state: &dyn StateSource) -> String {
        let mut families = self.0.registry.gather();
        families.extend(self.0.state.collect(state));
        families.sort_by(|one, other| one.name().cmp(other.name()));
        TextEncoder::new().encode_to_string(&families).expect("every family has a name and at least one sample")
    }
}

/// What the gauges show, read at scrape; the engine implements it. No method scans transactions.
pub trait StateSource: Send + Sync {
    /// Live agents with status online, local and remote.
    fn agents_online(&self) -> u64;
    /// Live agents of one capability; `None` when nobody has it.
    fn capability_agents(&self, capability: &str) -> Option<u64>;
    /// Visits capabilities that live agents have, until told to stop.
    fn visit_capabilities(&self, visit: &mut dyn FnMut(&str, u64) -> ControlFlow<()>);
    /// The sum of `capability_agents` over all capabilities.
    fn capability_agents_total(&self) -> u64;
    /// The score of one live local agent.
    fn reputation_score(&self, agent_id: &str) -> Option<f64>;
    /// Visits live local agents, until told to stop.
    fn visit_reputations(&self, visit: &mut dyn FnMut(&str, f64) -> ControlFlow<()>);
    /// How many live local agents there are, and the sum of their scores.
    fn reputation_totals(&self) -> (u64, f64);
    /// In the order of `TransactionStatus::ALL`; `None` while the store is unavailable.
    fn transactions_by_status(&self) -> Option<[u64; 4]>;
    /// The size of the store's file.
    fn file_bytes(&self) -> u64;
    /// Whether the store takes writes.
    fn is_ready(&self) -> bool;
    /// Commands that wait for the writer.
    fn writer_queue_depth(&self) -> usize;
    /// Every sink that there can be.
    fn sink_gauges(&self) -> Vec<SinkGauges>;
}

/// How a sink is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct SinkGauges {
    /// Its name.
    pub sink: &'static str,
    /// The names of all states, and whether it is in that one.
    pub states: Vec<(&'static str, bool)>,
    /// What it has not acknowledged.
    pub backlog: u64,
    /// The age of the oldest entry of that.
    pub lag: Duration,
    /// What it refuses and is set aside.
    pub parked: u64,
}

/// Registers a family and hands it back to be counted into.
fn registered<C: Collector + Clone + 'static>(registry: &Registry, family: prometheus::Result<C>) -> C {
    let family = family.expect("the names in this module are well formed");
    registry.register(Box::new(family.clone())).expect("every family is registered once");
    family
}
