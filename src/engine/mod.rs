//! The engine: the cloneable handle that everybody talks to.
//!
//! Writes are commands: [`Engine`]'s methods put them on a bounded queue, the one writer thread commits them in groups,
//! and the [`Pending`] answer arrives once they are durable. Queries read the published view of the last commit, without a
//! lock, on the caller's thread.
//!
//! Deliberately absent: HTTP, configuration, and connections to Redis or PostgreSQL; [`replica`] is what those see of it.

mod agents;
mod command;
mod core;
mod cursor;
mod directory;
mod discovery;
mod error;
mod export;
mod gauges;
mod hang;
mod intake;
mod lease;
mod ledger;
mod loads;
mod pending;
mod queries;
mod recorded;
pub mod replica;
mod rotation;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, TrySendError};
use rand::SeedableRng;
use rand::rngs::StdRng;
use redb::StorageBackend;

pub use self::agents::{Glimpse, LeaseState, Precondition, Profile};
pub use self::command::{Idempotency, Receipt};
pub use self::error::Error;
pub use self::export::Export;
pub use self::pending::Pending;
pub use self::queries::{AgentFilter, Page, PageRequest, StoreStatus};
pub use self::replica::{Sink, SinkBoard, SinkRequest, SinkState, SinkStatus};
pub use crate::store::{Balance, BalanceSide, OpenError, TransactionFilter};

use self::agents::{AdjustReputation, ObserveOutcome, Register, Replace, Revive, Unregister, Update};
use self::command::{Command, Repeatable, WithKey, job};
use self::core::Core;
use self::directory::Entry;
use self::intake::Message;
use self::ledger::{Decide, Record, RecordBatch};
use self::writer::Writer;
use crate::clock::{Clock, SystemClock};
use crate::domain::{
    AgentId, AgentPatch, Decision, Delta, NewTransaction, NodeId, Refusal, Registration, Reputation, Timestamp,
    Transaction, TransactionId, Ttl, Weight,
};
use crate::metrics::Metrics;
use crate::store::{Mint, Store, open_error};

/// How many commands may wait for the writer; one more is answered [`Error::Overloaded`].
pub const QUEUE_LENGTH: usize = 8_192;

/// Where an engine keeps its data.
#[derive(Debug, Clone)]
pub enum Location {
    /// In this file, created if it does not exist.
    File(PathBuf),
    /// Nowhere: gone when the engine is.
    Memory,
    /// On any storage that redb can use; an empty one becomes a new store.
    Backend(Arc<dyn StorageBackend>),
}

/// How to open an engine.
#[derive(Debug)]
pub struct Options {
    /// Where the data is.
    pub location: Location,
    /// The lease of an agent that names none.
    pub agent_ttl: Ttl,
    /// Where to count.
    pub metrics: Metrics,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Seeds the ids that are minted; `None` draws a seed from the system.
    pub seed: Option<u64>,
}

impl Options {
    /// Defaults for a location: leases of one hour, the system's clock and randomness.
    pub fn new(location: Location) -> Self {
        Self {
            location,
            agent_ttl: Ttl::default(),
            metrics: Metrics::default(),
            clock: Arc::new(SystemClock::default()),
            seed: None,
        }
    }
}

