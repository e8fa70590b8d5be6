//! An engine whose registry and ledger are replicated as the sidecar does it, in one process with whoever looks on.

#![allow(dead_code, reason = "each binary that compiles this module uses a part of it")]

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::sync::watch;
use tradepost::clock::{Clock, SystemClock};
use tradepost::engine::replica::{Sink, SinkState};
use tradepost::metrics::Metrics;
use tradepost::sync::{CurrentUrl, SyncOptions, spawn};
use tradepost::{Engine, Location, Options};

/// Where the central systems are.
#[derive(Debug, Clone, Default)]
pub struct Urls {
    pub redis: Option<String>,
    pub postgres: Option<String>,
}

/// The engine and its replication, which ends with it.
pub struct Node {
    pub engine: Engine,
    urls: Urls,
    stop: watch::Sender<bool>,
    /// Nobody reads a URL again here, but who would is there.
    _reload: watch::Sender<u64>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// A node that keeps its data in memory.
    pub fn in_memory(urls: &Urls) -> Self {
        let engine = Engine::open(Options::new(Location::Memory)).expect("a store in memory opens");
        Self::replicate(engine, Arc::new(SystemClock::default()), urls)
    }

    /// Replicates an engine from here on.
    pub fn replicate(engine: Engine, clock: Arc<dyn Clock>, urls: &Urls) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (reload, reloaded) = watch::channel(0);
        let current = |url: &Option<String>| -> Option<CurrentUrl> {
            let url = url.as_deref()?;
            Some(Arc::new(ArcSwap::from_pointee(SecretString::from(url))))
        };
        let options = SyncOptions {
            engine: engine.clone(),
            metrics: Metrics::default(),
            clock,
            redis: current(&urls.redis),
            postgres: current(&urls.postgres),
            stale_for: Duration::from_secs(24 * 3_600),
            legacy_writers: false,
            stopped,
            reloaded,
        };
        let thread = Some(spawn(options).expect("a thread starts"));
        Self { engine, urls: urls.clone(), stop, _reload: reload, thread }
    }

    /// Whether everything that it holds is central, and it follows whatever sinks it has.
    pub fn is_settled(&self) -> bool {
        (self.urls.redis.is_none() || self.is_registry_settled())
            && (self.urls.postgres.is_none() || self.is_ledger_settled())
    }

    fn is_registry_settled(&self) -> bool {
        let told = self.engine.redis_state().expect("the store can be read").acked_change_seq;
        self.is_live(Sink::Redis) && told >= self.engine.commits().borrow().change_seq
    }

    fn is_ledger_settled(&self) -> bool {
        let state = self.engine.postgres_state().expect("the store can be read");
        let copies = self.engine.copy_position().expect("the store can be read").0;
        let is_acked = state.acked_seq == self.engine.log_position().seq && state.acked_copies == copies;
        self.is_live(Sink::Postgres) && is_acked && !state.restarted
    }

    fn is_live(&self, sink: Sink) -> bool {
        self.engine.sinks().status(sink).state == SinkState::Live
    }

    /// Tells it to stop, without waiting; dropped, it is waited for.
    pub fn begin_stopping(&self) {
        self.stop.send_replace(true);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.begin_stopping();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking(), "replication does not panic");
    }
}
