//! Ledger entries by hand: nodes that write logs, without any engine.

use std::sync::Arc;

use tradepost::domain::{
    AgentId, Event, EventBody, EventId, Facts, LedgerEntry, LogPosition, NodeId, ParkedKey, Timestamp, TransactionId,
};
use tradepost::sync::postgres::checks::Checks;
use tradepost::sync::postgres::config::Target;
use tradepost::sync::postgres::errors::Trouble;
use tradepost::sync::postgres::merge::{Offer, Recall};
use tradepost::sync::postgres::push::{Push, Pushed, Window};
use tradepost::sync::postgres::session::Session;

use super::common::{agent_id, facts};

/// A node that writes a log.
pub struct Author {
    pub node_id: NodeId,
    pub head: LogPosition,
    clock: i64,
}

/// The facts of most transactions here.
pub fn some_facts(amount: &str) -> Arc<Facts> {
    Arc::new(facts("genesis", "thon", "python", amount))
}

impl Author {
    pub fn new(number: u8) -> Self {
        Self { node_id: NodeId::from_bytes([number; 16]), head: LogPosition::default(), clock: 1_700_000_000_000_000 }
    }

    /// Writes one event about a transaction.
    pub fn write(&mut self, id: &str, facts: &Facts, recorded_by: NodeId, body: EventBody) -> Offer {
        self.clock += 1_000;
        let seq = self.head.seq + 1;
        let hash = *blake3_of(&self.head.hash, &self.node_id, seq).as_bytes();
        self.head = LogPosition { seq, hash };
        let mut event_id = *self.node_id.as_bytes();
        event_id[8..].copy_from_slice(&seq.to_be_bytes());
        let event = Event {
            event_id: EventId::from_bytes(event_id),
            transaction_id: TransactionId::from_stored(id),
            facts: facts.hash(),
            round: 0,
            node_id: self.node_id,
            at: Timestamp::from_micros(self.clock),
            body,
        };
        let entry = LedgerEntry {
            event,
            payer_agent: facts.payer_agent.clone(),
            provider_agent: facts.provider_agent.clone(),
            recorded_by,
            node_seq: seq,
            hash: Some(hash),
        };
        Offer { key: ParkedKey::Seq(seq), entry }
    }

    /// Records a transaction.
    pub fn record(&mut self, id: &str, facts: &Arc<Facts>) -> Offer {
        let node_id = self.node_id;
        self.write(id, facts, node_id, EventBody::Recorded(Arc::clone(facts)))
    }

    /// Pushes a batch that begins at `from` and ends at the head, and commits it.
    pub async fn push(&self, session: &mut Session, from: LogPosition, offers: &[Offer]) -> Result<Pushed, Trouble> {
        self.push_recalling(session, from, offers, &|_| Ok(None)).await
    }

    /// The same with what the node holds of others.
    pub async fn push_recalling(
        &self,
        session: &mut Session,
        from: LogPosition,
        offers: &[Offer],
        recall: &Recall<'_>,
    ) -> Result<Pushed, Trouble> {
        self.run(session, from, offers, recall, &mut Window::default(), &mut Checks::default()).await
    }

    /// The same with what was learned of earlier batches.
    pub async fn push_having(
        &self,
        session: &mut Session,
        from: LogPosition,
        offers: &[Offer],
        window: &mut Window,
        checks: &mut Checks,
    ) -> Result<Pushed, Trouble> {
        self.run(session, from, offers, &|_| Ok(None), window, checks).await
    }

    async fn run(
        &self,
        session: &mut Session,
        from: LogPosition,
        offers: &[Offer],
        recall: &Recall<'_>,
        window: &mut Window,
        checks: &mut Checks,
    ) -> Result<Pushed, Trouble> {
        let (node_id, to, now) = (self.node_id, self.head, Timestamp::from_micros(self.clock));
        let push = Push { node_id, from, to, offers, recall, now, in_pieces: false };
        let pushed = push.run(session, window, checks).await?;
        session.commit().await?;
        Ok(pushed)
    }
}

fn blake3_of(previous: &[u8; 32], node: &NodeId, seq: u64) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous).update(node.as_bytes()).update(&seq.to_le_bytes());
    hasher.finalize()
}

/// A connection.
pub async fn session(url: &str) -> Session {
    Target::parse(url).expect("the URL is sound").connect().await.expect("the server answers")
}

/// A connection to a database with our tables.
pub async fn prepared(url: &str) -> Session {
    let mut session = session(url).await;
    tradepost::sync::postgres::schema::ensure(&mut session, false).await.expect("the tables can be made");
    session
}

pub fn agents(names: &[&str]) -> Vec<AgentId> {
    names.iter().map(|name| agent_id(name)).collect()
}
