//! Transactions and their events on the wire.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Shown, schema};
use crate::domain::event::{parse_evidence, parse_text};
use crate::domain::transaction::{Facts, parse_amount};
use crate::domain::{
    AgentId, Capability, Currency, Decision, Event, EventBody, EventId, Invalid, JsonObject, Money, NewTransaction,
    NodeId, ResolutionOutcome, Timestamp, Transaction, TransactionId,
};
use crate::http::json::{Decimal, Field, Object};
use crate::http::problem::{Problem, ProblemDocument};

/// A transaction to be recorded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewTransaction)]
pub(crate) struct RecordBody {
    #[serde(default)]
    #[schema(value_type = schema::AgentId, required = true)]
    payer_agent: Field<String>,
    #[serde(default)]
    #[schema(value_type = schema::AgentId, required = true)]
    provider_agent: Field<String>,
    #[serde(default)]
    #[schema(value_type = schema::Capability, required = true)]
    capability: Field<String>,
    /// Above 0.
    #[serde(default)]
    #[schema(value_type = schema::AmountInput, required = true)]
    amount: Field<Decimal>,
    /// `USD` when absent.
    #[serde(default)]
    #[schema(value_type = schema::Currency, required = false)]
    currency: Field<String>,
    /// `{}` when absent.
    #[serde(default)]
    #[schema(value_type = schema::AnyObject, required = false)]
    context: Field<Object>,
    /// Minted when absent.
    #[serde(default)]
    #[schema(value_type = schema::TransactionId, required = false)]
    transaction_id: Field<String>,
}

impl RecordBody {
    /// # Errors
    /// 400, 422.
    pub(crate) fn transaction(self) -> Result<NewTransaction, Problem> {
        let payer_agent = self.payer_agent.required("payer_agent")?;
        let provider_agent = self.provider_agent.required("provider_agent")?;
        let capability = self.capability.required("capability")?;
        let amount = self.amount.required("amount")?;

        let transaction_id = self.transaction_id.given();
        let currency = self.currency.given();
        let context = self.context.given();
        Ok(NewTransaction {
            transaction_id: transaction_id.map(|text| TransactionId::parse("transaction_id", &text)).transpose()?,
            facts: Facts {
                payer_agent: AgentId::parse("payer_agent", &payer_agent)?,
                provider_agent: AgentId::parse("provider_agent", &provider_agent)?,
                capability: Capability::parse("capability", &capability)?,
                amount: parse_amount(amount.money("amount")?)?,
                currency: currency.map(|text| Currency::parse("currency", &text)).transpose()?.unwrap_or_default(),
                context: context.map(|object| object.checked("context")).transpose()?.unwrap_or_default(),
            },
        })
    }
}

/// Why a transaction is cancelled.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Cancellation)]
pub(crate) struct CancelBody {
    #[serde(default)]
    #[schema(value_type = schema::Text, required = false)]
    reason: Field<String>,
}

impl CancelBody {
    /// # Errors
    /// 422.
    pub(crate) fn decision(self) -> Result<Decision, Problem> {
        Ok(Decision::Cancel { reason: optional_text("reason", self.reason)? })
    }
}

/// Why a transaction is disputed.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Dispute)]
pub(crate) struct DisputeBody {
    #[serde(default)]
    #[schema(value_type = Vec<schema::Text>, required = false, max_items = 256)]
    evidence: Field<Vec<String>>,
    #[serde(default)]
    #[schema(value_type = schema::Text, required = false)]
    reason: Field<String>,
}

impl DisputeBody {
    /// # Errors
    /// 422.
    pub(crate) fn decision(self) -> Result<Decision, Problem> {
        let evidence = parse_evidence(self.evidence.given().unwrap_or_default())?;
        Ok(Decision::Dispute { reason: optional_text("reason", self.reason)?, evidence })
    }
}

/// More evidence.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Evidence)]
pub(crate) struct EvidenceBody {
    #[serde(default)]
    #[schema(value_type = Vec<schema::Text>, required = true, min_items = 1, max_items = 256)]
    evidence: Field<Vec<String>>,
}

impl EvidenceBody {
    /// # Errors
    /// 400, 422.
    pub(crate) fn decision(self) -> Result<Decision, Problem> {
        let evidence = parse_evidence(self.evidence.required("evidence")?)?;
        if evidence.is_empty() {
            return Err(Problem::invalid("evidence", "must hold at least one piece"));
        }
        Ok(Decision::AddEvidence { evidence })
    }
}

