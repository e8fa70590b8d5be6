//! An agent as it lies in Redis: the JSON that the older clients write and read, with what we need besides in the one
//! extra top-level key `tradepost`.
//!
//! The older clients unpack `pricing`, `availability` and `reputation` as keyword arguments, so nothing of ours goes in
//! there. `metadata` and the price stand in the document exactly as they were given, digit by digit: nobody on the way
//! parses them.
//!
//! A document without `tradepost` was written by such a client, be it a registration or an update of one of ours. It is
//! read as an agent of nobody in particular: the owner is the nil node, and the version is below that of every
//! registration at a node, so that the first of those takes the agent over, and an owner whose document was written over
//! puts its own back. One such document is newer than another when it was seen later. It begins above a deletion that
//! Redis remembers, since after that the id is free for whoever comes.
//!
//! What is read was written by others: every value is parsed like a request's, and a document with one bad value is
//! refused whole. From an older client, what is missing takes its default, and binary floats are rounded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::domain::registration::{parse_cost, parse_name, parse_notes};
use crate::domain::{
    Agent, AgentId, AgentVersion, AvailabilityStatus, Baseline, Capabilities, Capacity, Counters, Currency, JsonObject,
    MAX_OBSERVERS, Money, NodeId, ObserverId, Reputation, Timestamp, Ttl,
};

/// The longest document that is looked at, in bytes; the longest that we write has 64 KiB of metadata, as much of
/// capabilities, and a full baseline of some 600 KiB.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;
/// The shape of `tradepost`; a reader refuses those it does not know.
const FORMAT: u32 = 1;
const HIGHEST_SCORE: f64 = 5.0;

/// Why a document is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// Longer than any agent.
    #[error("is longer than {MAX_DOCUMENT_BYTES} bytes")]
    TooLong,
    /// Not JSON, or not of the shape.
    #[error("is not a profile: {0}")]
    Shape(String),
    /// A value breaks a rule.
    #[error("{0}")]
    Value(String),
    /// The document of another agent.
    #[error("names another agent than its key")]
    OtherAgent,
    /// Written by a later version of this program.
    #[error("has the format {0}, and only {FORMAT} is known")]
    Format(u32),
}

/// How Redis holds a document that an older client wrote, as far as its version depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Sighting {
    /// When it was seen.
    pub now: Timestamp,
    /// How long it lives yet.
    pub remaining: Duration,
    /// The deletion that Redis remembers for the id, if any.
    pub deletion: Option<AgentVersion>,
}

impl Sighting {
    /// The version of an agent of nobody in particular.
    fn version(&self) -> AgentVersion {
        let now = u64::try_from(self.now.as_micros()).unwrap_or(0);
        let epoch = self.deletion.map_or(0, |deletion| deletion.epoch);
        let seq = self.deletion.map_or(now, |deletion| now.max(deletion.seq.saturating_add(1)));
        AgentVersion { epoch, seq, node_id: NodeId::NIL }
    }
}

/// The text of an agent's document. The same agent has the same text.
pub fn write(agent: &Agent) -> String {
    let raw = |text: String| RawValue::from_string(text).expect("amounts and metadata are kept as valid JSON");
    let cost = agent.cost_per_task.to_string();
    let document = Document {
        agent_id: agent.agent_id.as_str(),
        name: &agent.name,
        capabilities: &agent.capabilities,
        pricing: Pricing {
            cost_per_task: &raw(cost.clone()),
            currency: agent.currency.as_str(),
            billing_notes: agent.billing_notes.as_deref(),
        },
        availability: Availability {
            status: agent.availability.as_str(),
            capacity_per_hour: agent.capacity_per_hour.get(),
            last_updated: &agent.last_updated.to_string(),
        },
        reputation: &agent.reputation,
        metadata: &raw(agent.metadata.as_str().to_owned()),
        tradepost: Extra {
            format: FORMAT,
            version: &agent.version.to_wire(),
            cost_per_task: &cost,
            ttl_seconds: agent.ttl.seconds(),
            revision: agent.revision,
            node_id: agent.node_id(),
            baseline: &agent.baseline,
        },
    };
    serde_json::to_string(&document).expect("a document holds only what JSON can say")
}

