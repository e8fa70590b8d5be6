//! `cargo bench --bench engine`: what the engine does by itself, as ratios.
//!
//! - Group commit: durable transactions of 64 submitters against those of one.
//! - SQLite: the same content and indexes in batches of the same size, with as much durability.
//! - Scale: every operation at 100 000 agents against the same at 10 000.
//! - Scrape: the metrics page at 100 000 transactions against the same at 1 000.
//!
//! Submitters are tasks, as they are behind the HTTP API. `TRADEPOST_BENCH_QUICK=1` makes a short run, and an argument
//! (`commit`, `scale`, `scrape`) picks one part.

#[path = "../common/mod.rs"]
mod common;
mod sqlite;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bound, Numbers, Report, agent_id, capability, median, new_transaction, note, seconds};
use tokio::runtime::Runtime;
use tradepost::domain::ranking::SearchQuery;
use tradepost::domain::{Decision, TransactionId};
use tradepost::metrics::Metrics;
use tradepost::{Engine, Location, Options};

const SUBMITTERS: usize = 64;

fn main() -> ExitCode {
    if !common::is_bench_run() {
        return ExitCode::SUCCESS;
    }
    let quick = common::is_quick();
    let mut report = Report::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    if common::is_wanted("commit") {
        group_commit(&runtime, quick, &mut report);
    }
    if common::is_wanted("scale") {
        scale(&runtime, quick, &mut report);
    }
    if common::is_wanted("scrape") {
        scrape(quick, &mut report);
    }
    report.finish()
}

/// One submitter, 64 submitters and SQLite take turns, so that a slow spell of the disk meets all three.
fn group_commit(runtime: &Runtime, quick: bool, report: &mut Report) {
    const AGENTS: usize = 4;
    let (rounds, round) = if quick { (3, Duration::from_millis(400)) } else { (7, Duration::from_secs(1)) };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (engine, metrics) = common::open_file(directory.path());
    let mut sqlite = sqlite::Ledger::create(&directory.path().join("ledger.sqlite"));
    common::register_agents(&engine, AGENTS);
    record(runtime, &engine, SUBMITTERS, AGENTS, round / 4);

    let (mut alone, mut together, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        alone.push(record(runtime, &engine, 1, AGENTS, round));
        let before = commits(&metrics);
        together.push(record(runtime, &engine, SUBMITTERS, AGENTS, round));
        let after = commits(&metrics);
        let batch = ((after.0 - before.0) / (after.1 - before.1)).round().max(1.0);
        let rate = sqlite.record(batch as usize, AGENTS, round);
        note(&format!("SQLite, {batch} in a batch"), rate as usize, Duration::from_secs(1));
        theirs.push(rate);
    }
    let callers: Vec<(f64, f64)> = (0..rounds)
        .map(|_| {
            (common::record_in_batches(&engine, SUBMITTERS, 4, AGENTS, round), sqlite.record(SUBMITTERS, AGENTS, round))
        })
        .collect();
    let (alone, together, theirs) = (median(alone), median(together), median(theirs));
    note("record, 1 submitter", alone as usize, Duration::from_secs(1));
    note("record, 64 submitters", together as usize, Duration::from_secs(1));
    note("record, SQLite", theirs as usize, Duration::from_secs(1));
    report.ratio("durable transactions: 64 submitters / 1 submitter", together / alone, Bound::AtLeast(10.0));
    report.ratio("durable transactions, 4 agents: 64 submitters / SQLite", together / theirs, Bound::AtLeast(1.2));
    let ratio = median(callers.iter().map(|(ours, theirs)| ours / theirs).collect());
    report.ratio("the same: 4 callers with batches of 64 / SQLite", ratio, Bound::AtLeast(1.2));
}

/// Commands and commits so far.
fn commits(metrics: &Metrics) -> (f64, f64) {
    let state = Engine::open(Options::new(Location::Memory)).expect("a store in memory opens");
    let page = metrics.render(&state);
    let value = |name: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name)).expect("the family is on the page");
        line.trim().parse().expect("a sample is a number")
    };
    (value("tradepost_store_commit_batch_size_sum"), value("tradepost_store_commit_batch_size_count"))
}

/// Transactions per second.
fn record(runtime: &Runtime, engine: &Engine, submitters: usize, agents: usize, time: Duration) -> f64 {
    let began = Instant::now();
    let done: usize = run_submitters(runtime, submitters, |worker| {
        let engine = engine.clone();
        let mut numbers = Numbers::seeded(worker as u64 + 1);
        async move {
            let mut done = 0;
            while began.elapsed() < time {
                let transaction = new_transaction(numbers.below(agents), numbers.below(agents));
                engine.record(transaction, None).await.expect("a transaction is recorded");
                done += 1;
            }
            done
        }
    })
    .into_iter()
    .sum();
    done as f64 / began.elapsed().as_secs_f64()
}

fn run_submitters<T, F>(runtime: &Runtime, submitters: usize, work: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    runtime.block_on(async {
        let tasks: Vec<_> = (0..submitters).map(|worker| tokio::spawn(work(worker))).collect();
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.expect("a submitter ends"));
        }
        results
    })
}

