//! Drives one sink for as long as the sidecar runs: connects, works round after round, pauses, says how it goes.
//!
//! The driver decides *when*; what a round is, a [`Destination`] decides. One driver's sink can be down, slow or wrong
//! without another's noticing. Whatever happens inside a round, the backlog and the state that people see are renewed
//! every second.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::state::{Failure, FailureClass, Machine};
use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::engine::Engine;
use crate::engine::replica::{CommitMark, Sink, SinkRequest, SinkState, SinkStatus};
use crate::metrics::Metrics;

/// The longest that connecting may take, whatever it waits for.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How often what people see is renewed while nothing else happens.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// A round that takes longer is shown while it lasts: a server that has frozen says nothing, and is given up only later.
const SLOW_AFTER: Duration = Duration::from_secs(5);
/// How long the last rounds may take when the sidecar stops.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// A central system, as the driver sees it.
pub trait Destination {
    /// A connection, and what was learned over it.
    type Session;

    /// Which it is.
    const SINK: Sink;

    /// What this file holds and the sink has not acknowledged. Read from the store alone, whether the sink is there or
    /// not.
    fn backlog(engine: &Engine) -> Result<Backlog, Failure>;

    /// The part of a commit that concerns this sink: when it moves, there is something to push.
    fn mark(commit: &CommitMark) -> u64;

    /// Connects, says who we are, and learns how far we are known there.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Session, Failure>>;

    /// A bounded piece of work: push some, pull some. Must end by itself: every call it makes has a deadline.
    fn round(
        &mut self,
        session: &mut Self::Session,
        requests: &[SinkRequest],
    ) -> impl Future<Output = Result<Round, Failure>>;

    /// The connection was given up.
    fn lost(&mut self) {}

    /// What an operator should know besides the state.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a sink has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// How many entries.
    pub entries: u64,
    /// When the oldest of them was written.
    pub oldest: Option<Timestamp>,
    /// How many are set aside.
    pub parked: u64,
}

/// What a round came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    /// Entries that the sink acknowledged.
    pub pushed: u64,
    /// Entries of others that were taken in.
    pub pulled: u64,
    /// Whether there is more to do at once.
    pub more: bool,
    /// Otherwise: how long to wait for something to do before looking again.
    pub pause: Duration,
}

/// What a driver works with.
pub struct Surroundings {
    pub engine: Engine,
    pub metrics: Metrics,
    pub clock: Arc<dyn Clock>,
    pub random: StdRng,
    /// Moves with every commit.
    pub commits: watch::Receiver<CommitMark>,
    /// Turns true when the sidecar stops.
    pub stopped: watch::Receiver<bool>,
    /// Moves when credentials are to be read again.
    pub reloaded: watch::Receiver<u64>,
    /// Rung by somebody who knows that there is something to look for.
    pub bell: Arc<Notify>,
}

/// Why a session ended.
enum End {
    Stopped,
    Reloaded,
    Failed(Failure),
}

/// Runs until the sidecar stops.
pub async fn drive<D: Destination>(mut destination: D, surroundings: Surroundings) {
    let mut driver = Driver::<D>::new(surroundings);
    loop {
        driver.around.reloaded.mark_unchanged();
        driver.show();
        let connected = driver.unless_stopping(timeout(CONNECT_LIMIT, destination.connect()), None).await;
        let end = match connected {
            None => End::Stopped,
            Some(Ok(Ok(mut session))) => {
                driver.machine.connected();
                driver.show();
                let end = driver.session(&mut destination, &mut session).await;
                destination.lost();
                end
            }
            Some(Ok(Err(failure))) => End::Failed(failure),
            Some(Err(_)) => End::Failed(Failure::new(FailureClass::Unreachable, "no connection within 10 seconds")),
        };
        let stops = match end {
            End::Stopped => true,
            End::Reloaded => {
                driver.machine.retry();
                false
            }
            End::Failed(failure) => driver.pause_after(failure).await,
        };
        if stops {
            return;
        }
    }
}

