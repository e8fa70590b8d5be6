//! From a client's request to its answer: who may ask, for what, and what tiny_http has to say.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{Method, Request, Response};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::backend::{Door, LIVEZ, METRICS};
use super::problem::Problem;
use super::upstream::{self, Page};
use crate::access::{Access, Denied, RequestHead};

/// A body that nobody wants is read up to here, so that the client sees the answer rather than a reset.
const MOST_DISCARDED: usize = 16 << 20;
const DISCARD_FOR: Duration = Duration::from_secs(5);

/// Between two attempts to reach tiny_http.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What all clients share.
pub(super) struct Gate {
    pub(super) access: Arc<Access>,
    /// The way to tiny_http; `None` while there is none.
    pub(super) door: watch::Receiver<Option<Arc<Door>>>,
    /// Told when tiny_http could not be reached.
    pub(super) suspicion: Notify,
    pub(super) scrapes: Arc<Semaphore>,
    pub(super) answer_within: Duration,
}

/// One client's connection; it lives until the answer is written.
pub(super) struct Client {
    gate: Arc<Gate>,
    /// The address that the client connected to.
    local: SocketAddr,
    /// Held until the page is written, not just until it is handed over for writing.
    scrape: OnceLock<OwnedSemaphorePermit>,
}

impl Client {
    pub(super) fn new(gate: Arc<Gate>, local: SocketAddr) -> Self {
        Self { gate, local, scrape: OnceLock::new() }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let answer = match self.admit(&request) {
            Ok(path) => self.fetch(path).await,
            Err(problem) => Err(problem),
        };
        discard(request.into_body()).await;
        match answer {
            Ok(page) => {
                let mut response = Response::new(Full::new(page.body));
                if let Some(kind) = page.content_type {
                    response.headers_mut().insert(CONTENT_TYPE, kind);
                }
                response
            }
            Err(problem) => problem.into_response(),
        }
    }

    /// The checks in the API's order. A query is ignored: scrapers are configured to add some.
    fn admit<B>(&self, request: &Request<B>) -> Result<&'static str, Problem> {
        self.gate.access.check_origin(&RequestHead {
            hosts: &values(request.headers(), HOST),
            authority: request.uri().authority().map(|authority| authority.as_str()),
            origins: &values(request.headers(), ORIGIN),
            local: Some(self.local),
        })?;
        let path = request.uri().path();
        if path != LIVEZ {
            match values(request.headers(), AUTHORIZATION)[..] {
                [] => self.gate.access.check_token(None)?,
                [one] => self.gate.access.check_token(Some(one))?,
                // Which of them another server in between has checked is anybody's guess.
                [..] => return Err(Denied::Unauthorized.into()),
            }
        }
        let route = [METRICS, LIVEZ].into_iter().find(|route| *route == path).ok_or(Problem::NotFound)?;
        if matches!(*request.method(), Method::GET | Method::HEAD) { Ok(route) } else { Err(Problem::MethodNotAllowed) }
    }

    async fn fetch(&self, path: &'static str) -> Result<Page, Problem> {
        let fetched = timeout(self.gate.answer_within, async {
            if path == METRICS {
                let permit = Arc::clone(&self.gate.scrapes).acquire_owned().await.ok()?;
                // Already set only if there were a second request, of which a connection has none.
                self.scrape.set(permit).ok()?;
            }
            self.gate.reach(path).await
        });
        match fetched.await {
            Ok(Some(page)) if page.status.is_success() => Ok(page),
            _ => Err(Problem::Unavailable),
        }
    }
}

impl Gate {
    /// tiny_http's answer. While there is none this waits for a new instance: asking again changes nothing.
    async fn reach(&self, path: &'static str) -> Option<Page> {
        let mut doors = self.door.clone();
        loop {
            let door = doors.wait_for(Option::is_some).await.ok()?.clone()?;
            match upstream::get(door.socket(), path).await {
                Ok(page) => return Some(page),
                Err(error) => {
                    tracing::debug!(%error, "reaching the metrics server");
                    self.suspicion.notify_one();
                }
            }
            sleep(RETRY_PAUSE).await;
        }
    }
}

fn values(headers: &HeaderMap, name: HeaderName) -> Vec<&[u8]> {
    headers.get_all(name).iter().map(|value| value.as_bytes()).collect()
}

async fn discard(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let all = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await
            && read < MOST_DISCARDED
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Out of time or not, the answer is next.
    timeout(DISCARD_FOR, all).await.ok();
}
