//! A sidecar under a mixed load for a while, as its central systems come and go: what it holds of the machine stays what
//! it was. `TRADEPOST_SOAK_SECONDS` sets for how long.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use common::Stops;
use common::central::{Central, wait_until_central};
use common::http::{Client, Request};
use common::sidecar::{Home, Sidecar, wait_for};
use common::trials::Trials;
use tradepost::clock::{Clock, SystemClock};
use tradepost::domain::Timestamp;

const SECONDS: u64 = 30;
const CLIENTS: u64 = 8;
const AGENTS: u64 = 50;
/// What each client waits for between two requests.
const PAUSE: Duration = Duration::from_millis(20);
/// How far back an agent looks when it exports what it had to do with.
const RECENT_MICROS: i64 = 60_000_000;
const MIB: u64 = 1024 * 1024;
/// redb's cache of 32 MiB, and what the allocator keeps for each thread that has made a large answer.
const MOST_RESIDENT: u64 = 128 * MIB;
/// Connections that come and go.
const MOST_MORE_DESCRIPTORS: u64 = 16;
/// Threads for reads come as they are needed, up to 8.
const MOST_THREADS: u64 = 24;
/// What a transaction may take in the file, two events, indexes, copies and growth in advance included.
const BYTES_PER_TRANSACTION: u64 = 4 * 1024;

/// What a sidecar holds of the machine.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident: u64,
    descriptors: u64,
    threads: u64,
    file: u64,
    transactions: u64,
}

fn held(sidecar: &Sidecar, file: &PathBuf) -> Held {
    let pid = sidecar.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let number = |field: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux tells");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let store = sidecar.client().get("/v1/status").expect(200).json()["store"].clone();
    Held {
        resident: number("VmRSS:") * 1024,
        threads: number("Threads:"),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count() as u64,
        file: fs::metadata(file).expect("it is there").len(),
        transactions: store["transactions"].as_u64().expect("a number"),
    }
}

/// How long the export of everything takes, which is the longer the more there is.
fn export_everything(sidecar: &Sidecar) -> Duration {
    let began = Instant::now();
    sidecar.client().get("/v1/export/transactions").expect(200);
    began.elapsed()
}

/// Does one of the things that agents do; what it was. Requests that are refused are part of it; failures are not.
fn act(client: &mut Client, random: &mut StdRng, number: &AtomicU64) -> Request {
    let agent = |random: &mut StdRng| format!("agent-{}", random.random_range(0..AGENTS));
    let request = match random.random_range(0..100) {
        0..40 => {
            let id = format!("s{}", number.fetch_add(1, Ordering::Relaxed));
            let body = json!({
                "transaction_id": id, "payer_agent": agent(random), "provider_agent": agent(random), "capability": "sql",
                "amount": "1.25", "context": {"n": 1},
            });
            Request::post("/v1/transactions", &body)
        }
        40..60 => {
            let id = random.random_range(0..number.load(Ordering::Relaxed).max(1));
            let verb = ["settle", "cancel", "dispute"][random.random_range(0..3)];
            Request::new("POST", format!("/v1/transactions/s{id}/{verb}"))
        }
        60..66 => Request::new("POST", format!("/v1/agents/{}/heartbeat", agent(random))),
        66..70 => Request::get(format!("/v1/agents/{}", agent(random))),
        70..75 => {
            let body = json!({ "cost_per_task": random.random_range(1..100) });
            Request::new("PATCH", format!("/v1/agents/{}", agent(random))).json(&body)
        }
        75..80 => Request::post(format!("/v1/agents/{}/outcomes", agent(random)), &json!({"success": true})),
        80..88 => Request::get("/v1/discovery/search?capability=sql&limit=10"),
        88..92 => Request::get("/v1/discovery/least-loaded?capability=sql"),
        92..96 => Request::get(format!("/v1/transactions?agent={}&limit=50", agent(random))),
        96..98 => Request::get(format!("/v1/agents/{}/balance", agent(random))),
        98..99 => {
            let since = Timestamp::from_micros(SystemClock::default().now().as_micros() - RECENT_MICROS);
            Request::get(format!("/v1/export/transactions?agent={}&since={since}", agent(random)))
        }
        _ => Request::get("/metrics"),
    };
    let answer = client.call(&request);
    assert!(answer.status < 500, "{} {}: {}", request.method, request.target, answer.status);
    request
}

