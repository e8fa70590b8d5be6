//! The ledger: one transaction at a time, and lists of them.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::domain::{Decision, Role, TransactionStatus};
use crate::engine::{Error, PageRequest, TransactionFilter};
use crate::http::Api;
use crate::http::call::{Call, expect_nothing, parse_or_default};
use crate::http::dto::transactions::{
    CancelBody, DisputeBody, EventShown, EvidenceBody, RecordBody, ResolveBody, Settlement, TransactionShown,
};
use crate::http::dto::{Items, List, schema};
use crate::http::json::parse_object;
use crate::http::problem::{Code, Problem};
use crate::http::query::{self, Query, Value};
use crate::http::reply::{Answer, Reply, read_aside};

/// Record a transaction.
#[utoipa::path(
    post, path = "/v1/transactions", tag = "ledger",
    params(("Idempotency-Key" = Option<schema::IdempotencyKey>, Header)),
    request_body = RecordBody,
    responses(
        (status = 200, description = "It was recorded before, with the same facts", body = TransactionShown,
            headers(("Idempotent-Replayed" = String))),
        (status = 201, description = "Recorded", body = TransactionShown,
            headers(("Location" = String), ("Idempotent-Replayed" = String))),
        (status = 409, description = "`transaction_id_conflict`: the id is taken, with other facts"),
    )
)]
pub(crate) async fn record_transaction(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.json_body().await?;
    call.no_query()?;
    let key = call.idempotency_key()?;
    let transaction = parse_object::<RecordBody>(body.bytes())?.transaction()?;
    let once = call.bind(key, &body)?;

    let receipt = api.engine.record(transaction, once).await?;
    let location = format!("/v1/transactions/{}", receipt.value.transaction_id);
    Reply::json(&TransactionShown::from(&receipt.value))
        .created(receipt.created, &location)
        .replayed(receipt.replayed)
        .into()
}

/// One transaction.
#[utoipa::path(
    get, path = "/v1/transactions/{id}", tag = "ledger",
    params(("id" = schema::TransactionId, Path)),
    responses(
        (status = 200, description = "The transaction", body = TransactionShown),
        (status = 404, description = "`transaction_not_found`"),
    )
)]
pub(crate) async fn get_transaction(api: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;
    let id = call.transaction_id()?;

    Reply::json(&TransactionShown::from(&api.engine.transaction(&id)?)).into()
}

/// Transactions, by `created_at` then id.
#[utoipa::path(
    get, path = "/v1/transactions", tag = "ledger",
    params(
        ("agent" = Option<schema::AgentId>, Query),
        ("role" = Option<String>, Query, pattern = "^(payer|provider)$", description = "Which side `agent` is on"),
        ("status" = Option<schema::Status>, Query),
        ("capability" = Option<schema::Capability>, Query),
        ("since" = Option<schema::TimeInput>, Query, description = "Inclusive"),
        ("until" = Option<schema::TimeInput>, Query, description = "Exclusive"),
        ("order" = Option<String>, Query, pattern = "^(asc|desc)$", description = "`asc` when absent"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "100 when absent"),
        ("cursor" = Option<schema::TransactionCursor>, Query),
    ),
    responses((status = 200, description = "One page", body = List<TransactionShown>))
)]
pub(crate) async fn list_transactions(api: Arc<Api>, call: Call) -> Answer {
    let mut parameters = call.query()?;
    let limit = parameters.optional("limit")?;
    let cursor = parameters.optional("cursor")?;
    let filter = parse_filter(parameters)?;
    let limit = query::limit(limit)?;
    let cursor = cursor.map(Value::into_text);

    let reply = read_aside(move || {
        let page = api.engine.transactions(&filter, PageRequest { limit, cursor: cursor.as_deref() })?;
        let items = page.items.iter().map(TransactionShown::from).collect();
        Ok::<_, Error>(Reply::json(&List { items, next_cursor: page.next_cursor }))
    });
    reply.await?.into()
}

/// The filters that lists and exports share; takes all that is left of the query.
pub(super) fn parse_filter(mut parameters: Query) -> Result<TransactionFilter, Problem> {
    let agent = parameters.optional("agent")?;
    let role = parameters.optional("role")?;
    let status = parameters.optional("status")?;
    let capability = parameters.optional("capability")?;
    let since = parameters.optional("since")?;
    let until = parameters.optional("until")?;
    let order = parameters.optional("order")?;
    parameters.finish()?;

    let role = role.map(|value| value.one_of(&[("payer", Role::Payer), ("provider", Role::Provider)])).transpose()?;
    if role.is_some() && agent.is_none() {
        return Err(Problem::invalid("role", "says which side `agent` is on, and so needs `agent`"));
    }
    let statuses = TransactionStatus::ALL.map(|status| (status.as_str(), status));
    Ok(TransactionFilter {
        agent: agent.map(|value| value.agent_id()).transpose()?,
        role,
        status: status.map(|value| value.one_of(&statuses)).transpose()?,
        capability: capability.map(|value| value.capability()).transpose()?,
        since: since.map(|value| value.time()).transpose()?,
        until: until.map(|value| value.time()).transpose()?,
        descending: order.map_or(Ok(false), |value| value.one_of(&[("asc", false), ("desc", true)]))?,
    })
}

/// Settle a pending transaction.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/settle", tag = "ledger",
    params(
        ("id" = schema::TransactionId, Path),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body(content = Option<schema::Nothing>, content_type = "application/json"),
    responses(
        (status = 200, description = "Settled", body = TransactionShown, headers(("Idempotent-Replayed" = String))),
        (status = 404, description = "`transaction_not_found`"),
        (status = 409, description = "`invalid_transaction_state`: only from `pending`"),
    )
)]
pub(crate) async fn settle_transaction(api: Arc<Api>, mut call: Call) -> Answer {
    let body = call.optional_body().await?;
    call.no_query()?;
    let key = call.idempotency_key()?;
    expect_nothing(&body)?;
    let once = call.bind(key, &body)?;
    let id = call.transaction_id()?;

    let receipt = api.engine.decide(id, Decision::Settle, once).await?;
    Reply::json(&TransactionShown::from(&receipt.value)).replayed(receipt.replayed).into()
}

