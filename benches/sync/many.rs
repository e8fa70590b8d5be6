//! A fleet that returns after an outage: whether all of it gets in, how soon, and what it asks when it is idle.

use std::thread;
use std::time::Duration;

use crate::common::postgres::Postgres;
use crate::common::redis::RedisServer;
use crate::fleet::Fleet;
use crate::node::Urls;
use crate::report::process::worked;
use crate::report::{Bound, Report};

/// The fleet whose cost is worked out from this one's.
const LARGE: f64 = 10_000.0;
/// How long until all must be in.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run(quick: bool, report: &mut Report) {
    let (nodes, rows) = if quick { (50, 80) } else { (200, 200) };
    // Nodes are busy for a minute after traffic and then look less and less often, up to every half minute.
    let (rest, window) = if quick { (75, 30) } else { (150, 60) };
    let mut redis = RedisServer::start();
    let mut postgres = Postgres::start_with(&[
        "max_connections=300",
        "shared_preload_libraries=pg_stat_statements",
        "max_wal_size=4GB",
    ]);
    postgres.database("market");
    postgres.sql("postgres", "CREATE EXTENSION pg_stat_statements");
    let urls = Urls { redis: Some(redis.url()), postgres: Some(postgres.url("market")) };
    redis.kill();
    postgres.stop();
    let fleet = Fleet::offline(nodes, rows, &urls);
    redis.start_again();
    postgres.resume();
    let settled = fleet.settle(PATIENCE);
    match settled {
        Some(took) => eprintln!("{nodes} nodes with {rows} rows each: all in after {took:.1?}"),
        None => eprintln!("{} of {nodes} nodes are not settled after {PATIENCE:?}", fleet.unsettled()),
    }
    let number = |sql: &str| -> f64 { postgres.sql("market", sql).parse().expect("a number") };
    let rows = number("SELECT count(*) FROM marketplace_transactions");
    let events = number("SELECT count(*) FROM marketplace_transaction_events");
    let agents: f64 = redis.command(&["SCARD", "agents:all"]);
    let missing = (fleet.transactions() as f64 - rows).abs()
        + (fleet.events() as f64 - events).abs()
        + (nodes as f64 - agents).abs()
        + fleet.unsettled() as f64;
    report.figure("rows, events, agents and nodes that differ from what was acknowledged", missing, Bound::AtMost(0.0));

    asked(&postgres, &redis, nodes, "just after", Duration::from_secs(10));
    // Sessions count for themselves first, and tell a little later.
    let deadlocks = number("SELECT deadlocks FROM pg_stat_database WHERE datname = 'market'");
    report.figure(format!("deadlocks, {nodes} nodes after an outage"), deadlocks, Bound::AtMost(0.0));
    thread::sleep(Duration::from_secs(rest));
    asked(&postgres, &redis, nodes, "idle", Duration::from_secs(window));
}

/// What the servers have done so far.
#[derive(Debug, Clone, Copy)]
struct Done {
    queries: f64,
    connections: f64,
    commands: f64,
    postgres: Duration,
    redis: Duration,
}

impl Done {
    fn read(postgres: &Postgres, redis: &RedisServer) -> Self {
        let number = |sql: &str| -> f64 { postgres.sql("postgres", sql).parse().expect("a number") };
        let stats: String = redis.command(&["INFO", "stats"]);
        let commands = stats.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        let of_market = "WHERE datname = 'market'";
        let queries = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid";
        Self {
            queries: number(&format!("{queries} {of_market}")),
            connections: number(&format!("SELECT sessions FROM pg_stat_database {of_market}")),
            commands: commands.and_then(|count| count.trim().parse().ok()).expect("Redis counts its commands"),
            postgres: worked(postmaster(postgres)),
            redis: worked(redis.pid()),
        }
    }
}

fn postmaster(postgres: &Postgres) -> u32 {
    let file = std::fs::read_to_string(postgres.data().join("postmaster.pid")).expect("it runs");
    file.lines().next().and_then(|line| line.trim().parse().ok()).expect("its first line is the process")
}

/// Says what the nodes ask in a while, and what that comes to in a large fleet.
fn asked(postgres: &Postgres, redis: &RedisServer, nodes: usize, when: &str, window: Duration) {
    let before = Done::read(postgres, redis);
    thread::sleep(window);
    let after = Done::read(postgres, redis);
    let seconds = window.as_secs_f64();
    let (queries, connections) = (after.queries - before.queries, after.connections - before.connections);
    let commands = after.commands - before.commands;
    let each = |count: f64| count / nodes as f64 / seconds * 60.0;
    eprintln!(
        "{when}: {:.1} queries, {:.1} connections and {:.1} commands per node and minute",
        each(queries),
        each(connections),
        each(commands)
    );
    let large = |count: f64| count / seconds * LARGE / nodes as f64;
    let share = |work: Duration| large(work.as_secs_f64());
    eprintln!(
        "{when}, {LARGE} nodes like these: {:.0} queries, {:.0} connections and {:.0} commands a second, which keep {:.2} \
         processors busy with PostgreSQL and {:.2} with Redis",
        large(queries),
        large(connections),
        large(commands),
        share(after.postgres - before.postgres),
        share(after.redis - before.redis)
    );
}
