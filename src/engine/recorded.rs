//! What one batch recorded, added up by label: a busy batch names few agents and capabilities, over and over.

use std::collections::HashMap;

use super::loads::{LoadMinutes, Loads};
use crate::domain::{AgentId, Capability, Currency, Facts, Timestamp, Total};
use crate::metrics::Metrics;
use crate::store::minute_of;

/// Transactions that are to be counted once they are durable.
#[derive(Debug, Default)]
pub struct Recorded {
    sums: HashMap<Label, Sum>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Label {
    provider: AgentId,
    capability: Capability,
    currency: Currency,
    minute: u32,
}

#[derive(Debug, Default)]
struct Sum {
    transactions: u32,
    amount: Total,
}

impl Recorded {
    /// Adds one.
    pub fn add(&mut self, facts: &Facts, at: Timestamp) {
        let label = Label {
            provider: facts.provider_agent.clone(),
            capability: facts.capability.clone(),
            currency: facts.currency.clone(),
            minute: minute_of(at),
        };
        let sum = self.sums.entry(label).or_default();
        sum.transactions += 1;
        sum.amount.add(facts.amount);
    }

    /// Counts them.
    pub fn count(self, metrics: &Metrics, loads: &mut Loads, minutes: &mut LoadMinutes) {
        for (Label { provider, capability, currency, minute }, sum) in self.sums {
            metrics.recorded_many(capability.as_str(), currency.as_str(), sum.transactions, sum.amount.to_f64());
            loads.add(minutes, &provider, &capability, minute, sum.transactions);
        }
    }
}
