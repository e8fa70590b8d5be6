//! How a ledger event looks in PostgreSQL: columns for what SQL asks for, one JSON document for the rest.
//!
//! | kind | `payload` |
//! | --- | --- |
//! | `recorded` | `payer_agent`, `provider_agent`, `capability`, `amount`, `currency`, `context` |
//! | `settled` | |
//! | `cancelled` | `reason`? |
//! | `disputed` | `reason`?, `evidence` |
//! | `evidence_added` | `evidence` |
//! | `resolved` | `outcome`, `note`?, `decisions` |
//!
//! `amount` and `context` are strings: JSONB would change the digits of the one, the digits and the order of keys of the
//! other, and with them the hash of the facts. Members that this version does not know are ignored.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio_postgres::Row;
use uuid::Uuid;

use super::errors::{Kind, Trouble};
use super::session::column;
use crate::domain::ledger::MAX_ROUNDS;
use crate::domain::{
    AgentId, Capability, Currency, Event, EventBody, EventId, Facts, JsonObject, LedgerEntry, Money, NodeId,
    ResolutionOutcome, Timestamp, TransactionId,
};

/// The longest text that is taken in. Nobody who keeps our rules writes one as long; older clients know no rules.
pub const MAX_TEXT: usize = 64 * 1024;
/// The most pieces of evidence, or decisions, that one event or one row may hold.
pub const MAX_PIECES: usize = 4_096;
/// The longest context that is read at all.
const MAX_CONTEXT: usize = 1024 * 1024;
/// The longest payload of an event, or evidence of a row, that is read at all.
pub const MAX_WHOLE: usize = 4 * 1024 * 1024;

/// The columns that [`read`] takes, in its order.
pub const COLUMNS: &str = "event_id, transaction_id, payer_agent, provider_agent, recorded_by, facts, kind, round, \
                           payload::text, occurred_at, node_id, node_seq, hash, xid::text, id";

/// An event that this version cannot read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the event {event_id} cannot be read: {reason}")]
pub struct Unreadable {
    /// Which event; nil where not even that can be read.
    pub event_id: Uuid,
    /// Of which transaction; empty where that cannot be read.
    pub transaction_id: String,
    /// Why.
    pub reason: String,
}

/// An event as a row of `marketplace_transaction_events`.
#[derive(Debug, Clone, PartialEq)]
pub struct CentralEvent {
    /// The event and where it belongs.
    pub entry: LedgerEntry,
    /// The transaction of PostgreSQL that wrote it.
    pub xid: u64,
    /// Its place among all.
    pub id: i64,
}

#[derive(Serialize, Deserialize)]
struct Recorded {
    payer_agent: String,
    provider_agent: String,
    capability: String,
    amount: String,
    currency: String,
    context: String,
}

