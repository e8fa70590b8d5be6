//! Request bodies: read within limits, or read and thrown away so that a refused client sees its answer.
//!
//! A body that is sent while nobody reads it fills the client's socket, and a connection that is closed on unread bytes
//! is reset, which may destroy an answer on its way. So whatever a handler leaves unread is discarded before the answer.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Code, Problem};

/// The largest body of most requests.
pub(crate) const BODY_LIMIT: usize = 1024 * 1024;
/// The largest body of a batch.
pub(crate) const BATCH_LIMIT: usize = 16 * 1024 * 1024;
const DISCARD_LIMIT: u64 = 16 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);
const KIB: usize = 1024;

/// How many bytes of bodies may be held at once by the whole process, in KiB permits. Batches have a share of their own,
/// so that a few that trickle in leave room for everybody else's.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    batches: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let share = || Arc::new(Semaphore::new(bytes / KIB));
        Self { batches: share(), others: share() }
    }

    fn take(&self, kib: usize, limit: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let share = if limit > BODY_LIMIT { &self.batches } else { &self.others };
        u32::try_from(kib)
            .ok()
            .and_then(|kib| Arc::clone(share).try_acquire_many_owned(kib).ok())
            .ok_or_else(|| Problem::new(Code::Overloaded, "too many request bodies are being read; try again shortly"))
    }
}

/// A body that has been read whole; its share of the [`Budget`] is given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Buffered {
    bytes: Bytes,
    share: Option<OwnedSemaphorePermit>,
}

impl Buffered {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its share alone, for what was made of it and takes as much.
    pub(crate) fn into_share(self) -> Option<OwnedSemaphorePermit> {
        self.share
    }
}

/// Reads a whole body.
///
/// # Errors
/// 413 beyond `limit`, 503 when the budget is used up, 400 when the body breaks off.
pub(crate) async fn read(mut body: Body, limit: usize, budget: &Budget) -> Result<Buffered, Problem> {
    let announced = body.size_hint().lower();
    if usize::try_from(announced).map_or(true, |bytes| bytes > limit) {
        return Err(too_large(limit));
    }
    let mut read = Buffered::default();
    // Most bodies are one frame, which is taken as it is; only a second one makes a copy worth its while.
    let mut joined = Vec::new();
    let mut length = 0;
    let mut reserved = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::malformed("the body broke off, or its framing is malformed"))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > limit {
            return Err(too_large(limit));
        }
        let needed = length.div_ceil(KIB);
        if needed > reserved {
            let more = budget.take(needed - reserved, limit)?;
            reserved = needed;
            match &mut read.share {
                Some(share) => share.merge(more),
                none => *none = Some(more),
            }
        }
        if read.bytes.is_empty() && joined.is_empty() {
            read.bytes = data;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&read.bytes);
            }
            joined.extend_from_slice(&data);
        }
    }
    if !joined.is_empty() {
        read.bytes = joined.into();
    }
    Ok(read)
}

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the body must be at most {limit} bytes"))
}

/// Whether nothing follows the head, so far as one may know before reading.
pub(crate) fn is_known_empty(body: &Body) -> bool {
    body.is_end_stream() || body.size_hint().exact() == Some(0)
}

/// Whether a body has no bytes at all, found out by reading until the first.
pub(crate) async fn is_empty(mut body: Body) -> bool {
    while let Some(Ok(frame)) = body.frame().await {
        if frame.data_ref().is_some_and(|data| !data.is_empty()) {
            return false;
        }
    }
    true
}

/// The media type, in lower case and without parameters; `None` unless it is given exactly once and the body is sent as
/// it is, without a content coding.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let coded = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    (!coded).then_some(essence)
}

/// 415, naming what would have been taken.
pub(crate) fn unsupported(accepted: &str) -> Problem {
    Problem::new(Code::UnsupportedMediaType, format!("Content-Type must be {accepted}, without a Content-Encoding"))
}

/// A request's body in two hands: the handler reads it, and when the handler is done the rest can still be discarded.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Mutex<Reading>>);

#[derive(Debug)]
struct Reading {
    body: Body,
    started: bool,
    ended: bool,
}

