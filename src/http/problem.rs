//! The one map from everything that can go wrong to an RFC 9457 problem document.
//!
//! A problem's `code` is the stable name that clients switch on; `type` is `urn:tradepost:problem:<code>`.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::Denied;
use crate::domain::{Invalid, Refusal};
use crate::engine;

/// The media type of a problem document.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// How long a client should wait after a 503.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");
/// The longest detail, in characters; parsers quote what they were given.
const MAX_DETAIL_CHARS: usize = 500;

/// The kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidRequest,
    Unauthorized,
    ForbiddenHost,
    ForbiddenOrigin,
    AgentNotFound,
    TransactionNotFound,
    NoMatch,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    AgentAlreadyRegistered,
    AgentNotLocal,
    InvalidTransactionState,
    TransactionIdConflict,
    RevisionMismatch,
    BodyTooLarge,
    UnsupportedMediaType,
    /// `invalid_<field>`.
    InvalidValue,
    IdempotencyKeyReused,
    HeadersTooLarge,
    Overloaded,
    StoreUnavailable,
    StorageFull,
}

impl Code {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::ForbiddenHost | Self::ForbiddenOrigin => StatusCode::FORBIDDEN,
            Self::AgentNotFound | Self::TransactionNotFound | Self::NoMatch | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::AgentAlreadyRegistered
            | Self::AgentNotLocal
            | Self::InvalidTransactionState
            | Self::TransactionIdConflict => StatusCode::CONFLICT,
            Self::RevisionMismatch => StatusCode::PRECONDITION_FAILED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::InvalidValue | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Overloaded | Self::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The stable name; of an invalid value, what its field's name is put behind.
    fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::ForbiddenHost => "forbidden_host",
            Self::ForbiddenOrigin => "forbidden_origin",
            Self::AgentNotFound => "agent_not_found",
            Self::TransactionNotFound => "transaction_not_found",
            Self::NoMatch => "no_match",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::AgentAlreadyRegistered => "agent_already_registered",
            Self::AgentNotLocal => "agent_not_local",
            Self::InvalidTransactionState => "invalid_transaction_state",
            Self::TransactionIdConflict => "transaction_id_conflict",
            Self::RevisionMismatch => "revision_mismatch",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::InvalidValue => "invalid_",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::HeadersTooLarge => "headers_too_large",
            Self::Overloaded => "overloaded",
            Self::StoreUnavailable => "store_unavailable",
            Self::StorageFull => "storage_full",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::InvalidRequest => "The request is malformed",
            Self::Unauthorized => "A bearer token is needed",
            Self::ForbiddenHost => "This server has another name",
            Self::ForbiddenOrigin => "Requests of this origin are not taken",
            Self::AgentNotFound => "No such agent",
            Self::TransactionNotFound => "No such transaction",
            Self::NoMatch => "No agent matches",
            Self::NotFound => "No such resource",
            Self::MethodNotAllowed => "The resource does not take this method",
            Self::RequestTimeout => "The request did not arrive in time",
            Self::AgentAlreadyRegistered => "The agent is registered already",
            Self::AgentNotLocal => "The agent belongs to another node",
            Self::InvalidTransactionState => "The transaction's status does not allow this",
            Self::TransactionIdConflict => "The transaction id is taken",
            Self::RevisionMismatch => "The agent has another revision",
            Self::BodyTooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The body has an unsupported media type",
            Self::InvalidValue => "A value breaks a rule",
            Self::IdempotencyKeyReused => "The idempotency key belongs to another request",
            Self::HeadersTooLarge => "The request's head is too large",
            Self::Overloaded => "Too much is going on",
            Self::StoreUnavailable => "The store is unavailable",
            Self::StorageFull => "No space is left",
        }
    }
}

/// Why a request is not answered with what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    code: Code,
    detail: String,
    field: Option<Cow<'static, str>>,
}

/// A problem as it is sent (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemDocument {
    /// `urn:tradepost:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(pattern = "^urn:tradepost:problem:[a-z_]+$")]
    pub(crate) kind: String,
    /// The kind of problem, in words.
    pub(crate) title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub(crate) status: u16,
    /// The stable name of the kind of problem.
    #[schema(pattern = "^[a-z_]+$")]
    pub(crate) code: String,
    /// What is wrong with this request, in words.
    pub(crate) detail: String,
    /// The field, parameter or header at fault, where one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) field: Option<Cow<'static, str>>,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: shortened(detail.into()), field: None }
    }

    /// A malformed request; nothing in particular is at fault.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// A malformed request, and which field, parameter or header makes it one.
    pub(crate) fn malformed_at(field: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::malformed(detail) }
    }

    /// A well-formed value that breaks a rule.
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Invalid::new(field, reason).into()
    }

    /// What a path id that cannot exist leads to.
    pub(crate) fn impossible_id(code: Code) -> Self {
        Self::new(code, "the id in the path is not one that could exist")
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.code.status()
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    pub(crate) fn document(self) -> ProblemDocument {
        let code = match (self.code, &self.field) {
            (Code::InvalidValue, Some(field)) => {
                format!("invalid_{}", field.to_ascii_lowercase().replace('-', "_"))
            }
            (code, _) => code.name().to_owned(),
        };
        ProblemDocument {
            kind: format!("urn:tradepost:problem:{code}"),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            code,
            detail: self.detail,
            field: self.field,
        }
    }

    /// The document as it is sent.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.clone().document()).expect("a problem is strings and one number")
    }
}

