//! An answer that is on its way from the writer.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::error::Error;

/// The answer to a command: await it, or [`wait`](Self::wait) for it. Dropping it does not undo the command.
#[derive(Debug)]
#[must_use = "a write is acknowledged by its answer only"]
pub struct Pending<T>(State<T>);

#[derive(Debug)]
enum State<T> {
    Ready(Option<Result<T, Error>>),
    Waiting(oneshot::Receiver<Result<T, Error>>),
}

impl<T> Pending<T> {
    pub(super) fn ready(result: Result<T, Error>) -> Self {
        Self(State::Ready(Some(result)))
    }

    pub(super) fn waiting(receiver: oneshot::Receiver<Result<T, Error>>) -> Self {
        Self(State::Waiting(receiver))
    }

    /// Blocks until the answer is there.
    ///
    /// # Panics
    ///
    /// Within an asynchronous task, where blocking would stall others: await it there.
    pub fn wait(self) -> Result<T, Error> {
        match self.0 {
            State::Ready(result) => result.unwrap_or_else(|| Err(gone())),
            State::Waiting(receiver) => receiver.blocking_recv().unwrap_or_else(|_| Err(gone())),
        }
    }
}

impl<T: Unpin> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(result) => Poll::Ready(result.take().unwrap_or_else(|| Err(gone()))),
            State::Waiting(receiver) => {
                Pin::new(receiver).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(gone())))
            }
        }
    }
}

fn gone() -> Error {
    Error::Unavailable("the engine was closed before it answered; the outcome is unknown".into())
}
