//! What the writer runs: a command decides within a session, and its answer goes out after the commit.

use std::collections::HashMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::oneshot;

use super::directory::{Directory, Entry};
use super::error::Error;
use super::lease::{Lease, Moment};
use super::pending::Pending;
use super::recorded::Recorded;
use crate::domain::agent::{AgentContext, Existing};
use crate::domain::{
    Agent, AgentId, AgentVersion, Capability, Counters, Observation, ObserverId, Refusal, Timestamp, TransactionStatus,
    Ttl, observation,
};
use crate::metrics::Metrics;
use crate::store::{Batch, Publish, Receipt as StoredReceipt, StoreError};

/// Why a command ended without a result.
#[derive(Debug)]
pub enum Stop {
    /// It was refused, and has changed nothing.
    Refused(Refusal),
    /// The store failed; the whole batch is dropped.
    Failed(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl<R: Into<Refusal>> From<R> for Stop {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal.into())
    }
}

/// One kind of write.
pub trait Command: Send + 'static {
    /// What the caller gets once the write is durable.
    type Output: Send + 'static;

    /// Loads what it needs, decides, and only then changes anything, so that a refusal leaves nothing behind.
    fn run(self, session: &mut Session<'_, '_>) -> Result<Self::Output, Stop>;

    /// Whether it only notes how far a sink has come. Such commands are small, and run while the disk is full.
    fn is_bookkeeping(&self) -> bool {
        false
    }

    /// Counts the call, once its outcome is known.
    fn count(_outcome: &Result<Self::Output, Error>, _metrics: &Metrics) {}
}

/// What happens outside the store once the batch is durable.
#[derive(Debug)]
pub enum Effect {
    /// The directory gets an entry.
    Put(Entry),
    /// The directory loses one.
    Remove(AgentId),
    /// A lease ends at another time than it was watched for.
    Rewatch(AgentId),
    /// Counters of an agent's work have grown.
    ObservationsMoved,
    /// An outcome was observed.
    Outcome {
        /// Of whom.
        agent_id: AgentId,
        /// Whether it was a success.
        success: bool,
    },
    /// Transactions of other nodes count as load, or no more.
    LoadMoved {
        /// Whose work.
        provider: AgentId,
        /// For what.
        capability: Capability,
        /// When it was recorded.
        at: Timestamp,
        /// Whether it counts from here on.
        counts: bool,
    },
    /// Events that met here disagree.
    Conflicted {
        /// How; see [`Metrics::ledger_conflict`].
        reason: &'static str,
        /// How often.
        times: usize,
    },
    /// A transaction changed its status.
    Transitioned {
        /// From this.
        from: TransactionStatus,
        /// To this.
        to: TransactionStatus,
        /// For what the transaction is.
        capability: Capability,
        /// From recording to the first settlement, if this was it.
        settled_after: Option<std::time::Duration>,
    },
}

/// What commands of one batch work with.
pub struct Session<'a, 't> {
    /// The write transaction.
    pub batch: &'a mut Batch<'t>,
    /// When the batch began.
    pub moment: Moment,
    /// The lease of an agent that names none.
    pub default_ttl: Ttl,
    /// What was recorded.
    pub recorded: Recorded,
    directory: &'a Directory,
    random: &'a mut StdRng,
    /// Leases that this batch began (or, with `None`, whose agents it removed).
    leases: HashMap<AgentId, Option<Arc<Lease>>>,
    effects: Vec<Effect>,
}

impl<'a, 't> Session<'a, 't> {
    pub fn new(
        batch: &'a mut Batch<'t>,
        directory: &'a Directory,
        moment: Moment,
        default_ttl: Ttl,
        random: &'a mut StdRng,
    ) -> Self {
        Self {
            batch,
            moment,
            default_ttl,
            recorded: Recorded::default(),
            directory,
            random,
            leases: HashMap::new(),
            effects: Vec::new(),
        }
    }

    /// What is to happen once the batch is durable, and what it recorded.
    pub fn into_effects(self) -> (Vec<Effect>, Recorded) {
        (self.effects, self.recorded)
    }

    /// Adds to what happens once the batch is durable.
    pub fn after_commit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Random bytes, for a UUID.
    pub fn random_bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    /// What the rules for agents need to know.
    pub fn agent_context(&self, id: &AgentId) -> Result<AgentContext, Stop> {
        Ok(AgentContext {
            now: self.moment.now,
            node_id: self.batch.node_id(),
            default_ttl: self.default_ttl,
            revision_floor: self.batch.revision_floor(),
            departed: self.batch.departed(id)?,
        })
    }

