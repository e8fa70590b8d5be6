//! A month offline: how fast a backlog drains, beside the fastest way into the same tables.

use std::time::Instant;

use tradepost::domain::NewTransaction;

use super::common::facts;
use super::common::postgres::Postgres;
use super::common::sidecar::wait_for;
use super::node::Node;

const TRANSACTIONS: usize = 100_000;

#[test]
fn a_backlog_drains_at_a_fair_part_of_the_speed_of_copy() {
    let server = Postgres::start_with(&["max_wal_size=4GB", "autovacuum=off"]);
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
    let started = Instant::now();
    node.replicate(&url, None);
    let acked = || node.engine.postgres_state().expect("the store answers").acked_seq;
    let reached = |tenths: u64| {
        wait_for("the drain", || (acked() >= TRANSACTIONS as u64 * tenths / 10).then_some(()));
        started.elapsed()
    };
    let first = reached(1);
    let (ninth, last) = (reached(9), reached(10));
    node.drained();
    node.isolate();

    let copy = server.directory().join("copy");
    server.sql("market", &format!("COPY marketplace_transactions TO '{0}1'; COPY marketplace_transaction_events (event_id,
        transaction_id, payer_agent, provider_agent, recorded_by, facts, kind, round, payload, occurred_at, node_id, node_seq, hash)
        TO '{0}2'", copy.display()));
    server.sql("market", "TRUNCATE marketplace_transactions, marketplace_transaction_events");
    let copying = Instant::now();
    server.sql("market", &format!("COPY marketplace_transactions FROM '{0}1'; COPY marketplace_transaction_events (event_id,
        transaction_id, payer_agent, provider_agent, recorded_by, facts, kind, round, payload, occurred_at, node_id, node_seq, hash)
        FROM '{0}2'", copy.display()));
    let copied = copying.elapsed();
    let ratio = copied.as_secs_f64() / last.as_secs_f64();
    println!(
        "{TRANSACTIONS} transactions: drained in {last:?} (first tenth {first:?}, last tenth {:?}), copied in {copied:?}: \
         {:.2} of its speed",
        last - ninth,
        ratio
    );
    assert!(ratio >= 0.3, "{ratio}");
    assert!(last - ninth <= first.mul_f64(1.25), "the last tenth is as fast as the first");
}
