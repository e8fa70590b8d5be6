//! Counters that many commands touch: read once, changed in memory, written once for each batch, and kept for the next.
//!
//! What is kept is what the file holds as of the last commit. Whoever owns it drops it when a commit fails, for then
//! nobody knows what the file holds.

use std::collections::HashMap;
use std::hash::Hash;

/// How many counters of one kind are kept from one batch to the next.
const MAX_KEPT: usize = 16_384;

/// Counters of one kind.
#[derive(Debug)]
pub struct Counters<K, V> {
    known: HashMap<K, Counter<V>>,
    touched: Vec<K>,
}

#[derive(Debug)]
struct Counter<V> {
    value: V,
    touched: bool,
}

impl<K, V> Default for Counters<K, V> {
    fn default() -> Self {
        Self { known: HashMap::new(), touched: Vec::new() }
    }
}

impl<K: Clone + Eq + Hash, V: Copy> Counters<K, V> {
    /// A counter to be changed; `load` reads one that is not known yet.
    pub fn touch<E>(&mut self, key: K, load: impl FnOnce() -> Result<V, E>) -> Result<&mut V, E> {
        use std::collections::hash_map::Entry;
        let (counter, key) = match self.known.entry(key) {
            Entry::Occupied(entry) => {
                let key = (!entry.get().touched).then(|| entry.key().clone());
                (entry.into_mut(), key)
            }
            Entry::Vacant(entry) => {
                let key = entry.key().clone();
                (entry.insert(Counter { value: load()?, touched: false }), Some(key))
            }
        };
        if let Some(key) = key {
            counter.touched = true;
            self.touched.push(key);
        }
        Ok(&mut counter.value)
    }

    /// Visits what was touched since the last time.
    pub fn write(&mut self, mut visit: impl FnMut(&K, V)) {
        for key in std::mem::take(&mut self.touched) {
            let counter = self.known.get_mut(&key).expect("what was touched is known");
            counter.touched = false;
            visit(&key, counter.value);
        }
        if self.known.len() > MAX_KEPT {
            self.known.clear();
        }
    }

    /// Keeps only the counters that `wanted` wants. None of the others may have been touched since they were written.
    pub fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        debug_assert!(self.touched.iter().all(&wanted), "a counter is dropped before it was written");
        self.known.retain(|key, _| wanted(key));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn written(counters: &mut Counters<u32, u64>) -> Vec<(u32, u64)> {
        let mut written = Vec::new();
        counters.write(|key, value| written.push((*key, value)));
        written
    }

    #[test]
    fn a_counter_is_read_once_and_written_once_for_each_batch_that_touches_it() {
        let mut counters = Counters::default();
        for more in [1, 2] {
            *counters.touch(7, || Ok::<_, Infallible>(10)).unwrap() += more;
        }
        assert_eq!(written(&mut counters), [(7, 13)]);
        assert_eq!(written(&mut counters), []);
        *counters.touch(7, || -> Result<u64, Infallible> { unreachable!("it is known") }).unwrap() += 1;
        assert_eq!(counters.touch(8, || Err("unreadable")), Err("unreadable"));
        assert_eq!(written(&mut counters), [(7, 14)]);
        counters.retain(|key| *key != 7);
        assert_eq!(*counters.touch(7, || Ok::<_, Infallible>(5)).unwrap(), 5);
    }

    #[test]
    fn no_more_than_a_bounded_number_is_kept() {
        let mut counters = Counters::default();
        for key in 0..MAX_KEPT as u32 + 1 {
            counters.touch(key, || Ok::<_, Infallible>(0)).unwrap();
        }
        assert_eq!(written(&mut counters).len(), MAX_KEPT + 1);
        assert!(counters.known.is_empty());
    }
}
