//! The commands of the registry.

use std::sync::Arc;
use std::time::Duration;

use super::command::{Command, Effect, Once, Receipt, Repeatable, Session, Stop};
use super::directory::Entry;
use super::error::Error;
use super::lease::Lease;
use crate::domain::{
    Agent, AgentId, AgentPatch, Counters, Delta, Refusal, Registration, Reputation, Timestamp, Weight, agent,
};
use crate::metrics::{Metrics, RegisterResult};
use crate::store::Publish;

/// An agent with its lease as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// What is stored.
    pub agent: Agent,
    /// When its lease ends or ended.
    pub expires_at: Timestamp,
    /// Whether its lease runs.
    pub lease: LeaseState,
    /// Whether this node owns it.
    pub local: bool,
}

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It runs.
    Live,
    /// It has run out.
    Expired,
    /// It belongs to another node and cannot be confirmed now.
    Stale,
}

impl LeaseState {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Expired => "expired",
            Self::Stale => "stale",
        }
    }
}

/// What a change of an agent depends on (`If-Match`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// That the agent exists (`*`).
    Exists,
    /// That its revision is one of these.
    RevisionIn(Vec<u64>),
}

impl Precondition {
    fn check(&self, id: &AgentId, agent: Option<&Agent>) -> Result<(), Refusal> {
        match (self, agent) {
            (Self::None, _) | (Self::Exists, Some(_)) => Ok(()),
            (Self::RevisionIn(revisions), Some(agent)) if revisions.contains(&agent.revision) => Ok(()),
            (_, agent) => {
                Err(Refusal::RevisionMismatch { agent_id: id.clone(), actual: agent.map_or(0, |agent| agent.revision) })
            }
        }
    }
}

impl LeaseState {
    fn of(lease: &Lease, expired: bool, local: bool, monotonic: Duration) -> Self {
        match !expired && lease.is_live(monotonic) {
            false => Self::Expired,
            true if !local && lease.is_stale(monotonic) => Self::Stale,
            true => Self::Live,
        }
    }
}

impl Profile {
    pub(super) fn new(agent: Agent, lease: &Lease, monotonic: Duration, local: bool) -> Self {
        let expires_at = lease.expires_at();
        let lease = LeaseState::of(lease, agent.expired, local, monotonic);
        Self { agent, expires_at, lease, local }
    }
}

/// What the directory showed of an agent at one moment: its lease, and whether all else is what it was at another.
#[derive(Debug, Clone, Copy)]
pub struct Glimpse {
    entry: u64,
    /// When its lease ends or ended.
    pub expires_at: Timestamp,
    /// Whether its lease runs.
    pub lease: LeaseState,
}

impl Glimpse {
    pub(super) fn new(entry: &Entry, monotonic: Duration) -> Self {
        let lease = LeaseState::of(&entry.lease, entry.expired, entry.local, monotonic);
        Self { entry: entry.number, expires_at: entry.lease.expires_at(), lease }
    }

    /// Whether the agent's [`Profile`] was the same at both moments, but for its lease.
    pub fn shows_the_same_as(&self, other: &Self) -> bool {
        self.entry == other.entry
    }
}

fn profile(agent: Agent, lease: Option<Arc<Lease>>, session: &Session<'_, '_>) -> Profile {
    let local = agent.is_local(session.batch.node_id());
    let lease = lease.unwrap_or_else(|| Arc::new(Lease::ended(agent.expires_at)));
    Profile::new(agent, &lease, session.moment.monotonic, local)
}

fn reread_profile(subject: &str, session: &Session<'_, '_>) -> Result<Profile, Stop> {
    let agent = session.require_agent(&AgentId::from_stored(subject))?;
    let lease = session.lease(&agent.agent_id);
    Ok(profile(agent, lease, session))
}

/// Registers an agent under an id that no live agent has.
pub struct Register(pub Registration);

impl Repeatable for Register {
    type Entity = Profile;

    fn run_once(self, session: &mut Session<'_, '_>) -> Result<Once<Profile>, Stop> {
        let existing = session.existing(&self.0.agent_id)?;
        let context = session.agent_context(&self.0.agent_id)?;
        let agent = session.owned(agent::register(existing, self.0, context)?)?;
        let lease = session.put_with_new_lease(&agent)?;
        let subject = agent.agent_id.to_string();
        Ok(Once { value: profile(agent, Some(lease), session), created: true, subject })
    }

    fn reread(subject: &str, session: &Session<'_, '_>) -> Result<Profile, Stop> {
        reread_profile(subject, session)
    }

    fn count(outcome: &Result<Receipt<Profile>, Error>, metrics: &Metrics) {
        match outcome {
            Ok(Receipt { replayed: true, .. }) => {}
            Ok(_) => metrics.registered(RegisterResult::Success),
            Err(Error::Refused(Refusal::AgentAlreadyRegistered(_))) => metrics.registered(RegisterResult::Duplicate),
            Err(_) => metrics.registered(RegisterResult::Error),
        }
    }
}

/// Registers an agent or replaces it, whoever has the id.
pub struct Replace {
    pub registration: Registration,
    pub when: Precondition,
}

impl Command for Replace {
    type Output = Receipt<Profile>;

