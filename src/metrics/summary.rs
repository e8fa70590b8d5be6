//! A summary without quantiles, which the library does not have: how many observations, and their sum.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, MetricFamily, MetricType};

use super::bounded::family;

/// `_sum` and `_count` of whole numbers. Clones share them.
#[derive(Clone)]
pub(super) struct Summary(Arc<Shared>);

struct Shared {
    desc: Desc,
    sum: AtomicU64,
    count: AtomicU64,
}

impl Summary {
    pub(super) fn new(name: &str, help: &str) -> prometheus::Result<Self> {
        let desc = Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new())?;
        Ok(Self(Arc::new(Shared { desc, sum: AtomicU64::new(0), count: AtomicU64::new(0) })))
    }

    /// A scrape between the two additions sees an observation's value before it is counted, and both the next time.
    pub(super) fn observe(&self, value: u64) {
        self.0.sum.fetch_add(value, Ordering::Relaxed);
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Collector for Summary {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut summary = proto::Summary::default();
        summary.set_sample_count(self.0.count.load(Ordering::Relaxed));
        summary.set_sample_sum(self.0.sum.load(Ordering::Relaxed) as f64);
        let mut metric = proto::Metric::default();
        metric.set_summary(summary);
        vec![family(&self.0.desc.fq_name, &self.0.desc.help, MetricType::SUMMARY, vec![metric])]
    }
}
