//! A block: entries that follow each other in time, packed into the value of one row.
//!
//! An entry is a [`TxKey`] and some bytes. It is written as three variable-length numbers (microseconds since the entry
//! before, or since the row's own key for the first; the tie-breaker; how many bytes) and then the bytes. Entries of a
//! busy time so take 3 bytes beside their own, where a row each would take 20 and a place in a page's directory.
//!
//! Invariants: an entry's key is greater than the one before; the first is the row's; no number is longer than it must
//! be; several entries never exceed [`MAX_ENTRIES`] or [`MAX_BYTES`] (one alone may be as large as it is).

use super::error::StoreError;
use super::tables::TxKey;
use crate::domain::Timestamp;

/// The most entries of one block: what a reader of one entry walks through.
pub const MAX_ENTRIES: usize = 128;
/// The most bytes of several entries: two blocks fit in a page of redb's, with room for their keys.
pub const MAX_BYTES: usize = 1_900;

/// Puts entries together, in ascending order of their keys.
#[derive(Debug, Default)]
pub struct Packer {
    ends: Option<(TxKey, TxKey)>,
    bytes: Vec<u8>,
    count: usize,
}

impl Packer {
    /// Goes on behind the entries of a stored block.
    pub fn reopen(first: TxKey, block: &[u8]) -> Result<Self, StoreError> {
        let mut entries = Entries::of(first, block);
        let mut last = first;
        let mut count = 0;
        while let Some(entry) = entries.next().transpose()? {
            last = entry.0;
            count += 1;
        }
        let mut bytes = Vec::with_capacity(MAX_BYTES);
        bytes.extend_from_slice(block);
        Ok(Self { ends: Some((first, last)), bytes, count })
    }

    /// The key of the newest entry.
    pub fn last(&self) -> Option<TxKey> {
        self.ends.map(|(_, last)| last)
    }

    /// Whether one more value of this length may not be added any more.
    pub fn is_full_for(&self, length: usize) -> bool {
        // Three numbers take at most 20 bytes.
        self.count >= MAX_ENTRIES || (self.count > 0 && self.bytes.len() + length + 20 > MAX_BYTES)
    }

    /// Adds an entry behind the last.
    pub fn push(&mut self, key: TxKey, value: &[u8]) {
        let (first, last) = self.ends.unwrap_or((key, key));
        debug_assert!(self.count == 0 || last < key, "entries come in order");
        write_number(&mut self.bytes, key.created_at.as_micros().abs_diff(last.created_at.as_micros()));
        write_number(&mut self.bytes, u64::from(key.tie));
        write_number(&mut self.bytes, value.len() as u64);
        self.bytes.extend_from_slice(value);
        self.ends = Some((first, key));
        self.count += 1;
    }

    /// The block and its row's key; `None` while there are no entries.
    pub fn take(&mut self) -> Option<(TxKey, Vec<u8>)> {
        let (first, _) = self.ends.take()?;
        self.count = 0;
        Some((first, std::mem::take(&mut self.bytes)))
    }
}

/// The entries of a block, in order. What does not keep the invariants is damage.
#[derive(Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    last: TxKey,
    is_first: bool,
}

impl<'a> Entries<'a> {
    /// Of the row whose key says `first`.
    pub fn of(first: TxKey, block: &'a [u8]) -> Self {
        Self { rest: block, last: first, is_first: true }
    }

    fn read(&mut self) -> Option<(TxKey, &'a [u8])> {
        let elapsed = i64::try_from(read_number(&mut self.rest)?).ok()?;
        let tie = u32::try_from(read_number(&mut self.rest)?).ok()?;
        let length = usize::try_from(read_number(&mut self.rest)?).ok()?;
        let (value, rest) = self.rest.split_at_checked(length)?;
        let micros = self.last.created_at.as_micros().checked_add(elapsed)?;
        let key = TxKey { created_at: Timestamp::from_micros(micros), tie };
        let in_order = if self.is_first { key == self.last } else { self.last < key };
        if !in_order || key.created_at.as_micros() != micros {
            return None;
        }
        (self.rest, self.last, self.is_first) = (rest, key, false);
        Some((key, value))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(TxKey, &'a [u8]), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() && !self.is_first {
            return None;
        }
        let entry = self.read();
        if entry.is_none() {
            // Nothing behind the damage can be read.
            (self.rest, self.is_first) = (&[], false);
        }
        Some(entry.ok_or_else(|| {
            StoreError::Damaged(format!("a block of transactions is malformed after {}", self.last.created_at))
        }))
    }
}

