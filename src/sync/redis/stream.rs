//! The stream of changes, and whether what was read of it is all that there was.
//!
//! The stream is cut at its old end and may be lost as a whole, with or without the documents. Reading goes on without a
//! break only if the entry at the cursor is still in it, or nothing was added since.

use std::fmt;

use redis::streams::{StreamInfoStreamReply, StreamReadReply};
use redis::{Pipeline, Value};

use super::keys::{self, HeldVersion};
use super::link::Link;
use crate::domain::{AgentVersion, Timestamp};
use crate::sync::state::Failure;

/// How many bytes of a nonce are looked at; one of ours has fewer.
const NONCE_BYTES: usize = 64;
/// How many entries are read at once.
pub const BATCH: usize = 1_000;

/// The id of an entry: milliseconds, and a number within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position(u64, u64);

impl Position {
    /// Reads an id.
    pub fn parse(text: &str) -> Option<Self> {
        let (millis, number) = text.split_once('-')?;
        Some(Self(millis.parse().ok()?, number.parse().ok()?))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which agent.
    pub agent_id: String,
    /// What became of it.
    pub held: HeldVersion,
}

/// Where the stream begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// The oldest entry; `None` if there is none.
    pub first: Option<Position>,
    /// The id given out last, whether its entry is there or not.
    pub last: Position,
}

impl Extent {
    /// Whether nothing between the cursor and the end was lost.
    pub fn continues(&self, cursor: Position) -> bool {
        match self.first {
            _ if self.last < cursor => false,
            _ if self.last == cursor => true,
            Some(first) => first <= cursor,
            None => false,
        }
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// The entries, oldest first.
    pub entries: Vec<Entry>,
    /// Where to go on.
    pub next: Option<Position>,
    /// Whether there may be more.
    pub full: bool,
}

/// Reads what lies above the cursor.
pub async fn read(link: &Link, cursor: Position, now: Timestamp) -> Result<Batch, Failure> {
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(BATCH).arg("STREAMS").arg(keys::CHANGES).arg(cursor.to_string());
    let reply: Option<StreamReadReply> = link.query(&command).await?;
    let ids: Vec<_> = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect();
    let next = ids.last().and_then(|entry| Position::parse(&entry.id));
    let full = ids.len() == BATCH;
    // What somebody else added there, and what a later version of this program says, is passed over.
    let entries = ids.iter().filter_map(|entry| {
        let field = |name: &str| entry.map.get(name).and_then(text);
        let version = AgentVersion::parse_wire(&field("version")?).filter(|version| version.is_believed_at(now))?;
        let held = match field("kind")?.as_str() {
            "put" => HeldVersion::Put(version),
            "removed" => HeldVersion::Removed(version),
            _ => return None,
        };
        Some(Entry { agent_id: field("agent_id")?, held })
    });
    Ok(Batch { entries: entries.collect(), next, full })
}

/// Asks where the stream begins and ends. One that does not exist is empty.
pub async fn extent(link: &Link) -> Result<Extent, Failure> {
    let mut exists = Pipeline::new();
    exists.cmd("EXISTS").arg(keys::CHANGES);
    if link.all::<i64>(&exists).await? == [0] {
        return Ok(Extent::default());
    }
    let mut command = redis::cmd("XINFO");
    command.arg("STREAM").arg(keys::CHANGES);
    let info: StreamInfoStreamReply = link.query(&command).await?;
    let first = if info.length == 0 { None } else { Position::parse(&info.first_entry.id) };
    Ok(Extent { first, last: Position::parse(&info.last_generated_id).unwrap_or_default() })
}

/// Which data and which server this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The nonce of the data.
    pub nonce: String,
    /// The run of the server.
    pub run_id: String,
}

/// Asks which data and which server this is; data without a nonce gets `fresh`.
///
/// Whatever else lies in its place, in bytes or of another type, is a nonce as well: it stops nobody, and is another one
/// once the data is lost.
///
/// And what time it is there, if the server tells.
pub async fn origin(link: &Link, fresh: &str) -> Result<(Origin, Option<Timestamp>), Failure> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("SETNX").arg(keys::EPOCH).arg(fresh);
    pipeline.cmd("TYPE").arg(keys::EPOCH);
    pipeline.cmd("STRLEN").arg(keys::EPOCH);
    pipeline.cmd("GETRANGE").arg(keys::EPOCH).arg(0).arg(NONCE_BYTES - 1);
    pipeline.cmd("INFO").arg("server");
    let mut answers = link.values(&pipeline).await?.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    link.read::<Value>(next())?;
    let kind: String = link.read(next())?;
    let (length, begins) = (next(), next());
    let nonce = match kind.as_str() {
        "string" | "none" => nonce(link.read(length)?, link.read(begins)?),
        kind => format!("({kind})"),
    };
    let info: String = link.read(next())?;
    let told = |what: &str| info.lines().find_map(|line| line.strip_prefix(what)).map(str::trim);
    let run_id = told("run_id:").unwrap_or_default().to_owned();
    let time = told("server_time_usec:").and_then(|micros| micros.parse().ok()).map(Timestamp::from_micros);
    Ok((Origin { nonce, run_id }, time))
}

fn nonce(length: usize, begins: Vec<u8>) -> String {
    match String::from_utf8(begins) {
        Ok(text) if text.len() == length => text,
        Ok(text) => format!("{length}:{text}"),
        Err(error) => {
            let bytes: String = error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{length}:{bytes}")
        }
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_goes_on_only_where_nothing_was_lost() {
        let at = |millis: u64| Position(millis, 3);
        let extent = |first: Option<u64>, last: u64| Extent { first: first.map(at), last: at(last) };
        for (extent, cursor, continues) in [
            (Extent::default(), Position::default(), true),
            (Extent::default(), at(5), false),
            (extent(Some(2), 9), at(5), true),
            (extent(Some(5), 9), at(5), true),
            (extent(Some(6), 9), at(5), false),
            (extent(Some(6), 9), at(9), true),
            (extent(Some(2), 4), at(5), false),
            (extent(None, 9), at(5), false),
            (extent(None, 9), at(9), true),
            (extent(Some(1), 9), Position::default(), false),
        ] {
            assert_eq!(extent.continues(cursor), continues, "{extent:?} {cursor}");
        }
    }

    #[test]
    fn ids_compare_as_numbers_and_read_back() {
        let id = |text: &str| Position::parse(text).unwrap();
        assert!(id("9-10") < id("10-2") && id("9-9") < id("9-10"));
        assert_eq!(id("1795391431767-0").to_string(), "1795391431767-0");
        for bad in ["", "1", "-", "1-x", "x-1"] {
            assert_eq!(Position::parse(bad), None, "{bad:?}");
        }
    }
}
