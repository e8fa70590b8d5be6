//! What is done to the market, class by class. A fault that lasts is held until both sidecars show it, and is a failure
//! if they do not in time.

use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use super::common::postgres::psql;
use super::common::proxy::{Link, Moment};
use super::common::sidecar::wait_for;
use super::market::{DATABASE, Market};

/// One class of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    PostgresRestarts,
    PostgresIsAway,
    PostgresFreezes,
    PostgresIsReadOnly,
    BackendsAreTerminated,
    StatementsAreCancelled,
    StatementsTakeTooLong,
    AnotherWriterDeadlocks,
    RowsAreLocked,
    TransactionsAreLocked,
    NodesAreLocked,
    LinkIsDown,
    LinkIsSilent,
    CutBeforeCommit,
    CutWithinCommit,
    CutAfterCommit,
    RedisRestarts,
    RedisIsAway,
    RedisRestartsEmpty,
    RedisIsFlushed,
    RedisFreezes,
    RedisIsAReplica,
    RedisLacksReplicas,
    RedisIsOutOfMemory,
    RedisForgetsScripts,
    RedisCutsClients,
    SidecarIsKilled,
    SidecarIsKilledAfterCommit,
}

/// How a fault ends that lasts.
type End = Box<dyn FnOnce(&mut Market)>;

impl Fault {
    pub const ALL: [Self; 28] = [
        Self::PostgresRestarts,
        Self::PostgresIsAway,
        Self::PostgresFreezes,
        Self::PostgresIsReadOnly,
        Self::BackendsAreTerminated,
        Self::StatementsAreCancelled,
        Self::StatementsTakeTooLong,
        Self::AnotherWriterDeadlocks,
        Self::RowsAreLocked,
        Self::TransactionsAreLocked,
        Self::NodesAreLocked,
        Self::LinkIsDown,
        Self::LinkIsSilent,
        Self::CutBeforeCommit,
        Self::CutWithinCommit,
        Self::CutAfterCommit,
        Self::RedisRestarts,
        Self::RedisIsAway,
        Self::RedisRestartsEmpty,
        Self::RedisIsFlushed,
        Self::RedisFreezes,
        Self::RedisIsAReplica,
        Self::RedisLacksReplicas,
        Self::RedisIsOutOfMemory,
        Self::RedisForgetsScripts,
        Self::RedisCutsClients,
        Self::SidecarIsKilled,
        Self::SidecarIsKilledAfterCommit,
    ];

