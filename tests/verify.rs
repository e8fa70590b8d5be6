//! `verify` finds what was changed behind the store's back: any byte of the ledger log, any row of any index or counter.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{agent_id, facts, registration, transaction_id};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tradepost::domain::{Decision, NewTransaction, Role, Timestamp, Weight};
use tradepost::engine::replica::{ParkedEntry, ParkedKey, PostgresState, RemoteAgent, Saved, Sink};
use tradepost::store::{TransactionFilter, VerifyReport, compact, verify};
use tradepost::{Engine, Idempotency, Location, Options, PageRequest, Precondition};

const LEDGER_LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ledger_log");
const TRANSACTIONS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("transactions");
const RUNS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("runs");
const TRANSACTION_IDS: TableDefinition<'_, &[u8], &[u8; 12]> = TableDefinition::new("transaction_ids");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const TALLIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tallies");
const AGENT_NUMBERS: TableDefinition<'_, &str, u32> = TableDefinition::new("agent_numbers");
const AGENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("agents");
const AGENT_CHANGES: TableDefinition<'_, u64, &str> = TableDefinition::new("agent_changes");
const TOMBSTONES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tombstones");
const RECEIPTS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("receipts");
const COPIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("copies");
const HELD: TableDefinition<'_, &[u8], u64> = TableDefinition::new("held");
const LEDGER_AGENTS: TableDefinition<'_, &str, u8> = TableDefinition::new("ledger_agents");
const OBSERVATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("observations");
const SINKS: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("sinks");
const PARKED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("parked");
const RECEIPT_AGES: TableDefinition<'_, &[u8; 24], ()> = TableDefinition::new("receipt_ages");

/// A store with something in every table but the one of changes that wait.
fn build(path: &Path) {
    build_waiting(path);
    compact(path).unwrap();
}

/// A store whose changes of lists and counters still wait.
fn build_waiting(path: &Path) {
    let engine = Engine::open(Options::new(Location::File(path.to_owned()))).unwrap();
    for id in ["thon", "gone"] {
        engine.register(registration(id, &["python"]), None).wait().unwrap();
    }
    engine.unregister(agent_id("gone"), Precondition::None).wait().unwrap();
    for number in 0..6 {
        let transaction = NewTransaction {
            transaction_id: Some(transaction_id(&format!("t{number}"))),
            facts: facts("payer", "thon", "python", "2.5"),
        };
        let once = Idempotency { key: format!("k{number}"), request: [number; 32] };
        engine.record(transaction, Some(once)).wait().unwrap();
    }
    engine.decide(transaction_id("t0"), Decision::Settle, None).wait().unwrap();
    let dispute = Decision::Dispute { reason: None, evidence: vec!["e".into()] };
    engine.decide(transaction_id("t1"), dispute, None).wait().unwrap();

    // Another node's word: one transaction whole, of another only its end, an agent.
    let other = Engine::open(Options::new(Location::Memory)).unwrap();
    for id in ["o0", "o1"] {
        let facts = facts("payer", "other", "sql", "1");
        let new = NewTransaction { transaction_id: Some(transaction_id(id)), facts };
        other.record(new, None).wait().unwrap();
        other.decide(transaction_id(id), Decision::Settle, None).wait().unwrap();
    }
    let mut entries = other.log_after(0, 10, usize::MAX).unwrap();
    entries.remove(2);
    let absorbed = engine.absorb(entries, None).wait().unwrap();
    assert_eq!((absorbed.new_events, absorbed.held), (3, 1));
    let remote = other.register(registration("remote", &[]), None).wait().unwrap().value.agent;
    let remaining = Duration::from_secs(60);
    engine.absorb_agents(vec![RemoteAgent { agent: remote, remaining }]).wait().unwrap();
    engine.observe_outcome(agent_id("thon"), true, Weight::default(), None).wait().unwrap();
    let state = PostgresState { acked_seq: 8, acked_copies: 3, ..PostgresState::default() };
    assert_eq!(engine.save_postgres(engine.node_id(), state).wait().unwrap(), Saved::Yes);
    let parked = ParkedEntry {
        key: ParkedKey::Copy(3),
        reason: "too wide".into(),
        code: "22003".into(),
        parked_at: Timestamp::default(),
        attempts: 1,
    };
    engine.park(Sink::Postgres, vec![parked]).wait().unwrap();
}

fn changed(original: &Path, name: &str, change: impl FnOnce(&WriteTransaction)) -> (PathBuf, VerifyReport) {
    let path = original.with_file_name(name);
    fs::copy(original, &path).unwrap();
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
    drop(database);
    let report = verify(&path, &mut |_, _, _| {}).expect("redb itself finds nothing wrong");
    (path, report)
}

