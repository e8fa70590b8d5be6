//! From PostgreSQL: what others wrote about our agents' transactions.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::errors::Trouble;
use super::link::Link;
use super::payload::{CentralEvent, Unreadable};
use super::pull::{Horizon, Interest, Reading, glance, newest_own};
use super::session::{Access, Limits};
use super::sweep::{Sweeping, Sweeps};
use super::worker::Postgres;
use crate::domain::{AgentId, Canary, NodeId, PostgresState};
use crate::engine::replica::LedgerAgent;

/// How many events that cannot be read are told of.
const MAX_PASSED_OVER: usize = 1_000;
/// How many own pushes are left out of a read.
const MAX_OWN: usize = 1_000;
/// How many transactions are read once more after the server was restarted. For something to be skipped, more than these
/// must have been lost, and an event must then come again under exactly the number that it had.
const READ_AGAIN: u64 = 10_000;
/// How often a cursor that moved while nothing was for us is written down.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// What was learned about following, kept across connections.
pub struct Follow {
    /// What older clients did.
    pub sweeps: Sweeps,
    /// Agents that do not count as covered yet, but were read from the beginning since this node was started.
    read: HashSet<AgentId>,
    /// A cursor that is further than the one that is stored.
    further: Option<String>,
    saved: Option<Instant>,
    /// Our own pushes since the last read.
    own: Vec<u64>,
    /// Events that cannot be read, and why.
    passed_over: BTreeMap<Uuid, String>,
}

/// What came of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Followed {
    pub pulled: u64,
    pub more: bool,
}

impl Follow {
    pub fn new(sweeping: Sweeping) -> Self {
        Self {
            sweeps: Sweeps::new(sweeping),
            read: HashSet::new(),
            further: None,
            saved: None,
            own: Vec::new(),
            passed_over: BTreeMap::new(),
        }
    }

    /// We wrote something in this transaction.
    pub fn wrote(&mut self, xid: u64) {
        // Were there more of them between two reads, the oldest would be read again, which does no harm.
        if self.own.len() == MAX_OWN {
            self.own.remove(0);
        }
        self.own.push(xid);
    }

    /// An event cannot be read: the log tells so once, the status for as long as this process has seen it.
    fn pass_over(&mut self, unreadable: &Unreadable) {
        if self.passed_over.len() < MAX_PASSED_OVER
            && self.passed_over.insert(unreadable.event_id, unreadable.to_string()).is_none()
        {
            tracing::warn!(%unreadable, "an event in PostgreSQL is passed over");
        }
    }

    /// What an operator should know.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.sweeps.notes();
        if let Some(first) = self.passed_over.values().next() {
            notes.push(format!("events in PostgreSQL are passed over: {}; {first}", self.passed_over.len()));
        }
        notes
    }

    /// The stored cursor was set back.
    pub fn forget(&mut self) {
        (self.further, self.saved) = (None, None);
        self.read.clear();
        self.sweeps.forget();
    }
}

