//! What a durable write costs below the engine: redb's own commit of one row in each of five tables, as one submitter
//! after the other would make it.

use std::time::{Duration, Instant};

use redb::{Database, TableDefinition};

use crate::common::{Bound, Numbers, compare, new_transaction, note, open_file, register_agents};
use crate::results::Results;

const AGENTS: usize = 4;
const TABLES: [TableDefinition<'_, u64, &[u8]>; 5] = [
    TableDefinition::new("one"),
    TableDefinition::new("two"),
    TableDefinition::new("three"),
    TableDefinition::new("four"),
    TableDefinition::new("five"),
];
/// About a fifth of what a transaction takes.
const ROW: [u8; 64] = [b'v'; 64];

pub fn run(quick: bool, results: &mut Results) {
    let (rounds, round) = if quick { (5, Duration::from_millis(100)) } else { (11, Duration::from_millis(250)) };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (engine, _) = open_file(directory.path());
    register_agents(&engine, AGENTS);
    let database = Database::create(directory.path().join("plain.redb")).expect("a new file opens");
    let mut numbers = Numbers::seeded(1);
    let mut next = 0;
    let mut measured = Vec::new();
    // The first round warms both up.
    for number in 0..=rounds {
        let ours = rate(round, || {
            let new = new_transaction(numbers.below(AGENTS), numbers.below(AGENTS));
            engine.record(new, None).wait().expect("it is durable");
        });
        let plain = rate(round, || {
            commit(&database, next).expect("redb takes it");
            next += 1;
        });
        if number > 0 {
            measured.push([ours, plain]);
        }
    }
    let (rates, ratios) = compare(&measured);
    for (who, rate) in ["engine, one submitter", "redb, one row in five tables"].into_iter().zip(rates) {
        note(who, rate as usize, Duration::from_secs(1));
    }
    results.against("engine, one submitter", "redb, one row in five tables", ratios[1], Some(Bound::AtLeast(0.9)));
    engine.close();
}

fn rate(time: Duration, mut work: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut done = 0;
    while began.elapsed() < time {
        work();
        done += 1;
    }
    f64::from(done) / began.elapsed().as_secs_f64()
}

fn commit(database: &Database, key: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for table in TABLES {
        transaction.open_table(table)?.insert(key, ROW.as_slice())?;
    }
    Ok(transaction.commit()?)
}
