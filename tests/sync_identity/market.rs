//! Sidecars that reach both central systems through links that can be cut, slowed down and led to another server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::common::central::{Decision, decide, record, register, sink, view, wait_until_central};
use super::common::http::{Client, Request};
use super::common::postgres::{Postgres, psql};
use super::common::proxy::{Link, Proxy};
use super::common::redis::RedisServer;
use super::common::sidecar::{Home, PATIENCE, Setup, Sidecar, wait_for};

/// Central systems, and the links to them.
pub struct Market {
    pub postgres: Postgres,
    pub redis: RedisServer,
    pub to_postgres: Proxy,
    pub to_redis: Proxy,
}

impl Market {
    pub fn open() -> Self {
        // Nothing else than the tests' own transactions takes numbers.
        let postgres = Postgres::start_with(&["autovacuum=off"]);
        postgres.database("market");
        let redis = RedisServer::start();
        let (to_postgres, to_redis) = (Proxy::before(postgres.port()), Proxy::before(redis.port()));
        Self { postgres, redis, to_postgres, to_redis }
    }

    /// How to start a sidecar here.
    pub fn setup(&self, home: &Home) -> Setup {
        self.setup_through(home, self.to_postgres.port())
    }

    /// The same with another way to PostgreSQL.
    pub fn setup_through(&self, home: &Home, postgres: u16) -> Setup {
        let redis = format!("redis://127.0.0.1:{}", self.to_redis.port());
        home.setup().flags(&["--redis-url", &redis, "--postgres-url", &market_at(postgres)])
    }

    /// A sidecar for the payer and one for the provider, each with its agent.
    pub fn parties(&self) -> Parties {
        let (payer_home, provider_home) = (Home::new(), Home::new());
        let (payer, provider) = (self.setup(&payer_home).start(), self.setup(&provider_home).start());
        register(&mut payer.client(), "genesis", "planning");
        register(&mut provider.client(), "thon", "sql");
        Parties { payer_home, provider_home, payer, provider, all: Vec::new() }
    }