struct Driver<D> {
    around: Surroundings,
    machine: Machine,
    seen: u64,
    backlog: Backlog,
    last_error: Option<String>,
    last_success: Option<Timestamp>,
    notes: Vec<String>,
    /// What people asked for since the last round began.
    asked: Vec<SinkRequest>,
    /// Whether the log knows that the sink is live.
    announced: bool,
    destination: std::marker::PhantomData<D>,
}

impl<D: Destination> Driver<D> {
    fn new(around: Surroundings) -> Self {
        Self {
            seen: 0,
            around,
            machine: Machine::default(),
            backlog: Backlog::default(),
            last_error: None,
            last_success: None,
            notes: Vec::new(),
            asked: Vec::new(),
            announced: false,
            destination: std::marker::PhantomData,
        }
    }

    /// Round after round until the connection fails, credentials change or the sidecar stops.
    async fn session(&mut self, destination: &mut D, session: &mut D::Session) -> End {
        loop {
            self.seen = D::mark(&self.around.commits.borrow_and_update());
            if let Some(more) = self.around.engine.sinks().requests(D::SINK).now_or_never() {
                self.asked.extend(more);
            }
            let asked = std::mem::take(&mut self.asked);
            let round = match self.unless_stopping(destination.round(session, &asked), Some(SLOW_AFTER)).await {
                Some(Ok(round)) => round,
                Some(Err(failure)) => return End::Failed(failure),
                None => return End::Stopped,
            };
            self.notes = destination.notes();
            self.worked(&round);
            if is_stopping(&self.around.stopped) {
                self.flush(destination, session).await;
                return End::Stopped;
            }
            if self.around.reloaded.has_changed().unwrap_or(false) {
                return End::Reloaded;
            }
            if !round.more {
                self.wait(round.pause).await;
            }
        }
    }

