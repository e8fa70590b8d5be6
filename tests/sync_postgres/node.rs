//! A real engine on a real file, replicated to PostgreSQL by the real driver, in one process with the test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::sync::{Notify, watch};
use tradepost::clock::{Clock, SystemClock};
use tradepost::domain::transaction::Finality;
use tradepost::domain::{Decision, NewTransaction, Sink, Transaction, TransactionId};
use tradepost::engine::replica::{SinkRequest, SinkState};
use tradepost::metrics::Metrics;
use tradepost::sync::driver::{Surroundings, drive};
use tradepost::sync::postgres::Postgres;
use tradepost::sync::postgres::sweep::Sweeping;
use tradepost::{Engine, Location, Options};

use super::common::sidecar::wait_for;
use super::common::{facts, registration, transaction_id};

/// A node, replicating while it has a thread for it.
pub struct Node {
    pub engine: Engine,
    file: PathBuf,
    sync: Option<(watch::Sender<bool>, JoinHandle<()>)>,
    pub bell: Arc<Notify>,
}

impl Node {
    /// A node on a file, with an agent of its own.
    pub fn open(file: &Path, agent: &str) -> Self {
        let engine = Engine::open(Options::new(Location::File(file.to_owned()))).expect("the file is sound");
        // It may be there from an earlier life of the file.
        drop(engine.register(registration(agent, &["python"]), None).wait());
        Self { engine, file: file.to_owned(), sync: None, bell: Arc::new(Notify::new()) }
    }

    /// The same, replicating.
    pub fn start(file: &Path, agent: &str, url: &str) -> Self {
        let mut node = Self::open(file, agent);
        node.replicate(url, None);
        node
    }

    pub fn replicate(&mut self, url: &str, sweep_every: Option<Duration>) {
        let sweeping = Sweeping { every: sweep_every, retry_after: HEALING * 2, time: HEALING };
        self.replicate_sweeping(url, sweeping);
    }

    pub fn replicate_sweeping(&mut self, url: &str, sweeping: Sweeping) {
        let (stop, stopped) = watch::channel(false);
        let (engine, bell) = (self.engine.clone(), Arc::clone(&self.bell));
        let url = Arc::new(ArcSwap::from_pointee(SecretString::from(url)));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
            let (_keep, reloaded) = watch::channel(0);
            let surroundings = Surroundings {
                engine: engine.clone(),
                metrics: Metrics::default(),
                clock: Arc::clone(&clock),
                random: rand::make_rng(),
                commits: engine.commits(),
                stopped,
                reloaded,
                bell,
            };
            let tasks = tokio::task::LocalSet::new();
            let postgres = Postgres::new(engine, clock, rand::make_rng(), url, false).sweeping(sweeping);
            tasks.block_on(&runtime, drive(postgres, surroundings));
        });
        self.sync = Some((stop, thread));
    }

    /// Stops replicating, as a sidecar does when it ends.
    pub fn isolate(&mut self) {
        if let Some((stop, thread)) = self.sync.take() {
            stop.send_replace(true);
            thread.join().expect("replication does not panic");
        }
    }

    /// Ends the node; its file can be copied or opened again.
    pub fn close(mut self) -> PathBuf {
        self.isolate();
        self.engine.close();
        self.file.clone()
    }

    pub fn record(&self, id: &str, payer: &str, provider: &str, amount: &str) -> Transaction {
        let new = NewTransaction {
            transaction_id: Some(transaction_id(id)),
            facts: facts(payer, provider, "python", amount),
        };
        self.engine.record(new, None).wait().expect("it is recorded").value
    }

    #[track_caller]
    pub fn decide(&self, id: &str, decision: Decision) -> Transaction {
        self.engine.decide(transaction_id(id), decision, None).wait().expect("the decision is allowed").value
    }

    pub fn transaction(&self, id: &str) -> Option<Transaction> {
        self.engine.transaction(&transaction_id(id)).ok()
    }

    /// Whether it shows a transaction, whose id may be any.
    pub fn holds(&self, id: &str) -> bool {
        self.engine.transaction(&TransactionId::from_stored(id)).is_ok()
    }

    pub fn state(&self) -> SinkState {
        self.engine.sinks().status(Sink::Postgres).state
    }

    pub fn ask(&self, request: SinkRequest) {
        self.engine.sinks().request(Sink::Postgres, request);
    }

    /// Waits until a transaction looks like that.
    #[track_caller]
    pub fn sees(&self, id: &str, what: &str, is_so: impl Fn(&Transaction) -> bool) -> Transaction {
        wait_for(&format!("{id} to be {what}; it is {:?}", self.transaction(id)), || {
            self.transaction(id).filter(|transaction| is_so(transaction))
        })
    }

    /// Waits until everything that this node holds is central.
    #[track_caller]
    pub fn drained(&self) {
        wait_for("the backlog to drain", || {
            let state = self.engine.postgres_state().expect("the store answers");
            let is_drained = state.acked_seq == self.engine.log_position().seq
                && state.acked_copies == self.engine.copy_position().expect("the store answers").0
                && !state.restarted;
            is_drained.then_some(())
        });
    }

    #[track_caller]
    pub fn is_central(&self, id: &str) {
        self.sees(id, "central", |transaction| transaction.finality == Finality::Central);
    }

    pub fn parked(&self) -> u64 {
        self.engine.parked_count(Sink::Postgres)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.isolate();
    }
}

/// Long enough for whatever heals by itself.
pub const HEALING: Duration = Duration::from_secs(30);
