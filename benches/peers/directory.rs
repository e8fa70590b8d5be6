//! Looking up an agent, and searching by capability and price, in process: against Redis with the documents and sets that
//! a sidecar keeps there, and against SQLite with an index made for the search.

use std::path::Path;
use std::time::{Duration, Instant};

use redis::{Connection, Pipeline};
use rusqlite::params;
use serde::Deserialize;
use tradepost::Engine;
use tradepost::domain::ranking::SearchQuery;
use tradepost::domain::{Agent, Money};
use tradepost::sync::redis::{document, keys};

use crate::common::{self, Bound, Numbers, agent_id, capability, median, note, p99, seconds};
use crate::results::Results;
use crate::servers;

const TOP: usize = 10;
const MAX_COST: &str = "48.5";
const PIPELINED: usize = 1_000;

pub fn run(quick: bool, results: &mut Results) {
    let sizes = if quick { [5_000, 20_000] } else { [10_000, 100_000] };
    for (agents, p99_micros) in sizes.into_iter().zip([50.0, 200.0]) {
        measure(agents, p99_micros, quick, results);
    }
}

fn measure(agents: usize, p99_micros: f64, quick: bool, results: &mut Results) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (engine, _) = common::open_file(directory.path());
    common::register_agents(&engine, agents);
    let told = common::local_agents(&engine);
    let server = servers::forgetful_redis();
    let mut redis = server.connection();
    fill_redis(&mut redis, &told);
    let sqlite = fill_sqlite(&directory.path().join("agents.sqlite"), &told);
    drop(told);

    let (rounds, fewer) = if quick { (3, 4) } else { (5, 1) };
    let (mut gets, mut searches): ([Vec<f64>; 3], [Vec<f64>; 3]) = Default::default();
    let mut took = Vec::new();
    for round in 0..=rounds {
        let mut numbers = Numbers::seeded(round + 1);
        let mut each = |count: usize, visit: &mut dyn FnMut(usize)| {
            let count = count / fewer;
            seconds(|| (0..count).for_each(|_| visit(numbers.below(agents)))) / count as f64
        };
        let got = [
            each(40_000, &mut |agent| {
                engine.agent(&agent_id(agent)).expect("it is there");
            }),
            each(4_000, &mut |agent| assert!(!redis_get(&mut redis, agent).is_empty())),
            each(20_000, &mut |agent| assert!(!sqlite_get(&sqlite, agent).is_empty())),
        ];
        let found = [
            each(8_000, &mut |agent| {
                let began = Instant::now();
                search(&engine, agent);
                took.push(began.elapsed());
            }),
            each(40, &mut |agent| assert_eq!(redis_search(&mut redis, agent).len(), TOP)),
            each(4_000, &mut |agent| assert_eq!(sqlite_search(&sqlite, agent).len(), TOP)),
        ];
        // The first round warms everybody up.
        if round == 0 {
            took.clear();
            continue;
        }
        gets.iter_mut().zip(got).for_each(|(costs, cost)| costs.push(cost));
        searches.iter_mut().zip(found).for_each(|(costs, cost)| costs.push(cost));
    }

    let (get, found) = (gets.map(median), searches.map(median));
    let names = ["in process", "Redis", "SQLite"];
    for (what, costs) in [("get an agent", get), ("search", found)] {
        for (name, cost) in names.iter().zip(costs) {
            note(&format!("{what}, {agents} agents, {name}"), 1, Duration::from_secs_f64(cost));
        }
    }
    let ours = format!("get an agent in process, {agents} agents");
    results.against(&ours, "Redis GET", get[1] / get[0], None);
    results.against(&ours, "SQLite, by its primary key", get[2] / get[0], None);
    let ours = format!("search in process, the best {TOP} of {agents} agents");
    results.against(&ours, "Redis SINTER + MGET", found[1] / found[0], Some(Bound::AtLeast(20.0)));
    results.against(&ours, "SQLite, by a covering index", found[2] / found[0], None);
    let what = format!("p99 of a search in process, {agents} agents, µs");
    results.report.figure(what, p99(&mut took).as_secs_f64() * 1e6, Bound::AtMost(p99_micros));
    engine.close();
}

fn search(engine: &Engine, agent: usize) {
    let max_cost = Some(Money::parse(MAX_COST).expect("a decimal"));
    let query = SearchQuery { capabilities: vec![capability(agent)], max_cost, ..SearchQuery::default() };
    assert_eq!(engine.search(&query, TOP).expect("a search is answered").len(), TOP);
}

