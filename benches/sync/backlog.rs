//! A long time offline: how fast the ledger of a real sidecar drains into PostgreSQL, and what memory that takes.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tradepost::domain::{Decision, NewTransaction};
use tradepost::{Engine, Location, Options};

use crate::common::central::sink;
use crate::common::facts;
use crate::common::postgres::Postgres;
use crate::common::sidecar::{Home, Sidecar, wait_for};
use crate::report::process::{forget_peak, peak_bytes, resident_bytes};
use crate::report::{Bound, Report, submit_all};
use crate::{agents, common};

const MIB: f64 = (1_024 * 1_024) as f64;
/// How many transactions are recorded before they are settled; no divisor of a batch, so that now and then an event comes
/// when the row of its transaction is central already.
const RECORDED_AT_ONCE: usize = 400;
/// How long a drain may stand still before that is a mistake.
const PATIENCE: Duration = Duration::from_secs(60);
/// Everything but what the server numbers by itself.
const EVENT_COLUMNS: &str = "event_id, transaction_id, payer_agent, provider_agent, recorded_by, facts, kind, round, \
                             payload, occurred_at, node_id, node_seq, hash";

pub fn run(quick: bool, report: &mut Report) {
    ledger(if quick { 100_000 } else { 1_000_000 }, report);
    agents::run(if quick { 20_000 } else { 100_000 }, report);
}

fn ledger(events: usize, report: &mut Report) {
    let home = Home::new();
    let took = write_offline(&home, events);
    crate::report::note("events recorded offline", events, took);
    let mut postgres = Postgres::start_with(&["max_wal_size=4GB", "shared_buffers=128MB"]);
    let url = postgres.database("market");
    postgres.stop();
    let sidecar = home.setup().flags(&["--postgres-url", &url]).start();
    wait_for("the sink to notice", || (sink(&sidecar, "postgres")["state"] == "backoff").then_some(()));
    // What the start took is not what draining takes.
    thread::sleep(Duration::from_secs(2));
    let pid = sidecar.pid().as_raw_nonzero().get().cast_unsigned();
    let before = resident_bytes(pid);
    forget_peak(pid);
    postgres.resume();
    let drain = Drain::watch(&sidecar, events as u64);
    let after = peak_bytes(pid);
    let [first, last] = [drain.rate(0.0, 0.1), drain.rate(0.9, 1.0)];
    eprintln!(
        "{events} events drained: {:.0} per s, {first:.0} in the first tenth, {last:.0} in the last; resident {:.1} MiB \
         before, {:.1} MiB at most",
        drain.rate(0.0, 1.0),
        before as f64 / MIB,
        after as f64 / MIB
    );
    sidecar.stop();
    let tenths = copy(&postgres);
    let copied = tenths.iter().sum();
    crate::report::note("the same rows by COPY", events, copied);
    let copy_slows = tenths[0].as_secs_f64() / tenths[9].as_secs_f64();
    eprintln!("by COPY, the last tenth comes at {copy_slows:.2} times the rate of the first");
    let growth = after.saturating_sub(before) as f64 / MIB;
    report.figure(format!("memory for draining {events} events, MiB"), growth, Bound::AtMost(64.0));
    let copying = events as f64 / copied.as_secs_f64();
    report.ratio("rate of draining / COPY", drain.rate(0.0, 1.0) / copying, Bound::AtLeast(0.3));
    report.ratio("rate of the last tenth / the first", last / first, Bound::AtLeast(0.8));
}

/// Transactions that are recorded, and settled some hundreds of events later.
pub fn write_offline(home: &Home, events: usize) -> Duration {
    let began = Instant::now();
    let engine = Engine::open(Options::new(Location::File(home.file()))).expect("a new store opens");
    engine.register(common::registration("genesis", &["sql"]), None).wait().expect("the id is free");
    for batch in 0..events / 2 / RECORDED_AT_ONCE {
        let new = |number| NewTransaction {
            transaction_id: None,
            facts: facts("genesis", &format!("agent-{}", number % 97), "sql", &format!("{batch}.{number:04}1")),
        };
        let recorded = engine.record_batch((0..RECORDED_AT_ONCE).map(new).collect()).wait().expect("they are recorded");
        let ids = recorded.into_iter().map(|answer| answer.expect("every id is free").value.transaction_id);
        submit_all(ids.map(|id| engine.decide(id, Decision::Settle, None)));
    }
    engine.close();
    began.elapsed()
}

/// How far a drain was, and when.
pub struct Drain {
    events: u64,
    /// From the first acknowledgement to the last.
    marks: Vec<(Duration, u64)>,
}

impl Drain {
    /// Looks on until nothing is left.
    pub fn watch(sidecar: &Sidecar, events: u64) -> Self {
        sidecar.client().post("/v1/sync/retry", &json!({}));
        let began = Instant::now();
        let mut client = sidecar.client();
        let mut marks: Vec<(Duration, u64)> = Vec::new();
        let mut moved = Instant::now();
        loop {
            let status = client.get("/v1/status").expect(200).json();
            let left = status["sinks"]["postgres"]["backlog"].as_u64().expect("a number");
            let acked = events.saturating_sub(left);
            if acked > marks.last().map_or(0, |(_, acked)| *acked) {
                marks.push((began.elapsed(), acked));
                moved = Instant::now();
            }
            if left == 0 {
                return Self { events, marks };
            }
            assert!(moved.elapsed() < PATIENCE, "the drain stands still: {status}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Events a second between two parts of all.
    pub fn rate(&self, from: f64, to: f64) -> f64 {
        let reached = |part: f64| {
            let wanted = (self.events as f64 * part) as u64;
            *self.marks.iter().find(|(_, acked)| *acked >= wanted).expect("it ended")
        };
        let ((began, first), (ended, last)) = (reached(from), reached(to));
        (last - first) as f64 / (ended - began).as_secs_f64()
    }
}

/// The rows of both tables once more, by `COPY` into the same tables, emptied; how long each tenth takes.
fn copy(postgres: &Postgres) -> Vec<Duration> {
    let tables =
        [("marketplace_transactions", "*", "created_at"), ("marketplace_transaction_events", EVENT_COLUMNS, "id")];
    let file = |table: &str, tenth: u32| postgres.directory().join(format!("{table}.{tenth}"));
    for (table, columns, order) in tables {
        for tenth in 1..=10 {
            let columns_of_table = match columns {
                "*" => "(t).*".to_owned(),
                columns => columns.split(", ").map(|column| format!("(t).{column}")).collect::<Vec<_>>().join(", "),
            };
            let part = format!("SELECT t, ntile(10) OVER (ORDER BY {order}) AS tenth FROM {table} t");
            let rows = format!("SELECT {columns_of_table} FROM ({part}) p WHERE tenth = {tenth}");
            postgres.sql("market", &format!("COPY ({rows}) TO '{}'", file(table, tenth).display()));
        }
    }
    postgres.sql("market", "TRUNCATE marketplace_transactions, marketplace_transaction_events");
    let copy_tenth = |tenth| {
        let began = Instant::now();
        for (table, columns, _) in tables {
            let columns = if columns == "*" { String::new() } else { format!("({columns})") };
            postgres.sql("market", &format!("COPY {table} {columns} FROM '{}'", file(table, tenth).display()));
        }
        began.elapsed()
    };
    (1..=10).map(copy_tenth).collect()
}
