//! What replication keeps for itself: each sink's cursors, and the entries that a sink refuses.

use std::ops::Bound;

use redb::ReadableTable;
use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::codec::{self, Record};
use super::error::StoreError;
use super::events::Place;
use super::snapshot::Snapshot;
use super::tables;
use crate::domain::transaction::Finality;
use crate::domain::{
    AgentId, Canary, CopyNumber, EventId, ParkedEntry, ParkedKey, PostgresState, RedisState, Sink, Timestamp,
};

/// See [`PostgresState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresStateV1 {
    acked_seq: u64,
    acked_copies: u64,
    fence_hash: [u8; 32],
    system_identifier: Option<String>,
    snapshot: Option<String>,
    canary: Option<(EventId, u64)>,
    restarted: bool,
}

impl Record for PostgresStateV1 {
    const VERSION: u8 = 1;
    const NAME: &'static str = "postgres state";
}

impl From<&PostgresState> for PostgresStateV1 {
    fn from(state: &PostgresState) -> Self {
        Self {
            acked_seq: state.acked_seq,
            acked_copies: state.acked_copies,
            fence_hash: state.fence_hash,
            system_identifier: state.system_identifier.clone(),
            snapshot: state.snapshot.clone(),
            canary: state.canary.map(|canary| (canary.event_id, canary.xid)),
            restarted: state.restarted,
        }
    }
}

impl From<PostgresStateV1> for PostgresState {
    fn from(record: PostgresStateV1) -> Self {
        Self {
            acked_seq: record.acked_seq,
            acked_copies: record.acked_copies,
            fence_hash: record.fence_hash,
            system_identifier: record.system_identifier,
            snapshot: record.snapshot,
            canary: record.canary.map(|(event_id, xid)| Canary { event_id, xid }),
            restarted: record.restarted,
        }
    }
}

/// See [`RedisState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedisStateV1 {
    acked_change_seq: u64,
    nonce: Option<String>,
    run_id: Option<String>,
    stream_cursor: Option<String>,
}

impl Record for RedisStateV1 {
    const VERSION: u8 = 1;
    const NAME: &'static str = "redis state";
}

impl From<&RedisState> for RedisStateV1 {
    fn from(state: &RedisState) -> Self {
        Self {
            acked_change_seq: state.acked_change_seq,
            nonce: state.nonce.clone(),
            run_id: state.run_id.clone(),
            stream_cursor: state.stream_cursor.clone(),
        }
    }
}

impl From<RedisStateV1> for RedisState {
    fn from(record: RedisStateV1) -> Self {
        Self {
            acked_change_seq: record.acked_change_seq,
            nonce: record.nonce,
            run_id: record.run_id,
            stream_cursor: record.stream_cursor,
        }
    }
}

/// See [`ParkedEntry`]; its key is the row's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedV1 {
    reason: String,
    code: String,
    parked_at: Timestamp,
    attempts: u32,
}

impl Record for ParkedV1 {
    const VERSION: u8 = 1;
    const NAME: &'static str = "parked entry";
}

impl From<&ParkedEntry> for ParkedV1 {
    fn from(entry: &ParkedEntry) -> Self {
        Self {
            reason: entry.reason.clone(),
            code: entry.code.clone(),
            parked_at: entry.parked_at,
            attempts: entry.attempts,
        }
    }
}

impl ParkedV1 {
    pub fn into_domain(self, key: ParkedKey) -> ParkedEntry {
        ParkedEntry { key, reason: self.reason, code: self.code, parked_at: self.parked_at, attempts: self.attempts }
    }
}

const SEQ: u8 = 0;
const COPY: u8 = 1;
const AGENT: u8 = 2;

