//! Bytes as a request to any documented route: no path, query, header or body makes a handler panic or fail.
//!
//! The first byte picks the route, the second the content type; then come a line for the query, a line for the path's
//! parameters, and the body.

#![no_main]

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tradepost::access::Access;
use tradepost::domain::{AgentId, Capability, Currency, Facts, JsonObject, Money, NewTransaction, TransactionId};
use tradepost::http::{Api, ServerInfo, openapi_json, router};
use tradepost::metrics::Metrics;
use tradepost::{Engine, Location, Options};

/// After so many requests the server starts anew, so that what it holds stays small.
const REQUESTS_PER_SERVER: usize = 2_000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    thread_local!(static SERVER: RefCell<Option<(Server, usize)>> = const { RefCell::new(None) });
    SERVER.with_borrow_mut(|slot| {
        let (server, left) = slot.get_or_insert_with(|| (Server::start(), REQUESTS_PER_SERVER));
        server.answer(bytes);
        *left -= 1;
        if *left == 0 {
            *slot = None;
        }
    });
});

/// Every documented method and path.
static ROUTES: LazyLock<Vec<(Method, String)>> = LazyLock::new(|| {
    let document: serde_json::Value = serde_json::from_str(&openapi_json()).expect("the document is JSON");
    let paths = document["paths"].as_object().expect("the document has paths");
    let mut routes = Vec::new();
    for (path, item) in paths {
        for method in item.as_object().expect("a path has methods").keys() {
            if let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) {
                routes.push((method, path.clone()));
            }
        }
    }
    routes
});

struct Server {
    runtime: Runtime,
    engine: Engine,
    router: axum::Router,
}

impl Server {
    fn start() -> Self {
        let metrics = Metrics::default();
        let options = Options { metrics: metrics.clone(), seed: Some(1), ..Options::new(Location::Memory) };
        let engine = Engine::open(options).expect("a store in memory opens");
        let facts = Facts {
            payer_agent: AgentId::from_stored("genesis"),
            provider_agent: AgentId::from_stored("thon"),
            capability: Capability::from_stored("python"),
            amount: Money::from_nanos(1),
            currency: Currency::default(),
            context: JsonObject::default(),
        };
        let transaction = NewTransaction { transaction_id: Some(TransactionId::from_stored("t1")), facts };
        engine.record(transaction, None).wait().expect("a transaction is recorded");
        let access = Arc::new(Access::new(Vec::new(), None));
        let info = Arc::new(ServerInfo { version: "fuzz", started: Instant::now(), listen: Default::default() });
        let router = router(Api::new(engine.clone(), metrics, access, info));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
        Self { runtime, engine, router }
    }

    fn answer(&self, bytes: &[u8]) {
        let Some((request, line)) = request(bytes) else { return };
        self.runtime.block_on(async {
            let answer = self.router.clone().oneshot(request).await.expect("the router is infallible");
            let status = answer.status();
            let kind = answer.headers().get("content-type").map(|kind| kind.as_bytes().to_vec());
            let body = answer.into_body().collect().await.expect("an answer is whole").to_bytes();
            assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{line}");
            if status.is_client_error() || status.is_server_error() {
                assert_eq!(kind.as_deref(), Some(&b"application/problem+json"[..]), "{line}");
                let problem: serde_json::Value = serde_json::from_slice(&body).expect("a problem is JSON");
                assert_eq!(problem["status"], status.as_u16(), "{line}");
            }
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.engine.close();
    }
}

fn request(bytes: &[u8]) -> Option<(Request<Body>, String)> {
    let ([route, kind], rest) = bytes.split_first_chunk::<2>()?;
    let mut lines = rest.splitn(3, |byte| *byte == b'\n');
    let query = std::str::from_utf8(lines.next()?).ok()?;
    let parameter = std::str::from_utf8(lines.next().unwrap_or_default()).ok()?;
    let body = lines.next().unwrap_or_default();
    let (method, pattern) = &ROUTES[usize::from(*route) % ROUTES.len()];
    let given = match parameter {
        "" if pattern.starts_with("/v1/transactions") => "t1",
        "" => "thon",
        parameter => parameter,
    };
    let path = match (pattern.find('{'), pattern.find('}')) {
        (Some(from), Some(to)) => format!("{}{given}{}", &pattern[..from], &pattern[to + 1..]),
        _ => pattern.clone(),
    };
    let line = format!("{method} {path}?{query}");
    let mut request = Request::builder().method(method).uri(format!("{path}?{query}")).header("host", "localhost");
    for (index, (name, value)) in [
        ("content-type", "application/json"),
        ("content-type", "application/x-ndjson"),
        ("idempotency-key", "k"),
        ("if-match", "\"1\", \"2\""),
    ]
    .into_iter()
    .enumerate()
    {
        if kind & (1 << index) != 0 {
            request = request.header(name, value);
        }
    }
    // Most fuzzed URIs are none; those never reach a handler.
    request.body(Body::from(body.to_vec())).ok().map(|request| (request, line))
}
