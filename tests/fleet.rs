//! Whatever becomes of a fleet, it heals: its views are equal, nothing acknowledged is missing, nobody is dead who lives,
//! nobody lives who was deleted.
//!
//! A fleet is two to five real engines with the real work of both sinks, against a real Redis and a real PostgreSQL. One
//! scheduler takes one step at a time, drawn from a seed: what users do, rounds of a sink, wires that break before a
//! request was heard or after it was done, requests that come late or twice, partitions, kills, copies of files, backups
//! put back, central systems put back or emptied, clocks set wrong by seconds or years, nodes that stall for ten leases.
//! Time is the test's: clocks, timers and the leases in Redis move only when the scheduler moves them.
//!
//! `TRADEPOST_FLEETS` says how many fleets there are, `TRADEPOST_FLEETS_SEED` with which seed they begin; the next fleet
//! has the next seed. A failure names the seed and the steps; with `TRADEPOST_FLEETS=1` it is that fleet alone.

mod common;
#[path = "fleet/mod.rs"]
mod fleet;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::trials::Trials;
use fleet::centre::Servers;
use fleet::market::Market;
use fleet::plan::Plan;
use tokio::task::LocalSet;

const FLEETS: u64 = 1_000;
const WORKERS: u64 = 2;
/// With so many that failed, the others are left.
const MAX_FAILED: usize = 5;
/// One in so many fleets is watched for a while after it has healed.
const WATCHED: u64 = 20;
/// How much time is let pass at once while a fleet heals.
const HEALING_STEP: Duration = Duration::from_secs(5);
/// How long a fleet may take to heal.
const HEALING: Duration = Duration::from_secs(300);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Runs one fleet from its seed to its end: what it looks like then, or what went wrong.
fn run(servers: &Servers, seed: u64) -> Result<String, String> {
    let plan = Plan::of(seed);
    let mut taken = Vec::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime can be built");
        // Timers move when the scheduler says so, and not when all wait for a server; as long as this task runs.
        let (_end, ended) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || ended.recv().is_ok());
        LocalSet::new().block_on(&runtime, async {
            let mut market = Market::open(servers, &plan, seed).await;
            for step in &plan.steps {
                taken.push(format!("{:?}: {step:?} of {}", market.now(), market.nodes.len()));
                market.step(*step).await;
            }
            heal(market, seed.is_multiple_of(WATCHED)).await
        })
    }));
    outcome.map_err(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        format!("fleet {seed}, {} of {} steps:\n{}\n{words}", taken.len(), plan.steps.len(), taken.join("\n"))
    })
}

async fn heal(mut market: Market<'_>, is_watched: bool) -> String {
    market.heal().await;
    let mut waited = Duration::ZERO;
    loop {
        market.live(HEALING_STEP).await;
        waited += HEALING_STEP;
        match market.is_well().await {
            Ok(()) => break,
            Err(flaw) => assert!(waited < HEALING, "not healed after {waited:?}: {flaw}"),
        }
    }
    if is_watched {
        for _ in 0..12 {
            market.live(HEALING_STEP).await;
        }
        market.is_well().await.unwrap_or_else(|flaw| panic!("it was well, and is not any more: {flaw}"));
    }
    let picture = market.picture().await;
    market.close();
    picture
}

#[test]
fn a_fleet_heals_whatever_becomes_of_it() {
    let first = setting("TRADEPOST_FLEETS_SEED", rand::random::<u32>().into());
    let fleets = setting("TRADEPOST_FLEETS", FLEETS);
    let (next, failed) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let trials = Trials::of("fleet", first);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(fleets) {
            scope.spawn(|| {
                let servers = Servers::start();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = seed.wrapping_sub(first) >= fleets || failed.lock().unwrap().len() >= MAX_FAILED;
                    if is_over {
                        return;
                    }
                    trials.ran(1);
                    if let Err(story) = run(&servers, seed) {
                        trials.failed(1);
                        eprintln!("{story}\nagain: TRADEPOST_FLEETS=1 TRADEPOST_FLEETS_SEED={seed}\n");
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "of the fleets from {first} on these did not heal: {failed:?}");
}

#[test]
fn a_seed_takes_the_same_course_each_time() {
    let servers = Servers::start();
    for seed in [6, 179, 5_347] {
        let [first, second] = [(); 2].map(|()| run(&servers, seed).unwrap_or_else(|story| panic!("{story}")));
        assert_eq!(first, second, "fleet {seed}");
    }
}
