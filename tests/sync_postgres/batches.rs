//! Batches of events: what they make of the tables, alone, beside others, and with entries that are refused.

use std::sync::Arc;
use std::time::Instant;

use tradepost::domain::{EventBody, Facts, JsonObject, LogPosition, NodeId, ParkedKey, ResolutionOutcome};
use tradepost::sync::postgres::checks::Checks;
use tradepost::sync::postgres::errors::Kind;
use tradepost::sync::postgres::merge::{INEXACT_AMOUNT, NOT_RECORDED};
use tradepost::sync::postgres::push::Window;
use tradepost::sync::postgres::push::waiting_for_locks;

use super::access::runtime;
use super::book::{Author, prepared, session, some_facts};
use super::common::postgres::{Bouncer, Postgres};

const START: LogPosition = LogPosition { seq: 0, hash: [0; 32] };

/// A server, and the URL of an empty database on it.
fn market() -> (Postgres, String) {
    let server = Postgres::start();
    let url = server.database("market");
    (server, url)
}

#[test]
fn a_batch_makes_exactly_the_rows_that_its_events_amount_to() {
    let (server, url) = market();
    let context = JsonObject::parse(r#"{"z":1.10,"task":"räksmörgås"}"#).expect("an object");
    let facts = Arc::new(Facts { context, ..(*some_facts("999999999999999999.000000001")).clone() });
    let mut author = Author::new(1);
    let offers = [
        author.record("t1", &facts),
        author.record("t2", &some_facts("2")),
        author.write("t1", &facts, author.node_id, EventBody::Settled),
        author.write(
            "t1",
            &facts,
            author.node_id,
            EventBody::Disputed { reason: Some("half".into()), evidence: vec!["a\"b".into(), "c".into()] },
        ),
    ];
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        let pushed = author.push(&mut session, START, &offers).await.expect("it is pushed");
        assert_eq!((pushed.refused, pushed.conflicts, pushed.adopted), (vec![], vec![], 0));
        let again = author.push(&mut session, START, &offers).await.expect_err("the fence has moved");
        assert_eq!(again.kind, Kind::FenceMoved);
    });
    let rows = "SELECT transaction_id, created_at, payer_agent, provider_agent, capability, amount, currency, status, \
                context, evidence FROM marketplace_transactions ORDER BY 1";
    assert_eq!(
        server.sql("market", rows),
        "t1|2023-11-14 22:13:20.001|genesis|thon|python|999999999999999999.000000001|USD|disputed|\
         {\"z\": 1.10, \"task\": \"räksmörgås\"}|[\"a\\\"b\", \"c\"]\n\
         t2|2023-11-14 22:13:20.002|genesis|thon|python|2.000000000|USD|pending|{}|[]"
    );
    let events = "SELECT node_seq, transaction_id, kind, round, node_id = recorded_by, length(hash), length(facts) FROM \
                  marketplace_transaction_events ORDER BY node_seq";
    assert_eq!(
        server.sql("market", events),
        "1|t1|recorded|0|t|32|32\n2|t2|recorded|0|t|32|32\n3|t1|settled|0|t|32|32\n4|t1|disputed|0|t|32|32"
    );
    assert_eq!(server.sql("market", "SELECT last_seq, length(head_hash) FROM marketplace_nodes"), "4|32");
}

