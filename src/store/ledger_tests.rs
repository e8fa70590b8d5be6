//! Transactions that move, collide or have ids of all sorts: whatever happens, `verify` finds nothing wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::domain::{
    EventId, JsonObject, LedgerEntry, Money, NodeId, ParkedEntry, ParkedKey, PostgresState, Transaction,
};
use crate::store::runs::Waiting;
use crate::store::{Acknowledged, Head, Mint, Snapshot, Store, verify};

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

fn shown(snapshot: &Snapshot, id: &TransactionId) -> Option<Transaction> {
    snapshot.transaction(id, Acknowledged::default()).unwrap()
}

fn ids(snapshot: &Snapshot) -> Vec<TransactionId> {
    let all = query::TransactionFilter::default();
    let page = snapshot.transactions(&all, 1_000, None, Acknowledged::default()).unwrap();
    page.items.into_iter().map(|transaction| transaction.transaction_id).collect()
}

fn assert_clean(path: &Path) {
    let report = verify(path, &mut |_, _, _| {}).unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
}

/// What another node tells of a transaction.
fn foreign(id: &TransactionId, micros: i64, number: u64, body: EventBody) -> LedgerEntry {
    let facts = facts();
    let node_id = NodeId::from_bytes([9; 16]);
    let mut event_id = [0; 16];
    event_id[8..].copy_from_slice(&number.to_be_bytes());
    let event = Event {
        event_id: EventId::from_bytes(event_id),
        transaction_id: id.clone(),
        facts: facts.hash(),
        round: 0,
        node_id,
        at: Timestamp::from_micros(micros),
        body,
    };
    let (payer_agent, provider_agent) = (facts.payer_agent, facts.provider_agent);
    LedgerEntry { event, payer_agent, provider_agent, recorded_by: node_id, node_seq: number, hash: None }
}

fn recorded_elsewhere(id: &TransactionId, micros: i64, number: u64) -> LedgerEntry {
    foreign(id, micros, number, EventBody::Recorded(Arc::new(facts())))
}

#[test]
fn a_transaction_that_is_filed_elsewhere_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (store, mut head) = open(&path);
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
            let stored = batch.transaction(&id)?.expect("it was recorded");
            assert_eq!(stored.key, key);
            batch.unfile(&id, &stored)?;
            assert!(lookup::find(batch, &id)?.is_none(), "it is gone");
            assert_eq!(batch.head.totals.transactions, [1, 0, 0, 0]);
            batch.file(&id, &stored.fold, stored.row.events)?;
            assert_eq!(lookup::find(batch, &id)?.expect("it is there again").key, key);
            batch.merge(&id, vec![recorded_elsewhere(&id, START - 5_000_000, 1)])?;
            assert_eq!(lookup::find(batch, &id)?.expect("it has moved").key, older);
            Ok(())
        })
        .unwrap();
    assert_eq!(head.totals().transactions, [2, 0, 0, 0]);
    let snapshot = store.snapshot().unwrap();
    assert_eq!(shown(&snapshot, &id).unwrap().created_at, older.created_at);
    assert_eq!(ids(&snapshot)[0], id, "it is the oldest now");
    drop(snapshot);
    store.close();
    assert_clean(&path);
}

#[test]
fn a_transaction_that_moves_after_its_lists_were_put_in_place_is_taken_out_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (store, mut head) = open(&path);
    let id = TransactionId::from_stored("moves");
    store.write(&mut head, |batch| Ok(record(batch, START, |_| id.clone()))).unwrap();
    store.write(&mut head, |batch| batch.settle()).unwrap();
    assert_eq!(head.waiting, Waiting::default());
    store
        .write(&mut head, |batch| batch.merge(&id, vec![recorded_elsewhere(&id, START - 5_000_000, 1)]).map(drop))
        .unwrap();
    assert!(head.waiting.changes > 0);
    store.write(&mut head, |batch| batch.settle()).unwrap();
    store.close();
    assert_clean(&path);
}

