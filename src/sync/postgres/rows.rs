//! The statements on transactions and their events, each for many rows at once.
//!
//! Rows are inserted and locked in the order of their ids' bytes, by everybody: whoever takes locks in another order can
//! end in a deadlock. Amounts travel as text and become `numeric` there, so that no float is ever between them.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::adopt::CentralRow;
use super::errors::{Kind, Trouble};
use super::fence::as_bigint;
use super::payload::{self, CentralEvent, Unreadable, encode, from_system_time, to_system_time, uuid};
use super::session::{Parameter, Session, column};
use crate::domain::{AgentId, Capability, Currency, Facts, LedgerEntry, Timestamp, TransactionId};

/// A transaction that is to be made, and what its events amount to.
pub struct NewRow<'a> {
    /// Its id.
    pub transaction_id: &'a TransactionId,
    /// Its facts.
    pub facts: &'a Facts,
    /// See [`Shown`].
    pub shown: Shown,
}

/// What of a transaction may change.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// When it was recorded first.
    pub created_at: Timestamp,
    /// Where it stands.
    pub status: &'static str,
    /// Its evidence.
    pub evidence: Vec<String>,
}

/// A transaction that was made, and what its column made of its amount.
pub struct Inserted {
    /// Its id.
    pub transaction_id: String,
    /// The amount as it is there.
    pub amount: String,
    /// And the status.
    pub status: String,
}

fn evidence_json(evidence: &[String]) -> String {
    serde_json::to_string(evidence).expect("a list of strings is JSON")
}

/// The columns of new transactions, as parameters of a statement.
pub struct Rows<'a> {
    ids: Vec<&'a str>,
    created: Vec<SystemTime>,
    payers: Vec<&'a str>,
    providers: Vec<&'a str>,
    capabilities: Vec<&'a str>,
    amounts: Vec<String>,
    currencies: Vec<&'a str>,
    statuses: Vec<&'a str>,
    contexts: Vec<&'a str>,
    evidence: Vec<String>,
}

impl<'a> Rows<'a> {
    /// Selects them, from the first ten parameters of the statement that it is put into.
    pub const SQL: &'static str =
        "SELECT id AS transaction_id, created_at, payer AS payer_agent, provider AS provider_agent,
                    capability, amount::numeric AS amount, currency, status, context::jsonb AS context,
                    evidence::jsonb AS evidence
               FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                    AS n(id, created_at, payer, provider, capability, amount, currency, status, context, evidence)";