/// What is refused could never be pushed; what is taken always can.
#[test]
fn a_context_holds_the_numbers_that_postgresql_can_hold() {
    let (server, _) = market();
    let point = |zeros: usize| format!("0.{}", "0".repeat(zeros));
    let mut numbers: Vec<String> = [
        "1e308",
        "0e131072",
        "0e-20000",
        "1e-99999999999999999999",
        "0e99999999999999999999",
        "0e00000000000000000001",
    ]
    .map(String::from)
    .into();
    for scale in [16_382, 16_383, 16_384, 16_385] {
        for digits in ["1", "-1", "0", "1.5", "100", "10.0", "0.0", "-0"] {
            numbers.push(format!("{digits}e-{scale}"));
        }
        numbers.extend([point(scale), point(scale) + "1", point(scale) + "1E+1", point(scale) + "1e-1"]);
        numbers.push(format!("{}e{}", point(30_000), 30_000 - scale));
    }
    for exponent in [1_073_741_822, 1_073_741_823, 2_147_483_648_i64] {
        numbers.extend([format!("0e{exponent}"), format!("0.0e+{exponent}"), format!("-0e-{exponent}")]);
    }
    for number in numbers {
        let taken = JsonObject::parse(&format!(r#"{{"p":{number}}}"#));
        let held = server.try_sql("postgres", &format!(r#"SELECT '{{"p":{number}}}'::jsonb IS NOT NULL"#));
        let (shown, length) = (&number[..number.len().min(30)], number.len());
        assert_eq!(taken.is_ok(), held.is_ok(), "{shown} ({length} characters): {taken:.80?}, {held:.80?}");
    }
}

#[test]
fn the_same_events_under_another_fence_change_nothing() {
    let (server, url) = market();
    let mut author = Author::new(1);
    let facts = some_facts("1");
    let offers = [author.record("t1", &facts), author.write("t1", &facts, author.node_id, EventBody::Settled)];
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        author.push(&mut session, START, &offers).await.expect("it is pushed");
        let before = server.sql("market", "SELECT t.*, t.xmin FROM marketplace_transactions t");
        author.node_id = NodeId::from_bytes([2; 16]);
        author.push(&mut session, START, &offers).await.expect("a fork offers all again");
        assert_eq!(server.sql("market", "SELECT t.*, t.xmin FROM marketplace_transactions t"), before);
        assert_eq!(server.sql("market", "SELECT count(*) FROM marketplace_transaction_events"), "2");
        assert_eq!(server.sql("market", "SELECT count(*) FROM marketplace_nodes"), "2");
    });
}

#[test]
fn two_nodes_that_decide_differently_meet_in_a_dispute() {
    let (server, url) = market();
    let (mut a, mut b) = (Author::new(1), Author::new(2));
    let facts = some_facts("1");
    let recorded = a.record("t1", &facts);
    let settled = a.write("t1", &facts, a.node_id, EventBody::Settled);
    let cancelled = b.write("t1", &facts, a.node_id, EventBody::Cancelled { reason: None });
    let reason = EventBody::EvidenceAdded { evidence: vec!["proof".into()] };
    let evidence = b.write("t1", &facts, a.node_id, reason);
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        a.push(&mut session, START, &[recorded, settled]).await.expect("pushed");
        b.push(&mut session, START, &[cancelled, evidence]).await.expect("pushed");
        assert_eq!(
            server.sql("market", "SELECT status, evidence FROM marketplace_transactions"),
            "disputed|[\"proof\"]"
        );
        let all: Vec<_> = [1_u8, 2].map(|node| NodeId::from_bytes([node; 16])).to_vec();
        assert_eq!(all.len(), 2);
        let mut resolved = b.write(
            "t1",
            &facts,
            a.node_id,
            EventBody::Resolved { outcome: ResolutionOutcome::Settled, note: None, decisions: vec![] },
        );
        // It names no decision: what it had not seen and what disagrees keeps the dispute open.
        resolved.entry.event.round = 0;
        let from = LogPosition { seq: 2, hash: previous_hash(&server, 2) };
        b.push(&mut session, from, &[resolved]).await.expect("pushed");
        assert_eq!(server.sql("market", "SELECT status FROM marketplace_transactions"), "disputed");
    });
}

fn previous_hash(server: &Postgres, node: u8) -> [u8; 32] {
    let id = format!("{:02x}", node).repeat(16);
    let hex =
        server.sql("market", &format!("SELECT encode(head_hash, 'hex') FROM marketplace_nodes WHERE node_id = '{id}'"));
    let bytes: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("32 bytes")
}

