//! A database, and nodes that share it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tradepost::engine::replica::SinkState;

use super::common::postgres::Postgres;
use super::common::sidecar::wait_for;
use super::node::Node;

/// How often the nodes here look for what older clients did.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

pub struct Market {
    pub server: Postgres,
    pub url: String,
    home: TempDir,
}

impl Market {
    /// An empty database.
    pub fn open() -> Self {
        Self::on(Postgres::start(), "UTF8")
    }

    /// With its tables, which nobody follows yet. What it is asked can be read in its log.
    pub fn with_tables() -> Self {
        Self::with_tables_in("UTF8")
    }

    /// The same in another encoding.
    pub fn with_tables_in(encoding: &str) -> Self {
        let market = Self::on(Postgres::start_with(&["log_statement=all"]), encoding);
        let first = Node::start(&market.file("first"), "mira", &market.url);
        wait_for("the tables", || (first.state() == SinkState::Live).then_some(()));
        market
    }

    fn on(server: Postgres, encoding: &str) -> Self {
        server.sql("postgres", &format!("CREATE DATABASE market ENCODING '{encoding}' TEMPLATE template0"));
        let url = server.url("market");
        Self { server, url, home: tempfile::tempdir().expect("there is room") }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(format!("{name}.redb"))
    }

    /// The payer's node and the provider's.
    pub fn parties(&self) -> (Node, Node) {
        let a = Node::start(&self.file("a"), "genesis", &self.url);
        let b = Node::start(&self.file("b"), "thon", &self.url);
        (a, b)
    }

    /// The provider's node, which looks for what older clients did.
    pub fn sweeping_provider(&self) -> Node {
        let mut node = Node::open(&self.file("b"), "thon");
        node.replicate(&self.url, Some(SWEEP_EVERY));
        node
    }

    pub fn sql(&self, sql: &str) -> String {
        self.server.sql("market", sql)
    }

    /// Writes a row as an older client does; `status` and `evidence` are SQL.
    pub fn write_row(&self, id: &str, status: &str, evidence: &str) {
        self.sql(&format!(
            "INSERT INTO marketplace_transactions VALUES ('{id}', '2024-01-02 03:04:05', 'old', 'thon', 'python', 1,
                                                          'USD', {status}, '{{}}', {evidence})"
        ));
    }

    /// What a transaction's row says: status and evidence.
    pub fn row(&self, id: &str) -> String {
        self.sql(&format!("SELECT status, evidence FROM marketplace_transactions WHERE transaction_id = '{id}'"))
    }

    /// All event ids that are central.
    pub fn events(&self) -> BTreeSet<String> {
        self.sql("SELECT event_id FROM marketplace_transaction_events").lines().map(ToOwned::to_owned).collect()
    }

    /// How often what older clients did to the provider's transactions was looked for.
    pub fn sweeps(&self) -> usize {
        let log = self.server.log();
        log.lines().filter(|line| line.contains("$1 = '{thon}'") && line.contains("$3 = '5000'")).count()
    }
}
