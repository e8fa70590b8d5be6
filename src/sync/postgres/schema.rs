//! The tables in PostgreSQL: what they are, which of them a database lacks, and how those come about.
//!
//! The catalog is asked first, and only what is missing is created, under an advisory lock: a role that may not create
//! anything never tries to where nothing is missing, and many nodes that start at once do not get in each other's way.
//! `marketplace_transactions` may be older than we are; it is taken as it is found.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::errors::{Kind, Trouble};
use super::session::{Access, Limits, Session, column};

/// Building an index over an old table may take its time.
const CREATION: Limits = Limits { statement: Duration::from_secs(600), lock: Duration::from_secs(30) };
/// Widening rewrites the table.
const MIGRATION: Limits = Limits { statement: Duration::from_secs(6 * 3_600), lock: Duration::from_secs(30) };
/// Ours among advisory locks: the first bytes of "tradepost".
const ADVISORY_LOCK: i64 = i64::from_be_bytes(*b"tradepos");
/// What somebody lacks a right for.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// A table or an index, and the statement that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// The table, if it is an index, and its columns.
    index: Option<(&'static str, &'static [&'static str])>,
    /// The statement, without a semicolon.
    pub sql: &'static str,
}

const fn table(name: &'static str, sql: &'static str) -> Part {
    Part { name, index: None, sql }
}

const fn index(name: &'static str, on: &'static str, columns: &'static [&'static str], sql: &'static str) -> Part {
    Part { name, index: Some((on, columns)), sql }
}

const TRANSACTIONS: &str = "marketplace_transactions";
const EVENTS: &str = "marketplace_transaction_events";

/// Everything, in the order in which it can be made.
pub const PARTS: [Part; 12] = [
    table(
        TRANSACTIONS,
        "CREATE TABLE marketplace_transactions (
    transaction_id VARCHAR(32) PRIMARY KEY,
    created_at TIMESTAMP NOT NULL,
    payer_agent VARCHAR(255) NOT NULL,
    provider_agent VARCHAR(255) NOT NULL,
    capability VARCHAR(255) NOT NULL,
    amount NUMERIC(28,9) NOT NULL,
    currency VARCHAR(10) NOT NULL,
    status VARCHAR(20) NOT NULL,
    context JSONB,
    evidence JSONB
)",
    ),
    index(
        "idx_payer",
        TRANSACTIONS,
        &["payer_agent"],
        "CREATE INDEX idx_payer ON marketplace_transactions (payer_agent)",
    ),
    index(
        "idx_provider",
        TRANSACTIONS,
        &["provider_agent"],
        "CREATE INDEX idx_provider ON marketplace_transactions (provider_agent)",
    ),
    index("idx_status", TRANSACTIONS, &["status"], "CREATE INDEX idx_status ON marketplace_transactions (status)"),
    index(
        "idx_created_at",
        TRANSACTIONS,
        &["created_at"],
        "CREATE INDEX idx_created_at ON marketplace_transactions (created_at)",
    ),
    table(
        EVENTS,
        "CREATE TABLE marketplace_transaction_events (
    event_id UUID PRIMARY KEY,
    transaction_id VARCHAR(32) NOT NULL,
    payer_agent VARCHAR(255) NOT NULL,
    provider_agent VARCHAR(255) NOT NULL,
    recorded_by UUID NOT NULL,
    facts BYTEA,
    kind VARCHAR(20) NOT NULL,
    round INT NOT NULL,
    payload JSONB NOT NULL,
    occurred_at TIMESTAMPTZ NOT NULL,
    node_id UUID NOT NULL,
    node_seq BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    xid XID8 NOT NULL DEFAULT pg_current_xact_id(),
    id BIGINT GENERATED ALWAYS AS IDENTITY
)",
    ),
    index(
        "idx_event_payer",
        EVENTS,
        &["payer_agent", "xid", "id"],
        "CREATE INDEX idx_event_payer ON marketplace_transaction_events (payer_agent, xid, id)",
    ),
    index(
        "idx_event_provider",
        EVENTS,
        &["provider_agent", "xid", "id"],
        "CREATE INDEX idx_event_provider ON marketplace_transaction_events (provider_agent, xid, id)",
    ),
    index(
        "idx_event_recorded_by",
        EVENTS,
        &["recorded_by", "xid", "id"],
        "CREATE INDEX idx_event_recorded_by ON marketplace_transaction_events (recorded_by, xid, id)",
    ),
    index(
        "idx_event_transaction",
        EVENTS,
        &["transaction_id"],
        "CREATE INDEX idx_event_transaction ON marketplace_transaction_events (transaction_id)",
    ),
    index(
        "idx_event_node",
        EVENTS,
        &["node_id", "node_seq"],
        "CREATE INDEX idx_event_node ON marketplace_transaction_events (node_id, node_seq)",
    ),
    table(
        "marketplace_nodes",
        "CREATE TABLE marketplace_nodes (
    node_id UUID PRIMARY KEY,
    last_seq BIGINT NOT NULL,
    head_hash BYTEA NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
)",
    ),
];

