//! Why a well-formed request is refused: one variant for each answer that a caller may want to tell apart.

use thiserror::Error;

use super::ids::{AgentId, TransactionId};
use super::transaction::TransactionStatus;

/// A value that breaks a rule of its own, whatever the state of the store.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// The field or parameter at fault, as the API spells it.
    pub field: &'static str,
    /// What the rule is and how the value breaks it, in words for people.
    pub reason: String,
}

impl Invalid {
    /// An [`Invalid`] for `field`.
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// Why a command was not carried out. A refusal leaves nothing behind in the store.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A value breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No agent has this id.
    #[error("no agent `{0}` is registered")]
    AgentNotFound(AgentId),
    /// No transaction has this id.
    #[error("no transaction `{0}` is known here")]
    TransactionNotFound(TransactionId),
    /// The caller's `If-Match` names another revision than the one that is stored.
    #[error("agent `{agent_id}` is at revision {actual}, not at one that the request named")]
    RevisionMismatch {
        /// The agent that was to be changed.
        agent_id: AgentId,
        /// The revision it has.
        actual: u64,
    },
    /// A live agent holds this id already.
    #[error("agent `{0}` is registered and live; PUT replaces it, or wait until its lease has expired")]
    AgentAlreadyRegistered(AgentId),
    /// The agent belongs to another node, which alone may change it.
    #[error("agent `{0}` belongs to another node; PUT takes it over")]
    AgentNotLocal(AgentId),
    /// The transaction's status does not allow the transition.
    #[error("transaction `{transaction_id}` is {from} and cannot become {to}{}", hint(.reason))]
    InvalidTransition {
        /// The transaction.
        transaction_id: TransactionId,
        /// The status it has.
        from: TransactionStatus,
        /// What was asked for, as a status or an act ("disputed", "more evidence").
        to: &'static str,
        /// A further reason, when the status alone does not explain it.
        reason: Option<&'static str>,
    },
    /// The id is taken by a transaction with other facts.
    #[error("transaction `{0}` exists with other facts")]
    TransactionIdConflict(TransactionId),
    /// The idempotency key was used before, with another request.
    #[error("the idempotency key was used with another request")]
    IdempotencyKeyReused,
}

fn hint(reason: &Option<&'static str>) -> String {
    reason.map(|text| format!(": {text}")).unwrap_or_default()
}
