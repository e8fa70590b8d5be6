//! The naive marketplace: plain vectors and maps, every answer computed from scratch by the rules as they are written.

use std::collections::BTreeMap;

use tradepost::Precondition;
use tradepost::domain::{
    AgentPatch, Capabilities, Decision, Facts, NewTransaction, Registration, Reputation, ResolutionOutcome,
    TransactionStatus,
};

/// Two clocks, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub wall: i64,
    pub monotonic: i64,
}

/// Why something is refused, as far as callers tell refusals apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    AgentNotFound,
    AgentAlreadyRegistered,
    RevisionMismatch { actual: u64 },
    TransactionNotFound,
    TransactionIdConflict,
    InvalidTransition { from: TransactionStatus },
    TooMuchEvidence,
    IdempotencyKeyReused,
}

#[derive(Debug, Clone)]
pub struct Agent {
    pub registration: Registration,
    pub ttl_micros: i64,
    pub reputation: Reputation,
    pub revision: u64,
    pub last_updated: i64,
    pub expires_at: i64,
    /// In monotonic time.
    pub deadline: i64,
}

impl Agent {
    pub fn is_live(&self, now: Now) -> bool {
        self.deadline > now.monotonic
    }

    fn begin_lease(&mut self, now: Now) {
        self.expires_at = now.wall + self.ttl_micros;
        self.deadline = now.monotonic + self.ttl_micros;
    }
}

#[derive(Debug, Clone)]
pub struct Event {
    pub kind: &'static str,
    pub at: i64,
    pub round: u32,
}

#[derive(Debug, Clone)]
pub struct Transaction {
    pub id: String,
    pub facts: Facts,
    pub created_at: i64,
    pub updated_at: i64,
    pub status: TransactionStatus,
    pub evidence: Vec<String>,
    pub events: Vec<Event>,
    /// The round and the time of the newest settlement.
    settled: Option<(u32, i64)>,
    round: u32,
}

impl Transaction {
    /// Kept while a dispute contests it.
    pub fn settled_at(&self) -> Option<i64> {
        self.settled.map(|(_, at)| at)
    }
}

/// What was done under an idempotency key.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    pub request: [u8; 32],
    pub created: bool,
    pub subject: String,
}

#[derive(Debug, Default)]
pub struct Marketplace {
    pub agents: BTreeMap<String, Agent>,
    pub transactions: Vec<Transaction>,
    pub receipts: BTreeMap<String, Receipt>,
    revision_floor: u64,
}

impl Marketplace {
    pub fn register(&mut self, registration: Registration, now: Now) -> Result<(), Refused> {
        let id = registration.agent_id.as_str();
        if self.agents.get(id).is_some_and(|agent| agent.is_live(now)) {
            return Err(Refused::AgentAlreadyRegistered);
        }
        self.put(registration, now);
        Ok(())
    }

    /// Whether the agent is new.
    pub fn replace(&mut self, registration: Registration, when: &Precondition, now: Now) -> Result<bool, Refused> {
        let existing = self.agents.get(registration.agent_id.as_str());
        check(when, existing)?;
        let created = existing.is_none();
        self.put(registration, now);
        Ok(created)
    }

    fn put(&mut self, registration: Registration, now: Now) {
        let id = registration.agent_id.to_string();
        let old = self.agents.get(&id);
        let mut agent = Agent {
            ttl_micros: i64::from(registration.ttl.unwrap_or_default().seconds()) * 1_000_000,
            reputation: old.map(|old| old.reputation).unwrap_or_default(),
            revision: old.map_or(0, |old| old.revision).max(self.revision_floor) + 1,
            last_updated: now.wall,
            expires_at: 0,
            deadline: 0,
            registration,
        };
        agent.begin_lease(now);
        self.agents.insert(id, agent);
    }

    pub fn update(&mut self, id: &str, patch: AgentPatch, when: &Precondition, now: Now) -> Result<(), Refused> {
        let agent = self.agents.get_mut(id).ok_or(Refused::AgentNotFound)?;
        check(when, Some(agent))?;
        let told = &mut agent.registration;
        told.cost_per_task = patch.cost_per_task.unwrap_or(told.cost_per_task);
        told.availability = patch.availability.unwrap_or(told.availability);
        told.capabilities = patch.capabilities.unwrap_or_else(|| told.capabilities.clone());
        told.billing_notes = patch.billing_notes.unwrap_or_else(|| told.billing_notes.clone());
        if let Some(ttl) = patch.ttl {
            agent.ttl_micros = i64::from(ttl.seconds()) * 1_000_000;
        }
        agent.revision += 1;
        agent.last_updated = now.wall;
        agent.begin_lease(now);
        Ok(())
    }

    pub fn unregister(&mut self, id: &str, when: &Precondition) -> Result<(), Refused> {
        let agent = self.agents.get(id).ok_or(Refused::AgentNotFound)?;
        check(when, Some(agent))?;
        self.revision_floor = self.revision_floor.max(agent.revision);
        self.agents.remove(id);
        Ok(())
    }

    /// When the lease ends now.
    pub fn heartbeat(&mut self, id: &str, now: Now) -> Result<i64, Refused> {
        let agent = self.agents.get_mut(id).ok_or(Refused::AgentNotFound)?;
        agent.begin_lease(now);
        Ok(agent.expires_at)
    }

