//! Reading what others wrote: nothing is skipped, nothing comes twice, and an idle look costs next to nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tradepost::domain::{AgentId, LogPosition, NodeId, Timestamp};
use tradepost::sync::postgres::checks::Checks;
use tradepost::sync::postgres::pull::{Horizon, Interest, Reading, glance, may_identify};
use tradepost::sync::postgres::push::{Push, Window};
use tradepost::sync::postgres::session::{Access, Limits, Session};

use super::access::runtime;
use super::book::{Author, agents, prepared, session, some_facts};
use super::common::postgres::{Bouncer, Postgres};
use super::common::sidecar::PATIENCE;

const STRANGER: NodeId = NodeId::NIL;

/// One complete read; the ids of its events, and the next horizon.
async fn read(session: &mut Session, agents: &[AgentId], since: &Horizon) -> (Vec<String>, Horizon) {
    let may_identify = may_identify(session).await.expect("an answer");
    session.begin(Access::Snapshot, Limits::default()).await.expect("a transaction");
    let seen = glance(session, STRANGER, None, may_identify).await.expect("a look");
    assert!(seen.history.len() > 9, "cluster and timeline are told: {}", seen.history);
    let interest = Interest { agents, recorded_by: &[STRANGER], except: (STRANGER, &[]), since };
    let mut reading = Reading::begin(session, &interest).await.expect("a read");
    let mut ids = Vec::new();
    while let Some(page) = reading.page().await.expect("a page") {
        let events = page.into_iter().map(|event| event.expect("it can be read").entry.event);
        ids.extend(events.map(|event| event.event_id.to_string()));
    }
    reading.end().await.expect("an end");
    session.commit().await.expect("a commit");
    (ids, Horizon::parse(&seen.snapshot).expect("a snapshot"))
}

