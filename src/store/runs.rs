//! The table `runs`: changes of agents' lists and counters that wait to be written where they belong.
//!
//! Each transaction changes the lists and counters of two agents, which lie anywhere in the file, and a commit costs
//! what it dirties. So a batch writes all such changes as one [sorted run](super::run), in one place, and readers look
//! into the runs first, from the newest to the oldest, then into the tables below. When [`FAN`] runs of about the same
//! size have come together they are merged; when [`MAX_WAITING`] changes wait, all of them are written to where they
//! belong, each block and counter once for many batches.
//!
//! That takes room on the disk, as great merges do. Where there is none, both can be [put off](Runs::put_off): then up to
//! [`MOST_WAITING`] changes wait, in runs that are many, but none of which is large.
//!
//! Keys are numbers, the oldest run's is the least. A run's size class is its number of entries, in powers of [`FAN`]; fewer
//! than [`FAN`] runs of a class or of lesser ones follow the last run of a greater one when a run is added, so there are
//! few in all. While merges are put off that is true of the classes below [`SMALL`] only, and there are some hundreds.

use redb::{AccessGuard, ReadOnlyTable, WriteTransaction};

use super::blocks::Direction;
use super::error::StoreError;
use super::lazy::Lazy;
use super::run::{self, Change, Merge, Run, RunBuilder};
use super::tables::{self, Scope, TxKey};

type Bytes = &'static [u8];

/// How many runs of one size class are merged.
const FAN: usize = 8;
/// How many changes wait at most.
const MAX_WAITING: usize = 32_768;
/// How many do while that is put off. Readers look into a run for every few hundred of them.
const MOST_WAITING: usize = 4 * MAX_WAITING;
/// The size class of runs that are not merged any more while that is put off: of up to 4 095 changes, some 250 KiB.
const SMALL: u32 = 3;

/// Whose changes a run holds: the first byte of a key, before the key within the table.
const LIST: u8 = 0;
const TALLY: u8 = 1;

/// What a key of a run stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// An entry of an agent's list in `transactions`.
    Listed(Scope, TxKey),
    /// A row of `tallies`, by its key.
    Tally(&'a [u8]),
}

impl<'a> Target<'a> {
    /// Reads a key; `None` for one that this version does not write.
    pub fn parse(key: &'a [u8]) -> Option<Self> {
        match key.split_first()? {
            (&LIST, rest) => {
                let (scope, key) = tables::parse_block_key(rest.try_into().ok()?);
                scope.is_of_agent().then_some(Self::Listed(scope, key))
            }
            (&TALLY, key) => Some(Self::Tally(key)),
            _ => None,
        }
    }

    /// The key of a run.
    pub fn to_key(self) -> Vec<u8> {
        match self {
            Self::Listed(scope, key) => [&[LIST][..], &tables::block_key(scope, key)].concat(),
            Self::Tally(key) => [&[TALLY], key].concat(),
        }
    }
}

/// A run's key, and its bytes.
type StoredRun = (u64, Vec<u8>);

/// How many changes wait, and where the next run goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// In all runs.
    pub changes: usize,
    /// The next run's key.
    pub next: u64,
}

/// The table within a write transaction, and what the batch adds.
pub struct Runs<'t> {
    table: Lazy<'t, u64, Bytes>,
    added: RunBuilder,
    is_put_off: bool,
}

impl<'t> Runs<'t> {
    pub fn new(transaction: &'t WriteTransaction) -> Self {
        Self { table: Lazy::new(transaction, tables::RUNS), added: RunBuilder::default(), is_put_off: false }
    }

    /// Creates the table, so that readers find it.
    pub fn create(&self) -> Result<(), StoreError> {
        self.table.open().map(drop)
    }

    /// Puts an entry into an agent's list, or takes it out.
    pub fn change_list(&mut self, scope: Scope, key: TxKey, change: Change<'_>) {
        debug_assert!(scope.is_of_agent(), "other lists have their new entries in one place");
        self.added.push(&[&[LIST], &tables::block_key(scope, key)], change);
    }