fn fill_redis(redis: &mut Connection, agents: &[Agent]) {
    for chunk in agents.chunks(PIPELINED) {
        let mut pipeline = Pipeline::new();
        for agent in chunk {
            let id = agent.agent_id.as_str();
            pipeline.set(keys::document(id), document::write(agent)).ignore();
            pipeline.sadd(keys::ALL, id).ignore();
            for capability in agent.capabilities.iter() {
                pipeline.sadd(format!("{}{capability}", keys::CAPABILITIES), id).ignore();
            }
        }
        pipeline.exec(redis).expect("Redis answers");
    }
}

fn redis_get(redis: &mut Connection, agent: usize) -> Vec<u8> {
    let key = keys::document(agent_id(agent).as_str());
    redis::cmd("GET").arg(key).query(redis).expect("Redis answers")
}

/// What of a document the search needs.
#[derive(Deserialize)]
struct Offer<'a> {
    agent_id: &'a str,
    pricing: Pricing,
    reputation: Reputation,
}

#[derive(Deserialize)]
struct Pricing {
    cost_per_task: f64,
}

#[derive(Deserialize)]
struct Reputation {
    score: f64,
}

/// The documents of the agents with the capability that are registered, then those that cost no more, the best first.
fn redis_search(redis: &mut Connection, agent: usize) -> Vec<String> {
    let with_capability = format!("{}{}", keys::CAPABILITIES, capability(agent));
    let ids: Vec<String> =
        redis::cmd("SINTER").arg(with_capability).arg(keys::ALL).query(redis).expect("Redis answers");
    let keys: Vec<String> = ids.iter().map(|id| keys::document(id)).collect();
    let documents: Vec<Option<String>> = redis::cmd("MGET").arg(keys).query(redis).expect("Redis answers");
    let max_cost: f64 = MAX_COST.parse().expect("a number");
    let mut offers: Vec<(Offer<'_>, &String)> = documents
        .iter()
        .flatten()
        .map(|document| (serde_json::from_str::<Offer<'_>>(document).expect("a document"), document))
        .filter(|(offer, _)| offer.pricing.cost_per_task <= max_cost)
        .collect();
    offers.sort_by(|(a, _), (b, _)| {
        let by_cost = a.pricing.cost_per_task.total_cmp(&b.pricing.cost_per_task);
        by_cost.then(b.reputation.score.total_cmp(&a.reputation.score)).then(a.agent_id.cmp(b.agent_id))
    });
    offers.into_iter().take(TOP).map(|(_, document)| document.clone()).collect()
}

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA cache_size = -262144;
    PRAGMA mmap_size = 1073741824;
    CREATE TABLE agents (agent_id TEXT PRIMARY KEY, expires_at INTEGER NOT NULL, document TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE offers (
        capability TEXT, cost INTEGER, worse REAL, availability INTEGER, agent_id TEXT,
        PRIMARY KEY (capability, cost, worse, availability, agent_id)
    ) WITHOUT ROWID;
";

fn fill_sqlite(path: &Path, agents: &[Agent]) -> rusqlite::Connection {
    let mut connection = rusqlite::Connection::open(path).expect("SQLite opens a new file");
    connection.execute_batch(SCHEMA).expect("the schema is SQLite's");
    let transaction = connection.transaction().expect("nobody else writes");
    for agent in agents {
        let id = agent.agent_id.as_str();
        let cost: f64 = agent.cost_per_task.to_string().parse().expect("a number");
        let insert = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            transaction.prepare_cached(sql).and_then(|mut insert| insert.execute(values)).expect("the row is new");
        };
        insert("INSERT INTO agents VALUES (?1, ?2, ?3)", params![id, i64::MAX, document::write(agent)]);
        for capability in agent.capabilities.iter() {
            let thousandths = (cost * 1_000.0) as i64;
            insert("INSERT INTO offers VALUES (?1, ?2, 0.0, 0, ?3)", params![capability.as_str(), thousandths, id]);
        }
    }
    transaction.commit().expect("SQLite commits");
    connection
}

fn sqlite_get(sqlite: &rusqlite::Connection, agent: usize) -> String {
    let mut select = sqlite.prepare_cached("SELECT document FROM agents WHERE agent_id = ?1").expect("a table");
    select.query_row([agent_id(agent).as_str()], |row| row.get(0)).expect("it is there")
}

fn sqlite_search(sqlite: &rusqlite::Connection, agent: usize) -> Vec<String> {
    let sql = "SELECT document FROM offers JOIN agents USING (agent_id)
        WHERE capability = ?1 AND cost <= 48500 AND expires_at > 1795000000000000
        ORDER BY cost, worse, availability, agent_id LIMIT 10";
    let mut select = sqlite.prepare_cached(sql).expect("the tables are there");
    let rows = select.query_map([capability(agent).as_str()], |row| row.get(0)).expect("SQLite answers");
    rows.collect::<rusqlite::Result<_>>().expect("SQLite answers")
}
