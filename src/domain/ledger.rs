//! The transition rules: which decision a transaction's status allows, and the event that records it.

use std::time::Duration;

use super::event::{Event, EventBody, MAX_EVIDENCE, ResolutionOutcome, too_much_evidence};
use super::fold::Fold;
use super::ids::{EventId, NodeId, TransactionId};
use super::refusal::Refusal;
use super::time::Timestamp;
use super::transaction::TransactionStatus;

/// How often one transaction may be resolved, so that what it holds stays bounded.
pub const MAX_ROUNDS: u32 = 256;

/// What a party does to a transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Settle it; only from pending.
    Settle,
    /// Cancel it; only from pending.
    Cancel {
        /// Why.
        reason: Option<String>,
    },
    /// Dispute it; from pending or settled.
    Dispute {
        /// Why.
        reason: Option<String>,
        /// With what evidence.
        evidence: Vec<String>,
    },
    /// Add evidence; only while disputed.
    AddEvidence {
        /// The evidence.
        evidence: Vec<String>,
    },
    /// Resolve a dispute.
    Resolve {
        /// How.
        outcome: ResolutionOutcome,
        /// In what words.
        note: Option<String>,
    },
}

/// Who decides, when, and under which event id.
#[derive(Debug, Clone, Copy)]
pub struct Author {
    /// The deciding node.
    pub node_id: NodeId,
    /// A fresh id.
    pub event_id: EventId,
    /// The wall clock.
    pub now: Timestamp,
    /// When the author's own newest event of this transaction happened, if it has any.
    pub newest_own: Option<Timestamp>,
}

/// How far another author's clock may pull this one's events ahead.
pub const MAX_PULL: Duration = Duration::from_secs(5 * 60);

impl Author {
    /// The time of an event after one of `newest`: as near to now as the order of display allows, and not far ahead only
    /// because somebody's clock is.
    fn time_after(&self, newest: Timestamp) -> Timestamp {
        let next = |time: Timestamp| Timestamp::from_micros(time.as_micros().saturating_add(1));
        let pulled = next(newest).min(self.now.after(MAX_PULL));
        self.now.max(pulled).max(self.newest_own.map_or(self.now, next))
    }
}

/// Applies the transition rules of API and fold alike: the event that records the decision, or the refusal.
///
/// The event's time is after every event that is held, so that display order is the order of cause and effect, unless
/// one of them lies more than [`MAX_PULL`] ahead of the author's clock.
pub fn decide(
    transaction_id: &TransactionId,
    fold: &Fold,
    decision: Decision,
    author: Author,
) -> Result<Event, Refusal> {
    use TransactionStatus::{Disputed, Pending, Settled};
    let refuse = |to: &'static str, reason: Option<&'static str>| {
        Err(Refusal::InvalidTransition { transaction_id: transaction_id.clone(), from: fold.status, to, reason })
    };
    let mut round = fold.current_round;
    let body = match decision {
        Decision::Settle if fold.status == Pending => EventBody::Settled,
        Decision::Settle => return refuse("settled", None),
        Decision::Cancel { reason } if fold.status == Pending => EventBody::Cancelled { reason },
        Decision::Cancel { .. } => return refuse("cancelled", None),
        Decision::Dispute { reason, evidence } if matches!(fold.status, Pending | Settled) => {
            require_room(fold, &evidence)?;
            EventBody::Disputed { reason, evidence }
        }
        Decision::Dispute { .. } => return refuse("disputed", None),
        Decision::AddEvidence { evidence } if fold.status == Disputed => {
            require_room(fold, &evidence)?;
            EventBody::EvidenceAdded { evidence }
        }
        Decision::AddEvidence { .. } => {
            return refuse("given more evidence", Some("evidence is added only while disputed"));
        }
        Decision::Resolve { outcome, .. } if fold.status != Disputed => {
            return refuse(outcome.as_str(), Some("only a disputed transaction is resolved"));
        }
        Decision::Resolve { outcome, .. } if fold.resolution_round >= MAX_ROUNDS => {
            return refuse(outcome.as_str(), Some("it has been resolved 256 times, which is the limit"));
        }
        Decision::Resolve { outcome, note } => {
            round = fold.resolution_round;
            EventBody::Resolved { outcome, note, decisions: fold.decisions.clone() }
        }
    };
    Ok(Event {
        event_id: author.event_id,
        transaction_id: transaction_id.clone(),
        facts: fold.facts.hash(),
        round,
        node_id: author.node_id,
        at: author.time_after(fold.updated_at),
        body,
    })
}

fn require_room(fold: &Fold, evidence: &[String]) -> Result<(), Refusal> {
    if fold.evidence.len() + evidence.len() > MAX_EVIDENCE { Err(too_much_evidence().into()) } else { Ok(()) }
}
