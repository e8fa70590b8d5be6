//! A day of a marketplace through the real binary: every query's answer is that of a naive model kept beside it.
//!
//! The model shares nothing with the crate: its amounts are integers of its own reading, its lists are filtered and
//! sorted from scratch. `TRADEPOST_REGENERATE=1` writes the data set anew when its generator was changed.

mod common;
#[path = "data/generate.rs"]
mod generate;
#[path = "day/model.rs"]
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use common::http::Client;
use common::sidecar::{Home, Sidecar, wait_for};
use model::{Agent, Model, TransactionQuery, shown_profile};
use serde_json::{Value, json};

const AGENTS: &str = include_str!("data/agents.json");
const TRANSACTIONS: &str = include_str!("data/transactions.ndjson");
const TRANSITIONS: &str = include_str!("data/transitions.ndjson");

#[test]
fn the_data_set_is_what_its_generator_makes() {
    let made = generate::generate();
    if std::env::var_os("TRADEPOST_REGENERATE").is_some() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        for (name, text) in [
            ("agents.json", &made.agents),
            ("transactions.ndjson", &made.transactions),
            ("transitions.ndjson", &made.transitions),
        ] {
            std::fs::write(directory.join(name), text).expect("the sources can be written");
        }
    }
    assert!(made.agents == AGENTS, "agents.json differs");
    assert!(made.transactions == TRANSACTIONS, "transactions.ndjson differs");
    assert!(made.transitions == TRANSITIONS, "transitions.ndjson differs");
}

#[test]
fn a_day_is_answered_as_the_model_answers_it() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let mut client = sidecar.client();
    let mut model = Model::default();
    register(&mut client, &mut model);
    record(&mut client, &mut model);
    decide(&sidecar, &mut model);
    wait_for_expiries(&mut client, &mut model);

    let mut client = sidecar.socket_client();
    check_status(&mut client, &model);
    check_transactions(&mut client, &model);
    check_lists_of_transactions(&mut client, &model);
    check_exports(&mut client, &model);
    check_balances(&mut client, &model);
    check_agents(&mut client, &model);
    check_searches(&mut client, &model);
    check_recommendations(&mut client, &model);
    check_single_choices(&mut client, &model);

    // The same after a kill, and a cursor of before leads on.
    let before = client.get("/v1/export/transactions").expect(200).body;
    let page = client.get("/v1/transactions?limit=1000&order=desc").expect(200).json();
    let agents_page = client.get("/v1/agents?limit=7&sort_by=score").expect(200).json();
    drop(client);
    sidecar.kill();
    home.assert_sound();
    let sidecar = home.setup().start();
    let mut client = sidecar.client();
    assert!(client.get("/v1/export/transactions").expect(200).body == before, "another export after the restart");
    check_status(&mut client, &model);
    check_balances(&mut client, &model);
    check_agents(&mut client, &model);
    let query = TransactionQuery { descending: true, ..TransactionQuery::default() };
    let next = format!("/v1/transactions?limit=1000&order=desc&cursor={}", page["next_cursor"].as_str().unwrap());
    assert_eq!(client.get(next).expect(200).json()["items"], json!(model.transactions(&query)[1_000..2_000]));
    let next = format!("/v1/agents?limit=7&sort_by=score&cursor={}", agents_page["next_cursor"].as_str().unwrap());
    let items =
        client.get(next).expect(200).json()["items"].as_array().unwrap().iter().map(shown_profile).collect::<Vec<_>>();
    assert_eq!(items, model.agents(None, None, Some("score"), false)[7..14]);
    sidecar.stop();
    home.assert_sound();
}

