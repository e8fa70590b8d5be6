//! What every request passes before and after its handler: access, the deadline, panics, unread bodies, counting.

use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tower::Service;

use super::answers::Answers;
use super::body::{Budget, Shared, is_known_empty};
use super::call::Progress;
use super::problem::{Code, Problem};
use super::router::routes;
use super::{Api, Limits};
use crate::access::RequestHead;

/// Routes that need no token, for probes that cannot carry one.
const OPEN_ROUTES: [&str; 2] = ["/livez", "/readyz"];
/// The label of a route or a method that is none of ours.
pub(crate) const OTHER: &str = "_other";

/// The connection that a request came on.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its local address; `None` on the Unix socket.
    pub(crate) local: Option<SocketAddr>,
    /// Set when bytes may still be on their way that nobody will read: closing then needs patience.
    pub(crate) leaves_bytes_unread: AtomicBool,
}

impl Peer {
    pub(crate) fn new(local: Option<SocketAddr>) -> Self {
        Self { local, leaves_bytes_unread: AtomicBool::new(false) }
    }
}

/// The API as a service that can be called without a connection; its requests are taken as coming over loopback.
pub fn router(api: Api) -> Router {
    let gate = Arc::new(Gate::new(api, &Limits::default()));
    let pass = |State(gate): State<Arc<Gate>>, request: Request| async move {
        gate.pass(request, &Peer::new(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))).await
    };
    Router::new().fallback(pass).with_state(gate)
}

/// The gate before the routes. It stands there so that a stranger does not learn which routes there are.
#[derive(Debug)]
pub(crate) struct Gate {
    api: Api,
    routes: Router,
    budget: Budget,
    answers: Answers,
    deadline: Duration,
}

impl Gate {
    pub(crate) fn new(api: Api, limits: &Limits) -> Self {
        Self {
            routes: routes(api.clone()),
            api,
            budget: Budget::new(limits.buffered_bytes),
            answers: Answers::default(),
            deadline: limits.request_deadline,
        }
    }

    /// Answers a request, whatever it is.
    pub(crate) async fn pass(&self, request: Request, peer: &Peer) -> Response {
        let started = Instant::now();
        let method = method_label(request.method());
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let waits_for_continue = waits_for_continue(request.headers());

        let (mut request, body) = share_body(request);
        let progress = Arc::new(Progress {
            arrived: AtomicBool::new(body.is_none()),
            route: OnceLock::new(),
            budget: self.budget.clone(),
        });
        request.extensions_mut().insert(Arc::clone(&progress));

        let mut response = match self.admit(&request, peer) {
            Ok(()) => self.answers.bound(self.handle(request, &progress, body.as_ref()).await, is_read),
            Err(problem) => problem.into_response(),
        };
        if let Some(body) = body {
            // A client that waits for `100 Continue` has sent nothing, and will not, once it has the answer.
            let will_not_come = waits_for_continue && !body.is_started();
            if !body.is_ended() && !will_not_come && response.status() != StatusCode::REQUEST_TIMEOUT {
                body.discard().await;
            }
            if !body.is_ended() {
                peer.leaves_bytes_unread.store(true, Ordering::Relaxed);
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        let route = route_label(&progress);
        self.api.metrics.http_request(route, method, response.status().as_u16(), started.elapsed());
        response
    }

    fn admit(&self, request: &Request, peer: &Peer) -> Result<(), Problem> {
        let headers = request.headers();
        let hosts = values(headers, &header::HOST);
        let origins = values(headers, &header::ORIGIN);
        self.api.access.check_origin(&RequestHead {
            hosts: &hosts,
            authority: request.uri().authority().map(|authority| authority.as_str()),
            origins: &origins,
            local: peer.local,
        })?;
        if OPEN_ROUTES.contains(&request.uri().path()) {
            return Ok(());
        }
        match values(headers, &header::AUTHORIZATION)[..] {
            [authorization] => self.api.access.check_token(Some(authorization))?,
            // Two are as none: there is no telling which one is meant.
            _ => self.api.access.check_token(None)?,
        }
        Ok(())
    }

    /// Routes and handles, whatever happens meanwhile.
    async fn handle(&self, request: Request, progress: &Progress, body: Option<&Shared>) -> Response {
        // A router is always ready.
        let handled = AssertUnwindSafe(self.routes.clone().call(request)).catch_unwind();
        match tokio::time::timeout(self.deadline, handled).await {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(_panic)) => {
                // The panic hook has said where; its payload may hold what it pleases, and stays here.
                tracing::error!(route = route_label(progress), "a handler panicked");
                Problem::new(
                    Code::StoreUnavailable,
                    "the request failed for a fault of this server; its outcome is unknown",
                )
                .into_response()
            }
            Err(_elapsed) => self.late(progress, body).into_response(),
        }
    }

    /// Whose fault it is that there is no answer in time.
    fn late(&self, progress: &Progress, body: Option<&Shared>) -> Problem {
        let seconds = self.deadline.as_secs();
        if body.is_some_and(Shared::is_started) && !progress.arrived.load(Ordering::Relaxed) {
            return Problem::new(Code::RequestTimeout, format!("the body did not arrive within {seconds} s"));
        }
        Problem::new(
            Code::StoreUnavailable,
            format!(
                "the store did not answer within {seconds} s, and the outcome is unknown; repeating the request is safe with \
                 the same Idempotency-Key or transaction_id"
            ),
        )
    }
}

fn route_label(progress: &Progress) -> &str {
    progress.route.get().map_or(OTHER, MatchedPath::as_str)
}

/// Puts a body, if there is one, where its rest can be discarded when the handler is done.
fn share_body(request: Request) -> (Request, Option<Shared>) {
    if is_known_empty(request.body()) {
        return (request, None);
    }
    let (parts, body) = request.into_parts();
    let shared = Shared::new(body);
    (Request::from_parts(parts, Body::new(shared.clone())), Some(shared))
}

fn values<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Vec<&'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}

fn waits_for_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn method_label(method: &Method) -> &'static str {
    const KNOWN: [Method; 7] =
        [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    const LABELS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.iter().position(|known| known == method).map_or(OTHER, |at| LABELS[at])
}
