//! Where events lie: own ones in the ledger log, copies of other nodes' beside it.
//!
//! A transaction lists both as *places*: a sequence number of the log, or the number of a copy with [`COPY`] set.

use std::fmt;

use redb::ReadableTable;
use serde::{Deserialize, Serialize};

use super::codec::{self, Record};
use super::error::StoreError;
use super::event_record::{EventRef, EventV1};
use crate::domain::{AgentId, CopyNumber, LedgerEntry, NodeId, ParkedKey};

/// Set in the place of a copy.
const COPY: u64 = 1 << 63;

/// See [`LedgerEntry`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryV1 {
    payer_agent: AgentId,
    provider_agent: AgentId,
    recorded_by: NodeId,
    hash: Option<[u8; 32]>,
    event: EventV1,
}

impl Record for EntryV1 {
    const VERSION: u8 = 1;
    const NAME: &'static str = "ledger entry";
}

/// [`EntryV1`] in references, field by field.
#[derive(Serialize)]
struct EntryRef<'a> {
    payer_agent: &'a AgentId,
    provider_agent: &'a AgentId,
    recorded_by: NodeId,
    hash: Option<[u8; 32]>,
    event: EventRef<'a>,
}

/// The stored form of an entry.
pub fn encode_entry(entry: &LedgerEntry) -> Vec<u8> {
    let record = EntryRef {
        payer_agent: &entry.payer_agent,
        provider_agent: &entry.provider_agent,
        recorded_by: entry.recorded_by,
        hash: entry.hash,
        event: EventRef::of(&entry.event, entry.node_seq),
    };
    let mut bytes = Vec::with_capacity(256);
    codec::encode_as::<EntryV1>(&record, &mut bytes);
    bytes
}

impl EntryV1 {
    pub fn into_domain(self) -> LedgerEntry {
        LedgerEntry {
            node_seq: self.event.node_seq,
            event: self.event.into_domain(),
            payer_agent: self.payer_agent,
            provider_agent: self.provider_agent,
            recorded_by: self.recorded_by,
            hash: self.hash,
        }
    }
}

/// Where one event lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the ledger log, under this sequence number.
    Log(u64),
    /// Among the copies.
    Copy(CopyNumber),
}

impl Place {
    pub fn to_bits(self) -> u64 {
        match self {
            Self::Log(seq) => seq,
            Self::Copy(CopyNumber(number)) => number | COPY,
        }
    }

    pub fn from_bits(bits: u64) -> Self {
        if bits & COPY == 0 { Self::Log(bits) } else { Self::Copy(CopyNumber(bits & !COPY)) }
    }

    /// As the key of a parked entry.
    pub fn parked_key(self) -> ParkedKey {
        match self {
            Self::Log(seq) => ParkedKey::Seq(seq),
            Self::Copy(CopyNumber(number)) => ParkedKey::Copy(number),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log(seq) => write!(f, "row {seq} of the log"),
            Self::Copy(CopyNumber(number)) => write!(f, "copy {number}"),
        }
    }
}

/// Reads one copy. One that is missing is damage.
pub fn read_copy(
    copies: &impl ReadableTable<u64, &'static [u8]>,
    CopyNumber(number): CopyNumber,
) -> Result<LedgerEntry, StoreError> {
    let row =
        copies.get(number)?.ok_or_else(|| StoreError::Damaged(format!("copy {number} of an event is missing")))?;
    Ok(codec::decode::<EntryV1>(row.value())?.into_domain())
}
