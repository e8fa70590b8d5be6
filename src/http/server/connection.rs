//! One connection: hyper reads and writes HTTP/1, this file keeps the time and has the last word.
//!
//! Deadlines are kept lazily: one timer a connection, which is moved only to an earlier time. When it fires, the deadline
//! of what is going on now is looked at again. So a request on a live connection costs no timer.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::slots::Slot;
use super::stopped;
use super::wire::{Watch, Wire};
use crate::http::Limits;
use crate::http::gate::{Gate, OTHER, Peer};
use crate::http::problem::{Code, Problem};
use crate::metrics::Metrics;

/// With which byte a TLS client begins.
const TLS_HANDSHAKE: u8 = 22;
const MAX_HEADERS: usize = 100;
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// hyper's buffers; the head's limit is kept separately, so this one only sizes reads and writes.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a last word may take to be sent, and how long what the client still sends is read and thrown away then.
const LAST_WORD: Duration = Duration::from_secs(2);
const MOST_UNREAD_BYTES: usize = 16 * 1024 * 1024;
/// How long an unfinished head is waited for once the server is stopping.
const STOPPING_HEAD: Duration = Duration::from_secs(1);

/// A connection that is about to be served.
pub(super) struct Connection {
    pub(super) gate: Arc<Gate>,
    pub(super) metrics: Metrics,
    pub(super) limits: Limits,
    pub(super) peer: Arc<Peer>,
    pub(super) slot: Slot,
    pub(super) shutdown: watch::Receiver<bool>,
}

/// What is going on; with the count of what has been done, so that doing more of the same is another phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet.
    Fresh,
    /// Between requests.
    Idle { requests: u64 },
    /// A head has begun.
    Head { requests: u64 },
    /// A request is being handled; its deadline is the gate's.
    Busy,
    /// The client takes no bytes.
    Blocked { written: u64 },
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// hyper is done with it.
    Done(Result<(), hyper::Error>),
    /// Something took too long.
    Late(Phase),
    /// Another connection needs the slot.
    Evicted,
}