    pub fn observe(&mut self, id: &str, success: bool, weight: f64) -> Result<(), Refused> {
        let reputation = &mut self.agents.get_mut(id).ok_or(Refused::AgentNotFound)?.reputation;
        reputation.total_feedback += 1;
        let (count, by) = match success {
            true => (&mut reputation.successful_tasks, weight),
            false => (&mut reputation.failed_tasks, -weight),
        };
        *count += 1;
        reputation.score = (reputation.score + by).clamp(0.0, 5.0);
        Ok(())
    }

    pub fn adjust(&mut self, id: &str, delta: f64) -> Result<(), Refused> {
        let reputation = &mut self.agents.get_mut(id).ok_or(Refused::AgentNotFound)?.reputation;
        reputation.score = (reputation.score + delta).clamp(0.0, 5.0);
        Ok(())
    }

    /// After a restart every agent that had not expired gets one fresh lease.
    pub fn restart(&mut self, now: Now) {
        self.agents.values_mut().filter(|agent| agent.is_live(now)).for_each(|agent| agent.begin_lease(now));
    }

    pub fn transaction(&self, id: &str) -> Option<&Transaction> {
        self.transactions.iter().find(|transaction| transaction.id == id)
    }

    /// The id that is stored with these facts already; `None` if the transaction is new.
    pub fn recorded_as(&self, new: &NewTransaction) -> Result<Option<String>, Refused> {
        let Some(stored) = new.transaction_id.as_ref().and_then(|id| self.transaction(id.as_str())) else {
            return Ok(None);
        };
        if stored.facts == new.facts { Ok(Some(stored.id.clone())) } else { Err(Refused::TransactionIdConflict) }
    }

    /// Records a new transaction under the id that it was given. No two share a microsecond, unless the clock went back
    /// by more than a second.
    pub fn record(&mut self, id: String, facts: Facts, now: Now) {
        let newest = self.transactions.iter().map(|transaction| transaction.created_at).max();
        let at = match newest {
            Some(newest) if newest >= now.wall && newest - now.wall < 1_000_000 => newest + 1,
            _ => now.wall,
        };
        self.transactions.push(Transaction {
            id,
            facts,
            created_at: at,
            updated_at: at,
            status: TransactionStatus::Pending,
            evidence: Vec::new(),
            events: vec![Event { kind: "recorded", at, round: 0 }],
            settled: None,
            round: 0,
        });
    }

    pub fn decide(&mut self, id: &str, decision: Decision, now: Now) -> Result<(), Refused> {
        use TransactionStatus::{Cancelled, Disputed, Pending, Settled};
        let stored = self.transactions.iter_mut().find(|transaction| transaction.id == id);
        let stored = stored.ok_or(Refused::TransactionNotFound)?;
        let (from, at) = (stored.status, now.wall.max(stored.updated_at + 1));
        let event = |kind, round| Event { kind, at, round };
        let has_room = |more: &[String]| stored.evidence.len() + more.len() <= 256;
        match decision {
            Decision::Settle if from == Pending => {
                stored.status = Settled;
                stored.settled = Some((stored.round, at));
                stored.events.push(event("settled", stored.round));
            }
            Decision::Cancel { .. } if from == Pending => {
                stored.status = Cancelled;
                stored.events.push(event("cancelled", stored.round));
            }
            Decision::Dispute { evidence, .. } if from == Pending || from == Settled => {
                if !has_room(&evidence) {
                    return Err(Refused::TooMuchEvidence);
                }
                stored.status = Disputed;
                stored.evidence.extend(evidence);
                stored.events.push(event("disputed", stored.round));
            }
            Decision::AddEvidence { evidence } if from == Disputed => {
                if !has_room(&evidence) {
                    return Err(Refused::TooMuchEvidence);
                }
                stored.evidence.extend(evidence);
                stored.events.push(event("evidence_added", stored.round));
            }
            Decision::Resolve { outcome, .. } if from == Disputed => {
                stored.status = outcome.status();
                stored.settled = match (outcome, stored.settled) {
                    (ResolutionOutcome::Cancelled, _) => None,
                    (ResolutionOutcome::Settled, Some((round, at))) if round == stored.round => Some((round, at)),
                    (ResolutionOutcome::Settled, _) => Some((stored.round, at)),
                };
                stored.events.push(event("resolved", stored.round));
                stored.round += 1;
            }
            _ => return Err(Refused::InvalidTransition { from }),
        }
        stored.updated_at = at;
        Ok(())
    }
}

fn check(when: &Precondition, agent: Option<&Agent>) -> Result<(), Refused> {
    let actual = agent.map_or(0, |agent| agent.revision);
    let holds = match when {
        Precondition::None => true,
        Precondition::Exists => agent.is_some(),
        Precondition::RevisionIn(revisions) => agent.is_some() && revisions.contains(&actual),
    };
    if holds { Ok(()) } else { Err(Refused::RevisionMismatch { actual }) }
}

/// The sum of some amounts, in billionths.
pub fn sum<'a>(transactions: impl Iterator<Item = &'a Transaction>) -> i128 {
    transactions.map(|transaction| transaction.facts.amount.nanos()).sum()
}

/// Whether any of the names is among the capabilities.
pub fn has_any(capabilities: &Capabilities, names: &[&str]) -> bool {
    capabilities.iter().any(|capability| names.contains(&capability.as_str()))
}