fn shortened(detail: String) -> String {
    match detail.char_indices().nth(MAX_DETAIL_CHARS) {
        None => detail,
        Some((end, _)) => format!("{}…", &detail[..end]),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.to_json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match self.code {
            Code::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Code::Overloaded | Code::StoreUnavailable => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
            }
            Code::RequestTimeout => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self { field: Some(Cow::Borrowed(invalid.field)), ..Self::new(Code::InvalidValue, invalid.reason) }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Invalid(invalid) => return invalid.into(),
            Refusal::AgentNotFound(_) => Code::AgentNotFound,
            Refusal::TransactionNotFound(_) => Code::TransactionNotFound,
            Refusal::RevisionMismatch { .. } => Code::RevisionMismatch,
            Refusal::AgentAlreadyRegistered(_) => Code::AgentAlreadyRegistered,
            Refusal::AgentNotLocal(_) => Code::AgentNotLocal,
            Refusal::InvalidTransition { .. } => Code::InvalidTransactionState,
            Refusal::TransactionIdConflict(_) => Code::TransactionIdConflict,
            Refusal::IdempotencyKeyReused => {
                let reused = Self::new(Code::IdempotencyKeyReused, refusal.to_string());
                return Self { field: Some(Cow::Borrowed("Idempotency-Key")), ..reused };
            }
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<engine::Error> for Problem {
    fn from(error: engine::Error) -> Self {
        match error {
            engine::Error::Refused(refusal) => refusal.into(),
            engine::Error::Overloaded => Self::new(Code::Overloaded, error.to_string()),
            engine::Error::StorageFull(_) => Self::new(Code::StorageFull, error.to_string()),
            engine::Error::Unavailable(_) => Self::new(Code::StoreUnavailable, error.to_string()),
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::BadHost => Self::malformed_at("Host", "Host must be given exactly once, as a host and a port"),
            Denied::ForbiddenHost => Self::new(
                Code::ForbiddenHost,
                "Host must be a loopback name, the address that was connected to, or an allowed host",
            ),
            Denied::ForbiddenOrigin => {
                Self::new(Code::ForbiddenOrigin, "Origin must be http:// or https:// and the request's own host")
            }
            Denied::Unauthorized => {
                Self::new(Code::Unauthorized, "Authorization must be `Bearer` and this server's token")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AgentId, TransactionId, TransactionStatus};

    #[test]
    fn every_refusal_has_its_status_and_code() {
        let agent = || AgentId::from_stored("thon");
        let transaction = || TransactionId::from_stored("t1");
        for (refusal, status, code) in [
            (Refusal::Invalid(Invalid::new("amount", "must be above 0")), 422, "invalid_amount"),
            (Refusal::AgentNotFound(agent()), 404, "agent_not_found"),
            (Refusal::TransactionNotFound(transaction()), 404, "transaction_not_found"),
            (Refusal::RevisionMismatch { agent_id: agent(), actual: 3 }, 412, "revision_mismatch"),
            (Refusal::AgentAlreadyRegistered(agent()), 409, "agent_already_registered"),
            (Refusal::AgentNotLocal(agent()), 409, "agent_not_local"),
            (
                Refusal::InvalidTransition {
                    transaction_id: transaction(),
                    from: TransactionStatus::Settled,
                    to: "cancelled",
                    reason: None,
                },
                409,
                "invalid_transaction_state",
            ),
            (Refusal::TransactionIdConflict(transaction()), 409, "transaction_id_conflict"),
            (Refusal::IdempotencyKeyReused, 422, "idempotency_key_reused"),
        ] {
            let document = Problem::from(refusal).document();
            assert_eq!((document.status, document.code.as_str()), (status, code));
            assert_eq!(document.kind, format!("urn:tradepost:problem:{code}"));
        }
    }

    #[test]
    fn the_code_of_an_invalid_value_is_made_of_its_field() {
        let document = Problem::invalid("Idempotency-Key", "is too long").document();
        assert_eq!(
            (document.code.as_str(), document.field.as_deref()),
            ("invalid_idempotency_key", Some("Idempotency-Key"))
        );
    }

    #[test]
    fn a_503_says_when_to_come_again_and_a_401_how() {
        let response = Problem::from(engine::Error::Overloaded).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        let response = Problem::from(Denied::Unauthorized).into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
    }

    #[test]
    fn a_long_detail_is_cut() {
        let problem = Problem::malformed("ü".repeat(10_000));
        assert!(problem.to_json().len() < 2_000);
    }
}
