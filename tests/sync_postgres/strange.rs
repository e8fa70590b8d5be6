//! Rows that nobody who keeps our rules would write: one of them stands in nobody else's way.

use tradepost::domain::transaction::Finality;
use tradepost::domain::{CopyNumber, Decision, Sink, TransactionId};
use tradepost::engine::replica::{SinkRequest, SinkState};
use tradepost::store::verify;

use super::common::sidecar::wait_for;
use super::market::Market;
use super::node::Node;

/// Waits until the provider shows `id`, follows its agent and is live, and sees what comes afterwards too.
#[track_caller]
fn flows(market: &Market, node: &Node, id: &str) {
    wait_for(id, || node.holds(id).then_some(()));
    wait_for("the agent to be covered", || {
        let agents = node.engine.ledger_agents().expect("the store answers");
        agents.iter().all(|agent| agent.covered).then_some(())
    });
    wait_for("it to be live", || (node.state() == SinkState::Live).then_some(()));
    let other = Node::start(&market.file("a"), "genesis", &market.url);
    other.record("later", "genesis", "thon", "1");
    wait_for("what comes later", || node.holds("later").then_some(()));
    node.record("own", "thon", "genesis", "1");
    wait_for("our own", || other.holds("own").then_some(()));
}

#[test]
fn a_row_or_an_event_larger_than_any_may_be_harms_nobody() {
    let market = Market::with_tables();
    market.write_row("a large row", "'pending'", "jsonb_build_array(repeat('x', 9000000))");
    market.write_row("a small row", "'pending'", "'[\"receipt\"]'");
    let large = "SELECT md5(evidence::text), xmin FROM marketplace_transactions WHERE transaction_id = 'a large row'";
    let before = market.sql(large);
    let node = market.sweeping_provider();
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
    wait_for("what comes last", || node.holds("last").then_some(()));
    assert!(!node.holds("a large row"));
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
    let market = Market::with_tables();
    market.sql("ALTER TABLE marketplace_transactions ALTER COLUMN status DROP NOT NULL");
    market.write_row("a row without", "NULL", "'[]'");
    market.write_row("a row with", "'pending'", "'[]'");
    let node = market.sweeping_provider();
    flows(&market, &node, "a row with");
    assert!(!node.holds("a row without"));
}

#[test]
fn an_event_that_lacks_something_is_passed_over_and_the_rest_flows_on() {
    let market = Market::with_tables();
    market.write_row("a row", "'pending'", "'[]'");
    let node = market.sweeping_provider();
    flows(&market, &node, "a row");
    market.sql("ALTER TABLE marketplace_transaction_events DROP CONSTRAINT marketplace_transaction_events_pkey");
    // Whoever looks for what is new finds an event by its xid; whose id it has nobody can take away.
    let columns = [
        "event_id",
        "transaction_id",
        "payer_agent",
        "recorded_by",
        "facts",
        "kind",
        "round",
        "payload",
        "occurred_at",
        "node_id",
        "node_seq",
        "hash",
    ];
    for column in columns {
        market.sql(&format!(
            "ALTER TABLE marketplace_transaction_events ALTER COLUMN {column} DROP NOT NULL;
             CREATE TEMP TABLE event AS SELECT * FROM marketplace_transaction_events
              WHERE transaction_id = 'a row' AND kind = 'recorded' AND event_id IS NOT NULL LIMIT 1;
             ALTER TABLE event DROP COLUMN xid, DROP COLUMN id;
             UPDATE event SET event_id = gen_random_uuid();
             UPDATE event SET {column} = NULL;
             INSERT INTO marketplace_transaction_events SELECT * FROM event;"
        ));
    }
    let lacking = "SELECT count(*) FROM marketplace_transaction_events e WHERE e.* IS NULL OR NOT e.* IS NOT NULL";
    assert_eq!(market.sql(lacking), columns.len().to_string());
    market.sql("CREATE UNIQUE INDEX ON marketplace_transaction_events (event_id)");

    let other = Node::start(&market.file("a"), "genesis", &market.url);
    other.record("last", "genesis", "thon", "1");
    wait_for("what comes last", || node.holds("last").then_some(()));
    wait_for("the status to tell of it", || {
        let status = node.engine.sinks().status(Sink::Postgres);
        status.notes.iter().any(|note| note.contains("are passed over")).then_some(())
    });
    node.engine.decide(TransactionId::from_stored("a row"), Decision::Settle, None).wait().expect("it is pending");
    wait_for("a decision on what cannot be read to be set aside", || (node.parked() == 1).then_some(()));
    node.record("own-again", "thon", "genesis", "1");
    wait_for("our own", || other.holds("own-again").then_some(()));
}

#[test]
fn text_that_is_none_is_passed_over_and_the_rest_flows_on() {
    let market = Market::with_tables_in("SQL_ASCII");
    market.write_row("a row", "'pending'", "'[]'");
    market.write_row("a row with text", "'pending'", "'[]'");
    market.sql(
        "INSERT INTO marketplace_transactions
         SELECT id, created_at, payer_agent, provider_agent, capability || E'\\xff', amount, currency, status, context, evidence
           FROM marketplace_transactions t, unnest(ARRAY['a row without text', E'a row \\xff']) id
          WHERE t.transaction_id = 'a row'",
    );
    let node = market.sweeping_provider();
    flows(&market, &node, "a row with text");
    assert!(!node.holds("a row without text"));
    for column in ["kind", "payer_agent", "transaction_id"] {
        market.sql(&format!(
            "CREATE TEMP TABLE event AS SELECT * FROM marketplace_transaction_events
              WHERE transaction_id = 'a row' AND kind = 'recorded' LIMIT 1;
             ALTER TABLE event DROP COLUMN xid, DROP COLUMN id;
             UPDATE event SET event_id = gen_random_uuid(), {column} = E'\\xff';
             INSERT INTO marketplace_transaction_events SELECT * FROM event;"
        ));
    }
    let other = Node::start(&market.file("a"), "genesis", &market.url);
    other.record("last", "genesis", "thon", "1");
    wait_for("what comes last", || node.holds("last").then_some(()));
}

