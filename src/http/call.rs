//! One request as handlers see it: its parts are asked for in the order in which faults take precedence.
//!
//! That order is 415 and 413 (the body is read), 400 (the query, the headers, then the body's shape), 422 (rules),
//! 404 (the path's id last, since an impossible one is a missing entity). A handler reads downward in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::{HeaderMap, Method, request::Parts};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::body::{self, Budget, Buffered};
use super::headers;
use super::json;
use super::problem::{Code, Problem};
use super::query::Query;
use crate::domain::{AgentId, TransactionId};
use crate::engine::Idempotency;

const JSON: &str = "application/json";
/// The media type of one JSON text a line.
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// What the gate and the handler of one request tell each other.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Whether all that is wanted of the body has arrived, so that any further delay is ours.
    pub(crate) arrived: AtomicBool,
    /// The bytes that bodies may hold.
    pub(crate) budget: Budget,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    parts: Parts,
    body: Option<Body>,
    /// The path's parameter, decoded; `None` for one that is not UTF-8.
    parameter: Option<String>,
    progress: Arc<Progress>,
}

/// Which form a batch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchForm {
    Array,
    Lines,
}

/// A body "none": nothing, or `{}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Call {
    /// A request on a route; `parameter` is that of its path, decoded.
    pub(crate) fn new(parts: Parts, body: Body, parameter: Option<String>, progress: Arc<Progress>) -> Self {
        Self { parts, body: Some(body), parameter, progress }
    }

    pub(crate) fn method(&self) -> &Method {
        &self.parts.method
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The query.
    ///
    /// # Errors
    /// 400.
    pub(crate) fn query(&self) -> Result<Query, Problem> {
        Query::parse(self.parts.uri.query())
    }

    /// For routes without parameters.
    ///
    /// # Errors
    /// 400 when there are some.
    pub(crate) fn no_query(&self) -> Result<(), Problem> {
        self.query()?.finish()
    }

    /// Reads a JSON body.
    ///
    /// # Errors
    /// 415, 413, 503, 400.
    pub(crate) async fn json_body(&mut self) -> Result<Buffered, Problem> {
        match body::media_type(self.headers()) {
            Some(media_type) if media_type == JSON => self.read(body::BODY_LIMIT).await,
            _ => Err(body::unsupported(JSON)),
        }
    }

    /// Reads a body that may be absent; it is empty then.
    ///
    /// # Errors
    /// 415, 413, 503, 400.
    pub(crate) async fn optional_body(&mut self) -> Result<Buffered, Problem> {
        if self.body.as_ref().is_none_or(body::is_known_empty) {
            self.arrived();
            return Ok(Buffered::default());
        }
        if body::media_type(self.headers()).is_some_and(|media_type| media_type == JSON) {
            return self.read(body::BODY_LIMIT).await;
        }
        // A chunked body may still turn out to have no bytes, and then needs no type.
        if body::is_empty(self.take_body()).await {
            self.arrived();
            Ok(Buffered::default())
        } else {
            Err(body::unsupported(JSON))
        }
    }

    /// Reads a batch.
    ///
    /// # Errors
    /// 415, 413, 503, 400.
    pub(crate) async fn batch_body(&mut self) -> Result<(Buffered, BatchForm), Problem> {
        let form = match body::media_type(self.headers()).as_deref() {
            Some(JSON) => BatchForm::Array,
            Some(NDJSON) => BatchForm::Lines,
            _ => return Err(body::unsupported("application/json or application/x-ndjson")),
        };
        Ok((self.read(body::BATCH_LIMIT).await?, form))
    }

    /// The `Idempotency-Key`, bound by [`Call::bind`] once everything else has been read.
    ///
    /// # Errors
    /// 400.
    pub(crate) fn idempotency_key(&self) -> Result<headers::GivenKey, Problem> {
        headers::idempotency_key(self.headers())
    }

    /// Ties an idempotency key to this request.
    ///
    /// # Errors
    /// 422.
    pub(crate) fn bind(&self, key: headers::GivenKey, body: &Buffered) -> Result<Option<Idempotency>, Problem> {
        key.of_request(self.parts.method.as_str(), self.parts.uri.path(), body.bytes())
    }

    /// The agent that the path names.
    ///
    /// # Errors
    /// 404 for an id that no agent can have.
    pub(crate) fn agent_id(&self) -> Result<AgentId, Problem> {
        self.parameter()
            .and_then(|text| AgentId::parse("agent_id", text).ok())
            .ok_or_else(|| Problem::impossible_id(Code::AgentNotFound))
    }

    /// The transaction that the path names. One that an older client made in PostgreSQL has whatever id that gave it.
    ///
    /// # Errors
    /// 404 for an id that no transaction can have.
    pub(crate) fn transaction_id(&self) -> Result<TransactionId, Problem> {
        self.parameter()
            .filter(|text| (1..=TransactionId::LONGEST).contains(&text.chars().count()))
            .map(TransactionId::from_stored)
            .ok_or_else(|| Problem::impossible_id(Code::TransactionNotFound))
    }

    /// The parameter of the path, decoded; empty on a route that has none.
    pub(crate) fn parameter(&self) -> Option<&str> {
        self.parameter.as_deref()
    }

    async fn read(&mut self, limit: usize) -> Result<Buffered, Problem> {
        let body = self.take_body();
        let read = body::read(body, limit, &self.progress.budget).await?;
        self.arrived();
        Ok(read)
    }

    fn take_body(&mut self) -> Body {
        self.body.take().unwrap_or_default()
    }

    fn arrived(&self) {
        self.progress.arrived.store(true, Ordering::Relaxed);
    }
}

/// Reads a body that may be absent: its default then.
///
/// # Errors
/// 400.
pub(crate) fn parse_or_default<T: DeserializeOwned + Default>(body: &Buffered) -> Result<T, Problem> {
    if body.bytes().is_empty() { Ok(T::default()) } else { json::parse_object(body.bytes()) }
}

/// Checks a body "none": nothing, or `{}`.
///
/// # Errors
/// 400.
pub(crate) fn expect_nothing(body: &Buffered) -> Result<(), Problem> {
    if body.bytes().is_empty() {
        return Ok(());
    }
    json::parse_object::<Nothing>(body.bytes()).map(|Nothing {}| ())
}
