//! Looking for what older clients did: once for each agent that is new here, and every minute for all of them where such
//! clients are said to write.
//!
//! A sweep goes through the transactions of its agents in the order of their ids and adopts those that bear a mark. It
//! pauses when its time is up, and goes on where it stopped. A row that somebody is in the way of, or a table that cannot
//! be searched, ends nothing: those agents are swept again in a while, and only then count as covered. What is refused for
//! its content stays as it is, and the operator is told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::errors::{Kind, Trouble};
use super::merge::{Undo, merge};
use super::rows;
use super::session::{Access, Limits, Session, column};
use crate::domain::{AgentId, Timestamp, TransactionId};
use crate::engine::replica::LedgerAgent;

/// How many rows are searched for marks at once.
const SEARCHED_AT_ONCE: i64 = 5_000;
/// How many rows are adopted in one transaction.
const ADOPTED_AT_ONCE: usize = 500;
/// A search reads the ids of all transactions of its agents.
const LIMITS: Limits = Limits { statement: Duration::from_secs(30), lock: Duration::from_secs(1) };
/// Of how many refused rows the ids are remembered.
const MAX_TOLD: usize = 1_000;
/// How many of them are named to the operator.
const MAX_NAMED: usize = 3;
/// How much of each reason.
const MAX_REASON: usize = 200;

/// When what older clients did is looked for, and for how long at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweeping {
    /// How often for all agents; never, but for once for each, where no such clients write.
    pub every: Option<Duration>,
    /// How soon again where something was in the way.
    pub retry_after: Duration,
    /// For how long at once.
    pub time: Duration,
}

/// What was learned about what older clients did.
pub struct Sweeps {
    sweeping: Sweeping,
    next: Option<Instant>,
    run: Option<Run>,
    /// Agents for whom nothing was in the way.
    clean: HashSet<AgentId>,
    /// Agents for whom something was, and when they are swept again.
    pending: HashMap<AgentId, Instant>,
    /// Rows that are refused for their content, and why; each is told once.
    refused: BTreeMap<String, String>,
    /// Why the last sweep failed as a whole, if it did.
    failed: Option<String>,
}

/// One sweep.
struct Run {
    agents: Vec<AgentId>,
    /// Whether it is through all agents.
    is_full: bool,
    /// The id behind which the search goes on; `None` once it is through.
    after: Option<String>,
    /// What was found and is not adopted yet, the first last.
    pieces: Vec<Vec<Marked>>,
    /// Agents with a row that somebody was in the way of.
    skipped: HashSet<AgentId>,
    refused: BTreeMap<String, String>,
    adopted: usize,
}

/// A transaction whose row was last written by somebody who wrote no event with it: by a client that knows none, by a
/// restore, or, now and then, by ourselves.
#[derive(Clone)]
struct Marked {
    transaction_id: TransactionId,
    parties: Vec<AgentId>,
}

impl Sweeps {
    pub fn new(sweeping: Sweeping) -> Self {
        Self {
            sweeping,
            next: None,
            run: None,
            clean: HashSet::new(),
            pending: HashMap::new(),
            refused: BTreeMap::new(),
            failed: None,
        }
    }

    /// How long until there is something to look for, apart from agents that are new.
    pub fn until_due(&self) -> Duration {
        let now = Instant::now();
        let full = match (self.sweeping.every, self.next) {
            _ if self.run.is_some() => Some(now),
            (None, _) => None,
            (Some(_), None) => Some(now),
            (Some(_), next) => next,
        };
        let due = full.into_iter().chain(self.pending.values().copied()).min();
        due.map_or(Duration::MAX, |due| due.saturating_duration_since(now))
    }

    /// Nothing of what was found counts any more.
    pub fn forget(&mut self) {
        self.run = None;
        self.clean.clear();
        self.pending.clear();
    }

    /// Whether everything that older clients did to this agent's transactions was adopted, or never will be.
    pub fn is_clean(&self, agent: &AgentId) -> bool {
        self.clean.contains(agent)
    }

