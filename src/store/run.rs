//! A sorted run: changes of rows that wait to be written where they belong, in the order of their keys, packed into one
//! value. It is what a log-structured merge-tree writes (O'Neil, Cheng, Gawlick, O'Neil, 1996).
//!
//! How many entries there are, and where each of them ends, counted from the first one's beginning: little-endian
//! `u32`s. Then the entries: the length of the key as a [number](super::block::write_number), the key, a byte that is 1
//! if there is a value and 0 if the row goes, and the value.
//!
//! Invariants: keys ascend, none is there twice.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::ops::Range;

use super::block::{read_number, write_number};
use super::blocks::Direction;
use super::error::StoreError;

/// What becomes of a row: its new value, or `None` if it goes.
pub type Change<'a> = Option<&'a [u8]>;

const GONE: u8 = 0;
const KEPT: u8 = 1;

/// A run as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    ends: &'a [[u8; 4]],
    entries: &'a [u8],
}

impl<'a> Run<'a> {
    /// Reads the outline.
    pub fn of(bytes: &'a [u8]) -> Result<Self, StoreError> {
        let read = || {
            let (count, rest) = bytes.split_first_chunk::<4>()?;
            let ends = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(4)?;
            let (ends, entries) = rest.split_at_checked(ends)?;
            Some(Self { ends: ends.as_chunks().0, entries })
        };
        let run = read().ok_or_else(malformed)?;
        if run.end_of(run.len()) == entries_end(run.entries) { Ok(run) } else { Err(malformed()) }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    fn end_of(&self, count: usize) -> Option<usize> {
        let Some(last) = count.checked_sub(1) else { return Some(0) };
        usize::try_from(u32::from_le_bytes(*self.ends.get(last)?)).ok()
    }

    /// The entry at `index`: its key, and what becomes of the row.
    pub fn entry(&self, index: usize) -> Result<(&'a [u8], Change<'a>), StoreError> {
        let read = || {
            let mut rest = self.entries.get(self.end_of(index)?..self.end_of(index + 1)?)?;
            let length = usize::try_from(read_number(&mut rest)?).ok()?;
            let (key, rest) = rest.split_at_checked(length)?;
            match rest.split_first()? {
                (&GONE, []) => Some((key, None)),
                (&KEPT, value) => Some((key, Some(value))),
                _ => None,
            }
        };
        read().ok_or_else(malformed)
    }

    /// How many entries come before `key`, itself included or not.
    fn before(&self, key: &[u8], included: bool) -> Result<usize, StoreError> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.entry(middle)?.0;
            if found < key || (included && found == key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Whether there are entries from `first` to before `end`.
    pub fn has_within(&self, first: &[u8], end: &[u8]) -> Result<bool, StoreError> {
        Ok(self.before(first, false)? < self.before(end, false)?)
    }

    /// What becomes of the row under `key`, if the run says anything of it.
    pub fn get(&self, key: &[u8]) -> Result<Option<Change<'a>>, StoreError> {
        let place = self.before(key, false)?;
        if place == self.len() {
            return Ok(None);
        }
        let (found, change) = self.entry(place)?;
        Ok((found == key).then_some(change))
    }
}

fn entries_end(entries: &[u8]) -> Option<usize> {
    u32::try_from(entries.len()).ok().map(|_| entries.len())
}

fn malformed() -> StoreError {
    StoreError::Damaged("a run of waiting changes is malformed".to_owned())
}

/// Collects changes in any order, and makes a run of them.
#[derive(Debug, Default)]
pub struct RunBuilder {
    /// The keys and values, one behind the other.
    bytes: Vec<u8>,
    entries: Vec<(Range<usize>, Option<Range<usize>>)>,
}

impl RunBuilder {
    /// How many changes were collected, those that were overtaken included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a change, the parts of whose key are given one behind the other. It overtakes an earlier one of that key.
    pub fn push(&mut self, key: &[&[u8]], change: Change<'_>) {
        let start = self.bytes.len();
        key.iter().for_each(|part| self.bytes.extend_from_slice(part));
        let key = start..self.bytes.len();
        let value = change.map(|value| {
            self.bytes.extend_from_slice(value);
            key.end..self.bytes.len()
        });
        self.entries.push((key, value));
    }

