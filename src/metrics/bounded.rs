//! Counters by a label whose values come from outside: a bounded number of series, whatever is thrown at them.
//!
//! The first [`LIMIT`] values get a series for the life of the process, the rest share [`OTHER`]. Values are compared
//! whole (the library's own vectors tell series apart by an unkeyed 64-bit hash, which a hostile name can collide).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

/// How many values of an outside label get a series of their own.
pub(super) const LIMIT: usize = 1_000;

/// The value that all others share.
pub(super) const OTHER: &str = "_other";

/// What is counted for one label value.
pub(super) trait Cell: Default + Send + Sync + 'static {
    /// The family's further labels.
    const LABELS: &'static [&'static str] = &[];

    /// Visits the samples counted so far: the values of the further labels, and the count.
    fn visit(&self, sample: &mut dyn FnMut(&[&str], f64));
}

/// A counter family by one outside label. Clones share their series.
pub(super) struct Bounded<C>(Arc<Shared<C>>);

struct Shared<C> {
    desc: Desc,
    label: &'static str,
    series: RwLock<HashMap<Arc<str>, Arc<C>>>,
    other: C,
}

impl<C> Clone for Bounded<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: Cell> Bounded<C> {
    pub(super) fn new(name: &str, help: &str, label: &'static str) -> prometheus::Result<Self> {
        let labels = std::iter::once(label).chain(C::LABELS.iter().copied()).map(str::to_owned).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())?;
        Ok(Self(Arc::new(Shared { desc, label, series: RwLock::default(), other: C::default() })))
    }

    /// Counts for `value`, or for all others if it came too late.
    pub(super) fn count(&self, value: &str, add: impl FnOnce(&C)) {
        let shared = &*self.0;
        if value == OTHER {
            return add(&shared.other);
        }
        {
            let series = shared.series.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(cell) = series.get(value) {
                return add(cell);
            }
            if series.len() >= LIMIT {
                return add(&shared.other);
            }
        }
        let mut series = shared.series.write().unwrap_or_else(PoisonError::into_inner);
        // Others may have been admitted between the two locks, even this one.
        if series.len() < LIMIT || series.contains_key(value) {
            add(series.entry(Arc::from(value)).or_default());
        } else {
            add(&shared.other);
        }
    }
}

impl<C: Cell> Collector for Bounded<C> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let shared = &*self.0;
        // Pointers only: the strings are built after the lock is gone.
        let series: Vec<_> = {
            let series = shared.series.read().unwrap_or_else(PoisonError::into_inner);
            series.iter().map(|(value, cell)| (Arc::clone(value), Arc::clone(cell))).collect()
        };
        let mut metrics = Vec::with_capacity(series.len() + 1);
        let admitted = series.iter().map(|(value, cell)| (&**value, &**cell));
        for (value, cell) in admitted.chain([(OTHER, &shared.other)]) {
            cell.visit(&mut |further, count| {
                let mut labels = vec![label(shared.label, value)];
                labels.extend(C::LABELS.iter().zip(further).map(|(name, value)| label(name, value)));
                let mut counter = proto::Counter::default();
                counter.set_value(count);
                let mut metric = proto::Metric::from_label(labels);
                metric.set_counter(counter);
                metrics.push(metric);
            });
        }
        vec![family(&shared.desc.fq_name, &shared.desc.help, MetricType::COUNTER, metrics)]
    }
}

/// One label and its value; the encoder escapes it.
pub(super) fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

pub(super) fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// How often something happened.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.add_many(1);
    }

    pub(super) fn add_many(&self, more: u32) {
        self.0.fetch_add(u64::from(more), Ordering::Relaxed);
    }
}

impl Cell for Count {
    fn visit(&self, sample: &mut dyn FnMut(&[&str], f64)) {
        let count = self.0.load(Ordering::Relaxed);
        if count > 0 {
            sample(&[], count as f64);
        }
    }
}

/// Whether a task went well.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    Success,
    Failure,
}

impl From<bool> for Outcome {
    fn from(success: bool) -> Self {
        if success { Self::Success } else { Self::Failure }
    }
}

/// How often tasks went well and how often not.
#[derive(Default)]
pub(super) struct Outcomes {
    successes: Count,
    failures: Count,
}

impl Outcomes {
    pub(super) fn add(&self, outcome: Outcome) {
        match outcome {
            Outcome::Success => self.successes.add(),
            Outcome::Failure => self.failures.add(),
        }
    }
}

impl Cell for Outcomes {
    const LABELS: &'static [&'static str] = &["success"];

    fn visit(&self, sample: &mut dyn FnMut(&[&str], f64)) {
        self.successes.visit(&mut |_, count| sample(&["true"], count));
        self.failures.visit(&mut |_, count| sample(&["false"], count));
    }
}

/// A sum of amounts that stays the nearest double however many are added: ten times 0.1 is 1.
///
/// The rounding error of every addition is kept beside the sum (Knuth's TwoSum; the pair is a double-double).
#[derive(Default)]
pub(super) struct Sum(Mutex<(f64, f64)>);

impl Sum {
    pub(super) fn add(&self, amount: f64) {
        let mut pair = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (high, error) = two_sum(pair.0, amount);
        *pair = two_sum(high, pair.1 + error);
    }
}

impl Cell for Sum {
    fn visit(&self, sample: &mut dyn FnMut(&[&str], f64)) {
        let (high, _) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if high != 0.0 {
            sample(&[], high);
        }
    }
}

/// The rounded sum, and exactly what rounding took away.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sum: &Sum) -> f64 {
        let mut value = 0.0;
        sum.visit(&mut |_, sample| value = sample);
        value
    }

    #[test]
    fn a_sum_of_many_amounts_is_the_nearest_double() {
        let dimes = Sum::default();
        for _ in 0..10 {
            dimes.add(0.1);
        }
        assert_eq!(read(&dimes), 1.0);

        let mixed = Sum::default();
        mixed.add(1e17);
        for _ in 0..1_000_000 {
            mixed.add(0.01);
        }
        assert_eq!(read(&mixed), 1e17 + 10_000.0);
    }
}
