//! The registry.

use std::sync::Arc;

use axum::http::StatusCode;

use crate::domain::ranking::RankBy;
use crate::engine::{AgentFilter, Error, PageRequest};
use crate::http::Api;
use crate::http::call::{Call, expect_nothing};
use crate::http::dto::agents::{
    Heartbeat, OutcomeBody, PatchBody, Profile, RegistrationBody, ReputationBody, ReputationShown, balances,
};
use crate::http::dto::{List, schema};
use crate::http::headers;
use crate::http::json::parse_object;
use crate::http::query;
use crate::http::reply::{Answer, Reply, read_aside};
use crate::metrics::RegisterResult;

/// Register an agent.
#[utoipa::path(
    post, path = "/v1/agents", tag = "registry",
    params(("Idempotency-Key" = Option<schema::IdempotencyKey>, Header)),
    request_body = RegistrationBody,
    responses(
        (status = 201, description = "Registered", body = Profile, headers(
            ("Location" = String), ("ETag" = String), ("Idempotent-Replayed" = String))),
        (status = 409, description = "`agent_already_registered`: a live agent has the id"),
    )
)]
pub(crate) async fn register_agent(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.json_body().await?;
    call.no_query()?;
    let key = call.idempotency_key()?;
    let registration = parse_object::<RegistrationBody>(body.bytes())
        .and_then(RegistrationBody::registration)
        .inspect_err(|_| api.metrics.registered(RegisterResult::Error))?;
    let once = call.bind(key, &body)?;

    let receipt = api.engine.register(registration, once).await?;
    let location = format!("/v1/agents/{}", receipt.value.agent.agent_id);
    Reply::json(&Profile::from(&receipt.value))
        .tagged(receipt.value.agent.revision)
        .created(receipt.created, &location)
        .replayed(receipt.replayed)
        .into()
}

/// Register or replace an agent.
#[utoipa::path(
    put, path = "/v1/agents/{id}", tag = "registry",
    params(
        ("id" = schema::AgentId, Path),
        ("If-Match" = Option<schema::EntityTags>, Header),
    ),
    request_body = ref("#/components/schemas/Replacement"),
    responses(
        (status = 200, description = "Replaced", body = Profile, headers(("ETag" = String))),
        (status = 201, description = "Registered", body = Profile, headers(("Location" = String), ("ETag" = String))),
        (status = 404, description = "`agent_not_found`: no agent can have this id"),
        (status = 412, description = "`revision_mismatch`"),
    )
)]
pub(crate) async fn replace_agent(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.json_body().await?;
    call.no_query()?;
    let when = headers::precondition(call.headers())?;
    let registration = parse_object::<RegistrationBody>(body.bytes())
        .and_then(|body| body.replacement(|| call.agent_id()))
        .inspect_err(|_| api.metrics.registered(RegisterResult::Error))?;

    let receipt = api.engine.replace(registration, when).await?;
    let location = format!("/v1/agents/{}", receipt.value.agent.agent_id);
    Reply::json(&Profile::from(&receipt.value))
        .tagged(receipt.value.agent.revision)
        .created(receipt.created, &location)
        .into()
}

/// One agent, also when it has expired.
#[utoipa::path(
    get, path = "/v1/agents/{id}", tag = "registry",
    params(
        ("id" = schema::AgentId, Path),
        ("If-None-Match" = Option<schema::EntityTags>, Header),
    ),
    responses(
        (status = 200, description = "The agent", body = Profile, headers(("ETag" = String))),
        (status = 304, description = "The agent has a revision that the request named", headers(("ETag" = String))),
        (status = 404, description = "`agent_not_found`"),
    )
)]
pub(crate) async fn get_agent(api: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;
    let unchanged = headers::unchanged_since(call.headers())?;
    let id = call.agent_id()?;

    let glimpse = api.engine.glimpse(&id);
    let (text, revision) = match glimpse.and_then(|glimpse| api.profiles.answer(&id, glimpse)) {
        Some(kept) => kept,
        None => {
            let profile = api.engine.agent(&id)?;
            (api.profiles.write(glimpse, &profile), profile.agent.revision)
        }
    };
    let reply = if unchanged(revision) { Reply::empty(StatusCode::NOT_MODIFIED) } else { Reply::json_text(text) };
    reply.tagged(revision).into()
}