    /// The run, and an empty builder.
    pub fn finish(&mut self) -> Vec<u8> {
        let (bytes, mut entries) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.entries));
        // Stable: of one key, the last that was added comes last.
        entries.sort_by(|(one, _), (other, _)| bytes[one.clone()].cmp(&bytes[other.clone()]));
        let mut writer = RunWriter::default();
        for (place, (key, value)) in entries.iter().enumerate() {
            let is_overtaken =
                entries.get(place + 1).is_some_and(|(next, _)| bytes[next.clone()] == bytes[key.clone()]);
            if !is_overtaken {
                writer.push(&bytes[key.clone()], value.clone().map(|value| &bytes[value]));
            }
        }
        writer.finish()
    }
}

/// Writes a run of changes that come in order.
#[derive(Debug, Default)]
struct RunWriter {
    ends: Vec<u8>,
    entries: Vec<u8>,
}

impl RunWriter {
    fn push(&mut self, key: &[u8], change: Change<'_>) {
        write_number(&mut self.entries, key.len() as u64);
        self.entries.extend_from_slice(key);
        self.entries.push(if change.is_some() { KEPT } else { GONE });
        self.entries.extend_from_slice(change.unwrap_or_default());
        let end = u32::try_from(self.entries.len()).expect("a batch holds less than 4 GiB");
        self.ends.extend_from_slice(&end.to_le_bytes());
    }

    fn finish(self) -> Vec<u8> {
        let count = u32::try_from(self.ends.len() / 4).expect("there are fewer entries than bytes");
        let mut bytes = Vec::with_capacity(4 + self.ends.len() + self.entries.len());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&self.ends);
        bytes.extend_from_slice(&self.entries);
        bytes
    }
}

/// Makes one run of several, the oldest of which comes first.
pub fn merge(runs: &[Run<'_>]) -> Result<Vec<u8>, StoreError> {
    let mut writer = RunWriter::default();
    for entry in Merge::all(runs, Direction::Ascending)? {
        let (key, change) = entry?;
        writer.push(key, change);
    }
    Ok(writer.finish())
}

/// The changes of several runs in the order of their keys; of one key, the newest run's.
#[derive(Debug)]
pub struct Merge<'a> {
    /// Those that have something left; whose entry comes next is on top.
    cursors: BinaryHeap<Cursor<'a>>,
}

#[derive(Debug)]
struct Cursor<'a> {
    run: Run<'a>,
    /// How many runs are older.
    age: usize,
    /// What was not read yet.
    rest: Range<usize>,
    key: &'a [u8],
    change: Change<'a>,
    direction: Direction,
}

impl<'a> Cursor<'a> {
    /// Goes to the next entry, if there is one.
    fn advance(&mut self) -> Result<bool, StoreError> {
        let next = match self.direction {
            Direction::Ascending => self.rest.next(),
            Direction::Descending => self.rest.next_back(),
        };
        let Some(index) = next else { return Ok(false) };
        (self.key, self.change) = self.run.entry(index)?;
        Ok(true)
    }
}

/// Whose entry comes first is the greatest; of one key, the newest run's.
impl Ord for Cursor<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_key = match self.direction {
            Direction::Ascending => other.key.cmp(self.key),
            Direction::Descending => self.key.cmp(other.key),
        };
        by_key.then(self.age.cmp(&other.age))
    }
}

impl PartialOrd for Cursor<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cursor<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Cursor<'_> {}

