//! What others wrote, read without a gap and without reading anything twice.
//!
//! The cursor is the snapshot of the last complete read: which transactions had ended by then. The next read takes what
//! they could not show: everything of a later transaction, and of those that were under way. A sequence or a time as
//! cursor would skip what a slow transaction commits late. All pages of a read see one snapshot, which becomes the next
//! cursor, and reaches no further than the *canary*, the newest event for us that it shows.
//!
//! A cursor means something in one history of one PostgreSQL only. Whether it still is the same is looked at before each
//! read: the cluster's identifier, its timeline, its transaction numbers, and whether the canary is where it was. Put back
//! to an older copy of its files, a server looks the same but for the canary, and gives the numbers of what was lost to
//! other transactions. Because the cursor ends at the canary, those lie beyond the cursor as long as the canary is there.
//! There is one exception: a lost event that is offered again may come under the very number that it had. A server that
//! was put back was restarted, so after a restart some transactions are read once more.

use std::fmt;
use std::pin::Pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, RowStream};
use uuid::Uuid;

use super::errors::{Kind, Trouble};
use super::fence::as_bigint;
use super::payload::{self, CentralEvent, Unreadable, uuid};
use super::session::{Session, column, within};
use crate::domain::{AgentId, Canary, EventId, Identity, LogPosition, NodeId, PostgresState};

/// The most events of one page.
const PAGE_EVENTS: usize = 1_000;
/// The most bytes of one page.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// Which transactions had ended at some time: PostgreSQL's `pg_snapshot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Horizon {
    xmin: u64,
    xmax: u64,
    open: Vec<u64>,
}

impl Horizon {
    /// Before everything.
    pub fn beginning() -> Self {
        Self { xmin: 0, xmax: 0, open: Vec::new() }
    }

    /// Reads `xmin:xmax:open,open,…`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (xmin, xmax, open) = (parts.next()?, parts.next()?, parts.next()?);
        let open = open.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
        Some(Self { xmin: xmin.parse().ok()?, xmax: xmax.parse().ok()?, open })
    }

    /// The same for whom nothing later than the transaction `newest` was to be seen.
    #[must_use]
    pub fn up_to(self, newest: u64) -> Self {
        let xmax = self.xmax.min(newest.saturating_add(1));
        let open = self.open.into_iter().filter(|xid| *xid < xmax).collect();
        Self { xmin: self.xmin.min(xmax), xmax, open }
    }

    /// The same, some transactions earlier.
    #[must_use]
    pub fn earlier_by(self, transactions: u64) -> Self {
        let before = self.xmax.saturating_sub(transactions);
        let (xmin, xmax) = (self.xmin.min(before), before);
        let open = self.open.into_iter().filter(|xid| *xid < xmax).collect();
        Self { xmin, xmax, open }
    }
}

impl fmt::Display for Horizon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (place, xid) in self.open.iter().enumerate() {
            write!(f, "{}{xid}", if place == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Whether at most half of the connections are in use that the server, the database and the role allow.
/// Asked of the functions below `pg_stat_database` and `pg_stat_activity`: to plan those views took a server longer than
/// all the rest of a read in which there is nothing new.
const ROOM: &str = "(SELECT sum(pg_stat_get_db_numbackends(oid)) * 2 FROM pg_database)
                  <= current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
                AND (SELECT datconnlimit < 0 OR pg_stat_get_db_numbackends(oid) * 2 <= datconnlimit
                       FROM pg_database WHERE datname = current_database())
                AND (SELECT CASE WHEN r.rolconnlimit < 0 THEN true ELSE
                              (SELECT count(*) * 2 <= r.rolconnlimit FROM pg_stat_get_activity(NULL)
                                WHERE usesysid = r.oid) END
                       FROM pg_roles r WHERE r.rolname = session_user)";

/// What one look at PostgreSQL shows: where we stand there, and whether it is the one that we knew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// The snapshot of the transaction that looks.
    pub snapshot: String,
    /// Which history of which cluster it is, and when its server was started: `cluster/timeline/start`.
    pub history: String,
    /// Which transaction wrote the canary; `None` if it is not there.
    pub canary_xid: Option<u64>,
    /// Our own row.
    pub fence: Option<LogPosition>,
    /// Who serves us, and how many others.
    pub server: Server,
}

/// What serves this connection, as far as it tells whether an idle one may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// Its process.
    pub backend: i32,
    /// Whether that is new. Behind a pooler it hardly ever is.
    pub is_new: bool,
    /// Whether at most half of the connections that it allows us are in use.
    pub has_room: bool,
}

