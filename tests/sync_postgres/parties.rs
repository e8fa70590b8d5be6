//! Two nodes on one PostgreSQL: together, apart, and through everything that can happen to the database between them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tradepost::domain::{Decision, ResolutionOutcome, Sink, TransactionStatus};
use tradepost::engine::PageRequest;
use tradepost::engine::replica::{SinkRequest, SinkState};

use super::common::postgres::Bouncer;
use super::common::sidecar::wait_for;
use super::market::Market;
use super::node::{HEALING, Node};

/// All event ids that a node shows for its transactions.
fn events_of<'a>(node: &Node, ids: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let of = |id: &str| node.engine.events(&super::common::transaction_id(id)).expect("it is held");
    ids.into_iter().flat_map(of).map(|event| event.event_id.to_string()).collect()
}

fn dispute(evidence: &str) -> Decision {
    Decision::Dispute { reason: None, evidence: vec![evidence.to_owned()] }
}

fn resolve(outcome: ResolutionOutcome) -> Decision {
    Decision::Resolve { outcome, note: None }
}

#[test]
fn two_parties_follow_each_other_through_the_life_of_a_transaction() {
    let market = Market::open();
    let (a, b) = market.parties();
    a.record("t1", "genesis", "thon", "18.5");
    b.sees("t1", "pending", |t| t.status == TransactionStatus::Pending);
    b.decide("t1", Decision::Settle);
    a.sees("t1", "settled", |t| t.status == TransactionStatus::Settled && t.settled_at.is_some());
    a.decide("t1", dispute("sha256:9f86d081"));
    b.sees("t1", "disputed", |t| t.status == TransactionStatus::Disputed);
    b.decide("t1", Decision::AddEvidence { evidence: vec!["log".into()] });
    a.sees("t1", "disputed with more", |t| t.evidence.len() == 2);
    a.decide("t1", resolve(ResolutionOutcome::Cancelled));
    b.sees("t1", "cancelled", |t| t.status == TransactionStatus::Cancelled);
    a.is_central("t1");
    b.is_central("t1");
    assert_eq!(market.row("t1"), "cancelled|[\"sha256:9f86d081\", \"log\"]");
    assert_eq!(events_of(&a, ["t1"]), market.events());
    assert_eq!(events_of(&b, ["t1"]), market.events());
    assert_eq!(market.events().len(), 5);
    for node in [&a, &b] {
        wait_for("nothing to be left to do", || (node.state() == SinkState::Live).then_some(()));
    }
}

#[test]
fn whoever_recorded_the_same_transaction_sees_what_becomes_of_it_wherever_its_parties_live() {
    let market = Market::open();
    let [mut first, mut second] = ["first", "second"].map(|name| Node::open(&market.file(name), name));
    // A client that got no answer asked another sidecar.
    for node in [&first, &second] {
        node.record("t1", "genesis", "thon", "1");
    }
    let before = market.file("second-before");
    std::fs::copy(second.close(), &before).expect("it is closed");
    first.replicate(&market.url, None);
    first.drained();
    second = Node::start(&market.file("second"), "second", &market.url);
    second.drained();
    first.decide("t1", dispute("sha256:9f86d081"));
    second.sees("t1", "disputed", |t| t.status == TransactionStatus::Disputed);

    // An old backup learns it too, though what it recorded need not be sent again.
    drop(second.close());
    let restored = Node::start(&before, "second", &market.url);
    restored.sees("t1", "disputed", |t| t.status == TransactionStatus::Disputed);
    restored.decide("t1", resolve(ResolutionOutcome::Cancelled));
    first.sees("t1", "cancelled", |t| t.status == TransactionStatus::Cancelled);
    assert_eq!(events_of(&first, ["t1"]), market.events());
    assert_eq!(events_of(&restored, ["t1"]), market.events());
}