    /// Begins the fault, and, if it lasts, has both sidecars show it. What ends it is returned; until then both trade.
    pub fn strike(self, market: &mut Market, random: &mut StdRng) -> (End, Result<(), String>) {
        let over: End = Box::new(|_| ());
        match self {
            Self::PostgresRestarts => {
                market.postgres.crash_and_restart();
                (over, Ok(()))
            }
            Self::PostgresIsAway => {
                market.postgres.crash();
                (Box::new(|market| market.postgres.launch()), market.shows("postgres"))
            }
            Self::PostgresFreezes => {
                market.postgres.freeze();
                (Box::new(|market| market.postgres.thaw()), market.shows("postgres"))
            }
            Self::PostgresIsReadOnly => {
                read_only(market, true);
                (Box::new(|market| read_only(market, false)), market.shows("postgres"))
            }
            Self::BackendsAreTerminated => {
                for _ in 0..random.random_range(1..=4) {
                    signal_backends(market, "pg_terminate_backend");
                    pause(random, 0..400);
                }
                (over, Ok(()))
            }
            Self::StatementsAreCancelled => {
                // So short that without it none would ever be met.
                linger(market, 0.2);
                let cancelled = complaints(market, "due to user request");
                for _ in 0..random.random_range(20..200) {
                    signal_backends(market, "pg_cancel_backend");
                    pause(random, 0..30);
                }
                let met = complaints(market, "due to user request") > cancelled;
                let met = if met { Ok(()) } else { Err("no statement was met".to_owned()) };
                (Box::new(|market| linger(market, 0.0)), met)
            }
            Self::StatementsTakeTooLong => {
                linger(market, 60.0);
                // What is within it at the end has to run into its own limit.
                (Box::new(|market| linger(market, 0.0)), market.shows("postgres"))
            }
            Self::AnotherWriterDeadlocks => {
                // While one batch lingers the next one grows, until it holds several of these rows.
                linger(market, 0.3);
                let deadlocks = complaints(market, "deadlock detected");
                for _ in 0..20 {
                    let rows = some_rows(market, random);
                    rows.iter().for_each(|id| add_to(market, id, random));
                    // From the last to the first, which is against the order that all sidecars keep.
                    let locks: String = rows.iter().rev().map(|id| lock_of(id) + "SELECT pg_sleep(0.2);").collect();
                    // It may be the one who has to give way.
                    drop(market.postgres.try_sql(DATABASE, &format!("BEGIN; {locks} ROLLBACK")));
                    if complaints(market, "deadlock detected") > deadlocks {
                        break;
                    }
                }
                let met = complaints(market, "deadlock detected") > deadlocks;
                let met = if met { Ok(()) } else { Err("no deadlock came about".to_owned()) };
                (Box::new(|market| linger(market, 0.0)), met)
            }
            Self::RowsAreLocked => {
                let rows = some_rows(market, random);
                let locks: String = rows.iter().map(|id| lock_of(id)).collect();
                let end = hold(market, &locks);
                rows.iter().for_each(|id| add_to(market, id, random));
                pause(random, 500..6_000);
                (end, Ok(()))
            }
            Self::TransactionsAreLocked => {
                let end = hold(market, "LOCK TABLE marketplace_transactions IN ACCESS EXCLUSIVE MODE;");
                (end, market.shows("postgres"))
            }
            Self::NodesAreLocked => {
                let end = hold(market, "LOCK TABLE marketplace_nodes IN EXCLUSIVE MODE;");
                (end, market.shows("postgres"))
            }
            Self::LinkIsDown => {
                market.link.set(Link::Cut);
                (Box::new(|market| market.link.set(Link::Up)), market.shows("postgres"))
            }
            Self::LinkIsSilent => {
                market.link.set(Link::Silent);
                (Box::new(|market| market.link.set(Link::Up)), market.shows("postgres"))
            }
            Self::CutBeforeCommit => cut(market, Moment::Before, random),
            Self::CutWithinCommit => cut(market, Moment::Within, random),
            Self::CutAfterCommit => cut(market, Moment::After, random),
            Self::RedisRestarts => {
                market.redis.restart();
                (over, Ok(()))
            }
            Self::RedisIsAway => {
                market.redis.kill();
                (Box::new(|market| market.redis.start_again()), market.shows("redis"))
            }
            Self::RedisRestartsEmpty => {
                market.redis.restart_empty();
                (over, Ok(()))
            }
            Self::RedisIsFlushed => {
                market.redis.flush_all();
                (over, Ok(()))
            }
            Self::RedisFreezes => {
                market.redis.pause();
                (Box::new(|market| market.redis.resume()), market.shows("redis"))
            }
            Self::RedisIsAReplica => {
                // Of a server that is not there: it keeps what it has, and takes nothing.
                market.redis.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
                (Box::new(|market| market.redis.promote()), market.shows("redis"))
            }
            Self::RedisLacksReplicas => {
                market.redis.command::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
                let end: End =
                    Box::new(|market| market.redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]));
                (end, market.shows("redis"))
            }
            Self::RedisIsOutOfMemory => {
                market.redis.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
                market.redis.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
                let end: End = Box::new(|market| market.redis.command(&["CONFIG", "SET", "maxmemory", "0"]));
                (end, market.shows("redis"))
            }
            Self::RedisForgetsScripts => {
                for _ in 0..random.random_range(1..10) {
                    market.redis.command::<()>(&["SCRIPT", "FLUSH"]);
                    pause(random, 0..100);
                }
                (over, Ok(()))
            }
            Self::RedisCutsClients => {
                for _ in 0..random.random_range(1..4) {
                    market.redis.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
                    market.redis.command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                    pause(random, 0..400);
                }
                (over, Ok(()))
            }
            Self::SidecarIsKilled => {
                for _ in 0..random.random_range(1..=3) {
                    let side = random.random_range(0..2);
                    market.kill(side);
                    pause(random, 0..300);
                    market.start_again(side);
                    pause(random, 0..500);
                }
                (over, Ok(()))
            }
            Self::SidecarIsKilledAfterCommit => {
                let side = random.random_range(0..2);
                let cuts = market.link.cuts();
                market.link.set(Link::CutAt { word: "COMMIT", moment: Moment::After });
                let shown = wait_until_cut(market, cuts);
                market.kill(side);
                market.link.set(Link::Up);
                pause(random, 0..300);
                market.start_again(side);
                (over, shown)
            }
        }
    }
}