#[test]
fn every_byte_of_the_ledger_log_is_watched() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original.redb");
    build(&original);
    let rows: Vec<(u64, Vec<u8>)> = {
        let database = Database::open(&original).unwrap();
        let table = database.begin_read().unwrap().open_table(LEDGER_LOG).unwrap();
        table.iter().unwrap().map(|row| row.map(|(seq, row)| (seq.value(), row.value().to_vec())).unwrap()).collect()
    };
    let [(1, row)] = &rows[..] else { panic!("eight events fit in one row: {}", rows.len()) };
    let tampered = |change: &dyn Fn(&mut Log<'_>)| {
        changed(&original, "tampered.redb", |transaction| change(&mut transaction.open_table(LEDGER_LOG).unwrap())).1
    };
    let events = events_of(row);
    assert_eq!(events.concat(), *row);
    assert_eq!(events.len(), 8);
    // Every byte of the first, of one in the middle and of the last event.
    for number in [0, 3, 7] {
        let begins = events[..number].concat().len();
        for at in begins..begins + events[number].len() {
            let mut flipped = row.clone();
            flipped[at] ^= 0x01;
            let report = tampered(&|log| drop(log.insert(1, flipped.as_slice()).unwrap()));
            assert!(!report.is_clean(), "byte {at}");
        }
    }
    let swapped = [&events[..2], &[events[3], events[2]], &events[4..]].concat();
    let repeated = [&events[..], &events[2..3]].concat();
    for (what, events) in [("missing", &events[..7]), ("too few", &[]), ("swapped", &swapped), ("repeated", &repeated)]
    {
        let report = tampered(&|log| drop(log.insert(1, events.concat().as_slice()).unwrap()));
        assert!(!report.is_clean(), "events are {what}");
    }
    let report = tampered(&|log| {
        log.insert(1, events[..4].concat().as_slice()).unwrap();
        log.insert(5, events[4..].concat().as_slice()).unwrap();
    });
    assert!(report.is_clean(), "how the events are spread over rows does not matter: {:#?}", report.findings);
    let report = tampered(&|log| {
        log.insert(1, events[..4].concat().as_slice()).unwrap();
        log.insert(6, events[4..].concat().as_slice()).unwrap();
    });
    assert!(!report.is_clean(), "a gap between two rows");
}

type Log<'t> = redb::Table<'t, u64, &'static [u8]>;

/// The events of a row of the log: each a length, a hash of 32 bytes and so many more.
fn events_of(mut row: &[u8]) -> Vec<&[u8]> {
    let mut events = Vec::new();
    while !row.is_empty() {
        let (length, bytes) = number(row);
        let (event, rest) = row.split_at(bytes + 32 + usize::try_from(length).unwrap());
        events.push(event);
        row = rest;
    }
    events
}

/// A number of seven bits a byte, the lowest first and the top bit set in all bytes but the last; how many bytes it has.
fn number(bytes: &[u8]) -> (u64, usize) {
    let length = bytes.iter().position(|byte| *byte < 0x80).expect("it ends") + 1;
    (bytes[..length].iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)), length)
}

/// Removes the first row of a table whose key and value are plain.
macro_rules! without_first {
    ($table:expr) => {
        Box::new(|transaction: &WriteTransaction| {
            let mut table = transaction.open_table($table).unwrap();
            assert!(table.pop_first().unwrap().is_some(), "the table has a row");
        })
    };
}

type Change = Box<dyn Fn(&WriteTransaction)>;

