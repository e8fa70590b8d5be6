//! What a round reads from Redis: the stream of changes, one page of all ids while a search is under way, and the leases
//! of remote agents that seem to end.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::intake::{look, store_failure};
use super::keys::HeldVersion;
use super::leases::jittered;
use super::scan::{Missing, Scan, Why};
use super::stream;
use super::worker::{Redis, Session};
use crate::domain::{AgentId, AgentVersion};
use crate::engine::replica::RegistryLink;
use crate::sync::state::Failure;

/// How often it is checked, while nothing comes, that the stream is still the one that was read.
const EXTENT_EVERY: Duration = Duration::from_secs(5);
/// How many pages one round looks through after a break.
const PAGES: usize = 8;
/// The shortest and the longest time between two routine searches.
const SCAN_EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(24 * 3_600));
/// How many commands a second the routine searches of a whole fleet may cost about.
const SCAN_BUDGET: f64 = 10_000.0;
/// Every so many searches the sets of capabilities are looked through too.
const THOROUGH: u32 = 10;
/// How long before its end a remote lease is asked for.
const EXPIRY_AHEAD: Duration = Duration::from_secs(2);
/// How many remote agents are looked at a second, on average.
const EXPIRY_RATE: f64 = 50_000.0;

impl Redis {
    /// Reads what changed elsewhere. Returns how many agents were taken in, and whether there is more.
    pub(super) async fn pull(&mut self, session: &mut Session, now: Instant) -> Result<(u64, bool), Failure> {
        let batch = stream::read(&session.link, session.cursor, self.clock.now()).await?;
        if batch.next.is_some() || now >= session.extent_due {
            session.extent_due = now + EXTENT_EVERY;
            // Asked after reading: what was cut off meanwhile only makes us look more often than needed.
            let extent = stream::extent(&session.link).await?;
            if !extent.continues(session.cursor) {
                tracing::debug!(cursor = %session.cursor, "the stream of changes does not go on where it was left");
                session.cursor = extent.last;
                self.after_break(session);
                return Ok((0, true));
            }
        }
        let Some(next) = batch.next else { return Ok((0, false)) };
        let own_id = self.engine.identity().node_id;
        // Several entries of one agent count once: the last of them.
        let newest: HashMap<String, HeldVersion> =
            batch.entries.into_iter().map(|entry| (entry.agent_id, entry.held)).collect();
        let (mut wanted, mut removed, mut suspicious) = (Vec::new(), Vec::new(), Vec::new());
        let local = if newest.is_empty() { HashMap::new() } else { self.local_versions() };
        for (id, held) in newest {
            let agent_id = AgentId::from_stored(&id);
            let ours = local.get(&agent_id).map(|held| held.version());
            match held {
                HeldVersion::Put(version) if version.node_id == own_id => {
                    if ours.is_none_or(|ours| ours < version) {
                        suspicious.push((agent_id, version));
                    }
                }
                HeldVersion::Put(_) => {
                    session.unconfirmed.remove(&agent_id);
                    wanted.push(id);
                }
                HeldVersion::Removed(version) if version.node_id == own_id => {}
                HeldVersion::Removed(version) => {
                    // Registered anew and deleted elsewhere: telling of ours finds that out.
                    if ours.is_some_and(|ours| ours < version) {
                        self.engine.touch(agent_id.clone());
                    }
                    self.intake.forget(&agent_id);
                    removed.push((agent_id, version));
                }
            }
        }
        if self.intake.is_of_another_file(&suspicious)? {
            self.fork(session).await?;
            return Ok((0, true));
        }
        if !removed.is_empty() {
            self.engine.drop_remote(removed).await.map_err(store_failure)?;
        }
        let taken = self.intake.take(look(&session.link, &wanted, true, self.clock.now()).await?).await?;
        if taken.is_forked {
            self.fork(session).await?;
            return Ok((taken.agents, true));
        }
        session.cursor = next;
        session.state.stream_cursor = Some(next.to_string());
        session.unsaved = true;
        Ok((taken.agents, batch.full))
    }

    /// Looks through the next ids, if that is under way or it is time. Returns how many agents were taken in.
    pub(super) async fn scan(&mut self, session: &mut Session, now: Instant) -> Result<u64, Failure> {
        if session.scan.is_none() && now >= session.scan_due {
            session.scans = session.scans.wrapping_add(1);
            let thorough = session.scans.is_multiple_of(THOROUGH);
            session.scan = Some(Scan::new(Why::Routine, thorough, &self.engine));
        }
        let mut taken = 0;
        for _ in 0..PAGES {
            let Some(scan) = session.scan.as_mut() else { break };
            let step = scan.step(&session.link, &self.scripts, &self.engine, &mut self.intake).await?;
            taken += step.taken.agents;
            let why = scan.why();
            if step.taken.is_forked {
                self.fork(session).await?;
                return Ok(taken);
            }
            if let Some(missing) = step.missing {
                session.unconfirmed.retain(|agent_id, _| !scan.has_seen(agent_id));
                let is_whole = missing == Missing::default() && step.lost.is_empty();
                if why == Why::Routine && !is_whole && !self.is_same_data(session, now).await? {
                    return Ok(taken);
                }
                self.missing(session, why, missing).await?;
                self.lost(session, step.lost);
            }
            if session.scan.as_ref().is_some_and(Scan::is_done) {
                session.scan = None;
                let (nodes, agents) = session.fleet;
                let cost = Duration::from_secs_f64(nodes as f64 * agents as f64 * 2.0 / SCAN_BUDGET);
                session.scan_due = now + jittered(cost.clamp(SCAN_EVERY.0, SCAN_EVERY.1), &mut self.random);
            }
            if why == Why::Routine {
                break;
            }
        }
        Ok(taken)
    }

