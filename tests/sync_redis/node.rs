//! An engine with its registry replicated to Redis, as the sidecar does it, on a thread of its own.

#![allow(dead_code, reason = "each test binary that compiles this module uses a part of it")]

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;
use tradepost::clock::{Clock, SystemClock};
use tradepost::domain::{AgentId, Weight};
use tradepost::engine::replica::{Sink, SinkState, SinkStatus};
use tradepost::metrics::Metrics;
use tradepost::sync::driver::{Surroundings, drive};
use tradepost::sync::redis::{Redis, Ringer};
use tradepost::{Engine, LeaseState, Location, Options, Profile};

use crate::common::{agent_id, registration};

/// Longer than anything takes that is waited for here.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Node {
    pub engine: Engine,
    pub ringer: Ringer,
    /// Rung when another node says that PostgreSQL has something for this one.
    pub rung: Arc<Notify>,
    stop: watch::Sender<bool>,
    /// Nobody reads a URL again here, but who would is there.
    _reload: watch::Sender<u64>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    pub fn start(url: &str) -> Self {
        Self::start_at(Location::Memory, url)
    }

    pub fn start_at(location: Location, url: &str) -> Self {
        Self::start_with(Engine::open(Options::new(location)).expect("the store opens"), url)
    }

    pub fn start_with(engine: Engine, url: &str) -> Self {
        Self::start_on(engine, Arc::new(SystemClock::default()), url)
    }

    /// On an engine whose clock is this one.
    pub fn start_on(engine: Engine, clock: Arc<dyn Clock>, url: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (reload, reloaded) = watch::channel(0);
        let (ringer, rung) = (Ringer::default(), Arc::new(Notify::new()));
        let url = Arc::new(ArcSwap::from_pointee(SecretString::from(url)));
        let thread = thread::spawn({
            let (engine, ringer, rung) = (engine.clone(), ringer.clone(), Arc::clone(&rung));
            move || {
                let surroundings = Surroundings {
                    engine: engine.clone(),
                    metrics: Metrics::default(),
                    clock: Arc::clone(&clock),
                    random: rand::make_rng(),
                    commits: engine.commits(),
                    stopped,
                    reloaded,
                    bell: Arc::new(Notify::new()),
                };
                let redis = Redis::new(engine, clock, rand::make_rng(), url, Duration::from_secs(3_600), rung)
                    .with_ringer(ringer);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(LocalSet::new().run_until(drive(redis, surroundings)));
            }
        });
        Self { engine, ringer, rung, stop, _reload: reload, thread: Some(thread) }
    }

    /// Stops replicating; what was not flushed stays in the store.
    pub fn stop(mut self) -> Engine {
        self.halt();
        self.engine.clone()
    }

    fn halt(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the driver ends by itself");
        }
    }

    pub fn register(&self, id: &str, ttl_seconds: i128) {
        let ttl = Some(tradepost::domain::Ttl::parse(ttl_seconds).expect("a test's own"));
        let registration = tradepost::domain::Registration { ttl, ..registration(id, &["python"]) };
        self.engine.register(registration, None).wait().expect("registered");
    }

    pub fn observe(&self, id: &str, success: bool) {
        self.engine.observe_outcome(agent_id(id), success, Weight::default(), None).wait().expect("observed");
    }

    pub fn profile(&self, id: &str) -> Option<Profile> {
        self.engine.agent(&AgentId::from_stored(id)).ok()
    }

    /// Counts of the reputation: all, good, bad.
    pub fn counts(&self, id: &str) -> Option<(u64, u64, u64)> {
        let reputation = self.profile(id)?.agent.reputation;
        Some((reputation.total_feedback, reputation.successful_tasks, reputation.failed_tasks))
    }

    pub fn status(&self) -> Arc<SinkStatus> {
        self.engine.sinks().status(Sink::Redis)
    }

    /// Waits until nothing is left to push.
    #[track_caller]
    pub fn settled(&self) {
        wait("a settled node", || {
            let acked = self.engine.redis_state().expect("the store can be read").acked_change_seq;
            let mark = *self.engine.commits().borrow();
            let status = self.status();
            let quiet = self.engine.observations().expect("the store can be read").is_empty();
            status.state == SinkState::Live && acked >= mark.change_seq && quiet
        });
    }

    #[track_caller]
    pub fn waits_for_state(&self, state: SinkState) -> Arc<SinkStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if status.state == state {
                return status;
            }
            assert!(Instant::now() < deadline, "waited in vain for {}: {status:?}", state.as_str());
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    pub fn waits_for_lease(&self, id: &str, lease: LeaseState) -> Profile {
        wait(&format!("{id} {}", lease.as_str()), || self.profile(id).is_some_and(|profile| profile.lease == lease));
        self.profile(id).expect("just seen")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Waits for a condition.
///
/// # Panics
/// When patience is at its end.
#[track_caller]
pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