#[derive(Serialize, Deserialize)]
struct Reason {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Dispute {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default)]
    evidence: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Evidence {
    evidence: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Resolution {
    outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    decisions: Vec<Uuid>,
}

/// The payload of an event.
pub fn encode(body: &EventBody) -> String {
    let text = match body {
        EventBody::Recorded(facts) => serde_json::to_string(&Recorded {
            payer_agent: facts.payer_agent.to_string(),
            provider_agent: facts.provider_agent.to_string(),
            capability: facts.capability.to_string(),
            amount: facts.amount.to_string(),
            currency: facts.currency.to_string(),
            context: facts.context.to_string(),
        }),
        EventBody::Settled => Ok("{}".to_owned()),
        EventBody::Cancelled { reason } => serde_json::to_string(&Reason { reason: reason.clone() }),
        EventBody::Disputed { reason, evidence } => {
            serde_json::to_string(&Dispute { reason: reason.clone(), evidence: evidence.clone() })
        }
        EventBody::EvidenceAdded { evidence } => serde_json::to_string(&Evidence { evidence: evidence.clone() }),
        EventBody::Resolved { outcome, note, decisions } => serde_json::to_string(&Resolution {
            outcome: outcome.as_str().to_owned(),
            note: note.clone(),
            decisions: decisions.iter().map(|id| Uuid::from_bytes(*id.as_bytes())).collect(),
        }),
    };
    text.expect("strings and lists of them are JSON")
}

/// Whether a body keeps the bounds of what is taken in from outside: what is larger than a record may be could never be
/// read again once it was stored.
///
/// # Errors
///
/// In words, when it does not.
pub fn check_size(body: &EventBody) -> Result<(), String> {
    let (texts, pieces): (Vec<&str>, usize) = match body {
        EventBody::Recorded(facts) => {
            (vec![facts.payer_agent.as_str(), facts.provider_agent.as_str(), facts.capability.as_str()], 0)
        }
        EventBody::Settled => (Vec::new(), 0),
        EventBody::Cancelled { reason } => (reason.iter().map(String::as_str).collect(), 0),
        EventBody::Disputed { reason, evidence } => {
            (reason.iter().chain(evidence).map(String::as_str).collect(), evidence.len())
        }
        EventBody::EvidenceAdded { evidence } => (evidence.iter().map(String::as_str).collect(), evidence.len()),
        EventBody::Resolved { note, decisions, .. } => (note.iter().map(String::as_str).collect(), decisions.len()),
    };
    check_pieces(pieces)?;
    texts.into_iter().try_for_each(check_text)
}

/// Whether a text is short enough to be taken in.
///
/// # Errors
///
/// In words, when it is not.
pub fn check_text(text: &str) -> Result<(), String> {
    if text.len() <= MAX_TEXT {
        Ok(())
    } else {
        Err(format!("a text of {} bytes is longer than any may be", text.len()))
    }
}

/// Whether so many pieces of evidence, or decisions, are few enough to be taken in.
///
/// # Errors
///
/// In words, when they are not.
pub fn check_pieces(pieces: usize) -> Result<(), String> {
    if pieces <= MAX_PIECES { Ok(()) } else { Err(format!("{pieces} pieces in one list are more than there may be")) }
}

/// Whether an event may belong to a round: a resolution opens the next one, so it must lie below the last.
///
/// # Errors
///
/// In words, when it may not.
pub fn check_round(round: u32, body: &EventBody) -> Result<(), String> {
    let opens = u32::from(matches!(body, EventBody::Resolved { .. }));
    if round <= MAX_ROUNDS - opens { Ok(()) } else { Err(format!("the round {round} is later than any may be")) }
}

/// Reads the payload of an event of a kind.
///
/// # Errors
///
/// In words, when the kind is not known, the payload is not one of its kind, or it is larger than any may be.
pub fn decode(kind: &str, payload: &str) -> Result<EventBody, String> {
    fn parse<'a, T: Deserialize<'a>>(payload: &'a str) -> Result<T, String> {
        serde_json::from_str(payload).map_err(|error| error.to_string())
    }
    if payload.len() > MAX_WHOLE {
        return Err(format!("a payload of {} bytes is larger than any may be", payload.len()));
    }
    let body = match kind {
        "recorded" => EventBody::Recorded(Arc::new(facts(parse(payload)?)?)),
        "settled" => EventBody::Settled,
        "cancelled" => EventBody::Cancelled { reason: parse::<Reason>(payload)?.reason },
        "disputed" => {
            let Dispute { reason, evidence } = parse(payload)?;
            EventBody::Disputed { reason, evidence }
        }
        "evidence_added" => EventBody::EvidenceAdded { evidence: parse::<Evidence>(payload)?.evidence },
        "resolved" => {
            let Resolution { outcome, note, decisions } = parse(payload)?;
            EventBody::Resolved {
                outcome: ResolutionOutcome::parse(&outcome).map_err(|error| error.to_string())?,
                note,
                decisions: decisions.into_iter().map(|id| EventId::from_bytes(id.into_bytes())).collect(),
            }
        }
        _ => return Err(format!("this version knows no events of the kind {kind:?}")),
    };
    check_size(&body)?;
    Ok(body)
}

fn facts(recorded: Recorded) -> Result<Facts, String> {
    if recorded.context.len() > MAX_CONTEXT {
        return Err(format!("a context of {} bytes is longer than any may be", recorded.context.len()));
    }
    check_text(&recorded.currency)?;
    Ok(Facts {
        payer_agent: AgentId::from_stored(&recorded.payer_agent),
        provider_agent: AgentId::from_stored(&recorded.provider_agent),
        capability: Capability::from_stored(&recorded.capability),
        amount: Money::parse(&recorded.amount).map_err(|error| format!("amount: {error}"))?,
        currency: Currency::from_stored(&recorded.currency),
        context: JsonObject::parse(&recorded.context).map_err(|error| format!("context: {error}"))?,
    })
}

/// Reads a row of [`COLUMNS`]: an event, or one that is of a later version, or that somebody changed.
///
/// # Errors
///
/// [`Kind::Misconfigured`] when a column is of another type than ours, for which no row is to blame.
pub fn read(row: &Row) -> Result<Result<CentralEvent, Unreadable>, Trouble> {
    match read_event(row) {
        Ok(event) => Ok(Ok(event)),
        Err(trouble) if trouble.kind == Kind::Entry => Ok(Err(Unreadable {
            event_id: column(row, 0).unwrap_or_default(),
            transaction_id: column(row, 1).unwrap_or_default(),
            reason: trouble.words,
        })),
        Err(trouble) => Err(trouble),
    }
}

fn read_event(row: &Row) -> Result<CentralEvent, Trouble> {
    let flawed = |words: &str| Trouble::new(Kind::Entry, words);
    let body = decode(column(row, 6)?, column(row, 8)?).map_err(|words| flawed(&words))?;
    let facts: Option<&[u8]> = column(row, 5)?;
    let facts = <[u8; 32]>::try_from(facts.unwrap_or_default()).map_err(|_| flawed("facts is no hash"))?;
    if let EventBody::Recorded(recorded) = &body
        && recorded.hash() != facts
    {
        return Err(flawed("facts is not the hash of its payload"));
    }
    let round = u32::try_from(column::<i32>(row, 7)?).map_err(|_| flawed("round is negative"))?;
    check_round(round, &body).map_err(|words| flawed(&words))?;
    let hash: &[u8] = column(row, 12)?;
    let node = |index: usize| Ok::<_, Trouble>(NodeId::from_bytes(column::<Uuid>(row, index)?.into_bytes()));
    let entry = LedgerEntry {
        event: Event {
            event_id: EventId::from_bytes(column::<Uuid>(row, 0)?.into_bytes()),
            transaction_id: TransactionId::from_stored(column(row, 1)?),
            facts,
            round,
            node_id: node(10)?,
            at: from_system_time(column(row, 9)?),
            body,
        },
        payer_agent: AgentId::from_stored(column(row, 2)?),
        provider_agent: AgentId::from_stored(column(row, 3)?),
        recorded_by: node(4)?,
        node_seq: u64::try_from(column::<i64>(row, 11)?).map_err(|_| flawed("node_seq is negative"))?,
        hash: if hash.is_empty() { None } else { Some(hash.try_into().map_err(|_| flawed("hash is no hash"))?) },
    };
    let xid = column::<&str>(row, 13)?.parse().map_err(|_| flawed("xid is no number"))?;
    Ok(CentralEvent { entry, xid, id: column(row, 14)? })
}

/// A time as the client library takes it; exact.
pub fn to_system_time(time: Timestamp) -> SystemTime {
    let since = Duration::from_micros(time.as_micros().unsigned_abs());
    if time.as_micros() < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since }
}