#[test]
fn a_column_of_another_type_halts_the_sink_and_says_which() {
    let market = Market::with_tables();
    market.sql("ALTER TABLE marketplace_transaction_events ALTER COLUMN round TYPE BIGINT");
    let node = Node::start(&market.file("a"), "genesis", &market.url);
    node.record("t1", "genesis", "thon", "1");
    let other = Node::start(&market.file("b"), "thon", &market.url);
    let status = wait_for("the fault to show", || {
        let status = other.engine.sinks().status(Sink::Postgres);
        (status.state == SinkState::Halted).then_some(status)
    });
    assert!(status.last_error.as_ref().is_some_and(|words| words.contains("round")), "{status:?}");
    market.sql("ALTER TABLE marketplace_transaction_events ALTER COLUMN round TYPE INT");
    other.ask(SinkRequest::Retry);
    wait_for("the transaction", || other.holds("t1").then_some(()));
}

#[test]
fn a_row_whose_adoption_is_refused_harms_nobody() {
    let market = Market::with_tables();
    market.write_row("a refused row", "'pending'", "'[]'");
    market.write_row("a row that is taken", "'pending'", "'[]'");
    market.sql(
        "ALTER TABLE marketplace_transaction_events
           ADD CONSTRAINT picky CHECK (transaction_id <> 'a refused row') NOT VALID",
    );
    let node = market.sweeping_provider();
    flows(&market, &node, "a row that is taken");
    assert!(!node.holds("a refused row"));
    let told = || {
        let notes = node.engine.sinks().status(Sink::Postgres).notes.clone();
        notes.into_iter().filter(|note| note.contains("a refused row")).collect::<Vec<_>>()
    };
    let swept_before = market.sweeps();
    wait_for("more sweeps", || (market.sweeps() > swept_before + 2).then_some(()));
    let notes = told();
    assert!(notes.len() == 1 && notes[0].contains("picky"), "it is told once, with the reason: {notes:?}");
    market.sql("ALTER TABLE marketplace_transaction_events DROP CONSTRAINT picky");
    wait_for("the row", || node.holds("a refused row").then_some(()));
    wait_for("the note to go", || told().is_empty().then_some(()));
}

#[test]
fn an_event_that_a_trigger_swallows_does_not_count_as_central() {
    let market = Market::with_tables();
    market.sql(
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER swallow BEFORE INSERT ON marketplace_transaction_events FOR EACH ROW
           WHEN (NEW.kind = 'disputed' OR NEW.transaction_id = 'unseen') EXECUTE FUNCTION swallow()",
    );
    let node = Node::start(&market.file("a"), "genesis", &market.url);
    for id in ["disputed", "unseen", "settled"] {
        node.record(id, "genesis", "thon", "1");
    }
    node.decide("disputed", Decision::Dispute { reason: None, evidence: vec!["half of it".to_owned()] });
    node.decide("unseen", Decision::Settle);
    node.decide("settled", Decision::Settle);
    wait_for("what vanishes to be set aside", || (node.parked() == 3).then_some(()));
    let status =
        |id: &str| market.sql(&format!("SELECT status FROM marketplace_transactions WHERE transaction_id = '{id}'"));
    wait_for("the rest", || (status("settled") == "settled").then_some(()));
    assert_eq!(status("disputed"), "pending", "no event says otherwise there");
    let is_local = |id: &str| node.transaction(id).expect("it is ours").finality == Finality::Local;
    assert!(is_local("disputed") && is_local("unseen") && !is_local("settled"));

    market.sql("DROP TRIGGER swallow ON marketplace_transaction_events");
    node.ask(SinkRequest::Retry);
    wait_for("all of it", || {
        let both = ["disputed", "unseen"].map(status);
        (node.parked() == 0 && both == ["disputed", "settled"]).then_some(())
    });
}

#[test]
fn a_table_in_which_every_event_vanishes_halts_the_sink() {
    let market = Market::with_tables();
    market.sql("CREATE RULE swallow AS ON INSERT TO marketplace_transaction_events DO INSTEAD NOTHING");
    let node = Node::open(&market.file("a"), "genesis");
    for number in 0..300 {
        node.record(&format!("t{number}"), "genesis", "thon", "1");
    }
    let mut node = node;
    node.replicate(&market.url, None);
    let status = wait_for("the sink to halt", || {
        let status = node.engine.sinks().status(Sink::Postgres);
        (status.state == SinkState::Halted).then_some(status)
    });
    assert!(status.last_error.as_ref().is_some_and(|words| words.contains("vanish")), "{status:?}");
    assert_eq!(node.parked(), 0, "none of them is at fault");
    market.sql("DROP RULE swallow ON marketplace_transaction_events");
    node.ask(SinkRequest::Retry);
    wait_for("all of them", || (market.sql("SELECT count(*) FROM marketplace_transactions") == "300").then_some(()));
}
