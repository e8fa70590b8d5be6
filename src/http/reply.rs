//! Answers that are not problems: JSON with its headers.

use std::convert::Infallible;
use std::sync::LazyLock;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::headers::entity_tag;
use super::problem::Problem;

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Most answers are shorter.
const USUAL_BYTES: usize = 1_024;

/// One of our own types as JSON.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::with_capacity(USUAL_BYTES);
    write_json(&mut text, value);
    text
}

/// Adds one of our own types as JSON.
pub(crate) fn write_json(text: &mut Vec<u8>, value: &impl Serialize) {
    // They have text for keys, and no serializer that fails.
    serde_json::to_writer(text, value).expect("answers are made of strings, numbers, lists and maps");
}

/// What a handler comes to.
pub(crate) type Answer = Result<Response, Problem>;

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Reply(Response);

impl Reply {
    /// 200 with a JSON body.
    pub(crate) fn json(body: &impl Serialize) -> Self {
        Self::json_text(to_json(body))
    }

    /// 200 with a body that is JSON already.
    pub(crate) fn json_text(text: Vec<u8>) -> Self {
        Self::text(text, HeaderValue::from_static("application/json"))
    }

    /// 200 with a body of another type.
    pub(crate) fn text(body: impl Into<axum::body::Body>, media_type: HeaderValue) -> Self {
        let mut response = Response::new(body.into());
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        Self(response)
    }

    /// An answer without a body.
    pub(crate) fn empty(status: StatusCode) -> Self {
        Self(status.into_response())
    }

    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        *self.0.status_mut() = status;
        self
    }

    /// 201 and where the new entity is, if it is new; `path` is made of ids, which need no escaping.
    pub(crate) fn created(mut self, created: bool, path: &str) -> Self {
        if created {
            let location = HeaderValue::from_str(path).expect("ids are made of letters, digits, - and _");
            self.0.headers_mut().insert(header::LOCATION, location);
            self = self.status(StatusCode::CREATED);
        }
        self
    }

    /// Marks the answer to a repeated idempotency key.
    pub(crate) fn replayed(mut self, replayed: bool) -> Self {
        if replayed {
            self.0.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        self
    }

    /// The revision as an entity tag.
    pub(crate) fn tagged(mut self, revision: u64) -> Self {
        let tag = HeaderValue::from_str(&entity_tag(revision)).expect("a quoted number is a header value");
        self.0.headers_mut().insert(header::ETAG, tag);
        self
    }
}

impl From<Reply> for Result<Response, Problem> {
    fn from(reply: Reply) -> Self {
        Ok(reply.0)
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        self.0
    }
}

/// How many such reads run at a time: each may hold several times the bytes of its answer, and more than there are
/// processors would take no less time.
static ASIDE: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(std::thread::available_parallelism().map_or(FEWEST_ASIDE, |all| all.get().max(FEWEST_ASIDE)))
});
const FEWEST_ASIDE: usize = 4;

/// Runs a read that may take longer than a few microseconds where it does not hold up other requests. When many want to,
/// they wait for their turn.
///
/// # Errors
/// Those of the read; 503 when it panicked.
pub(crate) async fn read_aside<T, E>(read: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Problem>
where
    T: Send + 'static,
    E: Into<Problem> + Send + 'static,
{
    let _turn = ASIDE.acquire().await;
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => {
            tracing::error!(%error, "a read did not finish");
            Err(Problem::new(super::problem::Code::StoreUnavailable, "the read failed for a fault of this server"))
        }
    }
}

impl From<Infallible> for Problem {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