#[test]
fn many_that_write_about_the_same_transactions_do_not_deadlock() {
    let (server, url) = market();
    let bouncer = Bouncer::start(&server);
    let facts = some_facts("1");
    runtime().block_on(async {
        drop(prepared(&url).await);
        let mut recorder = Author::new(99);
        let recorded: Vec<_> = (0..150).map(|number| recorder.record(&format!("t{number}"), &facts)).collect();
        let mut writers = Vec::new();
        for number in 0..12_u8 {
            let (url, facts) = (if number % 2 == 0 { url.clone() } else { bouncer.url("market") }, Arc::clone(&facts));
            let recorded = recorded.clone();
            writers.push(tokio::spawn(async move {
                let mut session = session(&url).await;
                let mut author = Author::new(number + 1);
                for round in 0..4_usize {
                    let from = author.head;
                    let mut offers = recorded.clone();
                    offers.rotate_left(usize::from(number) * 11 + round * 7);
                    offers.truncate(60);
                    let ids: Vec<_> = offers.iter().map(|offer| offer.entry.event.transaction_id.clone()).collect();
                    for (at, id) in ids.iter().rev().enumerate() {
                        let body = if (at + round) % 3 == 0 {
                            EventBody::Cancelled { reason: None }
                        } else {
                            EventBody::Settled
                        };
                        offers.push(author.write(id.as_str(), &facts, NodeId::from_bytes([99; 16]), body));
                    }
                    let pushed = author.push(&mut session, from, &offers).await.expect("nobody is in the way");
                    assert_eq!(pushed.refused, []);
                }
            }));
        }
        for writer in writers {
            writer.await.expect("no writer panics");
        }
    });
    assert!(!server.log().contains("deadlock"), "{}", server.log());
    let wrong = "WITH e AS (SELECT transaction_id, bool_or(kind = 'settled') AS s, bool_or(kind = 'cancelled') AS c
                              FROM marketplace_transaction_events GROUP BY 1)
                 SELECT count(*) FROM e JOIN marketplace_transactions t USING (transaction_id)
                  WHERE t.status <> CASE WHEN s AND c THEN 'disputed' WHEN s THEN 'settled' ELSE 'cancelled' END";
    assert_eq!(server.sql("market", wrong), "0");
    assert_eq!(
        server.sql("market", "SELECT count(*) FROM marketplace_transaction_events"),
        (12 * 4 * 60 + 150).to_string()
    );
}

#[test]
fn what_a_trigger_refuses_stands_aside_and_the_rest_goes_on() {
    let (server, url) = market();
    let (mut author, mut poisoned) = (Author::new(1), Author::new(2));
    let (good, bad) = (some_facts("1"), some_facts("666"));
    let healthy: Vec<_> = (0..5_000).map(|number| author.record(&format!("g{number}"), &good)).collect();
    let mixed: Vec<_> = (0..5_000)
        .map(|number| poisoned.record(&format!("m{number}"), if number % 100 == 50 { &bad } else { &good }))
        .collect();
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        server.sql(
            "market",
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
               BEGIN RAISE check_violation USING MESSAGE = 'no_devil here', CONSTRAINT = 'no_devil'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON marketplace_transactions FOR EACH ROW
               WHEN (NEW.amount = 666) EXECUTE FUNCTION refuse()",
        );
        let started = Instant::now();
        author.push(&mut session, START, &healthy).await.expect("pushed");
        let normal = started.elapsed();
        let started = Instant::now();
        let pushed = poisoned.push(&mut session, START, &mixed).await.expect("pushed");
        println!("5000 entries: {normal:?}; with 50 refused: {:?}", started.elapsed());
        assert!(pushed.in_pieces);
        assert_eq!(pushed.refused.len(), 50);
        for (refused, number) in pushed.refused.iter().zip(0_u64..) {
            assert_eq!(refused.key, ParkedKey::Seq(number * 100 + 51));
            assert_eq!((refused.code.as_str(), refused.constraint.as_deref()), ("23514", Some("no_devil")));
            assert!(refused.reason.contains("no_devil"), "{}", refused.reason);
        }
    });
    assert_eq!(server.sql("market", "SELECT count(*) FROM marketplace_transactions"), "9950");
    assert_eq!(server.sql("market", "SELECT count(*) FROM marketplace_transaction_events"), "9950");
}

