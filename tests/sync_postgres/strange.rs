//! Rows that nobody who keeps our rules would write: one of them stands in nobody else's way.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tradepost::domain::{CopyNumber, TransactionId};
use tradepost::engine::replica::SinkState;
use tradepost::store::verify;

use super::common::postgres::Postgres;
use super::common::sidecar::wait_for;
use super::node::Node;

/// How often the nodes here look for what older clients did.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

struct Market {
    server: Postgres,
    url: String,
    home: TempDir,
}

impl Market {
    /// With its tables, which nobody follows yet.
    fn open() -> Self {
        let server = Postgres::start();
        let url = server.database("market");
        let market = Self { server, url, home: tempfile::tempdir().expect("there is room") };
        let first = Node::start(&market.file("first"), "mira", &market.url);
        wait_for("the tables", || (first.state() == SinkState::Live).then_some(()));
        market
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(format!("{name}.redb"))
    }

    /// The provider's node, which looks for what older clients did.
    fn provider(&self) -> Node {
        let mut node = Node::open(&self.file("b"), "thon");
        node.replicate(&self.url, Some(SWEEP_EVERY));
        node
    }

    fn sql(&self, sql: &str) -> String {
        self.server.sql("market", sql)
    }

    /// A row as an older client writes it; `status` and `evidence` are SQL.
    fn row(&self, id: &str, status: &str, evidence: &str) {
        self.sql(&format!(
            "INSERT INTO marketplace_transactions VALUES ('{id}', '2024-01-02 03:04:05', 'old', 'thon', 'python', 1,
                                                          'USD', {status}, '{{}}', {evidence})"
        ));
    }
}

fn holds(node: &Node, id: &str) -> bool {
    node.engine.transaction(&TransactionId::from_stored(id)).is_ok()
}

/// Waits until the provider shows `id`, follows its agent and is live, and sees what comes afterwards too.
#[track_caller]
fn flows(market: &Market, node: &Node, id: &str) {
    wait_for(id, || holds(node, id).then_some(()));
    wait_for("the agent to be covered", || {
        let agents = node.engine.ledger_agents().expect("the store answers");
        agents.iter().all(|agent| agent.covered).then_some(())
    });
    wait_for("it to be live", || (node.state() == SinkState::Live).then_some(()));
    let other = Node::start(&market.file("a"), "genesis", &market.url);
    other.record("later", "genesis", "thon", "1");
    wait_for("what comes later", || holds(node, "later").then_some(()));
    node.record("own", "thon", "genesis", "1");
    wait_for("our own", || holds(&other, "own").then_some(()));
}

#[test]
fn a_row_or_an_event_larger_than_any_may_be_harms_nobody() {
    let market = Market::open();
    market.row("a large row", "'pending'", "jsonb_build_array(repeat('x', 9000000))");
    market.row("a small row", "'pending'", "'[\"receipt\"]'");
    let large = "SELECT md5(evidence::text), xmin FROM marketplace_transactions WHERE transaction_id = 'a large row'";
    let before = market.sql(large);
    let node = market.provider();
    flows(&market, &node, "a small row");
    market.sql(
        "INSERT INTO marketplace_transaction_events (event_id, transaction_id, payer_agent, provider_agent, recorded_by,
                facts, kind, round, payload, occurred_at, node_id, node_seq, hash)
         SELECT gen_random_uuid(), transaction_id, payer_agent, provider_agent, recorded_by, facts, 'evidence_added', 0,
                jsonb_build_object('evidence', jsonb_build_array(repeat('x', 9000000))), now(), gen_random_uuid(), 1, ''
           FROM marketplace_transaction_events WHERE transaction_id = 'a small row' AND kind = 'recorded'",
    );
    let other = Node::start(&market.file("a"), "genesis", &market.url);
    other.record("last", "genesis", "thon", "1");
    wait_for("what comes last", || holds(&node, "last").then_some(()));
    assert!(!holds(&node, "a large row"));
    assert_eq!(market.sql(large), before, "it stays as it is");
    let transaction = node.engine.transaction(&TransactionId::from_stored("a small row")).expect("it can be read");
    assert_eq!(transaction.evidence, ["receipt"]);
    let copies = node.engine.copies_after(CopyNumber(0), 1_000, usize::MAX);
    assert!(
        copies.expect("all can be read").iter().all(|(_, entry)| entry.event.transaction_id.as_str() != "a large row")
    );
    let report = verify(&node.close(), &mut |_, _, _| {}).expect("the file opens");
    assert!(report.is_clean(), "{:#?}", report.findings);
}

#[test]
fn a_row_without_a_status_harms_nobody() {
    let market = Market::open();
    market.sql("ALTER TABLE marketplace_transactions ALTER COLUMN status DROP NOT NULL");
    market.row("a row without", "NULL", "'[]'");
    market.row("a row with", "'pending'", "'[]'");
    let node = market.provider();
    flows(&market, &node, "a row with");
    assert!(!holds(&node, "a row without"));
}

#[test]
fn a_row_whose_adoption_is_refused_harms_nobody() {
    let market = Market::open();
    market.row("a refused row", "'pending'", "'[]'");
    market.row("a row that is taken", "'pending'", "'[]'");
    market.sql(
        "ALTER TABLE marketplace_transaction_events
           ADD CONSTRAINT picky CHECK (transaction_id <> 'a refused row') NOT VALID",
    );
    let node = market.provider();
    flows(&market, &node, "a row that is taken");
    assert!(!holds(&node, "a refused row"));
}