    /// What an operator should know.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(reason) = &self.failed {
            notes.push(format!("what clients without events did cannot be looked for: {reason}"));
        }
        if !self.refused.is_empty() {
            let named: Vec<_> = self.refused.iter().take(MAX_NAMED).map(|(id, why)| format!("{id}: {why}")).collect();
            let or_more = if self.refused.len() == MAX_TOLD { " or more" } else { "" };
            let count = self.refused.len();
            notes.push(format!("{count}{or_more} rows in PostgreSQL are not adopted; {}", named.join("; ")));
        }
        notes
    }

    /// Adopts for as long as a sweep may take at once, if it is time to.
    ///
    /// # Errors
    ///
    /// See [`Trouble`]; that somebody was in the way, or that something was refused, is none.
    pub async fn sweep(
        &mut self,
        session: &mut Session,
        followed: &[LedgerAgent],
        now: Timestamp,
    ) -> Result<(), Trouble> {
        self.begin(followed);
        let Some(mut run) = self.run.take() else { return Ok(()) };
        match run.go_on(session, Instant::now() + self.sweeping.time, now).await {
            Ok(()) if run.is_over() => self.end(run, followed),
            Ok(()) => self.run = Some(run),
            Err(trouble) if matches!(trouble.kind, Kind::Entry | Kind::Contention) => self.fail(run, &trouble),
            Err(trouble) => {
                if run.is_full {
                    self.next = None;
                }
                return Err(trouble);
            }
        }
        Ok(())
    }

    /// Begins a sweep for those agents for whom it is time, unless one is under way.
    fn begin(&mut self, followed: &[LedgerAgent]) {
        let uncovered: HashSet<&AgentId> =
            followed.iter().filter(|agent| !agent.covered).map(|agent| &agent.agent_id).collect();
        self.clean.retain(|agent| uncovered.contains(agent));
        self.pending.retain(|agent, _| uncovered.contains(agent));
        if self.run.is_some() {
            return;
        }
        let now = Instant::now();
        let is_full = self.sweeping.every.is_some() && self.next.is_none_or(|next| next <= now);
        let is_due = |agent: &LedgerAgent| {
            is_full
                || !agent.covered
                    && !self.clean.contains(&agent.agent_id)
                    && self.pending.get(&agent.agent_id).is_none_or(|due| *due <= now)
        };
        let agents: Vec<AgentId> =
            followed.iter().filter(|agent| is_due(agent)).map(|agent| agent.agent_id.clone()).collect();
        if is_full {
            self.next = self.sweeping.every.map(|every| now + every);
        }
        if !agents.is_empty() {
            self.run = Some(Run::new(agents, is_full));
        }
    }

    fn end(&mut self, run: Run, followed: &[LedgerAgent]) {
        self.failed = None;
        if run.adopted > 0 {
            tracing::info!(events = run.adopted, "adopted what clients without events did");
        }
        if run.is_full {
            // Whatever is not refused any more is of no interest any more.
            self.refused.retain(|id, _| run.refused.contains_key(id));
        }
        for (id, reason) in run.refused {
            if self.refused.len() < MAX_TOLD && !self.refused.contains_key(&id) {
                tracing::warn!(transaction_id = id, reason, "a row in PostgreSQL is not adopted");
                self.refused.insert(id, reason);
            }
        }
        let covered: HashSet<&AgentId> =
            followed.iter().filter(|agent| agent.covered).map(|agent| &agent.agent_id).collect();
        for agent in run.agents.into_iter().filter(|agent| !covered.contains(agent)) {
            if run.skipped.contains(&agent) {
                self.pending.insert(agent, Instant::now() + self.sweeping.retry_after);
            } else {
                self.pending.remove(&agent);
                self.clean.insert(agent);
            }
        }
    }

    fn fail(&mut self, run: Run, trouble: &Trouble) {
        let reason = trouble.to_string();
        if self.failed.as_ref() != Some(&reason) {
            tracing::warn!(reason, "what clients without events did cannot be looked for; it is tried again");
            self.failed = Some(reason);
        }
        let again = Instant::now() + self.sweeping.retry_after;
        self.next = self.next.map(|next| next.max(again));
        self.pending.extend(run.agents.into_iter().map(|agent| (agent, again)));
    }
}

