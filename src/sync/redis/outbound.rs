//! What a round tells Redis: changed agents, deletions, leases, observations; and the folding of what others observed.

use std::collections::{HashMap, HashSet};
use std::iter;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use redis::Pipeline;
use tokio::time::Instant;

use super::document::{self, Sighting, Unreadable};
use super::intake::{Taken, store_failure};
use super::keys::{self, HeldVersion};
use super::outcomes;
use super::push;
use super::told::{Theirs, Told};
use super::worker::{Redis, Session};
use crate::domain::{Agent, AgentId, Timestamp};
use crate::engine::Engine;
use crate::engine::replica::{AgentChange, LocalLease, ParkedEntry, ParkedKey, RemoteAgent, Saved, Sink};
use crate::sync::state::{Failure, FailureClass};

/// How many changes are read from the store at once.
const BATCH: usize = 256;
/// After so many agents the store is told how far Redis has come.
const SAVE_EVERY: usize = 4_096;
/// How long one round pushes at most before it sees to the rest.
const PUSH_FOR: Duration = Duration::from_secs(2);
/// From so many missing documents on, everything is pushed anew rather than agent by agent.
const MANY_MISSING: usize = 64;
/// How often deletions are told again while there are any: a failover may bring back what was deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How many changes one round looks at for deletions.
const SWEPT: usize = 2_048;
/// How many channels one command names.
const CHANNELS: usize = 500;
/// The keys that every push writes to, and what each must be.
const SHARED: [(&str, &str); 2] = [(keys::ALL, "set"), (keys::CHANGES, "stream")];

/// Some changes, oldest first.
struct Chunk {
    changes: Vec<AgentChange>,
    /// Up to where nothing else changed.
    upto: u64,
    /// Agents that are dated further ahead than anybody believes, though the clock is right now.
    misdated: Vec<AgentId>,
}

impl Chunk {
    /// The next ones. `right` is what a clock shows that is known to be right.
    fn read(engine: &Engine, from: u64, newest: u64, right: Option<Timestamp>) -> Result<Self, Failure> {
        let mut changes = engine.changes_after(from, BATCH).map_err(store_failure)?;
        if changes.is_empty() {
            // Agents that this file does not claim are left out, and may be all that was looked at.
            changes = engine.changes_after(from, usize::MAX).map_err(store_failure)?;
            changes.truncate(BATCH);
        }
        let upto = changes.last().map_or(newest, AgentChange::change_seq);
        changes.retain(push::is_news);
        let is_misdated = |change: &AgentChange| match change {
            AgentChange::Put { agent, .. } => right.is_some_and(|now| !agent.version.is_kept_at(now)),
            AgentChange::Removed { .. } => false,
        };
        let (misdated, changes): (Vec<_>, Vec<_>) = changes.into_iter().partition(is_misdated);
        let misdated = misdated.iter().map(|change| push::agent_id(change).clone()).collect();
        Ok(Self { changes, upto, misdated })
    }
}

