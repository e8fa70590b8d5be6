//! The commands of the ledger.

use std::sync::Arc;

use super::command::{Command, Effect, Once, Receipt, Repeatable, Session, Stop};
use super::replica::merge;
use crate::domain::event::FactsHash;
use crate::domain::fold::Fold;
use crate::domain::ledger::Author;
use crate::domain::transaction::Finality;
use crate::domain::{
    Decision, Event, EventBody, EventId, Facts, NewTransaction, Refusal, Transaction, TransactionId, TransactionStatus,
    ledger,
};
use crate::store::StoredTransaction;

/// Records a transaction. The same id with the same facts gives the existing one.
pub struct Record {
    transaction_id: Option<TransactionId>,
    facts: Arc<Facts>,
    facts_hash: FactsHash,
}

impl Record {
    /// Prepares on the caller's thread what needs no look at the store.
    pub fn new(NewTransaction { transaction_id, facts }: NewTransaction) -> Self {
        let facts_hash = facts.hash();
        Self { transaction_id, facts: Arc::new(facts), facts_hash }
    }
}

impl Repeatable for Record {
    type Entity = Transaction;

    fn run_once(self, session: &mut Session<'_, '_>) -> Result<Once<Transaction>, Stop> {
        let receipt = record(self, session)?;
        let subject = receipt.value.transaction_id.to_string();
        Ok(Once { value: receipt.value, created: receipt.created, subject })
    }

    fn run_unkeyed(self, session: &mut Session<'_, '_>) -> Result<(Transaction, bool), Stop> {
        record(self, session).map(|receipt| (receipt.value, receipt.created))
    }

    fn reread(subject: &str, session: &Session<'_, '_>) -> Result<Transaction, Stop> {
        reread(subject, session)
    }
}

/// Records many transactions, each by itself, in one commit.
pub struct RecordBatch(Vec<Record>);

impl RecordBatch {
    /// As [`Record::new`].
    pub fn new(transactions: Vec<NewTransaction>) -> Self {
        Self(transactions.into_iter().map(Record::new).collect())
    }
}

impl Command for RecordBatch {
    type Output = Vec<Result<Receipt<Transaction>, Refusal>>;

    fn run(self, session: &mut Session<'_, '_>) -> Result<Self::Output, Stop> {
        self.0
            .into_iter()
            .map(|transaction| match record(transaction, session) {
                Ok(receipt) => Ok(Ok(receipt)),
                Err(Stop::Refused(refusal)) => Ok(Err(refusal)),
                Err(failed @ Stop::Failed(_)) => Err(failed),
            })
            .collect()
    }
}

/// Decides about a transaction.
pub struct Decide {
    pub transaction_id: TransactionId,
    pub decision: Decision,
}

impl Repeatable for Decide {
    type Entity = Transaction;

    fn run_once(self, session: &mut Session<'_, '_>) -> Result<Once<Transaction>, Stop> {
        let stored = require(&self.transaction_id, session)?;
        let event_id = EventId::mint(session.moment.now, session.random_bytes());
        let newest_own = stored.newest_of(session.batch.identity());
        let author = Author { node_id: session.batch.node_id(), event_id, now: session.moment.now, newest_own };
        let event = ledger::decide(&self.transaction_id, &stored.fold, self.decision, author)?;
        let before = stored.fold.clone();
        let after = session.batch.decide(stored, event)?;
        if before.status != after.status {
            let first_settlement = before.settled_at.is_none().then_some(after.settled_at).flatten();
            session.after_commit(Effect::Transitioned {
                from: before.status,
                to: after.status,
                capability: after.facts.capability.clone(),
                settled_after: first_settlement.map(|at| at.since(after.created_at)),
            });
        }
        let subject = self.transaction_id.to_string();
        Ok(Once { value: transaction(self.transaction_id, after, Finality::Local), created: false, subject })
    }

    fn reread(subject: &str, session: &Session<'_, '_>) -> Result<Transaction, Stop> {
        reread(subject, session)
    }
}

fn record(new: Record, session: &mut Session<'_, '_>) -> Result<Receipt<Transaction>, Stop> {
    let Record { transaction_id, facts, facts_hash } = new;
    if let Some(id) = &transaction_id
        && let Some(stored) = session.batch.transaction(id)?
    {
        return if stored.facts().hash() == facts_hash {
            let finality = session.batch.finality(&stored)?;
            let value = transaction(id.clone(), stored.fold, finality);
            Ok(Receipt { value, created: false, replayed: false })
        } else {
            Err(Refusal::TransactionIdConflict(id.clone()).into())
        };
    }
    let at = session.batch.recording_time(session.moment.now);
    let key = session.batch.free_key(at)?;
    let (transaction_id, is_minted) = match transaction_id {
        Some(id) => (id, false),
        None => (key.mint_id(session.random_bytes()), true),
    };
    let event = Event {
        event_id: EventId::mint(at, session.random_bytes()),
        transaction_id: transaction_id.clone(),
        facts: facts_hash,
        round: 0,
        node_id: session.batch.node_id(),
        at,
        body: EventBody::Recorded(Arc::clone(&facts)),
    };
    session.batch.record(key, &event)?;
    session.recorded.add(&facts, at);
    if !is_minted && session.batch.holds_events_for(&transaction_id)? {
        // Others decided about it before it was recorded here: they were waiting for this.
        merge(&transaction_id, Vec::new(), session)?;
        let stored = require(&transaction_id, session)?;
        let value = transaction(transaction_id, stored.fold, Finality::Local);
        return Ok(Receipt { value, created: true, replayed: false });
    }
    let value = Transaction {
        transaction_id,
        created_at: at,
        facts,
        status: TransactionStatus::Pending,
        evidence: Vec::new(),
        updated_at: at,
        settled_at: None,
        finality: Finality::Local,
    };
    Ok(Receipt { value, created: true, replayed: false })
}

fn require(id: &TransactionId, session: &Session<'_, '_>) -> Result<StoredTransaction, Stop> {
    session.batch.transaction(id)?.ok_or_else(|| Refusal::TransactionNotFound(id.clone()).into())
}

fn reread(subject: &str, session: &Session<'_, '_>) -> Result<Transaction, Stop> {
    let id = TransactionId::from_stored(subject);
    let stored = require(&id, session)?;
    let finality = session.batch.finality(&stored)?;
    Ok(transaction(id, stored.fold, finality))
}

fn transaction(transaction_id: TransactionId, fold: Fold, finality: Finality) -> Transaction {
    Transaction {
        transaction_id,
        created_at: fold.created_at,
        facts: fold.facts,
        status: fold.status,
        evidence: fold.evidence,
        updated_at: fold.updated_at,
        settled_at: fold.settled_at,
        finality,
    }
}
