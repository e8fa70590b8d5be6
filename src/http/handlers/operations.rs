//! The server's own state: health, status, metrics, sinks, and the description of this API.

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode};

use crate::engine::PageRequest;
use crate::engine::replica::{Sink, SinkRequest, SinkState};
use crate::http::Api;
use crate::http::call::{Call, expect_nothing};
use crate::http::dto::operations::{Health, ParkedShown, SinkShown, Sinks, StatusShown, StoreShown};
use crate::http::dto::{List, Shown, schema};
use crate::http::openapi;
use crate::http::problem::{Code, Problem};
use crate::http::query::{self, Value};
use crate::http::reply::{Answer, Reply, read_aside};

/// The sink that a path names.
fn sink_of(call: &Call) -> Result<Sink, Problem> {
    let name = call.parameter().unwrap_or_default();
    Sink::parse(name).ok_or_else(|| Problem::new(Code::NotFound, "there is no such sink; there are redis and postgres"))
}

/// Whether the process answers.
#[utoipa::path(
    get, path = "/livez", tag = "operations",
    responses((status = 200, description = "It does", body = Health))
)]
pub(crate) async fn livez(_: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;

    Reply::json(&Health { status: "alive" }).into()
}

/// Whether the local store answers.
#[utoipa::path(
    get, path = "/readyz", tag = "operations",
    params(("sync" = Option<String>, Query, pattern = "^(0|1|true|false)$",
        description = "`1` asks for the configured central systems too")),
    responses(
        (status = 200, description = "It does", body = Health),
        (status = 503, description = "`store_unavailable`: it does not; or, with `sync=1`, a sink is not reached"),
    )
)]
pub(crate) async fn readyz(api: Arc<Api>, call: Call) -> Answer {
    let mut parameters = call.query()?;
    let sync = parameters.optional("sync")?;
    parameters.finish()?;
    let words = [("0", false), ("1", true), ("false", false), ("true", true)];
    let sync = sync.map(|value| value.one_of(&words)).transpose()?.unwrap_or(false);

    let engine = api.engine.clone();
    read_aside(move || engine.ready()).await?;
    if sync {
        require_central(&api)?;
    }
    Reply::json(&Health { status: "ready" }).into()
}

/// Every configured sink is connected, whatever it still lacks.
fn require_central(api: &Api) -> Result<(), Problem> {
    for sink in Sink::ALL {
        let status = api.engine.sinks().status(sink);
        match status.state {
            SinkState::Off | SinkState::CatchingUp | SinkState::Live => {}
            SinkState::Connecting | SinkState::Backoff | SinkState::Halted => {
                let reason = status.last_error.as_deref().unwrap_or("it has not been reached yet");
                let detail = format!("the sink {} is {}: {reason}", sink.as_str(), status.state.as_str());
                return Err(Problem::new(Code::StoreUnavailable, detail));
            }
        }
    }
    Ok(())
}

/// Metrics in the text exposition format.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain; version=0.0.4; charset=utf-8"))
)]
pub(crate) async fn metrics(api: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;

    let text = read_aside(move || Ok::<_, Problem>(api.metrics.render(&api.engine))).await?;
    Reply::text(text, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8")).into()
}

/// What is healthy and what is not yet central.
#[utoipa::path(
    get, path = "/v1/status", tag = "operations",
    responses((status = 200, description = "The state of this server", body = StatusShown))
)]
pub(crate) async fn status(api: Arc<Api>, call: Call) -> Answer {
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
            last_error: store.failure,
        },
        sinks: Sinks {
            redis: SinkShown::of(&api.engine.sinks().status(Sink::Redis)),
            postgres: SinkShown::of(&api.engine.sinks().status(Sink::Postgres)),
        },
    })
    .into()
}

/// Try a sink's parked entries again.
#[utoipa::path(
    post, path = "/v1/sync/{sink}/retry", tag = "operations",
    params(
        ("sink" = String, Path, description = "`redis` or `postgres`"),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body(content = Option<crate::http::dto::schema::Nothing>, content_type = "application/json"),
    responses(
        (status = 202, description = "They will be tried"),
        (status = 404, description = "`not_found`: there is no such sink, or it is not configured"),
    )
)]
pub(crate) async fn retry_sink(api: Arc<Api>, call: Call) -> Answer {
    ask_sink(&api, call, SinkRequest::Retry).await
}

/// Send everything to a sink again.
#[utoipa::path(
    post, path = "/v1/sync/{sink}/resync", tag = "operations",
    params(
        ("sink" = String, Path, description = "`redis` or `postgres`"),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body(content = Option<crate::http::dto::schema::Nothing>, content_type = "application/json"),
    responses(
        (status = 202, description = "It will be sent"),
        (status = 404, description = "`not_found`: there is no such sink, or it is not configured"),
    )
)]
pub(crate) async fn resync_sink(api: Arc<Api>, call: Call) -> Answer {
    ask_sink(&api, call, SinkRequest::Resync).await
}

/// Asking twice comes to the same as asking once, so an idempotency key is only checked.
async fn ask_sink(api: &Api, mut call: Call, request: SinkRequest) -> Answer {
    let body = call.optional_body().await?;
    call.no_query()?;
    let key = call.idempotency_key()?;
    expect_nothing(&body)?;
    call.bind(key, &body)?;
    let sink = sink_of(&call)?;
    if api.engine.sinks().status(sink).state == SinkState::Off {
        return Err(Problem::new(Code::NotFound, format!("the sink {} is not configured", sink.as_str())));
    }
    api.engine.sinks().request(sink, request);
    Reply::empty(StatusCode::ACCEPTED).into()
}

/// What a sink refuses for its own content.
#[utoipa::path(
    get, path = "/v1/sync/{sink}/parked", tag = "operations",
    params(
        ("sink" = String, Path, description = "`redis` or `postgres`"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "100 when absent"),
        ("cursor" = Option<schema::ParkedCursor>, Query),
    ),
    responses(
        (status = 200, description = "One page; empty for a sink that is not configured", body = List<ParkedShown>),
        (status = 404, description = "`not_found`: there is no such sink"),
    )
)]
pub(crate) async fn parked_entries(api: Arc<Api>, call: Call) -> Answer {
    let mut parameters = call.query()?;
    let limit = parameters.optional("limit")?;
    let cursor = parameters.optional("cursor")?;
    parameters.finish()?;
    let limit = query::limit(limit)?;
    let cursor = cursor.map(Value::into_text);
    let sink = sink_of(&call)?;

    let page = read_aside(move || api.engine.parked(sink, PageRequest { limit, cursor: cursor.as_deref() })).await?;
    let items: Vec<ParkedShown> = page.items.iter().map(ParkedShown::of).collect();
    Reply::json(&List { items, next_cursor: page.next_cursor }).into()
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations",
    responses((status = 200, description = "The OpenAPI document", body = serde_json::Value))
)]
pub(crate) async fn openapi_document(_: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;

    Reply::text(openapi::DOCUMENT, HeaderValue::from_static("application/json")).into()
}