#[test]
fn a_constraint_that_has_refused_is_asked_for_as_long_as_it_stands() {
    let (server, url) = market();
    let alter = |sql: &str| server.sql("market", &format!("ALTER TABLE marketplace_transactions {sql}"));
    let count = || server.sql("market", "SELECT count(*) FROM marketplace_transactions");
    let mut author = Author::new(1);
    let (mut window, mut checks) = (Window::default(), Checks::default());
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        alter("ADD CONSTRAINT no_devil CHECK (amount <> 666 OR amount IS NULL)");
        for (batch, has_unasked, refused) in [(0, false, 2), (1, false, 2), (2, true, 3), (3, true, 3)] {
            if batch == 2 {
                // Outside of its table no row has a `tableoid`.
                alter("ADD CONSTRAINT no_thirteen CHECK (amount <> 13 OR tableoid = 0) NOT VALID");
            }
            let from = author.head;
            let amounts = (0..100).map(|number| match number {
                20 | 70 => "666",
                50 => "13",
                _ => "7",
            });
            let offers: Vec<_> = (0..)
                .zip(amounts)
                .map(|(number, amount)| author.record(&format!("b{batch}-{number:02}"), &some_facts(amount)))
                .collect();
            let pushed =
                author.push_having(&mut session, from, &offers, &mut window, &mut checks).await.expect("pushed");
            let codes: Vec<_> = pushed.refused.iter().map(|refused| refused.code.as_str()).collect();
            assert_eq!(codes, vec!["23514"; refused], "batch {batch}: {:?}", pushed.refused);
            let reasons = pushed.refused.iter().filter(|refused| refused.reason.contains("no_devil")).count();
            assert_eq!(reasons, 2, "batch {batch}: {:?}", pushed.refused);
            assert_eq!(pushed.in_pieces, has_unasked, "batch {batch} is taken apart only where none can be asked");
        }
        assert_eq!(count(), "390");
        alter("DROP CONSTRAINT no_devil");
        alter("DROP CONSTRAINT no_thirteen");
        let (from, offers) = (author.head, [author.record("last", &some_facts("666"))]);
        let pushed = author.push_having(&mut session, from, &offers, &mut window, &mut checks).await.expect("pushed");
        assert_eq!(pushed.refused, []);
        assert_eq!(count(), "391");
    });
}

#[test]
fn a_table_that_takes_nothing_is_at_fault_itself() {
    let (server, url) = market();
    let mut author = Author::new(1);
    let offers: Vec<_> = (0..500).map(|number| author.record(&format!("t{number}"), &some_facts("1"))).collect();
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        server.sql("market", "ALTER TABLE marketplace_transactions ADD CONSTRAINT closed CHECK (amount < 0)");
        let trouble = author.push(&mut session, START, &offers).await.expect_err("nothing goes through");
        assert_eq!((trouble.kind, trouble.constraint.as_deref()), (Kind::Misconfigured, Some("closed")), "{trouble}");
        server.sql("market", "ALTER TABLE marketplace_transactions DROP CONSTRAINT closed");
        author.push(&mut session, START, &offers).await.expect("nothing was set aside meanwhile");

        server.sql("market", "ALTER TABLE marketplace_transactions DROP COLUMN evidence");
        let mut other = Author::new(2);
        let offer = other.record("later", &some_facts("1"));
        let trouble = other.push(&mut session, START, &[offer]).await.expect_err("a column is missing");
        assert_eq!(trouble.kind, Kind::Misconfigured);
        assert!(trouble.words.contains("evidence"), "{trouble}");
    });
}

#[test]
fn a_narrow_column_gets_no_amount_that_it_would_round() {
    let (server, url) = market();
    let amounts = ["12.5", "0.005", "99999999.99", "100000000", "7"];
    let mut author = Author::new(1);
    let offers: Vec<_> =
        amounts.iter().map(|amount| author.record(&format!("a{amount}"), &some_facts(amount))).collect();
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        server.sql("market", "ALTER TABLE marketplace_transactions ALTER COLUMN amount TYPE DECIMAL(10,2)");
        let pushed = author.push(&mut session, START, &offers).await.expect("pushed");
        let mut refused: Vec<_> = pushed.refused.iter().map(|refused| (&refused.key, refused.code.as_str())).collect();
        refused.sort();
        assert_eq!(refused, [(&ParkedKey::Seq(2), INEXACT_AMOUNT), (&ParkedKey::Seq(4), "22003")]);
    });
    assert_eq!(
        server.sql("market", "SELECT amount FROM marketplace_transactions ORDER BY amount"),
        "7.00\n12.50\n99999999.99"
    );
}

