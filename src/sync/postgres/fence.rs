//! The fence: how far PostgreSQL says that this node's log has come, and what follows when it is not where we left it.
//!
//! Each node has one row with the sequence number and the hash of its newest event there. Every push moves it from where
//! the node believes it to be, in the same transaction as the events, so two files that go by the same node id cannot
//! both push. Read at every poll, it tells a lost acknowledgement, a database that was restored from a backup, and a
//! file that was copied from each other without anybody's help.

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::errors::{Kind, Trouble};
use super::payload::uuid;
use super::session::{Session, column};
use crate::domain::{LogPosition, NodeId};

/// Where PostgreSQL stands, compared with this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It knows nothing of this node: all is to be offered, copies of others' events too.
    Unknown,
    /// It is where we left it.
    Same,
    /// It is further: an acknowledgement was lost on its way.
    Ahead(LogPosition),
    /// It is behind: it was restored from a backup, and copies of others' events may be gone too.
    Behind(LogPosition),
    /// It holds another log under this node's id: this file is a copy of another, or an old backup.
    Forked,
}

/// Compares PostgreSQL's row with this file. `hash_at` is the hash of our chain at a sequence number, `None` beyond its
/// end.
pub fn judge(central: Option<LogPosition>, acked_seq: u64, hash_at: Option<[u8; 32]>) -> Standing {
    let Some(central) = central else {
        return Standing::Unknown;
    };
    if hash_at != Some(central.hash) {
        Standing::Forked
    } else if central.seq == acked_seq {
        Standing::Same
    } else if central.seq > acked_seq {
        Standing::Ahead(central)
    } else {
        Standing::Behind(central)
    }
}

/// The position in two columns of a row, from `first` on; `None` where they are null.
///
/// # Errors
///
/// As for [`column`].
pub fn position(row: &Row, first: usize) -> Result<Option<LogPosition>, Trouble> {
    let (seq, hash): (Option<i64>, Option<&[u8]>) = (column(row, first)?, column(row, first + 1)?);
    // A row that we could not have written is as good as somebody else's.
    Ok(seq.zip(hash).map(|(seq, hash)| LogPosition {
        seq: u64::try_from(seq).unwrap_or(u64::MAX),
        hash: hash.try_into().unwrap_or([0xff; 32]),
    }))
}

/// Moves this node's row from one position to another, or, where both are the same, holds it there for the rest of the
/// transaction. Returns the transaction's id.
///
/// # Errors
///
/// [`Kind::FenceMoved`] when the row is not at `from`.
pub async fn advance(session: &Session, node_id: NodeId, from: LogPosition, to: LogPosition) -> Result<u64, Trouble> {
    let id: Uuid = uuid(node_id.as_bytes());
    let (from_seq, to_seq) = (as_bigint(from.seq), as_bigint(to.seq));
    let (from_hash, to_hash) = (from.hash.as_slice(), to.hash.as_slice());
    // The first row of a node is made by whoever comes first; the other one finds its position taken.
    let sql = if from.seq == 0 {
        "INSERT INTO marketplace_nodes AS n (node_id, last_seq, head_hash, updated_at) VALUES ($1, $4, $5, now())
         ON CONFLICT (node_id) DO UPDATE SET last_seq = $4, head_hash = $5, updated_at = now()
          WHERE n.last_seq = $2 AND n.head_hash = $3
         RETURNING pg_current_xact_id()::text"
    } else {
        "UPDATE marketplace_nodes SET last_seq = $4, head_hash = $5, updated_at = now()
          WHERE node_id = $1 AND last_seq = $2 AND head_hash = $3
         RETURNING pg_current_xact_id()::text"
    };
    let rows = session
        .query(
            sql,
            &[
                (&id, Type::UUID),
                (&from_seq, Type::INT8),
                (&from_hash, Type::BYTEA),
                (&to_seq, Type::INT8),
                (&to_hash, Type::BYTEA),
            ],
        )
        .await?;
    let moved = || Trouble::new(Kind::FenceMoved, "PostgreSQL is not where this node left it");
    let row = rows.first().ok_or_else(moved)?;
    column::<&str>(row, 0)?
        .parse()
        .map_err(|_| Trouble::new(Kind::Lost, "PostgreSQL gave a transaction id that is none"))
}

/// A sequence number as PostgreSQL keeps it; a file cannot hold more events than fit.
pub fn as_bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_that_is_not_where_we_left_it_says_what_happened() {
        let at = |seq: u64, hash: u8| Some(LogPosition { seq, hash: [hash; 32] });
        for (central, acked, hash_at, expected) in [
            (None, 0, None, Standing::Unknown),
            (None, 7, None, Standing::Unknown),
            (at(0, 0), 0, Some([0; 32]), Standing::Same),
            (at(7, 7), 7, Some([7; 32]), Standing::Same),
            (at(9, 9), 7, Some([9; 32]), Standing::Ahead(LogPosition { seq: 9, hash: [9; 32] })),
            (at(3, 3), 7, Some([3; 32]), Standing::Behind(LogPosition { seq: 3, hash: [3; 32] })),
            (at(0, 0), 7, Some([0; 32]), Standing::Behind(LogPosition::default())),
            (at(9, 9), 7, None, Standing::Forked),
            (at(7, 8), 7, Some([7; 32]), Standing::Forked),
            (at(3, 8), 7, Some([3; 32]), Standing::Forked),
        ] {
            assert_eq!(judge(central, acked, hash_at), expected, "{central:?} {acked}");
        }
    }
}
