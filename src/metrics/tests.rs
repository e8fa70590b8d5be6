//! The page that a scrape returns: its names, its bounds, and that nothing breaks its format.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Agents and capabilities that a test sets by hand, and how often they were asked for.
#[derive(Default)]
struct Fake {
    capabilities: BTreeMap<String, u64>,
    scores: BTreeMap<String, f64>,
    by_status: Option<[u64; 4]>,
    reads: AtomicUsize,
}

impl Fake {
    fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }
}

impl StateSource for Fake {
    fn agents_online(&self) -> u64 {
        3
    }
    fn capability_agents(&self, capability: &str) -> Option<u64> {
        self.read();
        self.capabilities.get(capability).copied()
    }
    fn visit_capabilities(&self, visit: &mut dyn FnMut(&str, u64) -> ControlFlow<()>) {
        for (capability, agents) in &self.capabilities {
            self.read();
            if visit(capability, *agents).is_break() {
                return;
            }
        }
    }
    fn capability_agents_total(&self) -> u64 {
        self.capabilities.values().sum()
    }
    fn reputation_score(&self, agent_id: &str) -> Option<f64> {
        self.read();
        self.scores.get(agent_id).copied()
    }
    fn visit_reputations(&self, visit: &mut dyn FnMut(&str, f64) -> ControlFlow<()>) {
        for (agent_id, score) in &self.scores {
            self.read();
            if visit(agent_id, *score).is_break() {
                return;
            }
        }
    }
    fn reputation_totals(&self) -> (u64, f64) {
        (self.scores.len() as u64, self.scores.values().sum())
    }
    fn transactions_by_status(&self) -> Option<[u64; 4]> {
        self.by_status
    }
    fn is_ready(&self) -> bool {
        true
    }

    fn file_bytes(&self) -> u64 {
        4096
    }
    fn writer_queue_depth(&self) -> usize {
        2
    }
    fn sink_gauges(&self) -> Vec<SinkGauges> {
        let states = vec![("off", false), ("live", true)];
        vec![SinkGauges { sink: "redis", states, backlog: 7, lag: Duration::from_millis(1_500), parked: 1 }]
    }
}

/// A parsed page: the type of every family, and the value of every sample by its name and labels.
struct Page {
    types: BTreeMap<String, String>,
    samples: BTreeMap<(String, Labels), f64>,
}

type Labels = BTreeMap<String, String>;

impl Page {
    /// Reads the text format as strictly as Prometheus does, and panics where it would refuse the page.
    fn parse(text: &str) -> Self {
        let mut page = Self { types: BTreeMap::new(), samples: BTreeMap::new() };
        let mut helped = BTreeSet::new();
        assert!(text.ends_with('\n'));
        for line in text.split_terminator('\n') {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                assert!(helped.insert(rest.split(' ').next().unwrap().to_owned()), "a second help: {line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(page.types.insert(name.to_owned(), kind.to_owned()).is_none(), "a second type: {line}");
            } else {
                let (name, labels, value) = sample(line);
                let owner = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter_map(|suffix| name.strip_suffix(suffix))
                    .find(|stem| page.types.contains_key(*stem));
                let owner = owner.unwrap_or(&name);
                assert!(page.types.contains_key(owner), "a sample before its type: {line}");
                assert!(page.samples.insert((name, labels), value).is_none(), "a second sample: {line}");
            }
        }
        page
    }

    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    fn series(&self, name: &str) -> usize {
        self.samples.keys().filter(|(sample, _)| sample == name).count()
    }
}

/// `name{label="value",…} number`
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap_or_else(|| panic!("an open string: {line}")) {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next() {
                        Some((_, 'n')) => '\n',
                        Some((_, escaped @ ('\\' | '"'))) => escaped,
                        other => panic!("an unknown escape {other:?}: {line}"),
                    }),
                    (_, plain) => value.push(plain),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label twice: {line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').unwrap_or_else(|| panic!("an open brace: {line}"));
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no value: {line}"));
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("not a number: {line}")))
}

