//! What clients without events did to a transaction, told in events.
//!
//! The older clients know one table: they insert a row, and set its status and its evidence. A row without events, or one
//! whose status or evidence is not the fold of its events, bears such a client's mark. It is adopted, under the row's
//! lock, as events of the nil node. Their ids are derived from what they say, so that whoever adopts makes the same, and
//! nothing is adopted twice.
//!
//! What such a client cannot do is take something back: a row that was set to `pending` again, or lost evidence, is
//! written anew with what its events say.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;

use super::payload::{MAX_WHOLE, check_pieces, check_round, check_size, check_text};
use crate::domain::fold::{Fold, fold};
use crate::domain::{
    AgentId, Capability, Currency, Event, EventBody, EventId, Facts, JsonObject, LedgerEntry, Money, NodeId,
    ResolutionOutcome, Timestamp, TransactionId, TransactionStatus,
};

/// A row of `marketplace_transactions`, as anybody may have written it.
#[derive(Debug, Clone, PartialEq)]
pub struct CentralRow {
    /// Its id; may be outside our pattern.
    pub transaction_id: TransactionId,
    /// When it was made, in UTC.
    pub created_at: Timestamp,
    /// Who pays.
    pub payer_agent: AgentId,
    /// Who is paid.
    pub provider_agent: AgentId,
    /// For what.
    pub capability: Capability,
    /// How much, in PostgreSQL's digits.
    pub amount: String,
    /// Of what.
    pub currency: Currency,
    /// Where it stands.
    pub status: String,
    /// The parties' data, as JSON.
    pub context: Option<String>,
    /// The evidence, as JSON.
    pub evidence: Option<String>,
}

impl CentralRow {
    /// The evidence, each piece as text; what is no list of strings is taken as the JSON that it is.
    pub fn evidence(&self) -> Vec<String> {
        evidence_of(self.evidence.as_deref())
    }

    /// Whether the row keeps the bounds of what is taken in. What does not is left as it is: events made of it could not
    /// be read by anybody.
    fn check_size(&self) -> Result<(), String> {
        let evidence = self.evidence.as_deref().map_or(0, str::len);
        if evidence > MAX_WHOLE {
            return Err(format!("evidence of {evidence} bytes is more than there may be"));
        }
        let ids = [self.transaction_id.as_str(), self.payer_agent.as_str(), self.provider_agent.as_str()];
        ids.into_iter().chain([self.amount.as_str(), self.status.as_str()]).try_for_each(check_text)?;
        let evidence = self.evidence();
        check_pieces(evidence.len())?;
        evidence.iter().try_for_each(|text| check_text(text))
    }

    /// The facts as the row tells them. `known` are facts that somebody holds for the same id: where the row can well be
    /// theirs they are meant, as JSONB keeps neither the digits nor the order of a context.
    fn facts(&self, known: Option<&Arc<Facts>>) -> Result<Arc<Facts>, String> {
        let amount = Money::parse(&self.amount).map_err(|error| format!("its amount {} {error}", self.amount))?;
        // A context that we could not hold stays in the row, which nobody changes.
        let context = self.context.as_deref().and_then(|text| JsonObject::parse(text).ok()).unwrap_or_default();
        let facts = Facts {
            payer_agent: self.payer_agent.clone(),
            provider_agent: self.provider_agent.clone(),
            capability: self.capability.clone(),
            amount,
            currency: self.currency.clone(),
            context,
        };
        Ok(match known {
            Some(known) if is_same_but_for_json(known, &facts) => Arc::clone(known),
            _ => Arc::new(facts),
        })
    }
}

/// See [`CentralRow::evidence`].
pub fn evidence_of(column: Option<&str>) -> Vec<String> {
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    match column.map(serde_json::from_str::<Value>) {
        None | Some(Ok(Value::Null)) => Vec::new(),
        Some(Ok(Value::Array(items))) => items.into_iter().map(text).collect(),
        Some(Ok(value)) => vec![text(value)],
        Some(Err(_)) => column.map(ToOwned::to_owned).into_iter().collect(),
    }
}

fn is_same_but_for_json(known: &Facts, row: &Facts) -> bool {
    let value = |object: &JsonObject| {
        // As doubles: JSONB normalises digits.
        serde_json::from_str::<Value>(object.as_str()).ok().map(normalised)
    };
    *known == Facts { context: known.context.clone(), ..row.clone() } && value(&known.context) == value(&row.context)
}

