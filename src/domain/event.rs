//! Ledger events: immutable entries, from which every transaction's status follows (see [`fold`](super::fold)).

use std::fmt;
use std::sync::Arc;

use super::ids::{EventId, NodeId, TransactionId};
use super::refusal::Invalid;
use super::time::Timestamp;
use super::transaction::{Facts, TransactionStatus};

/// The most evidence one transaction may hold, in strings.
pub const MAX_EVIDENCE: usize = 256;
/// The longest piece of evidence, reason or note, in bytes.
pub const MAX_TEXT_BYTES: usize = 4 * 1024;

/// The hash of a transaction's facts, which every event of it carries.
pub type FactsHash = [u8; 32];

/// One immutable ledger entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Unique everywhere.
    pub event_id: EventId,
    /// The transaction it belongs to.
    pub transaction_id: TransactionId,
    /// Which facts its author held for that transaction.
    pub facts: FactsHash,
    /// How many resolutions its author had seen pass: see [`fold`](super::fold).
    pub round: u32,
    /// The node that wrote it.
    pub node_id: NodeId,
    /// When, by its author's clock, and after every event of the transaction that its author held.
    pub at: Timestamp,
    /// What happened.
    pub body: EventBody,
}

/// What an event says happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventBody {
    /// The transaction was recorded.
    Recorded(Arc<Facts>),
    /// It was settled.
    Settled,
    /// It was cancelled.
    Cancelled {
        /// Why.
        reason: Option<String>,
    },
    /// It was disputed.
    Disputed {
        /// Why.
        reason: Option<String>,
        /// With what evidence.
        evidence: Vec<String>,
    },
    /// Evidence was added to a dispute.
    EvidenceAdded {
        /// The evidence.
        evidence: Vec<String>,
    },
    /// A dispute was resolved.
    Resolved {
        /// How.
        outcome: ResolutionOutcome,
        /// In what words.
        note: Option<String>,
        /// The decisions that its author held, so that one it had not seen is found out.
        decisions: Vec<EventId>,
    },
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// See [`EventBody::Recorded`].
    Recorded,
    /// See [`EventBody::Settled`].
    Settled,
    /// See [`EventBody::Cancelled`].
    Cancelled,
    /// See [`EventBody::Disputed`].
    Disputed,
    /// See [`EventBody::EvidenceAdded`].
    EvidenceAdded,
    /// See [`EventBody::Resolved`].
    Resolved,
}

/// What a resolution makes of a dispute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResolutionOutcome {
    /// The transaction stands.
    Settled,
    /// The transaction falls.
    Cancelled,
}

impl EventBody {
    /// Its kind.
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Recorded(_) => EventKind::Recorded,
            Self::Settled => EventKind::Settled,
            Self::Cancelled { .. } => EventKind::Cancelled,
            Self::Disputed { .. } => EventKind::Disputed,
            Self::EvidenceAdded { .. } => EventKind::EvidenceAdded,
            Self::Resolved { .. } => EventKind::Resolved,
        }
    }

    /// The evidence it brings.
    pub fn evidence(&self) -> &[String] {
        match self {
            Self::Disputed { evidence, .. } | Self::EvidenceAdded { evidence } => evidence,
            _ => &[],
        }
    }
}

impl EventKind {
    /// Whether events of this kind decide a status by themselves, outside a resolution.
    pub fn is_decision(self) -> bool {
        matches!(self, Self::Settled | Self::Cancelled | Self::Disputed)
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Settled => "settled",
            Self::Cancelled => "cancelled",
            Self::Disputed => "disputed",
            Self::EvidenceAdded => "evidence_added",
            Self::Resolved => "resolved",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ResolutionOutcome {
    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        match text {
            "settled" => Ok(Self::Settled),
            "cancelled" => Ok(Self::Cancelled),
            _ => Err(Invalid::new("outcome", "must be settled or cancelled")),
        }
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        self.status().as_str()
    }

    /// The status that it leads to.
    pub fn status(self) -> TransactionStatus {
        match self {
            Self::Settled => TransactionStatus::Settled,
            Self::Cancelled => TransactionStatus::Cancelled,
        }
    }
}

/// Checks pieces of evidence: each at most 4 KiB, at most 256.
pub fn parse_evidence(evidence: Vec<String>) -> Result<Vec<String>, Invalid> {
    if evidence.len() > MAX_EVIDENCE {
        return Err(too_much_evidence());
    }
    evidence.into_iter().map(|text| parse_text("evidence", text)).collect()
}

/// Checks a reason or a note: at most 4 KiB.
pub fn parse_text(field: &'static str, text: String) -> Result<String, Invalid> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Invalid::new(field, "a text must be at most 4096 bytes"));
    }
    if text.contains('\0') {
        return Err(Invalid::new(field, "must not hold the character U+0000, which PostgreSQL cannot store"));
    }
    Ok(text)
}

/// The refusal of evidence beyond the limit of one transaction.
pub fn too_much_evidence() -> Invalid {
    Invalid::new("evidence", format!("a transaction holds at most {MAX_EVIDENCE} pieces of evidence in all"))
}