fn scrape(metrics: &Metrics, state: &Fake) -> Page {
    Page::parse(&metrics.render(state))
}

/// Everything that can happen, once.
fn busy() -> (Metrics, Fake) {
    let metrics = Metrics::default();
    for result in [RegisterResult::Success, RegisterResult::Duplicate, RegisterResult::Error] {
        metrics.registered(result);
    }
    metrics.unregistered();
    metrics.outcome_observed("thon", true);
    metrics.outcome_observed("thon", false);
    metrics.recorded("python", "USD", 18.5);
    metrics.transitioned(TransactionStatus::Pending, TransactionStatus::Settled);
    metrics.disputed("python");
    metrics.settled_after(Duration::from_secs(7));
    metrics.searched(["python", "sql"], 5, Duration::from_micros(40));
    metrics.recommended("python");
    metrics.ledger_conflict("concurrent_decision", 1);
    metrics.committed(3, Duration::from_micros(300));
    metrics.http_request("/v1/agents", "GET", 200, Duration::from_millis(1));
    metrics.pushed("postgres", 5);
    metrics.pulled("redis", 2);
    metrics.sync_failed("redis", "unreachable");
    metrics.superseded(2);
    let state = Fake {
        capabilities: BTreeMap::from([("python".into(), 2), ("sql".into(), 1)]),
        scores: BTreeMap::from([("thon".into(), 4.5)]),
        by_status: Some([4, 3, 2, 1]),
        ..Fake::default()
    };
    (metrics, state)
}

#[test]
fn names_types_and_labels_are_those_that_dashboards_know() {
    let (metrics, state) = busy();
    let page = scrape(&metrics, &state);
    let golden = [
        ("marketplace_agent_registrations_total", "counter", "status"),
        ("marketplace_agent_unregistrations_total", "counter", ""),
        ("marketplace_agents_online", "gauge", ""),
        ("marketplace_agents_by_capability", "gauge", "capability"),
        ("marketplace_agent_reputation_score", "gauge", "agent_id"),
        ("marketplace_agent_task_outcomes_total", "counter", "agent_id success"),
        ("marketplace_transactions_total", "counter", "capability"),
        ("marketplace_transaction_amount_total", "counter", "currency"),
        ("marketplace_transactions_by_status", "gauge", "status"),
        ("marketplace_transaction_state_transitions_total", "counter", "from_state to_state"),
        ("marketplace_transaction_disputes_total", "counter", "capability"),
        ("marketplace_transaction_settlement_duration_seconds", "histogram", "le"),
        ("marketplace_discovery_searches_total", "counter", "capability"),
        ("marketplace_discovery_search_duration_seconds", "histogram", "le"),
        ("marketplace_discovery_results_count", "summary", ""),
        ("marketplace_discovery_recommendations_total", "counter", "capability"),
        ("tradepost_build_info", "gauge", "version"),
        ("tradepost_store_commit_duration_seconds", "histogram", "le"),
        ("tradepost_store_commit_batch_size", "histogram", "le"),
        ("tradepost_store_file_bytes", "gauge", ""),
        ("tradepost_store_ready", "gauge", ""),
        ("tradepost_store_writer_queue_depth", "gauge", ""),
        ("tradepost_ledger_conflicts_total", "counter", "reason"),
        ("tradepost_http_requests_total", "counter", "method route status"),
        ("tradepost_http_request_duration_seconds", "histogram", "le route"),
        ("tradepost_sync_state", "gauge", "sink state"),
        ("tradepost_sync_backlog", "gauge", "sink"),
        ("tradepost_sync_lag_seconds", "gauge", "sink"),
        ("tradepost_sync_parked", "gauge", "sink"),
        ("tradepost_sync_pushed_total", "counter", "sink"),
        ("tradepost_sync_pulled_total", "counter", "sink"),
        ("tradepost_sync_errors_total", "counter", "class sink"),
        ("tradepost_agents_superseded_total", "counter", ""),
    ];
    for (name, kind, labels) in golden {
        assert_eq!(page.types.get(name).map(String::as_str), Some(kind), "{name}");
        let sample = match kind {
            "histogram" => format!("{name}_bucket"),
            "summary" => format!("{name}_sum"),
            _ => name.to_owned(),
        };
        let mut seen = page.samples.keys().filter(|(other, _)| *other == sample).peekable();
        assert!(seen.peek().is_some(), "{name}");
        for (_, actual) in seen {
            assert_eq!(actual.keys().map(String::as_str).collect::<Vec<_>>().join(" "), labels, "{name}");
        }
    }
    let known: BTreeSet<_> = golden.iter().map(|(name, _, _)| *name).collect();
    for name in page.types.keys().filter(|name| !name.starts_with("process_")) {
        assert!(known.contains(name.as_str()), "{name} is not in the list");
    }
    #[cfg(target_os = "linux")]
    assert!(page.types.contains_key("process_resident_memory_bytes"));
}