fn normalised(value: Value) -> Value {
    match value {
        Value::Number(number) => {
            number.as_f64().and_then(serde_json::Number::from_f64).map_or(Value::Number(number), Value::Number)
        }
        Value::Array(items) => items.into_iter().map(normalised).collect(),
        Value::Object(members) => members.into_iter().map(|(key, value)| (key, normalised(value))).collect(),
        other => other,
    }
}

/// The events that bring a row and its events together: empty where the row is the fold of them.
///
/// `known` are facts that somebody holds for this id, if anybody does; `now` is the time of what was done to a row that
/// had events. What is done to a row without any is as old as the row, as far as anybody knows.
///
/// # Errors
///
/// In words, when the row holds what no event can say, or more than one may.
pub fn adopt(
    row: &CentralRow,
    held: &[LedgerEntry],
    known: Option<&Arc<Facts>>,
    now: Timestamp,
) -> Result<Vec<LedgerEntry>, String> {
    row.check_size()?;
    let status = TransactionStatus::parse("status", &row.status)
        .map_err(|_| format!("its status is {:?}, which no event can say", row.status))?;
    let recorded = held.iter().find_map(|entry| match &entry.event.body {
        EventBody::Recorded(facts) => Some((entry, Arc::clone(facts))),
        _ => None,
    });
    let mut adoption = match recorded {
        Some((entry, facts)) => Adoption {
            row,
            hash: facts.hash(),
            recorded_by: recorder(held).unwrap_or(entry.recorded_by),
            next: now,
            ids: held.iter().map(|entry| entry.event.event_id).collect(),
            adopted: Vec::new(),
        },
        None => {
            let facts = row.facts(known)?;
            let mut adoption = Adoption {
                row,
                hash: facts.hash(),
                recorded_by: NodeId::NIL,
                next: row.created_at,
                ids: held.iter().map(|entry| entry.event.event_id).collect(),
                adopted: Vec::new(),
            };
            adoption.add(0, &["recorded"], EventBody::Recorded(facts));
            adoption
        }
    };
    let before = adoption.fold(held);
    adoption.next = adoption.next.max(later(before.updated_at));

    let shown: HashSet<&str> = before.evidence.iter().map(String::as_str).collect();
    for text in row.evidence() {
        if !shown.contains(text.as_str()) {
            let body = EventBody::EvidenceAdded { evidence: vec![text.clone()] };
            adoption.add(before.current_round, &["evidence", &text], body);
        }
    }
    if let Some((round, body)) = decision(status, &before) {
        let outcome = match &body {
            EventBody::Resolved { outcome, .. } => outcome.as_str(),
            _ => "",
        };
        let (kind, number) = (body.kind().as_str(), round.to_string());
        adoption.add(round, &["status", kind, outcome, &number], body);
    }
    for LedgerEntry { event, .. } in &adoption.adopted {
        check_round(event.round, &event.body)?;
        check_size(&event.body)?;
    }
    Ok(adoption.adopted)
}

/// Which node is told of all events of a transaction for having recorded it: of several that did, the first whose event
/// came here. `None` while only older clients have.
pub fn recorder(held: &[LedgerEntry]) -> Option<NodeId> {
    let recorded = held.iter().filter(|entry| matches!(entry.event.body, EventBody::Recorded(_)));
    recorded.map(|entry| entry.recorded_by).find(|node_id| *node_id != NodeId::NIL)
}

/// What somebody decided who set a row to `status` that stood at `before`, and in which round.
fn decision(status: TransactionStatus, before: &Fold) -> Option<(u32, EventBody)> {
    use TransactionStatus::{Cancelled, Disputed, Pending, Settled};
    let resolved = |outcome| {
        let body = EventBody::Resolved { outcome, note: None, decisions: before.decisions.clone() };
        Some((before.resolution_round, body))
    };
    match (before.status, status) {
        (from, to) if from == to => None,
        (_, Pending) => None,
        (Disputed, Settled) => resolved(ResolutionOutcome::Settled),
        (Disputed, Cancelled) => resolved(ResolutionOutcome::Cancelled),
        (_, Settled) => Some((before.current_round, EventBody::Settled)),
        (_, Cancelled) => Some((before.current_round, EventBody::Cancelled { reason: None })),
        (_, Disputed) => Some((before.current_round, EventBody::Disputed { reason: None, evidence: Vec::new() })),
    }
}