    pub fn sql(&self, sql: &str) -> String {
        psql(&market_at(self.to_postgres.port()), sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Everything that the ledger's tables hold, but for what PostgreSQL numbers by itself; nothing while there is no
    /// answer.
    pub fn picture(&self) -> Option<String> {
        let tables = "SELECT t::text FROM marketplace_transactions t ORDER BY transaction_id";
        let events =
            "SELECT event_id, transaction_id, payer_agent, provider_agent, recorded_by, facts, kind, round, payload,
                             occurred_at, node_id, node_seq, hash
                        FROM marketplace_transaction_events ORDER BY event_id";
        let ask = |sql| psql(&market_at(self.to_postgres.port()), sql).ok();
        Some(format!("{}\n\n{}", ask(tables)?, ask(events)?))
    }

    /// Waits until central looks as it did.
    #[track_caller]
    pub fn looks_as(&self, before: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.picture();
            if now.as_deref() == Some(before) {
                return;
            }
            let shown = now.unwrap_or_default();
            assert!(Instant::now() < deadline, "central holds\n{shown}\nand held\n{before}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The document of an agent in Redis.
    pub fn document(&self, agent_id: &str) -> Option<Value> {
        let text: Option<String> = self.redis.command(&["GET", &format!("agent:{agent_id}")]);
        text.map(|text| serde_json::from_str(&text).expect("we write JSON"))
    }
}

/// The database behind a port.
pub fn market_at(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/market")
}

/// Two sidecars that trade with each other, and the ids of their transactions.
pub struct Parties {
    pub payer_home: Home,
    pub provider_home: Home,
    pub payer: Sidecar,
    pub provider: Sidecar,
    pub all: Vec<String>,
}

impl Parties {
    /// Some transactions of all kinds, each seen by both and central.
    #[track_caller]
    pub fn trade(&mut self, name: &str) {
        let (mut at_payer, mut at_provider) = (self.payer.client(), self.provider.client());
        let mut ids = Vec::new();
        for one in Decision::ALL {
            let id = format!("{name}-{one:?}");
            record(&mut at_payer, &id, "genesis", "thon");
            wait_for("the transaction at the provider", || view(&mut at_provider, &id));
            if one != Decision::Nothing {
                assert_eq!(decide(&mut at_provider, &id, &one), 200, "{id}");
            }
            ids.push(id);
        }
        self.all.extend(ids);
        self.agree();
    }

    /// Waits until both show the same of all transactions, all of it central.
    #[track_caller]
    pub fn agree(&self) {
        for sidecar in [&self.payer, &self.provider] {
            wait_until_central(sidecar);
        }
        agree(&[&self.payer, &self.provider], &self.all);
    }

    /// Does something to the centre while nobody writes, and waits until it looks as before. Finality must go back where
    /// there is something to be delivered again, and all must be told.
    #[track_caller]
    pub fn heal(&mut self, market: &mut Market, lost: &str, note: &str, what: impl FnOnce(&mut Market)) {
        let before = market.picture().expect("PostgreSQL answers");
        // Slow enough for every step to be seen.
        market.to_postgres.set(Link::Slow(Duration::from_millis(20)));
        let samplers = [&self.payer, &self.provider].map(|sidecar| Sampler::of(sidecar.client(), lost));
        what(market);
        for (sampler, sidecar) in samplers.into_iter().zip([&self.payer, &self.provider]) {
            wait_for("finality to go back", || sampler.is_local.load(Ordering::SeqCst).then_some(()));
            wait_for("the fault to be told", || told(sidecar, "postgres", note));
            wait_for("it to be logged", || sidecar.log().contains(note).then_some(()));
        }
        market.to_postgres.set(Link::Up);
        market.looks_as(&before);
        self.agree();
        self.trade("after");
        assert!(market.picture().is_some_and(|after| after.len() > before.len()));
    }

    /// Both files are sound.
    #[track_caller]
    pub fn end(self) {
        self.payer.stop();
        self.provider.stop();
        self.payer_home.assert_sound();
        self.provider_home.assert_sound();
    }
}

/// A sink's note with these words.
pub fn told(sidecar: &Sidecar, name: &str, words: &str) -> Option<()> {
    let notes = sink(sidecar, name)["notes"].clone();
    let notes = notes.as_array()?;
    notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains(words))).then_some(())
}

/// Waits until all show the same of these transactions, events and all, each of it central.
#[track_caller]
pub fn agree(sidecars: &[&Sidecar], ids: &[String]) {
    let deadline = Instant::now() + PATIENCE;
    for id in ids {
        loop {
            let views: Vec<_> = sidecars.iter().map(|sidecar| shown(&mut sidecar.client(), id)).collect();
            if views.iter().all(|view| view["finality"] == "central" && *view == views[0]) {
                break;
            }
            assert!(Instant::now() < deadline, "no agreement about {id}: {views:#?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A transaction with its events; null where there is none.
fn shown(client: &mut Client, id: &str) -> Value {
    let Some(mut shown) = view(client, id) else { return Value::Null };
    shown["events"] = client.get(format!("/v1/transactions/{id}/events")).expect(200).json();
    shown
}

/// Looks at a transaction again and again, for what does not stay for long.
struct Sampler {
    is_local: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Sampler {
    fn of(mut client: Client, id: &str) -> Self {
        let (is_local, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let sampler = Self { is_local: Arc::clone(&is_local), ended: Arc::clone(&ended) };
        let id = id.to_owned();
        thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) && !is_local.load(Ordering::SeqCst) {
                let looked = client.try_call(&Request::get(format!("/v1/transactions/{id}")));
                if looked.is_ok_and(|answer| answer.json()["finality"] == "local") {
                    is_local.store(true, Ordering::SeqCst);
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        sampler
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}
