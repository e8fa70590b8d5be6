//! The rival: what recording a transaction keeps here, in SQLite, by one thread that has nothing else to do.
//!
//! The content is the same: the log with its chain of hashes, the transaction, the unique id, both parties' lists, the
//! list of what is open, and the balances, loads and totals, written once for each batch. It is laid out as SQLite wants
//! it, in rows and indexes, while ours shares rows among entries. WAL with `synchronous=FULL` promises the same as a
//! durable commit of redb.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::common::Numbers;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA cache_size = -32768;
    CREATE TABLE ledger_log (node_seq INTEGER PRIMARY KEY, hash BLOB NOT NULL, event BLOB NOT NULL);
    CREATE TABLE transactions (
        key INTEGER PRIMARY KEY, transaction_id BLOB NOT NULL UNIQUE, created_at INTEGER NOT NULL,
        payer INTEGER NOT NULL, provider INTEGER NOT NULL, status INTEGER NOT NULL, updated_at INTEGER NOT NULL,
        settled_at INTEGER, has_evidence INTEGER NOT NULL, events BLOB NOT NULL
    );
    CREATE INDEX by_payer ON transactions (payer, key);
    CREATE INDEX by_provider ON transactions (provider, key);
    CREATE INDEX open ON transactions (key) WHERE status IN (0, 3);
    CREATE TABLE tallies (name BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
";

pub struct Ledger {
    connection: Connection,
    seq: i64,
    hash: [u8; 32],
}

impl Ledger {
    pub fn create(path: &Path) -> Self {
        let connection = Connection::open(path).expect("SQLite opens a new file");
        connection.execute_batch(SCHEMA).expect("the schema is SQLite's");
        Self { connection, seq: 0, hash: [0; 32] }
    }

    /// Transactions per second, `batch` in a commit.
    pub fn record(&mut self, batch: usize, agents: usize, time: Duration) -> f64 {
        let mut numbers = Numbers::seeded(self.seq.unsigned_abs() + 1);
        let began = Instant::now();
        let mut done = 0;
        while began.elapsed() < time {
            self.record_batch(batch, agents, &mut numbers).expect("SQLite takes the batch");
            done += batch;
        }
        done as f64 / began.elapsed().as_secs_f64()
    }

    /// Records so many transactions in one commit.
    pub fn record_batch(&mut self, batch: usize, agents: usize, numbers: &mut Numbers) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        let mut tallies: HashMap<[u8; 9], u64> = HashMap::new();
        for _ in 0..batch {
            self.seq += 1;
            let (payer, provider) = (numbers.below(agents) as i64, numbers.below(agents) as i64);
            let now = 1_795_000_000_000_000 + self.seq;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&now.to_be_bytes());
            id[8..].copy_from_slice(&(numbers.below(usize::MAX) as u64).to_be_bytes());
            let facts = format!("agent-{payer:06} agent-{provider:06} capability-00 18.5 USD {{}}");
            let facts_hash = blake3::hash(facts.as_bytes());
            let mut event = Vec::with_capacity(192);
            event.extend_from_slice(&self.seq.to_le_bytes());
            event.extend_from_slice(&id);
            event.extend_from_slice(&id);
            event.extend_from_slice(facts_hash.as_bytes());
            event.extend_from_slice(facts.as_bytes());
            event.resize(event.len().max(170), 0);
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.hash);
            hasher.update(&event);
            self.hash = *hasher.finalize().as_bytes();
            transaction
                .prepare_cached("INSERT INTO ledger_log VALUES (?1, ?2, ?3)")?
                .execute(params![self.seq, self.hash, event])?;
            transaction
                .prepare_cached("INSERT INTO transactions VALUES (?1, ?2, ?3, ?4, ?5, 0, ?3, NULL, 0, ?6)")?
                .execute(params![self.seq, id, now, payer, provider, self.seq.to_le_bytes()])?;
            for (kind, agent) in [(1, payer), (1, provider), (2, provider)] {
                *tallies.entry(tally_name(kind, agent)).or_default() += 1;
            }
        }
        tallies.insert(tally_name(0, 0), 1);
        for (name, more) in tallies {
            // Read, then written, as balances are: a sum of several decimals is not one that SQL could add up.
            let stored: Option<Vec<u8>> = transaction
                .prepare_cached("SELECT value FROM tallies WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
                .map(Some)
                .or_else(|error| if error == rusqlite::Error::QueryReturnedNoRows { Ok(None) } else { Err(error) })?;
            let mut value = stored.unwrap_or_else(|| vec![0; 32]);
            let sum = u64::from_le_bytes(*value.first_chunk().expect("32 bytes hold 8")) + more;
            value[..8].copy_from_slice(&sum.to_le_bytes());
            transaction.prepare_cached("REPLACE INTO tallies VALUES (?1, ?2)")?.execute(params![name, value])?;
        }
        transaction.commit()
    }
}

fn tally_name(kind: u8, agent: i64) -> [u8; 9] {
    let mut name = [kind; 9];
    name[1..].copy_from_slice(&agent.to_be_bytes());
    name
}