#[test]
fn buckets_are_those_that_dashboards_know() {
    let (metrics, state) = busy();
    let page = scrape(&metrics, &state);
    let bounds = |name: &str| {
        let name = format!("{name}_bucket");
        let mut bounds: Vec<f64> = page
            .samples
            .keys()
            .filter(|(sample, _)| *sample == name)
            .map(|(_, labels)| labels["le"].parse().unwrap())
            .collect();
        bounds.sort_by(f64::total_cmp);
        bounds
    };
    let settlement = bounds("marketplace_transaction_settlement_duration_seconds");
    assert_eq!(settlement, [1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, f64::INFINITY]);
    let mut search = bounds("marketplace_discovery_search_duration_seconds");
    search.retain(|bound| *bound >= 0.001);
    assert_eq!(search, [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, f64::INFINITY]);
}

#[test]
fn what_happened_is_counted_once() {
    let (metrics, state) = busy();
    metrics.clone().recorded("python", "USD", 0.1);
    let page = scrape(&metrics, &state);
    for (name, labels, value) in [
        ("marketplace_agent_registrations_total", &[("status", "duplicate")][..], 1.0),
        ("marketplace_agent_unregistrations_total", &[], 1.0),
        ("tradepost_sync_state", &[("sink", "redis"), ("state", "live")], 1.0),
        ("tradepost_sync_state", &[("sink", "redis"), ("state", "off")], 0.0),
        ("tradepost_sync_backlog", &[("sink", "redis")], 7.0),
        ("tradepost_sync_lag_seconds", &[("sink", "redis")], 1.5),
        ("tradepost_sync_parked", &[("sink", "redis")], 1.0),
        ("tradepost_sync_pushed_total", &[("sink", "postgres")], 5.0),
        ("tradepost_sync_pulled_total", &[("sink", "redis")], 2.0),
        ("tradepost_agents_superseded_total", &[], 2.0),
        ("tradepost_sync_errors_total", &[("sink", "redis"), ("class", "unreachable")], 1.0),
        ("marketplace_agents_online", &[], 3.0),
        ("marketplace_agents_by_capability", &[("capability", "python")], 2.0),
        ("marketplace_agent_reputation_score", &[("agent_id", "thon")], 4.5),
        ("marketplace_agent_task_outcomes_total", &[("agent_id", "thon"), ("success", "false")], 1.0),
        ("marketplace_transactions_total", &[("capability", "python")], 2.0),
        ("marketplace_transaction_amount_total", &[("currency", "USD")], 18.6),
        ("marketplace_transactions_by_status", &[("status", "pending")], 4.0),
        ("marketplace_transactions_by_status", &[("status", "disputed")], 1.0),
        ("marketplace_transaction_state_transitions_total", &[("from_state", "pending"), ("to_state", "settled")], 1.0),
        ("marketplace_transaction_settlement_duration_seconds_bucket", &[("le", "5")], 0.0),
        ("marketplace_transaction_settlement_duration_seconds_bucket", &[("le", "10")], 1.0),
        ("marketplace_discovery_searches_total", &[("capability", "sql")], 1.0),
        ("marketplace_discovery_search_duration_seconds_count", &[], 1.0),
        ("marketplace_discovery_results_count_sum", &[], 5.0),
        ("marketplace_discovery_results_count_count", &[], 1.0),
        ("tradepost_store_commit_batch_size_sum", &[], 3.0),
        ("tradepost_store_file_bytes", &[], 4096.0),
        ("tradepost_http_requests_total", &[("route", "/v1/agents"), ("method", "GET"), ("status", "200")], 1.0),
    ] {
        assert_eq!(page.get(name, labels), Some(value), "{name} {labels:?}");
    }
}

