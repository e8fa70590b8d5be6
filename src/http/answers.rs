//! Answers, bounded together: what clients ask for and do not read must not fill the memory.
//!
//! Small answers are as many as there are connections. Larger ones share a budget until they are sent; a read that finds
//! it used up is answered 503 instead. The answer to a write is always given: it was done.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Code, Problem};

const KIB: u64 = 1024;
/// An answer of up to so many bytes takes nothing of the budget.
const SMALL: u64 = 64 * KIB;
/// What an answer takes that is made while it is sent: of such a one there is no more than this at a time.
const STREAMED: u64 = 4 * 1024 * KIB;
/// How many bytes of an answer are handed to the connection at a time.
const PART: usize = 32 * 1024;
/// How much larger answers may come to at a time, in KiB.
const BUDGET: u32 = 64 * 1024;

/// What is left for answers, in KiB.
#[derive(Debug, Clone)]
pub(crate) struct Answers(Arc<Semaphore>);

impl Default for Answers {
    fn default() -> Self {
        Self::of(BUDGET)
    }
}

impl Answers {
    fn of(kib: u32) -> Self {
        Self(Arc::new(Semaphore::new(kib as usize)))
    }

    /// Gives an answer its share until it is sent.
    pub(crate) fn bound(&self, response: Response, is_read: bool) -> Response {
        let bytes = response.body().size_hint().exact().unwrap_or(STREAMED);
        if bytes <= SMALL {
            return response;
        }
        // One that is larger than all there is has it for itself.
        let share = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(BUDGET).min(BUDGET);
        match Arc::clone(&self.0).try_acquire_many_owned(share) {
            Ok(share) => response.map(|body| Body::new(Sending { body, rest: Bytes::new(), _share: share })),
            Err(_) if is_read => {
                let detail = "too many large answers are being sent; try again shortly";
                Problem::new(Code::Overloaded, detail).into_response()
            }
            Err(_) => response,
        }
    }
}

/// A body on its way out, with its share of the budget. It is handed over in small parts: the connection copies what it
/// is given, and takes no more than it has room for.
struct Sending {
    body: Body,
    /// What the body has given and is not handed over yet.
    rest: Bytes,
    _share: OwnedSemaphorePermit,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PART);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest + body.lower());
        if let Some(upper) = body.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn large_answers_share_a_budget_until_they_are_gone() {
        let answers = Answers::of(250);
        let ask = |kib: usize, is_read| answers.bound(Response::new(Body::from(vec![b'x'; kib * 1024])), is_read);
        let first = ask(100, true);
        let second = ask(100, true);
        assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::OK));
        assert_eq!(ask(100, true).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask(100, false).status(), StatusCode::OK, "it was done");
        assert_eq!(ask(64, true).status(), StatusCode::OK);
        let mut body = first.into_body();
        assert_eq!(body.size_hint().exact(), Some(100 * 1024));
        let part = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((part.len(), body.size_hint().exact()), (PART, Some(100 * 1024 - PART as u64)));
        assert_eq!(ask(100, true).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 100 * 1024 - PART);
        assert_eq!(ask(100, true).status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn an_answer_that_is_made_while_it_is_sent_takes_its_share_too() {
        let answers = Answers::of(5 * 1024);
        let ask = || {
            let lines = futures_util::stream::iter([Ok::<_, std::io::Error>("a line")]);
            answers.bound(Response::new(Body::from_stream(lines)), true)
        };
        let first = ask();
        assert_eq!((first.status(), ask().status()), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
        drop(first);
        assert_eq!(ask().status(), StatusCode::OK);
    }
}
