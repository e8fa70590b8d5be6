//! The commands that take in the registry of other nodes.

use std::sync::Arc;
use std::time::Duration;

use super::registry::{AbsorbedAgents, RemoteAgent};
use crate::domain::{Agent, AgentId, AgentVersion, MAX_OBSERVERS, agent};
use crate::engine::command::{Command, Effect, Session, Stop};
use crate::engine::error::Error;
use crate::engine::lease::Lease;
use crate::metrics::Metrics;
use crate::store::Publish;

/// Makes a local agent news again.
pub struct Touch(pub AgentId);

impl Command for Touch {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        Ok(session.batch.touch(&self.0)?)
    }
}

/// Dates local agents anew whose registration was dated further ahead than anybody believes.
pub struct Redate(pub Vec<AgentId>);

impl Command for Redate {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        for id in self.0 {
            let Some(agent) = session.batch.agent(&id)? else { continue };
            let before = agent.version;
            if let Some(redated) = agent::redate(agent, &session.agent_context(&id)?) {
                tracing::warn!(
                    agent_id = %id, %before, now = %redated.version,
                    "an agent was registered while this node's clock was far ahead, so that nobody believed it; it is now"
                );
                session.put_keeping_lease(&redated, Publish::Yes)?;
            }
        }
        Ok(())
    }
}

/// Has the writer look at leases anew.
pub struct Rewatch(pub Vec<AgentId>);

impl Command for Rewatch {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        self.0.into_iter().for_each(|id| session.after_commit(Effect::Rewatch(id)));
        Ok(())
    }
}

/// Takes in agents of other nodes.
pub struct AbsorbAgents(pub Vec<RemoteAgent>);

impl Command for AbsorbAgents {
    type Output = AbsorbedAgents;

    fn run(self, session: &mut Session<'_, '_>) -> Result<AbsorbedAgents, Stop> {
        let mut absorbed = AbsorbedAgents::default();
        for remote in self.0 {
            let id = remote.agent.agent_id.clone();
            match absorb(remote, session)? {
                Taken::No => absorbed.ignored += 1,
                Taken::Yes => absorbed.taken += 1,
                Taken::FromUs { before, by } => {
                    tracing::warn!(
                        agent_id = %id,
                        node_id = %by.node_id,
                        name = before.name,
                        version = %before.version,
                        newer = %by,
                        "an agent of this node was registered anew on another, which owns it from here on"
                    );
                    absorbed.taken += 1;
                    absorbed.superseded.push(id);
                }
            }
        }
        Ok(absorbed)
    }

    fn count(outcome: &Result<AbsorbedAgents, Error>, metrics: &Metrics) {
        if let Ok(absorbed) = outcome {
            metrics.superseded(absorbed.superseded.len());
        }
    }
}

enum Taken {
    No,
    Yes,
    FromUs { before: Box<Agent>, by: AgentVersion },
}

fn absorb(remote: RemoteAgent, session: &mut Session<'_, '_>) -> Result<Taken, Stop> {
    let RemoteAgent { agent: told, remaining } = remote;
    let node_id = session.batch.node_id();
    // What this node published itself is no news to it, and no owner folds more observers than fit.
    if told.node_id() == node_id || told.baseline.len() > MAX_OBSERVERS {
        return Ok(Taken::No);
    }
    let held = session.batch.agent(&told.agent_id)?;
    let newest_known = match &held {
        Some(held) => Some(held.version),
        None => session.batch.departed(&told.agent_id)?.map(|departed| departed.version),
    };
    // What lives elsewhere is not to be dead here for a version that nobody ever heard of, or that nobody believes.
    let now = session.moment.now;
    let counts =
        newest_known.is_some_and(|known| known.is_kept_at(now)) && held.as_ref().is_none_or(|held| !held.expired);
    let is_newer = newest_known.is_none_or(|known| told.version > known || told.version != known && !counts);
    let Some(held) = held else {
        if is_newer {
            put_remote(told, remaining, session)?;
        }
        return Ok(if is_newer { Taken::Yes } else { Taken::No });
    };
    let local = held.is_local(node_id);
    if !is_newer {
        // Owner and document agree; what was given up for lost lives after all.
        let given_up = held.version == told.version && held.expired && !(local && held.claimed);
        if given_up {
            put_remote(told, remaining, session)?;
        } else if held.version == told.version
            && !local
            && let Some(lease) = session.lease(&held.agent_id)
            && lease.confirm(session.moment, remaining)
        {
            session.after_commit(Effect::Rewatch(held.agent_id));
        }
        return Ok(if given_up { Taken::Yes } else { Taken::No });
    }
    if local && !held.claimed && !held.expired && session.batch.identity().is_own(told.node_id()) {
        if told.revision < held.revision {
            // Its own past for sure, which has the higher version only because the clock was set back since.
            return Ok(Taken::No);
        }
        // This file's own past, or its twin's word: the agent that speaks up here first will say which.
        let seen = session.owned(seen_from_here(told, session)?)?;
        let unclaimed = Agent { claimed: false, expired: false, expires_at: held.expires_at, ..seen };
        session.put_keeping_lease(&unclaimed, Publish::No)?;
        return Ok(Taken::Yes);
    }
    let by = told.version;
    put_remote(told, remaining, session)?;
    Ok(if local { Taken::FromUs { before: Box::new(held), by } } else { Taken::Yes })
}

/// An agent with what was observed here and its owner has not folded.
fn seen_from_here(told: Agent, session: &Session<'_, '_>) -> Result<Agent, Stop> {
    let own = session.batch.observation(&told.agent_id)?;
    let above = own.and_then(|own| own.total.above(told.baseline.get(&own.observer)));
    Ok(match above {
        Some(above) => Agent { reputation: told.reputation.folded(above), ..told },
        None => told,
    })
}

fn put_remote(told: Agent, remaining: Duration, session: &mut Session<'_, '_>) -> Result<(), Stop> {
    let expires_at = session.moment.now.after(remaining);
    let seen = seen_from_here(told, session)?;
    let lease = Arc::new(Lease::remote(session.moment, remaining));
    session.put(&Agent { expires_at, expired: false, claimed: true, ..seen }, lease, Publish::No)
}

/// Takes away remote agents.
pub struct DropRemote(pub Vec<(AgentId, AgentVersion)>);

impl Command for DropRemote {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        for (id, version) in self.0 {
            let Some(agent) = session.batch.agent(&id)? else { continue };
            let is_newer = agent.version > version && agent.version.is_kept_at(session.moment.now);
            if agent.is_local(session.batch.node_id()) || is_newer {
                continue;
            }
            if agent.version != version {
                session.remove(&agent, version)?;
            } else if !agent.expired {
                let expires_at = session.moment.now;
                let expired = Agent { expired: true, expires_at, ..agent };
                session.put(&expired, Arc::new(Lease::ended(expires_at)), Publish::No)?;
            }
        }
        Ok(())
    }
}
