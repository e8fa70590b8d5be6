//! Scrapes of the real binary: exact counts after a known tour on both listeners, a bounded number of series, a port
//! that is taken for a while.

mod common;

use std::collections::BTreeMap;
use std::net::TcpListener;

use common::http::{Address, Client, Request};
use common::sidecar::{Home, Setup, wait_for};
use serde_json::{Value, json};

/// Values by series, each as it is written: `name{label="value"}`.
type Samples = BTreeMap<String, f64>;

fn scrape(client: &mut Client) -> Samples {
    let answer = client.get("/metrics").expect(200);
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{answer:?}");
    let lines = answer.text().lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        (series.to_owned(), value.parse().expect("a number"))
    });
    let (mut found, mut count) = (Samples::new(), 0);
    for (series, value) in samples {
        found.insert(series, value);
        count += 1;
    }
    assert_eq!(found.len(), count, "a series comes twice");
    found
}

/// The samples of one family, its series without the name.
fn family(samples: &Samples, name: &str) -> BTreeMap<String, f64> {
    samples
        .iter()
        .filter_map(|(series, value)| series.strip_prefix(name).map(|labels| (labels.to_owned(), *value)))
        .filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'))
        .collect()
}

fn agent(id: &str, capabilities: &[&str], availability: &str) -> Value {
    json!({"agent_id": id, "name": id, "capabilities": capabilities, "cost_per_task": 1, "availability": availability})
}

fn tour(client: &mut Client) {
    client.post("/v1/agents", &agent("thon", &["python", "sql"], "online")).expect(201);
    client.post("/v1/agents", &agent("ada", &["python"], "busy")).expect(201);
    client.post("/v1/agents", &agent("gone", &["law"], "online")).expect(201);
    client.post("/v1/agents", &agent("thon", &[], "online")).expect(409);
    client.post("/v1/agents", &agent("thon", &[], "online")).expect(409);
    client.call(&Request::new("PUT", "/v1/agents/ada").json(&agent("ada", &["python"], "online"))).expect(200);
    client.call(&Request::new("DELETE", "/v1/agents/gone")).expect(204);
    client.call(&Request::new("DELETE", "/v1/agents/gone")).expect(404);
    for (success, weight) in [(true, 2.0), (true, 1.5), (false, 1.0)] {
        client.post("/v1/agents/thon/outcomes", &json!({"success": success, "weight": weight})).expect(200);
    }
    client.post("/v1/agents/ada/reputation", &json!({"delta": 4})).expect(200);

    let record = |client: &mut Client, id: &str, capability: &str, currency: &str, amount: &str, status: u16| {
        let body = json!({"transaction_id": id, "payer_agent": "ada", "provider_agent": "thon", "capability": capability,
            "currency": currency, "amount": amount});
        client.post("/v1/transactions", &body).expect(status);
    };
    record(client, "t1", "python", "USD", "0.5", 201);
    record(client, "t1", "python", "USD", "0.5", 200);
    record(client, "t1", "python", "USD", "0.75", 409);
    record(client, "t2", "python", "USD", "1.25", 201);
    record(client, "t3", "sql", "EUR", "10", 201);
    record(client, "t4", "sql", "USD", "100", 201);
    record(client, "t5", "sql", "USD", "0", 422);
    let batch: Vec<Value> = (0..3)
        .map(|number| json!({"transaction_id": format!("b{number}"), "payer_agent": "a", "provider_agent": "b", "capability": "law", "amount": 2}))
        .collect();
    client.post("/v1/transactions/batch", &json!(batch)).expect(200);
    client.post("/v1/transactions/batch", &json!(batch)).expect(200);
    for (id, step, status) in [
        ("t1", "settle", 200),
        ("t1", "settle", 409),
        ("t1", "dispute", 200),
        ("t2", "cancel", 200),
        ("t3", "dispute", 200),
        ("t3", "cancel", 409),
    ] {
        client.post_nothing(format!("/v1/transactions/{id}/{step}")).expect(status);
    }
    client.post("/v1/transactions/t3/evidence", &json!({"evidence": ["e"]})).expect(200);
    client.post("/v1/transactions/t3/resolve", &json!({"outcome": "cancelled"})).expect(200);

    client.get("/v1/discovery/search?capability=python&capability=sql").expect(200);
    client.get("/v1/discovery/search?capability=python").expect(200);
    client.get("/v1/discovery/search?capability=nothing").expect(200);
    client.get("/v1/discovery/recommend?capability=python").expect(200);
    client.get("/v1/discovery/recommend?capability=python").expect(200);
}

