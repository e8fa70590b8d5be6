//! The counted `tradepost_*` families: what this process does, as opposed to what is traded through it.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::bounded::OTHER;
use super::registered;

/// A durable commit takes about 0.3 ms on a good disk, seconds on a stalling one.
const COMMIT_BUCKETS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

const BATCH_BUCKETS: [f64; 13] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

const CONFLICT_REASONS: [&str; 5] =
    ["concurrent_decision", "concurrent_resolution", "unseen_decision", "transaction_id_conflict", "malformed"];

/// Up to the deadline of a request, 30 s.
const REQUEST_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

pub(super) struct Node {
    pub(super) commit_duration: Histogram,
    pub(super) commit_batch_size: Histogram,
    pub(super) ledger_conflicts: IntCounterVec,
    http_requests: IntCounterVec,
    http_request_duration: HistogramVec,
}

impl Node {
    pub(super) fn register(to: &Registry) -> Self {
        registered(
            to,
            IntGaugeVec::new(Opts::new("tradepost_build_info", "Always 1; which build this is."), &["version"]),
        )
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
        let ledger_conflicts = registered(
            to,
            IntCounterVec::new(
                Opts::new(
                    "tradepost_ledger_conflicts_total",
                    "Disagreements that came to light when events of several nodes met here.",
                ),
                &["reason"],
            ),
        );
        // All there from the start, so that a rate over the first one is right.
        for reason in CONFLICT_REASONS {
            ledger_conflicts.with_label_values(&[reason]);
        }
        #[cfg(target_os = "linux")]
        to.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("every family is registered once");
        Self {
            commit_duration: registered(
                to,
                Histogram::with_opts(
                    HistogramOpts::new("tradepost_store_commit_duration_seconds", "Time taken by durable commits.")
                        .buckets(COMMIT_BUCKETS.to_vec()),
                ),
            ),
            commit_batch_size: registered(
                to,
                Histogram::with_opts(
                    HistogramOpts::new("tradepost_store_commit_batch_size", "Commands per durable commit.")
                        .buckets(BATCH_BUCKETS.to_vec()),
                ),
            ),
            ledger_conflicts,
            http_requests: registered(
                to,
                IntCounterVec::new(
                    Opts::new("tradepost_http_requests_total", "Requests answered by the API."),
                    &["route", "method", "status"],
                ),
            ),
            http_request_duration: registered(
                to,
                HistogramVec::new(
                    HistogramOpts::new("tradepost_http_request_duration_seconds", "Time taken to answer requests.")
                        .buckets(REQUEST_BUCKETS.to_vec()),
                    &["route"],
                ),
            ),
        }
    }

    pub(super) fn http_request(&self, route: &str, method: &'static str, status: u16, took: Duration) {
        let mut digits = [0; 3];
        self.http_requests.with_label_values(&[route, known(method), status_text(status, &mut digits)]).inc();
        self.http_request_duration.with_label_values(&[route]).observe(took.as_secs_f64());
    }
}

/// The methods of the API; clients may invent others.
fn known(method: &'static str) -> &'static str {
    match method {
        "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" => method,
        _ => OTHER,
    }
}

/// The status in decimal, written where the caller says, for this is on every request's path.
fn status_text(status: u16, digits: &mut [u8; 3]) -> &str {
    if !(100..=999).contains(&status) {
        return OTHER;
    }
    for (digit, unit) in digits.iter_mut().zip([100, 10, 1]) {
        *digit = b'0' + u8::try_from(status / unit % 10).expect("a decimal digit fits a byte");
    }
    std::str::from_utf8(digits).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_written_in_decimal() {
        for (status, text) in [(200, "200"), (404, "404"), (507, "507"), (100, "100"), (999, "999"), (7, "_other")] {
            assert_eq!(status_text(status, &mut [0; 3]), text);
        }
    }
}
