//! Entries that PostgreSQL refuses for their own content, or for a while: set aside and shown, the rest goes on, and
//! they are delivered when the cause is gone.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::common::central::{Central, Decision, decide, record, register, sink, view, wait_until_central};
use super::common::http::{Client, Request};
use super::common::postgres::psql;
use super::common::sidecar::{Home, Sidecar, tradepost, wait_for};
use super::market::{DATABASE, HEALED_WITHIN};

/// How long a thing may take that does not wait for anybody, on a machine that is busy.
const SECONDS: Duration = Duration::from_secs(15);

fn record_of(transaction_id: &str, amount: &str) -> Request {
    let body = json!({
        "transaction_id": transaction_id, "payer_agent": "genesis", "provider_agent": "thon", "capability": "sql",
        "amount": amount,
    });
    Request::post("/v1/transactions", &body)
}

fn parked(client: &mut Client) -> Vec<Value> {
    let answer = client.get("/v1/sync/postgres/parked?limit=1000").expect(200).json();
    answer["items"].as_array().expect("a list").clone()
}

fn finality(sidecar: &Sidecar, id: &str) -> Value {
    view(&mut sidecar.client(), id).expect("it was recorded")["finality"].clone()
}

/// The command line's answer about a sink.
fn cli(sidecar: &Sidecar, words: &[&str]) -> String {
    let url = format!("http://{}", sidecar.address);
    let output = tradepost().args(words).args(["--url", &url]).output().expect("the binary runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    out.into_owned()
}

#[test]
fn one_row_in_a_hundred_that_a_constraint_refuses_is_parked_with_the_reason_and_delivered_when_it_may_be() {
    let central = Central::start();
    let home = Home::new();
    let sidecar = central.setup(&home).start();
    register(&mut sidecar.client(), "thon", "sql");
    wait_until_central(&sidecar);
    central.sql("ALTER TABLE marketplace_transactions ADD CONSTRAINT no_devil CHECK (amount <> 666)");

    thread::scope(|scope| {
        for hundred in 0..10 {
            let mut client = sidecar.client();
            scope.spawn(move || {
                for number in hundred * 100..hundred * 100 + 100 {
                    let amount = if number % 100 == 37 { "666" } else { "2.50" };
                    client.call(&record_of(&format!("order-{number}"), amount)).expect(201);
                }
            });
        }
    });
    let mut client = sidecar.client();
    wait_until_central(&sidecar);
    assert_eq!(central.sql("SELECT count(*) FROM marketplace_transactions"), "990");
    assert_eq!(central.sql("SELECT count(*) FROM marketplace_transaction_events"), "990");
    assert_eq!(sink(&sidecar, "postgres")["parked"], 10);
    let listed = parked(&mut client);
    assert_eq!(listed.len(), 10);
    for entry in &listed {
        assert_eq!(entry["code"], "23514", "{entry}");
        assert!(entry["reason"].as_str().is_some_and(|reason| reason.contains("no_devil")), "{entry}");
    }
    let shown = cli(&sidecar, &["sync", "status", "postgres"]);
    for word in ["no_devil", "23514", listed[0]["entry"].as_str().expect("it is named")] {
        assert!(shown.contains(word), "no {word} in:\n{shown}");
    }
    assert_eq!(finality(&sidecar, "order-37"), "local");
    assert_eq!(finality(&sidecar, "order-38"), "central");

    // What comes later to a transaction that is refused is refused with it, and stands in nobody's way.
    assert_eq!(decide(&mut client, "order-37", &Decision::Settle), 200);
    assert_eq!(decide(&mut client, "order-38", &Decision::Settle), 200);
    wait_for("the decision that may be", || (central.row_status("order-38") == "settled").then_some(()));
    wait_for("the decision that may not", || (sink(&sidecar, "postgres")["parked"] == 11).then_some(()));

    cli(&sidecar, &["sync", "retry", "postgres"]);
    wait_for("another try in vain", || {
        let tried = parked(&mut client);
        (tried.len() == 11 && tried.iter().all(|entry| entry["attempts"].as_u64() >= Some(2))).then_some(())
    });
    central.sql("ALTER TABLE marketplace_transactions DROP CONSTRAINT no_devil");
    let begun = Instant::now();
    cli(&sidecar, &["sync", "retry", "postgres"]);
    wait_for("what was parked", || {
        (central.sql("SELECT count(*) FROM marketplace_transactions") == "1000"
            && sink(&sidecar, "postgres")["parked"] == 0)
            .then_some(())
    });
    assert!(begun.elapsed() < SECONDS, "{:?}", begun.elapsed());
    assert_eq!(central.sql("SELECT count(*) FROM marketplace_transaction_events"), "1002");
    assert_eq!(central.row_status("order-37"), "settled");
    assert_eq!(finality(&sidecar, "order-37"), "central");
    assert_eq!(parked(&mut client), Vec::<Value>::new());
    sidecar.stop();
    home.assert_sound();
}

#[test]
fn a_row_that_somebody_keeps_locked_is_parked_and_delivered_when_it_is_free_and_nothing_waits_for_it() {
    let central = Central::start();
    let home = Home::new();
    let sidecar = central.setup(&home).start();
    let mut client = sidecar.client();
    register(&mut client, "thon", "sql");
    record(&mut client, "kept", "genesis", "thon");
    wait_until_central(&sidecar);

    let url = central.postgres.url(DATABASE);
    let locks = "BEGIN; SELECT FROM marketplace_transactions WHERE transaction_id = 'kept' FOR UPDATE;
                 SET application_name = 'holder'; SELECT pg_sleep(300)";
    let holder = thread::spawn(move || drop(psql(&url, locks)));
    let is_held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holder' AND wait_event = 'PgSleep'";
    wait_for("the lock", || (central.sql(is_held) == "1").then_some(()));

    assert_eq!(decide(&mut client, "kept", &Decision::Settle), 200);
    let begun = Instant::now();
    record(&mut client, "free", "genesis", "thon");
    wait_for("the transaction that nobody locks", || (central.row_status("free") == "pending").then_some(()));
    assert!(begun.elapsed() < SECONDS, "it waited {:?} for another's lock", begun.elapsed());
    let entry = wait_for("the locked row's event to be parked", || parked(&mut client).pop());
    assert_eq!(entry["code"], "55P03", "{entry}");
    // While it is set aside it costs the others nothing.
    for number in 0..5 {
        let (id, begun) = (format!("later-{number}"), Instant::now());
        record(&mut client, &id, "genesis", "thon");
        wait_for("the next one", || (central.row_status(&id) == "pending").then_some(()));
        assert!(begun.elapsed() < SECONDS, "{id} waited {:?}", begun.elapsed());
    }
    assert_eq!(central.row_status("kept"), "pending");

    // At the worst moment: it was tried just now, in vain. At a pace of thirty seconds it came later than promised.
    central.postgres.sql("postgres", "ALTER SYSTEM SET log_statement = 'all'");
    central.postgres.sql("postgres", "SELECT pg_reload_conf()");
    let tries = || central.postgres.log().matches("FOR UPDATE SKIP LOCKED").count();
    let tried = tries();
    wait_for("another try", || (tries() > tried).then_some(()));
    central.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'");
    holder.join().expect("psql can be waited for");
    let begun = Instant::now();
    wait_for("the parked event", || (central.row_status("kept") == "settled").then_some(()));
    assert!(begun.elapsed() < HEALED_WITHIN, "it took {:?} to be tried again", begun.elapsed());
    wait_for("nothing to be parked", || (sink(&sidecar, "postgres")["parked"] == 0).then_some(()));
    sidecar.stop();
    home.assert_sound();
}

#[test]
fn a_dropped_column_halts_with_its_name_parks_nothing_and_heals_when_it_is_back() {
    let central = Central::start();
    let home = Home::new();
    let sidecar = central.setup(&home).start();
    let mut client = sidecar.client();
    register(&mut client, "thon", "sql");
    wait_until_central(&sidecar);
    for (table, column, kind) in [
        ("marketplace_transactions", "evidence", "JSONB"),
        ("marketplace_transaction_events", "hash", "BYTEA NOT NULL DEFAULT ''"),
        ("marketplace_nodes", "head_hash", "BYTEA NOT NULL DEFAULT ''"),
    ] {
        central.sql(&format!("ALTER TABLE {table} DROP COLUMN {column}"));
        let id = format!("without-{column}");
        record(&mut client, &id, "genesis", "thon");
        // It may have halted before there was anything to push.
        let shown = wait_for("the halt, and what waits", || {
            let shown = sink(&sidecar, "postgres");
            (shown["state"] == "halted" && shown["backlog"] == 1).then_some(shown)
        });
        let reason = shown["last_error"].as_str().expect("it says why");
        assert!(reason.contains(column) && reason.contains("42703"), "{reason}");
        assert_eq!(shown["parked"], 0, "{shown}");

        central.sql(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}"));
        let begun = Instant::now();
        wait_for("what waited", || (central.row_status(&id) == "pending").then_some(()));
        assert!(begun.elapsed() < HEALED_WITHIN, "{column}: it took {:?}", begun.elapsed());
        wait_until_central(&sidecar);
        assert_eq!(sink(&sidecar, "postgres")["last_error"], Value::Null);
    }
    sidecar.stop();
    home.assert_sound();
}

/// Transactions said `READ WRITE`, and so wrote on to a server that its host had made read-only before its disk was full.
#[test]
fn a_server_that_is_read_only_by_default_is_not_written_to_and_that_shows() {
    let central = Central::start();
    let home = Home::new();
    let sidecar = central.setup(&home).start();
    let mut client = sidecar.client();
    register(&mut client, "thon", "sql");
    record(&mut client, "before", "genesis", "thon");
    wait_until_central(&sidecar);
    let read_only = |value: &str| {
        central.postgres.sql("postgres", &format!("ALTER SYSTEM SET default_transaction_read_only = {value}"));
        central.postgres.sql("postgres", "SELECT pg_reload_conf()");
    };
    read_only("on");
    wait_for("the server to be read-only", || (central.sql("SHOW transaction_read_only") == "on").then_some(()));
    record(&mut client, "meanwhile", "genesis", "thon");
    let reason = wait_for("the refusal", || sink(&sidecar, "postgres")["last_error"].as_str().map(str::to_owned));
    assert!(reason.contains("25006"), "{reason}");
    assert_eq!(central.row_status("meanwhile"), "");
    assert_eq!(sink(&sidecar, "postgres")["parked"], 0);
    read_only("off");
    let begun = Instant::now();
    wait_for("what waited", || (central.row_status("meanwhile") == "pending").then_some(()));
    assert!(begun.elapsed() < HEALED_WITHIN, "{:?}", begun.elapsed());
    sidecar.stop();
    home.assert_sound();
}
