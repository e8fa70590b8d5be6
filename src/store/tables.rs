//! The tables and their keys.
//!
//! A commit costs its sync and its dirty pages, so keys are short, new entries land beside the last ones (the ledger
//! log by sequence number, transactions by time, agents as numbers) and share rows with them, and what would lie anywhere
//! is gathered first. Recording or deciding touches four tables:
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `ledger_log` | the first `node_seq` | a [row of the log](super::log): events with their hashes |
//! | `transactions` | [`Scope`], the first [`TxKey`] | a [block](super::block) of entries by [`TxKey`] |
//! | `runs` | the run's age | a [run](super::runs) of changes of agents' lists and of `tallies`, which wait |
//! | `meta` | a [name](meta) | the counters of the whole store; whose it is |
//!
//! What the entries of `transactions` hold depends on their scope: a
//! [`TransactionV1`](super::records::TransactionV1), or a byte with an agent's roles or an open transaction's status.
//! `tallies` ([`Tally`]) holds balances, and load by the minute.
//!
//! `transaction_ids` ([`id_key`] → [`TxKey`]) leads to a transaction whose id does not say where it is. A minted id
//! does: see [`key_within`].
//! Taking in other nodes' events touches `copies` (by the order in which they came), and `held` ([`held_key`]) for those
//! that came before the `recorded` event of their transaction. `central_facts` ([`id_key`]) names the facts that
//! PostgreSQL holds for an id, where others are claimed for it; `ledger_agents` lists the agents that were ever registered
//! here, and whether their history has been read.
//!
//! Beside them: `agent_numbers` (an agent that a transaction names, as a number), `agents`, `agent_changes` (one entry
//! for each changed local agent, newest last), `tombstones`, `observations` (of agents' work, by agent), `sinks` and
//! `parked` (replication's cursors, and entries that a sink refuses), `receipts` and `receipt_ages` (idempotency keys).

use std::fmt;

use redb::TableDefinition;

use super::records::StoreAge;
use crate::domain::{Currency, EventId, Role, Timestamp, TransactionId};

pub const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub const LEDGER_LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ledger_log");
pub const TRANSACTIONS: TableDefinition<'_, &[u8; BLOCK_KEY_BYTES], &[u8]> = TableDefinition::new("transactions");
pub const RUNS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("runs");
pub const TRANSACTION_IDS: TableDefinition<'_, &[u8], &[u8; 12]> = TableDefinition::new("transaction_ids");
pub const COPIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("copies");
pub const HELD: TableDefinition<'_, &[u8], u64> = TableDefinition::new("held");
pub const CENTRAL_FACTS: TableDefinition<'_, &[u8], &[u8; 32]> = TableDefinition::new("central_facts");
pub const LEDGER_AGENTS: TableDefinition<'_, &str, u8> = TableDefinition::new("ledger_agents");
pub const TALLIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tallies");
pub const AGENT_NUMBERS: TableDefinition<'_, &str, u32> = TableDefinition::new("agent_numbers");
pub const AGENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("agents");
pub const AGENT_CHANGES: TableDefinition<'_, u64, &str> = TableDefinition::new("agent_changes");
pub const TOMBSTONES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tombstones");
pub const OBSERVATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("observations");
pub const SINKS: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("sinks");
pub const PARKED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("parked");
pub const RECEIPTS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("receipts");
pub const RECEIPT_AGES: TableDefinition<'_, &[u8; 24], ()> = TableDefinition::new("receipt_ages");

/// Keys of `meta`.
pub mod meta {
    /// The format of the file, a little-endian `u32`.
    pub const FORMAT: &str = "format";
    /// The node's id, 16 bytes.
    pub const NODE_ID: &str = "node_id";
    /// The ids that the node had before, newest first, 16 bytes each; absent if there are none.
    pub const EARLIER_IDS: &str = "earlier_ids";
    /// [`TotalsV2`](crate::store::records::TotalsV2), the counters of the whole store; absent while all are 0.
    pub const TOTALS: &str = "totals";
    /// Written by the probe that finds out whether the disk takes writes again.
    pub const PROBE: &str = "probe";
}