/// Widens the older table's column, which holds two places only.
const WIDEN: &str = "ALTER TABLE marketplace_transactions ALTER COLUMN amount TYPE NUMERIC(28,9)";

/// What a migration did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// What was missing and is there now.
    pub created: Vec<&'static str>,
    /// Whether the column of amounts was too narrow and is not any more.
    pub widened: bool,
}

/// SQL that makes `parts`, to be read by people and run by `psql`.
pub fn script(parts: &[Part]) -> String {
    let mut text = String::new();
    for part in parts {
        writeln!(text, "{};", part.sql).expect("writing to a string");
    }
    text
}

/// What the database lacks. Changes nothing.
///
/// # Errors
///
/// See [`Trouble`].
pub async fn missing(session: &mut Session) -> Result<Vec<Part>, Trouble> {
    session.begin(Access::Snapshot, Limits::default()).await?;
    let missing = look_up(session).await?;
    session.commit().await?;
    Ok(missing)
}

/// Creates what the database lacks; the names of what was created. An index that we may not create is done without: it
/// only makes reading slow. With `replaces_lost` an empty table takes the place of one that somebody has removed from
/// beside its events.
///
/// # Errors
///
/// [`Kind::Misconfigured`] when a table is missing and this role may not create it, or it is not to be replaced.
pub async fn ensure(session: &mut Session, replaces_lost: bool) -> Result<Vec<&'static str>, Trouble> {
    if missing(session).await?.is_empty() {
        return Ok(Vec::new());
    }
    session.begin(Access::ReadWrite, CREATION).await?;
    let created = match create(session, replaces_lost).await {
        Ok(created) => session.commit().await.map(|()| created),
        Err(error) => {
            session.rollback().await?;
            Err(error)
        }
    }?;
    if !created.is_empty() {
        tracing::info!(created = created.join(", "), "created in PostgreSQL");
    }
    Ok(created)
}

/// Creates what the database lacks, and widens the column of amounts if it is narrower than ours.
///
/// # Errors
///
/// See [`Trouble`]; nothing is changed then.
pub async fn migrate(session: &mut Session) -> Result<Migration, Trouble> {
    let created = ensure(session, true).await?;
    session.begin(Access::ReadWrite, MIGRATION).await?;
    let result = widen(session).await;
    match result {
        Ok(widened) => session.commit().await.map(|()| Migration { created, widened }),
        Err(error) => {
            session.rollback().await?;
            Err(error)
        }
    }
}

/// Looks everything up in the schemas that statements without a schema mean. An index counts as there when any index
/// begins with its columns, whatever its name.
async fn look_up(session: &Session) -> Result<Vec<Part>, Trouble> {
    let rows = session
        .query(
            "SELECT t.name, NULL::text[] AS columns
               FROM unnest($1) AS t(name) WHERE to_regclass(t.name) IS NOT NULL
             UNION ALL
             SELECT t.name, ARRAY(
                        SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
                          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                         ORDER BY k.place)
               FROM unnest($1) AS t(name)
               JOIN pg_index i ON i.indrelid = to_regclass(t.name) AND i.indisvalid AND i.indpred IS NULL",
            &[(&tables(), Type::TEXT_ARRAY)],
        )
        .await?;
    let mut found_tables = Vec::new();
    let mut found_indexes: Vec<(String, Vec<String>)> = Vec::new();
    for row in rows {
        let name: String = column(&row, 0)?;
        match column::<Option<Vec<String>>>(&row, 1)? {
            None => found_tables.push(name),
            Some(columns) => found_indexes.push((name, columns)),
        }
    }
    let is_there = |part: &Part| match part.index {
        None => found_tables.iter().any(|found| found == part.name),
        Some((on, columns)) => {
            let begins =
                |found: &[String]| found.len() >= columns.len() && found.iter().zip(columns).all(|(a, b)| a == b);
            found_indexes.iter().any(|(table, found)| table == on && begins(found))
        }
    };
    Ok(PARTS.into_iter().filter(|part| !is_there(part)).collect())
}