#[test]
fn parties_that_decided_apart_agree_once_they_are_together_again() {
    let mut market = Market::open();
    let (a, b) = market.parties();
    let decisions = || {
        [
            ("settled", Decision::Settle),
            ("cancelled", Decision::Cancel { reason: Some("why".into()) }),
            ("disputed", dispute("proof")),
        ]
    };
    let mut ids = Vec::new();
    for (one, _) in decisions() {
        for (other, _) in decisions() {
            ids.push(format!("{one}-{other}"));
        }
    }
    for id in &ids {
        a.record(id, "genesis", "thon", "1");
    }
    for id in &ids {
        b.sees(id, "there", |_| true);
    }
    market.server.stop();
    for (id, index) in ids.iter().zip(0..) {
        a.decide(id, decisions()[index / 3].1.clone());
        b.decide(id, decisions()[index % 3].1.clone());
    }
    wait_for("the fault to show", || (a.state() == SinkState::Backoff).then_some(()));
    let started = Instant::now();
    market.server.resume();
    for id in &ids {
        let (one, other) = id.split_once('-').expect("our own ids");
        let expected = if one == other { one } else { "disputed" };
        for node in [&a, &b] {
            node.sees(id, expected, |t| t.status.as_str() == expected);
            node.is_central(id);
        }
        assert!(market.row(id).starts_with(&format!("{expected}|")), "{id}: {}", market.row(id));
    }
    assert!(started.elapsed() < HEALING, "{:?}", started.elapsed());
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    assert_eq!(events_of(&a, ids.clone()), market.events());
    assert_eq!(events_of(&b, ids), market.events());
}

#[test]
fn crashes_of_the_server_lose_nothing_and_double_nothing() {
    let mut market = Market::open();
    let (a, b) = market.parties();
    let mut ids = Vec::new();
    for crash in 0..4 {
        for number in 0..150 {
            let id = format!("c{crash}-{number}");
            a.record(&id, "genesis", "thon", "0.01");
            if number % 2 == 0 {
                a.decide(&id, Decision::Settle);
            }
            ids.push(id);
            if number == 75 {
                market.server.crash();
            }
        }
        market.server.resume();
        let started = Instant::now();
        a.drained();
        assert!(started.elapsed() < HEALING, "{:?}", started.elapsed());
    }
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    assert_eq!(events_of(&a, ids.clone()), market.events());
    b.sees(ids[ids.len() - 1], "there", |_| true);
    assert_eq!(events_of(&b, ids), market.events());
    assert_eq!(market.sql("SELECT count(*), sum(amount) FROM marketplace_transactions"), "600|6.000000000");
}

#[test]
fn a_server_that_hangs_is_left_alone_and_found_again() {
    let market = Market::open();
    let (a, b) = market.parties();
    a.record("before", "genesis", "thon", "1");
    b.sees("before", "there", |_| true);
    market.server.freeze();
    let started = Instant::now();
    a.record("meanwhile", "genesis", "thon", "1");
    assert!(started.elapsed() < Duration::from_secs(1), "no write waits for a sink");
    wait_for("the fault to show", || (a.state() == SinkState::Backoff).then_some(()));
    market.server.thaw();
    let started = Instant::now();
    a.is_central("meanwhile");
    b.sees("meanwhile", "there", |_| true);
    assert!(started.elapsed() < HEALING, "{:?}", started.elapsed());
}

#[test]
fn a_copied_file_becomes_a_node_of_its_own_and_nothing_is_lost() {
    let market = Market::open();
    let a = Node::start(&market.file("a"), "genesis", &market.url);
    a.record("t1", "genesis", "thon", "1");
    a.drained();
    let file = a.close();
    std::fs::copy(&file, market.file("copy")).expect("it is closed");
    let (a, copy) = (Node::open(&file, "genesis"), Node::open(&market.file("copy"), "genesis"));
    let node_id = a.engine.node_id();
    assert_eq!(copy.engine.node_id(), node_id);
    // Both go on to the same sequence number.
    a.record("only-a", "genesis", "thon", "1");
    copy.record("only-copy", "genesis", "thon", "1");
    a.decide("t1", Decision::Settle);
    copy.decide("t1", dispute("from the copy"));
    let (mut a, mut copy) = (a, copy);
    a.replicate(&market.url, None);
    a.drained();
    copy.replicate(&market.url, None);
    copy.drained();
    assert_eq!(a.engine.node_id(), node_id);
    assert_ne!(copy.engine.identity().node_id, node_id);
    assert_eq!(copy.engine.identity().earlier, [node_id]);
    for node in [&a, &copy] {
        node.sees("t1", "disputed", |t| t.status == TransactionStatus::Disputed);
        node.sees("only-a", "there", |_| true);
        node.sees("only-copy", "there", |_| true);
        assert_eq!(events_of(node, ["t1", "only-a", "only-copy"]), market.events());
    }
    assert_eq!(market.row("t1"), "disputed|[\"from the copy\"]");
    wait_for("it to be told", || {
        let notes = copy.engine.sinks().status(Sink::Postgres).notes.join(" ");
        notes.contains("copy").then_some(())
    });
}

