//! The orders in which agents are preferred, and what a search asks for.

use std::cmp::{Ordering, Reverse};

use super::agent::{AvailabilityStatus, Capacity};
use super::ids::{AgentId, Capability, Currency};
use super::money::Money;

/// What rankings look at.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// Its id, which settles every tie.
    pub agent_id: AgentId,
    /// Price of one task.
    pub cost_per_task: Money,
    /// The currency of that price.
    pub currency: Currency,
    /// Reputation, unrounded.
    pub score: f64,
    /// Whether it takes work.
    pub availability: AvailabilityStatus,
    /// Tasks an hour.
    pub capacity_per_hour: Capacity,
}

/// An order over standings; every one is total, since ids differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RankBy {
    /// By id.
    AgentId,
    /// Score down, cost up.
    Score,
    /// Cost up, score down.
    Cost,
    /// Cost up, score down, availability: the order of search.
    Search,
    /// Online, busy, maintenance, offline; then capacity down, score down.
    Availability,
}

impl RankBy {
    /// Compares two standings; the lesser is preferred.
    pub fn compare(self, a: &Standing, b: &Standing) -> Ordering {
        let cost = || a.cost_per_task.cmp(&b.cost_per_task);
        let score_down = || b.score.total_cmp(&a.score);
        let availability = || a.availability.cmp(&b.availability);
        let capacity_down = || Reverse(a.capacity_per_hour).cmp(&Reverse(b.capacity_per_hour));
        let order = match self {
            Self::AgentId => Ordering::Equal,
            Self::Score => score_down().then_with(cost),
            Self::Cost => cost().then_with(score_down),
            Self::Search => cost().then_with(score_down).then_with(availability),
            Self::Availability => availability().then_with(capacity_down).then_with(score_down),
        };
        order.then_with(|| a.agent_id.cmp(&b.agent_id))
    }
}

/// What a search asks for: any of the capabilities, and all of the bounds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SearchQuery {
    /// Any of these; none given finds nobody.
    pub capabilities: Vec<Capability>,
    /// At most this price.
    pub max_cost: Option<Money>,
    /// Priced in this currency.
    pub currency: Option<Currency>,
    /// With exactly this availability.
    pub availability: Option<AvailabilityStatus>,
    /// At least this score.
    pub min_score: Option<f64>,
}

impl SearchQuery {
    /// Whether a standing keeps the bounds; capabilities are the index's business.
    pub fn admits(&self, standing: &Standing) -> bool {
        self.max_cost.is_none_or(|max| standing.cost_per_task <= max)
            && self.currency.as_ref().is_none_or(|currency| standing.currency == *currency)
            && self.availability.is_none_or(|availability| standing.availability == availability)
            && self.min_score.is_none_or(|min| standing.score >= min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(id: &str, cost: &str, score: f64, availability: AvailabilityStatus, capacity: i128) -> Standing {
        Standing {
            agent_id: AgentId::from_stored(id),
            cost_per_task: Money::parse(cost).unwrap(),
            currency: Currency::default(),
            score,
            availability,
            capacity_per_hour: Capacity::parse(capacity).unwrap(),
        }
    }

    #[test]
    fn each_order_breaks_its_ties_as_documented() {
        use AvailabilityStatus::{Busy, Maintenance, Offline, Online};
        let all = [
            standing("a", "2", 4.0, Busy, 10),
            standing("b", "2", 4.0, Online, 10),
            standing("c", "1", 3.0, Offline, 10),
            standing("d", "3", 4.0, Maintenance, 10),
            standing("e", "2", 5.0, Online, 20),
            standing("f", "2", 4.0, Online, 10),
        ];
        for (rank, expected) in [
            (RankBy::AgentId, "abcdef"),
            (RankBy::Score, "eabfdc"),
            (RankBy::Cost, "ceabfd"),
            (RankBy::Search, "cebfad"),
            (RankBy::Availability, "ebfadc"),
        ] {
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| rank.compare(a, b));
            let ids: String = sorted.iter().map(|standing| standing.agent_id.as_str()).collect();
            assert_eq!(ids, expected, "{rank:?}");
        }
    }
}
