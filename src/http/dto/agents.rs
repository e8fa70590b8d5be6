//! Agents on the wire.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Shown, schema};
use crate::domain::registration::{parse_cost, parse_name, parse_notes};
use crate::domain::{
    AgentId, AgentPatch, AvailabilityStatus, Capabilities, Capability, Capacity, Currency, Delta, Invalid, Money,
    NodeId, Registration, Reputation, Timestamp, Total, Ttl, Weight,
};
use crate::engine::{self, LeaseState};
use crate::http::json::{Decimal, Field, Integer, Number, Object};
use crate::http::problem::Problem;
use crate::http::reply::to_json;

/// An agent that registers, or replaces what it said before.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Registration)]
pub(crate) struct RegistrationBody {
    #[serde(default)]
    #[schema(value_type = schema::AgentId, required = true)]
    agent_id: Field<String>,
    #[serde(default)]
    #[schema(value_type = String, required = true, min_length = 1, max_length = 255)]
    name: Field<String>,
    /// May be empty; repetitions are dropped.
    #[serde(default)]
    #[schema(value_type = Vec<schema::Capability>, required = true)]
    capabilities: Field<Vec<String>>,
    /// 0 or more.
    #[serde(default)]
    #[schema(value_type = schema::CostInput, required = true)]
    cost_per_task: Field<Decimal>,
    /// `USD` when absent.
    #[serde(default)]
    #[schema(value_type = schema::Currency, required = false)]
    currency: Field<String>,
    /// 30 when absent.
    #[serde(default)]
    #[schema(value_type = u32, required = false, minimum = 1, maximum = 4_294_967_295_i64)]
    capacity_per_hour: Field<Integer>,
    /// `online` when absent.
    #[serde(default)]
    #[schema(value_type = schema::Availability, required = false)]
    availability: Field<String>,
    #[serde(default)]
    #[schema(value_type = Option<String>, required = false, max_length = 4096)]
    billing_notes: Field<Option<String>>,
    /// `{}` when absent.
    #[serde(default)]
    #[schema(value_type = schema::AnyObject, required = false)]
    metadata: Field<Object>,
    /// This server's default when absent.
    #[serde(default)]
    #[schema(value_type = u32, required = false, minimum = 1, maximum = 2_592_000)]
    ttl_seconds: Field<Integer>,
}

impl RegistrationBody {
    /// What POST registers.
    ///
    /// # Errors
    /// 400, 422.
    pub(crate) fn registration(mut self) -> Result<Registration, Problem> {
        let agent_id = std::mem::take(&mut self.agent_id).required("agent_id")?;
        self.described(|| Ok(AgentId::parse("agent_id", &agent_id)?))
    }

    /// What PUT registers under the path's id; `path` is asked last, for an impossible one is a missing entity.
    ///
    /// # Errors
    /// 400, 422, and those of `path`.
    pub(crate) fn replacement(
        mut self,
        path: impl FnOnce() -> Result<AgentId, Problem>,
    ) -> Result<Registration, Problem> {
        let given = std::mem::take(&mut self.agent_id).given();
        self.described(|| {
            let given = given.map(|text| AgentId::parse("agent_id", &text)).transpose()?;
            let agent_id = path()?;
            match given {
                Some(other) if other != agent_id => {
                    Err(Invalid::new("agent_id", "must be the id in the path, or be left out").into())
                }
                _ => Ok(agent_id),
            }
        })
    }