#[test]
fn a_decision_whose_transaction_central_lost_brings_it_along() {
    let (server, url) = market();
    let (mut a, mut b) = (Author::new(1), Author::new(2));
    let facts = some_facts("1");
    let recorded = a.record("t1", &facts);
    let settled = b.write("t1", &facts, a.node_id, EventBody::Settled);
    let orphan = b.write("t2", &facts, a.node_id, EventBody::Settled);
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        let recall = |id: &tradepost::domain::TransactionId| Ok((id.as_str() == "t1").then(|| recorded.entry.clone()));
        let pushed = b.push_recalling(&mut session, START, &[settled, orphan], &recall).await.expect("pushed");
        assert_eq!(pushed.refused.len(), 1);
        assert_eq!((&pushed.refused[0].key, pushed.refused[0].code.as_str()), (&ParkedKey::Seq(2), NOT_RECORDED));
    });
    assert_eq!(server.sql("market", "SELECT transaction_id, status FROM marketplace_transactions"), "t1|settled");
    assert_eq!(server.sql("market", "SELECT count(*) FROM marketplace_transaction_events"), "2");
}

#[test]
fn what_an_older_client_did_is_adopted_before_anything_is_added() {
    let (server, url) = market();
    let facts = some_facts("18.5");
    let mut author = Author::new(1);
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        let seed = |id: &str, amount: &str, status: &str| {
            let sql = format!(
                "INSERT INTO marketplace_transactions VALUES
                 ('{id}', '2024-01-02 03:04:05.678901', 'genesis', 'thon', 'python', {amount}, 'USD', '{status}', '{{}}', NULL)"
            );
            server.sql("market", &sql)
        };
        seed("mine", "18.50", "settled");
        seed("taken", "1", "pending");
        let offers = [
            author.record("mine", &facts),
            author.write("mine", &facts, author.node_id, EventBody::Cancelled { reason: None }),
            author.record("taken", &facts),
        ];
        let pushed = author.push(&mut session, START, &offers).await.expect("pushed");
        assert_eq!(pushed.adopted, 3, "two of one row, one of the other");
        assert_eq!(pushed.conflicts.len(), 1);
        assert_eq!(pushed.conflicts[0].transaction_id.as_str(), "taken");
        assert_eq!(pushed.conflicts[0].central.len(), 1);
        assert_eq!(pushed.refused.len(), 1);
        assert_eq!(pushed.refused[0].code, "transaction_id_conflict");
        assert_eq!(
            server.sql("market", "SELECT transaction_id, amount, status, created_at FROM marketplace_transactions ORDER BY 1"),
            "mine|18.500000000|disputed|2023-11-14 22:13:20.001\ntaken|1.000000000|pending|2024-01-02 03:04:05.678901",
            "settled there and cancelled here; the smallest time of recording; the other's facts stay"
        );

        // It decides again, and adds evidence that is no list of strings.
        server.sql(
            "market",
            "UPDATE marketplace_transactions SET status = 'settled', evidence = '[{\"photo\": 1}]' WHERE transaction_id = 'mine'",
        );
        let from = author.head;
        let offer = author.write("mine", &facts, author.node_id, EventBody::EvidenceAdded { evidence: vec!["x".into()] });
        author.push(&mut session, from, &[offer]).await.expect("pushed");
        assert_eq!(
            server.sql("market", "SELECT status, evidence FROM marketplace_transactions WHERE transaction_id = 'mine'"),
            "settled|[\"x\", \"{\\\"photo\\\":1}\"]"
        );
    });
}

#[test]
fn a_row_that_somebody_keeps_locked_is_found_out() {
    let (_server, url) = market();
    let mut author = Author::new(1);
    let facts = some_facts("1");
    let offers: Vec<_> = ["t1", "t2", "t3"].map(|id| author.record(id, &facts)).to_vec();
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        author.push(&mut session, START, &offers).await.expect("pushed");
        let other = super::book::session(&url).await;
        other
            .batch("BEGIN; SELECT FROM marketplace_transactions WHERE transaction_id = 't2' FOR UPDATE")
            .await
            .expect("it is locked");
        let from = author.head;
        let more: Vec<_> =
            ["t1", "t2", "t3"].map(|id| author.write(id, &facts, author.node_id, EventBody::Settled)).to_vec();
        let trouble = author.push(&mut session, from, &more).await.expect_err("one row is locked");
        assert_eq!((trouble.kind, trouble.code.as_deref()), (Kind::Contention, Some("55P03")), "{trouble}");
        let waiting = waiting_for_locks(&mut session, &more).await.expect("the others can be asked for");
        assert_eq!(waiting, [more[1].key.clone()]);
        other.batch("COMMIT").await.expect("it lets go");
        author.push(&mut session, from, &more).await.expect("nothing is in the way now");
    });
}
