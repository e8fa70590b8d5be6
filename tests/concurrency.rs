//! Many clients of the real binary at once: nothing is lost, nothing is counted twice, exactly one wins.

mod common;

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;

use common::http::{Client, Request};
use common::sidecar::{Home, Setup, Sidecar};
use serde_json::{Value, json};

/// Runs the same work on several connections that start together; gives what each came to, in the order of their number.
fn at_once<T: Send>(sidecar: &Sidecar, threads: usize, work: impl Fn(usize, &mut Client) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        let (start, work) = (&start, &work);
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let mut client = sidecar.client();
                scope.spawn(move || {
                    start.wait();
                    work(number, &mut client)
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("its assertions hold")).collect()
    })
}

fn agent(id: &str) -> Value {
    json!({"agent_id": id, "name": id, "capabilities": ["python"], "cost_per_task": "1"})
}

fn transaction(id: &str) -> Value {
    json!({"transaction_id": id, "payer_agent": "genesis", "provider_agent": "thon", "capability": "python", "amount": "0.1"})
}

/// Every value of `field` in a list, over all of its pages.
fn all(client: &mut Client, path: &str, field: &str) -> Vec<String> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(format!("{path}?limit=300{cursor}")).expect(200).json();
        let items = page["items"].as_array().expect("a list");
        found.extend(items.iter().map(|item| item[field].as_str().expect("a text").to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return found,
        }
    }
}

#[test]
fn a_thousand_registrations_from_ten_threads_are_all_there() {
    let home = Home::new();
    let sidecar = home.setup().start();
    at_once(&sidecar, 10, |thread, client| {
        for number in 0..100 {
            client.post("/v1/agents", &agent(&format!("agent-{thread}-{number:03}"))).expect(201);
        }
    });
    let expected: Vec<String> =
        (0..10).flat_map(|thread| (0..100).map(move |number| format!("agent-{thread}-{number:03}"))).collect();
    let mut client = sidecar.client();
    assert_eq!(all(&mut client, "/v1/agents", "agent_id"), expected);
    assert_eq!(client.get("/v1/capabilities").expect(200).json(), json!({"python": 1_000}));
    assert_eq!(client.get("/v1/status").expect(200).json()["store"]["agents"].to_string(), "1000");
    sidecar.kill();
    home.assert_sound();
    let sidecar = home.setup().start();
    assert_eq!(all(&mut sidecar.client(), "/v1/agents", "agent_id"), expected);
}

#[test]
fn the_same_agent_registered_by_ten_threads_is_registered_once() {
    let sidecar = Setup::in_memory().start();
    let mut statuses = at_once(&sidecar, 10, |_, client| client.post("/v1/agents", &agent("thon")).status);
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409, 409, 409]);
}

#[test]
fn two_threads_with_a_thousand_outcomes_each_on_one_agent_make_exact_totals() {
    let home = Home::new();
    let sidecar = home.setup().start();
    sidecar.client().post("/v1/agents", &agent("thon")).expect(201);
    let outcomes = 1_000;
    at_once(&sidecar, 2, |thread, client| {
        for _ in 0..outcomes {
            client.post("/v1/agents/thon/outcomes", &json!({"success": thread == 0, "weight": 0.5})).expect(200);
        }
    });
    let totals = |client: &mut Client| {
        let reputation = client.get("/v1/agents/thon").expect(200).json()["reputation"].clone();
        ["total_feedback", "successful_tasks", "failed_tasks"].map(|count| reputation[count].as_u64().expect("a count"))
    };
    assert_eq!(totals(&mut sidecar.client()), [2 * outcomes, outcomes, outcomes]);
    sidecar.kill();
    home.assert_sound();
    assert_eq!(totals(&mut home.setup().start().client()), [2 * outcomes, outcomes, outcomes]);
}