#[test]
fn every_index_and_counter_is_compared_with_the_records() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original.redb");
    build(&original);
    assert!(verify(&original, &mut |_, _, _| {}).unwrap().is_clean());
    let changes: Vec<(&str, Change)> = vec![
        ("an id", without_first!(TRANSACTION_IDS)),
        ("the totals", Box::new(|transaction| drop(transaction.open_table(META).unwrap().remove("totals").unwrap()))),
        ("an agent's number", without_first!(AGENT_NUMBERS)),
        ("an agent", without_first!(AGENTS)),
        ("an agent change", without_first!(AGENT_CHANGES)),
        ("a tombstone", without_first!(TOMBSTONES)),
        ("a copy of an event", without_first!(COPIES)),
        ("an event that waits", without_first!(HELD)),
        ("an agent that is followed", without_first!(LEDGER_AGENTS)),
        (
            "an event that waits for another transaction",
            Box::new(|transaction| {
                let mut table = transaction.open_table(HELD).unwrap();
                let place = table.pop_first().unwrap().unwrap().1.value();
                table.insert([0; 20].as_slice(), place).unwrap();
            }),
        ),
        (
            "a copy that says something else",
            Box::new(|transaction| {
                let mut table = transaction.open_table(COPIES).unwrap();
                let first = table.get(1).unwrap().unwrap().value().to_vec();
                table.insert(2, first.as_slice()).unwrap();
            }),
        ),
        (
            "what is acknowledged",
            Box::new(|transaction| {
                let mut table = transaction.open_table(COPIES).unwrap();
                table.pop_last().unwrap();
            }),
        ),
        (
            "what was observed",
            Box::new(|transaction| {
                let mut table = transaction.open_table(OBSERVATIONS).unwrap();
                let row = table.first().unwrap().unwrap().1.value().to_vec();
                table.insert("thon", &row[..row.len() - 1]).unwrap();
            }),
        ),
        (
            "a cursor",
            Box::new(|transaction| {
                let mut table = transaction.open_table(SINKS).unwrap();
                let mut row = table.get(1).unwrap().unwrap().value().to_vec();
                row[1] = 200;
                table.insert(1, row.as_slice()).unwrap();
            }),
        ),
        (
            "a parked entry",
            Box::new(|transaction| {
                let mut table = transaction.open_table(PARKED).unwrap();
                let row = table.first().unwrap().unwrap().1.value().to_vec();
                table.insert([1, 0, 0, 0, 0, 0, 0, 0, 0, 99].as_slice(), row.as_slice()).unwrap();
            }),
        ),
        ("a receipt", without_first!(RECEIPTS)),
        ("a receipt's age", without_first!(RECEIPT_AGES)),
        (
            "an id that says where its transaction is",
            Box::new(|transaction| {
                let mut table = transaction.open_table(TRANSACTION_IDS).unwrap();
                let key = *table.iter().unwrap().next().unwrap().unwrap().1.value();
                table.insert([0, b'x'].as_slice(), &key).unwrap();
            }),
        ),
        (
            "a balance",
            Box::new(|transaction| {
                let mut table = transaction.open_table(TALLIES).unwrap();
                let key = table.range::<&[u8]>([1_u8].as_slice()..[2_u8].as_slice()).unwrap().next();
                let key = key.unwrap().unwrap().0.value().to_vec();
                table.remove(key.as_slice()).unwrap();
            }),
        ),
        (
            "a load count",
            Box::new(|transaction| {
                let mut table = transaction.open_table(TALLIES).unwrap();
                let key = table.last().unwrap().unwrap().0.value().to_vec();
                assert_eq!(key[0], 2, "load counts come last");
                table.insert(key.as_slice(), 99_u32.to_le_bytes().as_slice()).unwrap();
            }),
        ),
    ];
    for (what, change) in changes {
        let (_, report) = changed(&original, "changed.redb", |transaction| change(transaction));
        assert!(!report.is_clean(), "nothing was found wrong with {what}");
    }
}

#[test]
fn every_byte_of_what_waits_is_watched() {
    let directory = tempfile::tempdir().unwrap();
    let (waiting, settled) = (directory.path().join("waiting.redb"), directory.path().join("settled.redb"));
    build_waiting(&waiting);
    assert!(verify(&waiting, &mut |_, _, _| {}).unwrap().is_clean());
    build(&settled);
    let rows_of = |path: &Path| -> Vec<(u64, Vec<u8>)> {
        let database = Database::open(path).unwrap();
        let table = database.begin_read().unwrap().open_table(RUNS).unwrap();
        table.iter().unwrap().map(|row| row.map(|(key, run)| (key.value(), run.value().to_vec())).unwrap()).collect()
    };
    assert!(rows_of(&settled).is_empty());
    let rows = rows_of(&waiting);
    assert!(rows.len() > 1, "only {} runs", rows.len());
    let (key, run) = rows.last().unwrap();
    for at in 0..run.len() {
        let mut flipped = run.clone();
        flipped[at] ^= 0x01;
        let (_, report) = changed(&waiting, "flipped.redb", |transaction| {
            transaction.open_table(RUNS).unwrap().insert(key, flipped.as_slice()).unwrap();
        });
        assert!(!report.is_clean(), "byte {at} of {}", run.len());
    }
    for (key, _) in &rows {
        let (_, report) = changed(&waiting, "removed.redb", |transaction| {
            transaction.open_table(RUNS).unwrap().remove(key).unwrap();
        });
        assert!(!report.is_clean(), "run {key} is missing");
    }
}

