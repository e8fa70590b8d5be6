//! Both central systems, and sidecars around them.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tradepost::clock::{Clock, SystemClock};

use super::http::{Client, Request};
use super::postgres::Postgres;
use super::redis::RedisServer;
use super::sidecar::{Home, PATIENCE, Setup, Sidecar, wait_for};

/// The database that sidecars share.
const DATABASE: &str = "market";

/// A Redis and a PostgreSQL of one test.
pub struct Central {
    pub redis: RedisServer,
    pub postgres: Postgres,
}

impl Central {
    pub fn start() -> Self {
        let central = Self { redis: RedisServer::start(), postgres: Postgres::start() };
        central.postgres.database(DATABASE);
        central
    }

    /// What tells a sidecar of both.
    pub fn flags(&self) -> [String; 4] {
        let (redis, postgres) = (self.redis.url(), self.postgres.url(DATABASE));
        ["--redis-url".to_owned(), redis, "--postgres-url".to_owned(), postgres]
    }

    /// How to start a sidecar at a home that shares both.
    pub fn setup(&self, home: &Home) -> Setup {
        let flags = self.flags();
        home.setup().flags(&flags.each_ref().map(String::as_str))
    }

    pub fn sql(&self, sql: &str) -> String {
        self.postgres.sql(DATABASE, sql)
    }

    /// The status that the row of a transaction shows; nothing while there is no row, or no server.
    pub fn row_status(&self, transaction_id: &str) -> String {
        let sql = format!("SELECT status FROM marketplace_transactions WHERE transaction_id = '{transaction_id}'");
        self.postgres.try_sql(DATABASE, &sql).unwrap_or_default()
    }
}

/// A sink's part of a sidecar's status.
#[track_caller]
pub fn sink(sidecar: &Sidecar, name: &str) -> Value {
    sidecar.client().get("/v1/status").expect(200).json()["sinks"][name].clone()
}

/// Waits until a sidecar's sinks are live and have everything that it holds by now.
#[track_caller]
pub fn wait_until_central(sidecar: &Sidecar) {
    // A status is as of the end of a round: one from before what was just written says nothing about it.
    let begun = SystemClock::default().now().to_string();
    let has_everything = |sink: &Value| {
        sink["state"] == "live" && sink["backlog"] == 0 && sink["last_success_at"].as_str() > Some(begun.as_str())
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let sinks = ["redis", "postgres"].map(|name| sink(sidecar, name));
        if sinks.iter().all(has_everything) {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain for both sinks to have everything: {sinks:#?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a sidecar says that it is ready, central systems and all.
#[track_caller]
pub fn wait_until_ready(sidecar: &Sidecar) {
    wait_for("readiness", || (sidecar.client().get("/readyz?sync=1").status == 200).then_some(()));
}

/// Registers an agent that can do one thing.
#[track_caller]
pub fn register(client: &mut Client, agent_id: &str, capability: &str) -> Value {
    let body = json!({
        "agent_id": agent_id, "name": agent_id, "capabilities": [capability], "cost_per_task": "2.50", "ttl_seconds": 600,
    });
    client.post("/v1/agents", &body).expect(201).json()
}

/// Records a transaction.
#[track_caller]
pub fn record(client: &mut Client, transaction_id: &str, payer: &str, provider: &str) -> Value {
    let body = json!({
        "transaction_id": transaction_id, "payer_agent": payer, "provider_agent": provider, "capability": "sql",
        "amount": "2.50", "context": {"n": 1},
    });
    client.post("/v1/transactions", &body).expect(201).json()
}

/// A transaction as a sidecar shows it, without what differs from node to node.
pub fn view(client: &mut Client, transaction_id: &str) -> Option<Value> {
    let answer = client.get(format!("/v1/transactions/{transaction_id}"));
    (answer.status == 200).then(|| answer.json())
}

/// Decides about a transaction.
pub fn decide(client: &mut Client, transaction_id: &str, decision: &Decision) -> u16 {
    let (verb, body) = decision.request();
    client.call(&Request::post(format!("/v1/transactions/{transaction_id}/{verb}"), &body)).status
}

/// What a party may decide about a pending transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Nothing,
    Settle,
    Cancel,
    Dispute,
}

impl Decision {
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Settle, Self::Cancel, Self::Dispute];

    fn request(self) -> (&'static str, Value) {
        match self {
            Self::Nothing => ("", json!({})),
            Self::Settle => ("settle", json!({})),
            Self::Cancel => ("cancel", json!({"reason": "no longer needed"})),
            Self::Dispute => ("dispute", json!({"reason": "half is missing", "evidence": ["sha256:1"]})),
        }
    }
}