/// Reads the document under `agent:{id}`.
///
/// # Errors
/// As [`Unreadable`] says; nothing of such a document is to be used.
pub fn read(id: &str, bytes: &[u8], sighting: Sighting) -> Result<Agent, Unreadable> {
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(Unreadable::TooLong);
    }
    let parts: Parts = serde_json::from_slice(bytes).map_err(|error| Unreadable::Shape(error.to_string()))?;
    if parts.agent_id != id {
        return Err(Unreadable::OtherAgent);
    }
    match parts.tradepost {
        Some(extra) => {
            let extra: ExtraParts =
                serde_json::from_str(extra.get()).map_err(|error| Unreadable::Shape(error.to_string()))?;
            parts.agent_of_ours(extra, sighting)
        }
        None => parts.agent_of_nobody(sighting),
    }
}

/// Whether a document claims to be written by a node, as opposed to an older client.
pub fn is_of_a_node(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Parts>(bytes).is_ok_and(|parts| parts.tradepost.is_some())
}

#[derive(Serialize)]
struct Document<'a> {
    agent_id: &'a str,
    name: &'a str,
    capabilities: &'a Capabilities,
    pricing: Pricing<'a>,
    availability: Availability<'a>,
    reputation: &'a Reputation,
    metadata: &'a RawValue,
    tradepost: Extra<'a>,
}

#[derive(Serialize)]
struct Pricing<'a> {
    cost_per_task: &'a RawValue,
    currency: &'a str,
    billing_notes: Option<&'a str>,
}

#[derive(Serialize)]
struct Availability<'a> {
    status: &'static str,
    capacity_per_hour: u32,
    last_updated: &'a str,
}

#[derive(Serialize)]
struct Extra<'a> {
    format: u32,
    version: &'a str,
    cost_per_task: &'a str,
    ttl_seconds: u32,
    revision: u64,
    node_id: NodeId,
    baseline: &'a Baseline,
}

/// A document as somebody wrote it. Numbers are taken as text: what is a price here is never a float on the way.
#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(borrow)]
    agent_id: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default, borrow)]
    pricing: PricingParts<'a>,
    #[serde(default, borrow)]
    availability: AvailabilityParts<'a>,
    #[serde(default, borrow)]
    reputation: ReputationParts<'a>,
    #[serde(default, borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(default, borrow)]
    tradepost: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct PricingParts<'a> {
    #[serde(default, borrow)]
    cost_per_task: Option<&'a RawValue>,
    #[serde(default, borrow)]
    currency: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    billing_notes: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Default)]
struct AvailabilityParts<'a> {
    #[serde(default, borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(default)]
    capacity_per_hour: Option<i64>,
    #[serde(default, borrow)]
    last_updated: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Default)]
struct ReputationParts<'a> {
    #[serde(default, borrow)]
    score: Option<&'a RawValue>,
    #[serde(default)]
    total_feedback: u64,
    #[serde(default)]
    successful_tasks: u64,
    #[serde(default)]
    failed_tasks: u64,
}

#[derive(Deserialize)]
struct ExtraParts<'a> {
    format: u32,
    #[serde(borrow)]
    version: Cow<'a, str>,
    #[serde(borrow)]
    cost_per_task: Cow<'a, str>,
    ttl_seconds: u32,
    revision: u64,
    node_id: NodeId,
    #[serde(borrow)]
    baseline: BTreeMap<ObserverId, CountersParts<'a>>,
}

#[derive(Deserialize)]
struct CountersParts<'a> {
    successes: u64,
    failures: u64,
    #[serde(borrow)]
    score: &'a RawValue,
}