    /// Remote agents have no document. After a break that alone proves nothing: their nodes may not be back yet.
    async fn missing(&mut self, session: &mut Session, why: Why, missing: Missing) -> Result<(), Failure> {
        self.gone(missing.deleted).await?;
        let missing = missing.unexplained;
        match why {
            Why::Break => {
                self.engine.registry_link(RegistryLink::Up);
                session.unconfirmed = missing.into_iter().collect();
                let agents: Vec<AgentId> = session.unconfirmed.keys().cloned().collect();
                if !agents.is_empty() {
                    self.engine.registry_link(RegistryLink::Unconfirmed(agents));
                }
            }
            Why::Routine => {
                let gone = missing.into_iter().filter(|(id, version)| session.unconfirmed.get(id) != Some(version));
                self.gone(gone.collect()).await?;
            }
        }
        Ok(())
    }

    /// Agents that live here have no document, or are not in the index. What is still to be pushed is not there yet, and
    /// what is parked was refused.
    fn lost(&mut self, session: &mut Session, mut lost: Vec<AgentId>) {
        if session.state.acked_change_seq < self.engine.commits().borrow().change_seq {
            return;
        }
        lost.retain(|agent_id| !session.parked.contains(agent_id));
        let Some(last) = lost.last() else { return };
        tracing::warn!(agents = lost.len(), last = %last, "agents of this node vanished from Redis; they are told again");
        self.vanished = (self.vanished.0 + lost.len(), Some(last.clone()));
        self.tell_again(session, lost);
    }

    async fn gone(&mut self, gone: Vec<(AgentId, AgentVersion)>) -> Result<(), Failure> {
        if gone.is_empty() {
            return Ok(());
        }
        gone.iter().for_each(|(agent_id, _)| self.intake.forget(agent_id));
        self.engine.drop_remote(gone).await.map_err(store_failure)
    }

    /// Whether all is where it was read before. A Redis that has just lost everything must not be taken at its word.
    async fn is_same_data(&mut self, session: &mut Session, now: Instant) -> Result<bool, Failure> {
        let before = session.origin.clone();
        session.origin_is_due(now);
        self.check_origin(session, now).await?;
        Ok(session.origin == before)
    }

    /// Asks for the remote agents whose leases seem to end: nobody is told of renewals.
    pub(super) async fn ask_for_expiring(&mut self, session: &mut Session, now: Instant) -> Result<(), Failure> {
        // While a search after a break is under way, it asks for all of them.
        let searching = session.scan.as_ref().is_some_and(|scan| scan.why() == Why::Break && !scan.has_seen_all());
        if now < session.expiry_due || searching {
            return Ok(());
        }
        let remote = self.engine.remote_agents();
        let nodes: HashSet<_> = remote.iter().map(|(_, version, _)| version.node_id).collect();
        session.fleet = (nodes.len() + 1, remote.len());
        let pause = Duration::from_secs_f64(1.0 + remote.len() as f64 / EXPIRY_RATE);
        session.expiry_due = now + pause;
        let alive: HashSet<&AgentId> = remote.iter().map(|(agent_id, ..)| agent_id).collect();
        session.unconfirmed.retain(|agent_id, _| alive.contains(agent_id));
        let ending: Vec<(AgentId, AgentVersion)> = remote
            .iter()
            .filter(|(id, version, remaining)| {
                *remaining <= EXPIRY_AHEAD + pause && session.unconfirmed.get(id) != Some(version)
            })
            .map(|(id, version, _)| (id.clone(), *version))
            .collect();
        if ending.is_empty() {
            return Ok(());
        }
        if !self.is_same_data(session, now).await? {
            return Ok(());
        }
        let ids: Vec<String> = ending.iter().map(|(id, _)| id.as_str().to_owned()).collect();
        let (mut renewed, mut wanted, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for ((agent_id, version), found) in
            ending.into_iter().zip(look(&session.link, &ids, false, self.clock.now()).await?)
        {
            match (found.remaining, found.held) {
                (None, _) => {
                    let deletion = found.deletion_of(version);
                    gone.push((agent_id, deletion.unwrap_or(version)));
                }
                (Some(remaining), Some(HeldVersion::Put(held))) if held == version => {
                    renewed.push((agent_id, remaining));
                }
                (Some(_), _) => wanted.push(found.agent_id),
            }
        }
        self.engine.renew_remote(&renewed);
        let taken = self.intake.take(look(&session.link, &wanted, true, self.clock.now()).await?).await?;
        if taken.is_forked {
            self.fork(session).await?;
        }
        self.gone(gone).await
    }
}