impl Redis {
    /// Tells what changed here. Returns how many agents were told of, and whether there are more.
    pub(super) async fn push(&mut self, session: &mut Session) -> Result<(u64, bool), Failure> {
        let newest = self.engine.commits().borrow().change_seq;
        let begun = Instant::now();
        let (engine, scripts, link) = (self.engine.clone(), Arc::clone(&self.scripts), session.link.clone());
        let right = Some(self.clock.now()).filter(|now| session.is_about_right(*now));
        let mut from = session.state.acked_change_seq;
        let chunks = iter::from_fn(|| {
            let more = from < newest && begun.elapsed() < PUSH_FOR;
            more.then(|| Chunk::read(&engine, from, newest, right).inspect(|chunk| from = chunk.upto))
        });
        let told = stream::iter(chunks).map(|chunk| async {
            let chunk = chunk?;
            let told = push::changes(&link, &scripts, &chunk.changes).await?;
            Ok::<_, Failure>((chunk, told))
        });
        // The next chunk is read and written out while the server works on the last one.
        let mut told = pin!(told.buffered(push::IN_FLIGHT));
        let (mut pushed, mut unsaved) = (0, 0);
        while let Some(told) = told.next().await {
            let (chunk, told) = told?;
            if !chunk.misdated.is_empty() {
                // They are told with their new dates, as later changes.
                self.engine.redate(chunk.misdated).await.map_err(store_failure)?;
            }
            let acked = session.state.acked_change_seq;
            unsaved += told.len();
            pushed += self.told(session, &chunk.changes, told).await?;
            if session.state.acked_change_seq != acked {
                // A fork: this file tells everything anew, as another node.
                return Ok((pushed, true));
            }
            session.state.acked_change_seq = chunk.upto;
            session.unsaved = true;
            if unsaved >= SAVE_EVERY {
                if self.save(session).await? == Saved::Outdated {
                    return Ok((pushed, true));
                }
                unsaved = 0;
            }
        }
        if unsaved > 0 && self.save(session).await? == Saved::Outdated {
            return Ok((pushed, true));
        }
        let more = session.state.acked_change_seq < newest;
        Ok((pushed, more))
    }

    /// Does what follows from the answers. Returns how many agents Redis has taken.
    async fn told(&mut self, session: &mut Session, changes: &[AgentChange], told: Vec<Told>) -> Result<u64, Failure> {
        let (mut done, mut delivered, mut refused) = (0, Vec::new(), Vec::new());
        for (change, told) in changes.iter().zip(told) {
            let agent_id = push::agent_id(change);
            match told {
                Told::Done => {
                    done += 1;
                    if session.parked.remove(agent_id) {
                        delivered.push(ParkedKey::Agent(agent_id.clone()));
                    }
                }
                Told::Newer(theirs) => {
                    if let Some(error) = self.unreadable(change, &theirs) {
                        let reason = format!("Redis holds a newer version, whose document cannot be taken: {error}");
                        refused.push(self.refusal(agent_id, "UNREADABLE".to_owned(), reason));
                    }
                    if self.newer(change, theirs).await?.is_forked {
                        self.fork(session).await?;
                        return Ok(done);
                    }
                }
                Told::Differs(theirs) => {
                    if !self.is_same(change, &theirs) {
                        self.fork(session).await?;
                        return Ok(done);
                    }
                    push::over(&session.link, &self.scripts, change).await?;
                    done += 1;
                }
                Told::Refused { code, reason } => refused.push(self.refusal(agent_id, code, reason)),
                Told::Missing | Told::Renewed(_) | Told::Other(_) => {}
            }
        }
        if !delivered.is_empty() {
            self.engine.unpark(Sink::Redis, delivered).await.map_err(store_failure)?;
        }
        if !refused.is_empty() {
            self.require_shared_keys(session).await?;
            session.parked.extend(refused.iter().filter_map(|entry| match &entry.key {
                ParkedKey::Agent(agent_id) => Some(agent_id.clone()),
                ParkedKey::Seq(_) | ParkedKey::Copy(_) => None,
            }));
            tracing::warn!(agents = refused.len(), reason = refused[0].reason, "Redis refuses agents; they are parked");
            self.engine.park(Sink::Redis, refused).await.map_err(store_failure)?;
        }
        Ok(done)
    }

    fn refusal(&self, agent_id: &AgentId, code: String, reason: String) -> ParkedEntry {
        let key = ParkedKey::Agent(agent_id.clone());
        ParkedEntry { key, reason, code, parked_at: self.clock.now(), attempts: 1 }
    }

    /// Why the document that stands above an agent of ours is not taken, if it is not. Ours is parked then: registering
    /// above it would take the agent from an owner that may yet mend its document, or that is a later program.
    fn unreadable(&self, change: &AgentChange, theirs: &Theirs) -> Option<Unreadable> {
        let AgentChange::Put { agent, .. } = change else { return None };
        match theirs.document.as_deref() {
            Some(text) => document::read(agent.agent_id.as_str(), text, self.sighting(theirs)).err(),
            None => (!theirs.remaining.is_zero()).then_some(Unreadable::TooLong),
        }
    }