/// What both kinds of documents tell in the same way.
struct Common {
    name: String,
    capabilities: Capabilities,
    billing_notes: Option<String>,
    availability: AvailabilityStatus,
    capacity_per_hour: Capacity,
    reputation: Reputation,
    metadata: JsonObject,
}

/// What each kind tells in its own way.
struct Particular {
    agent_id: AgentId,
    cost_per_task: Money,
    currency: Currency,
    last_updated: Timestamp,
    revision: u64,
    ttl: Ttl,
    version: AgentVersion,
    baseline: Baseline,
}

impl Common {
    fn agent(self, particular: Particular, sighting: Sighting) -> Result<Agent, Unreadable> {
        let Particular { agent_id, cost_per_task, currency, last_updated, revision, ttl, version, baseline } =
            particular;
        Ok(Agent {
            agent_id,
            name: self.name,
            capabilities: self.capabilities,
            cost_per_task: parse_cost(cost_per_task).map_err(invalid)?,
            currency,
            billing_notes: self.billing_notes,
            availability: self.availability,
            capacity_per_hour: self.capacity_per_hour,
            last_updated,
            reputation: self.reputation,
            metadata: self.metadata,
            revision,
            ttl,
            expires_at: sighting.now.after(sighting.remaining),
            expired: false,
            version,
            claimed: true,
            baseline,
        })
    }
}

impl Parts<'_> {
    fn agent_of_ours(self, extra: ExtraParts<'_>, sighting: Sighting) -> Result<Agent, Unreadable> {
        if extra.format != FORMAT {
            return Err(Unreadable::Format(extra.format));
        }
        let version = AgentVersion::parse_wire(&extra.version)
            .filter(|version| version.node_id == extra.node_id && version.node_id != NodeId::NIL)
            .ok_or_else(|| Unreadable::Value("tradepost.version is not a version of its node".into()))?;
        if !version.is_believed_at(sighting.now) {
            return Err(Unreadable::Value("tradepost.version lies a year ahead of this node's clock, or more".into()));
        }
        if extra.baseline.len() > MAX_OBSERVERS {
            return Err(Unreadable::Value(format!("tradepost.baseline holds more than {MAX_OBSERVERS} observers")));
        }
        let baseline = extra
            .baseline
            .into_iter()
            .map(|(observer, counters)| {
                let (successes, failures) = (counters.successes, counters.failures);
                Ok((observer, Counters { successes, failures, score: float("baseline", counters.score)? }))
            })
            .collect::<Result<Baseline, Unreadable>>()?;
        let currency = self.pricing.currency.as_deref().ok_or_else(|| missing("pricing.currency"))?;
        let updated = self.availability.last_updated.as_deref().ok_or_else(|| missing("availability.last_updated"))?;
        let agent_id = AgentId::parse("agent_id", &self.agent_id).map_err(invalid)?;
        let cost_per_task =
            Money::parse(&extra.cost_per_task).map_err(|error| named("tradepost.cost_per_task", error))?;
        let particular = Particular {
            agent_id,
            cost_per_task,
            currency: Currency::parse("currency", currency).map_err(invalid)?,
            last_updated: Timestamp::parse(updated).map_err(|error| named("availability.last_updated", error))?,
            revision: extra.revision,
            ttl: Ttl::parse(extra.ttl_seconds.into()).map_err(invalid)?,
            version,
            baseline,
        };
        self.common()?.agent(particular, sighting)
    }

    fn agent_of_nobody(self, sighting: Sighting) -> Result<Agent, Unreadable> {
        let cost_per_task = self.pricing.cost_per_task.map_or(Ok(Money::ZERO), |cost| rounded_cost(cost.get()))?;
        let currency = match self.pricing.currency.as_deref() {
            Some(text) => Currency::parse("currency", &text.trim().to_ascii_uppercase()).map_err(invalid)?,
            None => Currency::default(),
        };
        let last_updated = self.availability.last_updated.as_deref().and_then(python_time).unwrap_or(sighting.now);
        let agent_id = foreign_id(&self.agent_id)?;
        let seconds = sighting.remaining.as_millis().div_ceil(1_000).clamp(1, u128::from(Ttl::LONGEST_SECONDS));
        let seconds = i128::try_from(seconds).expect("clamped to 30 days");
        let particular = Particular {
            agent_id,
            cost_per_task,
            currency,
            last_updated,
            revision: 1,
            ttl: Ttl::parse(seconds).map_err(invalid)?,
            version: sighting.version(),
            baseline: Baseline::new(),
        };
        self.common()?.agent(particular, sighting)
    }

    fn common(self) -> Result<Common, Unreadable> {
        let status = self.availability.status.as_deref();
        let metadata = self.metadata.map(RawValue::get).filter(|text| *text != "null");
        let score = self.reputation.score.map_or(Ok(0.0), |score| float("reputation.score", score))?;
        if !(0.0..=HIGHEST_SCORE).contains(&score) {
            return Err(Unreadable::Value("reputation.score must be 0 to 5".into()));
        }
        Ok(Common {
            name: parse_name(&self.name).map_err(invalid)?,
            capabilities: Capabilities::parse(self.capabilities.iter().map(String::as_str)).map_err(invalid)?,
            billing_notes: self.pricing.billing_notes.as_deref().map(parse_notes).transpose().map_err(invalid)?,
            availability: status.map_or(Ok(AvailabilityStatus::Online), |status| {
                AvailabilityStatus::parse("availability.status", status).map_err(invalid)
            })?,
            capacity_per_hour: self
                .availability
                .capacity_per_hour
                .map_or(Ok(Capacity::default()), |capacity| Capacity::parse(capacity.into()).map_err(invalid))?,
            reputation: Reputation {
                score,
                total_feedback: self.reputation.total_feedback,
                successful_tasks: self.reputation.successful_tasks,
                failed_tasks: self.reputation.failed_tasks,
            },
            metadata: metadata.map_or(Ok(JsonObject::default()), |text| {
                JsonObject::parse(text).map_err(|error| named("metadata", error))
            })?,
        })
    }
}