impl<'a> Merge<'a> {
    /// Of everything in `runs`, the oldest of which comes first.
    pub fn all(runs: &[Run<'a>], direction: Direction) -> Result<Self, StoreError> {
        Self::of(runs.iter().map(|run| Ok((*run, 0..run.len()))), direction)
    }

    /// Of the keys from `first` to `last`, or to the end, in `runs`, the oldest of which comes first.
    pub fn within(
        runs: impl Iterator<Item = Result<Run<'a>, StoreError>>,
        first: &[u8],
        last: Option<&[u8]>,
        direction: Direction,
    ) -> Result<Self, StoreError> {
        let part = |run: Run<'a>| {
            let end = last.map_or(Ok(run.len()), |last| run.before(last, true))?;
            Ok((run, run.before(first, false)?..end))
        };
        Self::of(runs.map(|run| run.and_then(part)), direction)
    }

    fn of(
        parts: impl Iterator<Item = Result<(Run<'a>, Range<usize>), StoreError>>,
        direction: Direction,
    ) -> Result<Self, StoreError> {
        let mut cursors = BinaryHeap::new();
        for (age, part) in parts.enumerate() {
            let (run, rest) = part?;
            let mut cursor = Cursor { run, age, rest, key: &[], change: None, direction };
            if cursor.advance()? {
                cursors.push(cursor);
            }
        }
        Ok(Self { cursors })
    }
}

impl<'a> Iterator for Merge<'a> {
    type Item = Result<(&'a [u8], Change<'a>), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.cursors.peek()?;
        let (key, change) = (first.key, first.change);
        // The first, and what older runs say of its key.
        loop {
            let advanced = match self.cursors.peek_mut() {
                Some(mut cursor) if cursor.key == key => cursor.advance().map(|has_more| {
                    if !has_more {
                        PeekMut::pop(cursor);
                    }
                }),
                _ => break,
            };
            if let Err(error) = advanced {
                // Nothing behind the damage can be read.
                self.cursors.clear();
                return Some(Err(error));
            }
        }
        Some(Ok((key, change)))
    }
}