    fn run(self, session: &mut Session<'_, '_>) -> Result<Self::Output, Stop> {
        let existing = session.batch.agent(&self.registration.agent_id)?;
        self.when.check(&self.registration.agent_id, existing.as_ref())?;
        let created = existing.is_none();
        let context = session.agent_context(&self.registration.agent_id)?;
        let agent = session.owned(agent::replace(existing, self.registration, context))?;
        let lease = session.put_with_new_lease(&agent)?;
        Ok(Receipt { value: profile(agent, Some(lease), session), created, replayed: false })
    }

    fn count(outcome: &Result<Self::Output, Error>, metrics: &Metrics) {
        metrics.registered(if outcome.is_ok() { RegisterResult::Success } else { RegisterResult::Error });
    }
}

/// Changes an agent.
pub struct Update {
    pub agent_id: AgentId,
    pub patch: AgentPatch,
    pub when: Precondition,
}

impl Command for Update {
    type Output = Profile;

    fn run(self, session: &mut Session<'_, '_>) -> Result<Profile, Stop> {
        let agent = session.require_agent(&self.agent_id)?;
        self.when.check(&self.agent_id, Some(&agent))?;
        let agent = agent::update(agent, self.patch, session.agent_context(&self.agent_id)?)?;
        let lease = session.put_with_new_lease(&agent)?;
        Ok(profile(agent, Some(lease), session))
    }
}

/// Removes an agent.
pub struct Unregister {
    pub agent_id: AgentId,
    pub when: Precondition,
}

impl Command for Unregister {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        let agent = session.require_agent(&self.agent_id)?;
        self.when.check(&self.agent_id, Some(&agent))?;
        let version = agent::unregister(&agent, &session.agent_context(&self.agent_id)?)?;
        session.remove(&agent, version)
    }

    fn count(outcome: &Result<(), Error>, metrics: &Metrics) {
        if outcome.is_ok() {
            metrics.unregistered();
        }
    }
}

/// Begins a new lease for an agent whose old one ended, or claims one that is not claimed; other heartbeats that come in
/// time need no command.
pub struct Revive(pub AgentId);

impl Command for Revive {
    type Output = Timestamp;

    fn run(self, session: &mut Session<'_, '_>) -> Result<Timestamp, Stop> {
        let agent = session.require_agent(&self.0)?;
        agent::require_local(&agent, session.batch.node_id())?;
        // Two heartbeats may both find the lease ended; the first one here begins a new one, the second renews it.
        if let Some(lease) = session.lease(&self.0).filter(|_| !agent.expired && agent.claimed)
            && let Ok(expires_at) = lease.renew(session.moment, agent.ttl)
        {
            return Ok(expires_at);
        }
        let agent = agent::revive(agent, session.agent_context(&self.0)?)?;
        let lease = session.put_with_new_lease(&agent)?;
        Ok(lease.expires_at())
    }
}

/// Commits that an agent's lease has ended.
pub struct Expire(pub AgentId);

impl Command for Expire {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        let (Some(agent), Some(lease)) = (session.batch.agent(&self.0)?, session.lease(&self.0)) else {
            return Ok(());
        };
        if agent.expired || lease.is_live(session.moment.monotonic) {
            return Ok(());
        }
        let expired = Agent { expired: true, expires_at: lease.expires_at(), ..agent };
        session.put(&expired, lease, Publish::No)
    }
}

/// Takes in what somebody made of an agent's work.
pub struct ObserveOutcome {
    pub agent_id: AgentId,
    pub success: bool,
    pub weight: Weight,
}

impl Repeatable for ObserveOutcome {
    type Entity = Reputation;

    fn run_once(self, session: &mut Session<'_, '_>) -> Result<Once<Reputation>, Stop> {
        let once = observe(&self.agent_id, session, Counters::outcome(self.success, self.weight.get()))?;
        session.after_commit(Effect::Outcome { agent_id: self.agent_id, success: self.success });
        Ok(once)
    }

    fn reread(subject: &str, session: &Session<'_, '_>) -> Result<Reputation, Stop> {
        Ok(session.require_agent(&AgentId::from_stored(subject))?.reputation)
    }
}

/// Corrects an agent's score.
pub struct AdjustReputation {
    pub agent_id: AgentId,
    pub delta: Delta,
}

impl Repeatable for AdjustReputation {
    type Entity = Reputation;

    fn run_once(self, session: &mut Session<'_, '_>) -> Result<Once<Reputation>, Stop> {
        observe(&self.agent_id, session, Counters::correction(self.delta.get()))
    }

    fn reread(subject: &str, session: &Session<'_, '_>) -> Result<Reputation, Stop> {
        Ok(session.require_agent(&AgentId::from_stored(subject))?.reputation)
    }
}

/// Takes in what was observed here of an agent, whoever owns it: neither the lease nor the revision changes.
fn observe(id: &AgentId, session: &mut Session<'_, '_>, counters: Counters) -> Result<Once<Reputation>, Stop> {
    let agent = session.require_agent(id)?;
    let mut observation = session.observation(id)?;
    observation.total = observation.total.plus(counters);
    let node_id = session.batch.node_id();
    let agent = agent::observe(agent, counters, observation.observer, observation.total, node_id);
    let reputation = agent.reputation;
    session.put_keeping_lease(&agent, Publish::Yes)?;
    session.batch.put_observation(&observation)?;
    session.after_commit(Effect::ObservationsMoved);
    Ok(Once { value: reputation, created: false, subject: id.to_string() })
}