impl Run {
    fn new(agents: Vec<AgentId>, is_full: bool) -> Self {
        Self {
            agents,
            is_full,
            after: Some(String::new()),
            pieces: Vec::new(),
            skipped: HashSet::new(),
            refused: BTreeMap::new(),
            adopted: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.after.is_none() && self.pieces.is_empty()
    }

    /// Searches and adopts until it is over or time is up; one step at least.
    async fn go_on(&mut self, session: &mut Session, until: Instant, now: Timestamp) -> Result<(), Trouble> {
        while !self.is_over() {
            match self.pieces.pop() {
                Some(piece) => self.adopt(session, piece, now).await?,
                None => self.search(session).await?,
            }
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    /// Searches the next rows for marks.
    async fn search(&mut self, session: &mut Session) -> Result<(), Trouble> {
        let Some(after) = &self.after else { return Ok(()) };
        session.begin(Access::Snapshot, LIMITS).await?;
        let found = rows::marked_after(session, &self.agents, after, SEARCHED_AT_ONCE).await;
        if found.is_err() {
            session.rollback().await?;
        } else {
            session.commit().await?;
        }
        let found = found?;
        let mut marked = Vec::new();
        self.after = None;
        for row in &found {
            let transaction_id: &str = match column(row, 0) {
                Ok(id) => id,
                Err(trouble) if trouble.kind == Kind::Entry => {
                    self.refuse("(an id that is no text)", &trouble.words);
                    continue;
                }
                Err(trouble) => return Err(trouble),
            };
            self.after = Some(transaction_id.to_owned());
            if column(row, 3)? {
                let parties = [1, 2].into_iter().filter_map(|party| column(row, party).ok());
                marked.push(Marked {
                    transaction_id: TransactionId::from_stored(transaction_id),
                    parties: parties.map(AgentId::from_stored).collect(),
                });
            }
        }
        if (found.len() as i64) < SEARCHED_AT_ONCE {
            self.after = None;
        }
        self.pieces.extend(marked.chunks(ADOPTED_AT_ONCE).rev().map(<[Marked]>::to_vec));
        Ok(())
    }

    /// Adopts what was done to these, or finds out which of them it is that cannot be adopted.
    async fn adopt(&mut self, session: &mut Session, piece: Vec<Marked>, now: Timestamp) -> Result<(), Trouble> {
        let ids: Vec<TransactionId> = piece.iter().map(|marked| marked.transaction_id.clone()).collect();
        session.begin(Access::ReadWrite, LIMITS).await?;
        let trouble = match merge(session, &[], &ids, &|_| Ok(None), None, now).await {
            Ok(merged) => {
                session.commit().await?;
                self.adopted += merged.adopted;
                merged.unadoptable.iter().for_each(|(id, reason)| self.refuse(id, reason));
                return Ok(());
            }
            Err(Undo::Trouble(trouble)) => trouble,
            Err(Undo::Without(_) | Undo::Suspects(_)) => {
                unreachable!("nothing was offered that could be left out")
            }
        };
        if !matches!(trouble.kind, Kind::Entry | Kind::Contention) {
            return Err(trouble);
        }
        session.rollback().await?;
        match (trouble.kind, piece.as_slice()) {
            (Kind::Entry, [only]) => self.refuse(only.transaction_id.as_str(), &trouble.words),
            (_, [only]) => self.skip(only),
            (Kind::Contention, _) => {
                let (locked, free) = self.locked(session, piece).await?;
                locked.iter().for_each(|marked| self.skip(marked));
                // Nobody keeps any of them: less at once may do.
                let size = if locked.is_empty() { free.len().div_ceil(2) } else { ADOPTED_AT_ONCE };
                self.pieces.extend(free.chunks(size).rev().map(<[Marked]>::to_vec));
            }
            (_, several) => {
                self.pieces.extend(several.chunks(several.len().div_ceil(2)).rev().map(<[Marked]>::to_vec));
            }
        }
        Ok(())
    }

    /// Parts those whose rows somebody keeps locked just now from the others.
    async fn locked(&self, session: &mut Session, piece: Vec<Marked>) -> Result<(Vec<Marked>, Vec<Marked>), Trouble> {
        let ids: Vec<&str> = piece.iter().map(|marked| marked.transaction_id.as_str()).collect();
        session.begin(Access::ReadWrite, LIMITS).await?;
        let locked = rows::locked_by_others(session, &ids).await;
        session.rollback().await?;
        let locked: HashSet<String> = locked?.into_iter().collect();
        Ok(piece.into_iter().partition(|marked| locked.contains(marked.transaction_id.as_str())))
    }

    fn skip(&mut self, marked: &Marked) {
        tracing::debug!(transaction_id = %marked.transaction_id, "somebody is in the way of a row that is to be adopted");
        self.skipped.extend(marked.parties.iter().cloned());
    }

    fn refuse(&mut self, id: &str, reason: &str) {
        if self.refused.len() < MAX_TOLD {
            let shortened = |text: &str| text.chars().take(MAX_REASON).collect();
            self.refused.insert(shortened(id), shortened(reason));
        }
    }
}
