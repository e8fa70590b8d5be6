//! How an event is stored: the bytes that the ledger log chains.
//!
//! Reading makes an [`EventV1`] that owns everything; writing encodes from references to the domain's event, in the same
//! shape.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::codec::{self, Record};
use crate::domain::event::FactsHash;
use crate::domain::{
    AgentId, Capability, Currency, Event, EventBody, EventId, Facts, JsonObject, Money, NodeId, ResolutionOutcome,
    Timestamp, TransactionId,
};

/// A ledger event; `node_seq` is its place in its author's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventV1 {
    pub node_seq: u64,
    event_id: EventId,
    transaction_id: TransactionId,
    facts: FactsHash,
    round: u32,
    node_id: NodeId,
    at: Timestamp,
    body: EventBodyV1,
}

impl Record for EventV1 {
    const VERSION: u8 = 1;
    const NAME: &'static str = "event";
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum EventBodyV1 {
    Recorded(FactsV1),
    Settled,
    Cancelled { reason: Option<String> },
    Disputed { reason: Option<String>, evidence: Vec<String> },
    EvidenceAdded { evidence: Vec<String> },
    ResolvedSettled { note: Option<String>, decisions: Vec<EventId> },
    ResolvedCancelled { note: Option<String>, decisions: Vec<EventId> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FactsV1 {
    payer_agent: AgentId,
    provider_agent: AgentId,
    capability: Capability,
    amount: Money,
    currency: Currency,
    context: JsonObject,
}

/// Encodes an event, with its place in its author's log, behind what is in `bytes`.
pub fn encode_event(event: &Event, node_seq: u64, bytes: &mut Vec<u8>) {
    codec::encode_as::<EventV1>(&EventRef::of(event, node_seq), bytes);
}

impl<'a> EventRef<'a> {
    pub fn of(event: &'a Event, node_seq: u64) -> Self {
        let body = match &event.body {
            EventBody::Recorded(facts) => BodyRef::Recorded(FactsRef {
                payer_agent: &facts.payer_agent,
                provider_agent: &facts.provider_agent,
                capability: &facts.capability,
                amount: facts.amount,
                currency: &facts.currency,
                context: &facts.context,
            }),
            EventBody::Settled => BodyRef::Settled,
            EventBody::Cancelled { reason } => BodyRef::Cancelled { reason },
            EventBody::Disputed { reason, evidence } => BodyRef::Disputed { reason, evidence },
            EventBody::EvidenceAdded { evidence } => BodyRef::EvidenceAdded { evidence },
            EventBody::Resolved { outcome: ResolutionOutcome::Settled, note, decisions } => {
                BodyRef::ResolvedSettled { note, decisions }
            }
            EventBody::Resolved { outcome: ResolutionOutcome::Cancelled, note, decisions } => {
                BodyRef::ResolvedCancelled { note, decisions }
            }
        };
        Self {
            node_seq,
            event_id: event.event_id,
            transaction_id: &event.transaction_id,
            facts: &event.facts,
            round: event.round,
            node_id: event.node_id,
            at: event.at,
            body,
        }
    }
}

/// [`EventV1`] in references, field by field.
#[derive(Serialize)]
pub struct EventRef<'a> {
    node_seq: u64,
    event_id: EventId,
    transaction_id: &'a TransactionId,
    facts: &'a FactsHash,
    round: u32,
    node_id: NodeId,
    at: Timestamp,
    body: BodyRef<'a>,
}

#[derive(Serialize)]
enum BodyRef<'a> {
    Recorded(FactsRef<'a>),
    Settled,
    Cancelled { reason: &'a Option<String> },
    Disputed { reason: &'a Option<String>, evidence: &'a [String] },
    EvidenceAdded { evidence: &'a [String] },
    ResolvedSettled { note: &'a Option<String>, decisions: &'a [EventId] },
    ResolvedCancelled { note: &'a Option<String>, decisions: &'a [EventId] },
}

#[derive(Serialize)]
struct FactsRef<'a> {
    payer_agent: &'a AgentId,
    provider_agent: &'a AgentId,
    capability: &'a Capability,
    amount: Money,
    currency: &'a Currency,
    context: &'a JsonObject,
}

impl EventV1 {
    /// The node that wrote it.
    pub fn author(&self) -> NodeId {
        self.node_id
    }

    pub fn into_domain(self) -> Event {
        let body = match self.body {
            EventBodyV1::Recorded(facts) => EventBody::Recorded(Arc::new(Facts {
                payer_agent: facts.payer_agent,
                provider_agent: facts.provider_agent,
                capability: facts.capability,
                amount: facts.amount,
                currency: facts.currency,
                context: facts.context,
            })),
            EventBodyV1::Settled => EventBody::Settled,
            EventBodyV1::Cancelled { reason } => EventBody::Cancelled { reason },
            EventBodyV1::Disputed { reason, evidence } => EventBody::Disputed { reason, evidence },
            EventBodyV1::EvidenceAdded { evidence } => EventBody::EvidenceAdded { evidence },
            EventBodyV1::ResolvedSettled { note, decisions } => {
                EventBody::Resolved { outcome: ResolutionOutcome::Settled, note, decisions }
            }
            EventBodyV1::ResolvedCancelled { note, decisions } => {
                EventBody::Resolved { outcome: ResolutionOutcome::Cancelled, note, decisions }
            }
        };
        Event {
            event_id: self.event_id,
            transaction_id: self.transaction_id,
            facts: self.facts,
            round: self.round,
            node_id: self.node_id,
            at: self.at,
            body,
        }
    }
}
