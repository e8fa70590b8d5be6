//! The server's own state on the wire.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Shown, schema};
use crate::domain::{NodeId, Timestamp};
use crate::engine::replica::{ParkedEntry, ParkedKey, SinkStatus};

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
    /// Why writes are refused at present, if they are.
    #[schema(required = true)]
    pub(crate) last_error: Option<String>,
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
    /// `off` when it is not configured; else `connecting`, `catching_up`, `live`, `backoff` or `halted`.
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
    /// What an operator should know besides, such as agents that were registered anew elsewhere.
    pub(crate) notes: Vec<String>,
}

impl SinkShown {
    pub(crate) fn of(status: &SinkStatus) -> Self {
        Self {
            state: status.state.as_str(),
            backlog: status.backlog,
            lag_seconds: status.lag.as_secs_f64(),
            parked: status.parked,
            last_error: status.last_error.clone(),
            last_success_at: status.last_success_at.map(Shown),
            notes: status.notes.clone(),
        }
    }
}

/// An entry that a sink refuses for its own content.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ParkedEntry)]
pub(crate) struct ParkedShown {
    /// What is set aside: `seq:` and the place of an event in this node's ledger log, `copy:` and the number of another
    /// node's event, or `agent:` and an agent's id.
    pub(crate) entry: String,
    /// Why, in the sink's words.
    pub(crate) reason: String,
    /// Why, as the sink's code: an SQLSTATE, the first word of a Redis error, or `transaction_id_conflict`.
    pub(crate) code: String,
    /// Since when.
    #[schema(value_type = schema::Time)]
    pub(crate) parked_at: Shown<Timestamp>,
    /// How often it was tried.
    pub(crate) attempts: u32,
}

impl ParkedShown {
    pub(crate) fn of(parked: &ParkedEntry) -> Self {
        Self {
            entry: match &parked.key {
                ParkedKey::Seq(seq) => format!("seq:{seq}"),
                ParkedKey::Copy(number) => format!("copy:{number}"),
                ParkedKey::Agent(agent_id) => format!("agent:{agent_id}"),
            },
            reason: parked.reason.clone(),
            code: parked.code.clone(),
            parked_at: Shown(parked.parked_at),
            attempts: parked.attempts,
        }
    }
}