/// The rows of `base` with `changes` made, both in the order of `direction`.
pub fn overlaid<K: Ord, V>(
    base: impl Iterator<Item = Result<(K, V), StoreError>>,
    changes: impl Iterator<Item = Result<(K, Option<V>), StoreError>>,
    direction: Direction,
) -> impl Iterator<Item = Result<(K, V), StoreError>> {
    let (mut base, mut changes) = (base.peekable(), changes.peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (base.peek(), changes.peek()) {
                (Some(Err(_)), _) | (Some(_), None) => return base.next(),
                (_, None) => return None,
                (_, Some(Err(_))) | (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(Ok((row, _))), Some(Ok((changed, _)))) => match direction {
                    Direction::Ascending => row.cmp(changed),
                    Direction::Descending => changed.cmp(row),
                },
            };
            if order.is_lt() {
                return base.next();
            }
            if order.is_eq() {
                base.next();
            }
            match changes.next()? {
                Ok((key, Some(value))) => return Some(Ok((key, value))),
                Ok((_, None)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

    fn changes() -> impl Strategy<Value = Vec<(Vec<u8>, Option<Vec<u8>>)>> {
        let key = prop_oneof![prop::collection::vec(0_u8..3, 0..4), prop::collection::vec(any::<u8>(), 120..140)];
        prop::collection::vec((key, prop::option::of(prop::collection::vec(any::<u8>(), 0..5))), 0..20)
    }

    fn built(changes: &[(Vec<u8>, Option<Vec<u8>>)]) -> Vec<u8> {
        let mut builder = RunBuilder::default();
        for (key, change) in changes {
            let (start, end) = key.split_at(key.len() / 2);
            builder.push(&[start, end], change.as_deref());
        }
        builder.finish()
    }

    fn read<'a>(
        merge: impl Iterator<Item = Result<(&'a [u8], Change<'a>), StoreError>>,
    ) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        merge.map(|entry| entry.unwrap()).map(|(key, change)| (key.to_vec(), change.map(<[u8]>::to_vec))).collect()
    }

    proptest! {
        #[test]
        fn runs_read_and_merge_like_a_map_that_took_the_changes_in_turn(
            batches in prop::collection::vec(changes(), 1..5),
            ends in (prop::collection::vec(0_u8..3, 0..4), prop::collection::vec(0_u8..3, 0..4)),
            base in prop::collection::btree_map(prop::collection::vec(0_u8..3, 0..4), any::<u8>(), 0..20),
        ) {
            let mut model = Model::new();
            let stored: Vec<Vec<u8>> = batches.iter().map(|changes| built(changes)).collect();
            let runs: Vec<Run<'_>> = stored.iter().map(|run| Run::of(run).unwrap()).collect();
            for (changes, run) in batches.iter().zip(&runs) {
                let own: Model = changes.iter().cloned().collect();
                prop_assert_eq!(run.len(), own.len());
                for (key, change) in &own {
                    prop_assert_eq!(run.get(key).unwrap(), Some(change.as_deref()));
                }
                prop_assert_eq!(run.get(b"nowhere").unwrap(), None);
                if ends.0 < ends.1 {
                    let has_some = own.range(ends.0.clone()..ends.1.clone()).next().is_some();
                    prop_assert_eq!(run.has_within(&ends.0, &ends.1).unwrap(), has_some);
                }
                model.extend(own);
            }
            let expected: Vec<_> = model.clone().into_iter().collect();
            let merged = merge(&runs).unwrap();
            prop_assert_eq!(&read(Merge::all(&[Run::of(&merged).unwrap()], Direction::Ascending).unwrap()), &expected);
            prop_assert_eq!(&built(&expected), &merged);

            let (first, last) = ends;
            let within = |direction| read(Merge::within(runs.iter().map(|run| Ok(*run)), &first, Some(&last), direction).unwrap());
            let mut wanted: Vec<_> = expected.into_iter().filter(|(key, _)| (&first..=&last).contains(&key)).collect();
            prop_assert_eq!(&within(Direction::Ascending), &wanted);

            for direction in [Direction::Ascending, Direction::Descending] {
                let mut rows = base.clone();
                for (key, change) in &wanted {
                    match change {
                        Some(value) => rows.insert(key.clone(), value.len() as u8),
                        None => rows.remove(key),
                    };
                }
                let mut rows: Vec<_> = rows.into_iter().collect();
                let mut below: Vec<_> = base.clone().into_iter().map(Ok).collect();
                let mut above: Vec<_> = wanted.iter().cloned().map(|(key, change)| Ok((key, change.map(|value| value.len() as u8)))).collect();
                if direction == Direction::Descending {
                    rows.reverse();
                    below.reverse();
                    above.reverse();
                }
                let overlaid: Vec<_> = overlaid(below.into_iter(), above.into_iter(), direction).map(Result::unwrap).collect();
                prop_assert_eq!(overlaid, rows);
            }
            wanted.reverse();
            prop_assert_eq!(within(Direction::Descending), wanted);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..80), key: Vec<u8>) {
            if let Ok(run) = Run::of(&bytes) {
                drop(run.get(&key));
                Merge::all(&[run], Direction::Ascending).into_iter().flatten().take(100).for_each(drop);
            }
        }
    }

    #[test]
    fn bytes_are_as_they_ever_were() {
        let run = built(&[(b"b".to_vec(), None), (b"a".to_vec(), Some(b"xy".to_vec()))]);
        assert_eq!(run, [2, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, b'a', 1, b'x', b'y', 1, b'b', 0]);
    }

    #[test]
    fn what_is_cut_off_or_goes_on_too_long_is_damage() {
        let run = built(&[(b"a".to_vec(), Some(b"xy".to_vec())), (b"b".to_vec(), None)]);
        for end in 0..run.len() {
            assert!(Run::of(&run[..end]).is_err(), "{end}");
        }
        assert!(Run::of(&[&run[..], &[0]].concat()).is_err());
    }
}
