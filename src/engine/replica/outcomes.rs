//! The commands that carry observations of agents' work to their owners.

use std::collections::BTreeMap;

use crate::domain::{AgentId, Counters, Observation, ObserverId, agent, observation};
use crate::engine::command::{Command, Effect, Session, Stop};
use crate::store::Publish;

/// Redis is about to be told these counters. They are noted before it is: whoever does not hear what came of it recognizes
/// them there later.
pub struct OfferObservations(pub Vec<(AgentId, ObserverId, Counters)>);

impl Command for OfferObservations {
    type Output = ();

    fn is_bookkeeping(&self) -> bool {
        true
    }

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        for (id, observer, offered) in self.0 {
            let own = session.batch.observation(&id)?.filter(|own| own.observer == observer);
            if let Some(own) = own {
                session.batch.put_observation(&Observation { offered, ..own })?;
            }
        }
        Ok(())
    }
}

/// Redis holds these counters.
pub struct AckObservations(pub Vec<(AgentId, ObserverId, Counters)>);

impl Command for AckObservations {
    type Output = ();

    fn is_bookkeeping(&self) -> bool {
        true
    }

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        for (id, observer, acked) in self.0 {
            // Another observer's: this file went on under a new id meanwhile.
            let own = session.batch.observation(&id)?.filter(|own| own.observer == observer && own.acked != acked);
            if let Some(own) = own {
                session.batch.put_observation(&Observation { acked, ..own })?;
            }
        }
        Ok(())
    }
}

/// What is not acknowledged of an agent goes on under a new observer id.
pub struct SplitObserver(pub AgentId);

impl Command for SplitObserver {
    type Output = ();

    fn run(self, session: &mut Session<'_, '_>) -> Result<(), Stop> {
        split_observer(&self.0, session)
    }
}

/// As [`SplitObserver`].
pub fn split_observer(id: &AgentId, session: &mut Session<'_, '_>) -> Result<(), Stop> {
    let Some(own) = session.batch.observation(id)? else { return Ok(()) };
    let unacked = own.unacked();
    let observer = session.mint_observer();
    if unacked.is_zero() {
        session.batch.remove_observation(id)?;
    } else {
        let none = Counters::default();
        let split = Observation { agent_id: id.clone(), observer, total: unacked, acked: none, offered: none };
        session.batch.put_observation(&split)?;
        session.after_commit(Effect::ObservationsMoved);
    }
    // The owner has folded all of it already, part of it under the new id from here on.
    if let Some(mut agent) = session.batch.agent(id)?
        && agent.is_local(session.batch.node_id())
    {
        observation::hold(&mut agent.baseline, own.observer, own.acked);
        if !unacked.is_zero() {
            observation::hold(&mut agent.baseline, observer, unacked);
        }
        if agent.claimed {
            agent.version = agent.version.next();
        }
        session.put_keeping_lease(&agent, Publish::Yes)?;
    }
    Ok(())
}

/// Folds what observers have seen of local agents. Tells how many observers full baselines left out.
pub struct FoldObservations(pub Vec<(AgentId, ObserverId, Counters)>);

impl Command for FoldObservations {
    type Output = usize;

    fn run(self, session: &mut Session<'_, '_>) -> Result<usize, Stop> {
        let mut left_out = 0;
        let mut by_agent: BTreeMap<AgentId, Vec<(ObserverId, Counters)>> = BTreeMap::new();
        for (id, observer, total) in self.0 {
            by_agent.entry(id).or_default().push((observer, total));
        }
        for (id, mut totals) in by_agent {
            let Some(agent) = session.batch.agent(&id)? else { continue };
            if !agent.is_local(session.batch.node_id()) || !agent.claimed {
                continue;
            }
            // What was observed here was folded when it was observed.
            let own = session.batch.observation(&id)?.map(|own| own.observer);
            totals.retain(|(observer, _)| Some(*observer) != own);
            let (folded, without_room) = agent::fold_observations(&agent, totals);
            left_out += without_room;
            if let Some(folded) = folded {
                session.put_keeping_lease(&folded, Publish::Yes)?;
            }
        }
        Ok(left_out)
    }
}
