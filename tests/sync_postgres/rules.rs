//! Rules that somebody made for the tables: constraints, triggers, policies, limits. What a rule refuses is set aside and
//! said, what it does not refuse goes on, and what it changes or swallows does not count as done.

use tradepost::domain::transaction::Finality;
use tradepost::domain::{Currency, Decision, Facts, NewTransaction, Sink};
use tradepost::engine::PageRequest;
use tradepost::engine::replica::{SinkRequest, SinkState};
use tradepost::sync::postgres::checks::Checks;
use tradepost::sync::postgres::push::Window;

use super::access::runtime;
use super::book::{Author, prepared, some_facts};
use super::common::sidecar::wait_for;
use super::common::{facts, transaction_id};
use super::market::Market;
use super::node::Node;

fn record_in(node: &Node, id: &str, currency: &str) {
    let currency = Currency::parse("currency", currency).expect("sound");
    let facts = Facts { currency, ..facts("genesis", "thon", "python", "18.5") };
    let new = NewTransaction { transaction_id: Some(transaction_id(id)), facts };
    node.engine.record(new, None).wait().expect("it is recorded");
}

fn is_central(node: &Node, id: &str) -> bool {
    node.transaction(id).is_some_and(|transaction| transaction.finality == Finality::Central)
}

fn status_of(market: &Market, id: &str) -> String {
    market.sql(&format!("SELECT status FROM marketplace_transactions WHERE transaction_id = '{id}'"))
}

/// One entry is refused for its own content; the others are not, though they seem to be to who asks the constraint.
fn others_are_taken(what: &str, prepare: &str) {
    let market = Market::with_tables();
    market.sql(prepare);
    let mut node = Node::open(&market.file("a"), "genesis");
    record_in(&node, "beside", "USD");
    record_in(&node, "bad", "XYZ");
    node.replicate(&market.url, None);
    wait_for("the bad one to be set aside", || (node.parked() >= 1).then_some(()));
    wait_for(&format!("what was beside it, {what}"), || is_central(&node, "beside").then_some(()));
    record_in(&node, "later", "USD");
    wait_for(&format!("what came later, {what}"), || is_central(&node, "later").then_some(()));
    assert_eq!(node.parked(), 1, "{what}");
}

#[test]
fn what_a_constraint_seems_to_refuse_is_tried_and_the_table_has_the_last_word() {
    for (what, prepare) in [
        (
            "a type that compares otherwise",
            "CREATE EXTENSION citext;
             ALTER TABLE marketplace_transactions ALTER currency TYPE citext;
             ALTER TABLE marketplace_transactions ADD CONSTRAINT currencies CHECK (currency IN ('usd', 'eur'))",
        ),
        (
            "a collation",
            "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             ALTER TABLE marketplace_transactions ALTER currency TYPE VARCHAR(10) COLLATE ci;
             ALTER TABLE marketplace_transactions ADD CONSTRAINT currencies CHECK (currency IN ('usd', 'eur'))",
        ),
        (
            "a narrow type",
            "ALTER TABLE marketplace_transactions ALTER amount TYPE DECIMAL(10,2);
             ALTER TABLE marketplace_transactions ADD CONSTRAINT cents CHECK (scale(amount) = 2 AND currency <> 'XYZ')",
        ),
        (
            "a trigger",
            "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN NEW.context := NEW.context || '{\"tenant\":1}'; RETURN NEW; END $$;
             CREATE TRIGGER fill BEFORE INSERT ON marketplace_transactions FOR EACH ROW EXECUTE FUNCTION fill();
             ALTER TABLE marketplace_transactions ADD CONSTRAINT tenanted CHECK (context ? 'tenant' AND currency <> 'XYZ')",
        ),
    ] {
        others_are_taken(what, prepare);
    }
}

