//! A backlog of many batches, as after a month offline, drains by itself, and all of it is there; so does what was set
//! aside. How fast, `cargo bench --bench sync` measures.

use tradepost::domain::{Decision, NewTransaction};
use tradepost::engine::replica::SinkRequest;

use super::common::facts;
use super::common::postgres::Postgres;
use super::common::sidecar::wait_for;
use super::node::Node;

const TRANSACTIONS: usize = 20_000;

#[test]
fn a_backlog_of_many_batches_drains_to_the_last_event() {
    let server = Postgres::start_with(&["max_wal_size=4GB"]);
    let url = server.database("market");
    let home = tempfile::tempdir().expect("there is room");
    let mut node = Node::open(&home.path().join("a.redb"), "genesis");
    for batch in 0..TRANSACTIONS / 5_000 {
        let new = |number| NewTransaction {
            transaction_id: None,
            facts: facts("genesis", &format!("agent{}", number % 97), "python", &format!("{batch}.{number:04}1")),
        };
        node.engine.record_batch((0..5_000).map(new).collect()).wait().expect("they are recorded");
    }
    node.replicate(&url, None);
    node.drained();
    node.isolate();
    for table in ["marketplace_transactions", "marketplace_transaction_events"] {
        assert_eq!(server.sql("market", &format!("SELECT count(*) FROM {table}")), TRANSACTIONS.to_string(), "{table}");
    }
}

#[test]
fn what_is_parked_is_delivered_in_batches_that_hold_no_more_than_any_other() {
    const LARGE: usize = 30;
    let server = Postgres::start();
    let url = server.database("market");
    let home = tempfile::tempdir().expect("there is room");
    let node = Node::start(&home.path().join("a.redb"), "genesis", &url);
    for number in 0..LARGE {
        node.record(&format!("t{number}"), "genesis", "thon", "1");
    }
    node.drained();
    server.sql("market", "ALTER TABLE marketplace_transaction_events ADD CONSTRAINT calm CHECK (kind <> 'disputed')");
    for number in 0..LARGE {
        let evidence = (0..250).map(|piece| format!("{number} {piece} {}", "x".repeat(4_000))).collect();
        node.decide(&format!("t{number}"), Decision::Dispute { reason: None, evidence });
    }
    wait_for("all of them to be parked", || (node.parked() == LARGE as u64).then_some(()));
    server.sql("market", "ALTER TABLE marketplace_transaction_events DROP CONSTRAINT calm");
    node.ask(SinkRequest::Retry);
    wait_for("all of them to be delivered", || (node.parked() == 0).then_some(()));
    let largest = server.sql(
        "market",
        "SELECT max(bytes) FROM (SELECT sum(length(payload::text)) AS bytes FROM marketplace_transaction_events
                                  WHERE kind = 'disputed' GROUP BY xid) batches",
    );
    let largest: usize = largest.parse().expect("a number");
    assert!((4_000_000..=10_000_000).contains(&largest), "one batch held {largest} bytes");
}
