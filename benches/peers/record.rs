//! A durable record over HTTP, against a durable write of the peers: as many connections, each of which waits for its
//! answer before it asks again.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use tradepost::sync::postgres::schema::PARTS;

use crate::callers::{Call, Command, Doing, EtcdUser, GatewayUser, PostgresUser, RedisUser, User};
use crate::common::{Bound, Numbers, compare, load, note};
use crate::results::Results;
use crate::servers;
use crate::servers_of_tests::sidecar::Home;
use crate::sqlite::Ledger;

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
/// Those that have bounds.
const JUDGED: usize = 64;
const MOST: usize = 256;
const AGENTS: usize = 1_000;
/// Of the parts that make the central tables: `marketplace_transactions` and its indexes.
const TRANSACTIONS: usize = 5;

const PEERS: [(&str, Option<Bound>); 5] = [
    ("Redis SET, appendfsync always", Some(Bound::AtLeast(0.6))),
    ("etcd put over HTTP", Some(Bound::AtLeast(3.0))),
    ("etcd put over gRPC", None),
    ("PostgreSQL INSERT", Some(Bound::AtLeast(2.0))),
    ("SQLite in process", None),
];

pub fn run(quick: bool, results: &mut Results) {
    let (rounds, round) = if quick { (5, Duration::from_millis(100)) } else { (11, Duration::from_millis(250)) };
    let runtime = load::runtime();
    let home = Home::new();
    let sidecar = home.setup().start();
    let redis = servers::durable_redis();
    let etcd = servers::Etcd::start();
    let postgres = servers::durable_postgres(MOST);
    let url = postgres.database("peers");
    for part in &PARTS[..TRANSACTIONS] {
        postgres.sql("peers", part.sql);
    }
    let sqlite = Mutex::new(Ledger::create(&home.path().join("ledger.sqlite")));
    let mut setters = runtime.block_on(RedisUser::connect_many(redis.port(), MOST, Command::Set));
    let mut gateway = runtime.block_on(GatewayUser::connect_many(etcd.address, MOST));
    let mut putters = runtime.block_on(EtcdUser::connect_many(etcd.address, MOST, Call::Put));
    let mut inserters = runtime.block_on(PostgresUser::connect_many(&url, MOST, AGENTS));

    for connections in CONNECTIONS {
        let mut measured = Vec::new();
        // The first round warms everybody up.
        for number in 0..=rounds {
            let users = User::connect_many(sidecar.address, connections, Doing::Record, AGENTS, number);
            let mut users = runtime.block_on(users);
            let rates = [
                load::run(&runtime, &mut users, connections, round).per_second,
                load::run(&runtime, &mut setters, connections, round).per_second,
                load::run(&runtime, &mut gateway, connections, round).per_second,
                load::run(&runtime, &mut putters, connections, round).per_second,
                load::run(&runtime, &mut inserters, connections, round).per_second,
                in_process(&sqlite, connections, round),
            ];
            if number > 0 {
                measured.push(rates);
            }
        }
        let (rates, ratios) = compare(&measured);
        let on = if connections == 1 { "1 connection".to_owned() } else { format!("{connections} connections") };
        let names = ["record over HTTP"].into_iter().chain(PEERS.map(|(name, _)| name));
        for (name, rate) in names.zip(rates) {
            note(&format!("{name}, {on}"), rate as usize, Duration::from_secs(1));
        }
        let ours = format!("record over HTTP, {on}");
        for ((peer, bound), ratio) in PEERS.into_iter().zip(&ratios[1..]) {
            if connections == JUDGED {
                results.against(&ours, peer, *ratio, bound);
            } else {
                results.report.shown(format!("{ours} / {peer}"), *ratio);
            }
        }
    }
    sidecar.stop();
}

/// Transactions per second of so many threads, each of which waits for its turn and commits one.
fn in_process(sqlite: &Mutex<Ledger>, threads: usize, time: Duration) -> f64 {
    let began = Instant::now();
    let done: u32 = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|number| {
                scope.spawn(move || {
                    let mut numbers = Numbers::seeded(number as u64 + 1);
                    let mut done = 0;
                    while began.elapsed() < time {
                        let mut ledger = sqlite.lock().expect("no holder panics");
                        ledger.record_batch(1, AGENTS, &mut numbers).expect("SQLite takes it");
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread ends")).sum()
    });
    f64::from(done) / began.elapsed().as_secs_f64()
}