/// Registers every agent and sends what others made of it.
fn register(client: &mut Client, model: &mut Model) {
    let agents: Vec<Value> = serde_json::from_str(AGENTS).unwrap();
    model.node_id = client.get("/v1/status").expect(200).json()["node_id"].as_str().unwrap().to_owned();
    for entry in &agents {
        let agent = Agent::new(&entry["registration"]);
        let path = format!("/v1/agents/{}", agent.id);
        let answer = client.post("/v1/agents", &entry["registration"]).expect(201);
        assert_eq!(answer.header("location"), Some(path.as_str()));
        model.agents.insert(agent.id.clone(), agent.clone());
        let agent = model.agents.get_mut(&agent.id).unwrap();
        for outcome in entry["outcomes"].as_array().unwrap() {
            let weight = outcome.get("weight").map_or(1.0, |weight| weight.as_f64().unwrap());
            agent.outcome(outcome["success"].as_bool().unwrap(), weight);
            let shown = client.post(format!("{path}/outcomes"), outcome).expect(200).json();
            assert_eq!(model::shown_reputation(&shown), agent.reputation(), "{}", agent.id);
        }
        for delta in entry["deltas"].as_array().unwrap() {
            agent.adjust(delta.as_f64().unwrap());
            let shown = client.post(format!("{path}/reputation"), &json!({"delta": delta})).expect(200).json();
            assert_eq!(model::shown_reputation(&shown), agent.reputation(), "{}", agent.id);
        }
    }
}

/// Records the day in batches of several sizes, as arrays and as lines, with repetitions and refusals among them.
fn record(client: &mut Client, model: &mut Model) {
    let lines: Vec<&str> = TRANSACTIONS.lines().collect();
    let mut rest = &lines[..];
    for size in [1, 10, 250, 37, 500].into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (batch, later) = rest.split_at(size.min(rest.len()));
        rest = later;
        if size == 1 {
            let answer =
                client.call(&common::http::Request::new("POST", "/v1/transactions").text("application/json", batch[0]));
            let recorded = answer.expect(201).json();
            model.record(batch[0], &recorded);
            continue;
        }
        // What is wrong stands between what is right: the same again, other facts, no amount, no JSON.
        let first: Value = serde_json::from_str(batch[0]).unwrap();
        let mut other = first.clone();
        other["amount"] = json!("77777");
        let other = other.to_string();
        let mut sent = batch.to_vec();
        sent.extend([batch[0], &other, "{}"]);
        let request = common::http::Request::new("POST", "/v1/transactions/batch");
        let request = match size % 2 {
            0 => request.text("application/x-ndjson", sent.join("\n") + "\n{oops\n"),
            _ => request.text("application/json", format!("[{}, 5]", sent.join(","))),
        };
        let answer = client.call(&request).expect(200).json();
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), batch.len() + 4);
        for (line, result) in batch.iter().zip(results) {
            assert_eq!(result["status"].as_u64(), Some(201), "{result}");
            model.record(line, &result["transaction"]);
        }
        let statuses: Vec<u64> =
            results[batch.len()..].iter().map(|result| result["status"].as_u64().unwrap()).collect();
        assert_eq!(statuses, [200, 409, 400, 400]);
        assert_eq!(results[batch.len()]["transaction"], results[0]["transaction"]);
        assert_eq!(results[batch.len() + 1]["problem"]["code"], "transaction_id_conflict");
        assert_eq!(results[batch.len() + 2]["problem"]["code"], "invalid_request");
    }
    assert_eq!(model.by_id.len(), lines.len());
}

/// Takes every step, on eight connections; those of one transaction stay in order on one of them.
fn decide(sidecar: &Sidecar, model: &mut Model) {
    let steps: Vec<Value> = TRANSITIONS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut parts: Vec<Vec<&Value>> = vec![Vec::new(); 8];
    for step in &steps {
        let id = step["transaction_id"].as_str().unwrap();
        parts[id.bytes().map(usize::from).sum::<usize>() % 8].push(step);
    }
    let answers: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = parts
            .into_iter()
            .map(|part| {
                let mut client = sidecar.client();
                scope.spawn(move || {
                    let answer = |step: &'_ Value| {
                        let id = step["transaction_id"].as_str().unwrap();
                        let path = format!("/v1/transactions/{id}/{}", step["step"].as_str().unwrap());
                        match &step["body"] {
                            Value::Null => client.post_nothing(path),
                            body => client.post(path, body),
                        }
                    };
                    let answers: Vec<_> = part.iter().copied().map(answer).collect();
                    part.into_iter().zip(answers).collect::<Vec<_>>()
                })
            })
            .collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut seen = BTreeSet::new();
    for (step, answer) in answers {
        let expected = model.decide(step);
        assert_eq!(answer.status, expected, "{step} {}", answer.text());
        seen.insert((step["step"].as_str().unwrap().to_owned(), expected));
        match expected {
            200 => model.decided(step, &answer.json()),
            _ => assert_eq!(answer.json()["code"], "invalid_transaction_state"),
        }
    }
    // Every transition both allowed and refused, or the day was too quiet.
    for step in ["settle", "cancel", "dispute", "evidence", "resolve"] {
        for status in [200, 409] {
            assert!(seen.contains(&(step.to_owned(), status)), "{step} was never answered {status}");
        }
    }
}

