//! A Redis, a PostgreSQL behind a link that can be cut, and two sidecars; and whether they all say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::common::central::Central;
use super::common::http::Client;
use super::common::postgres::Postgres;
use super::common::proxy::Proxy;
use super::common::redis::RedisServer;
use super::common::sidecar::{Home, Setup, Sidecar};
use super::traders::{Deed, PARTIES, Traders};

/// A fault shows so soon.
pub const VISIBLE_WITHIN: Duration = Duration::from_secs(10);
/// Work that goes on makes a state other than live for moments.
const NOT_LIVE_FOR: Duration = Duration::from_secs(2);
/// And heals so soon once its cause is gone.
pub const HEALED_WITHIN: Duration = Duration::from_secs(30);
/// The database that sidecars share.
pub const DATABASE: &str = "market";

/// All of it.
pub struct Market {
    pub redis: RedisServer,
    pub postgres: Postgres,
    /// What lies between the sidecars and PostgreSQL.
    pub link: Proxy,
    pub traders: Arc<Traders>,
    homes: [Home; 2],
    setups: [Setup; 2],
    sidecars: [Option<Sidecar>; 2],
    node_ids: [String; 2],
}

impl Market {
    pub fn open() -> Self {
        // Found early, so that a deadlock is one and not a lock that took too long.
        let central =
            Central { redis: RedisServer::start(), postgres: Postgres::start_with(&["deadlock_timeout=100ms"]) };
        central.postgres.database(DATABASE);
        let link = Proxy::before(central.postgres.port());
        let flags = [
            "--redis-url".to_owned(),
            central.redis.url(),
            "--postgres-url".to_owned(),
            format!("postgres://postgres@127.0.0.1:{}/{DATABASE}", link.port()),
        ];
        let homes = [Home::new(), Home::new()];
        let setups = homes.each_ref().map(|home| home.setup().flags(&flags.each_ref().map(String::as_str)));
        let sidecars = setups.each_ref().map(Setup::start);
        let traders = Arc::new(Traders::new(sidecars.each_ref().map(|sidecar| sidecar.address)));
        let node_ids = sidecars.each_ref().map(|sidecar| {
            let status = sidecar.client().get("/v1/status").expect(200).json();
            status["node_id"].as_str().expect("a node has an id").to_owned()
        });
        traders.open();
        let sidecars = sidecars.map(Some);
        let Central { redis, postgres } = central;
        Self { redis, postgres, link, traders, homes, setups, sidecars, node_ids }
    }

    pub fn sidecar(&self, side: usize) -> &Sidecar {
        self.sidecars[side].as_ref().expect("it runs")
    }

    /// `kill -9`.
    pub fn kill(&mut self, side: usize) {
        self.sidecars[side].take().expect("it runs").kill();
    }

    pub fn start_again(&mut self, side: usize) {
        let sidecar = self.setups[side].start();
        self.traders.moved(side, sidecar.address);
        self.sidecars[side] = Some(sidecar);
    }

    pub fn sql(&self, sql: &str) -> String {
        self.postgres.sql(DATABASE, sql)
    }

    fn clients(&self) -> [Client; 2] {
        [0, 1].map(|side| self.sidecar(side).client())
    }

    /// What both sidecars say of a sink.
    pub fn sinks(&self, name: &str) -> [Value; 2] {
        self.clients().map(|mut client| client.get("/v1/status").expect(200).json()["sinks"][name].clone())
    }

