//! The counted `marketplace_*` families, whose names, types and labels dashboards rely on.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

use super::bounded::{Bounded, Count, Outcomes, Sum};
use super::summary::Summary;
use super::{RegisterResult, registered};

/// From creation to settlement: seconds to an hour.
const SETTLEMENT_BUCKETS: [f64; 9] = [1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0];

/// Searches are answered from memory, so the inherited buckets (from 1 ms up) are refined below.
const SEARCH_BUCKETS: [f64; 12] = [0.00001, 0.000025, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

pub(super) struct Marketplace {
    pub(super) registrations: Registrations,
    pub(super) unregistrations: IntCounter,
    pub(super) task_outcomes: Bounded<Outcomes>,
    pub(super) transactions: Bounded<Count>,
    pub(super) amounts: Bounded<Sum>,
    pub(super) transitions: IntCounterVec,
    pub(super) disputes: Bounded<Count>,
    pub(super) settlement_duration: Histogram,
    pub(super) searches: Bounded<Count>,
    pub(super) search_duration: Histogram,
    pub(super) search_results: Summary,
    pub(super) recommendations: Bounded<Count>,
}

/// One counter per [`RegisterResult`]; all three exist from the start, so that a rate over the first one is right.
pub(super) struct Registrations {
    success: IntCounter,
    duplicate: IntCounter,
    error: IntCounter,
}

impl Registrations {
    pub(super) fn of(&self, result: RegisterResult) -> &IntCounter {
        match result {
            RegisterResult::Success => &self.success,
            RegisterResult::Duplicate => &self.duplicate,
            RegisterResult::Error => &self.error,
        }
    }
}

impl Marketplace {
    pub(super) fn register(to: &Registry) -> Self {
        let registrations = registered(
            to,
            IntCounterVec::new(
                Opts::new("marketplace_agent_registrations_total", "Register calls, by how they ended."),
                &["status"],
            ),
        );
        Self {
            registrations: Registrations {
                success: registrations.with_label_values(&["success"]),
                duplicate: registrations.with_label_values(&["duplicate"]),
                error: registrations.with_label_values(&["error"]),
            },
            unregistrations: registered(
                to,
                IntCounter::new("marketplace_agent_unregistrations_total", "Agents that were unregistered."),
            ),
            task_outcomes: registered(
                to,
                Bounded::new("marketplace_agent_task_outcomes_total", "Observed task outcomes.", "agent_id"),
            ),
            transactions: registered(
                to,
                Bounded::new("marketplace_transactions_total", "Transactions recorded here.", "capability"),
            ),
            amounts: registered(
                to,
                Bounded::new(
                    "marketplace_transaction_amount_total",
                    "Sum of the amounts of transactions recorded here, as the nearest double.",
                    "currency",
                ),
            ),
            transitions: registered(
                to,
                IntCounterVec::new(
                    Opts::new("marketplace_transaction_state_transitions_total", "Status changes decided here."),
                    &["from_state", "to_state"],
                ),
            ),
            disputes: registered(
                to,
                Bounded::new("marketplace_transaction_disputes_total", "Disputes raised here.", "capability"),
            ),
            settlement_duration: registered(
                to,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "marketplace_transaction_settlement_duration_seconds",
                        "Time from a transaction's creation to its settlement.",
                    )
                    .buckets(SETTLEMENT_BUCKETS.to_vec()),
                ),
            ),
            searches: registered(
                to,
                Bounded::new(
                    "marketplace_discovery_searches_total",
                    "Searches, once for every capability asked for.",
                    "capability",
                ),
            ),
            search_duration: registered(
                to,
                Histogram::with_opts(
                    HistogramOpts::new("marketplace_discovery_search_duration_seconds", "Time taken by searches.")
                        .buckets(SEARCH_BUCKETS.to_vec()),
                ),
            ),
            search_results: registered(to, Summary::new("marketplace_discovery_results_count", "Results per search.")),
            recommendations: registered(
                to,
                Bounded::new("marketplace_discovery_recommendations_total", "Recommendations asked for.", "capability"),
            ),
        }
    }
}