/// One sorted list of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(u32);

impl Scope {
    /// Every open transaction, with its status.
    pub const OPEN: Self = Self(0);
    /// Every transaction, with its record.
    pub const ROWS: Self = Self(u32::MAX);

    /// The transactions of the agent with this number, with its roles in them. Numbers begin with 1.
    pub fn of_agent(number: u32) -> Self {
        Self(number)
    }

    /// Whether it lists one agent's transactions.
    pub fn is_of_agent(self) -> bool {
        !matches!(self, Self::OPEN | Self::ROWS)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OPEN => f.write_str("what is open"),
            Self::ROWS => f.write_str("all transactions"),
            Self(number) => write!(f, "agent number {number}"),
        }
    }
}

/// A transaction's place in time: when it was created, and a tie-breaker among those of the same microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxKey {
    /// When the transaction was created.
    pub created_at: Timestamp,
    /// Which of that microsecond's transactions it is.
    pub tie: u32,
}

impl TxKey {
    /// The least key that sorts as a time.
    pub const MIN: Self = Self { created_at: Timestamp::MIN, tie: 0 };
    /// The greatest.
    pub const MAX: Self = Self { created_at: Timestamp::MAX, tie: u32::MAX };

    /// The least key of a microsecond.
    pub fn first_at(created_at: Timestamp) -> Self {
        Self { created_at, tie: 0 }
    }

    /// The greatest key of a microsecond.
    pub fn last_at(created_at: Timestamp) -> Self {
        Self { created_at, tie: u32::MAX }
    }

    /// The key behind this one; `None` behind the greatest.
    pub fn next(self) -> Option<Self> {
        match self.tie.checked_add(1) {
            Some(tie) => Some(Self { tie, ..self }),
            None if self == Self::MAX => None,
            None => Some(Self::first_at(Timestamp::from_micros(self.created_at.as_micros() + 1))),
        }
    }

    /// The key before this one; `None` before the least.
    pub fn previous(self) -> Option<Self> {
        match self.tie.checked_sub(1) {
            Some(tie) => Some(Self { tie, ..self }),
            None if self == Self::MIN => None,
            None => Some(Self::last_at(Timestamp::from_micros(self.created_at.as_micros() - 1))),
        }
    }

    /// An id for a transaction that is recorded under this key.
    pub fn mint_id(self, random: [u8; 7]) -> TransactionId {
        // More than 256 in one microsecond share the last tie, and need a row in `transaction_ids`.
        TransactionId::mint(self.created_at, u8::try_from(self.tie).unwrap_or(u8::MAX), random)
    }

    /// Big-endian with the sign bit flipped, so that bytes sort as times do.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&ordered(self.created_at));
        bytes[8..].copy_from_slice(&self.tie.to_be_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; 12]) -> Self {
        let (time, tie) = bytes.split_first_chunk::<8>().expect("12 bytes hold 8");
        let tie: [u8; 4] = tie.try_into().expect("12 bytes less 8 are 4");
        let micros = (u64::from_be_bytes(*time) ^ (1 << 63)).cast_signed();
        Self { created_at: Timestamp::from_micros(micros), tie: u32::from_be_bytes(tie) }
    }
}

