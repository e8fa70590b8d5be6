//! The counted families of replication. Its gauges are read at scrape, see [`StateSource`](super::StateSource).

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::registered;

/// What replication counts, most of it by sink.
pub(super) struct Replication {
    pub(super) pushed: IntCounterVec,
    pub(super) pulled: IntCounterVec,
    pub(super) errors: IntCounterVec,
    pub(super) superseded: IntCounter,
}

impl Replication {
    pub(super) fn register(to: &Registry) -> Self {
        let family = |name: &str, help: &str, labels: &[&str]| {
            registered(to, IntCounterVec::new(Opts::new(format!("tradepost_sync_{name}"), help), labels))
        };
        let families = Self {
            pushed: family("pushed_total", "Entries that the sink has acknowledged.", &["sink"]),
            pulled: family("pulled_total", "Entries of others that were taken in from the sink.", &["sink"]),
            errors: family("errors_total", "Failures of the sink, by class.", &["sink", "class"]),
            superseded: registered(
                to,
                IntCounter::new(
                    "tradepost_agents_superseded_total",
                    "Agents of this node that were registered anew on another.",
                ),
            ),
        };
        for sink in super::SINKS {
            // A series that begins with its first increment hides that increment from rate().
            families.pushed.with_label_values(&[sink]);
            families.pulled.with_label_values(&[sink]);
        }
        families
    }
}