#[test]
fn a_constraint_of_a_table_that_was_put_away_refuses_nothing() {
    let market = Market::with_tables();
    market.sql("ALTER TABLE marketplace_transactions ADD CONSTRAINT no_devil CHECK (amount <> 666)");
    let mut node = Node::open(&market.file("a"), "genesis");
    node.record("good", "genesis", "thon", "1");
    node.record("bad", "genesis", "thon", "666");
    node.replicate(&market.url, None);
    wait_for("the bad one to be set aside", || (node.parked() == 1).then_some(()));
    market.sql(
        "BEGIN;
         ALTER TABLE marketplace_transactions RENAME TO marketplace_transactions_2025;
         CREATE TABLE marketplace_transactions
           (LIKE marketplace_transactions_2025 INCLUDING DEFAULTS INCLUDING INDEXES);
         INSERT INTO marketplace_transactions SELECT * FROM marketplace_transactions_2025;
         COMMIT;",
    );
    node.record("bad-too", "genesis", "thon", "666");
    wait_for("the new one", || is_central(&node, "bad-too").then_some(()));
    node.ask(SinkRequest::Retry);
    wait_for("the one that was set aside", || (node.parked() == 0).then_some(()));
}

#[test]
fn more_than_half_refused_is_the_tables_fault_also_once_a_constraint_is_asked() {
    let market = Market::with_tables();
    let mut author = Author::new(1);
    let (mut window, mut checks) = (Window::default(), Checks::default());
    runtime().block_on(async {
        let mut session = prepared(&market.url).await;
        market.sql("ALTER TABLE marketplace_transactions ADD CONSTRAINT no_devil CHECK (amount <> 666)");
        let mut batches = 0;
        let halted = loop {
            let from = author.head;
            let amount = |number| if number < 6 { "666" } else { "1" };
            let offers: Vec<_> = (0..10)
                .map(|number| author.record(&format!("b{batches}-{number}"), &some_facts(amount(number))))
                .collect();
            match author.push_having(&mut session, from, &offers, &mut window, &mut checks).await {
                Ok(_) => batches += 1,
                Err(trouble) => break trouble,
            }
            assert!(batches < 40, "six of ten are refused");
        };
        assert!(halted.words.contains("no_devil"), "{halted}");
    });
}

/// A rule for what is new from now on; then all is offered again.
fn what_is_there_is_not_refused(rule: &str) {
    let market = Market::with_tables();
    let node = Node::start(&market.file("a"), "genesis", &market.url);
    for number in 0..300 {
        node.record(&format!("t{number}"), "genesis", "thon", "2000");
    }
    node.drained();
    market.sql(rule);
    node.ask(SinkRequest::Resync);
    node.record("small", "genesis", "thon", "1");
    wait_for("what is new", || is_central(&node, "small").then_some(()));
    node.drained();
    assert_eq!(node.parked(), 0, "{rule}");
    assert!((0..300).all(|number| is_central(&node, &format!("t{number}"))));
}

#[test]
fn what_is_there_is_not_refused_by_a_constraint_for_what_is_new() {
    what_is_there_is_not_refused(
        "ALTER TABLE marketplace_transactions ADD CONSTRAINT small CHECK (amount < 1000) NOT VALID",
    );
}

#[test]
fn what_is_there_is_not_refused_by_a_trigger_for_what_is_new() {
    what_is_there_is_not_refused(
        "CREATE FUNCTION closed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'that period is closed'; END $$;
         CREATE TRIGGER closed BEFORE INSERT ON marketplace_transactions FOR EACH ROW WHEN (NEW.amount > 1000)
           EXECUTE FUNCTION closed()",
    );
}

/// A trigger has its way with an update; the decision is set aside, and delivered when the trigger is gone.
fn an_update_counts_when_it_is_done(body: &str) {
    let market = Market::with_tables();
    let node = Node::start(&market.file("a"), "genesis", &market.url);
    node.record("t1", "genesis", "thon", "1");
    wait_for("the transaction", || is_central(&node, "t1").then_some(()));
    market.sql(&format!(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
         CREATE TRIGGER keep BEFORE UPDATE ON marketplace_transactions FOR EACH ROW EXECUTE FUNCTION keep()"
    ));
    node.decide("t1", Decision::Settle);
    wait_for("the decision to be set aside", || (node.parked() == 1).then_some(()));
    assert!(!is_central(&node, "t1"));
    assert_eq!(market.events().len(), 1, "no event says what the row does not");
    market.sql("DROP TRIGGER keep ON marketplace_transactions");
    node.ask(SinkRequest::Retry);
    wait_for("the decision", || (status_of(&market, "t1") == "settled" && is_central(&node, "t1")).then_some(()));
    assert_eq!(node.parked(), 0);
}

