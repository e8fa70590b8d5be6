//! Cursors of lists: where the next page begins, as an opaque word that means the same after a restart.
//!
//! A cursor names the sort key of the last entry that was looked at, so entries written meanwhile make nothing repeat
//! or go missing.

use crate::domain::ranking::{RankBy, Standing};
use crate::domain::{
    AgentId, AvailabilityStatus, Capacity, Currency, Invalid, Money, ParkedKey, Timestamp, TransactionId,
};
use crate::store::Position;

/// The cursor behind a transaction.
pub fn of_transaction(position: &Position) -> String {
    format!("t1.{}.{}", position.created_at.as_micros(), of_id(position.transaction_id.as_str()))
}

/// The place that a transaction cursor names.
pub fn to_position(cursor: &str) -> Result<Position, Invalid> {
    let parse = || {
        let (created_at, id) = cursor.strip_prefix("t1.")?.split_once('.')?;
        let created_at: i64 = created_at.parse().ok()?;
        let transaction_id = TransactionId::from_stored(&to_id(id)?);
        Some(Position { created_at: Timestamp::from_micros(created_at), transaction_id })
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
        of_id(standing.agent_id.as_str())
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
        let agent_id = to_id(parts.next()?)?;
        (order == order_name(by)).then(|| Standing {
            agent_id: AgentId::from_stored(&agent_id),
            cost_per_task: Money::from_nanos(cost),
            currency: Currency::default(),
            score,
            availability,
            capacity_per_hour: capacity,
        })
    };
    parse().filter(|standing| of_agent(by, standing) == cursor && is_plain(cursor)).ok_or_else(bad_cursor)
}

/// The cursor behind a parked entry.
pub fn of_parked(key: &ParkedKey) -> String {
    match key {
        ParkedKey::Seq(seq) => format!("p1.s.{seq}"),
        ParkedKey::Copy(number) => format!("p1.c.{number}"),
        ParkedKey::Agent(id) => format!("p1.a.{}", of_id(id.as_str())),
    }
}

/// The place that a cursor of parked entries names.
pub fn to_parked(cursor: &str) -> Result<ParkedKey, Invalid> {
    let parse = || {
        let (kind, which) = cursor.strip_prefix("p1.")?.split_once('.')?;
        match kind {
            "s" => which.parse().ok().map(ParkedKey::Seq),
            "c" => which.parse().ok().map(ParkedKey::Copy),
            "a" => to_id(which).map(|id| ParkedKey::Agent(AgentId::from_stored(&id))),
            _ => None,
        }
    };
    parse().filter(|key| of_parked(key) == cursor).ok_or_else(bad_cursor)
}

/// An id within a cursor. Those of other programs may hold anything, and are spelled in hex behind a dot.
fn of_id(id: &str) -> String {
    let is_ours = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if is_ours { id.to_owned() } else { id.bytes().fold(".".to_owned(), |hex, byte| format!("{hex}{byte:02x}")) }
}

fn to_id(word: &str) -> Option<String> {
    let Some(hex) = word.strip_prefix('.') else { return (!word.is_empty()).then(|| word.to_owned()) };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>()?;
    if rest.is_empty() { String::from_utf8(bytes).ok() } else { None }
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
        for id in ["tx_1", "tx 1", ".ä", "a.b"] {
            let transaction_id = TransactionId::from_stored(id);
            let position = Position { created_at: Timestamp::from_micros(-5), transaction_id };
            assert_eq!(to_position(&of_transaction(&position)), Ok(position));
            let parked = ParkedKey::Agent(AgentId::from_stored(id));
            assert_eq!(to_parked(&of_parked(&parked)), Ok(parked));
        }
        for key in [ParkedKey::Seq(7), ParkedKey::Copy(u64::MAX)] {
            assert_eq!(to_parked(&of_parked(&key)), Ok(key));
        }
        for bad in ["", "t1", "t1.", "t1.5.", "t1.x.y", "a1.cost", &cursor[..cursor.len() - 3], "\u{0}"] {
            assert!(to_position(bad).is_err() && to_standing(RankBy::Cost, bad).is_err(), "{bad:?}");
            assert!(to_parked(bad).is_err(), "{bad:?}");
        }
    }
}
