//! How old an acknowledged write is when it is seen in PostgreSQL, and when the node of the other party shows it.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;
use tradepost::domain::{NewTransaction, TransactionId};
use uuid::Uuid;

use crate::common::central::Central;
use crate::common::{facts, registration};
use crate::node::{Node, Urls};
use crate::report::{Bound, Report, p99};

const PER_SECOND: u32 = 200;
/// How often both places are looked at: no more than this is added to what is measured.
const LOOK_EVERY: Duration = Duration::from_millis(4);
/// How long after the last write everything must have been seen.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(quick: bool, report: &mut Report) {
    let time = if quick { Duration::from_secs(6) } else { Duration::from_secs(30) };
    let central = Central::start();
    let both = Urls { redis: Some(central.redis.url()), postgres: Some(central.postgres.url("market")) };
    for (rings, urls) in [(true, both.clone()), (false, Urls { redis: None, ..both })] {
        let agents = if rings { ["payer-1", "provider-1"] } else { ["payer-2", "provider-2"] };
        let lags = measure(&central, &urls, agents, time);
        let how = if rings { "with Redis ringing" } else { "without Redis" };
        let milliseconds = |lag: Duration| lag.as_secs_f64() * 1e3;
        report.figure(
            format!("p99 until seen in PostgreSQL, {how}, ms"),
            milliseconds(lags.in_postgres),
            Bound::AtMost(250.0),
        );
        let bound = if rings { 300.0 } else { 1_500.0 };
        report.figure(
            format!("p99 until seen at the other node, {how}, ms"),
            milliseconds(lags.at_the_other),
            Bound::AtMost(bound),
        );
    }
}

struct Lags {
    in_postgres: Duration,
    at_the_other: Duration,
}

/// One node records at an even pace for an agent that lives at the other.
fn measure(central: &Central, urls: &Urls, [payer, provider]: [&'static str; 2], time: Duration) -> Lags {
    let [one, other] = [payer, provider].map(|agent| {
        let node = Node::in_memory(urls);
        node.engine.register(registration(agent, &["sql"]), None).wait().expect("the id is free");
        node
    });
    crate::common::sidecar::wait_for("both nodes to follow", || (one.is_settled() && other.is_settled()).then_some(()));
    let ((to_postgres, for_postgres), (to_other, for_other)) = (channel(), channel());
    let (url, node_id) = (central.postgres.url("market"), Uuid::from_bytes(*one.engine.node_id().as_bytes()));
    let seen_in_postgres = thread::spawn(move || watch_postgres(&url, node_id, &for_postgres));
    let engine = other.engine.clone();
    let seen_at_other = thread::spawn(move || {
        watch(&for_other, |waiting: &mut HashMap<TransactionId, Instant>| {
            let seen: Vec<_> = waiting.keys().filter(|id| engine.transaction(id).is_ok()).cloned().collect();
            seen.into_iter().filter_map(|id| waiting.remove(&id)).collect()
        })
    });
    let began = Instant::now();
    for number in 0..PER_SECOND * u32::try_from(time.as_secs()).expect("some seconds") {
        thread::sleep((began + Duration::from_secs(1) / PER_SECOND * number).saturating_duration_since(Instant::now()));
        let new = NewTransaction { transaction_id: None, facts: facts(payer, provider, "sql", "2.5") };
        let id = one.engine.record(new, None).wait().expect("it is recorded").value.transaction_id;
        let written = (id, Instant::now());
        to_postgres.send(written.clone()).expect("the watcher looks on");
        to_other.send(written).expect("the watcher looks on");
    }
    drop((to_postgres, to_other));
    let mut in_postgres = seen_in_postgres.join().expect("the watcher ends");
    let mut at_the_other = seen_at_other.join().expect("the watcher ends");
    Lags { in_postgres: p99(&mut in_postgres), at_the_other: p99(&mut at_the_other) }
}

type Written = (TransactionId, Instant);

/// Asks `look` over and over which of what was written is seen, until all is; how long each took.
fn watch(
    written: &Receiver<Written>,
    mut look: impl FnMut(&mut HashMap<TransactionId, Instant>) -> Vec<Instant>,
) -> Vec<Duration> {
    let (mut waiting, mut lags) = (HashMap::new(), Vec::new());
    let mut last = Instant::now();
    loop {
        let is_over = loop {
            match written.try_recv() {
                Ok((id, at)) => {
                    last = at;
                    waiting.insert(id, at);
                }
                Err(error) => break error == TryRecvError::Disconnected,
            }
        };
        lags.extend(look(&mut waiting).into_iter().map(|at| at.elapsed()));
        if is_over && waiting.is_empty() {
            return lags;
        }
        assert!(last.elapsed() < PATIENCE, "{} writes are not seen", waiting.len());
        thread::sleep(LOOK_EVERY);
    }
}

fn watch_postgres(url: &str, node_id: Uuid, written: &Receiver<Written>) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let (client, connection) = runtime.block_on(tokio_postgres::connect(url, NoTls)).expect("the server answers");
    let connection = runtime.spawn(connection);
    let sql =
        "SELECT transaction_id, node_seq FROM marketplace_transaction_events WHERE node_id = $1 AND node_seq > $2";
    let look = runtime.block_on(client.prepare(sql)).expect("the tables are there");
    let mut newest = 0_i64;
    // One that was seen before its writer said so waits here.
    let mut early: HashSet<TransactionId> = HashSet::new();
    let lags = watch(written, |waiting| {
        for row in runtime.block_on(client.query(&look, &[&node_id, &newest])).expect("the server answers") {
            newest = newest.max(row.get(1));
            early.insert(TransactionId::from_stored(row.get(0)));
        }
        let seen: Vec<_> = waiting.keys().filter(|id| early.remove(*id)).cloned().collect();
        seen.into_iter().filter_map(|id| waiting.remove(&id)).collect()
    });
    connection.abort();
    lags
}