#[test]
fn an_update_that_a_trigger_swallows_or_changes_is_not_done() {
    an_update_counts_when_it_is_done("RETURN NULL;");
    an_update_counts_when_it_is_done("NEW.status := OLD.status; RETURN NEW;");
}

#[test]
fn rows_that_a_trigger_lets_vanish_are_not_called_locked() {
    let market = Market::with_tables();
    market.sql(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON marketplace_transactions FOR EACH ROW WHEN (NEW.amount < 5)
           EXECUTE FUNCTION swallow()",
    );
    let mut node = Node::open(&market.file("a"), "genesis");
    node.record("large", "genesis", "thon", "7");
    node.record("small", "genesis", "thon", "1");
    node.replicate(&market.url, None);
    wait_for("the one that vanishes to be set aside", || (node.parked() == 1).then_some(()));
    wait_for("the other", || is_central(&node, "large").then_some(()));
    let page = node.engine.parked(Sink::Postgres, PageRequest { limit: 10, cursor: None }).expect("the store answers");
    assert_eq!(page.items[0].code, "not_taken", "{:?}", page.items);
    for number in 0..300 {
        node.record(&format!("t{number}"), "genesis", "thon", "1");
    }
    wait_for("the table to be at fault", || (node.state() == SinkState::Halted).then_some(()));
    market.sql("DROP TRIGGER swallow ON marketplace_transactions");
    node.ask(SinkRequest::Retry);
    wait_for("all of them", || {
        (node.parked() == 0 && market.sql("SELECT count(*) FROM marketplace_transactions") == "302").then_some(())
    });
}

#[test]
fn many_that_are_refused_again_do_not_halt_the_sink() {
    let market = Market::with_tables();
    market.sql("ALTER TABLE marketplace_transactions ADD CONSTRAINT no_devil CHECK (amount <> 666)");
    let mut node = Node::open(&market.file("a"), "genesis");
    for number in 0..1_000 {
        node.record(&format!("t{number}"), "genesis", "thon", if number % 4 == 0 { "666" } else { "1" });
    }
    node.replicate(&market.url, None);
    wait_for("them to be set aside", || (node.parked() == 250).then_some(()));
    node.ask(SinkRequest::Retry);
    wait_for("all to be tried again", || {
        let page = node.engine.parked(Sink::Postgres, PageRequest { limit: 1_000, cursor: None });
        let page = page.expect("the store answers");
        assert_ne!(node.state(), SinkState::Halted, "{:?}", node.engine.sinks().status(Sink::Postgres));
        page.items.iter().all(|entry| entry.attempts > 1).then_some(())
    });
    node.record("later", "genesis", "thon", "1");
    wait_for("what comes later", || is_central(&node, "later").then_some(()));
    assert_eq!(node.parked(), 250);
}

#[test]
fn where_a_role_has_few_connections_every_node_has_its_turn() {
    let market = Market::with_tables();
    market.server.role("sidecar");
    market.sql(
        "GRANT SELECT, INSERT, UPDATE ON marketplace_transactions, marketplace_nodes TO sidecar;
         GRANT SELECT, INSERT ON marketplace_transaction_events TO sidecar;
         ALTER ROLE sidecar CONNECTION LIMIT 3;",
    );
    let url = market.server.url_of("sidecar", "market");
    let first: Vec<Node> =
        (0..3).map(|number| Node::start(&market.file(&format!("f{number}")), &format!("f{number}"), &url)).collect();
    for node in &first {
        wait_for("it to be live", || (node.state() == SinkState::Live).then_some(()));
    }
    let late = Node::start(&market.file("late"), "late", &url);
    late.record("t-late", "late", "f0", "1");
    wait_for("the fourth one's turn", || is_central(&late, "t-late").then_some(()));
    wait_for("it to be told", || first[0].holds("t-late").then_some(()));
}
