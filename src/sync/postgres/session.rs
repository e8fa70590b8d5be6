//! One connection: statements that any pooler can carry, each with a deadline on our side.
//!
//! Statements are unnamed and typed, so that nothing is prepared, and no session state is set: behind a pooler every
//! transaction may run on another connection. Time-outs are set inside each transaction. A call that misses its deadline
//! leaves the connection in an unknown state, so the session is of no use from then on.

use std::error::Error as _;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Connection, Row, RowStream, Socket};

use super::errors::{Kind, Trouble};

/// How long the server may work on one statement.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may wait for one lock. Short: whoever keeps a row longer is gone around.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the server keeps a transaction that we forgot, so that a sidecar that hangs holds no locks.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// What a call may take beyond the server's own time-out before the connection counts as lost.
const GRACE: Duration = Duration::from_secs(5);
/// How long a connection has to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// A parameter of a statement, with its type.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// How a transaction sees what others do meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every statement sees what was committed before it.
    ReadWrite,
    /// All statements see the same, and none writes.
    Snapshot,
}

/// How long the server may work and wait in one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For one statement.
    pub statement: Duration,
    /// For one lock.
    pub lock: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { statement: STATEMENT_TIMEOUT, lock: LOCK_TIMEOUT }
    }
}

/// A connection to PostgreSQL. Dropped, it says goodbye in the background.
pub struct Session {
    client: Client,
    deadline: Duration,
    /// Said at the beginning of each transaction: how text is to come.
    encoding: &'static str,
    /// Gone with the session, which lets the task of the connection end.
    _alive: oneshot::Sender<()>,
}

impl Session {
    /// Takes a connection that was just made. Within a tokio runtime.
    pub fn new<T>(client: Client, connection: Connection<Socket, T>) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // A database that knows no encoding may hold text that is no UTF-8. Asked for UTF-8, it would refuse the whole
        // answer for it; so it is asked for the bytes as they are.
        let is_any = connection.parameter("server_encoding") == Some("SQL_ASCII");
        let encoding = if is_any { "SET LOCAL client_encoding = SQL_ASCII; " } else { "" };
        let (alive, gone) = oneshot::channel();
        tokio::spawn(async move {
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => Some(ended),
                _ = gone => timeout(GOODBYE, connection).await.ok(),
            };
            if let Some(Err(error)) = ended {
                // Whoever waits for an answer hears of it too, and decides what it means.
                tracing::debug!(%error, "a connection to PostgreSQL broke off");
            }
        });
        Self { client, deadline: STATEMENT_TIMEOUT + GRACE, encoding, _alive: alive }
    }

    /// Whether the connection is known to be gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Begins a transaction with its time-outs. Compiling a statement takes longer than any of ours, so none is.
    ///
    /// # Errors
    ///
    /// See [`Trouble`]; so for every call here.
    pub async fn begin(&mut self, access: Access, limits: Limits) -> Result<(), Trouble> {
        self.deadline = limits.statement + GRACE;
        let mode = match access {
            // Not READ WRITE: a server that takes no writes by default, for its disk is full, means us too. What writes
            // looks its rows up by their ids; a server without statistics of a new table takes some hundred of them for
            // most of what there is, and reads the whole table instead.
            Access::ReadWrite => "ISOLATION LEVEL READ COMMITTED; SET LOCAL enable_seqscan = off",
            Access::Snapshot => "ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        self.batch(&format!(
            "BEGIN {mode}; {}SET LOCAL jit = off; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}",
            self.encoding,
            limits.statement.as_millis(),
            limits.lock.as_millis(),
            IDLE_TIMEOUT.as_millis(),
        ))
        .await
    }

    /// Commits the transaction. After an error nobody knows whether it was committed.
    pub async fn commit(&self) -> Result<(), Trouble> {
        self.batch("COMMIT").await
    }

    /// Undoes the transaction.
    pub async fn rollback(&self) -> Result<(), Trouble> {
        self.batch("ROLLBACK").await
    }

    /// Runs one statement, and reads its rows.
    pub async fn query(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Trouble> {
        within(self.deadline, self.client.query_typed(sql, parameters)).await
    }

    /// The same for a statement that gives exactly one row.
    pub async fn query_one(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, Trouble> {
        within(self.deadline, self.client.query_typed_one(sql, parameters)).await
    }

    /// Runs one statement whose rows come as they are read, so that not all of them are in memory. Each has the
    /// session's [`deadline`](Self::deadline).
    pub async fn stream(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<RowStream, Trouble> {
        let parameters = parameters.iter().map(|(value, kind)| (*value, kind.clone()));
        within(self.deadline, self.client.query_typed_raw(sql, parameters)).await
    }

    /// Runs one statement; how many rows it concerned.
    pub async fn execute(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<u64, Trouble> {
        within(self.deadline, self.client.execute_typed(sql, parameters)).await
    }

    /// Runs statements without parameters or rows, in one round trip.
    pub async fn batch(&self, sql: &str) -> Result<(), Trouble> {
        within(self.deadline, self.client.batch_execute(sql)).await
    }

    /// How long any call may take.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }
}

/// A column of a row.
///
/// # Errors
///
/// [`Kind::Misconfigured`] when the column is of another type than ours; [`Kind::Entry`] when this one row holds nothing
/// there where there has to be something, or what cannot be read, such as text that is no UTF-8.
pub fn column<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, Trouble> {
    let column = &row.columns()[index];
    let name = column.name();
    if !T::accepts(column.type_()) {
        let words = format!("the column {name} in PostgreSQL is of another type than ours: {}", column.type_());
        return Err(Trouble::new(Kind::Misconfigured, words));
    }
    row.try_get(index).map_err(|error| {
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        Trouble::new(Kind::Entry, format!("the column {name} cannot be read: {cause}"))
    })
}

/// An answer of the server in time, or the connection counts as lost.
pub async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Trouble> {
    match timeout(deadline, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Trouble::new(Kind::Lost, format!("no answer within {} seconds", deadline.as_secs()))),
    }
}
