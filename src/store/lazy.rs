//! Tables of a write transaction that are opened when they are first needed: most batches need few of them.

use std::borrow::Borrow;
use std::cell::OnceCell;
use std::ops::RangeBounds;

use redb::{AccessGuard, Range, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::error::StoreError;

/// A table that may not be open yet. Its methods are those of redb's table, of the same name.
pub struct Lazy<'t, K: redb::Key + 'static, V: redb::Value + 'static> {
    transaction: &'t WriteTransaction,
    definition: TableDefinition<'static, K, V>,
    opened: OnceCell<Table<'t, K, V>>,
}

impl<'t, K: redb::Key + 'static, V: redb::Value + 'static> Lazy<'t, K, V> {
    pub fn new(transaction: &'t WriteTransaction, definition: TableDefinition<'static, K, V>) -> Self {
        Self { transaction, definition, opened: OnceCell::new() }
    }

    /// Whether anybody has needed it.
    #[cfg(test)]
    pub fn is_open(&self) -> bool {
        self.opened.get().is_some()
    }

    /// The table, open.
    pub fn open(&self) -> Result<&Table<'t, K, V>, StoreError> {
        if let Some(table) = self.opened.get() {
            return Ok(table);
        }
        let table = self.transaction.open_table(self.definition)?;
        Ok(self.opened.get_or_init(|| table))
    }

    /// The table, open for changes.
    pub fn open_mut(&mut self) -> Result<&mut Table<'t, K, V>, StoreError> {
        self.open()?;
        Ok(self.opened.get_mut().expect("it was opened in the line above"))
    }

    pub fn get<'k>(&self, key: impl Borrow<K::SelfType<'k>>) -> Result<Option<AccessGuard<'_, V>>, StoreError> {
        Ok(self.open()?.get(key)?)
    }

    pub fn iter(&self) -> Result<Range<'_, K, V>, StoreError> {
        Ok(self.open()?.iter()?)
    }

    pub fn range<'a, KR>(&self, range: impl RangeBounds<KR> + 'a) -> Result<Range<'_, K, V>, StoreError>
    where
        KR: Borrow<K::SelfType<'a>> + 'a,
    {
        Ok(self.open()?.range(range)?)
    }

    pub fn insert<'k, 'v>(
        &mut self,
        key: impl Borrow<K::SelfType<'k>>,
        value: impl Borrow<V::SelfType<'v>>,
    ) -> Result<Option<AccessGuard<'_, V>>, StoreError> {
        Ok(self.open_mut()?.insert(key, value)?)
    }

    pub fn remove<'k>(&mut self, key: impl Borrow<K::SelfType<'k>>) -> Result<Option<AccessGuard<'_, V>>, StoreError> {
        Ok(self.open_mut()?.remove(key)?)
    }
}
