//! The table `transactions`: for each scope a sorted list of entries by [`TxKey`], kept in [blocks](super::block).
//!
//! A row for each entry would cost a place in a page each, and a batch that names a scope often would write many; so
//! consecutive entries share a row, whose key is the scope and the key of its first entry. Blocks of one scope never
//! overlap. New entries are nearly always the newest and go to the end of the last block; an older one goes into the
//! block that covers it, which is halved when it grows too large. A block that lost its last entry is removed; sparse
//! ones are not joined, for there are never more of them than entries.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use redb::{ReadableTable, Table, WriteTransaction};

use super::block::{Entries, Packer};
use super::error::StoreError;
use super::lazy::Lazy;
use super::tables::{self, BLOCK_KEY_BYTES, Scope, TxKey, block_key, parse_block_key};

type Key = &'static [u8; BLOCK_KEY_BYTES];
type Bytes = &'static [u8];

/// What one batch changes of the table. It is staged, and written by [`flush`](Self::flush) scope by scope, so that
/// each block is written once.
pub struct Blocks<'t> {
    table: Lazy<'t, Key, Bytes>,
    staged: HashMap<Scope, Vec<Change>>,
    /// The staged values, one behind the other.
    values: Vec<u8>,
}

/// An entry's new value, as a range of the staged values; `None` for one that goes.
type Change = (TxKey, Option<Range<usize>>);

impl<'t> Blocks<'t> {
    pub fn new(transaction: &'t WriteTransaction) -> Self {
        Self { table: Lazy::new(transaction, tables::TRANSACTIONS), staged: HashMap::new(), values: Vec::new() }
    }

    /// Creates the table, so that readers find it.
    pub fn create(&self) -> Result<(), StoreError> {
        self.table.open().map(drop)
    }

    /// What `read` makes of an entry's value, if the entry is there.
    pub fn get<R>(&self, scope: Scope, key: TxKey, read: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, StoreError> {
        let staged = self.staged.get(&scope).map_or(&[][..], Vec::as_slice);
        match staged.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(found) => Ok(staged[found].1.clone().map(|value| read(&self.values[value]))),
            Err(_) => get(self.table.open()?, scope, key, read),
        }
    }

    /// The greatest key of a range that has an entry.
    pub fn newest_within(&self, scope: Scope, range: RangeInclusive<TxKey>) -> Result<Option<TxKey>, StoreError> {
        let staged = self.staged.get(&scope).map_or(&[][..], Vec::as_slice);
        let change = |key: TxKey| staged.binary_search_by_key(&key, |(key, _)| *key).map(|found| &staged[found].1);
        let mut newest = staged.iter().rev().find(|(key, value)| range.contains(key) && value.is_some()).map(|at| at.0);
        for entry in walk(self.table.open()?, scope, range, Direction::Descending, |_| Ok(()))? {
            let (key, ()) = entry?;
            if change(key).map_or(true, Option::is_some) {
                newest = newest.max(Some(key));
                break;
            }
        }
        Ok(newest)
    }

    /// Writes an entry, new or changed.
    pub fn put(&mut self, scope: Scope, key: TxKey, value: &[u8]) {
        let start = self.values.len();
        self.values.extend_from_slice(value);
        self.stage(scope, key, Some(start..self.values.len()));
    }

    /// Removes an entry if it is there.
    pub fn remove(&mut self, scope: Scope, key: TxKey) {
        self.stage(scope, key, None);
    }

    fn stage(&mut self, scope: Scope, key: TxKey, value: Option<Range<usize>>) {
        let staged = self.staged.entry(scope).or_default();
        if staged.last().is_none_or(|(last, _)| *last < key) {
            return staged.push((key, value));
        }
        match staged.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(found) => staged[found].1 = value,
            Err(place) => staged.insert(place, (key, value)),
        }
    }

    /// Writes what is staged.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        let mut scopes: Vec<(Scope, Vec<Change>)> = self.staged.drain().collect();
        if scopes.is_empty() {
            return Ok(());
        }
        // Neighbours in the table are written one after the other.
        scopes.sort_unstable_by_key(|(scope, _)| *scope);
        let table = self.table.open_mut()?;
        for (scope, changes) in scopes {
            write_scope(table, scope, &changes, &self.values)?;
        }
        self.values.clear();
        Ok(())
    }
}

