//! The HTTP API: a router over the engine, and a server that keeps its limits.
//!
//! ```text
//! server (accept, connection limit, heads)  →  gate (access, deadline, panics, unread bodies)  →  routes  →  handlers
//! ```
//!
//! One table says which handler answers which route, and a test holds the handlers' descriptions and the OpenAPI document
//! against it. This module knows the engine and the domain; the store and the sinks it never sees.

mod answers;
mod body;
mod call;
mod dto;
mod gate;
mod handlers;
mod headers;
mod json;
mod openapi;
mod problem;
mod profiles;
mod query;
mod reply;
mod router;
mod server;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

pub use gate::router;
pub use server::{Listener, serve};

use self::profiles::Profiles;
use crate::access::Access;
use crate::engine::Engine;
use crate::metrics::Metrics;

/// What the API needs of the rest of the process. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// Everything that is asked for.
    pub engine: Engine,
    /// Where requests are counted, and what `/metrics` shows.
    pub metrics: Metrics,
    /// Who may ask.
    pub access: Arc<Access>,
    /// What `/v1/status` says of this process.
    pub info: Arc<ServerInfo>,
    profiles: Arc<Profiles>,
}

impl Api {
    /// The API over an engine.
    pub fn new(engine: Engine, metrics: Metrics, access: Arc<Access>, info: Arc<ServerInfo>) -> Self {
        Self { engine, metrics, access, info, profiles: Arc::default() }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("access", &self.access).field("info", &self.info).finish_non_exhaustive()
    }
}

/// What a process says of itself.
#[derive(Debug)]
pub struct ServerInfo {
    /// Its version.
    pub version: &'static str,
    /// When it started.
    pub started: Instant,
    /// The addresses it listens on, as soon as they are bound.
    pub listen: ArcSwap<Vec<String>>,
}

/// The limits of the server. The defaults are those of the API's contract; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a request's head may take once its first byte has come, or a new connection until it has.
    pub head_deadline: Duration,
    /// How long a request may take: its body to arrive, the store to answer.
    pub request_deadline: Duration,
    /// How long a connection may stay open between requests.
    pub idle_deadline: Duration,
    /// How long a client may take no byte of an answer.
    pub write_deadline: Duration,
    /// How long running requests are waited for at shutdown.
    pub shutdown_deadline: Duration,
    /// How many bytes of request bodies are held at once: so many of batches, and as many of all others.
    pub buffered_bytes: usize,
    /// How many connections are held at once, in all; `None` for what the descriptors allow, at most 4096.
    pub connections: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_deadline: Duration::from_secs(10),
            request_deadline: Duration::from_secs(30),
            idle_deadline: Duration::from_secs(75),
            write_deadline: Duration::from_secs(30),
            shutdown_deadline: Duration::from_secs(8),
            buffered_bytes: 32 * 1024 * 1024,
            connections: None,
        }
    }
}

/// The OpenAPI document, as `GET /openapi.json` serves it.
pub fn openapi_json() -> String {
    openapi::DOCUMENT.to_owned()
}
