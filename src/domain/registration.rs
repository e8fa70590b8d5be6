//! What an agent says of itself when it registers or changes: values checked at the edge, before any rule is asked.

use super::agent::{AvailabilityStatus, Capabilities, Capacity, Ttl};
use super::ids::{AgentId, Currency};
use super::json::JsonObject;
use super::money::Money;
use super::refusal::Invalid;

/// The longest billing notes, in bytes.
pub const MAX_NOTES_BYTES: usize = 4 * 1024;

/// What an agent says of itself when it registers; every value checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// Its id.
    pub agent_id: AgentId,
    /// Its name, see [`parse_name`].
    pub name: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Price of one task, see [`parse_cost`].
    pub cost_per_task: Money,
    /// The currency of that price.
    pub currency: Currency,
    /// Tasks an hour.
    pub capacity_per_hour: Capacity,
    /// Whether it takes work.
    pub availability: AvailabilityStatus,
    /// See [`parse_notes`].
    pub billing_notes: Option<String>,
    /// Its own data.
    pub metadata: JsonObject,
    /// The lease; the node's default when absent.
    pub ttl: Option<Ttl>,
}

/// A change of an agent; absent is unchanged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AgentPatch {
    /// A new name.
    pub name: Option<String>,
    /// A new price.
    pub cost_per_task: Option<Money>,
    /// A new currency.
    pub currency: Option<Currency>,
    /// New notes; `Some(None)` removes them.
    pub billing_notes: Option<Option<String>>,
    /// A new availability.
    pub availability: Option<AvailabilityStatus>,
    /// A new capacity.
    pub capacity_per_hour: Option<Capacity>,
    /// A new set of capabilities, replaced whole.
    pub capabilities: Option<Capabilities>,
    /// New metadata, replaced whole.
    pub metadata: Option<JsonObject>,
    /// A new lease time.
    pub ttl: Option<Ttl>,
}

/// Checks an agent's name: 1 to 255 characters.
pub fn parse_name(name: &str) -> Result<String, Invalid> {
    if (1..=255).contains(&name.chars().count()) {
        Ok(name.to_owned())
    } else {
        Err(Invalid::new("name", "must have 1 to 255 characters"))
    }
}

/// Checks billing notes: at most 4 KiB.
pub fn parse_notes(notes: &str) -> Result<String, Invalid> {
    if notes.len() <= MAX_NOTES_BYTES {
        Ok(notes.to_owned())
    } else {
        Err(Invalid::new("billing_notes", "must be at most 4096 bytes"))
    }
}

/// Checks a price: 0 or more.
pub fn parse_cost(cost: Money) -> Result<Money, Invalid> {
    if cost.is_negative() { Err(Invalid::new("cost_per_task", "must be 0 or more")) } else { Ok(cost) }
}