/// How a dispute ends.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Resolution)]
pub(crate) struct ResolveBody {
    #[serde(default)]
    #[schema(value_type = Outcome, required = true)]
    outcome: Field<String>,
    #[serde(default)]
    #[schema(value_type = schema::Text, required = false)]
    note: Field<String>,
}

/// Documents `outcome`.
#[derive(ToSchema)]
#[schema(as = ResolutionOutcome, rename_all = "lowercase")]
#[expect(dead_code, reason = "a schema only")]
enum Outcome {
    Settled,
    Cancelled,
}

impl ResolveBody {
    /// # Errors
    /// 400, 422.
    pub(crate) fn decision(self) -> Result<Decision, Problem> {
        let outcome = self.outcome.required("outcome")?;
        Ok(Decision::Resolve { outcome: ResolutionOutcome::parse(&outcome)?, note: optional_text("note", self.note)? })
    }
}

fn optional_text(field: &'static str, text: Field<String>) -> Result<Option<String>, Invalid> {
    text.given().map(|text| parse_text(field, text)).transpose()
}

/// A kept JSON object as it is.
pub(crate) fn raw(object: &JsonObject) -> &RawValue {
    serde_json::from_str(object.as_str()).expect("a JsonObject holds the text of a JSON object")
}

/// A transaction as it is now.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Transaction)]
pub(crate) struct TransactionShown<'a> {
    #[schema(value_type = schema::TransactionId)]
    transaction_id: &'a str,
    #[schema(value_type = schema::Time)]
    created_at: Shown<Timestamp>,
    #[schema(value_type = schema::AgentId)]
    payer_agent: &'a str,
    #[schema(value_type = schema::AgentId)]
    provider_agent: &'a str,
    #[schema(value_type = schema::Capability)]
    capability: &'a str,
    #[schema(value_type = schema::Money)]
    amount: Shown<Money>,
    #[schema(value_type = schema::Currency)]
    currency: &'a str,
    #[schema(value_type = schema::Status)]
    status: &'static str,
    #[schema(value_type = schema::AnyObject)]
    context: &'a RawValue,
    evidence: &'a [String],
    #[schema(value_type = schema::Time)]
    updated_at: Shown<Timestamp>,
    /// When it was settled; kept while a dispute contests it.
    #[schema(value_type = Option<schema::Time>, required = true)]
    settled_at: Option<Shown<Timestamp>>,
    /// `central` once PostgreSQL holds the newest event.
    #[schema(value_type = FinalityShown)]
    finality: &'static str,
}

/// Documents `finality`.
#[derive(ToSchema)]
#[schema(as = Finality, rename_all = "lowercase")]
#[expect(dead_code, reason = "a schema only")]
enum FinalityShown {
    Local,
    Central,
}

impl<'a> From<&'a Transaction> for TransactionShown<'a> {
    fn from(transaction: &'a Transaction) -> Self {
        let facts = &transaction.facts;
        Self {
            transaction_id: transaction.transaction_id.as_str(),
            created_at: Shown(transaction.created_at),
            payer_agent: facts.payer_agent.as_str(),
            provider_agent: facts.provider_agent.as_str(),
            capability: facts.capability.as_str(),
            amount: Shown(facts.amount),
            currency: facts.currency.as_str(),
            status: transaction.status.as_str(),
            context: raw(&facts.context),
            evidence: &transaction.evidence,
            updated_at: Shown(transaction.updated_at),
            settled_at: transaction.settled_at.map(Shown),
            finality: transaction.finality.as_str(),
        }
    }
}

/// What a payment system needs to know of a transaction.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Settlement<'a> {
    #[schema(value_type = schema::TransactionId)]
    transaction_id: &'a str,
    #[schema(value_type = schema::AgentId)]
    payer: &'a str,
    #[schema(value_type = schema::AgentId)]
    provider: &'a str,
    #[schema(value_type = schema::Capability)]
    capability: &'a str,
    #[schema(value_type = schema::Money)]
    amount: Shown<Money>,
    #[schema(value_type = schema::Currency)]
    currency: &'a str,
    #[schema(value_type = schema::Time)]
    created_at: Shown<Timestamp>,
    /// `pending` or `settled`.
    #[schema(value_type = schema::Status)]
    status: &'static str,
    #[schema(value_type = schema::AnyObject)]
    context: &'a RawValue,
}

impl<'a> From<&'a Transaction> for Settlement<'a> {
    fn from(transaction: &'a Transaction) -> Self {
        let facts = &transaction.facts;
        Self {
            transaction_id: transaction.transaction_id.as_str(),
            payer: facts.payer_agent.as_str(),
            provider: facts.provider_agent.as_str(),
            capability: facts.capability.as_str(),
            amount: Shown(facts.amount),
            currency: facts.currency.as_str(),
            created_at: Shown(transaction.created_at),
            status: transaction.status.as_str(),
            context: raw(&facts.context),
        }
    }
}

