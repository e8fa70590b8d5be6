//! The registry towards other nodes: changed agents, leases and observations out, remote agents in.

use std::sync::Arc;
use std::time::Duration;

use super::agents::{AbsorbAgents, DropRemote, Redate, Rewatch, Touch};
use super::outcomes::{AckObservations, FoldObservations, OfferObservations, SplitObserver};
use crate::domain::{Agent, AgentId, AgentVersion, Counters, Observation, ObserverId, Ttl};
use crate::engine::directory::Entry;
use crate::engine::{Engine, Error, Pending};
use crate::store::{ChangedAgent, ChangedState};

/// What has become of a local agent since it was last told.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentChange {
    /// It is registered, like this.
    Put {
        /// The change's number; a later change of the same agent moves it.
        change_seq: u64,
        /// The agent.
        agent: Box<Agent>,
        /// How long its lease runs yet; zero once it has expired.
        remaining: Duration,
    },
    /// It was deleted.
    Removed {
        /// The change's number.
        change_seq: u64,
        /// Which agent.
        agent_id: AgentId,
        /// The version of the deletion, above every version of the agent.
        version: AgentVersion,
        /// How long the deletion is remembered yet.
        keep: Duration,
    },
}

impl AgentChange {
    /// The change's number.
    pub fn change_seq(&self) -> u64 {
        match self {
            Self::Put { change_seq, .. } | Self::Removed { change_seq, .. } => *change_seq,
        }
    }
}

/// The lease of an agent that lives here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLease {
    /// Which agent.
    pub agent_id: AgentId,
    /// Its version, as it was last published.
    pub version: AgentVersion,
    /// How long the lease runs yet.
    pub remaining: Duration,
    /// How long a lease lasts from its renewal.
    pub ttl: Ttl,
}

/// An agent of another node, as its document says.
///
/// Of the agent's own fields, `expired`, `expires_at` and `claimed` are not looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteAgent {
    /// The agent. Its reputation is its owner's, without what is observed here.
    pub agent: Agent,
    /// How long its lease runs yet.
    pub remaining: Duration,
}

/// What taking in agents of other nodes came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AbsorbedAgents {
    /// Agents that are new or newer.
    pub taken: usize,
    /// Agents that are held in the same or a newer version.
    pub ignored: usize,
    /// Local agents that were registered anew elsewhere; they are remote from here on.
    pub superseded: Vec<AgentId>,
}

/// Whether remote agents can be confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryLink {
    /// Redis answers: each lease runs for as long as it says.
    Up,
    /// Redis does not answer: remote agents stay discoverable, stale, for at most this long.
    Down {
        /// Counted from the end of each lease.
        stale_for: Duration,
    },
    /// Redis answers again, but has lost these: each is stale for one lease time, unless it comes back.
    Unconfirmed(Vec<AgentId>),
}

impl Engine {
    /// Local agents that changed after `change_seq`, at most `max`, oldest change first; each agent once. Agents that
    /// this file does not claim are left out.
    pub fn changes_after(&self, change_seq: u64, max: usize) -> Result<Vec<AgentChange>, Error> {
        let monotonic = self.core().clock.monotonic();
        let view = self.core().view();
        let changes = view.snapshot()?.changes_after(change_seq, max)?.into_iter();
        let told = changes.map(|ChangedAgent { change_seq, agent_id, state }| match state {
            ChangedState::Registered(agent) => {
                let lease = view.directory.get(&agent_id).map(|entry| &entry.lease).filter(|_| !agent.expired);
                let remaining = lease.map_or(Duration::ZERO, |lease| lease.remaining(monotonic, true));
                AgentChange::Put { change_seq, agent, remaining }
            }
            ChangedState::Deleted { version, keep } => AgentChange::Removed { change_seq, agent_id, version, keep },
        });
        Ok(told.collect())
    }

    /// Whether an agent lives here.
    pub fn is_local(&self, id: &AgentId) -> bool {
        self.core().view().directory.get(id).is_some_and(|entry| entry.local)
    }

    /// How many local agents changed after `change_seq`, those that this file does not claim included.
    pub fn changes_len(&self, change_seq: u64) -> Result<u64, Error> {
        Ok(self.core().snapshot()?.changes_len(change_seq)?)
    }

    /// The leases of the agents that live here and that this file claims.
    pub fn local_leases(&self) -> Vec<LocalLease> {
        let monotonic = self.core().clock.monotonic();
        let view = self.core().view();
        let ours =
            |entry: &&Arc<Entry>| entry.local && entry.claimed && !entry.expired && entry.lease.is_live(monotonic);
        let leases = view.directory.iter().filter(ours).map(|entry| LocalLease {
            agent_id: entry.standing.agent_id.clone(),
            version: entry.version,
            remaining: entry.lease.remaining(monotonic, true),
            ttl: entry.ttl,
        });
        leases.collect()
    }