/// Cancel a pending transaction.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/cancel", tag = "ledger",
    params(
        ("id" = schema::TransactionId, Path),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body(content = Option<CancelBody>, content_type = "application/json"),
    responses(
        (status = 200, description = "Cancelled", body = TransactionShown, headers(("Idempotent-Replayed" = String))),
        (status = 404, description = "`transaction_not_found`"),
        (status = 409, description = "`invalid_transaction_state`: only from `pending`"),
    )
)]
pub(crate) async fn cancel_transaction(api: Arc<Api>, call: Call) -> Answer {
    decide(api, call, BodyIs::Optional, parse_or_default, CancelBody::decision).await
}

/// Dispute a pending or settled transaction.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/dispute", tag = "ledger",
    params(
        ("id" = schema::TransactionId, Path),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body(content = Option<DisputeBody>, content_type = "application/json"),
    responses(
        (status = 200, description = "Disputed", body = TransactionShown, headers(("Idempotent-Replayed" = String))),
        (status = 404, description = "`transaction_not_found`"),
        (status = 409, description = "`invalid_transaction_state`: only from `pending` or `settled`"),
    )
)]
pub(crate) async fn dispute_transaction(api: Arc<Api>, call: Call) -> Answer {
    decide(api, call, BodyIs::Optional, parse_or_default, DisputeBody::decision).await
}

/// Add evidence to a dispute.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/evidence", tag = "ledger",
    params(
        ("id" = schema::TransactionId, Path),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body = EvidenceBody,
    responses(
        (status = 200, description = "Added", body = TransactionShown, headers(("Idempotent-Replayed" = String))),
        (status = 404, description = "`transaction_not_found`"),
        (status = 409, description = "`invalid_transaction_state`: only while `disputed`"),
    )
)]
pub(crate) async fn add_evidence(api: Arc<Api>, call: Call) -> Answer {
    decide(api, call, BodyIs::Required, |body| parse_object(body.bytes()), EvidenceBody::decision).await
}

/// Resolve a dispute.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/resolve", tag = "ledger",
    params(
        ("id" = schema::TransactionId, Path),
        ("Idempotency-Key" = Option<schema::IdempotencyKey>, Header),
    ),
    request_body = ResolveBody,
    responses(
        (status = 200, description = "Resolved", body = TransactionShown, headers(("Idempotent-Replayed" = String))),
        (status = 404, description = "`transaction_not_found`"),
        (status = 409, description = "`invalid_transaction_state`: only from `disputed`"),
    )
)]
pub(crate) async fn resolve_transaction(api: Arc<Api>, call: Call) -> Answer {
    decide(api, call, BodyIs::Required, |body| parse_object(body.bytes()), ResolveBody::decision).await
}

/// Whether a decision can do without a body.
enum BodyIs {
    Required,
    Optional,
}

/// What all decisions with a body have in common.
async fn decide<T: DeserializeOwned>(
    api: Arc<Api>,
    mut call: Call,
    body_is: BodyIs,
    parse: impl FnOnce(&crate::http::body::Buffered) -> Result<T, Problem>,
    decision: impl FnOnce(T) -> Result<Decision, Problem>,
) -> Answer {
    let body = match body_is {
        BodyIs::Required => call.json_body().await?,
        BodyIs::Optional => call.optional_body().await?,
    };
    call.no_query()?;
    let key = call.idempotency_key()?;
    let decision = decision(parse(&body)?)?;
    let once = call.bind(key, &body)?;
    let id = call.transaction_id()?;

    let receipt = api.engine.decide(id, decision, once).await?;
    Reply::json(&TransactionShown::from(&receipt.value)).replayed(receipt.replayed).into()
}

/// All events of a transaction, oldest first.
#[utoipa::path(
    get, path = "/v1/transactions/{id}/events", tag = "ledger",
    params(("id" = schema::TransactionId, Path)),
    responses(
        (status = 200, description = "The events", body = Items<EventShown>),
        (status = 404, description = "`transaction_not_found`"),
    )
)]
pub(crate) async fn transaction_events(api: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;
    let id = call.transaction_id()?;

    let events = read_aside(move || api.engine.events(&id)).await?;
    Reply::json(&Items { items: events.iter().map(EventShown::from).collect() }).into()
}

/// What a payment system needs to know of a transaction.
#[utoipa::path(
    get, path = "/v1/transactions/{id}/settlement", tag = "ledger",
    params(("id" = schema::TransactionId, Path)),
    responses(
        (status = 200, description = "The settlement payload", body = Settlement),
        (status = 404, description = "`transaction_not_found`"),
        (status = 409, description = "`invalid_transaction_state`: only from `pending` or `settled`"),
    )
)]
pub(crate) async fn transaction_settlement(api: Arc<Api>, call: Call) -> Answer {
    call.no_query()?;
    let id = call.transaction_id()?;

    let transaction = api.engine.transaction(&id)?;
    match transaction.status {
        TransactionStatus::Pending | TransactionStatus::Settled => Reply::json(&Settlement::from(&transaction)).into(),
        from @ (TransactionStatus::Cancelled | TransactionStatus::Disputed) => Err(Problem::new(
            Code::InvalidTransactionState,
            format!("transaction `{id}` is {from}; there is a settlement payload only while it is pending or settled"),
        )),
    }
}