/// The events that one row gives.
struct Adoption<'a> {
    row: &'a CentralRow,
    hash: [u8; 32],
    recorded_by: NodeId,
    /// The time of the next one: each is later than the one before, so that evidence stays in its order.
    next: Timestamp,
    ids: HashSet<EventId>,
    adopted: Vec<LedgerEntry>,
}

impl Adoption<'_> {
    /// Adds one event, unless it is held already.
    fn add(&mut self, round: u32, what: &[&str], body: EventBody) {
        let event_id = derived_id(&self.row.transaction_id, what);
        if !self.ids.insert(event_id) {
            return;
        }
        let event = Event {
            event_id,
            transaction_id: self.row.transaction_id.clone(),
            facts: self.hash,
            round,
            node_id: NodeId::NIL,
            at: self.next,
            body,
        };
        self.next = later(self.next);
        self.adopted.push(LedgerEntry {
            event,
            payer_agent: self.row.payer_agent.clone(),
            provider_agent: self.row.provider_agent.clone(),
            recorded_by: self.recorded_by,
            node_seq: 0,
            hash: None,
        });
    }

    fn fold(&self, held: &[LedgerEntry]) -> Fold {
        fold(&self.hash, held.iter().chain(&self.adopted).map(|entry| &entry.event))
            .expect("there is a `recorded` of these facts: held, or just adopted")
    }
}

fn later(time: Timestamp) -> Timestamp {
    Timestamp::from_micros(time.as_micros().saturating_add(1))
}

