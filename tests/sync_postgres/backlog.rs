//! A month offline: a backlog of many batches drains by itself, and all of it is there. How fast, `cargo bench --bench sync`
//! measures.

use tradepost::domain::NewTransaction;

use super::common::facts;
use super::common::postgres::Postgres;
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