    fn sighting(&self, theirs: &Theirs) -> Sighting {
        Sighting { now: self.clock.now(), remaining: theirs.remaining, deletion: None }
    }

    /// A newer version is there than the one we told: ours is another's now, or another file goes by our id.
    async fn newer(&mut self, change: &AgentChange, theirs: Theirs) -> Result<Taken, Failure> {
        let (agent_id, held) = (push::agent_id(change), theirs.held);
        if held.version().node_id == self.engine.identity().node_id {
            let suspicious = [(agent_id.clone(), held.version())];
            let is_forked = self.intake.is_of_another_file(&suspicious)?;
            return Ok(Taken { agents: 0, is_forked });
        }
        if theirs.document.is_some() {
            return self.intake.take_theirs(agent_id, theirs).await;
        }
        if !theirs.remaining.is_zero() {
            // It is there, and cannot be read.
            return Ok(Taken::default());
        }
        // It was registered anew elsewhere and is gone there. Ours ends with it; whoever runs it here registers again.
        if let AgentChange::Put { agent, .. } = change {
            let gone = Agent { version: held.version(), ..Agent::clone(agent) };
            let ended = RemoteAgent { agent: gone, remaining: Duration::from_millis(1) };
            self.engine.absorb_agents(vec![ended]).await.map_err(store_failure)?;
            // At once: what it says of itself in that version is not known here, so its document is to be read should it
            // come back.
            self.engine.drop_remote(vec![(agent_id.clone(), held.version())]).await.map_err(store_failure)?;
        }
        Ok(Taken::default())
    }

    /// Whether a document that is not ours byte by byte says the same, or was not written by a node: it is damaged beyond
    /// reading, or an older client took ours, changed it and wrote it down in its own manner.
    fn is_same(&self, change: &AgentChange, theirs: &Theirs) -> bool {
        let (AgentChange::Put { agent, .. }, Some(text)) = (change, theirs.document.as_deref()) else { return true };
        document::read(agent.agent_id.as_str(), text, self.sighting(theirs)).map_or(true, |there| {
            let (expires_at, expired, claimed) = (agent.expires_at, agent.expired, agent.claimed);
            let is_of_a_node = document::write(&there).as_bytes() == text;
            !is_of_a_node || Agent { expires_at, expired, claimed, ..there } == **agent
        })
    }

    /// Refusals of single agents mean nothing while a key that all of them share is of another type.
    async fn require_shared_keys(&self, session: &Session) -> Result<(), Failure> {
        let mut pipeline = Pipeline::new();
        for (key, _) in SHARED {
            pipeline.cmd("TYPE").arg(key);
        }
        for ((key, expected), found) in SHARED.into_iter().zip(session.link.all::<String>(&pipeline).await?) {
            if found != expected && found != "none" {
                let reason = format!("the key {key} holds a {found}, and no {expected}; another program uses it");
                return Err(Failure::new(FailureClass::Misconfigured, reason));
            }
        }
        Ok(())
    }

    /// Parked agents are told of again.
    pub(super) async fn retry_parked(&mut self, session: &mut Session) -> Result<(), Failure> {
        let parked: Vec<AgentId> = session.parked.drain().collect();
        let keys = parked.iter().cloned().map(ParkedKey::Agent).collect();
        self.engine.unpark(Sink::Redis, keys).await.map_err(store_failure)?;
        parked.into_iter().for_each(|agent_id| self.engine.touch(agent_id));
        Ok(())
    }