    /// Of these.
    pub fn new(rows: &[NewRow<'a>]) -> Self {
        let texts = |value: fn(&Facts) -> &str| rows.iter().map(|row| value(row.facts)).collect::<Vec<_>>();
        Self {
            ids: rows.iter().map(|row| row.transaction_id.as_str()).collect(),
            created: rows.iter().map(|row| to_system_time(row.shown.created_at)).collect(),
            payers: texts(|facts| facts.payer_agent.as_str()),
            providers: texts(|facts| facts.provider_agent.as_str()),
            capabilities: texts(|facts| facts.capability.as_str()),
            amounts: rows.iter().map(|row| row.facts.amount.to_string()).collect(),
            currencies: texts(|facts| facts.currency.as_str()),
            statuses: rows.iter().map(|row| row.shown.status).collect(),
            contexts: texts(|facts| facts.context.as_str()),
            evidence: rows.iter().map(|row| evidence_json(&row.shown.evidence)).collect(),
        }
    }

    /// In the order of [`SQL`](Self::SQL).
    pub fn parameters(&self) -> [Parameter<'_>; 10] {
        [
            (&self.ids, Type::TEXT_ARRAY),
            (&self.created, Type::TIMESTAMP_ARRAY),
            (&self.payers, Type::TEXT_ARRAY),
            (&self.providers, Type::TEXT_ARRAY),
            (&self.capabilities, Type::TEXT_ARRAY),
            (&self.amounts, Type::TEXT_ARRAY),
            (&self.currencies, Type::TEXT_ARRAY),
            (&self.statuses, Type::TEXT_ARRAY),
            (&self.contexts, Type::TEXT_ARRAY),
            (&self.evidence, Type::TEXT_ARRAY),
        ]
    }
}

/// Inserts the transactions that are not there. `rows` are sorted by id; those that were inserted are returned.
///
/// # Errors
///
/// See [`Trouble`]; so for every statement here.
pub async fn insert(session: &Session, rows: &[NewRow<'_>]) -> Result<Vec<Inserted>, Trouble> {
    debug_assert!(rows.is_sorted_by_key(|row| row.transaction_id.as_str().as_bytes()));
    let sql = format!(
        "INSERT INTO marketplace_transactions (transaction_id, created_at, payer_agent, provider_agent, capability,
                                               amount, currency, status, context, evidence)
         {}
          ORDER BY id COLLATE \"C\"
         ON CONFLICT (transaction_id) DO NOTHING
         RETURNING transaction_id, amount::text, status",
        Rows::SQL
    );
    let inserted = session.query(&sql, &Rows::new(rows).parameters()).await?;
    let read =
        |row: &Row| Ok(Inserted { transaction_id: column(row, 0)?, amount: column(row, 1)?, status: column(row, 2)? });
    inserted.iter().map(read).collect()
}

/// A row that cannot be read: a column holds nothing where there has to be something, or text that is none.
pub struct UnreadableRow {
    /// The id of its transaction.
    pub transaction_id: String,
    /// Why, in words.
    pub reason: String,
}

/// The longest context that is read of a row, in characters: JSONB writes a space behind each comma and colon, so none that
/// we could hold is longer. A number of a few characters may be as many thousand digits there.
const LONGEST_CONTEXT: i32 = 128 * 1024;

/// Locks the transactions that are there, in the order of their ids, and reads them. A context is read only where no event
/// tells it.
pub async fn lock(session: &Session, ids: &[&str]) -> Result<Vec<Result<CentralRow, UnreadableRow>>, Trouble> {
    let rows = session
        .query(
            "SELECT transaction_id, created_at, payer_agent, provider_agent, capability, amount::text, currency, status,
                    CASE WHEN NOT EXISTS (SELECT FROM marketplace_transaction_events e
                                           WHERE e.transaction_id = t.transaction_id AND e.kind = 'recorded')
                              AND length(context::text) <= $2 THEN context::text END, evidence::text
               FROM marketplace_transactions t WHERE transaction_id = ANY($1)
              ORDER BY transaction_id COLLATE \"C\" FOR UPDATE OF t",
            &[(&ids, Type::TEXT_ARRAY), (&LONGEST_CONTEXT, Type::INT4)],
        )
        .await?;
    let read = |row: &Row| {
        let transaction_id: String = column(row, 0)?;
        match read_row(row, &transaction_id) {
            Ok(row) => Ok(Ok(row)),
            Err(trouble) if trouble.kind == Kind::Entry => {
                Ok(Err(UnreadableRow { transaction_id, reason: trouble.words }))
            }
            Err(trouble) => Err(trouble),
        }
    };
    rows.iter().map(read).collect()
}

fn read_row(row: &Row, transaction_id: &str) -> Result<CentralRow, Trouble> {
    Ok(CentralRow {
        transaction_id: TransactionId::from_stored(transaction_id),
        created_at: from_system_time(column(row, 1)?),
        payer_agent: AgentId::from_stored(column(row, 2)?),
        provider_agent: AgentId::from_stored(column(row, 3)?),
        capability: Capability::from_stored(column(row, 4)?),
        amount: column(row, 5)?,
        currency: Currency::from_stored(column(row, 6)?),
        status: column(row, 7)?,
        context: column(row, 8)?,
        evidence: column(row, 9)?,
    })
}

/// Which of the transactions are there.
pub async fn present(session: &Session, ids: &[&str]) -> Result<Vec<String>, Trouble> {
    let sql = "SELECT transaction_id FROM marketplace_transactions WHERE transaction_id = ANY($1)";
    let rows = session.query(sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(|row| column(row, 0)).collect()
}

/// Which of the transactions somebody else keeps locked just now.
pub async fn locked_by_others(session: &Session, ids: &[&str]) -> Result<Vec<String>, Trouble> {
    let sql = "SELECT transaction_id FROM marketplace_transactions WHERE transaction_id = ANY($1)
                  FOR UPDATE SKIP LOCKED";
    let rows = session.query(sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
    let free: HashSet<&str> = rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
    let all = present(session, ids).await?;
    Ok(all.into_iter().filter(|id| !free.contains(id.as_str())).collect())
}

/// Searches some of the agents' transactions, in the order of their ids, for what somebody wrote last who wrote no event
/// with it: their ids, payers, providers, and whether that is so.
pub async fn marked_after(session: &Session, agents: &[AgentId], after: &str, limit: i64) -> Result<Vec<Row>, Trouble> {
    let agents: Vec<&str> = agents.iter().map(AgentId::as_str).collect();
    session
        .query(
            "SELECT t.transaction_id, t.payer_agent, t.provider_agent,
                    NOT EXISTS (SELECT FROM marketplace_transaction_events e
                                 WHERE e.transaction_id = t.transaction_id AND e.xid::xid = t.written_by) AS is_marked
               FROM (SELECT transaction_id, payer_agent, provider_agent, xmin AS written_by FROM marketplace_transactions
                      WHERE (payer_agent = ANY($1) OR provider_agent = ANY($1)) AND transaction_id COLLATE \"C\" > $2
                      ORDER BY transaction_id COLLATE \"C\" LIMIT $3) t
              ORDER BY t.transaction_id COLLATE \"C\"",
            &[(&agents, Type::TEXT_ARRAY), (&after, Type::TEXT), (&limit, Type::INT8)],
        )
        .await
}

/// Writes what may change of transactions that are locked; status and evidence that they have then, by id.
pub async fn update(
    session: &Session,
    rows: &[(&TransactionId, Shown)],
) -> Result<HashMap<String, (String, Option<String>)>, Trouble> {
    let ids: Vec<_> = rows.iter().map(|(id, _)| id.as_str()).collect();
    let created: Vec<SystemTime> = rows.iter().map(|(_, shown)| to_system_time(shown.created_at)).collect();
    let statuses: Vec<_> = rows.iter().map(|(_, shown)| shown.status).collect();
    let evidence: Vec<_> = rows.iter().map(|(_, shown)| evidence_json(&shown.evidence)).collect();
    let written = session
        .query(
            "UPDATE marketplace_transactions t
                SET created_at = n.created_at, status = n.status, evidence = n.evidence::jsonb
               FROM unnest($1, $2, $3, $4) AS n(id, created_at, status, evidence)
              WHERE t.transaction_id = n.id
             RETURNING t.transaction_id, t.status, t.evidence::text",
            &[
                (&ids, Type::TEXT_ARRAY),
                (&created, Type::TIMESTAMP_ARRAY),
                (&statuses, Type::TEXT_ARRAY),
                (&evidence, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    written.iter().map(|row| Ok((column(row, 0)?, (column(row, 1)?, column(row, 2)?)))).collect()
}

/// Reads all events of the transactions.
pub async fn events_of(session: &Session, ids: &[&str]) -> Result<Vec<Result<CentralEvent, Unreadable>>, Trouble> {
    let sql = format!(
        "SELECT {} FROM marketplace_transaction_events WHERE transaction_id = ANY($1) ORDER BY xid, id",
        payload::COLUMNS
    );
    let rows = session.query(&sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
    rows.iter().map(payload::read).collect()
}

/// Which of the events are not there.
pub async fn absent(session: &Session, event_ids: &[Uuid]) -> Result<HashSet<Uuid>, Trouble> {
    let sql = "SELECT wanted FROM unnest($1) AS wanted
                WHERE NOT EXISTS (SELECT FROM marketplace_transaction_events WHERE event_id = wanted)";
    let rows = session.query(sql, &[(&event_ids, Type::UUID_ARRAY)]).await?;
    rows.iter().map(|row| column(row, 0)).collect()
}

/// Inserts the events that are not there; how many were not.
pub async fn insert_events(session: &Session, entries: &[&LedgerEntry]) -> Result<u64, Trouble> {
    if entries.is_empty() {
        return Ok(0);
    }
    let uuids = |value: fn(&LedgerEntry) -> &[u8; 16]| entries.iter().map(|entry| uuid(value(entry))).collect();
    let texts = |value: fn(&LedgerEntry) -> &str| entries.iter().map(|entry| value(entry)).collect();
    let (ids, recorded_by): (Vec<Uuid>, Vec<Uuid>) =
        (uuids(|entry| entry.event.event_id.as_bytes()), uuids(|entry| entry.recorded_by.as_bytes()));
    let nodes: Vec<Uuid> = uuids(|entry| entry.event.node_id.as_bytes());
    let transactions: Vec<&str> = texts(|entry| entry.event.transaction_id.as_str());
    let (payers, providers): (Vec<&str>, Vec<&str>) =
        (texts(|entry| entry.payer_agent.as_str()), texts(|entry| entry.provider_agent.as_str()));
    let kinds: Vec<&str> = texts(|entry| entry.event.body.kind().as_str());
    let facts: Vec<&[u8]> = entries.iter().map(|entry| entry.event.facts.as_slice()).collect();
    let round = |entry: &&LedgerEntry| {
        let beyond = || Trouble::new(Kind::Entry, format!("the round {} does not fit its column", entry.event.round));
        i32::try_from(entry.event.round).map_err(|_| beyond())
    };
    let rounds: Vec<i32> = entries.iter().map(round).collect::<Result<_, _>>()?;
    let payloads: Vec<String> = entries.iter().map(|entry| encode(&entry.event.body)).collect();
    let times: Vec<SystemTime> = entries.iter().map(|entry| to_system_time(entry.event.at)).collect();
    let seqs: Vec<i64> = entries.iter().map(|entry| as_bigint(entry.node_seq)).collect();
    let hashes: Vec<&[u8]> =
        entries.iter().map(|entry| entry.hash.as_ref().map_or(&[][..], <[u8; 32]>::as_slice)).collect();
    session
        .execute(
            "INSERT INTO marketplace_transaction_events (event_id, transaction_id, payer_agent, provider_agent,
                    recorded_by, facts, kind, round, payload, occurred_at, node_id, node_seq, hash)
             SELECT event_id, transaction_id, payer, provider, recorded_by, facts, kind, round, payload::jsonb, at, node,
                    seq, hash
               FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                    AS n(event_id, transaction_id, payer, provider, recorded_by, facts, kind, round, payload, at, node,
                         seq, hash)
             ON CONFLICT (event_id) DO NOTHING",
            &[
                (&ids, Type::UUID_ARRAY),
                (&transactions, Type::TEXT_ARRAY),
                (&payers, Type::TEXT_ARRAY),
                (&providers, Type::TEXT_ARRAY),
                (&recorded_by, Type::UUID_ARRAY),
                (&facts, Type::BYTEA_ARRAY),
                (&kinds, Type::TEXT_ARRAY),
                (&rounds, Type::INT4_ARRAY),
                (&payloads, Type::TEXT_ARRAY),
                (&times, Type::TIMESTAMPTZ_ARRAY),
                (&nodes, Type::UUID_ARRAY),
                (&seqs, Type::INT8_ARRAY),
                (&hashes, Type::BYTEA_ARRAY),
            ],
        )
        .await
}
