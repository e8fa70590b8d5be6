//! The HTTP client: one request on one connection, over TCP or a Unix socket, with deadlines and honest failures.
//!
//! A request that may be repeated is, when the connection breaks or the server answers 503, up to two more times; a
//! server that stays silent is not asked again.
//! Whatever else happens, it is said whether the request may have been carried out. Deliberately absent: connection
//! reuse, which a command of a few requests does not need; proxies.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use super::failure::{Exit, Failure};
use super::place::{Place, Target};
use crate::tls::TlsError;
use crate::tls::client::{Verification, client_config};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The server gives every request 30 s; an answer after 40 does not come.
const ANSWER_DEADLINE: Duration = Duration::from_secs(40);
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 3;
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A page of 1 000 entries with everything in them filled to the brim stays below this.
const LARGEST_ANSWER_BYTES: usize = 512 * 1024 * 1024;

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    path: String,
    body: Option<(&'static str, Bytes)>,
    idempotency_key: Option<String>,
    if_match: Option<u64>,
    repeatable: bool,
}

impl Call {
    /// A read.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, true)
    }

    /// A read whose refusal is an answer too.
    pub fn probe(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, false)
    }

    /// A POST that is done once however often it is sent: with the key that the user gave, else one of our own.
    pub fn post_once(path: impl Into<String>, key: Option<String>) -> Self {
        let key = key.unwrap_or_else(|| Uuid::now_v7().simple().to_string());
        Self { idempotency_key: Some(key), ..Self::new(Method::POST, path, true) }
    }

    /// A POST that changes nothing more when it is repeated, by its nature.
    pub fn post_repeatable(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path, true)
    }

    /// A replacement: again the same.
    pub fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path, true)
    }

    /// A change. Not repeated: with `If-Match`, its own success would refuse the second.
    pub fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path, false)
    }

    /// A removal. Not repeated: its own success would make the second a 404.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path, false)
    }

    fn new(method: Method, path: impl Into<String>, repeatable: bool) -> Self {
        Self { method, path: path.into(), body: None, idempotency_key: None, if_match: None, repeatable }
    }

    /// With a JSON body.
    pub fn json(self, body: impl Into<Bytes>) -> Self {
        Self { body: Some(("application/json", body.into())), ..self }
    }

    /// With a body of one JSON value a line.
    pub fn ndjson(self, body: impl Into<Bytes>) -> Self {
        Self { body: Some(("application/x-ndjson", body.into())), ..self }
    }

    /// Only if the entity has this revision.
    pub fn if_match(self, revision: Option<u64>) -> Self {
        Self { if_match: revision, ..self }
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Whether the body says that it is a problem document.
    pub is_problem: bool,
    /// The body.
    pub body: Bytes,
    retry_after: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug)]
enum Broken {
    /// No request can be made of what was typed.
    Malformed(String),
    /// Nobody to send it to.
    NotConnected(String),
    /// The connection broke after that; the server may have done it.
    BrokeOff(String),
    /// Nothing came in time; the server may have done it.
    Silent(String),
}

/// A client of one sidecar.
pub struct Client {
    target: Target,
    /// For places that are encrypted.
    tls: Option<TlsConnector>,
    runtime: Runtime,
}