    /// What this node has observed of an agent; new counters if it is nothing yet.
    pub fn observation(&mut self, id: &AgentId) -> Result<Observation, Stop> {
        if let Some(observation) = self.batch.observation(id)? {
            return Ok(observation);
        }
        Ok(Observation {
            agent_id: id.clone(),
            observer: self.mint_observer(),
            total: Counters::default(),
            acked: Counters::default(),
            offered: Counters::default(),
        })
    }

    /// An agent that is this node's from here on, with a reputation that holds what was observed here: whoever owns it
    /// next is not to fold that again.
    pub fn owned(&self, mut agent: Agent) -> Result<Agent, Stop> {
        if let Some(own) = self.batch.observation(&agent.agent_id)? {
            observation::hold(&mut agent.baseline, own.observer, own.total);
        }
        Ok(agent)
    }

    /// A fresh observer id.
    pub fn mint_observer(&mut self) -> ObserverId {
        ObserverId::mint(self.moment.now, self.random_bytes())
    }

    /// A stored agent that must exist.
    pub fn require_agent(&self, id: &AgentId) -> Result<Agent, Stop> {
        self.batch.agent(id)?.ok_or_else(|| Refusal::AgentNotFound(id.clone()).into())
    }

    /// A stored agent, and whether its lease runs.
    pub fn existing(&self, id: &AgentId) -> Result<Option<Existing>, Stop> {
        Ok(self.batch.agent(id)?.map(|agent| {
            let live = !agent.expired && self.lease(id).is_some_and(|lease| lease.is_live(self.moment.monotonic));
            Existing { agent, live }
        }))
    }

    /// The lease that an agent has by now.
    pub fn lease(&self, id: &AgentId) -> Option<Arc<Lease>> {
        match self.leases.get(id) {
            Some(staged) => staged.clone(),
            None => self.directory.get(id).map(|entry| Arc::clone(&entry.lease)),
        }
    }

    /// Writes an agent and begins a lease for it.
    pub fn put_with_new_lease(&mut self, agent: &Agent) -> Result<Arc<Lease>, Stop> {
        let lease = Arc::new(Lease::begin(self.moment, agent.ttl));
        self.put(agent, Arc::clone(&lease), Publish::Yes)?;
        Ok(lease)
    }

    /// Writes an agent that keeps the lease that it has, if it has one.
    pub fn put_keeping_lease(&mut self, agent: &Agent, publish: Publish) -> Result<(), Stop> {
        let lease = self.lease(&agent.agent_id).unwrap_or_else(|| Arc::new(Lease::ended(agent.expires_at)));
        self.put(agent, lease, publish)
    }

    /// Writes an agent with this lease.
    pub fn put(&mut self, agent: &Agent, lease: Arc<Lease>, publish: Publish) -> Result<(), Stop> {
        self.batch.put_agent(agent, publish)?;
        let local = agent.is_local(self.batch.node_id());
        self.leases.insert(agent.agent_id.clone(), Some(Arc::clone(&lease)));
        self.effects.push(Effect::Put(Entry::new(agent, lease, local)));
        Ok(())
    }

    /// Removes an agent; `version` is that of its deletion.
    pub fn remove(&mut self, agent: &Agent, version: AgentVersion) -> Result<(), Stop> {
        self.batch.remove_agent(agent, version)?;
        self.leases.insert(agent.agent_id.clone(), None);
        self.effects.push(Effect::Remove(agent.agent_id.clone()));
        Ok(())
    }
}

/// A durable write's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt<T> {
    /// The entity as it is now.
    pub value: T,
    /// Whether the request, when it was first made, created the entity.
    pub created: bool,
    /// Whether this answers a repeated idempotency key: nothing was done.
    pub replayed: bool,
}

/// An idempotency key and what it was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The key.
    pub key: String,
    /// A hash of the whole request; the same key with another hash is refused.
    pub request: [u8; 32],
}