#[test]
fn after_a_known_tour_both_listeners_show_the_exact_counts() {
    let home = Home::new();
    let sidecar = home.setup().metrics("127.0.0.1:0").start();
    tour(&mut sidecar.client());
    let expected: &[(&str, &[(&str, f64)])] = &[
        (
            "marketplace_agent_registrations_total",
            &[("{status=\"success\"}", 4.0), ("{status=\"duplicate\"}", 2.0), ("{status=\"error\"}", 0.0)],
        ),
        ("marketplace_agent_unregistrations_total", &[("", 1.0)]),
        ("marketplace_agents_online", &[("", 2.0)]),
        ("marketplace_agents_by_capability", &[("{capability=\"python\"}", 2.0), ("{capability=\"sql\"}", 1.0)]),
        ("marketplace_agent_reputation_score", &[("{agent_id=\"thon\"}", 2.5), ("{agent_id=\"ada\"}", 4.0)]),
        (
            "marketplace_agent_task_outcomes_total",
            &[("{agent_id=\"thon\",success=\"true\"}", 2.0), ("{agent_id=\"thon\",success=\"false\"}", 1.0)],
        ),
        (
            "marketplace_transactions_total",
            &[("{capability=\"python\"}", 2.0), ("{capability=\"sql\"}", 2.0), ("{capability=\"law\"}", 3.0)],
        ),
        ("marketplace_transaction_amount_total", &[("{currency=\"USD\"}", 107.75), ("{currency=\"EUR\"}", 10.0)]),
        (
            "marketplace_transactions_by_status",
            &[
                ("{status=\"pending\"}", 4.0),
                ("{status=\"settled\"}", 0.0),
                ("{status=\"cancelled\"}", 2.0),
                ("{status=\"disputed\"}", 1.0),
            ],
        ),
        (
            "marketplace_transaction_state_transitions_total",
            &[
                ("{from_state=\"pending\",to_state=\"settled\"}", 1.0),
                ("{from_state=\"settled\",to_state=\"disputed\"}", 1.0),
                ("{from_state=\"pending\",to_state=\"cancelled\"}", 1.0),
                ("{from_state=\"pending\",to_state=\"disputed\"}", 1.0),
                ("{from_state=\"disputed\",to_state=\"cancelled\"}", 1.0),
            ],
        ),
        ("marketplace_transaction_disputes_total", &[("{capability=\"python\"}", 1.0), ("{capability=\"sql\"}", 1.0)]),
        ("marketplace_transaction_settlement_duration_seconds_count", &[("", 1.0)]),
        (
            "marketplace_discovery_searches_total",
            &[("{capability=\"python\"}", 2.0), ("{capability=\"sql\"}", 1.0), ("{capability=\"nothing\"}", 1.0)],
        ),
        ("marketplace_discovery_search_duration_seconds_count", &[("", 3.0)]),
        ("marketplace_discovery_results_count_count", &[("", 3.0)]),
        ("marketplace_discovery_results_count_sum", &[("", 4.0)]),
        ("marketplace_discovery_recommendations_total", &[("{capability=\"python\"}", 2.0)]),
    ];
    let (mut api, mut socket, mut metrics) = (sidecar.client(), sidecar.socket_client(), sidecar.metrics_client());
    for client in [&mut api, &mut socket, &mut metrics] {
        let samples = scrape(client);
        for (name, expected) in expected {
            let expected: BTreeMap<String, f64> =
                expected.iter().map(|(labels, value)| ((*labels).to_owned(), *value)).collect();
            let mut found = family(&samples, name);
            if *name == "marketplace_transaction_state_transitions_total" {
                // Those that have not happened may be there with a 0.
                found.retain(|_, count| *count > 0.0);
            }
            assert_eq!(found, expected, "{name}");
        }
        assert!(samples.keys().any(|series| series.starts_with("tradepost_build_info{")), "{samples:?}");
        for bucket in ["1", "5", "10", "30", "60", "300", "600", "1800", "3600", "+Inf"] {
            let series = format!("marketplace_transaction_settlement_duration_seconds_bucket{{le=\"{bucket}\"}}");
            assert_eq!(samples.get(&series), Some(&1.0), "{series}");
        }
    }
    // State survives a restart, counts of what this process did begin again.
    sidecar.stop();
    let sidecar = home.setup().start();
    let samples = scrape(&mut sidecar.client());
    assert_eq!(samples["marketplace_transactions_by_status{status=\"cancelled\"}"], 2.0);
    assert_eq!(samples["marketplace_agents_online"], 2.0);
    assert_eq!(samples["marketplace_agent_unregistrations_total"], 0.0);
    assert_eq!(family(&samples, "marketplace_transactions_total"), BTreeMap::new());
}