#[test]
fn an_old_backup_of_a_file_learns_what_it_had_sent() {
    let market = Market::open();
    let a = Node::start(&market.file("a"), "genesis", &market.url);
    a.record("t1", "genesis", "thon", "1");
    a.drained();
    let file = a.close();
    std::fs::copy(&file, market.file("backup")).expect("it is closed");
    let a = Node::start(&file, "genesis", &market.url);
    a.record("t2", "genesis", "thon", "1");
    a.decide("t1", Decision::Settle);
    a.drained();
    drop(a.close());
    let restored = Node::start(&market.file("backup"), "genesis", &market.url);
    restored.sees("t2", "there again", |_| true);
    restored.sees("t1", "settled again", |t| t.status == TransactionStatus::Settled);
    restored.decide("t2", Decision::Settle);
    restored.is_central("t2");
    assert_eq!(events_of(&restored, ["t1", "t2"]), market.events());
}

#[test]
fn an_emptied_database_is_refilled_by_nodes_that_do_nothing_else() {
    let market = Market::open();
    let (a, b) = market.parties();
    for number in 0..20 {
        let id = format!("t{number}");
        a.record(&id, "genesis", "thon", "1");
        b.sees(&id, "there", |_| true);
        b.decide(&id, Decision::Settle);
        a.sees(&id, "settled", |t| t.status == TransactionStatus::Settled);
    }
    b.drained();
    let before = market.events();
    assert_eq!(before.len(), 40);
    let started = Instant::now();
    market.sql("TRUNCATE marketplace_transactions, marketplace_transaction_events, marketplace_nodes");
    wait_for("the database to be full again", || (market.events() == before).then_some(()));
    println!("refilled after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(45), "{:?}", started.elapsed());
    let rows = market.sql("SELECT count(*) FROM marketplace_transactions WHERE status = 'settled'");
    assert_eq!(rows, "20");

    // One party alone refills what both wrote.
    let mut b = b;
    b.isolate();
    market.sql("DROP TABLE marketplace_transactions, marketplace_transaction_events, marketplace_nodes");
    wait_for("the database to be full again", || {
        let there = market.server.try_sql("market", "SELECT count(*) FROM marketplace_transaction_events");
        (there.as_deref() == Ok("40")).then_some(())
    });
    assert_eq!(market.events(), before);
}

/// Copies a stopped cluster, or puts a copy back in its place.
fn copy_cluster(from: &std::path::Path, to: &std::path::Path) {
    let run = |program: &str, words: &[&std::ffi::OsStr]| {
        let status = std::process::Command::new(program).args(words).status().expect("it is a basic program");
        assert!(status.success(), "{program} {words:?}");
    };
    run("rm", &["-rf".as_ref(), to.as_os_str()]);
    run("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}

#[test]
fn a_database_put_back_to_an_older_state_gets_everything_again() {
    let mut market = Market::open();
    let (mut a, b) = market.parties();
    let life = |a: &Node, b: &Node, name: &str| {
        for number in 0..10 {
            let id = format!("{name}{number}");
            a.record(&id, "genesis", "thon", "1");
            b.sees(&id, "there", |_| true);
            b.decide(&id, Decision::Settle);
            a.sees(&id, "settled", |t| t.status == TransactionStatus::Settled);
        }
        b.drained();
    };
    life(&a, &b, "early");
    market.server.stop();
    let (data, backup) = (market.server.data(), market.server.directory().join("backup"));
    copy_cluster(&data, &backup);
    market.server.resume();
    life(&a, &b, "late");
    let before = market.events();
    assert_eq!(before.len(), 40);
    market.server.stop();
    copy_cluster(&backup, &data);
    // Only the provider is there to tell, and nobody writes anything.
    a.isolate();
    market.server.resume();
    wait_for("everything to be there again", || (market.events() == before).then_some(()));
    assert_eq!(market.sql("SELECT count(*) FROM marketplace_transactions WHERE status = 'settled'"), "20");
    a.replicate(&market.url, None);
    life(&a, &b, "after");
    assert_eq!(market.events().len(), 60);
}

#[test]
fn a_poisoned_row_is_parked_and_delivered_on_request() {
    let market = Market::open();
    let (a, b) = market.parties();
    a.record("t0", "genesis", "thon", "1");
    b.sees("t0", "there", |_| true);
    market.sql("ALTER TABLE marketplace_transactions ADD CONSTRAINT no_devil CHECK (amount <> 666)");
    a.record("t1", "genesis", "thon", "666");
    a.record("t2", "genesis", "thon", "2");
    a.decide("t1", Decision::Settle);
    b.sees("t2", "there", |_| true);
    wait_for("both events to be parked", || (a.parked() == 2).then_some(()));
    assert!(market.row("t1").is_empty());
    wait_for("the sink to be live all the same", || (a.state() == SinkState::Live).then_some(()));
    market.sql("ALTER TABLE marketplace_transactions DROP CONSTRAINT no_devil");
    a.ask(SinkRequest::Retry);
    b.sees("t1", "settled", |t| t.status == TransactionStatus::Settled);
    wait_for("nothing to be parked", || (a.parked() == 0).then_some(()));
    a.is_central("t1");
}

#[test]
fn a_locked_row_is_gone_around_and_delivered_when_it_is_free() {
    let market = Market::open();
    let (a, b) = market.parties();
    for id in ["t1", "t2"] {
        a.record(id, "genesis", "thon", "1");
        b.sees(id, "there", |_| true);
    }
    let runtime = super::access::runtime();
    let other = runtime.block_on(super::book::session(&market.url));
    let lock = "BEGIN; SELECT FROM marketplace_transactions WHERE transaction_id = 't1' FOR UPDATE";
    runtime.block_on(other.batch(lock)).expect("it is locked");
    a.decide("t1", Decision::Settle);
    a.decide("t2", Decision::Settle);
    b.sees("t2", "settled", |t| t.status == TransactionStatus::Settled);
    wait_for("the other to be parked", || (a.parked() == 1).then_some(()));
    runtime.block_on(other.batch("COMMIT")).expect("it lets go");
    b.sees("t1", "settled", |t| t.status == TransactionStatus::Settled);
    wait_for("nothing to be parked", || (a.parked() == 0).then_some(()));
}

#[test]
fn older_clients_are_adopted_and_heard() {
    let market = Market::open();
    let mut b = Node::open(&market.file("b"), "thon");
    b.replicate(&market.url, Some(Duration::from_secs(2)));
    wait_for("the tables", || (b.state() == SinkState::Live).then_some(()));
    market.sql("ALTER TABLE marketplace_transactions ALTER COLUMN amount TYPE DECIMAL(10,2)");
    market.sql(
        "INSERT INTO marketplace_transactions VALUES
         ('old order #1', '2024-01-02 03:04:05', 'legacy agent', 'thon', 'Python', 18.50, 'USD', 'pending', '{\"a\": 1.0}', '[]')",
    );
    let id = tradepost::domain::TransactionId::from_stored("old order #1");
    let seen = wait_for("the old order", || b.engine.transaction(&id).ok());
    assert_eq!(seen.facts.amount.to_string(), "18.5");
    assert_eq!(seen.facts.payer_agent.as_str(), "legacy agent");
    b.engine.decide(id.clone(), Decision::Settle, None).wait().expect("it is pending");
    wait_for("the row to be settled", || (market.row("old order #1") == "settled|[]").then_some(()));
    market.sql("UPDATE marketplace_transactions SET status = 'disputed', evidence = '[\"late\"]'");
    let disputed =
        wait_for("the dispute", || b.engine.transaction(&id).ok().filter(|t| t.status == TransactionStatus::Disputed));
    assert_eq!(disputed.evidence, ["late"]);
}

#[test]
fn everything_works_through_a_transaction_pooler_with_a_least_privilege_role() {
    let market = Market::open();
    let bouncer = Bouncer::start(&market.server);
    let url = bouncer.url("market");
    let a = Node::start(&market.file("a"), "genesis", &url);
    let b = Node::start(&market.file("b"), "thon", &url);
    for number in 0..50 {
        a.record(&format!("t{number}"), "genesis", "thon", "1");
    }
    for number in 0..50 {
        let id = format!("t{number}");
        b.sees(&id, "there", |_| true);
        b.decide(&id, Decision::Settle);
    }
    a.sees("t49", "settled", |t| t.status == TransactionStatus::Settled);
    a.drained();
    b.drained();
    assert_eq!(market.events().len(), 100);

    market.server.role("app");
    market.sql(
        "GRANT SELECT, INSERT, UPDATE ON marketplace_transactions, marketplace_transaction_events, marketplace_nodes TO app",
    );
    let c = Node::start(&market.file("c"), "mira", &market.server.url_of("app", "market"));
    c.record("as-app", "mira", "thon", "1");
    b.sees("as-app", "there", |_| true);
    b.decide("as-app", Decision::Settle);
    c.sees("as-app", "settled", |t| t.status == TransactionStatus::Settled);
}

#[test]
fn a_resync_repairs_what_somebody_broke() {
    let market = Market::open();
    let (a, b) = market.parties();
    for number in 0..10 {
        a.record(&format!("t{number}"), "genesis", "thon", "1");
    }
    b.sees("t9", "there", |_| true);
    a.drained();
    let before = market.events();
    market.sql("DELETE FROM marketplace_transaction_events WHERE transaction_id IN ('t3', 't4')");
    market.sql("DELETE FROM marketplace_transactions WHERE transaction_id = 't3'");
    a.ask(SinkRequest::Resync);
    wait_for("the repair", || (market.events().is_superset(&before)).then_some(()));
    assert!(market.row("t3").starts_with("pending|"));
    a.drained();
}

#[test]
fn what_is_locked_just_when_it_is_tried_again_is_not_forgotten() {
    let market = Market::open();
    let a = Node::start(&market.file("a"), "genesis", &market.url);
    a.record("t1", "genesis", "thon", "1");
    a.drained();
    market.sql("ALTER TABLE marketplace_transaction_events ADD CONSTRAINT calm CHECK (kind <> 'settled')");
    a.decide("t1", Decision::Settle);
    wait_for("the decision to be parked", || (a.parked() == 1).then_some(()));
    market.sql("ALTER TABLE marketplace_transaction_events DROP CONSTRAINT calm");
    let runtime = super::access::runtime();
    let other = runtime.block_on(super::book::session(&market.url));
    let lock = "BEGIN; SELECT FROM marketplace_transactions WHERE transaction_id = 't1' FOR UPDATE";
    runtime.block_on(other.batch(lock)).expect("it is locked");
    a.ask(SinkRequest::Retry);
    wait_for("it to be tried", || {
        let page = PageRequest { limit: 1, cursor: None };
        let parked = a.engine.parked(Sink::Postgres, page).expect("the store answers").items;
        (parked.first()?.code == "55P03").then_some(())
    });
    runtime.block_on(other.batch("COMMIT")).expect("it lets go");
    wait_for("nothing to be parked", || (a.parked() == 0).then_some(()));
    a.is_central("t1");
}