/// The key of `parked`: the sink, the kind of entry, which one.
pub fn parked_key(sink: Sink, key: &ParkedKey) -> Vec<u8> {
    let mut bytes = vec![sink_byte(sink)];
    match key {
        ParkedKey::Seq(seq) => {
            bytes.push(SEQ);
            bytes.extend_from_slice(&seq.to_be_bytes());
        }
        ParkedKey::Copy(number) => {
            bytes.push(COPY);
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        ParkedKey::Agent(id) => {
            bytes.push(AGENT);
            bytes.extend_from_slice(id.as_str().as_bytes());
        }
    }
    bytes
}

/// Reads a key of `parked`; `None` for one that this version does not write.
pub fn parse_parked_key(bytes: &[u8]) -> Option<(Sink, ParkedKey)> {
    let (sink, rest) = bytes.split_first()?;
    let (kind, rest) = rest.split_first()?;
    let sink = Sink::ALL.into_iter().find(|candidate| sink_byte(*candidate) == *sink)?;
    let number = || rest.try_into().ok().map(u64::from_be_bytes);
    let key = match *kind {
        SEQ => ParkedKey::Seq(number()?),
        COPY => ParkedKey::Copy(number()?),
        AGENT => ParkedKey::Agent(AgentId::from_stored(std::str::from_utf8(rest).ok()?)),
        _ => return None,
    };
    Some((sink, key))
}

fn sink_byte(sink: Sink) -> u8 {
    match sink {
        Sink::Redis => 0,
        Sink::Postgres => 1,
    }
}

/// What PostgreSQL has acknowledged of what this file holds, and how much each sink refuses. It is at hand wherever
/// transactions are read, so that none of them costs a look into replication's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acknowledged {
    seq: u64,
    copies: u64,
    /// How many entries each sink refuses; while PostgreSQL refuses none, nobody asks for one.
    parked: [u64; Sink::ALL.len()],
}

impl Acknowledged {
    /// How many entries a sink has refused and not taken since.
    pub fn parked(self, sink: Sink) -> u64 {
        self.parked[usize::from(sink_byte(sink))]
    }

    fn parked_mut(&mut self, sink: Sink) -> &mut u64 {
        &mut self.parked[usize::from(sink_byte(sink))]
    }

    /// How far a transaction with events in these places got; `is_parked` looks one of them up.
    pub(super) fn finality(
        self,
        places: &[u64],
        is_parked: impl Fn(&ParkedKey) -> Result<bool, StoreError>,
    ) -> Result<Finality, StoreError> {
        for place in places.iter().map(|bits| Place::from_bits(*bits)) {
            let acknowledged = match place {
                Place::Log(seq) => seq <= self.seq,
                Place::Copy(CopyNumber(number)) => number <= self.copies,
            };
            if !acknowledged || (self.parked(Sink::Postgres) > 0 && is_parked(&place.parked_key())?) {
                return Ok(Finality::Local);
            }
        }
        Ok(Finality::Central)
    }
}

/// The cursors of PostgreSQL as they are stored.
fn postgres_state(sinks: &impl ReadableTable<u8, &'static [u8]>) -> Result<PostgresState, StoreError> {
    let row = sinks.get(sink_byte(Sink::Postgres))?;
    let record = row.map(|row| codec::decode::<PostgresStateV1>(row.value())).transpose()?;
    Ok(record.map(PostgresState::from).unwrap_or_default())
}

fn redis_state(sinks: &impl ReadableTable<u8, &'static [u8]>) -> Result<RedisState, StoreError> {
    let row = sinks.get(sink_byte(Sink::Redis))?;
    let record = row.map(|row| codec::decode::<RedisStateV1>(row.value())).transpose()?;
    Ok(record.map(RedisState::from).unwrap_or_default())
}

impl Snapshot {
    /// What the sinks have acknowledged and refused. For starting up: it counts what is parked.
    pub(super) fn acknowledged(&self) -> Result<Acknowledged, StoreError> {
        let PostgresState { acked_seq: seq, acked_copies: copies, .. } = self.postgres_state()?;
        let mut acknowledged = Acknowledged { seq, copies, ..Acknowledged::default() };
        for row in self.table(tables::PARKED)?.iter()? {
            if let Some((sink, _)) = parse_parked_key(row?.0.value()) {
                *acknowledged.parked_mut(sink) += 1;
            }
        }
        Ok(acknowledged)
    }

    /// The cursors of PostgreSQL.
    pub fn postgres_state(&self) -> Result<PostgresState, StoreError> {
        postgres_state(&self.table(tables::SINKS)?)
    }

    /// The cursors of Redis.
    pub fn redis_state(&self) -> Result<RedisState, StoreError> {
        redis_state(&self.table(tables::SINKS)?)
    }