    fn described(self, agent_id: impl FnOnce() -> Result<AgentId, Problem>) -> Result<Registration, Problem> {
        let name = self.name.required("name")?;
        let capabilities = self.capabilities.required("capabilities")?;
        let cost_per_task = self.cost_per_task.required("cost_per_task")?;

        let name = parse_name(&name)?;
        let capabilities = parse_capabilities(&capabilities)?;
        let cost_per_task = parse_price(cost_per_task)?;
        let currency = self.currency.given().map(|text| parse_currency(&text)).transpose()?.unwrap_or_default();
        let capacity_per_hour = self.capacity_per_hour.given().map(parse_capacity).transpose()?.unwrap_or_default();
        let availability = self.availability.given().map(|text| parse_availability(&text)).transpose()?;
        let billing_notes = self.billing_notes.given().flatten().map(|notes| parse_notes(&notes)).transpose()?;
        let metadata = self.metadata.given().map(parse_metadata).transpose()?.unwrap_or_default();
        let ttl = self.ttl_seconds.given().map(parse_ttl).transpose()?;
        Ok(Registration {
            agent_id: agent_id()?,
            name,
            capabilities,
            cost_per_task,
            currency,
            capacity_per_hour,
            availability: availability.unwrap_or(AvailabilityStatus::Online),
            billing_notes,
            metadata,
            ttl,
        })
    }
}

/// A change of an agent; what is absent stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AgentPatch)]
pub(crate) struct PatchBody {
    #[serde(default)]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 255)]
    name: Field<String>,
    /// 0 or more.
    #[serde(default)]
    #[schema(value_type = schema::CostInput, required = false)]
    cost_per_task: Field<Decimal>,
    #[serde(default)]
    #[schema(value_type = schema::Currency, required = false)]
    currency: Field<String>,
    /// `null` removes them.
    #[serde(default)]
    #[schema(value_type = Option<String>, required = false, max_length = 4096)]
    billing_notes: Field<Option<String>>,
    #[serde(default)]
    #[schema(value_type = schema::Availability, required = false)]
    availability: Field<String>,
    /// An older name for `availability`; give one of them.
    #[serde(default)]
    #[schema(value_type = schema::Availability, required = false)]
    status: Field<String>,
    #[serde(default)]
    #[schema(value_type = u32, required = false, minimum = 1, maximum = 4_294_967_295_i64)]
    capacity_per_hour: Field<Integer>,
    /// Replaced whole; `[]` empties them.
    #[serde(default)]
    #[schema(value_type = Vec<schema::Capability>, required = false)]
    capabilities: Field<Vec<String>>,
    /// Replaced whole.
    #[serde(default)]
    #[schema(value_type = schema::AnyObject, required = false)]
    metadata: Field<Object>,
    #[serde(default)]
    #[schema(value_type = u32, required = false, minimum = 1, maximum = 2_592_000)]
    ttl_seconds: Field<Integer>,
}

impl PatchBody {
    /// # Errors
    /// 400, 422.
    pub(crate) fn patch(self) -> Result<AgentPatch, Problem> {
        let (availability_field, availability) = match (self.availability.given(), self.status.given()) {
            (Some(_), Some(_)) => {
                return Err(Problem::malformed_at(
                    "status",
                    "`status` is an older name for `availability`; give one of them",
                ));
            }
            (None, Some(status)) => ("status", Some(status)),
            (availability, None) => ("availability", availability),
        };
        Ok(AgentPatch {
            name: self.name.given().map(|name| parse_name(&name)).transpose()?,
            cost_per_task: self.cost_per_task.given().map(parse_price).transpose()?,
            currency: self.currency.given().map(|text| parse_currency(&text)).transpose()?,
            billing_notes: self
                .billing_notes
                .given()
                .map(|notes| notes.map(|notes| parse_notes(&notes)).transpose())
                .transpose()?,
            availability: availability.map(|text| AvailabilityStatus::parse(availability_field, &text)).transpose()?,
            capacity_per_hour: self.capacity_per_hour.given().map(parse_capacity).transpose()?,
            capabilities: self.capabilities.given().map(|texts| parse_capabilities(&texts)).transpose()?,
            metadata: self.metadata.given().map(parse_metadata).transpose()?,
            ttl: self.ttl_seconds.given().map(parse_ttl).transpose()?,
        })
    }
}

fn parse_capabilities(texts: &[String]) -> Result<Capabilities, Invalid> {
    Capabilities::parse(texts.iter().map(String::as_str))
}