/// Whether this role may ask for the cluster's identifier. Without it, its history is told by the rest.
///
/// # Errors
///
/// See [`Trouble`]; so for every statement here.
pub async fn may_identify(session: &Session) -> Result<bool, Trouble> {
    let sql = "SELECT has_function_privilege('pg_control_system()', 'EXECUTE')";
    column(&session.query_one(sql, &[]).await?, 0)
}

/// Looks, within a transaction.
///
/// # Errors
///
/// [`Kind::Lost`] for a server that only follows another; it takes nothing.
pub async fn glance(
    session: &Session,
    node_id: NodeId,
    canary: Option<Canary>,
    may_identify: bool,
) -> Result<Glance, Trouble> {
    let cluster = if may_identify { "(SELECT system_identifier::text FROM pg_control_system())" } else { "''" };
    let sql = format!(
        "SELECT pg_current_snapshot()::text, pg_is_in_recovery(), {cluster},
                CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
                (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text,
                (SELECT xid::text FROM marketplace_transaction_events WHERE event_id = $1),
                n.last_seq, n.head_hash, pg_backend_pid(),
                COALESCE((SELECT clock_timestamp() - backend_start < interval '10 seconds'
                            FROM pg_stat_get_activity(pg_backend_pid())), false),
                {ROOM}
           FROM (SELECT) one LEFT JOIN marketplace_nodes n ON n.node_id = $2"
    );
    let canary: Option<Uuid> = canary.map(|canary| uuid(canary.event_id.as_bytes()));
    let row = session.query_one(&sql, &[(&canary, Type::UUID), (&uuid(node_id.as_bytes()), Type::UUID)]).await?;
    if column(&row, 1)? {
        return Err(Trouble::new(Kind::Lost, "this server is a standby, which takes no writes"));
    }
    let (cluster, timeline, start): (&str, &str, &str) = (column(&row, 2)?, column(&row, 3)?, column(&row, 4)?);
    Ok(Glance {
        snapshot: column(&row, 0)?,
        history: format!("{cluster}/{timeline}/{start}"),
        canary_xid: column::<Option<&str>>(&row, 5)?.and_then(|xid| xid.parse().ok()),
        fence: super::fence::position(&row, 6)?,
        server: Server { backend: column(&row, 8)?, is_new: column(&row, 9)?, has_room: column(&row, 10)? },
    })
}

/// Why the cursor of `state` means nothing any more, if it does not.
pub fn break_in_history(state: &PostgresState, glance: &Glance) -> Option<&'static str> {
    let Some(cursor) = &state.snapshot else { return None };
    if state.system_identifier.as_deref().map(without_start) != Some(without_start(&glance.history)) {
        return Some("it is another cluster, or one that took another turn");
    }
    if let Some(canary) = state.canary {
        match glance.canary_xid {
            None => return Some("an event that was there is gone"),
            Some(xid) if xid != canary.xid => return Some("an event that was there was written anew"),
            Some(_) => {}
        }
    }
    match (Horizon::parse(cursor), Horizon::parse(&glance.snapshot)) {
        (Some(then), Some(now)) if now.xmax >= then.xmax => None,
        _ => Some("its transaction numbers went back"),
    }
}

/// A history but for when the server was started.
fn without_start(history: &str) -> &str {
    // What an earlier version of this program stored had no start.
    match history.match_indices('/').nth(1) {
        Some((place, _)) => &history[..place],
        None => history,
    }
}

/// Whose events are read, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest<'a> {
    /// As payer or provider.
    pub agents: &'a [AgentId],
    /// As the node that recorded the transaction.
    pub recorded_by: &'a [NodeId],
    /// Our own events are not read where these transactions of ours wrote them. Others may have written events under our
    /// id: a copy of our file, or we ourselves, before we were restored from a backup.
    pub except: (NodeId, &'a [u64]),
    /// What has been read already.
    pub since: &'a Horizon,
}