/// An id that depends on what the event says alone: a UUIDv8 (RFC 9562) of a hash.
fn derived_id(transaction_id: &TransactionId, what: &[&str]) -> EventId {
    let mut hasher = blake3::Hasher::new_derive_key("tradepost 2026 adopted ledger event");
    for part in [transaction_id.as_str()].iter().chain(what) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    EventId::from_bytes(uuid::Builder::from_custom_bytes(bytes).into_uuid().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: &str, evidence: Option<&str>) -> CentralRow {
        CentralRow {
            transaction_id: TransactionId::from_stored("order 1/ä"),
            created_at: Timestamp::from_micros(1_000),
            payer_agent: AgentId::from_stored("a"),
            provider_agent: AgentId::from_stored("b"),
            capability: Capability::from_stored("Python"),
            amount: "18.50".to_owned(),
            currency: Currency::default(),
            status: status.to_owned(),
            context: Some(r#"{"b": 1.50, "a": 1}"#.to_owned()),
            evidence: evidence.map(ToOwned::to_owned),
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_micros(5_000)
    }

    fn folded(entries: &[LedgerEntry]) -> Fold {
        fold(&entries[0].event.facts, entries.iter().map(|entry| &entry.event)).expect("it is recorded")
    }

    /// Adopts what a client makes of the row, on top of what is held.
    fn then(held: &[LedgerEntry], status: &str, evidence: Option<&str>) -> Vec<LedgerEntry> {
        let mut all = held.to_vec();
        all.extend(adopt(&row(status, evidence), held, None, now()).expect("it can be told"));
        assert_eq!(adopt(&row(status, evidence), &all, None, now()), Ok(vec![]), "nothing is adopted twice");
        all
    }

    #[test]
    fn a_row_without_events_becomes_the_events_that_make_it() {
        for (status, evidence, expected) in [
            ("pending", None, TransactionStatus::Pending),
            ("settled", Some("[]"), TransactionStatus::Settled),
            ("cancelled", Some("null"), TransactionStatus::Cancelled),
            ("disputed", Some(r#"["late","broken"]"#), TransactionStatus::Disputed),
            ("settled", Some(r#"["receipt"]"#), TransactionStatus::Settled),
        ] {
            let adopted = then(&[], status, evidence);
            let fold = folded(&adopted);
            assert_eq!(fold.status, expected);
            assert_eq!(fold.evidence, row(status, evidence).evidence(), "{status}");
            assert_eq!(fold.created_at, Timestamp::from_micros(1_000));
            assert_eq!(fold.facts.amount.to_string(), "18.5");
            assert_eq!(fold.facts.capability.as_str(), "Python");
            assert!(adopted.iter().all(|entry| entry.event.node_id == NodeId::NIL && entry.hash.is_none()));
            assert_eq!(adopt(&row(status, evidence), &[], None, Timestamp::from_micros(9)), Ok(adopted), "by anybody");
        }
    }

    #[test]
    fn a_life_led_by_older_clients_is_followed_step_by_step() {
        let mut held = then(&[], "pending", None);
        for (status, evidence, expected) in [
            ("settled", None, "settled"),
            ("disputed", Some(r#"["e1"]"#), "disputed"),
            ("disputed", Some(r#"["e1","e2"]"#), "disputed"),
            ("settled", Some(r#"["e1","e2"]"#), "settled"),
            ("disputed", Some(r#"["e1","e2"]"#), "disputed"),
            ("cancelled", Some(r#"["e1","e2"]"#), "cancelled"),
        ] {
            held = then(&held, status, evidence);
            assert_eq!(folded(&held).status.as_str(), expected);
        }
        assert_eq!(folded(&held).evidence, ["e1", "e2"]);
    }

    #[test]
    fn what_was_decided_is_contested_and_not_taken_back() {
        let settled = then(&[], "settled", Some(r#"["receipt"]"#));
        let mut contested = settled.clone();
        contested.extend(adopt(&row("cancelled", Some(r#"["receipt"]"#)), &settled, None, now()).unwrap());
        assert_eq!(folded(&contested).status, TransactionStatus::Disputed);
        // The row says so from here on: a client that cancels it once more resolves the dispute.
        assert_eq!(adopt(&row("disputed", Some(r#"["receipt"]"#)), &contested, None, now()), Ok(vec![]));
        let reset = adopt(&row("pending", None), &settled, None, now());
        assert_eq!(reset, Ok(vec![]), "no event says that nothing was decided");
    }

    #[test]
    fn facts_that_differ_by_what_jsonb_changes_are_the_same() {
        let held = Facts {
            payer_agent: AgentId::from_stored("a"),
            provider_agent: AgentId::from_stored("b"),
            capability: Capability::from_stored("Python"),
            amount: Money::parse("18.5").unwrap(),
            currency: Currency::default(),
            context: JsonObject::parse(r#"{"a":1e0,"b":1.5}"#).unwrap(),
        };
        let adopted = adopt(&row("pending", None), &[], Some(&Arc::new(held.clone())), now()).unwrap();
        assert_eq!(adopted[0].event.facts, held.hash());
        let other = Arc::new(Facts { amount: Money::parse("18.51").unwrap(), ..held });
        let adopted = adopt(&row("pending", None), &[], Some(&other), now()).unwrap();
        assert_ne!(adopted[0].event.facts, other.hash(), "the row that is central stays");
    }

    #[test]
    fn a_row_with_more_than_an_event_may_hold_is_refused_in_words() {
        let long = serde_json::to_string(&["x".repeat(9_000_000)]).unwrap();
        let longer_than_may_be = serde_json::to_string(&["x".repeat(64 * 1024 + 1)]).unwrap();
        let many = serde_json::to_string(&(0..5_000).map(|number| number.to_string()).collect::<Vec<_>>()).unwrap();
        for evidence in [long, longer_than_may_be, many] {
            let words = adopt(&row("pending", Some(&evidence)), &[], None, now()).unwrap_err();
            assert!(words.len() < 200, "{}", words.len());
        }
    }

    #[test]
    fn a_row_that_goes_to_and_fro_for_ever_is_adopted_up_to_the_last_round() {
        let mut held = then(&[], "pending", None);
        let refused = (0..1_000).find_map(|turn| {
            let status = if turn % 2 == 0 { "disputed" } else { "settled" };
            match adopt(&row(status, None), &held, None, now()) {
                Ok(adopted) => held.extend(adopted),
                Err(words) => return Some(words),
            }
            None
        });
        assert!(refused.is_some_and(|words| words.contains("round")));
        assert!(folded(&held).current_round <= crate::domain::ledger::MAX_ROUNDS);
    }

    #[test]
    fn a_status_or_an_amount_that_no_event_can_say_is_refused_in_words() {
        let words = adopt(&row("refunded", None), &[], None, now()).unwrap_err();
        assert!(words.contains("refunded"), "{words}");
        let odd = CentralRow { amount: "NaN".to_owned(), ..row("pending", None) };
        assert!(adopt(&odd, &[], None, now()).unwrap_err().contains("NaN"));
    }
}