/// A time as the client library gives it; PostgreSQL's `infinity` becomes the latest time that we write.
pub fn from_system_time(time: SystemTime) -> Timestamp {
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => micros(after),
        Err(before) => -micros(before.duration()),
    })
}

/// A node's or an event's id as the client library takes it.
pub fn uuid(bytes: &[u8; 16]) -> Uuid {
    Uuid::from_bytes(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_facts() -> Facts {
        Facts {
            payer_agent: AgentId::from_stored("genesis"),
            provider_agent: AgentId::from_stored("thon"),
            capability: Capability::from_stored("python"),
            amount: Money::parse("18.5").unwrap(),
            currency: Currency::default(),
            context: JsonObject::parse(r#"{"z":1.10,"a":1e2}"#).unwrap(),
        }
    }

    #[test]
    fn every_kind_reads_back_as_it_was_written() {
        let id = EventId::from_bytes([7; 16]);
        for (body, written) in [
            (
                EventBody::Recorded(Arc::new(some_facts())),
                r#"{"payer_agent":"genesis","provider_agent":"thon","capability":"python","amount":"18.5","currency":"USD","context":"{\"a\":1e2,\"z\":1.10}"}"#,
            ),
            (EventBody::Settled, "{}"),
            (EventBody::Cancelled { reason: None }, "{}"),
            (EventBody::Cancelled { reason: Some("late".into()) }, r#"{"reason":"late"}"#),
            (
                EventBody::Disputed { reason: Some("half".into()), evidence: vec!["a\"b".into()] },
                r#"{"reason":"half","evidence":["a\"b"]}"#,
            ),
            (EventBody::EvidenceAdded { evidence: vec!["x".into()] }, r#"{"evidence":["x"]}"#),
            (
                EventBody::Resolved { outcome: ResolutionOutcome::Cancelled, note: None, decisions: vec![id] },
                r#"{"outcome":"cancelled","decisions":["07070707-0707-0707-0707-070707070707"]}"#,
            ),
        ] {
            assert_eq!(encode(&body), written);
            assert_eq!(decode(body.kind().as_str(), written), Ok(body));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_and_what_is_more_is_ignored() {
        assert_eq!(decode("settled", r#"{"by":"x"}"#), Ok(EventBody::Settled));
        assert_eq!(decode("cancelled", r#"{"later":1}"#), Ok(EventBody::Cancelled { reason: None }));
        for (kind, payload) in [
            ("refunded", "{}"),
            ("recorded", "{}"),
            ("evidence_added", "{}"),
            ("resolved", r#"{"outcome":"maybe","decisions":[]}"#),
        ] {
            assert!(decode(kind, payload).is_err(), "{kind} {payload}");
        }
    }

    #[test]
    fn what_is_larger_than_any_may_be_is_refused() {
        let long = "x".repeat(MAX_TEXT + 1);
        let many = format!("[{}]", vec![r#""x""#; MAX_PIECES + 1].join(","));
        let context = format!("{{{}}}", " ".repeat(MAX_CONTEXT));
        let recorded = format!(
            r#"{{"payer_agent":"a","provider_agent":"b","capability":"c","amount":"1","currency":"USD","context":"{context}"}}"#
        );
        for (kind, payload) in [
            ("cancelled", format!(r#"{{"reason":"{long}"}}"#)),
            ("disputed", format!(r#"{{"reason":"{long}"}}"#)),
            ("evidence_added", format!(r#"{{"evidence":["{long}"]}}"#)),
            ("evidence_added", format!(r#"{{"evidence":{many}}}"#)),
            ("resolved", format!(r#"{{"outcome":"settled","note":"{long}","decisions":[]}}"#)),
            ("recorded", recorded),
            ("settled", format!("{{{}}}", " ".repeat(MAX_WHOLE))),
        ] {
            let words = decode(kind, &payload).expect_err(kind);
            assert!(words.len() < 200, "{kind}");
        }
        assert!(decode("cancelled", &format!(r#"{{"reason":"{}"}}"#, "x".repeat(MAX_TEXT))).is_ok());
        assert!(check_round(MAX_ROUNDS, &EventBody::Settled).is_ok());
        assert!(check_round(MAX_ROUNDS + 1, &EventBody::Settled).is_err());
        let resolved = EventBody::Resolved { outcome: ResolutionOutcome::Settled, note: None, decisions: vec![] };
        assert!(check_round(MAX_ROUNDS - 1, &resolved).is_ok());
        assert!(check_round(MAX_ROUNDS, &resolved).is_err(), "it would open a round that there may not be");
    }

    #[test]
    fn times_are_exact_at_both_ends_of_the_calendar() {
        for micros in [-62_167_219_200_000_000, -1, 0, 1_795_391_431_767_109, 253_402_207_200_000_000] {
            let time = Timestamp::from_micros(micros);
            assert_eq!(from_system_time(to_system_time(time)), time, "{micros}");
        }
    }
}