fn wait_for_expiries(client: &mut Client, model: &mut Model) {
    for agent in model.agents.values_mut().filter(|agent| agent.ttl == 1) {
        wait_for("a lease to run out", || {
            let profile = client.get(format!("/v1/agents/{}", agent.id)).expect(200).json();
            (profile["lease"]["state"] == "expired").then_some(())
        });
        agent.live = false;
    }
}

fn check_status(client: &mut Client, model: &Model) {
    let status = client.get("/v1/status").expect(200).json();
    let events: usize = model.by_id.values().map(|transaction| transaction.events.len()).sum();
    assert_eq!(status["store"]["agents"].as_u64(), Some(model.agents.len() as u64));
    assert_eq!(status["store"]["transactions"].as_u64(), Some(model.by_id.len() as u64));
    assert_eq!(status["store"]["events"].as_u64(), Some(events as u64));
    assert_eq!(status["node_id"], model.node_id.as_str());
    assert_eq!(model.node_id.as_bytes()[14], b'7', "a node id is a UUIDv7: {}", model.node_id);
}

/// Each transaction by itself, its events, its settlement payload.
fn check_transactions(client: &mut Client, model: &Model) {
    for (id, transaction) in model.by_id.iter().step_by(3) {
        assert_eq!(client.get(format!("/v1/transactions/{id}")).expect(200).json(), transaction.shown(), "{id}");
        let events = client.get(format!("/v1/transactions/{id}/events")).expect(200).json();
        model.check_events(transaction, events["items"].as_array().unwrap());
        let settlement = client.get(format!("/v1/transactions/{id}/settlement"));
        match transaction.settlement() {
            Some(payload) => assert_eq!(settlement.expect(200).json(), payload),
            None => assert_eq!(settlement.expect(409).json()["code"], "invalid_transaction_state"),
        }
    }
}

