//! What every request passes before and after its handler: access, the deadline, panics, unread bodies, counting.

use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::poll_immediate;

use super::answers::Answers;
use super::body::{Budget, Shared, is_known_empty};
use super::call::{Call, Progress};
use super::problem::{Code, Problem};
use super::router::{Found, Router, no_route};
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
pub fn router(api: Api) -> axum::Router {
    let gate = Arc::new(Gate::new(api, &Limits::default()));
    let pass = |State(gate): State<Arc<Gate>>, request: Request| async move {
        gate.pass(request, &Peer::new(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))).await
    };
    axum::Router::new().fallback(pass).with_state(gate)
}

/// The gate before the routes. It stands there so that a stranger does not learn which routes there are.
#[derive(Debug)]
pub(crate) struct Gate {
    api: Arc<Api>,
    router: Router,
    budget: Budget,
    answers: Answers,
    deadline: Duration,
}

impl Gate {
    pub(crate) fn new(api: Api, limits: &Limits) -> Self {
        Self {
            api: Arc::new(api),
            router: Router::new(),
            budget: Budget::new(limits.buffered_bytes),
            answers: Answers::default(),
            deadline: limits.request_deadline,
        }
    }

    /// Answers a request, whatever it is.
    pub(crate) async fn pass(&self, request: Request, peer: &Peer) -> Response {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let method = method_label(&parts.method);
        let is_read = matches!(parts.method, Method::GET | Method::HEAD);
        let waits_for_continue = waits_for_continue(&parts.headers);
        // A body, if there is one, goes where its rest can be discarded when the handler is done.
        let body = (!is_known_empty(&body)).then(|| Shared::new(body));

        let mut route = OTHER;
        let mut response = match self.admit(&parts, peer) {
            Ok(()) => {
                let found = self.router.find(parts.uri.path());
                route = found.as_ref().map_or(OTHER, |(route, _)| route.pattern);
                self.answers.bound(self.handle(parts, body.as_ref(), found).await, is_read)
            }
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
        self.api.metrics.http_request(route, method, response.status().as_u16(), started.elapsed());
        response
    }

    fn admit(&self, parts: &Parts, peer: &Peer) -> Result<(), Problem> {
        let headers = &parts.headers;
        let hosts = values(headers, &header::HOST);
        let origins = values(headers, &header::ORIGIN);
        self.api.access.check_origin(&RequestHead {
            hosts: &hosts,
            authority: parts.uri.authority().map(|authority| authority.as_str()),
            origins: &origins,
            local: peer.local,
        })?;
        if OPEN_ROUTES.contains(&parts.uri.path()) {
            return Ok(());
        }
        match values(headers, &header::AUTHORIZATION)[..] {
            [authorization] => self.api.access.check_token(Some(authorization))?,
            // Two are as none: there is no telling which one is meant.
            _ => self.api.access.check_token(None)?,
        }
        Ok(())
    }

    /// Has a request handled, whatever happens meanwhile.
    async fn handle(&self, parts: Parts, body: Option<&Shared>, found: Option<Found>) -> Response {
        let Some((route, parameter)) = found else { return no_route().into_response() };
        let progress = Arc::new(Progress { arrived: AtomicBool::new(body.is_none()), budget: self.budget.clone() });
        let given = body.map_or_else(Body::empty, |body| Body::new(body.clone()));
        let call = Call::new(parts, given, parameter, Arc::clone(&progress));
        let mut handled = pin!(AssertUnwindSafe(route.handle(Arc::clone(&self.api), call)).catch_unwind());
        // Most need not wait for anything, and so no timer either.
        let handled = match poll_immediate(&mut handled).await {
            Some(handled) => Ok(handled),
            None => tokio::time::timeout(self.deadline, handled).await,
        };
        match handled {
            Ok(Ok(response)) => response,
            Ok(Err(_panic)) => {
                // The panic hook has said where; its payload may hold what it pleases, and stays here.
                tracing::error!(route = route.pattern, "a handler panicked");
                Problem::new(
                    Code::StoreUnavailable,
                    "the request failed for a fault of this server; its outcome is unknown",
                )
                .into_response()
            }
            Err(_elapsed) => self.late(&progress, body).into_response(),
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
