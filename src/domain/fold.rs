//! The fold: a transaction's status as a pure function of the set of its events.
//!
//! Two parties may decide differently while apart. Nothing that was acknowledged is taken back: both decisions stay in
//! the set, and the fold says what they mean together. It depends on the set alone, not on order or repetition, so
//! every node that holds the same events shows the same status.
//!
//! Decisions (settled, cancelled, disputed) belong to *rounds*. A resolution closes the round it is written into and
//! names the decisions its author had seen:
//!
//! - `closed` is the newest round that holds a resolution, `current` the one after it (0 if there is none).
//! - `current` starts `pending`, or with the outcome of the closed round. Two outcomes there, or a decision of a closed
//!   round that no resolution names and that disagrees with the outcome: it starts `disputed`.
//! - Over that start, the decisions of rounds ≥ `current`: any dispute, or both settled and cancelled: `disputed`;
//!   else the one there is, but a start of `disputed` stays until a resolution.

use std::collections::HashSet;
use std::sync::Arc;

use super::event::{Event, EventBody, EventKind, FactsHash, ResolutionOutcome};
use super::ids::EventId;
use super::time::Timestamp;
use super::transaction::{Facts, TransactionStatus};

/// What a transaction's events amount to.
#[derive(Debug, Clone, PartialEq)]
pub struct Fold {
    /// The facts.
    pub facts: Arc<Facts>,
    /// Where the transaction stands.
    pub status: TransactionStatus,
    /// Why it is disputed though nobody's dispute made it so.
    pub conflict: Option<Conflict>,
    /// The earliest time at which it was recorded.
    pub created_at: Timestamp,
    /// When the newest event happened.
    pub updated_at: Timestamp,
    /// When the newest settlement took place: kept while a dispute contests it, absent once cancelled.
    pub settled_at: Option<Timestamp>,
    /// All evidence, ordered by (`at`, `event_id`) of the events that brought it.
    pub evidence: Vec<String>,
    /// The round into which a decision made now belongs.
    pub current_round: u32,
    /// The round into which a resolution made now belongs: the highest one held, at least the current one.
    pub resolution_round: u32,
    /// Every decision held.
    pub decisions: Vec<EventId>,
}

/// A disagreement that only the meeting of two parties' events brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Conflict {
    /// Settled by one, cancelled by another.
    ConcurrentDecision,
    /// Resolved one way by one, the other way by another.
    ConcurrentResolution,
    /// A decision that nobody had seen when the round was closed, against its outcome.
    UnseenDecision,
}

impl Conflict {
    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConcurrentDecision => "concurrent_decision",
            Self::ConcurrentResolution => "concurrent_resolution",
            Self::UnseenDecision => "unseen_decision",
        }
    }
}

/// Folds the events whose facts hash to `facts`; others are ignored, as are repetitions. `None` without a `recorded`.
///
/// Commutative, associative and idempotent in `events`, and defined for every subset.
pub fn fold<'a>(facts: &FactsHash, events: impl IntoIterator<Item = &'a Event>) -> Option<Fold> {
    let mut seen = HashSet::new();
    let mut events: Vec<&Event> =
        events.into_iter().filter(|event| event.facts == *facts && seen.insert(event.event_id)).collect();
    events.sort_by_key(|event| (event.at, event.event_id));

    let recorded = events.iter().find_map(|event| match &event.body {
        EventBody::Recorded(facts) => Some((Arc::clone(facts), event.at)),
        _ => None,
    })?;
    let closed = resolutions(&events).map(|(event, _)| event.round).max();
    let current = closed.map_or(0, |round| round.saturating_add(1));
    let (start, start_conflict) = match closed {
        None => (TransactionStatus::Pending, None),
        Some(round) => start_after(round, &events),
    };
    let (status, conflict) = decide(start, start_conflict, current, &events);

    let highest = events.iter().map(|event| event.round).max().unwrap_or(0);
    Some(Fold {
        facts: recorded.0,
        status,
        conflict,
        created_at: recorded.1,
        updated_at: events.last().map_or(recorded.1, |event| event.at),
        settled_at: settled_at(status, &events),
        evidence: events.iter().flat_map(|event| event.body.evidence().iter().cloned()).collect(),
        current_round: current,
        resolution_round: highest.max(current),
        decisions: events.iter().filter(|event| event.body.kind().is_decision()).map(|event| event.event_id).collect(),
    })
}

