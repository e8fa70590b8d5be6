//! Replication: the registry to Redis, the ledger to PostgreSQL, and what other nodes wrote back from there.
//!
//! One background thread with a runtime of its own, one task a sink; the tasks share nothing but the bell that Redis
//! rings for PostgreSQL. No request ever waits for this thread: requests commit to the local store, the thread reads
//! what is new from there, and what it brings back goes through the engine's one writer like any other write.
//!
//! ```text
//! app ──spawn──► driver ── state (pure) ── destination: redis | postgres
//! ```
//!
//! Deliberately absent: redb and HTTP.

pub mod driver;
pub mod postgres;
pub mod redis;
pub mod state;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;

use self::driver::{Destination, Surroundings, drive, stopping};
use crate::clock::Clock;
use crate::domain::AgentId;
use crate::engine::Engine;
use crate::engine::replica::{SinkState, SinkStatus};
use crate::metrics::Metrics;

/// How long to wait before a sink whose task panicked is started again.
const PANIC_PAUSE: Duration = Duration::from_secs(15);

/// The URL of a central system, as it is at present; read at every connect.
pub type CurrentUrl = Arc<ArcSwap<SecretString>>;

/// Tells the node of an agent that there is something for it in PostgreSQL. May be lost; never blocks.
pub type Ring = Rc<dyn Fn(&AgentId)>;

/// What to replicate, where to, and until when.
pub struct SyncOptions {
    /// What is replicated.
    pub engine: Engine,
    /// Where to count.
    pub metrics: Metrics,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where the registry goes.
    pub redis: Option<CurrentUrl>,
    /// Where the ledger goes.
    pub postgres: Option<CurrentUrl>,
    /// How long remote agents stay discoverable while Redis is away.
    pub stale_for: Duration,
    /// Whether programs that know nothing of us write there too.
    pub legacy_writers: bool,
    /// Turns true when the sidecar stops.
    pub stopped: watch::Receiver<bool>,
    /// Moves when a URL was read again.
    pub reloaded: watch::Receiver<u64>,
}

/// Starts replicating. The thread ends by itself within a few seconds of `stopped`, and before the engine is closed it
/// should be joined, so that what can still be flushed is.
pub fn spawn(options: SyncOptions) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("sync".to_owned()).spawn(move || {
        let tasks = LocalSet::new();
        let bell = Arc::new(Notify::new());
        let ringer = redis::Ringer::default();
        let options = Arc::new(options);
        if let Some(url) = options.redis.clone() {
            let (engine, clock) = (options.engine.clone(), Arc::clone(&options.clock));
            let (stale_for, rung, ringer) = (options.stale_for, Arc::clone(&bell), ringer.clone());
            let make = move || {
                let (clock, url) = (Arc::clone(&clock), Arc::clone(&url));
                redis::Redis::new(engine.clone(), clock, rand::make_rng(), url, stale_for, Arc::clone(&rung))
                    .with_ringer(ringer.clone())
            };
            // Redis has no bell of its own: its stream is read all the time.
            tasks.spawn_local(supervise(make, Arc::clone(&options), Arc::new(Notify::new())));
        }
        if let Some(url) = options.postgres.clone() {
            let (engine, clock) = (options.engine.clone(), Arc::clone(&options.clock));
            let legacy_writers = options.legacy_writers;
            // Where there is no Redis there is nobody to ring, and others look now and then.
            let ring: Option<Ring> =
                options.redis.is_some().then(|| Rc::new(move |id: &AgentId| ringer.ring(id)) as Ring);
            let make = move || {
                let (clock, url) = (Arc::clone(&clock), Arc::clone(&url));
                let sink = postgres::Postgres::new(engine.clone(), clock, rand::make_rng(), url, legacy_writers);
                match &ring {
                    Some(ring) => sink.with_ring(Rc::clone(ring)),
                    None => sink,
                }
            };
            tasks.spawn_local(supervise(make, Arc::clone(&options), bell));
        }
        runtime.block_on(tasks);
    })
}

/// Drives a sink, and starts it again should its task panic: a mistake of ours in one sink must not end the other, nor
/// this one for good.
async fn supervise<D: Destination + 'static>(make: impl Fn() -> D, options: Arc<SyncOptions>, bell: Arc<Notify>) {
    loop {
        let surroundings = Surroundings {
            engine: options.engine.clone(),
            metrics: options.metrics.clone(),
            clock: Arc::clone(&options.clock),
            random: rand::make_rng(),
            stopped: options.stopped.clone(),
            commits: options.engine.commits(),
            reloaded: options.reloaded.clone(),
            bell: Arc::clone(&bell),
        };
        let Err(panic) = tokio::task::spawn_local(drive(make(), surroundings)).await else { return };
        let words = "replication stumbled over a mistake of its own; it starts again";
        tracing::error!(sink = D::SINK.as_str(), %panic, "{words}");
        options.metrics.sync_failed(D::SINK.as_str(), "panic");
        // Nobody else says so while it pauses, and what was said last may be that all is well.
        let sinks = options.engine.sinks();
        let status = SinkStatus {
            state: SinkState::Backoff,
            last_error: Some(words.to_owned()),
            ..(*sinks.status(D::SINK)).clone()
        };
        sinks.publish(D::SINK, status);
        let mut stopped = options.stopped.clone();
        tokio::select! {
            () = tokio::time::sleep(PANIC_PAUSE) => {}
            () = stopping(&mut stopped) => return,
        }
    }
}