fn write_scope(
    table: &mut Table<'_, Key, Bytes>,
    scope: Scope,
    mut changes: &[Change],
    values: &[u8],
) -> Result<(), StoreError> {
    while let Some((key, _)) = changes.first() {
        let (block, next) = block_for(table, scope, *key)?;
        let covered = next.map_or(changes.len(), |next| changes.partition_point(|(key, _)| *key < next));
        let (mine, further) = changes.split_at(covered);
        changes = further;
        let appends = next.is_none() && mine.iter().all(|(_, value)| value.is_some());
        if !(appends && append(table, scope, block.as_ref(), mine, values)?) {
            merge(table, scope, block.as_ref(), mine, values)?;
        }
    }
    Ok(())
}

type Block = (TxKey, Vec<u8>);

/// The block that covers a key (or would), and where the next one begins.
fn block_for(
    table: &impl ReadableTable<Key, Bytes>,
    scope: Scope,
    key: TxKey,
) -> Result<(Option<Block>, Option<TxKey>), StoreError> {
    let last = last_block(table, scope, TxKey::MAX)?;
    if last.as_ref().is_none_or(|(first, _)| *first <= key) {
        return Ok((last, None));
    }
    let behind = block_key(scope, key.next().expect("a block begins behind it"));
    let next = table.range::<&[u8; BLOCK_KEY_BYTES]>(&behind..=&block_key(scope, TxKey::MAX))?.next().transpose()?;
    let next = next.map(|(key, _)| parse_block_key(key.value()).1);
    Ok((last_block(table, scope, key)?, next))
}

/// The last block of a scope that begins at `key` or before.
fn last_block(table: &impl ReadableTable<Key, Bytes>, scope: Scope, key: TxKey) -> Result<Option<Block>, StoreError> {
    let range = block_key(scope, TxKey::MIN)..=block_key(scope, key);
    let found = table.range::<&[u8; BLOCK_KEY_BYTES]>(range.start()..=range.end())?.next_back().transpose()?;
    Ok(found.map(|(key, block)| (parse_block_key(key.value()).1, block.value().to_vec())))
}

/// Puts new entries behind the last block; whether that is where they belong.
fn append(
    table: &mut Table<'_, Key, Bytes>,
    scope: Scope,
    last: Option<&Block>,
    changes: &[Change],
    values: &[u8],
) -> Result<bool, StoreError> {
    let mut packer = match last {
        Some((first, block)) => Packer::reopen(*first, block)?,
        None => Packer::default(),
    };
    if packer.last().is_some_and(|last| changes.first().is_none_or(|(key, _)| *key <= last)) {
        return Ok(false);
    }
    let mut changed = false;
    for (key, value) in changes {
        let value = value.clone().map_or(&[][..], |value| &values[value]);
        if packer.is_full_for(value.len())
            && let Some((first, block)) = packer.take()
            && changed
        {
            table.insert(&block_key(scope, first), block.as_slice())?;
        }
        packer.push(*key, value);
        changed = true;
    }
    if let Some((first, block)) = packer.take() {
        table.insert(&block_key(scope, first), block.as_slice())?;
    }
    Ok(true)
}