#[test]
fn a_ledger_that_outgrew_what_may_wait_is_sound_and_told_whole() {
    const AGENTS: usize = 50;
    const BATCHES: usize = 20;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.redb");
    let engine = Engine::open(Options::new(Location::File(path.clone()))).unwrap();
    // Each transaction changes two lists, two balances and a load: after 6 500 of them all are written in their places.
    let mut ids = Vec::new();
    for batch in 0..BATCHES {
        let new = |number: usize| NewTransaction {
            transaction_id: None,
            facts: facts(&format!("a{}", number % AGENTS), &format!("a{}", (number * 7 + batch) % AGENTS), "sql", "2"),
        };
        let recorded = engine.record_batch((0..500).map(new).collect()).wait().unwrap();
        ids.extend(recorded.into_iter().map(|recorded| recorded.unwrap().value.transaction_id));
    }
    let settled: Vec<_> = ids.iter().step_by(3).map(|id| engine.decide(id.clone(), Decision::Settle, None)).collect();
    settled.into_iter().for_each(|settled| drop(settled.wait().unwrap()));
    let mut listed = 0;
    for number in 0..AGENTS {
        let agent = Some(agent_id(&format!("a{number}")));
        let filter = TransactionFilter { agent, role: Some(Role::Payer), ..TransactionFilter::default() };
        let mut cursor = None;
        loop {
            let page = PageRequest { limit: 1_000, cursor: cursor.as_deref() };
            let page = engine.transactions(&filter, page).unwrap();
            listed += page.items.len();
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
    }
    assert_eq!(listed, ids.len());
    drop(engine);
    let report = verify(&path, &mut |_, _, _| {}).unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert_eq!(report.transactions, ids.len() as u64);
}

/// Scopes of the table of transactions, as the first four bytes of its keys.
const OPEN: u32 = 0;
const PAYER: u32 = 1;
const PROVIDER: u32 = 2;
const ROWS: u32 = u32::MAX;

/// The one block of a scope. An entry is the microseconds since the one before, a tie-breaker, a length, and so many bytes.
fn block_of(transaction: &WriteTransaction, scope: u32) -> ([u8; 16], Vec<u8>) {
    let table = transaction.open_table(TRANSACTIONS).unwrap();
    let mut rows =
        table.iter().unwrap().map(|row| row.map(|(key, block)| (*key.value(), block.value().to_vec())).unwrap());
    rows.find(|(key, _)| key[..4] == scope.to_be_bytes()).expect("the scope has a block")
}

fn put_block(transaction: &WriteTransaction, key: &[u8; 16], block: &[u8]) {
    transaction.open_table(TRANSACTIONS).unwrap().insert(key, block).unwrap();
}

#[test]
fn every_byte_of_a_block_is_watched_and_so_is_its_shape() {
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original.redb");
    build(&original);
    for scope in [OPEN, PAYER, PROVIDER, ROWS] {
        let mut length = 0;
        let mut at = 0;
        while at == 0 || at < length {
            let (_, report) = changed(&original, "flipped.redb", |transaction| {
                let (key, mut block) = block_of(transaction, scope);
                length = block.len();
                block[at] ^= 0x01;
                put_block(transaction, &key, &block);
            });
            assert!(!report.is_clean(), "byte {at} of scope {scope}");
            at += 1;
        }
        let (_, report) = changed(&original, "removed.redb", |transaction| {
            let (key, _) = block_of(transaction, scope);
            transaction.open_table(TRANSACTIONS).unwrap().remove(&key).unwrap();
        });
        assert!(!report.is_clean(), "the block of scope {scope} is missing");
    }
    let shapes: [(&str, Change); 4] = [
        (
            "a block of an agent that nobody names",
            Box::new(|transaction| put_block(transaction, &[7; 16], &[0, 0, 1, 1])),
        ),
        (
            "a block that overlaps another",
            Box::new(|transaction| {
                // The second entry once more, as a block of its own.
                let (mut key, block) = block_of(transaction, PAYER);
                let first = u64::from_be_bytes(*key[4..].first_chunk().unwrap());
                let (elapsed, bytes) = number(&block[4..]);
                key[4..12].copy_from_slice(&(first + elapsed).to_be_bytes());
                put_block(transaction, &key, &[&[0], &block[4 + bytes..][..3]].concat());
            }),
        ),
        (
            "a block under another key than its first entry's",
            Box::new(|transaction| {
                let (key, block) = block_of(transaction, OPEN);
                transaction.open_table(TRANSACTIONS).unwrap().remove(&key).unwrap();
                let mut moved = key;
                moved[15] = 1;
                put_block(transaction, &moved, &block);
            }),
        ),
        (
            "a block with more entries than one may have",
            Box::new(|transaction| {
                let (key, mut block) = block_of(transaction, PROVIDER);
                for _ in 0..128 {
                    block.extend_from_slice(&[1, 0, 1, 2]);
                }
                put_block(transaction, &key, &block);
            }),
        ),
    ];
    for (what, change) in shapes {
        let (_, report) = changed(&original, "shape.redb", |transaction| change(transaction));
        assert!(!report.is_clean(), "nothing was found wrong with {what}");
        let words = report.findings.join(" ");
        let expected = match what {
            "a block that overlaps another" => "overlaps",
            "a block with more entries than one may have" => "too large",
            _ => "",
        };
        assert!(words.contains(expected), "{what}: {words}");
    }
}