    /// Writes a counter, or takes it away.
    pub fn change_tally(&mut self, key: &[u8], change: Change<'_>) {
        self.added.push(&[&[TALLY], key], change);
    }

    /// Has what waits stay where it is as long as it can.
    pub fn put_off(&mut self) {
        self.is_put_off = true;
    }

    /// Whether more would wait with what this batch has added than may.
    pub fn are_full(&self, before: &Waiting) -> bool {
        let most = if self.is_put_off { MOST_WAITING } else { MAX_WAITING };
        self.added.len() > 0 && before.changes + self.added.len() > most
    }

    /// What becomes of a counter, if anything waits; what this batch has added does not count.
    pub fn tally(&self, key: &[u8]) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        let key = Target::Tally(key).to_key();
        for row in self.table.iter()?.rev() {
            if let Some(change) = Run::of(row?.1.value())?.get(&key)? {
                return Ok(Some(change.map(<[u8]>::to_vec)));
            }
        }
        Ok(None)
    }

    /// Whether changes of counters from `first` to before `end` wait; what this batch has added does not count.
    pub fn have_tally_within(&self, first: &[u8], end: &[u8]) -> Result<bool, StoreError> {
        let (first, end) = (Target::Tally(first).to_key(), Target::Tally(end).to_key());
        for row in self.table.iter()? {
            if Run::of(row?.1.value())?.has_within(&first, &end)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes what was added as a run of its own, and merges it with those of its size.
    pub fn flush(&mut self, waiting: &mut Waiting) -> Result<(), StoreError> {
        if self.added.len() == 0 {
            return Ok(());
        }
        let mut key = waiting.next;
        let mut bytes = self.added.finish();
        let mut count = Run::of(&bytes)?.len();
        waiting.changes += count;
        while let Some(alike) = self.alike(count, key)? {
            key = alike[0].0;
            let mut stored = alike.iter().map(|(_, run)| Run::of(run)).collect::<Result<Vec<_>, _>>()?;
            waiting.changes -= stored.iter().map(Run::len).sum::<usize>() + count;
            stored.push(Run::of(&bytes)?);
            let merged = run::merge(&stored)?;
            count = Run::of(&merged)?.len();
            waiting.changes += count;
            bytes = merged;
            for (key, _) in &alike {
                self.table.remove(key)?;
            }
        }
        self.table.insert(key, bytes.as_slice())?;
        waiting.next = key + 1;
        Ok(())
    }

    /// The newest runs before `key`, if with one more of `count` entries there are enough of that size to be merged.
    fn alike(&self, count: usize, key: u64) -> Result<Option<Vec<StoredRun>>, StoreError> {
        let class = class_of(count);
        // While merges are put off a larger run takes in the small ones before it, or they would never be merged.
        let is_larger = self.is_put_off && class >= SMALL;
        let (greatest, enough) = if is_larger { (SMALL - 1, 2) } else { (class, FAN) };
        let mut alike = Vec::new();
        for row in self.table.range(..key)?.rev() {
            let (key, run) = row?;
            if class_of(Run::of(run.value())?.len()) > greatest {
                break;
            }
            alike.push((key.value(), run.value().to_vec()));
        }
        alike.reverse();
        Ok((alike.len() + 1 >= enough).then_some(alike))
    }

    /// Visits everything that waits, what was added included, in the order of keys, and forgets it.
    pub fn drain(
        &mut self,
        waiting: &mut Waiting,
        mut visit: impl FnMut(Target<'_>, Change<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut stored: Vec<(Option<u64>, Vec<u8>)> = Vec::new();
        for row in self.table.iter()? {
            let (key, run) = row?;
            stored.push((Some(key.value()), run.value().to_vec()));
        }
        stored.push((None, self.added.finish()));
        let runs = stored.iter().map(|(_, run)| Run::of(run)).collect::<Result<Vec<_>, _>>()?;
        for entry in Merge::all(&runs, Direction::Ascending)? {
            let (key, change) = entry?;
            visit(Target::parse(key).ok_or_else(strange)?, change)?;
        }
        for key in stored.iter().filter_map(|(key, _)| *key) {
            self.table.remove(key)?;
        }
        *waiting = Waiting::default();
        Ok(())
    }
}

fn class_of(count: usize) -> u32 {
    count.max(1).ilog(FAN)
}

/// What a key is that stands where none of its kind can.
pub fn strange() -> StoreError {
    StoreError::Damaged("a waiting change has a key that means nothing".to_owned())
}

/// The runs of a snapshot.
pub struct StoredRuns {
    /// The oldest first.
    rows: Vec<AccessGuard<'static, Bytes>>,
}

impl StoredRuns {
    pub fn of(table: &ReadOnlyTable<u64, Bytes>) -> Result<Self, StoreError> {
        let rows = table.range::<u64>(..)?.map(|row| row.map(|(_, run)| run)).collect::<Result<_, _>>()?;
        Ok(Self { rows })
    }

    /// How many changes wait, and where the next run goes.
    pub fn waiting(table: &ReadOnlyTable<u64, Bytes>) -> Result<Waiting, StoreError> {
        let mut waiting = Waiting::default();
        for row in table.range::<u64>(..)? {
            let (key, run) = row?;
            waiting.changes += Run::of(run.value())?.len();
            waiting.next = key.value().checked_add(1).ok_or_else(strange)?;
        }
        Ok(waiting)
    }

    /// The runs, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Result<Run<'_>, StoreError>> {
        self.rows.iter().map(|row| Run::of(row.value()))
    }

    /// What becomes of an entry or a counter, if anything waits.
    pub fn get(&self, target: Target<'_>) -> Result<Option<Change<'_>>, StoreError> {
        let key = target.to_key();
        for run in self.iter().rev() {
            if let Some(change) = run?.get(&key)? {
                return Ok(Some(change));
            }
        }
        Ok(None)
    }

    /// The changes from one target to another of the same kind, or to the last of all.
    pub fn within<'a>(
        &'a self,
        first: Target<'_>,
        last: Option<Target<'_>>,
        direction: Direction,
    ) -> Result<impl Iterator<Item = Result<(Target<'a>, Change<'a>), StoreError>> + use<'a>, StoreError> {
        let last = last.map(Target::to_key);
        let merge = Merge::within(self.iter(), &first.to_key(), last.as_deref(), direction)?;
        Ok(merge.map(|entry| {
            let (key, change) = entry?;
            Ok((Target::parse(key).ok_or_else(strange)?, change))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;
    use redb::{Database, ReadableDatabase, ReadableTableMetadata};

    use super::*;
    use crate::domain::Timestamp;

    /// Something to change, of either kind, from a small choice.
    fn target(number: u16) -> (Option<(Scope, TxKey)>, Vec<u8>) {
        let key = TxKey::first_at(Timestamp::from_micros(i64::from(number / 7)));
        match number % 7 {
            0..4 => (Some((Scope::of_agent(u32::from(number % 7) + 1), key)), Vec::new()),
            _ => (None, number.to_be_bytes().to_vec()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_waits_is_found_until_all_of_it_is_written_in_its_place(
            batches in prop::collection::vec(
                (
                    prop_oneof![
                        9 => prop::collection::vec((0_u16..900, prop::option::of(any::<u8>())), 0..40),
                        1 => prop::collection::vec((0_u16..900, prop::option::of(any::<u8>())), 600..1_500),
                    ],
                    prop::bool::weighted(0.02),
                ),
                1..120,
            ),
            put_off in prop::option::weighted(0.5, (0_usize..120, 0_usize..120)),
        ) {
            let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
            let mut waiting = Waiting::default();
            let mut model: BTreeMap<Vec<u8>, Option<u8>> = BTreeMap::new();
            for (number, (changes, settles)) in batches.into_iter().enumerate() {
                let is_put_off = put_off.is_some_and(|(from, to)| (from..to).contains(&number));
                let transaction = database.begin_write().unwrap();
                let mut runs = Runs::new(&transaction);
                runs.create().unwrap();
                if is_put_off {
                    runs.put_off();
                }
                for (number, change) in changes {
                    let value = change.map(|byte| [byte]);
                    let value = value.as_ref().map(<[u8; 1]>::as_slice);
                    let (listed, tally) = target(number);
                    let target = match listed {
                        Some((scope, key)) => {
                            runs.change_list(scope, key, value);
                            Target::Listed(scope, key)
                        }
                        None => {
                            runs.change_tally(&tally, value);
                            Target::Tally(&tally)
                        }
                    };
                    model.insert(target.to_key(), change);
                }
                if settles {
                    let mut drained = BTreeMap::new();
                    runs.drain(&mut waiting, |target, change| {
                        drained.insert(target.to_key(), change.map(|value| value[0]));
                        Ok(())
                    })
                    .unwrap();
                    prop_assert_eq!(&drained, &std::mem::take(&mut model));
                } else {
                    runs.flush(&mut waiting).unwrap();
                }
                for number in [0, 5, 6, 12, 13] {
                    if let (None, key) = target(number) {
                        let found = runs.tally(&key).unwrap().map(|change| change.map(|value| value[0]));
                        prop_assert_eq!(found, model.get(&Target::Tally(&key).to_key()).copied());
                    }
                }
                drop(runs);
                transaction.commit().unwrap();

                let table = database.begin_read().unwrap().open_table(tables::RUNS).unwrap();
                prop_assert_eq!(StoredRuns::waiting(&table).unwrap(), waiting);
                // 900 changes at most are of four classes, of which the greatest is not merged where that is put off.
                let small = put_off.map_or(0, |_| waiting.changes / FAN.pow(SMALL));
                prop_assert!(table.len().unwrap() < (4 * FAN + small) as u64);
                let stored = StoredRuns::of(&table).unwrap();
                for (key, change) in &model {
                    let found = stored.get(Target::parse(key).unwrap()).unwrap();
                    prop_assert_eq!(found, Some(change.as_ref().map(std::slice::from_ref)));
                }
                let first = Target::Listed(Scope::of_agent(2), TxKey::MIN);
                let last = Target::Listed(Scope::of_agent(2), TxKey::MAX);
                for direction in [Direction::Ascending, Direction::Descending] {
                    let within = stored.within(first, Some(last), direction).unwrap();
                    let found: Vec<_> =
                        within.map(Result::unwrap).map(|(target, change)| (target.to_key(), change.map(|value| value[0]))).collect();
                    let mut expected: Vec<_> = model
                        .range(first.to_key()..=last.to_key())
                        .map(|(key, change)| (key.clone(), *change))
                        .collect();
                    if direction == Direction::Descending {
                        expected.reverse();
                    }
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn put_off_a_larger_run_takes_in_the_small_ones_before_it() {
        const ROUNDS: u64 = 10;
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let transaction = database.begin_write().unwrap();
        let (mut waiting, mut keys) = (Waiting::default(), 0_u32..);
        for changes in [1, 1, 1, 1, 1, 1, 1, FAN.pow(SMALL)].repeat(ROUNDS as usize) {
            let mut runs = Runs::new(&transaction);
            runs.put_off();
            for key in keys.by_ref().take(changes) {
                runs.change_tally(&key.to_be_bytes(), None);
            }
            runs.flush(&mut waiting).unwrap();
        }
        assert_eq!(transaction.open_table(tables::RUNS).unwrap().len().unwrap(), ROUNDS);
    }

    #[test]
    fn put_off_more_may_wait_but_not_any_number() {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let transaction = database.begin_write().unwrap();
        let full = |changes: usize, is_put_off: bool, adds: bool| {
            let mut runs = Runs::new(&transaction);
            if is_put_off {
                runs.put_off();
            }
            if adds {
                runs.change_tally(b"one", None);
            }
            runs.are_full(&Waiting { changes, next: 1 })
        };
        assert_eq!([MAX_WAITING - 1, MAX_WAITING].map(|waiting| full(waiting, false, true)), [false, true]);
        assert_eq!(
            [MAX_WAITING, MOST_WAITING - 1, MOST_WAITING].map(|waiting| full(waiting, true, true)),
            [false, false, true]
        );
        // What sinks acknowledge is noted whatever waits.
        assert!(!full(MOST_WAITING, false, false));
    }
}
