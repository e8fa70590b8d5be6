//! `verify` finds what was changed behind the store's back: any byte of the ledger log, any row of any index or counter.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{agent_id, facts, registration, transaction_id};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tradepost::domain::{Decision, NewTransaction, Timestamp, Weight};
use tradepost::engine::replica::{ParkedEntry, ParkedKey, PostgresState, RemoteAgent, Sink};
use tradepost::store::{VerifyReport, verify};
use tradepost::{Engine, Idempotency, Location, Options, Precondition};

const LEDGER_LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ledger_log");
const TRANSACTIONS: TableDefinition<'_, &[u8; 12], &[u8]> = TableDefinition::new("transactions");
const TRANSACTION_IDS: TableDefinition<'_, &[u8], &[u8; 12]> = TableDefinition::new("transaction_ids");
const TRANSACTION_INDEX: TableDefinition<'_, &[u8; 16], u8> = TableDefinition::new("transaction_index");
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

/// A store with something in every table.
fn build(path: &Path) {
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
    engine.save_postgres(state).wait().unwrap();
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
    assert_eq!(rows.len(), 8);
    // Every byte of the first, of one in the middle and of the last row.
    for (seq, row) in [&rows[0], &rows[3], &rows[7]] {
        for at in 0..row.len() {
            let (_, report) = changed(&original, "flipped.redb", |transaction| {
                let mut tampered = row.clone();
                tampered[at] ^= 0x01;
                transaction.open_table(LEDGER_LOG).unwrap().insert(seq, tampered.as_slice()).unwrap();
            });
            assert!(!report.is_clean(), "byte {at} of row {seq}");
        }
    }
    for (what, change) in [("dropped", None), ("repeated", Some(2_u64))] {
        let (_, report) = changed(&original, "moved.redb", |transaction| {
            let mut table = transaction.open_table(LEDGER_LOG).unwrap();
            match change {
                None => drop(table.remove(8).unwrap()),
                Some(from) => drop(table.insert(9, rows[usize::try_from(from).unwrap()].1.as_slice()).unwrap()),
            }
        });
        assert!(!report.is_clean(), "a row was {what}");
    }
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
        ("a transaction", without_first!(TRANSACTIONS)),
        ("an id", without_first!(TRANSACTION_IDS)),
        ("an index row", without_first!(TRANSACTION_INDEX)),
        ("the totals", without_first!(TALLIES)),
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
            "a role in the index",
            Box::new(|transaction| {
                let mut table = transaction.open_table(TRANSACTION_INDEX).unwrap();
                let (key, value) = table.last().unwrap().map(|(key, value)| (*key.value(), value.value())).unwrap();
                table.insert(&key, value ^ 3).unwrap();
            }),
        ),
        (
            "a row of the index that points nowhere",
            Box::new(|transaction| {
                transaction.open_table(TRANSACTION_INDEX).unwrap().insert(&[7; 16], 1).unwrap();
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