#[test]
fn registries_are_apart() {
    let (busy, state) = busy();
    let quiet = Metrics::default();
    assert_eq!(scrape(&quiet, &state).get("marketplace_agent_unregistrations_total", &[]), Some(0.0));
    assert_eq!(scrape(&busy, &state).get("marketplace_agent_unregistrations_total", &[]), Some(1.0));
}

#[test]
fn a_flood_of_values_shares_one_series() {
    let metrics = Metrics::default();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let metrics = &metrics;
            scope.spawn(move || {
                for i in 0..1_000 {
                    let value = format!("v{thread}-{i}");
                    metrics.recorded(&value, &value, 1.0);
                    metrics.outcome_observed(&value, true);
                }
            });
        }
    });
    metrics.recorded("_other", "USD", 1.0);
    let page = scrape(&metrics, &Fake::default());
    for (name, label, total) in [
        ("marketplace_transactions_total", "capability", 4_001.0),
        ("marketplace_transaction_amount_total", "currency", 4_001.0),
        ("marketplace_agent_task_outcomes_total", "agent_id", 4_000.0),
    ] {
        assert_eq!(page.series(name), 1_001, "{name}");
        let values = page.samples.iter().filter(|((sample, _), _)| sample == name);
        assert_eq!(values.clone().map(|(_, value)| value).sum::<f64>(), total, "{name}: nothing is lost");
        let other = values.clone().find(|((_, labels), _)| labels[label] == "_other");
        assert_eq!(other.map(|(_, value)| *value), Some(total - 1_000.0), "{name}");
    }
}

#[test]
fn a_flood_of_agents_costs_a_scrape_no_more_than_its_series() {
    let metrics = Metrics::default();
    let mut state = Fake::default();
    for i in 0..20_000 {
        state.capabilities.insert(format!("c{i}"), 2);
        state.scores.insert(format!("a{i}"), if i % 2 == 0 { 1.0 } else { 4.0 });
    }
    for _ in 0..3 {
        state.reads.store(0, Ordering::Relaxed);
        let page = scrape(&metrics, &state);
        assert!(state.reads.load(Ordering::Relaxed) < 5_000);
        assert_eq!(page.series("marketplace_agents_by_capability"), 1_001);
        let other = page.get("marketplace_agents_by_capability", &[("capability", "_other")]);
        assert_eq!(other, Some(38_000.0));
        assert_eq!(page.series("marketplace_agent_reputation_score"), 1_001);
        let mean = page.get("marketplace_agent_reputation_score", &[("agent_id", "_other")]).unwrap();
        assert!((mean - 2.5).abs() < 0.1, "{mean}");
    }
}