/// Change an agent.
#[utoipa::path(
    patch, path = "/v1/agents/{id}", tag = "registry",
    params(
        ("id" = schema::AgentId, Path),
        ("If-Match" = Option<schema::EntityTags>, Header),
    ),
    request_body = PatchBody,
    responses(
        (status = 200, description = "Changed, and its lease renewed", body = Profile, headers(("ETag" = String))),
        (status = 404, description = "`agent_not_found`"),
        (status = 409, description = "`agent_not_local`: it belongs to another node"),
        (status = 412, description = "`revision_mismatch`"),
    )
)]
pub(crate) async fn update_agent(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.json_body().await?;
    call.no_query()?;
    let when = headers::precondition(call.headers())?;
    let patch = parse_object::<PatchBody>(body.bytes())?.patch()?;
    let id = call.agent_id()?;

    let profile = api.engine.update(id, patch, when).await?;
    Reply::json(&Profile::from(&profile)).tagged(profile.agent.revision).into()
}

/// Unregister an agent.
#[utoipa::path(
    delete, path = "/v1/agents/{id}", tag = "registry",
    params(
        ("id" = schema::AgentId, Path),
        ("If-Match" = Option<schema::EntityTags>, Header),
    ),
    responses(
        (status = 204, description = "Unregistered"),
        (status = 404, description = "`agent_not_found`"),
        (status = 409, description = "`agent_not_local`: it belongs to another node"),
        (status = 412, description = "`revision_mismatch`"),
    )
)]
pub(crate) async fn unregister_agent(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.optional_body().await?;
    call.no_query()?;
    let when = headers::precondition(call.headers())?;
    expect_nothing(&body)?;
    let id = call.agent_id()?;

    api.engine.unregister(id, when).await?;
    Reply::empty(StatusCode::NO_CONTENT).into()
}

/// Renew an agent's lease. Not a durable write.
#[utoipa::path(
    post, path = "/v1/agents/{id}/heartbeat", tag = "registry",
    params(("id" = schema::AgentId, Path)),
    request_body(content = Option<schema::Nothing>, content_type = "application/json"),
    responses(
        (status = 200, description = "Renewed; an expired agent is live again", body = Heartbeat),
        (status = 404, description = "`agent_not_found`"),
        (status = 409, description = "`agent_not_local`: it belongs to another node"),
    )
)]
pub(crate) async fn heartbeat_agent(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.optional_body().await?;
    call.no_query()?;
    headers::no_idempotency_key(call.headers(), "a heartbeat can be repeated as it is")?;
    expect_nothing(&body)?;
    let id = call.agent_id()?;

    let expires_at = api.engine.heartbeat(&id).await?;
    Reply::json(&Heartbeat::from(expires_at)).into()
}

/// Say what came of using an agent.
#[utoipa::path(
    post, path = "/v1/agents/{id}/outcomes", tag = "registry",
    params(
        ("id" = schema::AgentId, Path),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body = OutcomeBody,
    responses(
        (status = 200, description = "The reputation as it is now", body = ReputationShown,
            headers(("Idempotent-Replayed" = String))),
        (status = 404, description = "`agent_not_found`"),
    )
)]
pub(crate) async fn observe_outcome(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.json_body().await?;
    call.no_query()?;
    let key = call.idempotency_key()?;
    let (success, weight) = parse_object::<OutcomeBody>(body.bytes())?.outcome()?;
    let once = call.bind(key, &body)?;
    let id = call.agent_id()?;

    let receipt = api.engine.observe_outcome(id, success, weight, once).await?;
    Reply::json(&ReputationShown::from(receipt.value)).replayed(receipt.replayed).into()
}