impl Connection {
    /// Encrypts it, and serves it to its end. The handshake has the time that a head has.
    pub(super) async fn run_encrypted(mut self, stream: TcpStream, config: Arc<ServerConfig>) {
        let encrypt = async {
            let mut first = [0];
            let is_handshake = stream.peek(&mut first).await.is_ok_and(|count| count == 1) && first[0] == TLS_HANDSHAKE;
            if is_handshake { Ok(TlsAcceptor::from(config).accept(stream).await) } else { Err((stream, first[0])) }
        };
        let encrypted = tokio::select! {
            biased;
            encrypted = timeout(self.limits.head_deadline, encrypt) => encrypted,
            () = self.slot.evicted() => return,
            () = stopped(&mut self.shutdown) => return,
        };
        match encrypted {
            Ok(Ok(Ok(stream))) => self.run(stream).await,
            Ok(Ok(Err(error))) => tracing::debug!(%error, "a client and this server did not come to terms on TLS"),
            Ok(Err((stream, first))) if first.is_ascii_uppercase() => {
                let problem = Problem::malformed("this port speaks TLS only; write https:// instead of http://");
                self.metrics.http_request(OTHER, OTHER, problem.status().as_u16(), Duration::ZERO);
                close(stream, Some(&problem), true).await;
            }
            Ok(Err(_)) => {}
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Serves it to its end.
    pub(super) async fn run<S: AsyncRead + AsyncWrite + Send + Unpin>(mut self, stream: S) {
        let began = Instant::now();
        let watch = Arc::new(Watch::default());
        let slot = Arc::new(self.slot);
        let service = {
            let (gate, peer) = (self.gate, Arc::clone(&self.peer));
            let (watch, slot) = (Arc::clone(&watch), Arc::clone(&slot));
            service_fn(move |request: Request<Incoming>| {
                let busy = Busy::new(Arc::clone(&watch), Arc::clone(&slot));
                let (gate, peer) = (Arc::clone(&gate), Arc::clone(&peer));
                async move {
                    let response = gate.pass(request.map(Body::new), &peer).await;
                    Ok::<_, Infallible>(response.map(|body| BusyBody { body, _busy: busy }))
                }
            })
        };
        let mut http = http1::Builder::new();
        http.half_close(true)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(BUFFER_BYTES)
            .header_read_timeout(None);
        let mut connection = http.serve_connection(TokioIo::new(Wire::new(stream, Arc::clone(&watch))), service);

        let mut pace = Pace::new(&watch, &self.limits);
        let mut timer = pin!(sleep_until(Instant::now() + self.limits.head_deadline));
        let end = loop {
            tokio::select! {
                biased;
                end = poll_fn(|cx| poll_paced(Pin::new(&mut connection), &mut pace, timer.as_mut(), cx)) => break end,
                () = stopped(&mut self.shutdown), if !pace.stopping => {
                    pace.stopping = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                () = slot.evicted(), if !pace.stopping => {
                    if slot.is_idle() {
                        break End::Evicted;
                    }
                    pace.stopping = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        let stream = connection.into_parts().io.into_inner().into_stream();
        let last_word = last_word(&end, &watch);
        if let Some(problem) = &last_word {
            self.metrics.http_request(OTHER, OTHER, problem.status().as_u16(), began.elapsed());
        }
        tracing::trace!(?end, "a connection ends");
        let patient = last_word.is_some() || self.peer.leaves_bytes_unread.load(Ordering::Relaxed);
        let ended = watch.ended.load(Ordering::Relaxed);
        close(stream, last_word.as_ref(), patient && !ended).await;
    }
}

/// Tells a client that there is no room, and closes.
pub(super) async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: S, problem: &Problem) {
    close(stream, Some(problem), true).await;
}

/// Polls the connection, and the timer for whatever it is doing then.
fn poll_paced<F: Future<Output = Result<(), hyper::Error>>>(
    connection: Pin<&mut F>,
    pace: &mut Pace<'_>,
    mut timer: Pin<&mut Sleep>,
    cx: &mut Context<'_>,
) -> Poll<End> {
    if let Poll::Ready(result) = connection.poll(cx) {
        return Poll::Ready(End::Done(result));
    }
    loop {
        let deadline = pace.deadline();
        if let Some(deadline) = deadline.filter(|deadline| *deadline < timer.deadline()) {
            timer.as_mut().reset(deadline);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Poll::Ready(End::Late(pace.phase));
        }
        timer.as_mut().reset(deadline.unwrap_or(now + pace.limits.idle_deadline));
    }
}

/// Which phase a connection is in, and since when.
struct Pace<'a> {
    watch: &'a Watch,
    limits: &'a Limits,
    phase: Phase,
    since: Instant,
    stopping: bool,
}

impl<'a> Pace<'a> {
    fn new(watch: &'a Watch, limits: &'a Limits) -> Self {
        Self { watch, limits, phase: Phase::Fresh, since: Instant::now(), stopping: false }
    }

    /// When it has taken too long; `None` while the gate keeps the time.
    fn deadline(&mut self) -> Option<Instant> {
        let phase = Phase::of(self.watch);
        if phase != self.phase {
            (self.phase, self.since) = (phase, Instant::now());
        }
        let allowed = match phase {
            Phase::Fresh => self.limits.head_deadline,
            Phase::Head { .. } if self.stopping => self.limits.head_deadline.min(STOPPING_HEAD),
            Phase::Head { .. } => self.limits.head_deadline,
            Phase::Idle { .. } => self.limits.idle_deadline,
            Phase::Blocked { .. } => self.limits.write_deadline,
            Phase::Busy => return None,
        };
        Some(self.since + allowed)
    }
}

impl Phase {
    fn of(watch: &Watch) -> Self {
        let requests = watch.requests.load(Ordering::Relaxed);
        if watch.write_blocked.load(Ordering::Relaxed) {
            Self::Blocked { written: watch.written.load(Ordering::Relaxed) }
        } else if watch.busy.load(Ordering::Relaxed) {
            Self::Busy
        } else if watch.head_started.load(Ordering::Relaxed) {
            Self::Head { requests }
        } else if requests == 0 {
            Self::Fresh
        } else {
            Self::Idle { requests }
        }
    }
}

/// What is still to be said when a connection ends.
fn last_word(end: &End, watch: &Watch) -> Option<Problem> {
    let malformed = || Problem::malformed("the request's head is not HTTP/1.1");
    let too_large = || {
        Problem::new(
            Code::HeadersTooLarge,
            format!("a request's head is at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"),
        )
    };
    match end {
        End::Late(Phase::Head { .. }) => {
            Some(Problem::new(Code::RequestTimeout, "the request's head did not arrive in time"))
        }
        End::Late(_) | End::Evicted => None,
        End::Done(result) => match watch.swallowed.load(Ordering::Relaxed) {
            0 => result.as_ref().is_err_and(hyper::Error::is_parse).then(malformed),
            400 => Some(malformed()),
            _ => Some(too_large()),
        },
    }
}

/// Writes the last word, closes our side, and if need be reads what the client still sends: closing on unread bytes
/// would reset the connection and might take the answer from the client.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, last_word: Option<&Problem>, patient: bool) {
    let said = timeout(LAST_WORD, async {
        if let Some(problem) = last_word {
            stream.write_all(&as_response(problem)).await?;
        }
        stream.shutdown().await
    });
    if !matches!(said.await, Ok(Ok(()))) || !patient {
        return;
    }
    let unread = async {
        let mut buffer = [0; 4096];
        let mut rest = MOST_UNREAD_BYTES;
        while let Ok(count @ 1..) = stream.read(&mut buffer).await
            && let Some(left) = rest.checked_sub(count)
        {
            rest = left;
        }
    };
    // Whatever comes later than this meets a closed port.
    drop(timeout(LAST_WORD, unread).await);
}

fn as_response(problem: &Problem) -> Vec<u8> {
    let status = problem.status();
    let body = problem.to_json();
    let retry = if status.as_u16() == 503 { "retry-after: 1\r\n" } else { "" };
    let mut response = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    response.extend_from_slice(&body);
    response
}

/// A request is going on; from its head's end until its answer is handed over.
struct Busy {
    watch: Arc<Watch>,
    slot: Arc<Slot>,
}

impl Busy {
    fn new(watch: Arc<Watch>, slot: Arc<Slot>) -> Self {
        watch.busy.store(true, Ordering::Relaxed);
        watch.head_started.store(false, Ordering::Relaxed);
        watch.requests.fetch_add(1, Ordering::Relaxed);
        slot.set_busy();
        Self { watch, slot }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.watch.busy.store(false, Ordering::Relaxed);
        self.slot.set_idle();
    }
}

/// An answer's body, which keeps its connection busy until it is handed over.
struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
