//! The two central systems of a fleet: a real Redis whose time is the fleet's, and a real PostgreSQL. They can be looked
//! at, and put back to what they held before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use crate::common::postgres::Postgres;
use crate::common::redis::RedisServer;

/// Longer than anything takes that is waited for here.
const PATIENCE: Duration = Duration::from_secs(30);
const TABLES: [&str; 3] = ["marketplace_transactions", "marketplace_transaction_events", "marketplace_nodes"];

/// Lets time pass for everything that expires.
const PASS: &str = "
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then
    left = left - tonumber(ARGV[1])
    if left <= 0 then redis.call('DEL', key) else redis.call('PEXPIRE', key, left) end
  end
end";

/// Empties a table, if there is one. To truncate it means new files, which takes longer than to delete what little it
/// holds; so that is done only when what was deleted has become much.
const EMPTY: &str = "
DO $$ BEGIN
  IF pg_relation_size('RELATION') < 1000000 THEN DELETE FROM RELATION; ELSE TRUNCATE RELATION; END IF;
  EXCEPTION WHEN undefined_table THEN NULL;
END $$";

/// Servers that many fleets use, one after the other.
pub struct Servers {
    directory: TempDir,
    _redis: RedisServer,
    own: OwnLine,
    postgres: Postgres,
}

/// Our own connection to PostgreSQL, for all fleets: to make one takes longer than all that a fleet has to ask. It has a
/// thread of its own, so that it outlives the fleets' runtimes.
struct OwnLine {
    client: Client,
    _thread: JoinHandle<()>,
}

impl OwnLine {
    fn connect(config: tokio_postgres::Config) -> Self {
        let (connected, client) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be built").block_on(async {
                let (client, connection) = config.connect(NoTls).await.expect("it listens");
                connected.send(client).expect("it is waited for");
                // It ends with the client, or with the server.
                connection.await.ok();
            });
        });
        Self { client: client.recv().expect("it connects"), _thread: thread }
    }
}

/// What Redis held: keys, what they hold, and how many milliseconds they live yet (-1: for ever).
pub type RedisCopy = Vec<(Vec<u8>, Vec<u8>, i64)>;

/// A transaction as its row shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub status: String,
    pub evidence: Vec<String>,
    pub payer: String,
    pub provider: String,
}

/// An event as PostgreSQL holds it: of which transaction, and who recorded that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CentralEvent {
    pub transaction_id: String,
    pub recorded_by: [u8; 16],
}

/// A directory of a fleet, in memory if there is such a place: a file system is slow to make and delete thousands.
pub fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory } else { &std::env::temp_dir() };
    tempfile::Builder::new().prefix("tp-").tempdir_in(place).expect("there is room for a directory")
}

impl Servers {
    pub fn start() -> Self {
        let directory = directory();
        let socket = directory.path().join("redis");
        let arguments = ["--save", "", "--appendonly", "no", "--unixsocket", &socket.display().to_string()];
        let redis = RedisServer::start_with(&arguments);
        // Nothing else than the fleet takes numbers of transactions.
        let postgres = Postgres::start_with(&["autovacuum=off", "synchronous_commit=off", "full_page_writes=off"]);
        postgres.database("market");
        let mut config = tokio_postgres::Config::new();
        config.host_path(postgres.directory()).port(postgres.port()).user("postgres").dbname("market");
        config.application_name("centre");
        let own = OwnLine::connect(config);
        Self { directory, _redis: redis, own, postgres }
    }

    /// Where PostgreSQL listens.
    pub fn postgres_socket(&self) -> PathBuf {
        self.postgres.directory().join(format!(".s.PGSQL.{}", self.postgres.port()))
    }

    /// Where Redis listens.
    pub fn redis_socket(&self) -> PathBuf {
        self.directory.path().join("redis")
    }
}

/// Our own way to them.
pub struct Centre<'a> {
    redis: redis::Connection,
    postgres: &'a Client,
}

impl<'a> Centre<'a> {
    /// Empties them for a new fleet.
    pub async fn new(servers: &'a Servers) -> Self {
        let url = format!("unix://{}", servers.redis_socket().display());
        let mut redis = redis::Client::open(url).expect("our own URL").get_connection().expect("it listens");
        redis::cmd("FLUSHALL").exec(&mut redis).expect("it is ours");
        let centre = Self { redis, postgres: &servers.own.client };
        for table in TABLES {
            centre.empty(table).await;
        }
        centre
    }

    /// Time passes.
    pub fn pass(&mut self, by: Duration) {
        let mut script = redis::cmd("EVAL");
        script.arg(PASS).arg(0).arg(by.as_millis() as u64);
        script.exec(&mut self.redis).expect("it is our own script");
    }

    /// Whatever Redis had to say to anybody so far, it has said.
    pub fn said_all(&mut self) {
        redis::cmd("PING").exec(&mut self.redis).expect("it answers");
    }

    /// Waits until PostgreSQL has noticed which connections of nodes do not stand any more.
    pub async fn noticed(&self, standing: impl Fn() -> usize) {
        let deadline = Instant::now() + PATIENCE;
        // What the view says of it without the view, which takes long to plan.
        let sql = "SELECT count(*) FROM pg_stat_get_activity(NULL) WHERE application_name = 'tradepost'";
        loop {
            let seen: i64 = self.postgres.query_one(sql, &[]).await.expect("it answers").get(0);
            if seen <= standing() as i64 {
                return;
            }
            assert!(Instant::now() < deadline, "PostgreSQL keeps {seen} connections, of which {} stand", standing());
            tokio::task::yield_now().await;
            // The server's process needs the processor more than we do.
            thread::sleep(Duration::from_micros(200));
        }
    }