/// Correct an agent's score.
#[utoipa::path(
    post, path = "/v1/agents/{id}/reputation", tag = "registry",
    params(
        ("id" = schema::AgentId, Path),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body = ReputationBody,
    responses(
        (status = 200, description = "The reputation as it is now", body = ReputationShown,
            headers(("Idempotent-Replayed" = String))),
        (status = 404, description = "`agent_not_found`"),
    )
)]
pub(crate) async fn adjust_reputation(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.json_body().await?;
    call.no_query()?;
    let key = call.idempotency_key()?;
    let delta = parse_object::<ReputationBody>(body.bytes())?.delta()?;
    let once = call.bind(key, &body)?;
    let id = call.agent_id()?;

    let receipt = api.engine.adjust_reputation(id, delta, once).await?;
    Reply::json(&ReputationShown::from(receipt.value)).replayed(receipt.replayed).into()
}

/// Agents, by id unless `sort_by` says otherwise.
#[utoipa::path(
    get, path = "/v1/agents", tag = "registry",
    params(
        ("capability" = Option<schema::Capability>, Query),
        ("availability" = Option<schema::Availability>, Query),
        ("sort_by" = Option<String>, Query, pattern = "^(score|cost|availability)$",
            description = "`score`: score down, cost up. `cost`: cost up, score down. `availability`: online, busy, \
                maintenance, offline, then capacity down, score down. Ties by id."),
        ("include_expired" = Option<bool>, Query, description = "false when absent"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "100 when absent"),
        ("cursor" = Option<schema::AgentCursor>, Query),
    ),
    responses((status = 200, description = "One page", body = List<Profile>))
)]
pub(crate) async fn list_agents(api: Arc<Api>, call: Call) -> Answer {
    let mut parameters = call.query()?;
    let capability = parameters.optional("capability")?;
    let availability = parameters.optional("availability")?;
    let sort_by = parameters.optional("sort_by")?;
    let include_expired = parameters.optional("include_expired")?;
    let limit = parameters.optional("limit")?;
    let cursor = parameters.optional("cursor")?;
    parameters.finish()?;

    let orders = [("score", RankBy::Score), ("cost", RankBy::Cost), ("availability", RankBy::Availability)];
    let filter = AgentFilter {
        capability: capability.map(|value| value.capability()).transpose()?,
        availability: availability.map(|value| value.availability()).transpose()?,
        sort_by: sort_by.map_or(Ok(RankBy::AgentId), |value| value.one_of(&orders))?,
        include_expired: include_expired.map_or(Ok(false), |value| value.flag())?,
    };
    let limit = query::limit(limit)?;
    let cursor = cursor.map(query::Value::into_text);

    let reply = read_aside(move || {
        let page = api.engine.agents(&filter, PageRequest { limit, cursor: cursor.as_deref() })?;
        let items = page.items.iter().map(Profile::from).collect();
        Ok::<_, Error>(Reply::json(&List { items, next_cursor: page.next_cursor }))
    });
    reply.await?.into()
}

/// How many live agents have each capability.
#[utoipa::path(
    get, path = "/v1/capabilities", tag = "registry",
    responses((status = 200, description = "Capability to number of agents", body = schema::CapabilityCounts))
)]
pub(crate) async fn count_capabilities(api: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;

    Reply::json(&api.engine.capabilities()?).into()
}

/// What an agent has paid and earned, by currency.
#[utoipa::path(
    get, path = "/v1/agents/{id}/balance", tag = "registry",
    params(("id" = schema::AgentId, Path)),
    responses(
        (status = 200, description = "Currency to six sums; empty for an unknown agent", body = schema::Balances),
        (status = 404, description = "`agent_not_found`: no agent can have this id"),
    )
)]
pub(crate) async fn agent_balance(api: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;
    let id = call.agent_id()?;

    // In as many currencies as anybody has named.
    let reply = read_aside(move || Ok::<_, Error>(Reply::json(&balances(&api.engine.balance(&id)?))));
    reply.await?.into()
}
