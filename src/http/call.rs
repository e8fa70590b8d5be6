//! One request as handlers see it: its parts are asked for in the order in which faults take precedence.
//!
//! That order is 415 and 413 (the body is read), 400 (the query, the headers, then the body's shape), 422 (rules),
//! 404 (the path's id last, since an impossible one is a missing entity). A handler reads downward in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, MatchedPath, RawPathParams, Request};
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
    /// The route, once it is found.
    pub(crate) route: OnceLock<MatchedPath>,
    /// The bytes that bodies may hold.
    pub(crate) budget: Budget,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    parts: Parts,
    body: Option<Body>,
    path: Option<RawPathParams>,
    progress: Option<Arc<Progress>>,
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

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let (mut parts, body) = request.into_parts();
        // A path that is not UTF-8 has no parameters here, and so an impossible id.
        let path = RawPathParams::from_request_parts(&mut parts, state).await.ok();
        let progress = parts.extensions.get::<Arc<Progress>>().cloned();
        if let (Some(progress), Some(route)) = (&progress, parts.extensions.remove::<MatchedPath>()) {
            // Set here only, once a request.
            progress.route.get_or_init(|| route);
        }
        Ok(Self { parts, body: Some(body), path, progress })
    }
}

impl Call {
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
        self.path_text("id")
            .and_then(|text| AgentId::parse("agent_id", text).ok())
            .ok_or_else(|| Problem::impossible_id(Code::AgentNotFound))
    }

    /// The transaction that the path names. One that an older client made in PostgreSQL has whatever id that gave it.
    ///
    /// # Errors
    /// 404 for an id that no transaction can have.
    pub(crate) fn transaction_id(&self) -> Result<TransactionId, Problem> {
        self.path_text("id")
            .filter(|text| (1..=TransactionId::LONGEST).contains(&text.chars().count()))
            .map(TransactionId::from_stored)
            .ok_or_else(|| Problem::impossible_id(Code::TransactionNotFound))
    }

    /// A parameter of the path, percent-decoded.
    pub(crate) fn path_text(&self, name: &str) -> Option<&str> {
        self.path.as_ref()?.iter().find(|(given, _)| *given == name).map(|(_, text)| text)
    }

    async fn read(&mut self, limit: usize) -> Result<Buffered, Problem> {
        let body = self.take_body();
        let budget = match &self.progress {
            Some(progress) => progress.budget.clone(),
            None => Budget::new(limit),
        };
        let read = body::read(body, limit, &budget).await?;
        self.arrived();
        Ok(read)
    }

    fn take_body(&mut self) -> Body {
        self.body.take().unwrap_or_default()
    }

    fn arrived(&self) {
        if let Some(progress) = &self.progress {
            progress.arrived.store(true, Ordering::Relaxed);
        }
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
