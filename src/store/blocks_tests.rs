//! The blocks of a scope against a map of its entries, and the invariants of what is stored.

use std::collections::BTreeMap;

use proptest::prelude::*;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTableMetadata};

use super::*;
use crate::domain::Timestamp;
use crate::store::block::{MAX_BYTES, MAX_ENTRIES};

type Model = BTreeMap<(Scope, TxKey), Vec<u8>>;

#[derive(Debug, Clone)]
enum Act {
    Put(Scope, TxKey, Vec<u8>),
    Remove(Scope, TxKey),
    /// So many entries behind the newest.
    Append(Scope, u8, usize),
    /// Every so many entries of a scope go.
    Thin(Scope, usize),
}

fn key(micros: i64, tie: u32) -> TxKey {
    TxKey { created_at: Timestamp::from_micros(micros), tie }
}

fn scopes() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::OPEN), Just(Scope::of_agent(1)), Just(Scope::of_agent(2)), Just(Scope::ROWS)]
}

fn acts() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let keys = || (-40_i64..40, 0_u32..3).prop_map(|(micros, tie)| key(micros, tie));
    let value = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 1..50),
        1 => prop::collection::vec(any::<u8>(), 1_500..2_500)
    ];
    let act = prop_oneof![
        4 => (scopes(), keys(), value).prop_map(|(scope, key, value)| Act::Put(scope, key, value)),
        3 => (scopes(), keys()).prop_map(|(scope, key)| Act::Remove(scope, key)),
        2 => (scopes(), any::<u8>(), 1_usize..60).prop_map(|(scope, count, length)| Act::Append(scope, count, length)),
        1 => (scopes(), 1_usize..5).prop_map(|(scope, every)| Act::Thin(scope, every)),
    ];
    prop::collection::vec(prop::collection::vec(act, 1..6), 1..12)
}

/// An act as puts (with a value) and removals.
fn changes(act: Act, model: &Model) -> Vec<(Scope, TxKey, Option<Vec<u8>>)> {
    let entries = |scope: Scope| model.range((scope, TxKey::MIN)..=(scope, TxKey::MAX)).map(|((_, key), _)| *key);
    match act {
        Act::Put(scope, key, value) => vec![(scope, key, Some(value))],
        Act::Remove(scope, key) => vec![(scope, key, None)],
        Act::Append(scope, count, length) => {
            let newest = entries(scope).next_back().map_or(0, |key| key.created_at.as_micros());
            (1..=i64::from(count)).map(|more| (scope, key(newest + more, 0), Some(vec![7; length]))).collect()
        }
        Act::Thin(scope, every) => entries(scope).step_by(every).map(|key| (scope, key, None)).collect(),
    }
}

fn assert_same(database: &Database, model: &Model) {
    let table = database.begin_read().unwrap().open_table(tables::TRANSACTIONS).unwrap();
    let mut rows = 0;
    let mut stored = Model::new();
    let mut previous = None;
    for row in table.iter().unwrap() {
        let (row_key, block) = row.unwrap();
        let (scope, first) = parse_block_key(row_key.value());
        let entries: Vec<_> = Entries::of(first, block.value()).map(Result::unwrap).collect();
        let small = entries.len() <= MAX_ENTRIES && block.value().len() <= MAX_BYTES;
        assert!(small || entries.len() == 1, "{} entries in {} bytes", entries.len(), block.value().len());
        assert!(previous < Some((scope, first)), "blocks overlap");
        previous = entries.last().map(|(key, _)| (scope, *key));
        stored.extend(entries.iter().map(|(key, value)| ((scope, *key), value.to_vec())));
        rows += 1;
    }
    assert_eq!(&stored, model);
    assert_eq!(table.len().unwrap(), rows);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn blocks_hold_what_a_map_would(batches in acts(), probe in (-45_i64..45, 0_u32..4), until in -45_i64..3_000) {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let mut model = Model::new();
        let probe = key(probe.0, probe.1);
        let scope = Scope::of_agent(1);
        for batch in batches {
            let transaction = database.begin_write().unwrap();
            let mut blocks = Blocks::new(&transaction);
            blocks.create().unwrap();
            for act in batch {
                for (scope, key, value) in changes(act, &model) {
                    match value {
                        Some(value) => {
                            blocks.put(scope, key, &value);
                            model.insert((scope, key), value);
                        }
                        None => {
                            blocks.remove(scope, key);
                            model.remove(&(scope, key));
                        }
                    }
                }
                let found = blocks.get(scope, probe, <[u8]>::to_vec).unwrap();
                prop_assert_eq!(found.as_ref(), model.get(&(scope, probe)));
                let newest = model.range((scope, key(-5, 0))..=(scope, key(5, 9))).next_back().map(|((_, key), _)| *key);
                prop_assert_eq!(blocks.newest_within(scope, key(-5, 0)..=key(5, 9)).unwrap(), newest);
            }
            blocks.flush().unwrap();
            drop(blocks);
            transaction.commit().unwrap();
            assert_same(&database, &model);
        }
        let table = database.begin_read().unwrap().open_table(tables::TRANSACTIONS).unwrap();
        let found = get(&table, scope, probe, <[u8]>::to_vec).unwrap();
        prop_assert_eq!(found.as_ref(), model.get(&(scope, probe)));
        let until = key(until, 0);
        if probe <= until {
            let mut expected: Vec<(TxKey, Vec<u8>)> = model
                .range((scope, probe)..=(scope, until))
                .map(|((_, key), value)| (*key, value.clone()))
                .collect();
            for direction in [Direction::Ascending, Direction::Descending] {
                let walked: Vec<_> = walk(&table, scope, probe..=until, direction, |value| Ok(value.to_vec()))
                    .unwrap()
                    .map(Result::unwrap)
                    .collect();
                prop_assert_eq!(&walked, &expected);
                expected.reverse();
            }
        }
        let newest_of_all = model.range((scope, TxKey::MIN)..=(scope, TxKey::MAX)).next_back().map(|((_, key), _)| *key);
        prop_assert_eq!(newest(&table, scope).unwrap(), newest_of_all);
    }
}