#[test]
fn what_is_gone_loses_its_series_and_makes_room() {
    let metrics = Metrics::default();
    let mut state = Fake::default();
    for i in 0..1_001 {
        state.capabilities.insert(format!("c{i:04}"), 1);
        state.scores.insert(format!("a{i:04}"), 2.0);
    }
    let capability = |page: &Page, value| page.get("marketplace_agents_by_capability", &[("capability", value)]);
    let score = |page: &Page, value| page.get("marketplace_agent_reputation_score", &[("agent_id", value)]);

    let page = scrape(&metrics, &state);
    assert_eq!((capability(&page, "c1000"), capability(&page, "_other")), (None, Some(1.0)));
    assert_eq!((score(&page, "a1000"), score(&page, "_other")), (None, Some(2.0)));

    state.capabilities.remove("c0007");
    state.scores.remove("a0007");
    let page = scrape(&metrics, &state);
    assert_eq!(capability(&page, "c0007"), None);
    assert_eq!((capability(&page, "c1000"), capability(&page, "_other")), (Some(1.0), None));
    assert_eq!(score(&page, "a0007"), None);
    assert_eq!((score(&page, "a1000"), score(&page, "_other")), (Some(2.0), None));

    state.capabilities.clear();
    state.scores.clear();
    let page = scrape(&metrics, &state);
    assert_eq!(page.series("marketplace_agents_by_capability"), 0);
    assert_eq!(page.series("marketplace_agent_reputation_score"), 0);
}

#[test]
fn a_value_that_is_called_other_is_counted_with_the_rest() {
    let metrics = Metrics::default();
    let mut state = Fake::default();
    state.capabilities.insert("_other".into(), 3);
    state.scores.insert("_other".into(), 1.5);
    let page = scrape(&metrics, &state);
    assert_eq!(page.get("marketplace_agents_by_capability", &[("capability", "_other")]), Some(3.0));
    assert_eq!(page.get("marketplace_agent_reputation_score", &[("agent_id", "_other")]), Some(1.5));

    for i in 0..1_000 {
        state.capabilities.insert(format!("c{i}"), 1);
    }
    let page = scrape(&metrics, &state);
    assert_eq!(page.get("marketplace_agents_by_capability", &[("capability", "_other")]), Some(3.0));
}

#[test]
fn hostile_values_do_not_break_the_page() {
    let metrics = Metrics::default();
    let mut state = Fake::default();
    let values = [
        "\"",
        "\\",
        "\n",
        "\\n",
        "\\\"",
        "a\"} 1\n# TYPE evil counter\nevil 1",
        "{}",
        ",",
        " ",
        "é\u{2028}漢",
        "\r\n",
        "\u{1b}[31m",
        "ends in \\",
    ];
    for value in values {
        metrics.recorded(value, value, 1.0);
        metrics.outcome_observed(value, true);
        metrics.searched([value], 1, Duration::ZERO);
        state.capabilities.insert(value.into(), 1);
        state.scores.insert(value.into(), 1.0);
    }
    metrics.http_request("_other", "BREW", 1, Duration::ZERO);
    let page = scrape(&metrics, &state);
    assert!(!page.types.contains_key("evil"));
    for value in values {
        assert_eq!(page.get("marketplace_transactions_total", &[("capability", value)]), Some(1.0), "{value:?}");
        assert_eq!(page.get("marketplace_agents_by_capability", &[("capability", value)]), Some(1.0), "{value:?}");
        assert_eq!(page.get("marketplace_agent_reputation_score", &[("agent_id", value)]), Some(1.0), "{value:?}");
    }
    let strange = [("route", "_other"), ("method", "_other"), ("status", "_other")];
    assert_eq!(page.get("tradepost_http_requests_total", &strange), Some(1.0));
}

#[test]
fn all_four_statuses_are_there_once_the_store_was_read_and_stay() {
    let metrics = Metrics::default();
    let mut state = Fake::default();
    assert_eq!(scrape(&metrics, &state).series("marketplace_transactions_by_status"), 0);
    state.by_status = Some([1, 0, 0, 0]);
    assert_eq!(scrape(&metrics, &state).series("marketplace_transactions_by_status"), 4);
    state.by_status = None;
    let page = scrape(&metrics, &state);
    assert_eq!(page.get("marketplace_transactions_by_status", &[("status", "pending")]), Some(1.0));
    assert_eq!(page.get("marketplace_transactions_by_status", &[("status", "cancelled")]), Some(0.0));
}