    /// At most `limit` parked entries of a sink: own events, then copies, then agents, each in order.
    pub fn parked(&self, sink: Sink, after: Option<&ParkedKey>, limit: usize) -> Result<Vec<ParkedEntry>, StoreError> {
        let table = self.table(tables::PARKED)?;
        let start = after.map_or_else(|| vec![sink_byte(sink)], |key| parked_key(sink, key));
        let start = if after.is_some() { Bound::Excluded(start.as_slice()) } else { Bound::Included(start.as_slice()) };
        let mut entries = Vec::new();
        for row in table.range::<&[u8]>((start, Bound::Unbounded))? {
            let (key, row) = row?;
            let (found, key) = parse_parked_key(key.value())
                .ok_or_else(|| StoreError::Damaged("the key of a parked entry means nothing".to_owned()))?;
            if found != sink || entries.len() == limit {
                break;
            }
            entries.push(codec::decode::<ParkedV1>(row.value())?.into_domain(key));
        }
        Ok(entries)
    }
}

impl Batch<'_> {
    /// The cursors of PostgreSQL.
    pub fn postgres_state(&self) -> Result<PostgresState, StoreError> {
        postgres_state(self.sinks.open()?)
    }

    /// Writes the cursors of PostgreSQL.
    pub fn put_postgres_state(&mut self, state: &PostgresState) -> Result<(), StoreError> {
        self.changed = true;
        let bytes = codec::encode(&PostgresStateV1::from(state));
        self.sinks.insert(sink_byte(Sink::Postgres), bytes.as_slice())?;
        let acknowledged = &mut self.head.acknowledged;
        (acknowledged.seq, acknowledged.copies) = (state.acked_seq, state.acked_copies);
        Ok(())
    }

    /// The cursors of Redis.
    pub fn redis_state(&self) -> Result<RedisState, StoreError> {
        redis_state(self.sinks.open()?)
    }

    /// Writes the cursors of Redis.
    pub fn put_redis_state(&mut self, state: &RedisState) -> Result<(), StoreError> {
        self.changed = true;
        let bytes = codec::encode(&RedisStateV1::from(state));
        self.sinks.insert(sink_byte(Sink::Redis), bytes.as_slice())?;
        Ok(())
    }

    /// Sets an entry aside; one that is parked already is written anew.
    pub fn park(&mut self, sink: Sink, entry: &ParkedEntry) -> Result<(), StoreError> {
        self.changed = true;
        let bytes = codec::encode(&ParkedV1::from(entry));
        let is_new = self.parked.insert(parked_key(sink, &entry.key).as_slice(), bytes.as_slice())?.is_none();
        if is_new {
            *self.head.acknowledged.parked_mut(sink) += 1;
        }
        Ok(())
    }

    /// Whether an entry is set aside.
    pub fn is_parked(&self, sink: Sink, key: &ParkedKey) -> Result<bool, StoreError> {
        Ok(self.parked.get(parked_key(sink, key).as_slice())?.is_some())
    }

    /// Takes an entry back from where it was set aside.
    pub fn unpark(&mut self, sink: Sink, key: &ParkedKey) -> Result<(), StoreError> {
        if self.parked.remove(parked_key(sink, key).as_slice())?.is_some() {
            self.changed = true;
            *self.head.acknowledged.parked_mut(sink) -= 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_parked_entries_read_back_and_sort_by_sink_and_number() {
        let agent = ParkedKey::Agent(AgentId::from_stored("thon"));
        let keys = [ParkedKey::Seq(1), ParkedKey::Seq(300), ParkedKey::Copy(0), agent];
        let all: Vec<_> = Sink::ALL.into_iter().flat_map(|sink| keys.clone().map(|key| (sink, key))).collect();
        let bytes: Vec<_> = all.iter().map(|(sink, key)| parked_key(*sink, key)).collect();
        assert!(bytes.is_sorted());
        for (bytes, expected) in bytes.iter().zip(all) {
            assert_eq!(parse_parked_key(bytes), Some(expected));
        }
        for bad in [&[][..], &[0], &[9, SEQ, 0], &[0, SEQ, 1], &[0, AGENT, 0xff], &[0, 7, 1]] {
            assert_eq!(parse_parked_key(bad), None, "{bad:?}");
        }
    }
}