fn ordered(time: Timestamp) -> [u8; 8] {
    (time.as_micros().cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// How long a key of `transactions` is.
pub const BLOCK_KEY_BYTES: usize = 16;

/// The key of `transactions`: the scope, and the first entry's key.
pub fn block_key(scope: Scope, first: TxKey) -> [u8; BLOCK_KEY_BYTES] {
    let mut bytes = [0; BLOCK_KEY_BYTES];
    bytes[..4].copy_from_slice(&scope.0.to_be_bytes());
    bytes[4..].copy_from_slice(&first.to_bytes());
    bytes
}

/// Reads a key of `transactions`.
pub fn parse_block_key(key: &[u8; BLOCK_KEY_BYTES]) -> (Scope, TxKey) {
    let (scope, first) = key.split_first_chunk::<4>().expect("16 bytes hold 4");
    let first = first.try_into().expect("16 bytes less 4 are 12");
    (Scope(u32::from_be_bytes(*scope)), TxKey::from_bytes(first))
}

/// Where the transaction with this id is, if the id is a minted one and the transaction is where it was recorded.
///
/// A [minted id](TransactionId::mint) holds the key that the transaction was recorded under. Any 32 hex digits may be
/// somebody's id, so whoever follows this compares the id there; and a transaction has a row in `transaction_ids` if
/// and only if it lies elsewhere than this says.
pub fn key_within(id: &TransactionId) -> Option<TxKey> {
    id.minted_at().map(|(created_at, tie)| TxKey { created_at, tie: u32::from(tie) })
}

/// The roles that an agent has in a transaction, as the index keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles(pub u8);

impl Roles {
    pub const PAYER: Self = Self(1);
    pub const PROVIDER: Self = Self(2);

    pub fn both(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn include(self, role: Role) -> bool {
        let wanted = match role {
            Role::Payer => Self::PAYER,
            Role::Provider => Self::PROVIDER,
        };
        self.0 & wanted.0 != 0
    }
}

/// The key of `transaction_ids`: 32 lower-case hex digits, as minted ids are, take half the room.
pub fn id_key(id: &TransactionId) -> Vec<u8> {
    const TEXT: u8 = 0;
    const HEX: u8 = 1;
    let text = id.as_str().as_bytes();
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() == 32 {
        let mut packed = vec![HEX];
        packed.extend(text.chunks_exact(2).map_while(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)));
        if packed.len() == 17 {
            return packed;
        }
    }
    let mut plain = vec![TEXT];
    plain.extend_from_slice(text);
    plain
}

/// The key of `held`: the transaction's [`id_key`] behind its length, then the event.
pub fn held_key(id: &TransactionId, event_id: EventId) -> Vec<u8> {
    let mut key = held_prefix(id);
    key.extend_from_slice(event_id.as_bytes());
    key
}

/// What the keys of all held events of a transaction start with.
pub fn held_prefix(id: &TransactionId) -> Vec<u8> {
    let id = id_key(id);
    let length = u16::try_from(id.len()).unwrap_or(u16::MAX);
    let mut key = length.to_be_bytes().to_vec();
    key.extend_from_slice(&id);
    key
}

/// What `tallies` counts.
#[derive(Debug, Clone, Copy)]
pub enum Tally<'a> {
    /// [`BalanceV1`](super::records::BalanceV1) of an agent in a currency.
    Balance {
        /// The agent's number.
        agent: u32,
        /// The currency.
        currency: &'a Currency,
    },
    /// How many transactions were created in a minute for a provider and a capability, a little-endian `u32`.
    Load(LoadKey<'a>),
}

/// One provider's work of one kind in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoadKey<'a> {
    /// Minutes since 1970.
    pub minute: u32,
    /// The provider's number.
    pub provider: u32,
    /// The capability.
    pub capability: &'a str,
}

const BALANCE: u8 = 1;
const LOAD: u8 = 2;

impl Tally<'_> {
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Balance { agent, currency } => {
                let mut bytes = Self::balances_of(agent);
                bytes.extend_from_slice(currency.as_str().as_bytes());
                bytes
            }
            Self::Load(LoadKey { minute, provider, capability }) => {
                let mut bytes = Self::loads_from(minute);
                bytes.extend_from_slice(&provider.to_be_bytes());
                bytes.extend_from_slice(capability.as_bytes());
                bytes
            }
        }
    }

    /// What the keys of all balances of an agent start with.
    pub fn balances_of(agent: u32) -> Vec<u8> {
        let mut bytes = vec![BALANCE];
        bytes.extend_from_slice(&agent.to_be_bytes());
        bytes
    }

    /// What the keys of all loads of a minute start with.
    pub fn loads_from(minute: u32) -> Vec<u8> {
        let mut bytes = vec![LOAD];
        bytes.extend_from_slice(&minute.to_be_bytes());
        bytes
    }

    /// Reads a key back; `None` for one that this version does not write.
    pub fn parse(bytes: &[u8]) -> Option<ParsedTally<'_>> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            BALANCE => {
                let (agent, currency) = rest.split_first_chunk::<4>()?;
                let currency = std::str::from_utf8(currency).ok()?;
                Some(ParsedTally::Balance { agent: u32::from_be_bytes(*agent), currency })
            }
            LOAD => {
                let (minute, rest) = rest.split_first_chunk::<4>()?;
                let (provider, capability) = rest.split_first_chunk::<4>()?;
                Some(ParsedTally::Load(LoadKey {
                    minute: u32::from_be_bytes(*minute),
                    provider: u32::from_be_bytes(*provider),
                    capability: std::str::from_utf8(capability).ok()?,
                }))
            }
            _ => None,
        }
    }
}