    /// Makes a local agent news again, because Redis holds no document of it or an older one. It is news once more after
    /// the next commit; nothing happens to an agent that is not local.
    pub fn touch(&self, id: AgentId) {
        // Whoever finds it missing again will ask again.
        drop(self.submit(Touch(id)));
    }

    /// Dates those of these agents anew that live here and were registered while the clock was so far ahead that nobody
    /// believes it. To be called when the clock is known to be right.
    pub fn redate(&self, ids: Vec<AgentId>) -> Pending<()> {
        self.submit(Redate(ids))
    }

    /// Takes in agents of other nodes: the newer version wins. A local agent that loses is remote from here on.
    pub fn absorb_agents(&self, agents: Vec<RemoteAgent>) -> Pending<AbsorbedAgents> {
        self.submit(AbsorbAgents(agents))
    }

    /// Says how long the leases of remote agents run yet, by Redis's word. In memory only; an agent whose expiry has been
    /// committed is revived by [`absorb_agents`](Self::absorb_agents) alone.
    pub fn renew_remote(&self, leases: &[(AgentId, Duration)]) {
        let moment = self.core().moment();
        let view = self.core().view();
        let ends_earlier = leases.iter().filter(|(id, remaining)| {
            let entry = view.directory.get(id).filter(|entry| !entry.local);
            entry.is_some_and(|entry| entry.lease.confirm(moment, *remaining))
        });
        self.rewatch(ends_earlier.map(|(id, _)| id.clone()).collect());
    }

    /// Takes away remote agents: deleted, where the version is above the agent's, or else expired. A newer agent stays,
    /// and so does a local one.
    pub fn drop_remote(&self, gone: Vec<(AgentId, AgentVersion)>) -> Pending<()> {
        self.submit(DropRemote(gone))
    }

    /// Every remote agent that has not expired, and how long its lease is confirmed for yet. One whose time is up is
    /// stale for some seconds, within which it can be asked for.
    pub fn remote_agents(&self) -> Vec<(AgentId, AgentVersion, Duration)> {
        let monotonic = self.core().clock.monotonic();
        let view = self.core().view();
        let remote = view.directory.iter().filter(|entry| !entry.local && !entry.expired);
        remote
            .map(|entry| (entry.standing.agent_id.clone(), entry.version, entry.lease.remaining(monotonic, false)))
            .collect()
    }

    /// Says whether remote agents can be confirmed, and with it which of them are stale and for how long. May be said
    /// again and again.
    pub fn registry_link(&self, link: RegistryLink) {
        let moment = self.core().moment();
        let view = self.core().view();
        let remote = || view.directory.iter().filter(|entry| !entry.local && !entry.expired);
        match link {
            RegistryLink::Up => {
                remote().for_each(|entry| entry.lease.release(moment, entry.ttl.duration()));
                self.rewatch(remote().map(|entry| entry.standing.agent_id.clone()).collect());
            }
            RegistryLink::Down { stale_for } => remote().for_each(|entry| entry.lease.hold(stale_for)),
            RegistryLink::Unconfirmed(missing) => {
                for entry in missing.iter().filter_map(|id| view.directory.get(id)).filter(|entry| !entry.local) {
                    entry.lease.doubt(moment, entry.ttl.duration());
                }
                self.rewatch(missing);
            }
        }
    }

    /// Has the writer look at leases that may end earlier than it was told. If it is too busy to listen, their ends are
    /// committed late; nobody is shown them as live for that.
    fn rewatch(&self, ids: Vec<AgentId>) {
        if !ids.is_empty() {
            drop(self.submit(Rewatch(ids)));
        }
    }

    /// What was observed here of agents' work, their owners being here or elsewhere, and is not known to be held by Redis.
    pub fn observations(&self) -> Result<Vec<Observation>, Error> {
        Ok(self.core().snapshot()?.unacked_observations()?)
    }

    /// All that was observed here, for a Redis that has lost what it held.
    pub fn all_observations(&self) -> Result<Vec<Observation>, Error> {
        Ok(self.core().snapshot()?.all_observations()?)
    }

    /// Redis is about to be told these counters.
    pub fn offer_observations(&self, offered: Vec<(AgentId, ObserverId, Counters)>) -> Pending<()> {
        self.submit(OfferObservations(offered))
    }

    /// Redis holds these counters.
    pub fn ack_observations(&self, acked: Vec<(AgentId, ObserverId, Counters)>) -> Pending<()> {
        self.submit(AckObservations(acked))
    }

    /// Redis holds other counters under this observer than this file was told: another file goes by its name, or this one
    /// is older than what Redis has seen. What is not acknowledged goes on under a new observer id.
    pub fn split_observer(&self, id: AgentId) -> Pending<()> {
        self.submit(SplitObserver(id))
    }

    /// Folds what observers have seen of local agents, as far as it lies above what was folded before. Tells how
    /// many observers were left out because an agent's baseline is full.
    pub fn fold_observations(&self, totals: Vec<(AgentId, ObserverId, Counters)>) -> Pending<usize> {
        self.submit(FoldObservations(totals))
    }
}
