//! Transactions that move, collide or have ids of all sorts: whatever happens, `verify` finds nothing wrong.

use std::path::Path;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::domain::{EventId, JsonObject, Money};
use crate::store::{Head, Mint, Snapshot, Store, verify};

const START: i64 = 1_795_391_431_767_109;

fn open(path: &Path) -> (Store, Head) {
    let mut random = StdRng::seed_from_u64(1);
    Store::open_file(path, Mint { now: Timestamp::from_micros(START), random: &mut random }).unwrap()
}

fn facts() -> Facts {
    Facts {
        payer_agent: AgentId::from_stored("genesis"),
        provider_agent: AgentId::from_stored("thon"),
        capability: Capability::from_stored("python"),
        amount: Money::parse("2.5").unwrap(),
        currency: Currency::default(),
        context: JsonObject::default(),
    }
}

/// Records a transaction at a time, under the id that `choose` picks for its key.
fn record(batch: &mut Batch<'_>, micros: i64, choose: impl FnOnce(TxKey) -> TransactionId) -> (TxKey, TransactionId) {
    let at = Timestamp::from_micros(micros);
    let key = batch.free_key(at).unwrap();
    let id = choose(key);
    let facts = facts();
    let event = Event {
        event_id: EventId::mint(at, [0; 10]),
        transaction_id: id.clone(),
        facts: facts.hash(),
        round: 0,
        node_id: batch.node_id(),
        at,
        body: EventBody::Recorded(Arc::new(facts)),
    };
    batch.record(key, &event).unwrap();
    (key, id)
}

fn ids(snapshot: &Snapshot) -> Vec<TransactionId> {
    let page = snapshot.transactions(&query::TransactionFilter::default(), 1_000, None).unwrap();
    page.items.into_iter().map(|transaction| transaction.transaction_id).collect()
}

fn assert_clean(path: &Path) {
    let report = verify(path, &mut |_, _, _| {}).unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
}

#[test]
fn a_transaction_that_is_filed_elsewhere_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (store, mut head) = open(&path);
    let before = *head.totals();
    let (key, id) = store
        .write(&mut head, |batch| {
            let recorded = record(batch, START, |key| key.mint_id([1; 7]));
            record(batch, START + 1, |key| key.mint_id([2; 7]));
            Ok(recorded)
        })
        .unwrap();
    let older = TxKey::first_at(Timestamp::from_micros(START - 5_000_000));
    store
        .write(&mut head, |batch| {
            let found = lookup::find(batch, &id)?.expect("it was recorded");
            let (row, facts) = (found.row, facts());
            batch.unfile(&Filing { key, row: &row, transaction_id: &id, facts: &facts })?;
            assert!(lookup::find(batch, &id)?.is_none(), "it is gone");
            // Its one event is a thing of the log, and stays.
            assert_eq!(batch.head.totals.transactions, [1, 0, 0, 0]);
            batch.file(&Filing { key: older, row: &row, transaction_id: &id, facts: &facts })?;
            assert_eq!(lookup::find(batch, &id)?.expect("it is there again").key, older);
            Ok(())
        })
        .unwrap();
    assert_eq!(head.totals().transactions, [2, 0, 0, 0]);
    assert_eq!(before.transactions, [0; 4]);
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.transaction(&id).unwrap().unwrap().created_at, older.created_at);
    assert_eq!(ids(&snapshot)[0], id, "it is the oldest now");
    drop(snapshot);
    store.close();
    let report = verify(&path, &mut |_, _, _| {}).unwrap();
    // That it is older than its own first event is all that is wrong: that event would come with it from elsewhere.
    assert_eq!(report.findings, [format!("transaction {id}: it is filed under another time than it was created at")]);
}

#[test]
fn any_id_leads_to_its_transaction_whatever_it_looks_like() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (store, mut head) = open(&path);
    let elsewhere = TxKey::first_at(Timestamp::from_micros(START)).mint_id([9; 7]);
    let mut recorded = Vec::new();
    store
        .write(&mut head, |batch| {
            // 300 within one microsecond: more than a minted id can tell apart.
            for number in 0..300_u16 {
                let [high, low] = number.to_be_bytes();
                recorded.push(record(batch, START, |key| key.mint_id([0, 0, 0, 0, 0, high, low])));
            }
            // Looks minted, and points to where another transaction is.
            recorded.push(record(batch, START + 1, |_| elsewhere.clone()));
            // Looks minted, and points to itself by chance.
            recorded.push(record(batch, START + 2, |key| key.mint_id([7; 7])));
            for id in ["plain", "0197A1B2C3D4E5F60718293A4B5C6D7E", &"7".repeat(32)] {
                recorded.push(record(batch, START + 3, |_| TransactionId::from_stored(id)));
            }
            for (key, id) in &recorded {
                assert_eq!(lookup::find(batch, id)?.map(|found| found.key), Some(*key), "{id}");
            }
            Ok(())
        })
        .unwrap();
    let snapshot = store.snapshot().unwrap();
    for (key, id) in &recorded {
        assert_eq!(snapshot.transaction(id).unwrap().expect("it is there").created_at, key.created_at, "{id}");
        assert_eq!(snapshot.events(id).unwrap().expect("it is there").len(), 1);
    }
    let unknown = TxKey::first_at(Timestamp::from_micros(START)).mint_id([5; 7]);
    assert_eq!(snapshot.transaction(&unknown).unwrap(), None);
    assert_eq!(ids(&snapshot).len(), recorded.len());
    drop(snapshot);
    store.close();
    assert_clean(&path);
}

#[test]
fn what_is_known_from_batch_to_batch_is_what_the_file_holds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (store, mut head) = open(&path);
    for number in 0..40 {
        let failed: Result<(), StoreError> = store.write(&mut head, |batch| {
            record(batch, START + number, |key| key.mint_id([number as u8; 7]));
            if number % 3 == 0 { Err(StoreError::Closed) } else { Ok(()) }
        });
        assert_eq!(failed.is_err(), number % 3 == 0);
        store.write(&mut head, |_| Ok(())).unwrap();
    }
    let minute = minute_of(Timestamp::from_micros(START));
    store.write(&mut head, |batch| batch.purge_loads(minute + 1, 10)).unwrap();
    store.write(&mut head, |batch| Ok(record(batch, START + 100, |key| key.mint_id([1; 7])))).unwrap();
    store.close();
    assert_clean(&path);
}
