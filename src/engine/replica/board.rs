//! How the sinks are doing, for status and metrics; and what people ask of them. In memory only.
//!
//! Replication publishes, everybody reads without a lock. A request leaves a mark and wakes replication; asked for twice
//! before it is taken, it is done once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::domain::{Sink, Timestamp};

/// Where the connection to a sink stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SinkState {
    /// Not configured.
    #[default]
    Off,
    /// Being connected to.
    Connecting,
    /// Connected, with a backlog either way.
    CatchingUp,
    /// Connected, with nothing left to do but to follow.
    Live,
    /// Waiting after a failure before the next attempt.
    Backoff,
    /// Refusing us: its configuration, or ours, has to change. Tried again now and then.
    Halted,
}

impl SinkState {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Off, Self::Connecting, Self::CatchingUp, Self::Live, Self::Backoff, Self::Halted];

    /// The name on the wire, in metrics and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connecting => "connecting",
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
            Self::Backoff => "backoff",
            Self::Halted => "halted",
        }
    }
}

/// How a sink is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SinkStatus {
    /// Where the connection stands.
    pub state: SinkState,
    /// How many entries it has not acknowledged, parked ones not counted.
    pub backlog: u64,
    /// The age of the oldest of them.
    pub lag: Duration,
    /// How many entries are parked.
    pub parked: u64,
    /// The last failure, in words, without secrets; kept until the next success.
    pub last_error: Option<String>,
    /// When it last did what it was asked.
    pub last_success_at: Option<Timestamp>,
    /// What an operator should know besides: agents superseded, a fork.
    pub notes: Vec<String>,
}

/// What is asked of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkRequest {
    /// Try again at once, parked entries too.
    Retry,
    /// Compare everything anew.
    Resync,
}

impl SinkRequest {
    fn bit(self) -> u8 {
        match self {
            Self::Retry => 1,
            Self::Resync => 2,
        }
    }
}

/// The sinks' statuses, and what was asked of them.
#[derive(Debug, Default)]
pub struct SinkBoard {
    redis: Board,
    postgres: Board,
}

#[derive(Debug, Default)]
struct Board {
    status: ArcSwap<SinkStatus>,
    asked: AtomicU8,
    wake: Notify,
}

impl SinkBoard {
    /// How a sink is doing.
    pub fn status(&self, sink: Sink) -> Arc<SinkStatus> {
        self.board(sink).status.load_full()
    }

    /// Says how a sink is doing.
    pub fn publish(&self, sink: Sink, status: SinkStatus) {
        self.board(sink).status.store(Arc::new(status));
    }

    /// Asks something of a sink. Nothing comes of it while the sink is off.
    pub fn request(&self, sink: Sink, request: SinkRequest) {
        let board = self.board(sink);
        board.asked.fetch_or(request.bit(), Ordering::AcqRel);
        board.wake.notify_one();
    }

    /// Waits until something is asked of a sink, and takes it; everything asked meanwhile comes at once, each once.
    ///
    /// Cancel safe: what was not returned is returned by the next call. Each sink has one task that waits.
    pub async fn requests(&self, sink: Sink) -> Vec<SinkRequest> {
        let board = self.board(sink);
        loop {
            let asked = board.asked.swap(0, Ordering::AcqRel);
            if asked != 0 {
                let all = [SinkRequest::Retry, SinkRequest::Resync];
                return all.into_iter().filter(|request| asked & request.bit() != 0).collect();
            }
            board.wake.notified().await;
        }
    }

    fn board(&self, sink: Sink) -> &Board {
        match sink {
            Sink::Redis => &self.redis,
            Sink::Postgres => &self.postgres,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_asked_is_taken_once_by_the_sink_it_was_asked_of() {
        let board = SinkBoard::default();
        board.request(Sink::Redis, SinkRequest::Retry);
        board.request(Sink::Redis, SinkRequest::Retry);
        board.request(Sink::Redis, SinkRequest::Resync);
        assert_eq!(board.requests(Sink::Redis).await, [SinkRequest::Retry, SinkRequest::Resync]);
        tokio::select! {
            biased;
            asked = board.requests(Sink::Redis) => panic!("{asked:?} was asked twice"),
            asked = board.requests(Sink::Postgres) => panic!("{asked:?} was asked of the other sink"),
            () = std::future::ready(()) => {}
        }
        let waiting = board.requests(Sink::Postgres);
        board.request(Sink::Postgres, SinkRequest::Resync);
        assert_eq!(waiting.await, [SinkRequest::Resync]);
    }

    #[test]
    fn a_sink_is_off_until_something_else_is_published() {
        let board = SinkBoard::default();
        assert_eq!(board.status(Sink::Redis).state, SinkState::Off);
        board.publish(Sink::Redis, SinkStatus { state: SinkState::Live, backlog: 3, ..SinkStatus::default() });
        assert_eq!(board.status(Sink::Redis).backlog, 3);
        assert_eq!(*board.status(Sink::Postgres), SinkStatus::default());
    }
}
