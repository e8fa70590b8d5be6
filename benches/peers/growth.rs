//! What many transactions cost: the file, a start after an orderly end and after `kill -9`, the slowest writes, and
//! memory. And how large the binary is.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tradepost::domain::Decision;

use crate::callers::{Doing, User};
use crate::common::load::{self, Spell};
use crate::common::{self, Bound, Numbers, median, new_transaction, note, process};
use crate::results::Results;
use crate::servers_of_tests::sidecar::{Home, Sidecar};

const AGENTS: usize = 10_000;
/// The size that has bounds.
const JUDGED: usize = 1_000_000;
const MIB: f64 = 1024.0 * 1024.0;
/// As many as wait for the slowest writes, and as are there for the memory.
const CONNECTIONS: [usize; 2] = [16, 64];
const STARTS: usize = 3;

pub fn run(quick: bool, results: &mut Results) {
    let mut sizes = if quick { vec![10_000] } else { vec![10_000, JUDGED] };
    if let Some(more) = std::env::var("TRADEPOST_BENCH_GROWTH").ok().and_then(|size| size.parse().ok()) {
        sizes.push(more);
    }
    let binary = fs::metadata(env!("CARGO_BIN_EXE_tradepost")).expect("it has been built").len();
    // Built sooner than a release, and larger.
    results.report.shown("binary of this bench, MiB", binary as f64 / MIB);
    let empty = Home::new();
    let idle = empty.setup().start();
    // Whatever a start needs is given back or not by then.
    std::thread::sleep(Duration::from_secs(1));
    let resident = process::resident_bytes(pid(&idle)) as f64 / MIB;
    results.report.figure("memory of an idle, empty sidecar, MiB", resident, Bound::AtMost(15.0));
    idle.stop();
    for size in sizes {
        grow(size, quick, results);
    }
}

fn grow(size: usize, quick: bool, results: &mut Results) {
    let home = Home::new();
    let bytes = fill(&home, size);
    eprintln!("{size} transactions: {bytes:.0} bytes each");
    let [stopped, killed] = starts(&home);
    eprintln!("starts: {:.3} s after an orderly end, {:.3} s after kill -9", stopped, killed);
    let sidecar = home.setup().start();
    let tail = tails(&sidecar, quick);
    let peak = memory_under_load(&sidecar, quick);
    eprintln!("{:.1} MiB under load", peak);
    sidecar.stop();

    let report = &mut results.report;
    let mut row = |what: String, value: f64, bound: Bound| {
        if size == JUDGED { report.figure(what, value, bound) } else { report.shown(what, value) }
    };
    let with = format!("{size} transactions");
    row(format!("bytes of the file for a transaction with two events, {with}"), bytes, Bound::AtMost(1_024.0));
    row(format!("start after an orderly end, {with}, s"), stopped, Bound::AtMost(0.1));
    row(format!("start after kill -9, {with}, s"), killed, Bound::AtMost(2.0));
    row(format!("p99 of a write: {with} / none"), tail, Bound::AtMost(1.5));
    row(format!("memory under load, {AGENTS} agents and {with}, MiB"), peak, Bound::AtMost(96.0));
}

/// Fills a file with settled transactions; how many bytes each has come to, with the file closed.
fn fill(home: &Home, size: usize) -> f64 {
    const BATCH: usize = 1_000;
    let (engine, _) = common::open_file(&home.data());
    common::register_agents(&engine, AGENTS);
    engine.close();
    drop(engine);
    let before = file_bytes(home);

    let began = Instant::now();
    let (engine, _) = common::open_file(&home.data());
    let mut numbers = Numbers::seeded(1);
    for _ in 0..size / BATCH {
        let batch = (0..BATCH).map(|_| new_transaction(numbers.below(AGENTS), numbers.below(AGENTS))).collect();
        let recorded = engine.record_batch(batch).wait().expect("it is durable");
        common::submit_all(recorded.into_iter().map(|recorded| {
            let transaction = recorded.expect("it breaks no rule").value;
            engine.decide(transaction.transaction_id, Decision::Settle, None)
        }));
    }
    engine.close();
    drop(engine);
    note(&format!("{size} transactions, recorded and settled"), size, began.elapsed());
    (file_bytes(home) - before) / size as f64
}

fn file_bytes(home: &Home) -> f64 {
    fs::metadata(home.file()).expect("it has been made").len() as f64
}

/// Seconds until it serves: after an orderly end, and after being killed in the middle of writes.
fn starts(home: &Home) -> [f64; 2] {
    let runtime = load::runtime();
    let mut seconds: [Vec<f64>; 2] = Default::default();
    for number in 0..STARTS as u64 {
        let began = Instant::now();
        let sidecar = home.setup().start();
        seconds[0].push(began.elapsed().as_secs_f64());
        record(&runtime, &sidecar, Duration::from_millis(200), number);
        sidecar.kill();
        let began = Instant::now();
        let sidecar = home.setup().start();
        seconds[1].push(began.elapsed().as_secs_f64());
        sidecar.stop();
    }
    seconds.map(median)
}

fn record(runtime: &tokio::runtime::Runtime, sidecar: &Sidecar, time: Duration, seed: u64) -> Spell {
    let users = User::connect_many(sidecar.address, CONNECTIONS[0], Doing::Record, AGENTS, seed);
    let mut users = runtime.block_on(users);
    load::run(runtime, &mut users, CONNECTIONS[0], time)
}

/// The p99 of a write to this sidecar in units of that of one that began empty. They take turns, and whoever has not its
/// turn is held.
fn tails(sidecar: &Sidecar, quick: bool) -> f64 {
    let (rounds, round) = if quick { (3, Duration::from_millis(300)) } else { (7, Duration::from_millis(600)) };
    let runtime = load::runtime();
    let home = Home::new();
    let empty = home.setup().start();
    let mut tails: [Vec<f64>; 2] = Default::default();
    sidecar.signal(Signal::STOP);
    empty.signal(Signal::STOP);
    for number in 0..=rounds {
        for (tails, side) in tails.iter_mut().zip([sidecar, &empty]) {
            side.signal(Signal::CONT);
            let p99 = record(&runtime, side, round, number).p99();
            side.signal(Signal::STOP);
            // The first round warms both up.
            if number > 0 {
                tails.push(p99.as_secs_f64() * 1e3);
            }
        }
    }
    sidecar.signal(Signal::CONT);
    empty.signal(Signal::CONT);
    empty.stop();
    let [full, none] = tails.map(median);
    eprintln!("p99 of a write: {full:.2} ms, {none:.2} ms in a sidecar that began empty");
    full / none
}

/// The most memory that was resident while everything was asked of it, in MiB.
fn memory_under_load(sidecar: &Sidecar, quick: bool) -> f64 {
    let time = if quick { Duration::from_millis(500) } else { Duration::from_secs(4) };
    let runtime = load::runtime();
    let users = User::connect_many(sidecar.address, CONNECTIONS[1], Doing::Everything, AGENTS, 1);
    let mut users = runtime.block_on(users);
    process::forget_peak(pid(sidecar));
    let spell = load::run(&runtime, &mut users, CONNECTIONS[1], time);
    note("everything by turns", spell.per_second as usize, Duration::from_secs(1));
    process::peak_bytes(pid(sidecar)) as f64 / MIB
}

fn pid(sidecar: &Sidecar) -> u32 {
    sidecar.pid().as_raw_nonzero().get().unsigned_abs()
}