/// Seven bits a byte, the lowest first; all bytes but the last have the top bit set (LEB128).
pub fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Reads such a number off the front; `None` for one that is cut off, too large, or longer than it must be.
pub fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (place, byte) in bytes.iter().take(10).enumerate() {
        let part = u64::from(byte & 0x7f);
        if place == 9 && part > 1 {
            return None;
        }
        number |= part << (7 * place);
        if byte & 0x80 == 0 {
            *bytes = &bytes[place + 1..];
            return (part != 0 || place == 0).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn key(micros: i64, tie: u32) -> TxKey {
        TxKey { created_at: Timestamp::from_micros(micros), tie }
    }

    fn read(first: TxKey, block: &[u8]) -> Result<Vec<(TxKey, Vec<u8>)>, StoreError> {
        Entries::of(first, block).map(|entry| entry.map(|(key, value)| (key, value.to_vec()))).collect()
    }

    fn keys() -> impl Strategy<Value = TxKey> {
        (prop_oneof![-3_i64..3, any::<i64>()], prop_oneof![0_u32..3, any::<u32>()])
            .prop_map(|(micros, tie)| key(micros, tie))
    }

    proptest! {
        #[test]
        fn numbers_read_back(number: u64, rest: Vec<u8>) {
            let mut bytes = Vec::new();
            write_number(&mut bytes, number);
            bytes.extend_from_slice(&rest);
            let mut left = &bytes[..];
            prop_assert_eq!(read_number(&mut left), Some(number));
            prop_assert_eq!(left, &rest[..]);
        }

        #[test]
        fn what_is_packed_reads_back_and_goes_on_after_reopening(
            entries in prop::collection::btree_map(keys(), prop::collection::vec(any::<u8>(), 0..40), 1..60),
            cut in any::<prop::sample::Index>(),
        ) {
            let entries: Vec<(TxKey, Vec<u8>)> = entries.into_iter().collect();
            let mut packer = Packer::default();
            for (index, (key, value)) in entries.iter().enumerate() {
                if index > 0 && index == cut.index(entries.len()) {
                    let (first, block) = packer.take().unwrap();
                    packer = Packer::reopen(first, &block).unwrap();
                }
                packer.push(*key, value);
            }
            prop_assert_eq!(packer.last(), entries.last().map(|(key, _)| *key));
            let (first, block) = packer.take().unwrap();
            prop_assert_eq!(first, entries[0].0);
            prop_assert_eq!(read(first, &block).unwrap(), entries);
        }

        #[test]
        fn any_bytes_are_read_in_order_or_refused(micros in -5_i64..5, block: Vec<u8>) {
            if let Ok(entries) = read(key(micros, 0), &block) {
                let sorted: BTreeMap<_, _> = entries.iter().cloned().collect();
                prop_assert_eq!(sorted.into_iter().collect::<Vec<_>>(), entries.clone());
                let mut packer = Packer::default();
                entries.iter().for_each(|(key, value)| packer.push(*key, value));
                prop_assert_eq!(packer.take().unwrap().1, block);
            }
        }
    }

    #[test]
    fn a_block_is_damaged_that_begins_elsewhere_repeats_a_key_is_cut_off_or_empty() {
        let mut packer = Packer::default();
        packer.push(key(5, 1), b"a");
        packer.push(key(5, 2), b"bc");
        let (first, block) = packer.take().unwrap();
        assert!(read(first, &block).is_ok());
        assert!(read(key(5, 0), &block).is_err());
        assert!(read(first, &[&block[..], &[0, 2, 0]].concat()).is_err());
        assert!(read(first, &[]).is_err());
        // It may end after the first entry of 4 bytes, but nowhere else.
        for length in (1..block.len()).filter(|length| *length != 4) {
            assert!(read(first, &block[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn numbers_that_are_longer_than_they_must_be_are_refused() {
        for mut bytes in
            [&[0x80, 0][..], &[0x80], &[], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert_eq!(read_number(&mut bytes), None);
        }
    }
}