fn parse_price(cost: Decimal) -> Result<Money, Invalid> {
    parse_cost(cost.money("cost_per_task")?)
}

fn parse_currency(text: &str) -> Result<Currency, Invalid> {
    Currency::parse("currency", text)
}

fn parse_capacity(capacity: Integer) -> Result<Capacity, Invalid> {
    Capacity::parse(capacity.0)
}

fn parse_availability(text: &str) -> Result<AvailabilityStatus, Invalid> {
    AvailabilityStatus::parse("availability", text)
}

fn parse_metadata(metadata: Object) -> Result<crate::domain::JsonObject, Invalid> {
    metadata.checked("metadata")
}

fn parse_ttl(seconds: Integer) -> Result<Ttl, Invalid> {
    Ttl::parse(seconds.0)
}

/// What came of using an agent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Outcome)]
pub(crate) struct OutcomeBody {
    #[serde(default)]
    #[schema(value_type = bool, required = true)]
    success: Field<bool>,
    /// How far the score moves; 1 when absent.
    #[serde(default)]
    #[schema(value_type = f64, required = false, exclusive_minimum = 0.0)]
    weight: Field<Number>,
}

impl OutcomeBody {
    /// # Errors
    /// 400, 422.
    pub(crate) fn outcome(self) -> Result<(bool, Weight), Problem> {
        let success = self.success.required("success")?;
        let weight = self.weight.given().map(|weight| Weight::parse(weight.0)).transpose()?.unwrap_or_default();
        Ok((success, weight))
    }
}

/// A correction of a score.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReputationChange)]
pub(crate) struct ReputationBody {
    #[serde(default)]
    #[schema(value_type = f64, required = true)]
    delta: Field<Number>,
}

impl ReputationBody {
    /// # Errors
    /// 400, 422.
    pub(crate) fn delta(self) -> Result<Delta, Problem> {
        Ok(Delta::parse(self.delta.required("delta")?.0)?)
    }
}

/// An agent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Profile<'a> {
    #[schema(value_type = schema::AgentId)]
    agent_id: &'a str,
    name: &'a str,
    /// Sorted, each once.
    #[schema(value_type = Vec<schema::Capability>)]
    capabilities: Vec<&'a str>,
    #[schema(inline)]
    pricing: Pricing<'a>,
    #[schema(inline)]
    availability: Availability,
    reputation: ReputationShown,
    #[schema(value_type = schema::AnyObject)]
    metadata: &'a RawValue,
    /// Rises with register, PUT and PATCH; never reused for an id.
    #[schema(minimum = 1)]
    revision: u64,
    // These two come last: see `lease_within`.
    #[schema(inline)]
    lease: Lease,
    #[schema(inline)]
    origin: Origin,
}

#[derive(Debug, Serialize, ToSchema)]
struct Pricing<'a> {
    #[schema(value_type = schema::Money)]
    cost_per_task: Shown<Money>,
    #[schema(value_type = schema::Currency)]
    currency: &'a str,
    #[schema(required = true)]
    billing_notes: Option<&'a str>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProfileAvailability)]
struct Availability {
    #[schema(value_type = schema::Availability)]
    status: &'static str,
    #[schema(minimum = 1)]
    capacity_per_hour: u32,
    #[schema(value_type = schema::Time)]
    last_updated: Shown<Timestamp>,
}