#[test]
fn recording_and_deciding_open_no_table_of_replication() {
    let directory = tempfile::tempdir().unwrap();
    let (store, mut head) = open(&directory.path().join("f.redb"));
    store
        .write(&mut head, |batch| {
            let id = TransactionId::from_stored("named");
            assert!(batch.transaction(&id)?.is_none());
            record(batch, START, |_| id.clone());
            assert!(!batch.holds_events_for(&id)?);
            let stored = batch.transaction(&id)?.expect("it was recorded");
            assert_eq!(batch.finality(&stored)?, Finality::Local);
            let mut event = foreign(&id, START + 1, 1, EventBody::Settled).event;
            event.node_id = batch.node_id();
            batch.decide(stored, event)?;
            assert!(!batch.copies.is_open() && !batch.held.is_open() && !batch.central_facts.is_open());
            assert!(!batch.sinks.is_open() && !batch.parked.is_open());
            assert!(!batch.ledger_agents.is_open() && !batch.observations.is_open());
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_is_acknowledged_and_refused_is_known_without_looking() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (store, mut head) = open(&path);
    let refused = |number| ParkedEntry {
        key: ParkedKey::Seq(number),
        reason: String::new(),
        code: String::new(),
        parked_at: Timestamp::default(),
        attempts: 1,
    };
    let mut ids = Vec::new();
    store
        .write(&mut head, |batch| {
            for number in 0..3 {
                ids.push(record(batch, START + number, |key| key.mint_id([1; 7])).1);
            }
            batch.put_postgres_state(&PostgresState { acked_seq: 2, ..PostgresState::default() })?;
            // One is parked twice, one is let go that never was, and each sink's are counted for themselves.
            for sink in [Sink::Postgres, Sink::Postgres, Sink::Redis] {
                batch.park(sink, &refused(2))?;
            }
            for number in 4..9 {
                batch.park(Sink::Redis, &refused(number))?;
            }
            batch.unpark(Sink::Redis, &ParkedKey::Seq(5))?;
            batch.park(Sink::Postgres, &refused(1))?;
            batch.unpark(Sink::Postgres, &ParkedKey::Seq(1))?;
            batch.unpark(Sink::Postgres, &ParkedKey::Seq(3))
        })
        .unwrap();
    let finality = |head: &Head, store: &Store| {
        let snapshot = store.snapshot().unwrap();
        let counted = snapshot.acknowledged().unwrap();
        assert_eq!(counted, head.acknowledged());
        for sink in Sink::ALL {
            assert_eq!(counted.parked(sink), snapshot.parked(sink, None, 10).unwrap().len() as u64);
        }
        let found = ids.iter().map(|id| snapshot.transaction(id, head.acknowledged()).unwrap().unwrap().finality);
        found.collect::<Vec<_>>()
    };
    assert_eq!(finality(&head, &store), [Finality::Central, Finality::Local, Finality::Local]);
    assert_eq!(Sink::ALL.map(|sink| head.acknowledged().parked(sink)), [5, 1]);
    let failed: Result<(), StoreError> = store.write(&mut head, |batch| {
        batch.unpark(Sink::Postgres, &ParkedKey::Seq(2))?;
        batch.unpark(Sink::Redis, &ParkedKey::Seq(2))?;
        Err(StoreError::Closed)
    });
    assert!(failed.is_err());
    assert_eq!(finality(&head, &store), [Finality::Central, Finality::Local, Finality::Local]);
    store.close();
    let (store, mut head) = open(&path);
    assert_eq!(finality(&head, &store), [Finality::Central, Finality::Local, Finality::Local]);
    store.write(&mut head, |batch| batch.unpark(Sink::Postgres, &ParkedKey::Seq(2))).unwrap();
    assert_eq!(finality(&head, &store), [Finality::Central, Finality::Central, Finality::Local]);
}

#[derive(Debug, Clone, Copy)]
enum Act {
    /// Recorded here, so long after the start.
    Record(u8, i64),
    /// Recorded elsewhere.
    Recorded(u8, i64),
    /// Settled or disputed elsewhere.
    Decided(u8, bool),
    /// The end of the batch, and whether it fails.
    Commit(bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    // Few microseconds, so that many share one, and few ids, so that many meet.
    let when = || prop_oneof![3 => 0_i64..4, 1 => -70_000_000_000_i64..70_000_000_000];
    let act = prop_oneof![
        3 => (0_u8..60, when()).prop_map(|(id, at)| Act::Record(id, at)),
        3 => (0_u8..60, when()).prop_map(|(id, at)| Act::Recorded(id, at)),
        2 => (0_u8..60, any::<bool>()).prop_map(|(id, settled)| Act::Decided(id, settled)),
        1 => (0_u8..8).prop_map(|kind| Act::Commit(kind == 0)),
    ];
    prop::collection::vec(act, 1..150)
}

/// What is known of a transaction: where it was recorded, and what was decided about it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Told {
    recorded_at: Vec<i64>,
    settled: bool,
    disputed: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_is_filed_moved_and_merged_is_found_where_a_map_has_it(acts in acts()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f.redb");
        let (store, mut head) = open(&path);
        let name = |id: u8| {
            let key = TxKey { created_at: Timestamp::from_micros(START + i64::from(id % 4)), tie: u32::from(id % 3) };
            // Every other one looks as if it were minted for a key where others are, some for one where nothing is.
            if id.is_multiple_of(2) { key.mint_id([id; 7]) } else { TransactionId::from_stored(&format!("t{id}")) }
        };
        let mut model: BTreeMap<u8, Told> = BTreeMap::new();
        let mut number = 0;
        let mut rest = &acts[..];
        while !rest.is_empty() {
            let end = rest.iter().position(|act| matches!(act, Act::Commit(_))).unwrap_or(rest.len());
            let fails = matches!(rest.get(end), Some(Act::Commit(true)));
            let mut staged = model.clone();
            let outcome = store.write(&mut head, |batch| {
                batch.count_loads_from(minute_of(Timestamp::from_micros(START)) - 61);
                for act in &rest[..end] {
                    number += 1;
                    let id = match *act {
                        Act::Record(id, _) | Act::Recorded(id, _) | Act::Decided(id, _) => id,
                        Act::Commit(_) => unreachable!("it ends the batch"),
                    };
                    let known = staged.entry(id).or_default();
                    match *act {
                        Act::Record(_, at) if known.recorded_at.is_empty() => {
                            record(batch, START + at, |_| name(id));
                            batch.merge(&name(id), Vec::new())?;
                            known.recorded_at.push(START + at);
                        }
                        Act::Recorded(_, at) => {
                            batch.merge(&name(id), vec![recorded_elsewhere(&name(id), START + at, number)])?;
                            known.recorded_at.push(START + at);
                        }
                        Act::Decided(_, settled) => {
                            let disputed = EventBody::Disputed { reason: None, evidence: Vec::new() };
                            let body = if settled { EventBody::Settled } else { disputed };
                            batch.merge(&name(id), vec![foreign(&name(id), START, number, body)])?;
                            known.settled |= settled;
                            known.disputed |= !settled;
                        }
                        Act::Record(..) | Act::Commit(_) => {}
                    }
                    let created_at = known.recorded_at.iter().min().copied();
                    let found = lookup::find(batch, &name(id))?.map(|found| found.key.created_at.as_micros());
                    assert_eq!(found, created_at, "{id} within the batch");
                }
                if fails { Err(StoreError::Closed) } else { Ok(()) }
            });
            assert_eq!(outcome.is_err(), fails);
            if !fails {
                model = staged;
            }
            prop_assert_eq!(head.held, store.snapshot().unwrap().held_len().unwrap());
            rest = &rest[(end + 1).min(rest.len())..];
        }
        let snapshot = store.snapshot().unwrap();
        let mut expected = Vec::new();
        for (id, known) in &model {
            let created_at = known.recorded_at.iter().min().map(|at| Timestamp::from_micros(*at));
            let status = match known {
                Told { disputed: true, .. } => TransactionStatus::Disputed,
                Told { settled: true, .. } => TransactionStatus::Settled,
                _ => TransactionStatus::Pending,
            };
            let found = shown(&snapshot, &name(*id));
            prop_assert_eq!(found.map(|found| (found.created_at, found.status)), created_at.map(|at| (at, status)));
            expected.extend(created_at.map(|at| (at, name(*id))));
        }
        expected.sort();
        let expected: Vec<TransactionId> = expected.into_iter().map(|(_, id)| id).collect();
        prop_assert_eq!(ids(&snapshot), expected);
        drop(snapshot);
        store.close();
        assert_clean(&path);
    }
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
        assert_eq!(shown(&snapshot, id).expect("it is there").created_at, key.created_at, "{id}");
        assert_eq!(snapshot.events(id).unwrap().expect("it is there").len(), 1);
    }
    let unknown = TxKey::first_at(Timestamp::from_micros(START)).mint_id([5; 7]);
    assert_eq!(shown(&snapshot, &unknown), None);
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