/// Writes a block anew with some of its entries changed, in as many rows as it needs.
fn merge(
    table: &mut Table<'_, Key, Bytes>,
    scope: Scope,
    block: Option<&Block>,
    changes: &[Change],
    values: &[u8],
) -> Result<(), StoreError> {
    let mut entries = Vec::new();
    let mut changes = changes.iter().peekable();
    let value_of = |range: &Option<Range<usize>>| range.clone().map(|range| &values[range]);
    if let Some((first, block)) = block {
        for entry in Entries::of(*first, block) {
            let (key, value) = entry?;
            while let Some((new, range)) = changes.next_if(|(new, _)| *new < key) {
                entries.extend(value_of(range).map(|value| (*new, value)));
            }
            match changes.next_if(|(new, _)| *new == key) {
                Some((_, range)) => entries.extend(value_of(range).map(|value| (key, value))),
                None => entries.push((key, value)),
            }
        }
    }
    entries.extend(changes.filter_map(|(key, range)| Some((*key, value_of(range)?))));
    if let Some((first, _)) = block
        && entries.first().is_none_or(|(key, _)| key != first)
    {
        table.remove(&block_key(scope, *first))?;
    }
    write_halves(table, scope, &entries)
}

fn write_halves(table: &mut Table<'_, Key, Bytes>, scope: Scope, entries: &[(TxKey, &[u8])]) -> Result<(), StoreError> {
    let mut packer = Packer::default();
    for (key, value) in entries {
        if packer.is_full_for(value.len()) {
            let (older, newer) = entries.split_at(entries.len() / 2);
            write_halves(table, scope, older)?;
            return write_halves(table, scope, newer);
        }
        packer.push(*key, value);
    }
    if let Some((first, block)) = packer.take() {
        table.insert(&block_key(scope, first), block.as_slice())?;
    }
    Ok(())
}

/// What `read` makes of an entry's value, if the entry is there.
pub fn get<R>(
    table: &impl ReadableTable<Key, Bytes>,
    scope: Scope,
    key: TxKey,
    read: impl FnOnce(&[u8]) -> R,
) -> Result<Option<R>, StoreError> {
    let range = block_key(scope, TxKey::MIN)..=block_key(scope, key);
    let Some(row) = table.range::<&[u8; BLOCK_KEY_BYTES]>(range.start()..=range.end())?.next_back() else {
        return Ok(None);
    };
    let (first, block) = row?;
    for entry in Entries::of(parse_block_key(first.value()).1, block.value()) {
        let (found, value) = entry?;
        if found >= key {
            return Ok((found == key).then(|| read(value)));
        }
    }
    Ok(None)
}

/// The greatest key of a scope.
pub fn newest(table: &impl ReadableTable<Key, Bytes>, scope: Scope) -> Result<Option<TxKey>, StoreError> {
    let Some((first, block)) = last_block(table, scope, TxKey::MAX)? else { return Ok(None) };
    Ok(Packer::reopen(first, &block)?.last())
}

/// Which end of a range comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ascending,
    Descending,
}

/// The entries of a range of one scope, and what `read` makes of their values.
pub fn walk<'a, T: 'a>(
    table: &'a impl ReadableTable<Key, Bytes>,
    scope: Scope,
    range: RangeInclusive<TxKey>,
    direction: Direction,
    read: impl Fn(&[u8]) -> Result<T, StoreError> + 'a,
) -> Result<impl Iterator<Item = Result<(TxKey, T), StoreError>> + 'a, StoreError> {
    // The range may begin within a block.
    let begins = last_block(table, scope, *range.start())?.map_or(*range.start(), |(first, _)| first);
    let mut rows =
        table.range::<&[u8; BLOCK_KEY_BYTES]>(&block_key(scope, begins)..=&block_key(scope, *range.end()))?;
    let mut block = Vec::new().into_iter();
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some(entry) = block.next() {
                return Some(Ok(entry));
            }
            let row = match direction {
                Direction::Ascending => rows.next()?,
                Direction::Descending => rows.next_back()?,
            };
            let entries = row.map_err(StoreError::from).and_then(|(key, row)| {
                let mut entries = Vec::new();
                for entry in Entries::of(parse_block_key(key.value()).1, row.value()) {
                    let (key, value) = entry?;
                    if range.contains(&key) {
                        entries.push((key, read(value)?));
                    }
                }
                Ok(entries)
            });
            match entries {
                Ok(mut entries) => {
                    if direction == Direction::Descending {
                        entries.reverse();
                    }
                    block = entries.into_iter();
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }))
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