/// What others made of an agent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Reputation)]
pub(crate) struct ReputationShown {
    /// Rounded to 2 places.
    #[schema(minimum = 0, maximum = 5)]
    score: f64,
    total_feedback: u64,
    successful_tasks: u64,
    failed_tasks: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Lease {
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl_seconds: u32,
    #[schema(value_type = schema::Time)]
    expires_at: Shown<Timestamp>,
    /// `stale`: a remote agent that cannot be confirmed at present.
    #[schema(value_type = LeaseStateShown)]
    state: &'static str,
}

/// Documents `lease.state`.
#[derive(ToSchema)]
#[schema(as = LeaseState, rename_all = "lowercase")]
#[expect(dead_code, reason = "a schema only")]
enum LeaseStateShown {
    Live,
    Expired,
    Stale,
}

#[derive(Debug, Serialize, ToSchema)]
struct Origin {
    #[schema(value_type = schema::NodeId)]
    node_id: Shown<NodeId>,
    /// Whether this node owns the agent.
    local: bool,
}

impl<'a> From<&'a engine::Profile> for Profile<'a> {
    fn from(profile: &'a engine::Profile) -> Self {
        let agent = &profile.agent;
        Self {
            agent_id: agent.agent_id.as_str(),
            name: &agent.name,
            capabilities: agent.capabilities.iter().map(Capability::as_str).collect(),
            pricing: Pricing {
                cost_per_task: Shown(agent.cost_per_task),
                currency: agent.currency.as_str(),
                billing_notes: agent.billing_notes.as_deref(),
            },
            availability: Availability {
                status: agent.availability.as_str(),
                capacity_per_hour: agent.capacity_per_hour.get(),
                last_updated: Shown(agent.last_updated),
            },
            reputation: agent.reputation.into(),
            metadata: super::transactions::raw(&agent.metadata),
            revision: agent.revision,
            lease: Lease::of(agent.ttl.seconds(), profile.expires_at, profile.lease),
            origin: Origin { node_id: Shown(agent.node_id()), local: profile.local },
        }
    }
}

impl Profile<'_> {
    /// Where the lease stands in `text`, which is this profile as JSON.
    pub(crate) fn lease_within(&self, text: &[u8]) -> Range<usize> {
        // What follows it: the last of the fields, and the end.
        let origin = to_json(&self.origin).len() + r#","origin":}"#.len();
        let end = text.len() - origin;
        end - to_json(&self.lease).len()..end
    }
}

impl Lease {
    pub(crate) fn of(ttl_seconds: u32, expires_at: Timestamp, state: LeaseState) -> Self {
        Self { ttl_seconds, expires_at: Shown(expires_at), state: state.as_str() }
    }
}

impl From<Reputation> for ReputationShown {
    fn from(reputation: Reputation) -> Self {
        Self {
            score: reputation.shown_score(),
            total_feedback: reputation.total_feedback,
            successful_tasks: reputation.successful_tasks,
            failed_tasks: reputation.failed_tasks,
        }
    }
}

/// A renewed lease.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Heartbeat {
    #[schema(value_type = schema::Time)]
    expires_at: Shown<Timestamp>,
}

impl From<Timestamp> for Heartbeat {
    fn from(expires_at: Timestamp) -> Self {
        Self { expires_at: Shown(expires_at) }
    }
}

/// Six sums of one currency.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Balance {
    #[schema(inline)]
    paid: BalanceSide,
    #[schema(inline)]
    earned: BalanceSide,
}

#[derive(Debug, Serialize, ToSchema)]
struct BalanceSide {
    #[schema(value_type = schema::Money)]
    pending: Shown<Total>,
    #[schema(value_type = schema::Money)]
    settled: Shown<Total>,
    #[schema(value_type = schema::Money)]
    disputed: Shown<Total>,
}

