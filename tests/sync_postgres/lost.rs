//! Rows and tables that somebody took away, or keeps from taking what we write.

use tradepost::domain::{Decision, Sink};
use tradepost::engine::replica::{SinkRequest, SinkState};

use super::common::sidecar::wait_for;
use super::market::Market;
use super::node::Node;

/// Waits until the sink is halted, and its words name what is at fault.
#[track_caller]
fn halts_over(node: &Node, what: &str) {
    wait_for("the fault to show", || {
        let status = node.engine.sinks().status(Sink::Postgres);
        let named = status.last_error.as_ref().is_some_and(|words| words.contains(what));
        (status.state == SinkState::Halted && named).then_some(())
    });
}

/// A market whose only transaction is central.
fn one_recorded() -> (Market, Node) {
    let market = Market::open();
    let node = Node::start(&market.file("a"), "genesis", &market.url);
    node.record("t1", "genesis", "thon", "1");
    node.drained();
    (market, node)
}

/// What could not be pushed is, now that nothing is in the way.
#[track_caller]
fn second_arrives(market: &Market, node: &Node) {
    node.ask(SinkRequest::Retry);
    node.drained();
    assert_eq!(market.sql("SELECT count(*) FROM marketplace_transactions"), "2");
}

#[test]
fn a_row_that_was_deleted_comes_back_with_all_its_events_say() {
    let market = Market::open();
    let (mut a, b) = market.parties();
    a.record("t1", "genesis", "thon", "1");
    b.sees("t1", "the transaction", |_| true);
    a.isolate();
    b.decide("t1", Decision::Dispute { reason: None, evidence: vec!["late".into()] });
    b.drained();
    market.sql("DELETE FROM marketplace_transactions");
    // Of the dispute this node has heard nothing.
    a.decide("t1", Decision::Settle);
    a.replicate(&market.url, None);
    a.drained();
    assert_eq!(market.row("t1"), r#"disputed|["late"]"#);
    for node in [&a, &b] {
        node.sees("t1", "the dispute", |transaction| transaction.status.as_str() == "disputed");
    }
    assert_eq!(market.sql("SELECT count(*) FROM marketplace_transaction_events"), "3", "and nothing was made up");
}

#[test]
fn the_table_of_rows_is_not_replaced_by_an_empty_one_while_its_events_are_there() {
    let (market, a) = one_recorded();
    market.sql("ALTER TABLE marketplace_transactions RENAME TO somewhere_else");
    a.record("t2", "genesis", "thon", "1");
    halts_over(&a, "marketplace_transactions is gone");
    market.sql("ALTER TABLE somewhere_else RENAME TO marketplace_transactions");
    second_arrives(&market, &a);
}

#[test]
fn a_table_of_nodes_that_takes_no_update_halts_the_sink_and_says_so() {
    let (market, a) = one_recorded();
    market.sql(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER swallow BEFORE UPDATE ON marketplace_nodes FOR EACH ROW EXECUTE FUNCTION swallow()",
    );
    a.record("t2", "genesis", "thon", "1");
    halts_over(&a, "marketplace_nodes");
    market.sql("DROP TRIGGER swallow ON marketplace_nodes");
    second_arrives(&market, &a);
}