fn resolutions<'a>(events: &'a [&'a Event]) -> impl Iterator<Item = (&'a Event, ResolutionOutcome)> {
    events.iter().filter_map(|event| match &event.body {
        EventBody::Resolved { outcome, .. } => Some((*event, *outcome)),
        _ => None,
    })
}

/// The status with which the round after `closed` starts.
fn start_after(closed: u32, events: &[&Event]) -> (TransactionStatus, Option<Conflict>) {
    let mut outcomes = resolutions(events).filter(|(event, _)| event.round == closed).map(|(_, outcome)| outcome);
    let outcome = outcomes.next().expect("a closed round holds the resolution that closed it");
    if outcomes.any(|other| other != outcome) {
        return (TransactionStatus::Disputed, Some(Conflict::ConcurrentResolution));
    }
    let listed: HashSet<EventId> = events
        .iter()
        .filter_map(|event| match &event.body {
            EventBody::Resolved { decisions, .. } => Some(decisions),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    let disagrees = |kind: EventKind| match kind {
        EventKind::Settled => outcome != ResolutionOutcome::Settled,
        EventKind::Cancelled => outcome != ResolutionOutcome::Cancelled,
        EventKind::Disputed => true,
        EventKind::Recorded | EventKind::EvidenceAdded | EventKind::Resolved => false,
    };
    let unseen = events
        .iter()
        .any(|event| event.round <= closed && disagrees(event.body.kind()) && !listed.contains(&event.event_id));
    if unseen { (TransactionStatus::Disputed, Some(Conflict::UnseenDecision)) } else { (outcome.status(), None) }
}

/// The status that the decisions of the open rounds make of the start.
fn decide(
    start: TransactionStatus,
    start_conflict: Option<Conflict>,
    current: u32,
    events: &[&Event],
) -> (TransactionStatus, Option<Conflict>) {
    let held = |kind: EventKind| events.iter().any(|event| event.round >= current && event.body.kind() == kind);
    let (settled, cancelled) = (held(EventKind::Settled), held(EventKind::Cancelled));
    if held(EventKind::Disputed) {
        (TransactionStatus::Disputed, start_conflict)
    } else if settled && cancelled {
        (TransactionStatus::Disputed, start_conflict.or(Some(Conflict::ConcurrentDecision)))
    } else if start == TransactionStatus::Disputed {
        (start, start_conflict)
    } else if settled {
        (TransactionStatus::Settled, None)
    } else if cancelled {
        (TransactionStatus::Cancelled, None)
    } else {
        (start, None)
    }
}

/// The earliest settlement of the newest round that holds one, unless it fell.
fn settled_at(status: TransactionStatus, events: &[&Event]) -> Option<Timestamp> {
    if !matches!(status, TransactionStatus::Settled | TransactionStatus::Disputed) {
        return None;
    }
    let settlements = || {
        events.iter().filter(|event| {
            matches!(event.body, EventBody::Settled | EventBody::Resolved { outcome: ResolutionOutcome::Settled, .. })
        })
    };
    let newest_round = settlements().map(|event| event.round).max()?;
    let last_fall = events
        .iter()
        .filter(|event| matches!(event.body, EventBody::Resolved { outcome: ResolutionOutcome::Cancelled, .. }))
        .map(|event| event.round)
        .max();
    if last_fall.is_some_and(|round| round > newest_round) {
        return None;
    }
    settlements().filter(|event| event.round == newest_round).map(|event| event.at).min()
}
