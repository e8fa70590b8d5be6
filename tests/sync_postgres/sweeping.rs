//! What older clients did is looked for without standing in the way of anything else, whatever stands in its own way.

use std::time::Duration;

use tradepost::domain::Sink;
use tradepost::engine::replica::SinkState;
use tradepost::sync::postgres::sweep::Sweeping;

use super::common::sidecar::wait_for;
use super::market::Market;
use super::node::{HEALING, Node};

/// Nobody is said to write without events; what could not be looked at is looked at again soon.
const ONCE: Sweeping = Sweeping { every: None, retry_after: Duration::from_millis(300), time: HEALING };

/// The provider's node.
fn provider(market: &Market, sweeping: Sweeping) -> Node {
    let mut node = Node::open(&market.file("b"), "thon");
    node.replicate_sweeping(&market.url, sweeping);
    node
}

fn is_covered(node: &Node) -> bool {
    let agents = node.engine.ledger_agents().expect("the store answers");
    agents.iter().all(|agent| agent.covered)
}

/// How often the provider's events were read from the first on.
fn reads_from_the_beginning(market: &Market) -> usize {
    let log = market.server.log();
    log.lines().filter(|line| line.contains("$1 = '{thon}'") && line.contains("$4 = '0', $5 = '0'")).count()
}

#[test]
fn a_row_that_somebody_keeps_locked_is_adopted_once_it_is_free_and_nothing_is_read_again_for_it() {
    let market = Market::with_tables();
    market.write_row("a locked row", "'pending'", "'[]'");
    market.write_row("a free row", "'pending'", "'[]'");
    let runtime = super::access::runtime();
    let other = runtime.block_on(super::book::session(&market.url));
    let lock = "BEGIN; SELECT FROM marketplace_transactions WHERE transaction_id = 'a locked row' FOR UPDATE";
    runtime.block_on(other.batch(lock)).expect("it is locked");

    let node = provider(&market, ONCE);
    wait_for("the free row", || node.holds("a free row").then_some(()));
    let payer = Node::start(&market.file("a"), "genesis", &market.url);
    payer.record("new", "genesis", "thon", "1");
    wait_for("what is new", || node.holds("new").then_some(()));
    let before = market.sweeps();
    wait_for("more sweeps", || (market.sweeps() > before + 2).then_some(()));
    assert!(!node.holds("a locked row") && !is_covered(&node), "not all that older clients did is known");
    assert_eq!(reads_from_the_beginning(&market), 1);
    wait_for("the sink to be live all the same", || (node.state() == SinkState::Live).then_some(()));

    runtime.block_on(other.batch("COMMIT")).expect("it lets go");
    wait_for("the locked row", || node.holds("a locked row").then_some(()));
    wait_for("the agent to be covered", || is_covered(&node).then_some(()));
    assert_eq!(reads_from_the_beginning(&market), 1);
}

#[test]
fn a_table_that_cannot_be_searched_ends_no_read() {
    let market = Market::with_tables();
    market.write_row("a row", "'pending'", "'[]'");
    let payer = Node::start(&market.file("a"), "genesis", &market.url);
    payer.record("new", "genesis", "thon", "1");
    payer.drained();
    let runtime = super::access::runtime();
    let other = runtime.block_on(super::book::session(&market.url));
    let lock = "BEGIN; LOCK TABLE marketplace_transactions IN ACCESS EXCLUSIVE MODE";
    runtime.block_on(other.batch(lock)).expect("it is locked");

    let node = provider(&market, ONCE);
    let told = || {
        let notes = node.engine.sinks().status(Sink::Postgres).notes.clone();
        notes.iter().any(|note| note.contains("cannot be looked for")).then_some(())
    };
    wait_for("what is new", || node.holds("new").then_some(()));
    wait_for("the fault to show", told);
    assert!(!node.holds("a row") && !is_covered(&node));
    runtime.block_on(other.batch("COMMIT")).expect("it lets go");
    wait_for("the row", || node.holds("a row").then_some(()));
    wait_for("the agent to be covered", || is_covered(&node).then_some(()));
    wait_for("the note to go", || told().is_none().then_some(()));
    assert_eq!(reads_from_the_beginning(&market), 1);
}

#[test]
fn a_sweep_that_takes_long_pauses_for_what_is_new_and_goes_on_where_it_stopped() {
    const ROWS: usize = 11_000;
    let market = Market::with_tables();
    market.sql(&format!(
        "INSERT INTO marketplace_transactions
         SELECT 'old ' || i, '2024-01-02 03:04:05', 'old', 'thon', 'python', 1, 'USD', 'pending', '{{}}', '[]'
           FROM generate_series(1, {ROWS}) i"
    ));
    let payer = Node::start(&market.file("a"), "genesis", &market.url);
    payer.record("new", "genesis", "thon", "1");
    payer.drained();
    // Each sweep is over after its first step.
    let node = provider(&market, Sweeping { time: Duration::ZERO, ..ONCE });
    wait_for("what is new", || node.holds("new").then_some(()));
    assert!(!is_covered(&node), "what is old is still being adopted");
    wait_for("the agent to be covered", || is_covered(&node).then_some(()));
    wait_for("the last of them", || node.holds(&format!("old {ROWS}")).then_some(()));
    let missing = (1..=ROWS).filter(|number| !node.holds(&format!("old {number}"))).count();
    assert_eq!(missing, 0);
    assert_eq!(market.sweeps(), 3, "no part of the table is searched twice");
}