/// The handle; a clone talks to the same engine. When the last one goes, what is queued is committed and the store
/// closed.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    messages: Sender<Message>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Opens an engine.
    ///
    /// ```
    /// use tradepost::domain::{AgentId, Capability, Currency, Facts, JsonObject, Money, NewTransaction};
    /// use tradepost::{Engine, Location, Options};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let engine = Engine::open(Options::new(Location::Memory))?;
    /// let facts = Facts {
    ///     payer_agent: AgentId::parse("payer_agent", "genesis")?,
    ///     provider_agent: AgentId::parse("provider_agent", "thon")?,
    ///     capability: Capability::parse("capability", "Python")?,
    ///     amount: Money::parse("18.50")?,
    ///     currency: Currency::default(),
    ///     context: JsonObject::default(),
    /// };
    /// let recorded = engine.record(NewTransaction { transaction_id: None, facts }, None).wait()?;
    /// assert!(recorded.created);
    /// assert_eq!(engine.transaction(&recorded.value.transaction_id)?, recorded.value);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`OpenError`] says; a file that is refused is left as it was.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let mut random = match options.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => rand::make_rng(),
        };
        let mint = Mint { now: options.clock.now(), random: &mut random };
        let (store, head) = match options.location {
            Location::File(path) => Store::open_file(&path, mint)?,
            Location::Memory => Store::open_memory(mint)?,
            Location::Backend(backend) => Store::open_backend(backend, None, mint)?,
        };
        let path = store.path().map_or_else(|| PathBuf::from("memory"), ToOwned::to_owned);
        let identity = Arc::clone(head.identity());
        let core = Arc::new(Core::new(store, identity, options.clock, options.metrics, options.agent_ttl));
        let (messages, receiver) = crossbeam_channel::bounded(QUEUE_LENGTH);
        let writer =
            Writer::start(Arc::clone(&core), receiver, head, random).map_err(|error| open_error(&path, error))?;
        let writer = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Io { path, source })?;
        Ok(Self(Arc::new(Inner { core, messages, writer: Mutex::new(Some(writer)) })))
    }

    /// Commits what is queued, closes the store, and waits until that is done. Later calls answer
    /// [`Error::Unavailable`].
    pub fn close(&self) {
        self.0.close();
    }

    /// This node.
    pub fn node_id(&self) -> NodeId {
        self.core().view().identity.node_id
    }

    /// Has the log say so when the disk hangs, where nobody asks for anything. To be called every second or so.
    pub fn look_at_disk(&self) {
        self.core().progress.hangs();
    }

    /// How the sinks are doing.
    pub fn sinks(&self) -> &SinkBoard {
        &self.core().sinks
    }

    /// Registers an agent under an id that no live agent has. An expired one is replaced and keeps its reputation.
    pub fn register(&self, registration: Registration, once: Option<Idempotency>) -> Pending<Receipt<Profile>> {
        self.submit_once(Register(registration), once)
    }

    /// Registers an agent or replaces it, whoever has the id; reputation is kept, the lease begins again.
    pub fn replace(&self, registration: Registration, when: Precondition) -> Pending<Receipt<Profile>> {
        self.submit(Replace { registration, when })
    }

    /// Changes what the patch names, and renews the lease.
    pub fn update(&self, id: AgentId, patch: AgentPatch, when: Precondition) -> Pending<Profile> {
        self.submit(Update { agent_id: id, patch, when })
    }

    /// Removes an agent.
    pub fn unregister(&self, id: AgentId, when: Precondition) -> Pending<()> {
        self.submit(Unregister { agent_id: id, when })
    }

    /// Renews an agent's lease; the answer is when it expires now. It is not a durable write and is answered at once,
    /// but for an agent that had expired, which is revived.
    pub fn heartbeat(&self, id: &AgentId) -> Pending<Timestamp> {
        loop {
            let view = self.core().view();
            let Some(entry) = view.directory.get(id) else {
                return Pending::ready(Err(Refusal::AgentNotFound(id.clone()).into()));
            };
            if !entry.local {
                return Pending::ready(Err(Refusal::AgentNotLocal(id.clone()).into()));
            }
            if !entry.claimed {
                return self.submit(Revive(id.clone()));
            }
            let Ok(expires_at) = entry.lease.renew(self.core().moment(), entry.ttl) else {
                return self.submit(Revive(id.clone()));
            };
            // A commit may replace the lease at this moment. Either it finds the old one renewed when it has published the
            // new one, or that is seen here.
            fence(Ordering::SeqCst);
            let still_its_own = |now: &Arc<Entry>| now.claimed && Arc::ptr_eq(&now.lease, &entry.lease);
            if self.core().view().directory.get(id).is_some_and(still_its_own) {
                return Pending::ready(Ok(expires_at));
            }
        }
    }

    /// Takes in what somebody made of an agent's work: the score moves by ±`weight` within 0 to 5.
    pub fn observe_outcome(
        &self,
        id: AgentId,
        success: bool,
        weight: Weight,
        once: Option<Idempotency>,
    ) -> Pending<Receipt<Reputation>> {
        self.submit_once(ObserveOutcome { agent_id: id, success, weight }, once)
    }

    /// Corrects an agent's score within 0 to 5.
    pub fn adjust_reputation(
        &self,
        id: AgentId,
        delta: Delta,
        once: Option<Idempotency>,
    ) -> Pending<Receipt<Reputation>> {
        self.submit_once(AdjustReputation { agent_id: id, delta }, once)
    }

    /// Records a transaction. The same id with the same facts gives the existing one, and `created` is false.
    pub fn record(&self, transaction: NewTransaction, once: Option<Idempotency>) -> Pending<Receipt<Transaction>> {
        self.submit_once(Record::new(transaction), once)
    }

    /// Records many transactions in one durable commit; each answer stands for itself.
    pub fn record_batch(
        &self,
        transactions: Vec<NewTransaction>,
    ) -> Pending<Vec<Result<Receipt<Transaction>, Refusal>>> {
        self.submit(RecordBatch::new(transactions))
    }

    /// Settles, cancels, disputes, resolves, or adds evidence.
    pub fn decide(
        &self,
        id: TransactionId,
        decision: Decision,
        once: Option<Idempotency>,
    ) -> Pending<Receipt<Transaction>> {
        self.submit_once(Decide { transaction_id: id, decision }, once)
    }

    fn submit_once<C: Repeatable>(&self, command: C, idempotency: Option<Idempotency>) -> Pending<Receipt<C::Entity>> {
        self.submit(WithKey { idempotency, command })
    }

    fn submit<C: Command>(&self, command: C) -> Pending<C::Output> {
        let (job, pending) = job(command);
        let failed = if job.is_bookkeeping() { self.core().failed_for_bookkeeping() } else { self.core().failed() };
        let refused = match failed {
            Some(error) => Some((job, error)),
            None => match self.0.messages.try_send(Message::Run(job)) {
                Ok(()) => None,
                Err(TrySendError::Full(Message::Run(job))) => Some((job, Error::Overloaded)),
                Err(TrySendError::Disconnected(Message::Run(job))) => {
                    Some((job, Error::Unavailable("the engine is closed".into())))
                }
                Err(_) => None,
            },
        };
        if let Some((job, error)) = refused {
            job.finish(Some(&error), &self.core().metrics);
        }
        pending
    }

    fn core(&self) -> &Core {
        &self.0.core
    }

    fn queue_depth(&self) -> usize {
        self.0.messages.len()
    }
}

impl Inner {
    fn close(&self) {
        self.core.begin_closing();
        // Held until it is done, so that a second caller waits as well.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.take() {
            // An error means that the writer is gone already, which is what is wanted.
            drop(self.messages.send(Message::Stop));
            if writer.join().is_err() {
                tracing::error!("the writer thread panicked");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