fn tables() -> Vec<&'static str> {
    PARTS.iter().filter(|part| part.index.is_none()).map(|part| part.name).collect()
}

/// Whether the table of rows was there once.
async fn is_lost(session: &Session, missing: &[Part]) -> Result<bool, Trouble> {
    let is_missing = |name| missing.iter().any(|part| part.name == name);
    if !is_missing(TRANSACTIONS) || is_missing(EVENTS) {
        return Ok(false);
    }
    let row = session.query_one(&format!("SELECT EXISTS (SELECT FROM {EVENTS})"), &[]).await?;
    column(&row, 0)
}

async fn create(session: &Session, replaces_lost: bool) -> Result<Vec<&'static str>, Trouble> {
    session.query("SELECT pg_advisory_xact_lock($1)", &[(&ADVISORY_LOCK, Type::INT8)]).await?;
    let mut created = Vec::new();
    // Somebody may have been here first while we waited.
    let missing = look_up(session).await?;
    if !replaces_lost && is_lost(session, &missing).await? {
        return Err(Trouble::new(
            Kind::Misconfigured,
            format!(
                "the table {TRANSACTIONS} is gone, but {EVENTS} holds events of its rows: bring it back, or run \
                 `tradepost central migrate` for an empty one and `tradepost sync resync postgres` to fill it"
            ),
        ));
    }
    for part in missing {
        session.batch("SAVEPOINT part").await?;
        match session.batch(&statement(session, &part).await?).await {
            Ok(()) => created.push(part.name),
            Err(error) if error.code.as_deref() == Some(INSUFFICIENT_PRIVILEGE) && part.index.is_some() => {
                session.batch("ROLLBACK TO SAVEPOINT part").await?;
                tracing::warn!(index = part.name, "an index is missing in PostgreSQL, and this role may not create it");
            }
            Err(error) if error.kind == Kind::Misconfigured => {
                let words = format!(
                    "the table {} is missing and cannot be created: {}; `tradepost central schema` prints what its owner \
                     has to run",
                    part.name, error.words
                );
                return Err(Trouble { words, ..error });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(created)
}

/// How to make a part. The name of an index may be taken by one of another table; then PostgreSQL picks a name.
async fn statement(session: &Session, part: &Part) -> Result<String, Trouble> {
    if part.index.is_none() {
        return Ok(part.sql.to_owned());
    }
    let row = session
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_class c WHERE c.relname = $1 AND c.relnamespace = (
                 SELECT t.relnamespace FROM pg_class t WHERE t.oid = to_regclass($2)))",
            &[(&part.name, Type::TEXT), (&part.index.map(|(on, _)| on), Type::TEXT)],
        )
        .await?;
    let is_taken: bool = column(&row, 0)?;
    Ok(if is_taken {
        part.sql.replacen(&format!("INDEX {} ON", part.name), "INDEX ON", 1)
    } else {
        part.sql.to_owned()
    })
}

/// Widens the column of amounts unless it holds every amount already; whether it was necessary.
async fn widen(session: &Session) -> Result<bool, Trouble> {
    let row = session
        .query_one(
            "SELECT data_type, numeric_precision, numeric_scale FROM information_schema.columns c
              WHERE c.table_name = $1 AND c.column_name = 'amount' AND c.table_schema = (
                  SELECT n.nspname FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
                   WHERE t.oid = to_regclass($1))",
            &[(&TRANSACTIONS, Type::TEXT)],
        )
        .await?;
    let (kind, precision, scale): (String, Option<i32>, Option<i32>) =
        (column(&row, 0)?, column(&row, 1)?, column(&row, 2)?);
    let is_wide = kind == "numeric"
        && match (precision, scale) {
            (Some(precision), Some(scale)) => scale >= 9 && precision - scale >= 18,
            // Without a precision it holds anything.
            _ => true,
        };
    if is_wide {
        return Ok(false);
    }
    session.batch(WIDEN).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_named_by_its_own_statement() {
        for part in PARTS {
            let begins = match part.index {
                None => format!("CREATE TABLE {} (", part.name),
                Some((on, columns)) => format!("CREATE INDEX {} ON {on} ({})", part.name, columns.join(", ")),
            };
            assert!(part.sql.starts_with(&begins), "{begins}");
        }
        assert_eq!(script(&PARTS).matches(';').count(), PARTS.len());
    }
}
