//! Refusals of the metrics listener, in the API's form (RFC 9457).

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};

use crate::access::Denied;

/// Why a request gets no page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    Denied(Denied),
    NotFound,
    MethodNotAllowed,
    /// tiny_http did not answer; it is being looked after.
    Unavailable,
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl Problem {
    fn describe(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Denied(Denied::BadHost) => {
                (StatusCode::BAD_REQUEST, "invalid_request", "exactly one well-formed Host header is required")
            }
            Self::Denied(Denied::ForbiddenHost) => {
                (StatusCode::FORBIDDEN, "forbidden_host", "this Host is not served here; see --allowed-host")
            }
            Self::Denied(Denied::ForbiddenOrigin) => {
                (StatusCode::FORBIDDEN, "forbidden_origin", "requests from web pages are refused")
            }
            Self::Denied(Denied::Unauthorized) => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "a valid bearer token is required")
            }
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "only /metrics and /livez are served here"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "only GET and HEAD are served here")
            }
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "the metrics cannot be read at the moment; try again shortly",
            ),
        }
    }

    /// A header that the status asks for.
    fn header(self) -> Option<(HeaderName, &'static str)> {
        match self {
            Self::Denied(Denied::Unauthorized) => Some((WWW_AUTHENTICATE, "Bearer")),
            Self::MethodNotAllowed => Some((ALLOW, "GET, HEAD")),
            Self::Unavailable => Some((RETRY_AFTER, "1")),
            _ => None,
        }
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let (status, code, detail) = self.describe();
        let mut document = serde_json::json!({
            "type": format!("urn:tradepost:problem:{code}"),
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "code": code,
            "detail": detail,
        });
        if self == Self::Denied(Denied::BadHost) {
            document["field"] = "Host".into();
        }
        let mut response = Response::new(Full::from(document.to_string()));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some((name, value)) = self.header() {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