#[test]
fn a_capability_that_nobody_has_any_more_and_an_agent_that_is_gone_disappear() {
    let sidecar = Setup::in_memory().start();
    let mut client = sidecar.client();
    client.post("/v1/agents", &agent("thon", &["python", "sql"], "online")).expect(201);
    let mut brief = agent("brief", &["law"], "online");
    brief["ttl_seconds"] = json!(1);
    client.post("/v1/agents", &brief).expect(201);
    client.call(&Request::new("PATCH", "/v1/agents/thon").json(&json!({"capabilities": ["sql"]}))).expect(200);
    wait_for("the brief one to expire", || {
        let samples = scrape(&mut client);
        let capabilities = family(&samples, "marketplace_agents_by_capability");
        let scores = family(&samples, "marketplace_agent_reputation_score");
        let gone = capabilities.keys().eq(["{capability=\"sql\"}"]) && scores.keys().eq(["{agent_id=\"thon\"}"]);
        (gone && samples["marketplace_agents_online"] == 1.0).then_some(())
    });
    client.call(&Request::new("DELETE", "/v1/agents/thon")).expect(204);
    let samples = scrape(&mut client);
    assert_eq!(family(&samples, "marketplace_agents_by_capability"), BTreeMap::new());
    assert_eq!(family(&samples, "marketplace_agent_reputation_score"), BTreeMap::new());
    assert_eq!(samples["marketplace_agents_online"], 0.0);
}

#[test]
fn a_flood_of_capabilities_and_agents_stays_within_a_thousand_series_and_the_rest() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let mut client = sidecar.client();
    let flood = 1_500;
    let batch: Vec<Value> = (0..flood)
        .map(|number| json!({"payer_agent": "a", "provider_agent": "b", "capability": format!("flood-{number}"), "amount": 1}))
        .collect();
    client.post("/v1/transactions/batch", &json!(batch)).expect(200);
    for number in 0..flood {
        let capability = format!("flood-{number}");
        client.post("/v1/agents", &agent(&format!("agent-{number}"), &[&capability], "online")).expect(201);
        client.post(format!("/v1/agents/agent-{number}/outcomes"), &json!({"success": true})).expect(200);
        client.get(format!("/v1/discovery/search?capability={capability}")).expect(200);
        client.get(format!("/v1/discovery/recommend?capability={capability}")).expect(200);
    }
    for client in [&mut client, &mut sidecar.metrics_client()] {
        let samples = scrape(client);
        for (name, label) in [
            ("marketplace_transactions_total", "capability"),
            ("marketplace_agents_by_capability", "capability"),
            ("marketplace_discovery_searches_total", "capability"),
            ("marketplace_discovery_recommendations_total", "capability"),
            ("marketplace_agent_task_outcomes_total", "agent_id"),
            ("marketplace_agent_reputation_score", "agent_id"),
        ] {
            let found = family(&samples, name);
            let (rest, own): (BTreeMap<_, f64>, BTreeMap<_, f64>) =
                found.into_iter().partition(|(labels, _)| labels.contains(&format!("{label}=\"_other\"")));
            // Of outcomes there may be one series for each result.
            let values: std::collections::BTreeSet<&str> =
                own.keys().map(|labels| labels.split(',').next().unwrap()).collect();
            assert_eq!(values.len(), 1_000, "{name}");
            assert!(!rest.is_empty(), "{name} has no _other");
            if name != "marketplace_agent_reputation_score" {
                // Nothing is dropped: what has no series of its own is counted with the rest.
                assert_eq!(own.values().sum::<f64>() + rest.values().sum::<f64>(), f64::from(flood), "{name}");
            }
        }
    }
}

#[test]
fn while_the_metrics_port_is_taken_the_api_serves_and_metrics_appear_once_it_frees() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let sidecar = Setup::in_memory().metrics(address.to_string()).start();
    let mut client = sidecar.client();
    client.post("/v1/agents", &agent("thon", &["python"], "online")).expect(201);
    assert_eq!(scrape(&mut client)["marketplace_agents_online"], 1.0);
    wait_for("a warning", || {
        let log = sidecar.log();
        (log.contains("\"WARN\"") && log.contains(&address.to_string())).then_some(())
    });
    let listens = |client: &mut Client| {
        let status = client.get("/v1/status").expect(200).json();
        status["listen"].as_array().unwrap().contains(&json!(format!("metrics:{address}")))
    };
    assert!(!listens(&mut client));
    drop(taken);
    let samples = wait_for("metrics on the freed port", || {
        let mut metrics = Client::new(Address::Tcp(address));
        metrics.try_call(&Request::get("/livez")).ok()?;
        Some(scrape(&mut metrics))
    });
    assert_eq!(samples["marketplace_agents_online"], 1.0);
    wait_for("the status to tell", || listens(&mut client).then_some(()));
    sidecar.stop();
}