/// Takes the central systems away and brings them back, one after the other, in every manner.
fn flap(central: &mut Central, is_done: &AtomicBool) -> usize {
    let mut times = 0;
    while !is_done.load(Ordering::Relaxed) {
        match times % 6 {
            0 => central.postgres.crash_and_restart(),
            1 => central.redis.restart(),
            2 => {
                central.postgres.freeze();
                thread::sleep(Duration::from_millis(1_500));
                central.postgres.thaw();
            }
            3 => central.redis.restart_empty(),
            4 => {
                central.postgres.stop();
                thread::sleep(Duration::from_millis(1_500));
                central.postgres.resume();
            }
            _ => {
                central.redis.pause();
                thread::sleep(Duration::from_millis(1_500));
                central.redis.resume();
            }
        }
        times += 1;
        thread::sleep(Duration::from_secs(2));
    }
    times
}

#[test]
fn what_a_sidecar_holds_stays_what_it_was_while_central_systems_come_and_go() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let time = Duration::from_secs(given("TRADEPOST_SOAK_SECONDS").unwrap_or(SECONDS));
    let seed = given("TRADEPOST_SOAK_SEED").unwrap_or_else(rand::random);
    println!("TRADEPOST_SOAK_SECONDS={} TRADEPOST_SOAK_SEED={seed}", time.as_secs());
    let trials = Trials::of("soak", seed);
    let mut central = Central::start();
    let home = Home::new();
    let sidecar = central.setup(&home).start();
    let mut client = sidecar.client();
    for number in 0..AGENTS {
        let body = json!({
            "agent_id": format!("agent-{number}"), "name": "soaked", "capabilities": ["sql"], "cost_per_task": number,
        });
        client.post("/v1/agents", &body).expect(201);
    }
    wait_until_central(&sidecar);

    let (is_done, number, slowest, count) =
        (AtomicBool::new(false), AtomicU64::new(0), Mutex::new((Duration::ZERO, String::new())), AtomicU64::new(0));
    let (file, mut held_then, mut export) = (home.file(), Vec::new(), Duration::ZERO);
    let flaps = thread::scope(|scope| {
        // Also where what is held could not be looked at.
        let stops = Stops(&is_done);
        let flapping = scope.spawn(|| flap(&mut central, &is_done));
        for worker in 0..CLIENTS {
            let (is_done, number, slowest, count) = (&is_done, &number, &slowest, &count);
            let mut client = sidecar.client();
            let mut random = StdRng::seed_from_u64(seed ^ worker);
            scope.spawn(move || {
                while !is_done.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let request = act(&mut client, &mut random, number);
                    count.fetch_add(1, Ordering::Relaxed);
                    let took = (began.elapsed(), format!("{} {}", request.method, request.target));
                    let mut slowest = slowest.lock().expect("nobody panics with it");
                    if took.0 > slowest.0 {
                        *slowest = took;
                    }
                    drop(slowest);
                    // As many as a handful of busy agents make; the file would be all that is measured otherwise.
                    thread::sleep(PAUSE);
                }
            });
        }
        for _ in 0..10 {
            thread::sleep(time / 10);
            export = export_everything(&sidecar);
            held_then.push(held(&sidecar, &file));
        }
        drop(stops);
        flapping.join().expect("central systems come back")
    });
    trials.ran(flaps as u64);
    for then in &held_then {
        println!("{then:?}");
    }
    println!(
        "{} requests, {flaps} times a central system went away; the slowest request: {:?}; the last export of everything: \
         {export:?}",
        count.into_inner(),
        slowest.into_inner().expect("nobody panicked with it")
    );
    let (middle, end) = (held_then[4], held_then[9]);
    assert!(flaps > 3, "central systems came and went");
    assert!(end.resident <= MOST_RESIDENT, "memory grows");
    assert!(end.descriptors <= middle.descriptors + MOST_MORE_DESCRIPTORS, "descriptors leak");
    assert!(end.threads <= MOST_THREADS, "threads leak");
    assert!(end.file <= 8 * MIB + end.transactions * BYTES_PER_TRANSACTION, "the file grows by itself");

    // The connection of the beginning was idle for longer than those are kept.
    let mut client = sidecar.client();
    wait_for("both sinks", || {
        let sinks = client.get("/v1/status").expect(200).json()["sinks"].clone();
        let is_live = |name: &str| sinks[name]["state"] == "live" && sinks[name]["backlog"] == 0;
        (is_live("redis") && is_live("postgres")).then_some(())
    });
    let recorded = held(&sidecar, &file).transactions;
    assert_eq!(central.sql("SELECT count(*) FROM marketplace_transactions"), recorded.to_string());
    sidecar.stop();
    home.assert_sound();
}