fn pause(random: &mut StdRng, millis: std::ops::Range<u64>) {
    thread::sleep(Duration::from_millis(random.random_range(millis)));
}

/// As some hosts do to a server whose disk is nearly full.
fn read_only(market: &Market, is_read_only: bool) {
    let value = if is_read_only { "on" } else { "off" };
    market.postgres.sql("postgres", &format!("ALTER SYSTEM SET default_transaction_read_only = {value}"));
    market.postgres.sql("postgres", "SELECT pg_reload_conf()");
}

/// How often PostgreSQL has said this so far.
fn complaints(market: &Market, words: &str) -> usize {
    market.postgres.log().matches(words).count()
}

/// Makes every insertion of events take so long; the function alone changes after the first time, which needs no lock.
fn linger(market: &Market, seconds: f64) {
    market.sql(&format!(
        "CREATE OR REPLACE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$"
    ));
    if market.sql("SELECT count(*) FROM pg_trigger WHERE tgname = 'linger'") == "0" {
        market.sql("CREATE TRIGGER linger BEFORE INSERT ON marketplace_transaction_events EXECUTE FUNCTION linger()");
    }
}

/// Ends or cancels what runs for the sidecars.
fn signal_backends(market: &Market, function: &str) {
    let sql = format!(
        "SELECT {function}(pid) FROM pg_stat_activity WHERE datname = '{DATABASE}' AND pid <> pg_backend_pid()"
    );
    market.postgres.sql("postgres", &sql);
}

/// Breaks the link at a commit, a few times.
fn cut(market: &Market, moment: Moment, random: &mut StdRng) -> (End, Result<(), String>) {
    let mut shown = Ok(());
    for _ in 0..random.random_range(1..=3) {
        let cuts = market.link.cuts();
        market.link.set(Link::CutAt { word: "COMMIT", moment });
        shown = shown.and(wait_until_cut(market, cuts));
    }
    market.link.set(Link::Up);
    (Box::new(|_| ()), shown)
}

fn wait_until_cut(market: &Market, cuts: u64) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while market.link.cuts() == cuts {
        if Instant::now() >= deadline {
            return Err("nobody committed anything for 30 seconds".to_owned());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A few transactions that PostgreSQL holds, in the order in which sidecars lock them.
fn some_rows(market: &Market, random: &mut StdRng) -> Vec<String> {
    market.traders.record(random.random_range(0..2), random);
    let ids = wait_for("rows", || {
        let sql = "SELECT transaction_id FROM marketplace_transactions ORDER BY created_at DESC LIMIT 6";
        let ids: Vec<String> = market.sql(sql).lines().map(str::to_owned).collect();
        (!ids.is_empty()).then_some(ids)
    });
    let mut some: Vec<String> = ids.into_iter().take(random.random_range(2..=6)).collect();
    some.sort();
    some
}

fn lock_of(id: &str) -> String {
    format!("SELECT FROM marketplace_transactions WHERE transaction_id = '{id}' FOR UPDATE;")
}

/// Makes the sidecars write to a row.
fn add_to(market: &Market, id: &str, random: &mut StdRng) {
    let side = random.random_range(0..2);
    if !market.traders.dispute(side, id) {
        market.traders.add_evidence(side, id);
    }
}

/// Another session that holds locks until the end is called.
fn hold(market: &Market, locks: &str) -> End {
    let (url, sql) = (
        market.postgres.url(DATABASE),
        format!("BEGIN; {locks} SELECT set_config('application_name', 'holder', false); SELECT pg_sleep(300)"),
    );
    // It ends by being terminated.
    let holder = thread::spawn(move || drop(psql(&url, &sql)));
    let is_held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holder' AND query LIKE '%pg_sleep%'
                      AND wait_event = 'PgSleep'";
    wait_for("the locks", || (market.postgres.sql("postgres", is_held) == "1").then_some(()));
    Box::new(move |market| {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'";
        market.postgres.sql("postgres", end);
        holder.join().expect("psql can be waited for");
    })
}