#[test]
fn a_thousand_transactions_from_ten_threads_are_all_there_and_sum_up() {
    let home = Home::new();
    let sidecar = home.setup().start();
    at_once(&sidecar, 10, |thread, client| {
        for number in 0..100 {
            client.post("/v1/transactions", &transaction(&format!("t-{thread}-{number}"))).expect(201);
        }
    });
    let mut client = sidecar.client();
    let found = all(&mut client, "/v1/transactions", "transaction_id");
    let expected: BTreeSet<String> =
        (0..10).flat_map(|thread| (0..100).map(move |number| format!("t-{thread}-{number}"))).collect();
    assert_eq!(found.len(), 1_000);
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    // A thousand times 0.1, which no sum of doubles gets right.
    let balance = client.get("/v1/agents/genesis/balance").expect(200).json();
    assert_eq!(balance["USD"]["paid"], json!({"pending": "100", "settled": "0", "disputed": "0"}));
    sidecar.kill();
    home.assert_sound();
}

#[test]
fn minted_ids_never_meet() {
    let sidecar = Setup::in_memory().start();
    let minted = at_once(&sidecar, 10, |_, client| {
        let body = json!({"payer_agent": "a", "provider_agent": "b", "capability": "c", "amount": 1});
        let mint = |client: &mut Client| {
            let recorded = client.post("/v1/transactions", &body).expect(201).json();
            recorded["transaction_id"].as_str().expect("an id").to_owned()
        };
        (0..100).map(|_| mint(client)).collect::<Vec<_>>()
    });
    let ids: BTreeSet<String> = minted.into_iter().flatten().collect();
    assert_eq!(ids.len(), 1_000);
    for id in ids {
        assert!(id.len() == 32 && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{id}");
        assert_eq!(&id[12..13], "7", "{id} is no UUIDv7");
    }
}

#[test]
fn five_hundred_transactions_are_settled_from_five_threads() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let batch: Vec<Value> = (0..500).map(|number| transaction(&format!("t-{number}"))).collect();
    sidecar.client().post("/v1/transactions/batch", &json!(batch)).expect(200);
    at_once(&sidecar, 5, |thread, client| {
        for number in (thread * 100)..(thread * 100 + 100) {
            let settled = client.post_nothing(format!("/v1/transactions/t-{number}/settle")).expect(200).json();
            assert_eq!(settled["status"], "settled");
        }
    });
    let mut client = sidecar.client();
    assert_eq!(client.get("/v1/export/transactions?status=settled").expect(200).lines().len(), 500);
    let balance = client.get("/v1/agents/thon/balance").expect(200).json();
    assert_eq!(balance["USD"]["earned"], json!({"pending": "0", "settled": "50", "disputed": "0"}));
    sidecar.kill();
    home.assert_sound();
}

#[test]
fn of_eight_threads_that_settle_the_same_transaction_exactly_one_wins() {
    let sidecar = Setup::in_memory().start();
    for round in 0..20 {
        let id = format!("t-{round}");
        sidecar.client().post("/v1/transactions", &transaction(&id)).expect(201);
        let mut statuses = at_once(&sidecar, 8, |_, client| {
            let answer = client.post_nothing(format!("/v1/transactions/{id}/settle"));
            if answer.status == 409 {
                assert_eq!(answer.json()["code"], "invalid_transaction_state");
            }
            answer.status
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409], "round {round}");
        let events = sidecar.client().get(format!("/v1/transactions/{id}/events")).expect(200).json();
        assert_eq!(events["items"].as_array().map(Vec::len), Some(2), "{events}");
    }
}

#[test]
fn one_idempotency_key_from_eight_threads_records_once() {
    let sidecar = Setup::in_memory().start();
    let body = json!({"payer_agent": "a", "provider_agent": "b", "capability": "c", "amount": "0.7"});
    let answers = at_once(&sidecar, 8, |_, client| {
        let answer =
            client.call(&Request::post("/v1/transactions", &body).header("Idempotency-Key", "once")).expect(201);
        (answer.json()["transaction_id"].clone(), answer.header("idempotent-replayed").is_some())
    });
    assert!(answers.iter().all(|(id, _)| *id == answers[0].0), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, replayed)| !replayed).count(), 1, "{answers:?}");
    let balance = sidecar.client().get("/v1/agents/a/balance").expect(200).json();
    assert_eq!(balance["USD"]["paid"]["pending"], "0.7");
}