    /// Renews the leases that are due, and listens for the agents that live here.
    pub(super) async fn renew(&mut self, session: &mut Session, now: Instant) -> Result<(), Failure> {
        let newest = self.engine.commits().borrow().change_seq;
        let is_due = session.leases.next_due().is_some_and(|due| due <= now);
        if session.leased_seq == Some(newest) && !is_due {
            return Ok(());
        }
        session.leased_seq = Some(newest);
        let local = self.engine.local_leases();
        self.listen(session, &local).await?;
        let due = session.leases.take_due(&local, now, &mut self.random);
        let told = push::leases(&session.link, &self.scripts, &due).await?;
        let (mut missing, mut written) = (Vec::new(), Vec::new());
        for (lease, told) in due.into_iter().zip(told) {
            let agent_id = &lease.agent_id;
            match told {
                Told::Renewed(count) if !count.is_empty() && session.written.get(agent_id) != Some(&count) => {
                    written.push((agent_id.clone(), count));
                }
                Told::Newer(theirs) if theirs.document.is_some() && !self.is_own(&theirs) => {
                    self.intake.take_theirs(agent_id, theirs).await?;
                    // Not taken, it stands in the way of ours.
                    if self.engine.is_local(agent_id) {
                        missing.push(agent_id.clone());
                    }
                }
                // The next push finds out the rest.
                Told::Missing | Told::Newer(_) => missing.push(agent_id.clone()),
                _ => {}
            }
        }
        self.tell_again(session, missing);
        let agents: Vec<AgentId> = written.iter().map(|(agent_id, _)| agent_id.clone()).collect();
        self.fold_of(session, &agents).await?;
        session.written.extend(written);
        Ok(())
    }

    /// Has agents pushed once more that Redis does not hold as it was told them.
    pub(super) fn tell_again(&self, session: &mut Session, agents: Vec<AgentId>) {
        if agents.len() >= MANY_MISSING {
            session.state.acked_change_seq = 0;
            session.unsaved = true;
        } else {
            agents.into_iter().for_each(|agent_id| self.engine.touch(agent_id));
        }
    }

    fn is_own(&self, theirs: &Theirs) -> bool {
        theirs.held.version().node_id == self.engine.identity().node_id
    }

    async fn listen(&self, session: &mut Session, local: &[LocalLease]) -> Result<(), Failure> {
        let begun: Vec<AgentId> = local
            .iter()
            .filter(|lease| !session.listening.contains(&lease.agent_id))
            .map(|lease| lease.agent_id.clone())
            .collect();
        if begun.is_empty() && session.listening.len() == local.len() {
            return Ok(());
        }
        let live: HashSet<&AgentId> = local.iter().map(|lease| &lease.agent_id).collect();
        let ended: Vec<AgentId> = session.listening.iter().filter(|id| !live.contains(id)).cloned().collect();
        for (agent_ids, begins) in [(&begun, true), (&ended, false)] {
            for chunk in agent_ids.chunks(CHANNELS) {
                let channels: Vec<String> = chunk.iter().map(|id| keys::bell(id.as_str())).collect();
                session.link.listen(&channels, begins).await?;
            }
        }
        // What was observed while nobody listened, or another node did that is gone, rings no more.
        self.fold_of(session, &begun).await?;
        session.listening.extend(begun);
        for agent_id in ended {
            session.listening.remove(&agent_id);
            session.written.remove(&agent_id);
        }
        Ok(())
    }

