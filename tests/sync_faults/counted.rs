//! Faults by the dozen, from a seeded deck of all classes, in several markets side by side; counted by class.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::common::Stops;
use super::common::trials::Trials;
use super::fault::Fault;
use super::market::Market;

/// How many faults there are, unless `TRADEPOST_FAULTS` says otherwise.
const FAULTS: usize = 30;
/// How many markets there are at once: most of the time each waits for a timer.
const MARKETS: usize = 3;

/// What became of one fault.
struct Trial {
    fault: Fault,
    outcome: Result<Duration, String>,
}

/// One class's line of the table.
#[derive(Default)]
struct Line {
    trials: usize,
    failures: usize,
    slowest: Duration,
}

#[test]
fn whatever_fails_central_ends_up_with_exactly_what_was_acknowledged() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = given("TRADEPOST_FAULTS_SEED").unwrap_or_else(rand::random);
    let count = given("TRADEPOST_FAULTS").map_or(FAULTS, |count| usize::try_from(count).expect("it fits"));
    println!("TRADEPOST_FAULTS={count} TRADEPOST_FAULTS_SEED={seed}");

    let told = Trials::of("sync_faults", seed);
    let begun = Instant::now();
    let deck = deck(count, &mut StdRng::seed_from_u64(seed));
    let trials: Vec<Trial> = thread::scope(|scope| {
        let markets: Vec<_> = (0..MARKETS.min(count))
            .map(|number| {
                let faults: Vec<Fault> = deck.iter().copied().skip(number).step_by(MARKETS).collect();
                let random = StdRng::seed_from_u64(seed.wrapping_add(1 + number as u64));
                scope.spawn(move || run(number, &faults, random))
            })
            .collect();
        markets.into_iter().flat_map(|market| market.join().expect("its panics are caught")).collect()
    });

    let mut table: BTreeMap<Fault, Line> = BTreeMap::new();
    for trial in &trials {
        let line = table.entry(trial.fault).or_default();
        line.trials += 1;
        match &trial.outcome {
            Ok(healed) => line.slowest = line.slowest.max(*healed),
            Err(_) => line.failures += 1,
        }
    }
    println!("{:<28}{:>8}{:>10}{:>16}", "fault", "trials", "failures", "slowest to heal");
    for (fault, line) in &table {
        let (name, slowest) = (format!("{fault:?}"), line.slowest.as_secs_f64());
        println!("{name:<28}{:>8}{:>10}{slowest:>14.1} s", line.trials, line.failures);
    }
    println!("{} faults in {:.0} s", trials.len(), begun.elapsed().as_secs_f64());
    let failures: Vec<String> = trials
        .iter()
        .filter_map(|trial| trial.outcome.as_ref().err().map(|why| format!("{:?}: {why}", trial.fault)))
        .collect();
    told.ran(trials.len() as u64);
    told.failed(failures.len() as u64);
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
    assert_eq!(trials.len(), count, "every fault had its trial");
}

/// The account would be worth nothing if it could not tell.
#[test]
fn whatever_is_not_as_it_was_acknowledged_is_noticed() {
    let market = Market::open();
    let mut random = StdRng::seed_from_u64(1);
    let orders: Vec<String> = (0..3).map(|_| market.traders.record(0, &mut random)).collect();
    assert!(market.traders.dispute(0, &orders[0]));
    let account = std::mem::take(&mut market.traders.account.lock().expect("no holder panics").touched);
    // Left to itself, it forgets what it has looked at once.
    let looks_again = || market.traders.account.lock().expect("no holder panics").touched.clone_from(&account);
    looks_again();
    market.heals().expect("nothing failed");
    for (wrong, right) in [
        (
            "UPDATE marketplace_transactions SET amount = amount + 0.000000001",
            "UPDATE marketplace_transactions SET amount = amount - 0.000000001",
        ),
        (
            "CREATE TABLE kept AS SELECT * FROM marketplace_transactions; DELETE FROM marketplace_transactions WHERE status = 'disputed'",
            "INSERT INTO marketplace_transactions SELECT * FROM kept WHERE status = 'disputed'",
        ),
        (
            "UPDATE marketplace_transaction_events SET transaction_id = transaction_id || '-' WHERE kind = 'disputed'",
            "UPDATE marketplace_transaction_events SET transaction_id = trim('-' FROM transaction_id) WHERE kind = 'disputed'",
        ),
    ] {
        market.sql(wrong);
        looks_again();
        assert!(market.difference().is_some(), "{wrong}");
        market.sql(right);
        assert_eq!(market.heals().map(drop), Ok(()), "{right}");
    }
    market.redis.command::<i64>(&["SADD", "agents:capabilities:sql", "nobody"]);
    assert!(market.difference().is_some_and(|difference| difference.contains("nobody")));
}

/// Classes in a random order, each as often as any other, give or take one.
fn deck(count: usize, random: &mut StdRng) -> Vec<Fault> {
    let mut deck = Vec::with_capacity(count);
    while deck.len() < count {
        let mut all = Fault::ALL;
        all.shuffle(random);
        deck.extend(all.into_iter().take(count - deck.len()));
    }
    deck
}

/// Runs faults in a market of their own. After a failure the rest would only fail with it.
fn run(number: usize, faults: &[Fault], mut random: StdRng) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut current = faults[0];
    let ran = catch_unwind(AssertUnwindSafe(|| -> Result<(), String> {
        let mut market = Market::open();
        for fault in faults {
            current = *fault;
            let begun = Instant::now();
            let outcome = trial(&mut market, *fault, &mut random);
            println!("market {number}: {fault:?}: {outcome:?} ({:.1} s in all)", begun.elapsed().as_secs_f64());
            let failed = outcome.is_err();
            trials.push(Trial { fault: *fault, outcome });
            if failed {
                println!("{}\n{}", market.log(0), market.log(1));
                return Ok(());
            }
        }
        println!("market {number}: PostgreSQL's log has {}", market.complaints());
        market.close()
    }));
    let failure = match ran {
        Ok(Ok(())) => return trials,
        Ok(Err(difference)) => format!("in the end: {difference}"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
        }
    };
    trials.push(Trial { fault: current, outcome: Err(failure) });
    trials
}

/// Strikes while both trade, ends it when nobody does, and waits until all is well.
fn trial(market: &mut Market, fault: Fault, random: &mut StdRng) -> Result<Duration, String> {
    let stop = AtomicBool::new(false);
    // Out of the market while it is struck: the traders go on whatever is done to it.
    let traders = Arc::clone(&market.traders);
    let (end, shown) = thread::scope(|scope| {
        for side in 0..2 {
            let (random, traders, stop) = (StdRng::seed_from_u64(random.random()), &traders, &stop);
            scope.spawn(move || traders.trade(side, random, stop));
        }
        let _stops = Stops(&stop);
        thread::sleep(Duration::from_millis(random.random_range(100..800)));
        let struck = fault.strike(market, random);
        thread::sleep(Duration::from_millis(random.random_range(0..500)));
        struck
    });
    end(market);
    let healed = market.heals();
    shown.and(healed)
}