    /// Waits until both sidecars have shown that something is wrong with a sink: an error, or, for longer than work goes
    /// on in between, a state that is not live.
    ///
    /// # Errors
    /// What they showed instead when it was time.
    pub fn shows(&self, name: &str) -> Result<(), String> {
        let deadline = Instant::now() + VISIBLE_WITHIN;
        let (mut shown, mut live_at) = ([false; 2], [Instant::now(); 2]);
        loop {
            let sinks = self.sinks(name);
            for ((shown, live_at), sink) in shown.iter_mut().zip(&mut live_at).zip(&sinks) {
                if sink["state"] == "live" {
                    *live_at = Instant::now();
                }
                *shown |= sink["last_error"].is_string() || live_at.elapsed() >= NOT_LIVE_FOR;
            }
            if shown == [true; 2] {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("not shown within {VISIBLE_WITHIN:?}: {sinks:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until central is exactly what was acknowledged, and both sidecars agree with it; how long that took.
    ///
    /// # Errors
    /// What still differs when it was time.
    pub fn heals(&self) -> Result<Duration, String> {
        let begun = Instant::now();
        loop {
            // Looked at once more after the last wait: a machine that is busy is no fault of the market's.
            let is_over = begun.elapsed() >= HEALED_WITHIN;
            let Some(difference) = self.difference() else {
                self.traders.account.lock().expect("no holder panics").touched.clear();
                return Ok(begun.elapsed());
            };
            if is_over {
                let sinks = ["redis", "postgres"].map(|name| self.sinks(name));
                return Err(format!("not healed within {HEALED_WITHIN:?}: {difference}\n{sinks:?}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What central, the sidecars and the account do not agree about, of all that changed since they last did.
    pub fn difference(&self) -> Option<String> {
        self.backlog().or_else(|| {
            let account = self.traders.account.lock().expect("no holder panics");
            let touched: Vec<&str> = account.touched.iter().map(String::as_str).collect();
            self.ledger_differs(&account.deeds, &touched).or_else(|| self.registry_differs(&account.agents))
        })
    }

    /// What is still on its way.
    fn backlog(&self) -> Option<String> {
        for name in ["redis", "postgres"] {
            for (sink, party) in self.sinks(name).iter().zip(PARTIES) {
                if sink["state"] != "live" || sink["backlog"] != 0 || sink["parked"] != 0 {
                    return Some(format!("{name} at {party}'s sidecar: {sink}"));
                }
            }
        }
        None
    }

    /// How PostgreSQL, the sidecars and the account differ about the ledger: in sum, and event by event of `looked_at`.
    fn ledger_differs(&self, deeds: &BTreeMap<String, BTreeSet<Deed>>, looked_at: &[&str]) -> Option<String> {
        let sums = self.sql(
            "SELECT (SELECT count(*) FROM marketplace_transactions), count(*), count(DISTINCT event_id)
               FROM marketplace_transaction_events",
        );
        let events: usize = deeds.values().map(BTreeSet::len).sum();
        let expected = format!("{}|{events}|{events}", deeds.len());
        if sums != expected {
            return Some(format!("rows, events and their ids are {sums}, and should be {expected}"));
        }
        let list = looked_at.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(",");
        let rows = self.json_rows(&format!(
            "SELECT json_build_object('transaction_id', transaction_id, 'status', status, 'amount', amount::text,
                    'evidence', evidence, 'events', (SELECT json_agg(event_id) FROM marketplace_transaction_events e
                                                      WHERE e.transaction_id = t.transaction_id))
               FROM marketplace_transactions t WHERE transaction_id IN ({})",
            if list.is_empty() { "''" } else { &list }
        ));
        if rows.len() != looked_at.len() {
            return Some(format!("{} of {} rows are there", rows.len(), looked_at.len()));
        }
        let mut clients = self.clients();
        for row in rows {
            let id = row["transaction_id"].as_str().expect("a row has an id").to_owned();
            let mut shown = Vec::new();
            for (client, party) in clients.iter_mut().zip(PARTIES) {
                let seen = client.get(format!("/v1/transactions/{id}"));
                let events = client.get(format!("/v1/transactions/{id}/events"));
                if (seen.status, events.status) != (200, 200) {
                    return Some(format!("{party}'s sidecar does not know {id}"));
                }
                let (seen, events) = (seen.json(), events.json());
                let items = events["items"].as_array().expect("a list").clone();
                if let Some(difference) = self.row_differs(&row, &seen, &items, &deeds[&id]) {
                    return Some(format!(
                        "{id} at {party}'s sidecar: {difference}\nrow: {row}\nshown: {seen}\n{events}"
                    ));
                }
                shown.push((seen, events));
            }
            if shown[0] != shown[1] {
                return Some(format!("{id} is one thing here and another there: {shown:#?}"));
            }
        }
        None
    }

    fn row_differs(&self, row: &Value, seen: &Value, events: &[Value], deeds: &BTreeSet<Deed>) -> Option<String> {
        for field in ["status", "evidence"] {
            if row[field] != seen[field] {
                return Some(format!("{field} differs"));
            }
        }
        let amount = |value: &Value| {
            let text = value.as_str().expect("amounts are texts").to_owned();
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        };
        if amount(&row["amount"]) != amount(&seen["amount"]) {
            return Some("the amount differs".to_owned());
        }
        if seen["finality"] != "central" {
            return Some("its newest event is not known to be central".to_owned());
        }
        let ids = |events: Vec<&Value>| -> BTreeSet<String> { events.into_iter().map(Value::to_string).collect() };
        let central = row["events"].as_array().expect("a list");
        if ids(central.iter().collect()) != ids(events.iter().map(|event| &event["event_id"]).collect()) {
            return Some("the events differ".to_owned());
        }
        let told: Vec<Deed> = events.iter().map(|event| self.deed(event)).collect();
        if told.len() != deeds.len() || !told.iter().all(|deed| deeds.contains(deed)) {
            return Some(format!("acknowledged was {deeds:?}, and this is {told:?}"));
        }
        None
    }

    /// An event as the account knows it.
    fn deed(&self, event: &Value) -> Deed {
        let payload = &event["payload"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match event["kind"].as_str() {
            Some("recorded") => ("recorded", text(&payload["context"]["word"])),
            Some("settled") => {
                let author = self.node_ids.iter().position(|node_id| event["node_id"] == **node_id);
                ("settled", author.map_or("somebody", |author| PARTIES[author]).to_owned())
            }
            Some("cancelled") => ("cancelled", text(&payload["reason"])),
            Some("disputed") => ("disputed", text(&payload["evidence"][0])),
            Some("evidence_added") => ("evidence_added", text(&payload["evidence"][0])),
            Some("resolved") => ("resolved", text(&payload["note"])),
            _ => ("unknown", event.to_string()),
        }
    }

    /// How Redis, the sidecars and the account differ about the registry.
    fn registry_differs(&self, agents: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
        let strings =
            |words: &[&str]| -> BTreeSet<String> { self.redis.command::<Vec<String>>(words).into_iter().collect() };
        let live: BTreeSet<String> = agents.keys().cloned().collect();
        let documents: BTreeSet<String> =
            strings(&["KEYS", "agent:*"]).iter().map(|key| key["agent:".len()..].to_owned()).collect();
        let all = strings(&["SMEMBERS", "agents:all"]);
        for (what, held) in [("documents", documents), ("agents:all", all)] {
            if held != live {
                let differ: Vec<_> = held.symmetric_difference(&live).collect();
                return Some(format!("{what} of Redis differ in {differ:?}"));
            }
        }
        let mut sets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (agent_id, capabilities) in agents {
            for capability in capabilities {
                sets.entry(format!("agents:capabilities:{capability}")).or_default().insert(agent_id.clone());
            }
            // It may have gone since it was listed.
            let Some(document) = self.redis.command::<Option<String>>(&["GET", &format!("agent:{agent_id}")]) else {
                return Some(format!("Redis's document of {agent_id} is gone"));
            };
            let document: Value = serde_json::from_str(&document).expect("a document is JSON");
            if document["capabilities"] != serde_json::json!(capabilities) {
                return Some(format!("Redis's document differs from {capabilities:?}: {document}"));
            }
        }
        let held: BTreeMap<String, BTreeSet<String>> = strings(&["KEYS", "agents:capabilities:*"])
            .into_iter()
            .map(|key| (key.clone(), strings(&["SMEMBERS", &key])))
            .collect();
        if held != sets {
            return Some(format!("index sets of Redis are {held:?}, and should be {sets:?}"));
        }
        for (client, party) in self.clients().iter_mut().zip(PARTIES) {
            let answer = client.get("/v1/agents?limit=1000").expect(200).json();
            let shown: BTreeMap<String, Value> = answer["items"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|profile| (profile["agent_id"].as_str().unwrap_or_default().to_owned(), profile.clone()))
                .collect();
            for (agent_id, capabilities) in agents {
                let Some(profile) = shown.get(agent_id) else {
                    return Some(format!("{party}'s sidecar does not know {agent_id}"));
                };
                if profile["capabilities"] != serde_json::json!(capabilities) || profile["lease"]["state"] != "live" {
                    return Some(format!("{party}'s sidecar should show {capabilities:?}: {profile}"));
                }
            }
            if shown.len() != agents.len() {
                let more: Vec<_> = shown.keys().filter(|agent_id| !agents.contains_key(*agent_id)).collect();
                return Some(format!("{party}'s sidecar shows {more:?}, which are gone"));
            }
        }
        None
    }

    fn json_rows(&self, sql: &str) -> Vec<Value> {
        self.sql(sql).lines().map(|line| serde_json::from_str(line).expect("rows of JSON")).collect()
    }

    /// Looks at everything once more, and ends it: both files are sound, and neither node became another.
    pub fn close(mut self) -> Result<(), String> {
        {
            let account = self.traders.account.lock().expect("no holder panics");
            let all: Vec<&str> = account.deeds.keys().map(String::as_str).collect();
            if let Some(difference) = self.ledger_differs(&account.deeds, &all) {
                return Err(difference);
            }
        }
        for (side, client) in self.clients().iter_mut().enumerate() {
            let status = client.get("/v1/status").expect(200).json();
            if status["node_id"] != *self.node_ids[side] {
                return Err(format!("the node of {} became another: {status}", PARTIES[side]));
            }
        }
        for sidecar in &mut self.sidecars {
            sidecar.take().expect("it runs").stop();
        }
        self.homes.iter().for_each(Home::assert_sound);
        Ok(())
    }

    /// How often PostgreSQL had each of these to say, as a sign that faults were what they are called.
    pub fn complaints(&self) -> String {
        let log = self.postgres.log();
        let count = |words: &str| format!("{words}: {}", log.matches(words).count());
        [
            "deadlock detected",
            "due to lock timeout",
            "due to statement timeout",
            "due to user request",
            "in a read-only transaction",
            "due to administrator command",
            "database system was interrupted",
        ]
        .map(count)
        .join(", ")
    }

    /// What a sidecar logged since it was started.
    pub fn log(&self, side: usize) -> String {
        self.sidecars[side].as_ref().map(Sidecar::log).unwrap_or_default()
    }
}