impl Shared {
    pub(crate) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Reading { body, started: false, ended: false })))
    }

    /// Whether any of it was asked for, which sends a waiting client its `100 Continue`.
    pub(crate) fn is_started(&self) -> bool {
        self.lock().started
    }

    /// Whether it has been read to its end.
    pub(crate) fn is_ended(&self) -> bool {
        self.lock().ended
    }

    /// Reads and throws away what is left, up to 16 MiB or 5 s.
    pub(crate) async fn discard(&self) {
        self.discard_within(DISCARD_TIME).await;
    }

    async fn discard_within(&self, time: Duration) {
        let rest = async {
            let mut body = self.clone();
            let mut discarded: u64 = 0;
            while let Some(Ok(frame)) = body.frame().await {
                discarded += frame.data_ref().map_or(0, |data| data.len() as u64);
                if discarded >= DISCARD_LIMIT {
                    break;
                }
            }
        };
        // What is left after the time is left to the connection, which closes.
        drop(tokio::time::timeout(time, rest).await);
    }

    // Never contended, since the handler is done before anybody discards, so never held across a wait.
    fn lock(&self) -> std::sync::MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut reading = self.lock();
        reading.started = true;
        if reading.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut reading.body).poll_frame(cx);
        if let Poll::Ready(frame) = &polled {
            reading.ended = !matches!(frame, Some(Ok(_))) || reading.body.is_end_stream();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let reading = self.lock();
        reading.ended || reading.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn chunks(count: usize, size: usize) -> Body {
        Body::from_stream(stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; size])))))
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_whether_announced_or_not() {
        let budget = Budget::new(1024 * KIB);
        assert_eq!(read(Body::from("{}"), 2, &budget).await.unwrap().bytes(), b"{}");
        assert_eq!(read(chunks(3, 10), 30, &budget).await.unwrap().bytes().len(), 30);
        for body in [Body::from("xxx"), chunks(3, 1)] {
            assert_eq!(read(body, 2, &budget).await.unwrap_err().code(), Code::BodyTooLarge);
        }
        assert!(read(Body::empty(), 2, &budget).await.unwrap().bytes().is_empty());
    }

    #[tokio::test]
    async fn all_bodies_together_are_bounded_and_give_their_share_back() {
        let budget = Budget::new(4 * KIB);
        let first = read(chunks(3, KIB), 10 * KIB, &budget).await.unwrap();
        assert_eq!(read(chunks(2, KIB), 10 * KIB, &budget).await.unwrap_err().code(), Code::Overloaded);
        drop(first);
        assert_eq!(read(chunks(4, KIB), 10 * KIB, &budget).await.unwrap().bytes().len(), 4 * KIB);
    }

    #[tokio::test]
    async fn what_a_handler_leaves_is_discarded() {
        let shared = Shared::new(chunks(5, KIB));
        let read = read(Body::new(shared.clone()), KIB, &Budget::new(KIB * KIB)).await;
        assert_eq!(read.unwrap_err().code(), Code::BodyTooLarge);
        assert!(shared.is_started() && !shared.is_ended());
        shared.discard().await;
        assert!(shared.is_ended());
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_not_discarded_for_ever() {
        let shared = Shared::new(Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()));
        shared.discard_within(Duration::from_millis(20)).await;
        assert!(shared.is_started() && !shared.is_ended());
    }

    #[test]
    fn a_media_type_is_read_without_its_parameters() {
        let of = |pairs: &[(header::HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name.clone(), value.parse().unwrap());
            }
            media_type(&headers)
        };
        let json = || Some("application/json".to_owned());
        assert_eq!(of(&[(header::CONTENT_TYPE, "Application/JSON; charset=utf-8")]), json());
        assert_eq!(of(&[(header::CONTENT_TYPE, "application/json"), (header::CONTENT_ENCODING, "identity")]), json());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(header::CONTENT_TYPE, "application/json"), (header::CONTENT_ENCODING, "gzip")]), None);
        assert_eq!(of(&[(header::CONTENT_TYPE, "application/json"), (header::CONTENT_TYPE, "text/plain")]), None);
    }
}