#[test]
fn transactions_that_commit_late_are_neither_skipped_nor_read_twice() {
    const WRITERS: u8 = 16;
    let server = Postgres::start();
    let url = server.database("market");
    let written = Arc::new(AtomicUsize::new(0));
    let until = Instant::now() + Duration::from_secs(6);
    let seen = runtime().block_on(async {
        let mut reader = prepared(&url).await;
        let mut writers = Vec::new();
        for number in 1..=WRITERS {
            let (url, written) = (url.clone(), Arc::clone(&written));
            writers.push(tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(number.into());
                let mut session = session(&url).await;
                let (mut author, facts) = (Author::new(number), some_facts("1"));
                while Instant::now() < until {
                    let from = author.head;
                    let id = format!("w{number}-{}", from.seq);
                    let offers = [author.record(&id, &facts)];
                    let push = Push {
                        node_id: author.node_id,
                        from,
                        to: author.head,
                        offers: &offers,
                        recall: &|_| Ok(None),
                        now: Timestamp::from_micros(0),
                        in_pieces: false,
                    };
                    push.run(&mut session, &mut Window::default(), &mut Checks::default()).await.expect("pushed");
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
                    session.commit().await.expect("committed");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let mut seen: HashMap<String, usize> = HashMap::new();
        let (mut since, mut reads) = (Horizon::beginning(), 0);
        let ours = agents(&["thon"]);
        loop {
            let is_last = writers.iter().all(tokio::task::JoinHandle::is_finished);
            let (ids, next) = read(&mut reader, &ours, &since).await;
            for id in ids {
                *seen.entry(id).or_default() += 1;
            }
            (since, reads) = (next, reads + 1);
            if is_last {
                break;
            }
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        for writer in writers {
            writer.await.expect("no writer panics");
        }
        println!("{} events in {reads} reads", seen.len());
        seen
    });
    assert_eq!(seen.len(), written.load(Ordering::Relaxed), "nothing is skipped");
    assert!(seen.values().all(|times| *times == 1), "nothing comes twice");
}

#[test]
fn a_read_comes_in_pages_and_only_with_what_concerns_us() {
    let server = Postgres::start();
    let url = server.database("market");
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        let mut author = Author::new(1);
        let facts = some_facts("1");
        let offers: Vec<_> = (0..2_500).map(|number| author.record(&format!("t{number:04}"), &facts)).collect();
        author.push(&mut session, LogPosition::default(), &offers).await.expect("pushed");
        for (names, count) in [(&["genesis"][..], 2_500), (&["thon", "genesis"], 2_500), (&["mira"], 0), (&[], 0)] {
            let (ids, _) = read(&mut session, &agents(names), &Horizon::beginning()).await;
            assert_eq!(ids.len(), count, "{names:?}");
        }
        let (_, since) = read(&mut session, &agents(&["thon"]), &Horizon::beginning()).await;
        let from = author.head;
        let offer = author.record("later", &facts);
        author.push(&mut session, from, &[offer]).await.expect("pushed");
        assert_eq!(read(&mut session, &agents(&["thon"]), &since).await.0.len(), 1);
    });
}

#[test]
fn an_idle_look_at_a_large_history_reads_no_history() {
    let server = Postgres::start();
    let url = server.database("market");
    runtime().block_on(async {
        let mut session = prepared(&url).await;
        server.sql(
            "market",
            "INSERT INTO marketplace_transaction_events (event_id, transaction_id, payer_agent, provider_agent, recorded_by,
                    facts, kind, round, payload, occurred_at, node_id, node_seq, hash)
             SELECT gen_random_uuid(), i::text, 'genesis', 'agent' || i % 50, gen_random_uuid(), '', 'settled', 0, '{}', now(),
                    gen_random_uuid(), i, '' FROM generate_series(1, 30000) i;",
        );
        server.sql("market", "ANALYZE marketplace_transaction_events");
        // Sessions tell the statistics what they did a second later, at the end of a transaction.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        session.begin(Access::Snapshot, Limits::default()).await.expect("a transaction");
        let may = may_identify(&session).await.expect("an answer");
        let seen = glance(&session, STRANGER, None, may).await.expect("a look");
        session.commit().await.expect("a commit");
        let since = Horizon::parse(&seen.snapshot).expect("a snapshot");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = server.sql("market", "SELECT seq_scan FROM pg_stat_user_tables WHERE relname LIKE '%events'");
        let started = Instant::now();
        for _ in 0..20 {
            let (ids, _) = read(&mut session, &agents(&["genesis", "agent7"]), &since).await;
            assert!(ids.is_empty());
        }
        println!("an idle read takes {:?}", started.elapsed() / 20);
        drop(session);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let after = server.sql("market", "SELECT seq_scan FROM pg_stat_user_tables WHERE relname LIKE '%events'");
        assert_eq!(before, after, "the table is never read as a whole");
    });
}

#[test]
fn a_look_tells_whether_a_process_of_our_own_serves_us_and_whether_there_is_room() {
    let server = Postgres::start();
    let url = server.database("market");
    let bouncer = Bouncer::start(&server);
    let look = async |session: &mut Session| {
        session.begin(Access::Snapshot, Limits::default()).await.expect("a transaction");
        let seen = glance(session, STRANGER, None, false).await.expect("a look");
        session.commit().await.expect("a commit");
        seen.server
    };
    runtime().block_on(async {
        let mut direct = prepared(&url).await;
        let first = look(&mut direct).await;
        assert!(first.is_new && first.has_room, "{first:?}");
        assert_eq!(look(&mut direct).await.backend, first.backend);
        let mut others = Vec::new();
        for _ in 0..30 {
            others.push(session(&url).await);
        }
        assert!(!look(&mut direct).await.has_room, "30 of 50 connections are in use");
        drop(others);

        // A pooler gives one process to one connection after the other, until it is not new any more.
        let deadline = Instant::now() + PATIENCE;
        while look(&mut session(&bouncer.url("market")).await).await.is_new {
            assert!(Instant::now() < deadline, "it served many others before");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}