/// One immutable ledger entry.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub(crate) struct EventShown<'a> {
    #[schema(value_type = schema::EventId)]
    event_id: Shown<EventId>,
    #[schema(value_type = schema::TransactionId)]
    transaction_id: &'a str,
    #[schema(value_type = EventKindShown)]
    kind: &'static str,
    /// How many resolutions its author had seen pass.
    round: u32,
    #[schema(value_type = schema::NodeId)]
    node_id: Shown<NodeId>,
    #[schema(value_type = schema::Time)]
    at: Shown<Timestamp>,
    /// Of `recorded`: the facts. Of `settled`: nothing. Of `cancelled`: `reason`. Of `disputed`: `reason`, `evidence`.
    /// Of `evidence_added`: `evidence`. Of `resolved`: `outcome`, `note`, `decisions`.
    payload: EventPayload<'a>,
}

/// Documents `kind`.
#[derive(ToSchema)]
#[schema(as = EventKind, rename_all = "snake_case")]
#[expect(dead_code, reason = "a schema only")]
enum EventKindShown {
    Recorded,
    Settled,
    Cancelled,
    Disputed,
    EvidenceAdded,
    Resolved,
}

/// What an event says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum EventPayload<'a> {
    /// Of `recorded`.
    Recorded {
        #[schema(value_type = schema::AgentId)]
        payer_agent: &'a str,
        #[schema(value_type = schema::AgentId)]
        provider_agent: &'a str,
        #[schema(value_type = schema::Capability)]
        capability: &'a str,
        #[schema(value_type = schema::Money)]
        amount: Shown<Money>,
        #[schema(value_type = schema::Currency)]
        currency: &'a str,
        #[schema(value_type = schema::AnyObject)]
        context: &'a RawValue,
    },
    /// Of `settled`.
    Settled {},
    /// Of `cancelled`.
    Cancelled {
        #[schema(required = true)]
        reason: Option<&'a str>,
    },
    /// Of `disputed`.
    Disputed {
        #[schema(required = true)]
        reason: Option<&'a str>,
        evidence: &'a [String],
    },
    /// Of `evidence_added`.
    EvidenceAdded { evidence: &'a [String] },
    /// Of `resolved`.
    Resolved {
        #[schema(value_type = Outcome)]
        outcome: &'static str,
        #[schema(required = true)]
        note: Option<&'a str>,
        /// The decisions that its author held.
        #[schema(value_type = Vec<schema::EventId>)]
        decisions: Vec<Shown<EventId>>,
    },
}

impl<'a> From<&'a Event> for EventShown<'a> {
    fn from(event: &'a Event) -> Self {
        let payload = match &event.body {
            EventBody::Recorded(facts) => EventPayload::Recorded {
                payer_agent: facts.payer_agent.as_str(),
                provider_agent: facts.provider_agent.as_str(),
                capability: facts.capability.as_str(),
                amount: Shown(facts.amount),
                currency: facts.currency.as_str(),
                context: raw(&facts.context),
            },
            EventBody::Settled => EventPayload::Settled {},
            EventBody::Cancelled { reason } => EventPayload::Cancelled { reason: reason.as_deref() },
            EventBody::Disputed { reason, evidence } => EventPayload::Disputed { reason: reason.as_deref(), evidence },
            EventBody::EvidenceAdded { evidence } => EventPayload::EvidenceAdded { evidence },
            EventBody::Resolved { outcome, note, decisions } => EventPayload::Resolved {
                outcome: outcome.as_str(),
                note: note.as_deref(),
                decisions: decisions.iter().copied().map(Shown).collect(),
            },
        };
        Self {
            event_id: Shown(event.event_id),
            transaction_id: event.transaction_id.as_str(),
            kind: event.body.kind().as_str(),
            round: event.round,
            node_id: Shown(event.node_id),
            at: Shown(event.at),
            payload,
        }
    }
}

/// What became of a batch, item by item, in order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchResults<'a> {
    pub(crate) results: Vec<BatchResult<'a>>,
}

/// What became of one item.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum BatchResult<'a> {
    /// It is recorded, now (201) or before (200).
    Recorded {
        #[schema(minimum = 200, maximum = 201)]
        status: u16,
        transaction: TransactionShown<'a>,
    },
    /// It is refused.
    Refused {
        #[schema(minimum = 400, maximum = 599)]
        status: u16,
        problem: ProblemDocument,
    },
}
