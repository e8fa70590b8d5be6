//! The engine in process against SQLite: the same rows and indexes, as many transactions in a commit, as durable. And
//! against what no store can be faster than: bytes at the end of a file, and one sync for each batch.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{Bound, compare, note, open_file, record_in_batches, register_agents};
use crate::results::Results;
use crate::sqlite::Ledger;

const BATCHES: [usize; 3] = [1, 64, 1_000];
const AGENTS: [usize; 2] = [4, 1_000];
/// As many as overlap: while one batch is on its way to the disk, the next ones are made.
const CALLERS: usize = 4;
/// What an event takes in the ledger log.
const EVENT_BYTES: usize = 200;

pub fn run(quick: bool, results: &mut Results) {
    let (rounds, round) = if quick { (5, Duration::from_millis(100)) } else { (11, Duration::from_millis(200)) };
    for agents in AGENTS {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (engine, _) = open_file(directory.path());
        register_agents(&engine, agents);
        let mut sqlite = Ledger::create(&directory.path().join("ledger.sqlite"));
        let mut bare = BareLog::create(&directory.path().join("bare"));
        for batch in BATCHES {
            let mut measured = Vec::new();
            // The first round warms both up.
            for number in 0..=rounds {
                let rates = [
                    record_in_batches(&engine, batch, 1, agents, round),
                    record_in_batches(&engine, batch, CALLERS, agents, round),
                    sqlite.record(batch, agents, round),
                    bare.record(batch, round),
                ];
                if number > 0 {
                    measured.push(rates);
                }
            }
            let (rates, ratios) = compare(&measured);
            let with_callers: Vec<_> = measured.iter().map(|[_, together, theirs, _]| [*together, *theirs]).collect();
            let (_, with_callers) = compare(&with_callers);
            let what = format!("batches of {batch}, {agents} agents");
            for (who, rate) in ["1 caller", "4 callers", "SQLite", "a bare log"].into_iter().zip(rates) {
                note(&format!("{what}, {who}"), rate as usize, Duration::from_secs(1));
            }
            let bound = match (batch, agents) {
                (64, 4) => Some(Bound::AtLeast(2.0)),
                (1_000, 1_000) => Some(Bound::AtLeast(1.2)),
                _ => None,
            };
            let ours = format!("engine in process, {what}");
            let together = format!("SQLite, {CALLERS} callers at a time");
            if bound.is_some() {
                results.against(&ours, "SQLite", ratios[2], bound);
                results.against(&ours, &together, with_callers[1], None);
            } else {
                results.report.shown(format!("{ours} / SQLite"), ratios[2]);
                results.report.shown(format!("{ours} / {together}"), with_callers[1]);
            }
            results.report.shown(format!("a bare log, {what} / SQLite"), ratios[2] / ratios[3]);
        }
        engine.close();
    }
}

/// A file that is only ever written to at its end: no order, no index, no sums.
struct BareLog(File);

impl BareLog {
    fn create(path: &Path) -> Self {
        Self(File::create(path).expect("a new file"))
    }

    /// Events per second, `batch` of them to a sync.
    fn record(&mut self, batch: usize, time: Duration) -> f64 {
        let events = vec![b'e'; batch * EVENT_BYTES];
        let began = Instant::now();
        let mut done = 0;
        while began.elapsed() < time {
            self.0.write_all(&events).and_then(|()| self.0.sync_data()).expect("the disk takes it");
            done += batch;
        }
        done as f64 / began.elapsed().as_secs_f64()
    }
}
