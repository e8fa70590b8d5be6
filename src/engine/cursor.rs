//! Cursors of lists: where the next page begins, as an opaque word that means the same after a restart.
//!
//! A cursor names the sort key of the last entry that was looked at, so entries written meanwhile make nothing repeat
//! or go missing.

use crate::domain::ranking::{RankBy, Standing};
use crate::domain::{AgentId, AvailabilityStatus, Capacity, Currency, Invalid, Money, Timestamp, TransactionId};
use crate::store::Position;

/// The cursor behind a transaction.
pub fn of_transaction(position: &Position) -> String {
    format!("t1.{}.{}", position.created_at.as_micros(), position.transaction_id)
}

/// The place that a transaction cursor names.
pub fn to_position(cursor: &str) -> Result<Position, Invalid> {
    let parse = || {
        let (created_at, id) = cursor.strip_prefix("t1.")?.split_once('.')?;
        let created_at: i64 = created_at.parse().ok()?;
        (!id.is_empty()).then(|| Position {
            created_at: Timestamp::from_micros(created_at),
            transaction_id: TransactionId::from_stored(id),
        })
    };
    // Only what this module would write itself: no other spelling of the same place.
    parse().filter(|position| of_transaction(position) == cursor && is_plain(cursor)).ok_or_else(bad_cursor)
}

/// The cursor behind an agent in an order.
pub fn of_agent(by: RankBy, standing: &Standing) -> String {
    format!(
        "a1.{}.{:x}.{:x}.{}.{}.{}",
        order_name(by),
        standing.score.to_bits(),
        standing.cost_per_task.nanos(),
        standing.availability,
        standing.capacity_per_hour.get(),
        standing.agent_id
    )
}

/// The standing that an agent cursor of the same order names.
pub fn to_standing(by: RankBy, cursor: &str) -> Result<Standing, Invalid> {
    let parse = || {
        let mut parts = cursor.strip_prefix("a1.")?.splitn(6, '.');
        let order = parts.next()?;
        let score = f64::from_bits(u64::from_str_radix(parts.next()?, 16).ok()?);
        let cost = i128::from_str_radix(parts.next()?, 16).ok()?;
        let availability = AvailabilityStatus::parse("cursor", parts.next()?).ok()?;
        let capacity = Capacity::parse(parts.next()?.parse().ok()?).ok()?;
        let agent_id = parts.next().filter(|id| !id.is_empty())?;
        (order == order_name(by)).then(|| Standing {
            agent_id: AgentId::from_stored(agent_id),
            cost_per_task: Money::from_nanos(cost),
            currency: Currency::default(),
            score,
            availability,
            capacity_per_hour: capacity,
        })
    };
    parse().filter(|standing| of_agent(by, standing) == cursor && is_plain(cursor)).ok_or_else(bad_cursor)
}

fn is_plain(cursor: &str) -> bool {
    cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn order_name(by: RankBy) -> &'static str {
    match by {
        RankBy::AgentId => "id",
        RankBy::Score => "score",
        RankBy::Cost => "cost",
        RankBy::Search => "search",
        RankBy::Availability => "availability",
    }
}

fn bad_cursor() -> Invalid {
    Invalid::new("cursor", "is not a cursor of this list; take next_cursor from its last page as it is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_and_strangers_are_refused() {
        let standing = Standing {
            agent_id: AgentId::from_stored("a-1"),
            cost_per_task: Money::parse("0.000000001").unwrap(),
            currency: Currency::default(),
            score: 4.1,
            availability: AvailabilityStatus::Busy,
            capacity_per_hour: Capacity::parse(7).unwrap(),
        };
        let cursor = of_agent(RankBy::Cost, &standing);
        assert_eq!(to_standing(RankBy::Cost, &cursor), Ok(standing));
        assert!(to_standing(RankBy::Score, &cursor).is_err());
        let position =
            Position { created_at: Timestamp::from_micros(-5), transaction_id: TransactionId::from_stored("tx_1") };
        assert_eq!(to_position(&of_transaction(&position)), Ok(position));
        for bad in ["", "t1", "t1.", "t1.5.", "t1.x.y", "a1.cost", &cursor[..cursor.len() - 3], "\u{0}"] {
            assert!(to_position(bad).is_err() && to_standing(RankBy::Cost, bad).is_err(), "{bad:?}");
        }
    }
}