/// A write that may be asked for under an idempotency key.
pub trait Repeatable: Send + 'static {
    /// What it writes.
    type Entity: Send + 'static;

    /// As [`Command::run`]; also whether it created its subject, and the subject's id.
    fn run_once(self, session: &mut Session<'_, '_>) -> Result<Once<Self::Entity>, Stop>;

    /// The same without a key to remember: what it wrote, and whether it created it.
    fn run_unkeyed(self, session: &mut Session<'_, '_>) -> Result<(Self::Entity, bool), Stop>
    where
        Self: Sized,
    {
        self.run_once(session).map(|once| (once.value, once.created))
    }

    /// The entity as it is now.
    fn reread(subject: &str, session: &Session<'_, '_>) -> Result<Self::Entity, Stop>;

    /// As [`Command::count`].
    fn count(_outcome: &Result<Receipt<Self::Entity>, Error>, _metrics: &Metrics) {}
}

/// What a [`Repeatable`] did.
pub struct Once<T> {
    /// The entity.
    pub value: T,
    /// Whether it was created.
    pub created: bool,
    /// Its id.
    pub subject: String,
}

/// A [`Repeatable`] with its key, if it has one.
pub struct WithKey<C> {
    /// The key.
    pub idempotency: Option<Idempotency>,
    /// The write.
    pub command: C,
}

impl<C: Repeatable> Command for WithKey<C> {
    type Output = Receipt<C::Entity>;

    fn run(self, session: &mut Session<'_, '_>) -> Result<Self::Output, Stop> {
        let Some(idempotency) = self.idempotency else {
            let (value, created) = self.command.run_unkeyed(session)?;
            return Ok(Receipt { value, created, replayed: false });
        };
        if let Some(receipt) = session.batch.receipt(&idempotency.key)? {
            if receipt.request != idempotency.request {
                return Err(Refusal::IdempotencyKeyReused.into());
            }
            let value = C::reread(&receipt.subject, session)?;
            return Ok(Receipt { value, created: receipt.created, replayed: true });
        }
        let Once { value, created, subject } = self.command.run_once(session)?;
        let receipt = StoredReceipt { request: idempotency.request, created, subject, at: session.batch.age() };
        session.batch.put_receipt(&idempotency.key, &receipt)?;
        Ok(Receipt { value, created, replayed: false })
    }

    fn count(outcome: &Result<Self::Output, Error>, metrics: &Metrics) {
        C::count(outcome, metrics);
    }
}

/// A command on its way through the writer.
pub trait Job: Send {
    /// Runs within the batch. A refusal is kept for the answer; only a failure of the store comes back.
    fn run(&mut self, session: &mut Session<'_, '_>) -> Result<(), StoreError>;

    /// As [`Command::is_bookkeeping`].
    fn is_bookkeeping(&self) -> bool;

    /// Answers: with what the run came to, or with the reason why the batch failed.
    fn finish(self: Box<Self>, failure: Option<&Error>, metrics: &Metrics);
}

/// A [`Job`] and the answer that it will give.
pub fn job<C: Command>(command: C) -> (Box<dyn Job>, Pending<C::Output>) {
    let (reply, receiver) = oneshot::channel();
    (Box::new(Task { command: Some(command), outcome: None, reply }), Pending::waiting(receiver))
}

struct Task<C: Command> {
    command: Option<C>,
    outcome: Option<Result<C::Output, Refusal>>,
    reply: oneshot::Sender<Result<C::Output, Error>>,
}

impl<C: Command> Job for Task<C> {
    fn run(&mut self, session: &mut Session<'_, '_>) -> Result<(), StoreError> {
        let command = self.command.take().expect("a job runs once");
        match command.run(session) {
            Ok(output) => self.outcome = Some(Ok(output)),
            Err(Stop::Refused(refusal)) => self.outcome = Some(Err(refusal)),
            Err(Stop::Failed(error)) => return Err(error),
        }
        Ok(())
    }

    fn is_bookkeeping(&self) -> bool {
        self.command.as_ref().is_some_and(Command::is_bookkeeping)
    }

    fn finish(self: Box<Self>, failure: Option<&Error>, metrics: &Metrics) {
        let outcome = match (failure, self.outcome) {
            (None, Some(outcome)) => outcome.map_err(Error::Refused),
            (Some(failure), _) => Err(failure.clone()),
            (None, None) => Err(Error::Unavailable("the writer passed the command over".into())),
        };
        C::count(&outcome, metrics);
        // A caller that went away has nobody to be told.
        drop(self.reply.send(outcome));
    }
}