/// Walks a list to its end.
fn pages(client: &mut Client, path: &str, limit: usize) -> Vec<Value> {
    let joint = if path.contains('?') { '&' } else { '?' };
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(format!("{path}{joint}limit={limit}{cursor}")).expect(200).json();
        let found = page["items"].as_array().unwrap();
        assert!(found.len() <= limit, "{path}: {} items", found.len());
        items.extend(found.iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

fn transaction_queries(model: &Model) -> Vec<TransactionQuery> {
    let mut times: Vec<&str> = model.by_id.values().map(|transaction| transaction.created_at.as_str()).collect();
    times.sort_unstable();
    let (early, late) = (times[times.len() / 4].to_owned(), times[times.len() * 3 / 4].to_owned());
    let windows = [(None, None), (Some(early.clone()), Some(late.clone())), (Some(late), None), (None, Some(early))];
    let sides = [
        (None, None),
        (Some("agent-07"), None),
        (Some("agent-07"), Some("payer")),
        (Some("agent-07"), Some("provider")),
        (Some("Outsider_3"), None),
        (Some("nobody"), None),
    ];
    let statuses = [None, Some("pending"), Some("settled"), Some("cancelled"), Some("disputed")];
    let mut queries = Vec::new();
    for (window, (since, until)) in windows.iter().enumerate() {
        for (side, (agent, role)) in sides.iter().enumerate() {
            for (turn, status) in statuses.iter().enumerate() {
                for capability in [None, Some("python")] {
                    queries.push(TransactionQuery {
                        agent: *agent,
                        role: *role,
                        status: *status,
                        capability,
                        since: since.clone(),
                        until: until.clone(),
                        descending: (window + side + turn) % 2 == 1,
                    });
                }
            }
        }
    }
    queries
}

fn check_lists_of_transactions(client: &mut Client, model: &Model) {
    for (turn, query) in transaction_queries(model).iter().enumerate() {
        let expected = model.transactions(query);
        // Small pages where there are few, so that there are some pages but not thousands.
        let limit = (expected.len() / [3, 7][turn % 2]).clamp(1, 1_000);
        let items = pages(client, &query.on("/v1/transactions"), limit);
        assert!(items == expected, "{query:?} by {limit}: {} items, not {}", items.len(), expected.len());
    }
    let everything = TransactionQuery::default();
    assert_eq!(
        client.get("/v1/transactions").expect(200).json()["items"],
        json!(model.transactions(&everything)[..100])
    );
    // Names are read as they are written elsewhere, and times with any offset.
    let shouted = client.get("/v1/transactions?capability=%20PYTHON&limit=1000").expect(200).json();
    let python = TransactionQuery { capability: Some("python"), ..TransactionQuery::default() };
    assert_eq!(shouted["items"], json!(model.transactions(&python)));
}

fn check_exports(client: &mut Client, model: &Model) {
    for query in transaction_queries(model).iter().step_by(2) {
        let answer = client.get(query.on("/v1/export/transactions")).expect(200);
        assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
        assert!(answer.lines() == model.transactions(query), "{query:?}");
    }
}

fn check_balances(client: &mut Client, model: &Model) {
    let outsiders = (0..8).map(|number| format!("Outsider_{number}"));
    for id in model.agents.keys().cloned().chain(outsiders).chain(["nobody".to_owned()]) {
        let balance = client.get(format!("/v1/agents/{id}/balance")).expect(200).json();
        assert_eq!(balance, model.balance(&id), "{id}");
    }
}

fn check_agents(client: &mut Client, model: &Model) {
    for agent in model.agents.values() {
        let answer = client.get(format!("/v1/agents/{}", agent.id)).expect(200);
        assert_eq!(answer.header("etag"), Some("\"1\""));
        assert_eq!(shown_profile(&answer.json()), model.profile(agent));
    }
    assert_eq!(client.get("/v1/capabilities").expect(200).json(), model.capabilities());
    for capability in [None, Some("python"), Some("übersetzung"), Some("nothing")] {
        for availability in [None, Some("online"), Some("busy"), Some("offline"), Some("maintenance")] {
            for sort_by in [None, Some("score"), Some("cost"), Some("availability")] {
                for include_expired in [false, true] {
                    let expected = model.agents(capability, availability, sort_by, include_expired);
                    let mut path = format!("/v1/agents?include_expired={include_expired}");
                    for (name, value) in
                        [("capability", capability), ("availability", availability), ("sort_by", sort_by)]
                    {
                        if let Some(value) = value {
                            path += &format!("&{name}={}", model::escape(value));
                        }
                    }
                    for limit in [7, 1_000] {
                        let items: Vec<Value> = pages(client, &path, limit).iter().map(shown_profile).collect();
                        assert_eq!(items, expected, "{path} by {limit}");
                    }
                }
            }
        }
    }
}

fn check_searches(client: &mut Client, model: &Model) {
    let search = |client: &mut Client, query: &str| -> Vec<Value> {
        let answer = client.get(format!("/v1/discovery/search{query}")).expect(200).json();
        answer["items"].as_array().unwrap().iter().map(shown_profile).collect()
    };
    assert_eq!(search(client, ""), Vec::<Value>::new());
    for capabilities in [&["python"][..], &["sql", "rust"], &["LAW", "python", " vision"], &["nothing"]] {
        for max_cost in [None, Some("0"), Some("1.25"), Some("1e1")] {
            for currency in [None, Some("USD"), Some("TOKEN2"), Some("NONE")] {
                for availability in [None, Some("online"), Some("busy")] {
                    for (min_score, limit) in
                        [(None, None), (Some("1"), None), (Some("0.25"), Some("2")), (None, Some("1"))]
                    {
                        let expected = model.search(
                            capabilities,
                            max_cost,
                            currency,
                            availability,
                            min_score,
                            limit.map_or(100, |limit| limit.parse().unwrap()),
                        );
                        let mut query = String::from("?");
                        for capability in capabilities {
                            query += &format!("&capability={}", model::escape(capability));
                        }
                        for (name, value) in [
                            ("max_cost", max_cost),
                            ("currency", currency),
                            ("availability", availability),
                            ("min_score", min_score),
                            ("limit", limit),
                        ] {
                            if let Some(value) = value {
                                query += &format!("&{name}={value}");
                            }
                        }
                        assert_eq!(search(client, &query), expected, "{query}");
                    }
                }
            }
        }
    }
}

/// Each answer is in rank order, and nobody is a visit ahead of anybody else by more than one.
fn check_recommendations(client: &mut Client, model: &Model) {
    for capability in model.all_capabilities() {
        for include_busy in [false, true] {
            let ranked = model.recommendable(&capability, include_busy);
            for top_n in [1, 3, 100] {
                let mut visits: BTreeMap<&str, usize> = ranked.iter().map(|id| (id.as_str(), 0)).collect();
                // From the start of a round to the start of another, whatever was asked for before.
                for call in 0..ranked.len() {
                    let path = format!(
                        "/v1/discovery/recommend?capability={}&top_n={top_n}&include_busy={include_busy}",
                        model::escape(&capability)
                    );
                    let answer = client.get(path).expect(200).json();
                    let ids: Vec<&str> = answer["items"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|item| item["agent_id"].as_str().unwrap())
                        .collect();
                    assert_eq!(ids.len(), top_n.min(ranked.len()), "{capability} {call}");
                    let places: Vec<usize> =
                        ids.iter().map(|id| ranked.iter().position(|ranked| ranked == id).unwrap()).collect();
                    assert!(places.is_sorted_by(|a, b| a < b), "{capability}: {ids:?} of {ranked:?}");
                    for id in ids {
                        *visits.get_mut(id).unwrap() += 1;
                    }
                    let (least, most) = (visits.values().min().unwrap(), visits.values().max().unwrap());
                    assert!(most - least <= 1, "{capability}, call {call} of {top_n}: {visits:?}");
                }
                assert!(visits.values().all(|visits| *visits == top_n.min(ranked.len())), "{capability}: {visits:?}");
            }
        }
    }
    let nobody = client.get("/v1/discovery/recommend?capability=nothing").expect(200).json();
    assert_eq!(nobody, json!({"items": []}));
}

fn check_single_choices(client: &mut Client, model: &Model) {
    for capability in model.all_capabilities().into_iter().chain(["nothing".to_owned()]) {
        let query = format!("capability={}", model::escape(&capability));
        let answer = client.get(format!("/v1/discovery/least-loaded?{query}"));
        match model.least_loaded(&capability) {
            Some(profile) => assert_eq!(shown_profile(&answer.expect(200).json()), profile, "{capability}"),
            None => assert_eq!(answer.expect(404).json()["code"], "no_match", "{capability}"),
        }
        check_random(client, &format!("?{query}"), &model.takes_work(Some(&capability)));
    }
    check_random(client, "", &model.takes_work(None));
}

/// Only those that may be drawn are drawn, and all of them are: to miss one of n in 30 n draws happens once in 10^13 n.
fn check_random(client: &mut Client, query: &str, candidates: &BTreeSet<String>) {
    if candidates.is_empty() {
        assert_eq!(client.get(format!("/v1/discovery/random{query}")).expect(404).json()["code"], "no_match");
        return;
    }
    let drawn: BTreeSet<String> = (0..candidates.len() * 30)
        .map(|_| {
            let profile = client.get(format!("/v1/discovery/random{query}")).expect(200).json();
            profile["agent_id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(drawn, *candidates, "{query}");
}
