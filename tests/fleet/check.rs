//! What must hold once a fleet has healed. Each check says what is not so yet.

use std::collections::{BTreeMap, BTreeSet};

use tradepost::domain::transaction::Finality;
use tradepost::domain::{AgentId, Event, EventId, NodeId, Sink, Transaction};
use tradepost::store::verify;
use tradepost::sync::driver::Destination;
use tradepost::sync::postgres::Postgres;
use tradepost::sync::redis::Redis;
use tradepost::{LeaseState, Profile};

use super::centre::{CentralEvent, Row, directory};
use super::market::{Market, id_of, transaction_of};
use super::plan::{AGENTS, TRANSACTIONS};

/// What is not so.
type Flaw = String;

macro_rules! require {
    ($holds:expr, $($words:tt)*) => {
        if !$holds {
            return Err(format!($($words)*));
        }
    };
}

impl Market<'_> {
    /// All views are equal, nothing acknowledged is missing, nobody is dead who lives or lives who is dead.
    pub async fn is_well(&mut self) -> Result<(), Flaw> {
        self.has_no_backlog()?;
        self.ledger_is_well().await?;
        for agent in 0..AGENTS {
            self.agent_is_well(agent)?;
        }
        Ok(())
    }

    fn has_no_backlog(&self) -> Result<(), Flaw> {
        for (number, node) in self.nodes.iter().enumerate() {
            for sink in [Redis::backlog(&node.engine), Postgres::backlog(&node.engine)] {
                let backlog = sink.expect("the store is sound");
                require!(backlog.entries == 0 && backlog.parked == 0, "node {number} has {backlog:?}");
            }
            let unsent = node.engine.observations().expect("the store is sound");
            require!(unsent.is_empty(), "node {number} has observed what Redis does not hold: {unsent:?}");
            let is_restarted = node.engine.postgres_state().expect("the store is sound").restarted;
            require!(!is_restarted, "node {number} offers everything again");
            for sink in [Sink::Redis, Sink::Postgres] {
                require!(node.engine.parked_count(sink) == 0, "node {number} has parked for {}", sink.as_str());
            }
        }
        Ok(())
    }

    async fn ledger_is_well(&self) -> Result<(), Flaw> {
        if self.centre.is_bare().await {
            return Err("no node has made tables in PostgreSQL".to_owned());
        }
        let (events, rows) = (self.centre.events().await, self.centre.rows().await);
        let central: BTreeSet<EventId> = events.keys().map(|id| EventId::from_bytes(*id)).collect();
        let lost: Vec<_> = self.kept.difference(&central).collect();
        require!(lost.is_empty(), "PostgreSQL lacks acknowledged events: {lost:?}");
        let made_up: Vec<_> = central.difference(&self.acknowledged).collect();
        require!(made_up.is_empty(), "PostgreSQL holds events that nobody acknowledged: {made_up:?}");
        for transaction in 0..TRANSACTIONS {
            self.transaction_is_well(transaction, &events, &rows)?;
        }
        Ok(())
    }

    fn transaction_is_well(
        &self,
        transaction: usize,
        events: &BTreeMap<[u8; 16], CentralEvent>,
        rows: &BTreeMap<String, Row>,
    ) -> Result<(), Flaw> {
        let id = transaction_of(transaction);
        let (of_it, recorded_by): (BTreeSet<EventId>, BTreeSet<NodeId>) = events
            .iter()
            .filter(|(_, event)| event.transaction_id == id.as_str())
            .map(|(event_id, event)| (EventId::from_bytes(*event_id), NodeId::from_bytes(event.recorded_by)))
            .unzip();
        let row = rows.get(id.as_str());
        require!(row.is_some() != of_it.is_empty(), "{id} has the row {row:?} and the events {of_it:?}");
        let Some(row) = row else { return Ok(()) };
        let parties = [&row.payer, &row.provider].map(|id| AgentId::from_stored(id));
        let mut shown: Option<(usize, Transaction, Vec<Event>)> = None;
        for (number, node) in self.nodes.iter().enumerate() {
            let (held, identity) = (node.engine.transaction(&id).ok(), node.engine.identity());
            let follows = node.engine.ledger_agents().expect("the store is sound");
            let is_concerned = follows.iter().any(|agent| parties.contains(&agent.agent_id))
                || recorded_by.iter().any(|node_id| identity.is_own(*node_id));
            let Some(held) = held else {
                require!(!is_concerned, "node {number} is concerned by {id} and does not hold it");
                continue;
            };
            let held_events = node.engine.events(&id).expect("it was just there");
            let ids: BTreeSet<EventId> = held_events.iter().map(|event| event.event_id).collect();
            require!(ids == of_it, "node {number} holds other events of {id} than PostgreSQL: {ids:?} and {of_it:?}");
            require!(held.finality == Finality::Central, "node {number} does not know that {id} is central");
            let there = (row.status.as_str(), &row.evidence);
            require!(
                (held.status.as_str(), &held.evidence) == there,
                "node {number} shows {id} as {held:?}, PostgreSQL as {row:?}"
            );
            if let Some((first, other, other_events)) = &shown {
                require!(
                    *other == held && *other_events == held_events,
                    "nodes {first} and {number} show {id} as {other:?} of {other_events:?} and {held:?} of {held_events:?}"
                );
            } else {
                shown = Some((number, held, held_events));
            }
        }
        Ok(())
    }

    fn agent_is_well(&mut self, agent: usize) -> Result<(), Flaw> {
        let id = id_of(agent);
        let (document, is_listed) = self.centre.document(id.as_str());
        let process = &self.processes[agent];
        let profiles: Vec<Option<Profile>> = self.nodes.iter().map(|node| node.engine.agent(&id).ok()).collect();
        let Some(home) = process.home else {
            for (number, profile) in profiles.iter().enumerate() {
                let is_dead = profile.as_ref().is_none_or(|profile| profile.lease == LeaseState::Expired);
                require!(is_dead, "{id} does not run, and node {number} shows {}", brief(profile.as_ref()));
            }
            require!(document.is_none(), "{id} does not run any more, and Redis holds {document:?}");
            return Ok(());
        };
        let at_home = profiles[home].as_ref().ok_or(format!("{id} runs at node {home}, which does not know it"))?;
        require!(
            process.is_put_back || at_home.agent.name == process.name,
            "{id} calls itself {:?}, and its own node {home} shows {}",
            process.name,
            brief(Some(at_home))
        );
        let node_ids: Vec<NodeId> = self.nodes.iter().map(|node| node.engine.node_id()).collect();
        for (number, profile) in profiles.iter().enumerate() {
            // A copy of the file that has written nothing since is the same node to everybody, itself included; only that
            // nobody gives signs of life there.
            if number != home && node_ids[number] == node_ids[home] {
                continue;
            }
            let profile = profile.as_ref().ok_or(format!("node {number} does not know {id}, which runs at {home}"))?;
            let is_alive = profile.lease == LeaseState::Live && profile.local == (number == home);
            require!(
                is_alive,
                "{id} runs at node {home} as {}, and node {number} shows {}",
                brief(Some(at_home)),
                brief(Some(profile))
            );
            require!(
                view(profile) == view(at_home),
                "node {home} shows its own {id} as {:?}, node {number} as {:?}",
                view(at_home),
                view(profile)
            );
        }
        let reputation = at_home.agent.reputation;
        if let Some((all, good)) = process.observed {
            require!(
                (reputation.total_feedback, reputation.successful_tasks) == (all, good),
                "{id} was observed {all} times, {good} of them good, and its reputation is {reputation:?}"
            );
        }
        let version = at_home.agent.version.to_wire();
        require!(
            is_listed && document.as_ref().is_some_and(|document| document.contains(&version)),
            "{id} runs in version {version}; Redis lists it: {is_listed}, and holds {document:?}"
        );
        Ok(())
    }

    /// All that can be seen of it, but for when the leases of remote agents end: in Redis, which ends them, some real
    /// milliseconds pass too.
    pub async fn picture(&self) -> String {
        let shown = |profile: Profile| format!("{:?} {} {}", profile.lease, profile.local, view(&profile));
        let seen = |agent| {
            self.nodes.iter().map(move |node| node.engine.agent(&id_of(agent)).map_or_else(|_| String::new(), shown))
        };
        let agents: Vec<Vec<String>> = (0..AGENTS).map(|agent| seen(agent).collect()).collect();
        format!("{:#?}\n{:#?}\n{agents:#?}", self.centre.events().await, self.centre.rows().await)
    }

    /// Ends all nodes; nothing is wrong with their files.
    pub fn close(mut self) {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let home = directory();
            let path = home.path().join("tradepost.redb");
            std::fs::write(&path, node.close()).expect("it is our own directory");
            let report = verify(&path, &mut |_, _, _| {}).expect("the file opens");
            assert!(report.is_clean(), "node {number}: {:#?}", report.findings);
        }
    }
}

fn brief(profile: Option<&Profile>) -> String {
    let Some(profile) = profile else { return "nothing".to_owned() };
    let of_it = [("local", profile.local), ("claimed", profile.agent.claimed), ("expired", profile.agent.expired)];
    let of_it: Vec<_> = of_it.into_iter().filter(|(_, is_so)| *is_so).map(|(word, _)| word).collect();
    format!("a {} lease until {}, {of_it:?}, {}", profile.lease.as_str(), profile.expires_at, view(profile))
}

/// What everybody must see alike of an agent.
fn view(profile: &Profile) -> String {
    let agent = &profile.agent;
    let (version, revision) = (agent.version, agent.revision);
    let reputation = agent.reputation;
    format!(
        "{version}, revision {revision}: {:?} of {} successes in {}, score {}",
        agent.name,
        reputation.successful_tasks,
        reputation.total_feedback,
        reputation.shown_score()
    )
}