/// Both sizes take turns at every operation. A scan anywhere would show as a ratio of 10.
fn scale(runtime: &Runtime, quick: bool, report: &mut Report) {
    let sizes = if quick { [1_000, 10_000] } else { [10_000, 100_000] };
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    let fields = [0, 1].map(|index| {
        let (engine, _) = common::open_file(directories[index].path());
        let took = seconds(|| common::register_agents(&engine, sizes[index]));
        note(&format!("register, {} agents", sizes[index]), sizes[index], Duration::from_secs_f64(took));
        Field { engine, agents: sizes[index] }
    });
    let (rounds, writes, reads) = if quick { (3, 2_048, 5_000) } else { (7, 8_192, 20_000) };
    let mut costs: Vec<(&str, [Vec<f64>; 2])> = Vec::new();
    for round in 0..rounds {
        for (index, field) in fields.iter().enumerate() {
            let (ids, record) = field.record(runtime, writes, round);
            let all = [
                ("record", writes, record),
                ("settle", writes, field.settle(runtime, &ids)),
                ("heartbeat", reads, field.heartbeat(reads, round)),
                ("get an agent", reads, field.get_agent(reads, round)),
                ("get a transaction", reads, field.get_transaction(reads, &ids)),
                ("search", reads / 10, field.search(reads / 10, round)),
            ];
            for (operation, count, took) in all {
                let place = costs.iter().position(|(name, _)| *name == operation).unwrap_or_else(|| {
                    costs.push((operation, [Vec::new(), Vec::new()]));
                    costs.len() - 1
                });
                costs[place].1[index].push(took / count as f64);
            }
        }
    }
    for (operation, [small, large]) in costs {
        let (small, large) = (median(small), median(large));
        for (cost, agents) in [(small, sizes[0]), (large, sizes[1])] {
            note(&format!("{operation}, {agents} agents"), 1, Duration::from_secs_f64(cost));
        }
        let what = format!("cost of {operation}: {} agents / {} agents", sizes[1], sizes[0]);
        report.ratio(what, large / small, Bound::AtMost(3.0));
    }
}

/// An engine with so many agents.
struct Field {
    engine: Engine,
    agents: usize,
}

impl Field {
    fn record(&self, runtime: &Runtime, count: usize, round: u64) -> (Vec<TransactionId>, f64) {
        let began = Instant::now();
        let ids = run_submitters(runtime, SUBMITTERS, |worker| {
            let (engine, agents) = (self.engine.clone(), self.agents);
            let mut numbers = Numbers::seeded(round * 1_000 + worker as u64);
            async move {
                let mut ids = Vec::new();
                for _ in 0..count / SUBMITTERS {
                    let transaction = new_transaction(numbers.below(agents), numbers.below(agents));
                    let receipt = engine.record(transaction, None).await.expect("a transaction is recorded");
                    ids.push(receipt.value.transaction_id);
                }
                ids
            }
        });
        (ids.into_iter().flatten().collect(), began.elapsed().as_secs_f64())
    }

    fn settle(&self, runtime: &Runtime, ids: &[TransactionId]) -> f64 {
        let shares: Arc<[Vec<TransactionId>]> =
            ids.chunks(ids.len().div_ceil(SUBMITTERS)).map(<[TransactionId]>::to_vec).collect();
        seconds(|| {
            run_submitters(runtime, shares.len(), |worker| {
                let (engine, shares) = (self.engine.clone(), Arc::clone(&shares));
                async move {
                    for id in &shares[worker] {
                        engine.decide(id.clone(), Decision::Settle, None).await.expect("a transaction is settled");
                    }
                }
            });
        })
    }

    fn heartbeat(&self, count: usize, round: u64) -> f64 {
        self.by_agent(count, round, |agent| {
            self.engine.heartbeat(&agent_id(agent)).wait().expect("a heartbeat is taken");
        })
    }

    fn get_agent(&self, count: usize, round: u64) -> f64 {
        self.by_agent(count, round, |agent| {
            self.engine.agent(&agent_id(agent)).expect("the agent is there");
        })
    }

    fn get_transaction(&self, count: usize, ids: &[TransactionId]) -> f64 {
        seconds(|| {
            for id in ids.iter().cycle().take(count) {
                self.engine.transaction(id).expect("the transaction is there");
            }
        })
    }

    /// 10 profiles by one capability; at every size there are more that have it.
    fn search(&self, count: usize, round: u64) -> f64 {
        self.by_agent(count, round, |agent| {
            let query = SearchQuery { capabilities: vec![capability(agent)], ..SearchQuery::default() };
            assert!(!self.engine.search(&query, 10).expect("a search is answered").is_empty());
        })
    }

    fn by_agent(&self, count: usize, round: u64, visit: impl Fn(usize)) -> f64 {
        let mut numbers = Numbers::seeded(round);
        seconds(|| (0..count).for_each(|_| visit(numbers.below(self.agents))))
    }
}

fn scrape(quick: bool, report: &mut Report) {
    const AGENTS: usize = 100;
    let (rounds, scrapes) = if quick { (5, 100) } else { (11, 400) };
    let sides = [1_000, 100_000].map(|transactions| {
        let metrics = Metrics::default();
        let options = Options { metrics: metrics.clone(), ..Options::new(Location::Memory) };
        let engine = Engine::open(options).expect("a store in memory opens");
        common::register_agents(&engine, AGENTS);
        let mut numbers = Numbers::seeded(7);
        let mut record = || engine.record(new_transaction(numbers.below(AGENTS), numbers.below(AGENTS)), None);
        common::submit_all((0..transactions).map(|_| record()));
        (engine, metrics)
    });
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (cost, (engine, metrics)) in costs.iter_mut().zip(&sides) {
            let took = seconds(|| (0..scrapes).for_each(|_| assert!(!metrics.render(engine).is_empty())));
            cost.push(took / f64::from(scrapes));
        }
    }
    let [few, many] = costs.map(median);
    for (cost, transactions) in [(few, 1_000), (many, 100_000)] {
        note(&format!("scrape, {transactions} transactions"), 1, Duration::from_secs_f64(cost));
    }
    report.ratio("cost of a scrape: 100000 transactions / 1000 transactions", many / few, Bound::AtMost(1.3));
}