    async fn sql(&self, sql: &str) {
        self.postgres.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Empties a table, if there is one.
    async fn empty(&self, table: &str) {
        self.sql(&EMPTY.replace("RELATION", table)).await;
    }

    /// Takes a backup of PostgreSQL, in place of the last one.
    pub async fn back_up_postgres(&self) {
        for table in TABLES {
            let backup = format!("{table}_backup");
            self.sql(&format!("CREATE TABLE IF NOT EXISTS {backup} (LIKE {table})")).await;
            self.empty(&backup).await;
            self.sql(&format!("INSERT INTO {backup} TABLE {table}")).await;
        }
    }

    /// Puts PostgreSQL back to its backup. With `renumbered`, as a dump does it: what is restored was written by a new
    /// transaction.
    pub async fn restore_postgres(&self, renumbered: bool) {
        let xid = if renumbered { "pg_current_xact_id()" } else { "xid" };
        let columns = "event_id, transaction_id, payer_agent, provider_agent, recorded_by, facts, kind, round, payload, \
                       occurred_at, node_id, node_seq, hash";
        self.sql(&format!(
            "BEGIN; DELETE FROM {0}; DELETE FROM {1}; DELETE FROM {2};
             INSERT INTO {0} SELECT * FROM {0}_backup; INSERT INTO {2} SELECT * FROM {2}_backup;
             INSERT INTO {1} ({columns}, xid) SELECT {columns}, {xid} FROM {1}_backup ORDER BY id; COMMIT",
            TABLES[0], TABLES[1], TABLES[2]
        ))
        .await;
    }

    /// What Redis holds.
    pub fn copy_of_redis(&mut self) -> RedisCopy {
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut self.redis).expect("it answers");
        let mut copy = Vec::new();
        for key in keys {
            let dump: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query(&mut self.redis).expect("it answers");
            let left: i64 = redis::cmd("PTTL").arg(&key).query(&mut self.redis).expect("it answers");
            // It may have expired in between.
            copy.extend(dump.map(|dump| (key, dump, left)));
        }
        copy.sort();
        copy
    }

    /// Puts Redis back to what it held some time ago.
    pub fn restore_redis(&mut self, copy: &RedisCopy, ago: Duration) {
        self.empty_redis();
        let ago = ago.as_millis() as i64;
        for (key, dump, left) in copy {
            let left = if *left < 0 { 0 } else { (left - ago).max(-1) };
            if left >= 0 {
                let mut restore = redis::cmd("RESTORE");
                restore.arg(key).arg(left).arg(dump.as_slice());
                restore.exec(&mut self.redis).expect("it is its own dump");
            }
        }
    }

    /// Redis loses everything.
    pub fn empty_redis(&mut self) {
        redis::cmd("FLUSHALL").exec(&mut self.redis).expect("it is ours");
    }

    /// Whether an agent has a document, and whether it is in the set of all.
    pub fn document(&mut self, agent_id: &str) -> (Option<String>, bool) {
        let document = redis::cmd("GET").arg(format!("agent:{agent_id}")).query(&mut self.redis);
        let listed = redis::cmd("SISMEMBER").arg("agents:all").arg(agent_id).query(&mut self.redis);
        (document.expect("it answers"), listed.expect("it answers"))
    }

    /// All events in PostgreSQL, by their ids.
    pub async fn events(&self) -> BTreeMap<[u8; 16], CentralEvent> {
        let sql = "SELECT event_id, transaction_id, recorded_by FROM marketplace_transaction_events";
        let rows = self.postgres.query(sql, &[]).await.expect("it answers");
        let event = |row: &tokio_postgres::Row| {
            let recorded_by = row.get::<_, Uuid>(2).into_bytes();
            (row.get::<_, Uuid>(0).into_bytes(), CentralEvent { transaction_id: row.get(1), recorded_by })
        };
        rows.iter().map(event).collect()
    }

    /// The ids of all events in PostgreSQL; none before there are tables.
    pub async fn event_ids(&self) -> BTreeSet<[u8; 16]> {
        if self.is_bare().await { BTreeSet::new() } else { self.events().await.into_keys().collect() }
    }

    /// Whether no node has made its tables yet.
    pub async fn is_bare(&self) -> bool {
        let sql = "SELECT to_regclass('marketplace_nodes') IS NULL";
        self.postgres.query_one(sql, &[]).await.expect("it answers").get(0)
    }

    /// All rows of transactions.
    pub async fn rows(&self) -> BTreeMap<String, Row> {
        let sql = "SELECT transaction_id, status, evidence::text, payer_agent, provider_agent
                     FROM marketplace_transactions";
        let rows = self.postgres.query(sql, &[]).await.expect("it answers");
        let row = |row: &tokio_postgres::Row| {
            let evidence: Option<&str> = row.get(2);
            let evidence = evidence.map_or_else(Vec::new, |text| serde_json::from_str(text).expect("a list of texts"));
            (row.get(0), Row { status: row.get(1), evidence, payer: row.get(3), provider: row.get(4) })
        };
        rows.iter().map(row).collect()
    }
}