impl Client {
    /// Prepares; nothing is connected yet.
    pub fn new(target: Target) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| Failure::io("cannot prepare to connect", &error))?;
        let is_encrypted = |place: &Place| matches!(place, Place::Tcp { encrypted: true, .. });
        let tls = target.places.iter().any(is_encrypted).then(|| client_config(Verification::Full, &target.roots));
        let refused = |error: TlsError| Failure::Because(Exit::Configuration, error.to_string());
        let tls = tls.transpose().map_err(refused)?.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { target, tls, runtime })
    }

    /// Sends a request and waits for its answer, whatever that says.
    pub fn call(&self, call: &Call) -> Result<Answer, Failure> {
        for attempt in 1.. {
            let result = self.runtime.block_on(self.attempt(call));
            let last = attempt == ATTEMPTS || !call.repeatable;
            let wait = match &result {
                Ok(answer) if answer.status == 503 => answer.retry_after.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT),
                Err(Broken::BrokeOff(_)) => Duration::from_millis(200) * attempt,
                Ok(_) | Err(_) => return result.map_err(|broken| failure(call, broken)),
            };
            if last {
                return result.map_err(|broken| failure(call, broken));
            }
            std::thread::sleep(wait);
        }
        unreachable!("the last attempt returns")
    }

    /// Sends a request and hands a successful answer's body over as it comes in. An answer that is not successful
    /// is returned whole; `None` says that the stream came to its proper end.
    pub fn stream(
        &self,
        call: &Call,
        sink: &mut dyn FnMut(&Bytes) -> Result<(), Failure>,
    ) -> Result<Option<Answer>, Failure> {
        self.runtime.block_on(async {
            let response = self.exchange(call).await.map_err(|broken| failure(call, broken))?;
            if !response.status().is_success() {
                let answer = whole(response).await.map_err(|broken| failure(call, broken))?;
                return Ok(Some(answer));
            }
            let mut body = response.into_body();
            loop {
                let broke_off = |why: String| {
                    Failure::Because(Exit::Io, format!("the stream broke off, so this is not all of it: {why}"))
                };
                match timeout(SILENCE_DEADLINE, body.frame()).await {
                    Err(_) => return Err(broke_off(format!("nothing came for {} s", SILENCE_DEADLINE.as_secs()))),
                    Ok(Some(Err(error))) => return Err(broke_off(causes(&error))),
                    Ok(None) => return Ok(None),
                    Ok(Some(Ok(frame))) => {
                        if let Some(data) = frame.data_ref() {
                            sink(data)?;
                        }
                    }
                }
            }
        })
    }

    async fn attempt(&self, call: &Call) -> Result<Answer, Broken> {
        let answer = async { whole(self.exchange(call).await?).await };
        timeout(CONNECT_DEADLINE + ANSWER_DEADLINE, answer)
            .await
            .unwrap_or_else(|_| Err(Broken::Silent("the answer did not come to an end".to_owned())))
    }

    async fn exchange(&self, call: &Call) -> Result<Response<Incoming>, Broken> {
        let (mut sender, host) = self.connect().await?;
        let request = self.request(call, &host).map_err(|error| Broken::Malformed(error.to_string()))?;
        match timeout(ANSWER_DEADLINE, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Broken::BrokeOff(causes(&error))),
            Err(_) => Err(Broken::Silent(format!("no answer within {} s", ANSWER_DEADLINE.as_secs()))),
        }
    }

    fn request(&self, call: &Call, host: &str) -> hyper::http::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(&call.method)
            .uri(&call.path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, concat!("tradepost/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "*/*");
        if let Some(token) = &self.target.token {
            request = request.header(header::AUTHORIZATION, bearer(token)?);
        }
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(revision) = call.if_match {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        if let Some((content_type, _)) = &call.body {
            request = request.header(header::CONTENT_TYPE, *content_type);
        }
        request.body(Full::new(call.body.as_ref().map(|(_, body)| body.clone()).unwrap_or_default()))
    }

    /// A connection to the first place that takes one, and what to call the server there.
    async fn connect(&self) -> Result<(SendRequest<Full<Bytes>>, String), Broken> {
        let mut refusals = Vec::new();
        for place in &self.target.places {
            let attempt = async {
                match place {
                    Place::Tcp { host, port, encrypted } => {
                        let name = host.trim_matches(['[', ']']);
                        let stream = TcpStream::connect((name, *port)).await.map_err(|error| error.to_string())?;
                        let sender = match &self.tls {
                            Some(tls) if *encrypted => handshake(encrypt(tls, stream, name).await?).await?,
                            _ => handshake(stream).await?,
                        };
                        Ok::<_, String>((sender, format!("{host}:{port}")))
                    }
                    Place::Unix(path) => {
                        let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
                        Ok((handshake(stream).await?, "localhost".to_owned()))
                    }
                }
            };
            match timeout(CONNECT_DEADLINE, attempt).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(why)) => refusals.push(format!("{place} ({why})")),
                Err(_) => refusals.push(format!("{place} (no connection within {} s)", CONNECT_DEADLINE.as_secs())),
            }
        }
        Err(Broken::NotConnected(refusals.join(", nor at ")))
    }
}

fn failure(call: &Call, broken: Broken) -> Failure {
    match broken {
        Broken::Malformed(why) => Failure::usage(format!("no request can be made of these arguments: {why}")),
        Broken::NotConnected(why) => Failure::unreachable(format!(
            "no sidecar can be reached at {why}; start one with `tradepost serve`, or say where it is with --url or --socket"
        )),
        Broken::BrokeOff(why) | Broken::Silent(why) if call.method == Method::GET => {
            Failure::unreachable(format!("the sidecar did not answer: {why}"))
        }
        Broken::BrokeOff(why) | Broken::Silent(why) => {
            let advice = match &call.idempotency_key {
                Some(key) => format!("the same command with --idempotency-key {key} does it at most once"),
                None => "look before you run the command again".to_owned(),
            };
            Failure::unreachable(format!(
                "the sidecar did not answer, and whether it did what was asked is unknown: {why}; {advice}"
            ))
        }
    }
}

/// Speaks TLS with the server, if its certificate is for this name and can be believed.
async fn encrypt(tls: &TlsConnector, stream: TcpStream, name: &str) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    tls.connect(name, stream).await.map_err(|error| causes(&error))
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| causes(&error))?;
    // Its failures reach the caller through the request; it ends with the runtime at the latest.
    tokio::spawn(connection);
    Ok(sender)
}

fn bearer(token: &SecretString) -> hyper::http::Result<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn whole(response: Response<Incoming>) -> Result<Answer, Broken> {
    let (head, body) = response.into_parts();
    let text_of = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let retry_after = text_of(header::RETRY_AFTER).and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let is_problem = text_of(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/problem+json"));
    let body = http_body_util::Limited::new(body, LARGEST_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|error| Broken::BrokeOff(causes(error.as_ref())))?
        .to_bytes();
    Ok(Answer { status: head.status.as_u16(), is_problem, body, retry_after })
}

/// An error with its causes: hyper's own words alone are "connection error".
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !words.contains(&more) {
            words += &format!(": {more}");
        }
        source = error.source();
    }
    words
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