/// A key of `tallies` that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParsedTally<'a> {
    Balance { agent: u32, currency: &'a str },
    Load(LoadKey<'a>),
}

/// The minute of a time, as load is counted.
pub fn minute_of(time: Timestamp) -> u32 {
    u32::try_from(time.as_micros().div_euclid(60_000_000)).unwrap_or(0)
}

/// The key of `receipts`: 16 bytes of the key's blake3 hash.
pub fn receipt_key(idempotency_key: &str) -> [u8; 16] {
    let hash = blake3::hash(idempotency_key.as_bytes());
    *hash.as_bytes().first_chunk().expect("32 bytes hold 16")
}

/// The key of `receipt_ages`: when, then which.
pub fn receipt_age_key(at: StoreAge, receipt: &[u8; 16]) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&at.0.to_be_bytes());
    bytes[8..].copy_from_slice(receipt);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_times_do_and_read_back() {
        let times = [i64::MIN / 2, -5, -1, 0, 1, 1_795_391_431_767_109];
        let keys: Vec<TxKey> = times
            .iter()
            .flat_map(|micros| [0, 1, u32::MAX].map(|tie| TxKey { created_at: Timestamp::from_micros(*micros), tie }))
            .collect();
        assert!(keys.windows(2).all(|pair| pair[0].to_bytes() < pair[1].to_bytes()));
        for key in keys {
            assert_eq!(TxKey::from_bytes(&key.to_bytes()), key);
            assert_eq!(parse_block_key(&block_key(Scope::of_agent(7), key)), (Scope::of_agent(7), key));
            assert!(key.next().is_none_or(|next| key < next));
        }
    }

    #[test]
    fn packed_and_plain_ids_never_meet() {
        let hex = "0197a1b2c3d4e5f60718293a4b5c6d7e";
        let ids = [hex, &hex.to_uppercase(), "0197a1b2c3d4e5f6", "tx-1", &"g".repeat(32)];
        let keys: std::collections::HashSet<Vec<u8>> =
            ids.iter().map(|id| id_key(&TransactionId::from_stored(id))).collect();
        assert_eq!(keys.len(), ids.len());
        assert_eq!(id_key(&TransactionId::from_stored(hex)).len(), 17);
    }

    #[test]
    fn tally_keys_read_back() {
        let euro = Currency::from_stored("EUR");
        let load = LoadKey { minute: 29_000_000, provider: 3, capability: "sql" };
        for (tally, expected) in [
            (Tally::Balance { agent: 9, currency: &euro }, ParsedTally::Balance { agent: 9, currency: "EUR" }),
            (Tally::Load(load), ParsedTally::Load(load)),
        ] {
            assert_eq!(Tally::parse(&tally.to_bytes()), Some(expected));
        }
    }
}