    /// Offers what was observed here. Of each agent there is one offer at a time, which is repeated until Redis has answered:
    /// it may hold it already.
    pub(super) async fn offer(&self, session: &mut Session) -> Result<(), Failure> {
        let newest = self.engine.commits().borrow().observation_seq;
        if session.offered_seq == Some(newest) {
            return Ok(());
        }
        // This Redis is known once it has been told everything: crashed before, we begin again.
        let is_known = session.state.nonce.as_ref() == Some(&session.origin.nonce);
        let is_in_doubt = !is_known || session.offers_all;
        let observations = if is_in_doubt { self.engine.all_observations() } else { self.engine.observations() };
        let mut observations = observations.map_err(store_failure)?;
        let mut begun = Vec::new();
        for seen in observations.iter_mut().filter(|seen| seen.offered == seen.acked && seen.total != seen.acked) {
            seen.offered = seen.total;
            begun.push((seen.agent_id.clone(), seen.observer, seen.offered));
        }
        if !begun.is_empty() {
            self.engine.offer_observations(begun).await.map_err(store_failure)?;
        }
        let told = outcomes::offer(&session.link, &self.scripts, &observations).await?;
        let (mut acked, mut is_all) = (Vec::new(), true);
        for (seen, told) in observations.into_iter().zip(told) {
            match told {
                Told::Done => {
                    is_all &= seen.offered == seen.total;
                    acked.push((seen.agent_id, seen.observer, seen.offered));
                }
                Told::Other(Some(there)) if there.is_behind(seen.acked) => {
                    // Redis went back to what it held before, and has to be told the rest once more.
                    acked.push((seen.agent_id, seen.observer, there));
                    is_all = false;
                }
                Told::Other(_) => self.engine.split_observer(seen.agent_id).await.map_err(store_failure)?,
                Told::Refused { reason, .. } => {
                    tracing::warn!(agent_id = %seen.agent_id, reason, "outcomes cannot be stored in Redis");
                }
                _ => {}
            }
        }
        if !acked.is_empty() {
            self.engine.ack_observations(acked).await.map_err(store_failure)?;
        }
        (session.offered_seq, session.offers_all) = (is_all.then_some(newest), false);
        if !is_known {
            session.state.nonce = Some(session.origin.nonce.clone());
            session.unsaved = true;
        }
        Ok(())
    }

    /// Folds what observers rang for.
    pub(super) async fn fold(&self, session: &mut Session) -> Result<(), Failure> {
        let mut rung = HashSet::new();
        while let Ok(agent_id) = session.heard.try_recv() {
            rung.insert(agent_id);
        }
        let agents: Vec<AgentId> = rung.into_iter().filter(|id| session.listening.contains(id)).collect();
        self.fold_of(session, &agents).await
    }

    async fn fold_of(&self, session: &Session, agents: &[AgentId]) -> Result<(), Failure> {
        if agents.is_empty() {
            return Ok(());
        }
        let totals = outcomes::read(&session.link, agents).await?;
        if totals.is_empty() {
            return Ok(());
        }
        let left_out = self.engine.fold_observations(totals).await.map_err(store_failure)?;
        if left_out > 0 && self.left_out.swap(left_out, Ordering::Relaxed) == 0 {
            tracing::warn!(agents = agents.len(), left_out, "an agent has more observers than are folded");
        }
        Ok(())
    }

    /// Tells deletions again, after a break and now and then.
    pub(super) async fn sweep(&mut self, session: &mut Session, now: Instant) -> Result<(), Failure> {
        if session.sweep_due.is_some_and(|due| due <= now) {
            (session.sweep, session.sweep_due) = (Some(0), None);
        }
        let Some(from) = session.sweep else { return Ok(()) };
        if from == 0 {
            session.sweep_found = false;
        }
        let changes = self.engine.changes_after(from, SWEPT).map_err(store_failure)?;
        session.sweep = changes.last().map(AgentChange::change_seq);
        let deletions: Vec<AgentChange> =
            changes.into_iter().filter(|change| matches!(change, AgentChange::Removed { .. })).collect();
        session.sweep_found |= !deletions.is_empty();
        if session.sweep.is_none() && session.sweep_found {
            session.sweep_due = Some(now + SWEEP_EVERY);
        }
        let told = push::changes(&session.link, &self.scripts, &deletions).await?;
        self.told(session, &deletions, told).await?;
        Ok(())
    }

    /// The versions of the agents that live here.
    pub(super) fn local_versions(&self) -> HashMap<AgentId, HeldVersion> {
        self.engine.local_leases().into_iter().map(|lease| (lease.agent_id, HeldVersion::Put(lease.version))).collect()
    }
}