/// The newest of our own events for `interest` that these transactions of ours wrote, within the read's transaction.
///
/// # Errors
///
/// See [`Trouble`].
pub async fn newest_own(session: &Session, interest: &Interest<'_>) -> Result<Option<Canary>, Trouble> {
    let (node_id, own) = interest.except;
    let Some(first) = own.iter().min() else { return Ok(None) };
    let agents: Vec<&str> = interest.agents.iter().map(AgentId::as_str).collect();
    let nodes: Vec<Uuid> = interest.recorded_by.iter().map(|id| uuid(id.as_bytes())).collect();
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    let rows = session
        .query(
            "SELECT event_id, xid::text FROM marketplace_transaction_events
              WHERE (payer_agent = ANY($1) OR provider_agent = ANY($1) OR recorded_by = ANY($2))
                AND node_id = $3 AND xid >= $4::text::xid8 AND xid = ANY($5::text[]::xid8[])
              ORDER BY xid DESC, id DESC LIMIT 1",
            &[
                (&agents, Type::TEXT_ARRAY),
                (&nodes, Type::UUID_ARRAY),
                (&uuid(node_id.as_bytes()), Type::UUID),
                (&first.to_string(), Type::TEXT),
                (&own, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let event_id = EventId::from_bytes(column::<Uuid>(row, 0)?.into_bytes());
    Ok(column::<&str>(row, 1)?.parse().ok().map(|xid| Canary { event_id, xid }))
}

/// Who pays in the transactions that this node recorded, `after` some place in its log and up to another, and another node
/// recorded before it, within a transaction.
///
/// # Errors
///
/// See [`Trouble`].
pub async fn shared_payers(
    session: &Session,
    identity: &Identity,
    after: u64,
    upto: u64,
) -> Result<Vec<AgentId>, Trouble> {
    let nodes = identity.earlier.iter().chain([&identity.node_id]);
    let nodes: Vec<Uuid> = nodes.map(|id| uuid(id.as_bytes())).collect();
    let rows = session
        .query(
            "SELECT DISTINCT payer_agent FROM marketplace_transaction_events
              WHERE node_id = ANY($1) AND node_seq > $2 AND node_seq <= $3 AND kind = 'recorded'
                AND recorded_by <> node_id",
            &[(&nodes, Type::UUID_ARRAY), (&as_bigint(after), Type::INT8), (&as_bigint(upto), Type::INT8)],
        )
        .await?;
    rows.iter().map(|row| Ok(AgentId::from_stored(column(row, 0)?))).collect()
}

/// A read, page by page, within the transaction whose snapshot it sees.
pub struct Reading<'a> {
    session: &'a Session,
    stream: Option<Pin<Box<RowStream>>>,
    fetched: usize,
    ended: bool,
}

impl<'a> Reading<'a> {
    /// Begins to read, in the order of transactions.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub async fn begin(session: &'a Session, interest: &Interest<'_>) -> Result<Self, Trouble> {
        let agents: Vec<&str> = interest.agents.iter().map(AgentId::as_str).collect();
        let nodes: Vec<Uuid> = interest.recorded_by.iter().map(|id| uuid(id.as_bytes())).collect();
        let texts = |xids: &[u64]| xids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (open, own) = (texts(&interest.since.open), texts(interest.except.1));
        // `xid >= xmin` says nothing new, but is what an index can begin at.
        let sql = format!(
            "DECLARE reading NO SCROLL CURSOR FOR SELECT {} FROM marketplace_transaction_events
              WHERE (payer_agent = ANY($1) OR provider_agent = ANY($1) OR recorded_by = ANY($2))
                AND NOT (node_id = $3 AND xid = ANY($7::text[]::xid8[]))
                AND xid >= $4::text::xid8 AND (xid >= $5::text::xid8 OR xid = ANY($6::text[]::xid8[]))
              ORDER BY xid, id",
            payload::COLUMNS
        );
        session
            .execute(
                &sql,
                &[
                    (&agents, Type::TEXT_ARRAY),
                    (&nodes, Type::UUID_ARRAY),
                    (&uuid(interest.except.0.as_bytes()), Type::UUID),
                    (&interest.since.xmin.to_string(), Type::TEXT),
                    (&interest.since.xmax.to_string(), Type::TEXT),
                    (&open, Type::TEXT_ARRAY),
                    (&own, Type::TEXT_ARRAY),
                ],
            )
            .await?;
        Ok(Self { session, stream: None, fetched: 0, ended: false })
    }

    /// The next page; `None` behind the last.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub async fn page(&mut self) -> Result<Option<Vec<Result<CentralEvent, Unreadable>>>, Trouble> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        while !self.ended && page.len() < PAGE_EVENTS && bytes < PAGE_BYTES {
            match self.row().await? {
                Some(row) => {
                    bytes += row.raw_size_bytes();
                    page.push(payload::read(&row)?);
                }
                None if page.is_empty() => {}
                None => break,
            }
        }
        if page.is_empty() { Ok(None) } else { Ok(Some(page)) }
    }

    /// Makes room for another read in the same transaction.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub async fn end(self) -> Result<(), Trouble> {
        drop(self.stream);
        self.session.batch("CLOSE reading").await
    }

    /// The next row; `None` between two portions and at the end.
    async fn row(&mut self) -> Result<Option<Row>, Trouble> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let sql = format!("FETCH FORWARD {PAGE_EVENTS} FROM reading");
                self.fetched = 0;
                self.stream.insert(Box::pin(self.session.stream(&sql, &[]).await?))
            }
        };
        match within(self.session.deadline(), stream.try_next()).await? {
            Some(row) => {
                self.fetched += 1;
                Ok(Some(row))
            }
            None => {
                self.ended = self.fetched < PAGE_EVENTS;
                self.stream = None;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn horizons_are_read_as_postgresql_writes_them() {
        assert_eq!(Horizon::parse("10:10:"), Some(Horizon { xmin: 10, xmax: 10, open: vec![] }));
        assert_eq!(Horizon::parse("10:20:10,14"), Some(Horizon { xmin: 10, xmax: 20, open: vec![10, 14] }));
        for bad in ["", "10", "10:20", "a:20:", "10:20:x"] {
            assert_eq!(Horizon::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_horizon_reaches_no_further_than_what_was_seen() {
        let horizon = |text: &str| Horizon::parse(text).expect("our own");
        for (snapshot, newest, expected) in [
            ("10:20:10,14", 12, "10:13:10"),
            ("10:20:10,14", 9, "10:10:"),
            ("10:20:10,14", 5, "6:6:"),
            ("10:20:10,14", 19, "10:20:10,14"),
            ("10:20:10,14", 90, "10:20:10,14"),
            ("10:20:10,14", u64::MAX, "10:20:10,14"),
        ] {
            assert_eq!(horizon(snapshot).up_to(newest).to_string(), expected, "{snapshot} {newest}");
        }
        assert_eq!(horizon("10:20:10,14").earlier_by(7).to_string(), "10:13:10");
        assert_eq!(horizon("10:20:10,14").earlier_by(15).to_string(), "5:5:");
        assert_eq!(horizon("10:20:10,14").earlier_by(90), Horizon::beginning());
    }

    #[test]
    fn a_cursor_is_good_in_one_history_only() {
        let canary = Canary { event_id: EventId::from_bytes([1; 16]), xid: 700 };
        let state = PostgresState {
            system_identifier: Some("7/1/99".to_owned()),
            snapshot: Some("700:710:".to_owned()),
            canary: Some(canary),
            ..PostgresState::default()
        };
        let glance = Glance {
            snapshot: "710:712:".to_owned(),
            history: "7/1/99".to_owned(),
            canary_xid: Some(700),
            fence: None,
            server: Server { backend: 1, is_new: true, has_room: true },
        };
        assert_eq!(break_in_history(&state, &glance), None);
        let restarted = Glance { history: "7/1/100".to_owned(), ..glance.clone() };
        assert_eq!(break_in_history(&state, &restarted), None);
        let of_an_earlier_version = PostgresState { system_identifier: Some("7/1".to_owned()), ..state.clone() };
        assert_eq!(break_in_history(&of_an_earlier_version, &glance), None);
        for (what, changed) in [
            ("another cluster", Glance { history: "8/1/99".to_owned(), ..glance.clone() }),
            ("promoted", Glance { history: "7/2/99".to_owned(), ..glance.clone() }),
            ("emptied", Glance { canary_xid: None, ..glance.clone() }),
            ("restored from a dump", Glance { canary_xid: Some(5), ..glance.clone() }),
            ("rewound", Glance { snapshot: "705:709:".to_owned(), ..glance.clone() }),
        ] {
            assert!(break_in_history(&state, &changed).is_some(), "{what}");
        }
        let first = PostgresState::default();
        assert_eq!(break_in_history(&first, &glance), None, "nothing was read yet");
    }
}