    /// Until there may be something to do.
    async fn wait(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        let (bell, mut reloaded) = (Arc::clone(&self.around.bell), self.around.reloaded.clone());
        let mut stopped = self.around.stopped.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = bell.notified() => return,
                asked = self.around.engine.sinks().requests(D::SINK) => {
                    self.asked.extend(asked);
                    return;
                }
                () = stopping(&mut stopped) => return,
                Ok(()) = reloaded.changed() => return,
                changed = self.around.commits.changed() => {
                    // The engine lives longer than its sinks; were it gone, there would be nothing to look at.
                    if changed.is_err() || D::mark(&self.around.commits.borrow_and_update()) != self.seen {
                        return;
                    }
                }
                () = sleep(REFRESH_EVERY) => {}
            }
            self.show();
        }
    }

    /// The last rounds before the sidecar stops; what does not get through now does at the next start.
    async fn flush(&mut self, destination: &mut D, session: &mut D::Session) {
        let last_rounds = async {
            loop {
                match destination.round(session, &[]).await {
                    Ok(round) if round.more => self.worked(&round),
                    Ok(round) => {
                        self.worked(&round);
                        return;
                    }
                    Err(failure) => {
                        tracing::debug!(sink = D::SINK.as_str(), reason = failure.reason, "not all was flushed");
                        return;
                    }
                }
            }
        };
        if timeout(FLUSH_LIMIT, last_rounds).await.is_err() {
            tracing::debug!(sink = D::SINK.as_str(), "the rest is left for the next start");
        }
    }

    /// Says what failed, and waits; whether the sidecar stops.
    async fn pause_after(&mut self, failure: Failure) -> bool {
        let pause = self.machine.failed(failure.class, &mut self.around.random);
        self.around.metrics.sync_failed(D::SINK.as_str(), failure.class.as_str());
        // The same again is no news; a log that repeats itself every few seconds for a month helps nobody.
        if self.last_error.as_ref() != Some(&failure.reason) {
            self.announced = false;
            let state = self.machine.state().as_str();
            tracing::warn!(
                sink = D::SINK.as_str(),
                state,
                reason = failure.reason,
                "the sink failed; it is tried again"
            );
        }
        self.last_error = Some(failure.reason);
        self.show();
        let until = Instant::now() + pause;
        let mut stopped = self.around.stopped.clone();
        let stops = loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => break false,
                asked = self.around.engine.sinks().requests(D::SINK) => {
                    self.asked.extend(asked);
                    break false;
                }
                () = stopping(&mut stopped) => break true,
                Ok(()) = self.around.reloaded.changed() => break false,
                () = sleep(REFRESH_EVERY) => self.show(),
            }
        };
        self.machine.retry();
        stops
    }

    fn worked(&mut self, round: &Round) {
        self.machine.worked(round.more);
        if self.machine.state() == SinkState::Live && !self.announced {
            self.announced = true;
            tracing::info!(sink = D::SINK.as_str(), "the sink is live");
        }
        self.last_error = None;
        self.last_success = Some(self.around.clock.now());
        if round.pushed > 0 {
            self.around.metrics.pushed(D::SINK.as_str(), round.pushed);
        }
        if round.pulled > 0 {
            self.around.metrics.pulled(D::SINK.as_str(), round.pulled);
        }
        self.show();
    }

    /// Awaits `work`, and renews meanwhile what people see, also that it takes longer than `slow_after`. When the sidecar
    /// stops, `work` has a little time left to end; `None` if it does not.
    async fn unless_stopping<T>(&mut self, work: impl Future<Output = T>, slow_after: Option<Duration>) -> Option<T> {
        let mut stopped = self.around.stopped.clone();
        let patience = async {
            stopping(&mut stopped).await;
            sleep(FLUSH_LIMIT).await;
        };
        tokio::select! {
            outcome = self.refreshing(work, slow_after) => Some(outcome),
            () = patience => None,
        }
    }

    /// Awaits `work`, and renews meanwhile what people see.
    async fn refreshing<T>(&mut self, work: impl Future<Output = T>, slow_after: Option<Duration>) -> T {
        tokio::pin!(work);
        let mut slow_at = slow_after.map(|after| Instant::now() + after);
        let mut ticks = interval(REFRESH_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                _ = ticks.tick() => {
                    if slow_at.take_if(|at| *at <= Instant::now()).is_some() {
                        self.is_slow();
                    }
                    self.show();
                }
            }
        }
    }

    /// Says that a round takes long.
    fn is_slow(&mut self) {
        self.machine.slow();
        let reason = format!("a round of work is not done after {} seconds", SLOW_AFTER.as_secs());
        self.around.metrics.sync_failed(D::SINK.as_str(), FailureClass::Busy.as_str());
        if self.last_error.as_ref() != Some(&reason) {
            self.announced = false;
            tracing::warn!(sink = D::SINK.as_str(), reason, "the sink is slow, or has gone silent");
        }
        self.last_error = Some(reason);
    }

    /// Publishes what people see.
    fn show(&mut self) {
        match D::backlog(&self.around.engine) {
            Ok(backlog) => self.backlog = backlog,
            // The store says so itself wherever it is asked; the last count that was read stays the best answer.
            Err(failure) => tracing::debug!(reason = failure.reason, "the backlog cannot be counted"),
        }
        let now = self.around.clock.now();
        self.around.engine.sinks().publish(
            D::SINK,
            SinkStatus {
                state: self.machine.state(),
                backlog: self.backlog.entries,
                lag: self.backlog.oldest.map_or(Duration::ZERO, |oldest| now.since(oldest)),
                parked: self.backlog.parked,
                last_error: self.last_error.clone(),
                last_success_at: self.last_success,
                notes: self.notes.clone(),
            },
        );
    }
}

/// Waits until the sidecar stops. That whoever could say so is gone comes to the same.
pub(super) async fn stopping(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stopped| *stopped).await);
}

fn is_stopping(stopped: &watch::Receiver<bool>) -> bool {
    *stopped.borrow() || stopped.has_changed().is_err()
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
