//! The server's own state: health, status, metrics, sinks, and the description of this API.

use std::str::FromStr;

use axum::extract::State;
use axum::http::HeaderValue;

use crate::http::Api;
use crate::http::call::{Call, expect_nothing};
use crate::http::dto::operations::{Health, ParkedEntry, SinkShown, Sinks, StatusShown, StoreShown};
use crate::http::dto::{List, Shown};
use crate::http::openapi;
use crate::http::problem::{Code, Problem};
use crate::http::query;
use crate::http::reply::{Answer, Reply, read_aside};

/// The central systems that there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Redis,
    Postgres,
}

impl FromStr for Sink {
    type Err = Problem;

    fn from_str(name: &str) -> Result<Self, Problem> {
        match name {
            "redis" => Ok(Self::Redis),
            "postgres" => Ok(Self::Postgres),
            _ => Err(Problem::new(Code::NotFound, "there is no such sink; there are redis and postgres")),
        }
    }
}

impl Sink {
    fn of(call: &Call) -> Result<Self, Problem> {
        call.path_text("sink").unwrap_or_default().parse()
    }

    fn not_configured(self) -> Problem {
        let name = match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        };
        Problem::new(Code::NotFound, format!("the sink {name} is not configured"))
    }
}

/// Whether the process answers.
#[utoipa::path(
    get, path = "/livez", tag = "operations",
    responses((status = 200, description = "It does", body = Health))
)]
pub(crate) async fn livez(call: Call) -> Answer {
    call.no_query()?;

    Reply::json(&Health { status: "alive" }).into()
}

/// Whether the local store answers.
#[utoipa::path(
    get, path = "/readyz", tag = "operations",
    params(("sync" = Option<String>, Query, pattern = "^(0|1|true|false)$",
        description = "`1` asks for the configured central systems too")),
    responses((status = 200, description = "It does", body = Health))
)]
pub(crate) async fn readyz(State(api): State<Api>, call: Call) -> Answer {
    let mut parameters = call.query()?;
    let sync = parameters.optional("sync")?;
    parameters.finish()?;
    let words = [("0", false), ("1", true), ("false", false), ("true", true)];
    // No sink is configured, so that none can be missing: the answer is the store's alone.
    sync.map(|value| value.one_of(&words)).transpose()?;

    read_aside(move || api.engine.ready()).await?;
    Reply::json(&Health { status: "ready" }).into()
}

/// Metrics in the text exposition format.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain; version=0.0.4; charset=utf-8"))
)]
pub(crate) async fn metrics(State(api): State<Api>, call: Call) -> Answer {
    call.no_query()?;

    let text = read_aside(move || Ok::<_, Problem>(api.metrics.render(&api.engine))).await?;
    Reply::text(text, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8")).into()
}

/// What is healthy and what is not yet central.
#[utoipa::path(
    get, path = "/v1/status", tag = "operations",
    responses((status = 200, description = "The state of this server", body = StatusShown))
)]
pub(crate) async fn status(State(api): State<Api>, call: Call) -> Answer {
    call.no_query()?;

    let store = api.engine.status()?;
    let listen = api.info.listen.load();
    Reply::json(&StatusShown {
        version: api.info.version,
        node_id: Shown(store.node_id),
        uptime_seconds: api.info.started.elapsed().as_secs(),
        listen: &listen,
        store: StoreShown {
            path: store.path.as_ref().map(|path| path.to_string_lossy()),
            bytes: store.bytes,
            agents: store.agents,
            transactions: store.transactions,
            events: store.events,
        },
        sinks: Sinks { redis: SinkShown::off(), postgres: SinkShown::off() },
    })
    .into()
}

/// Try a sink's parked entries again.
#[utoipa::path(
    post, path = "/v1/sync/{sink}/retry", tag = "operations",
    params(
        ("sink" = String, Path, description = "`redis` or `postgres`"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 printable ASCII characters"),
    ),
    request_body(content = Option<crate::http::dto::schema::Nothing>, content_type = "application/json"),
    responses(
        (status = 202, description = "They will be tried"),
        (status = 404, description = "`not_found`: there is no such sink, or it is not configured"),
    )
)]
pub(crate) async fn retry_sink(call: Call) -> Answer {
    command_sink(call).await
}

/// Send everything to a sink again.
#[utoipa::path(
    post, path = "/v1/sync/{sink}/resync", tag = "operations",
    params(
        ("sink" = String, Path, description = "`redis` or `postgres`"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 printable ASCII characters"),
    ),
    request_body(content = Option<crate::http::dto::schema::Nothing>, content_type = "application/json"),
    responses(
        (status = 202, description = "It will be sent"),
        (status = 404, description = "`not_found`: there is no such sink, or it is not configured"),
    )
)]
pub(crate) async fn resync_sink(call: Call) -> Answer {
    command_sink(call).await
}

async fn command_sink(mut call: Call) -> Answer {
    let body = call.optional_body().await?;
    call.no_query()?;
    let key = call.idempotency_key()?;
    expect_nothing(&body)?;
    call.bind(key, &body)?;
    Err(Sink::of(&call)?.not_configured())
}

/// What a sink refuses for its own content.
#[utoipa::path(
    get, path = "/v1/sync/{sink}/parked", tag = "operations",
    params(
        ("sink" = String, Path, description = "`redis` or `postgres`"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "100 when absent"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "One page; empty for a sink that is not configured", body = List<ParkedEntry>),
        (status = 404, description = "`not_found`: there is no such sink"),
    )
)]
pub(crate) async fn parked_entries(call: Call) -> Answer {
    let mut parameters = call.query()?;
    let limit = parameters.optional("limit")?;
    let cursor = parameters.optional("cursor")?;
    parameters.finish()?;
    query::limit(limit)?;
    if cursor.is_some() {
        return Err(Problem::invalid("cursor", "is not one that this list gave out"));
    }
    Sink::of(&call)?;

    Reply::json(&List::<ParkedEntry> { items: Vec::new(), next_cursor: None }).into()
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations",
    responses((status = 200, description = "The OpenAPI document", body = serde_json::Value))
)]
pub(crate) async fn openapi_document(call: Call) -> Answer {
    call.no_query()?;

    Reply::text(openapi::document_text(), HeaderValue::from_static("application/json")).into()
}