/// Balances by currency.
pub(crate) fn balances(balances: &BTreeMap<Currency, engine::Balance>) -> BTreeMap<&str, Balance> {
    let side = |side: &engine::BalanceSide| BalanceSide {
        pending: Shown(side.pending),
        settled: Shown(side.settled),
        disputed: Shown(side.disputed),
    };
    balances
        .iter()
        .map(|(currency, balance)| {
            (currency.as_str(), Balance { paid: side(&balance.paid), earned: side(&balance.earned) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::parse_object;

    fn register(body: &str) -> Result<Registration, Problem> {
        parse_object::<RegistrationBody>(body.as_bytes())?.registration()
    }

    const MINIMAL: &str = r#"{"agent_id":"thon","name":"Thon","capabilities":[],"cost_per_task":18.5}"#;

    #[test]
    fn a_minimal_registration_takes_the_defaults() {
        let registration = register(MINIMAL).unwrap();
        assert_eq!(registration.currency.as_str(), "USD");
        assert_eq!(registration.capacity_per_hour.get(), 30);
        assert_eq!(registration.availability, AvailabilityStatus::Online);
        assert_eq!(registration.metadata.as_str(), "{}");
        assert_eq!((registration.ttl, registration.billing_notes), (None, None));
    }

    #[test]
    fn what_is_missing_or_malformed_comes_before_what_breaks_a_rule() {
        for (body, status, field) in [
            (r#"{"agent_id":"","name":"","capabilities":[]}"#, 400, "cost_per_task"),
            (r#"{"agent_id":"a b","name":"x","cost_per_task":1}"#, 400, "capabilities"),
            (r#"{"agent_id":"a","name":"","capabilities":[],"cost_per_task":1,"currency":null}"#, 400, "currency"),
            (r#"{"agent_id":"a b","name":"x","capabilities":[],"cost_per_task":1}"#, 422, "agent_id"),
            (r#"{"agent_id":"a","name":"","capabilities":[],"cost_per_task":1}"#, 422, "name"),
            (r#"{"agent_id":"a","name":"x","capabilities":[""],"cost_per_task":1}"#, 422, "capabilities"),
            (r#"{"agent_id":"a","name":"x","capabilities":[],"cost_per_task":"-1"}"#, 422, "cost_per_task"),
            (r#"{"agent_id":"a","name":"x","capabilities":[],"cost_per_task":1,"ttl_seconds":0}"#, 422, "ttl_seconds"),
            (
                r#"{"agent_id":"a","name":"x","capabilities":[],"cost_per_task":1,"capacity_per_hour":99999999999}"#,
                422,
                "capacity_per_hour",
            ),
            (
                r#"{"agent_id":"a","name":"x","capabilities":[],"cost_per_task":1,"availability":"gone"}"#,
                422,
                "availability",
            ),
        ] {
            let document = register(body).expect_err(body).document();
            assert_eq!((document.status, document.field.as_deref()), (status, Some(field)), "{body}");
        }
    }

    #[test]
    fn put_takes_the_id_of_the_path() {
        let replace = |body: &str, id: &str| {
            parse_object::<RegistrationBody>(body.as_bytes())
                .unwrap()
                .replacement(|| Ok(AgentId::from_stored(id)))
                .map(|registration| registration.agent_id.to_string())
        };
        assert_eq!(replace(MINIMAL, "thon"), Ok("thon".into()));
        assert_eq!(replace(MINIMAL, "other").unwrap_err().document().code, "invalid_agent_id");
        let without = r#"{"name":"Thon","capabilities":[],"cost_per_task":"18.5"}"#;
        assert_eq!(replace(without, "other"), Ok("other".into()));
    }

    #[test]
    fn a_patch_tells_absent_from_null() {
        let patch = |body: &str| parse_object::<PatchBody>(body.as_bytes()).and_then(PatchBody::patch);
        assert_eq!(patch("{}").unwrap(), AgentPatch::default());
        assert_eq!(patch(r#"{"billing_notes":null}"#).unwrap().billing_notes, Some(None));
        assert_eq!(patch(r#"{"capabilities":[]}"#).unwrap().capabilities, Some(Capabilities::default()));
        assert_eq!(patch(r#"{"status":"busy"}"#).unwrap().availability, Some(AvailabilityStatus::Busy));
        assert_eq!(patch(r#"{"name":null}"#).unwrap_err().document().status, 400);
        assert_eq!(patch(r#"{"status":"busy","availability":"busy"}"#).unwrap_err().document().status, 400);
        assert_eq!(patch(r#"{"status":"gone"}"#).unwrap_err().document().code, "invalid_status");
    }
}