/// A finite double by its digits: serde_json's own reading may be off in the last place, and then a document of ours
/// would look like another's.
fn float(field: &str, raw: &RawValue) -> Result<f64, Unreadable> {
    raw.get().parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(|| named(field, "must be a number"))
}

/// A price that may have gone through a binary float, as a number or a text: 0.30000000000000004 is 0.3.
fn rounded_cost(text: &str) -> Result<Money, Unreadable> {
    let text = text.trim_matches('"');
    Money::parse(text)
        .or_else(|error| {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && number.abs() < 1e18);
            number.map_or(Err(error), |number| Money::parse(&format!("{number:.9}")))
        })
        .map_err(|error| named("pricing.cost_per_task", error))
}

/// Python's `isoformat` leaves the offset out where a time is naive; those clients mean UTC.
fn python_time(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text).or_else(|_| Timestamp::parse(&format!("{text}Z"))).ok()
}

/// An id that an older client chose may be outside our pattern.
fn foreign_id(text: &str) -> Result<AgentId, Unreadable> {
    if (1..=255).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
        Ok(AgentId::from_stored(text))
    } else {
        Err(named("agent_id", "must be 1 to 255 characters without control characters"))
    }
}

fn named(field: &str, error: impl std::fmt::Display) -> Unreadable {
    Unreadable::Value(format!("{field} {error}"))
}

fn missing(field: &str) -> Unreadable {
    named(field, "is missing")
}

fn invalid(invalid: crate::domain::Invalid) -> Unreadable {
    Unreadable::Value(format!("{} {}", invalid.field, invalid.reason))
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