impl Postgres {
    /// Adopts where it is time to, then reads all that is new.
    pub(super) async fn read_some(&mut self, link: &mut Link) -> Result<Followed, Trouble> {
        let followed = self.engine.ledger_agents()?;
        let may_identify = link.may_identify;
        let session = link.session().await?;
        self.follow.sweeps.sweep(session, &followed, self.clock.now()).await?;
        let (mut known, mut new, mut uncovered) = (Vec::new(), Vec::new(), HashSet::new());
        for LedgerAgent { agent_id, covered } in followed {
            let is_known = covered || self.follow.read.contains(&agent_id);
            if !covered {
                uncovered.insert(agent_id.clone());
            }
            if is_known { known.push(agent_id) } else { new.push(agent_id) }
        }

        let (node_id, mut state) = self.cursors()?;
        let stored = state.clone();
        if let Some(further) = &self.follow.further {
            state.snapshot = Some(further.clone());
        }
        let identity = self.engine.identity();
        session.begin(Access::Snapshot, Limits::default()).await?;
        let seen = glance(session, node_id, state.canary, may_identify).await?;
        let is_ours = super::pull::break_in_history(&state, &seen).is_none()
            && seen.fence.unwrap_or_default() == {
                let seq = stored.acked_seq;
                crate::domain::LogPosition { seq, hash: self.engine.log_hash(seq)?.unwrap_or_default() }
            };
        if !is_ours {
            session.commit().await?;
            link.fence = Some(self.settle(link, node_id, state, &seen).await?);
            return Ok(Followed { pulled: 0, more: true });
        }

        let mut horizon = state.snapshot.as_deref().and_then(Horizon::parse).unwrap_or_else(Horizon::beginning);
        let is_restarted = stored.system_identifier.as_ref() != Some(&seen.history);
        if is_restarted {
            horizon = horizon.earlier_by(READ_AGAIN);
        }
        let mut recorded_by = vec![node_id];
        recorded_by.extend(&identity.earlier);
        let own = std::mem::take(&mut self.follow.own);
        let except = (node_id, own.as_slice());
        let interests = [
            Interest { agents: &known, recorded_by: &recorded_by, except, since: &horizon },
            Interest { agents: &new, recorded_by: &[], except, since: &Horizon::beginning() },
        ];
        let (mut pulled, mut newest) = (0, None);
        for interest in
            interests.iter().filter(|interest| !interest.agents.is_empty() || !interest.recorded_by.is_empty())
        {
            let mut reading = Reading::begin(session, interest).await?;
            while let Some(page) = reading.page().await? {
                pulled += self.take_in(page, node_id, &stored, &mut newest).await?;
            }
            reading.end().await?;
        }
        let all: Vec<AgentId> = known.iter().chain(&new).cloned().collect();
        let interest = Interest { agents: &all, recorded_by: &recorded_by, except, since: &horizon };
        let newest_own = newest_own(session, &interest).await?;
        session.commit().await?;
        link.meet(seen.server);

        let candidates = [state.canary, newest.map(|(canary, _)| canary), newest_own];
        // Of equally new ones the one that is known already: what is the same is not saved again.
        let canary = candidates.into_iter().flatten().rev().max_by_key(|canary| canary.xid);
        let snapshot =
            Horizon::parse(&seen.snapshot).map(|horizon| horizon.up_to(canary.map_or(0, |canary| canary.xid)));
        let snapshot = snapshot.map(|horizon| horizon.to_string());
        let is_worth_saving =
            pulled > 0 || !new.is_empty() || stored.snapshot.is_none() || canary != stored.canary || is_restarted;
        if is_worth_saving || self.follow.saved.is_none_or(|saved| saved.elapsed() >= SAVE_EVERY) {
            let system_identifier = Some(seen.history);
            let state = PostgresState { snapshot, canary, system_identifier, ..self.engine.postgres_state()? };
            self.save(node_id, state).await?;
            (self.follow.further, self.follow.saved) = (None, Some(Instant::now()));
        } else {
            self.follow.further = snapshot;
        }
        // From here on they are read; they count as covered once what older clients did to them is adopted as well.
        self.follow.read = uncovered;
        let clean = self.follow.read.iter().filter(|agent| self.follow.sweeps.is_clean(agent));
        let clean: Vec<AgentId> = clean.cloned().collect();
        if !clean.is_empty() {
            self.engine.cover(clean).await?;
        }
        Ok(Followed { pulled, more: false })
    }

    /// Takes a page in, in one durable commit; how many events of it were new here.
    async fn take_in(
        &mut self,
        page: Vec<Result<CentralEvent, Unreadable>>,
        node_id: NodeId,
        stored: &PostgresState,
        newest: &mut Option<(Canary, i64)>,
    ) -> Result<u64, Trouble> {
        let mut entries = Vec::with_capacity(page.len());
        for event in page {
            match event {
                Ok(event) => {
                    let canary = Canary { event_id: event.entry.event.event_id, xid: event.xid };
                    if newest.is_none_or(|(newest, id)| (newest.xid, id) < (canary.xid, event.id)) {
                        *newest = Some((canary, event.id));
                    }
                    entries.push(event.entry);
                }
                Err(unreadable) => self.follow.pass_over(&unreadable),
            }
        }
        self.absorb(entries, node_id, stored.clone()).await
    }
}
