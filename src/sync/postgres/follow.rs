//! From PostgreSQL: what others wrote about our agents' transactions, and what older clients did to them.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::errors::{Kind, Trouble};
use super::merge::{Undo, merge};
use super::payload::{CentralEvent, Unreadable};
use super::pull::{Horizon, Interest, Reading, glance, newest_own};
use super::session::{Access, Limits, Session, column};
use super::worker::{Link, Postgres};
use crate::domain::{AgentId, Canary, NodeId, PostgresState, TransactionId};

/// How many own pushes are left out of a read.
const MAX_OWN: usize = 1_000;
/// How many transactions are read once more after the server was restarted. For something to be skipped, more than these
/// must have been lost, and an event must then come again under exactly the number that it had.
const READ_AGAIN: u64 = 10_000;
/// How many rows are adopted in one transaction.
const ADOPTED_AT_ONCE: i64 = 500;
/// How often a cursor that moved while nothing was for us is written down.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// Looking for marks goes through all transactions of an agent.
const SWEEP: Limits = Limits { statement: Duration::from_secs(60), lock: Duration::from_secs(1) };

/// What was learned about following, kept across connections.
pub struct Follow {
    /// How often the marks of older clients are looked for, if they are said to write.
    sweep_every: Option<Duration>,
    next_sweep: Option<Instant>,
    /// A cursor that is further than the one that is stored.
    further: Option<String>,
    saved: Option<Instant>,
    /// Our own pushes since the last read.
    own: Vec<u64>,
}

/// What came of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Followed {
    pub pulled: u64,
    pub more: bool,
}

impl Follow {
    pub fn new(sweep_every: Option<Duration>) -> Self {
        Self { sweep_every, next_sweep: None, further: None, saved: None, own: Vec::new() }
    }

    /// How long until the marks of older clients are to be looked for.
    pub fn until_sweep(&self) -> Duration {
        match (self.sweep_every, self.next_sweep) {
            (None, _) => Duration::MAX,
            (Some(_), None) => Duration::ZERO,
            (Some(_), Some(due)) => due.saturating_duration_since(Instant::now()),
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

    /// The stored cursor was set back.
    pub fn forget(&mut self) {
        (self.further, self.saved) = (None, None);
    }
}

impl Postgres {
    /// Adopts where it is time to, then reads all that is new.
    pub(super) async fn read_some(&mut self, link: &mut Link) -> Result<Followed, Trouble> {
        let (mut covered, mut new) = (Vec::new(), Vec::new());
        for agent in self.engine.ledger_agents()? {
            if agent.covered { covered.push(agent.agent_id) } else { new.push(agent.agent_id) }
        }
        let may_identify = link.may_identify;
        let session = link.session().await?;
        self.sweep(session, &covered, &new).await?;

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
            link.fence = Some(self.settle(node_id, state, &seen).await?);
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
            Interest { agents: &covered, recorded_by: &recorded_by, except, since: &horizon },
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
        let all: Vec<AgentId> = covered.iter().chain(&new).cloned().collect();
        let interest = Interest { agents: &all, recorded_by: &recorded_by, except, since: &horizon };
        let newest_own = newest_own(session, &interest).await?;
        session.commit().await?;

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
        if !new.is_empty() {
            self.engine.cover(new).await?;
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
                Err(unreadable) => tracing::warn!(%unreadable, "an event in PostgreSQL is passed over"),
            }
        }
        self.absorb(entries, node_id, stored.clone()).await
    }

    /// Adopts what older clients did: for agents that are new here always, for the others where such clients are said to
    /// write.
    async fn sweep(&mut self, session: &mut Session, covered: &[AgentId], new: &[AgentId]) -> Result<(), Trouble> {
        let is_due = self.follow.until_sweep().is_zero();
        let agents: Vec<AgentId> = if is_due { covered.iter().chain(new).cloned().collect() } else { new.to_vec() };
        if agents.is_empty() {
            return Ok(());
        }
        let adopted = adopt_all(session, &agents, self.clock.now()).await?;
        if adopted > 0 {
            tracing::info!(events = adopted, "adopted what clients without events did");
        }
        if is_due {
            self.follow.next_sweep = self.follow.sweep_every.map(|every| Instant::now() + every);
        }
        Ok(())
    }
}

/// Adopts what was done to any transaction of the agents; how many events that made.
///
/// # Errors
///
/// See [`Trouble`].
pub async fn adopt_all(
    session: &mut Session,
    agents: &[AgentId],
    now: crate::domain::Timestamp,
) -> Result<usize, Trouble> {
    let mut adopted = 0;
    let mut after = String::new();
    loop {
        session.begin(Access::ReadWrite, SWEEP).await?;
        let marked = match marked_after(session, agents, &after).await {
            Ok(marked) => marked,
            Err(trouble) => return Err(trouble),
        };
        let Some(last) = marked.last() else {
            session.commit().await?;
            return Ok(adopted);
        };
        after = last.as_str().to_owned();
        session.commit().await?;
        let mut pieces = vec![marked];
        while let Some(piece) = pieces.pop() {
            session.begin(Access::ReadWrite, SWEEP).await?;
            match merge(session, &[], &piece, &|_| Ok(None), now).await {
                Ok(merged) => {
                    session.commit().await?;
                    adopted += merged.adopted;
                }
                Err(Undo::Trouble(trouble)) if matches!(trouble.kind, Kind::Entry | Kind::Contention) => {
                    session.rollback().await?;
                    if let [only] = piece.as_slice() {
                        // Its row keeps the mark, so that the next sweep comes by it again.
                        tracing::warn!(transaction_id = %only, reason = %trouble, "a row in PostgreSQL is not adopted");
                    } else {
                        pieces.extend(piece.chunks(piece.len().div_ceil(2)).rev().map(<[TransactionId]>::to_vec));
                    }
                }
                Err(Undo::Trouble(trouble)) => return Err(trouble),
                Err(Undo::Without(_)) => session.rollback().await?,
            }
        }
    }
}

/// Transactions whose row was last written by somebody who wrote no event with it: by a client that knows none, by a
/// restore, or, now and then, by ourselves.
async fn marked_after(session: &Session, agents: &[AgentId], after: &str) -> Result<Vec<TransactionId>, Trouble> {
    let agents: Vec<&str> = agents.iter().map(AgentId::as_str).collect();
    let rows = session
        .query(
            "SELECT transaction_id FROM marketplace_transactions t
              WHERE (payer_agent = ANY($1) OR provider_agent = ANY($1)) AND transaction_id COLLATE \"C\" > $2
                AND NOT EXISTS (SELECT FROM marketplace_transaction_events e
                                 WHERE e.transaction_id = t.transaction_id AND e.xid::xid = t.xmin)
              ORDER BY transaction_id COLLATE \"C\" LIMIT $3",
            &[(&agents, Type::TEXT_ARRAY), (&after, Type::TEXT), (&ADOPTED_AT_ONCE, Type::INT8)],
        )
        .await?;
    let mut marked = Vec::with_capacity(rows.len());
    for row in &rows {
        match column(row, 0) {
            Ok(id) => marked.push(TransactionId::from_stored(id)),
            Err(trouble) if trouble.kind == Kind::Entry => {
                tracing::warn!(reason = %trouble, "a row in PostgreSQL is not adopted");
            }
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(marked)
}
