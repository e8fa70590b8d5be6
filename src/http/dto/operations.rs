//! The server's own state on the wire.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Shown, schema};
use crate::domain::{NodeId, Timestamp};

/// Whether the process, or its store, answers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `alive` or `ready`.
    pub(crate) status: &'static str,
}

/// The whole state on one screen.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ServerStatus)]
pub(crate) struct StatusShown<'a> {
    pub(crate) version: &'a str,
    #[schema(value_type = schema::NodeId)]
    pub(crate) node_id: Shown<NodeId>,
    pub(crate) uptime_seconds: u64,
    /// The addresses that were chosen.
    pub(crate) listen: &'a [String],
    #[schema(inline)]
    pub(crate) store: StoreShown<'a>,
    #[schema(inline)]
    pub(crate) sinks: Sinks,
}

/// The local store.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoreShown<'a> {
    /// `null` when everything is in memory.
    #[schema(value_type = Option<String>, required = true)]
    pub(crate) path: Option<std::borrow::Cow<'a, str>>,
    pub(crate) bytes: u64,
    pub(crate) agents: u64,
    pub(crate) transactions: u64,
    pub(crate) events: u64,
}

/// Every sink.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Sinks {
    pub(crate) redis: SinkShown,
    pub(crate) postgres: SinkShown,
}

/// One sink.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SinkStatus)]
pub(crate) struct SinkShown {
    /// `off` when it is not configured.
    pub(crate) state: &'static str,
    /// What it has not acknowledged yet.
    pub(crate) backlog: u64,
    /// The age of the oldest of that.
    #[schema(minimum = 0)]
    pub(crate) lag_seconds: f64,
    pub(crate) parked: u64,
    #[schema(required = true)]
    pub(crate) last_error: Option<String>,
    #[schema(value_type = Option<schema::Time>, required = true)]
    pub(crate) last_success_at: Option<Shown<Timestamp>>,
}

impl SinkShown {
    /// A sink that is not configured.
    pub(crate) fn off() -> Self {
        Self { state: "off", backlog: 0, lag_seconds: 0.0, parked: 0, last_error: None, last_success_at: None }
    }
}

/// An entry that a sink refuses for its own content.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ParkedEntry {
    /// The agent or the event that is set aside.
    pub(crate) id: String,
    /// Why.
    pub(crate) reason: String,
    /// Since when.
    #[schema(value_type = schema::Time)]
    pub(crate) parked_at: Shown<Timestamp>,
}
