//! Writes over HTTP on many connections, each with one request under way; how many, and how long they took.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::http::{Address, Client, Request};
use crate::report::{Numbers, p99};

/// What came of a spell of writes.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub per_second: f64,
    /// All but one in a hundred took no longer.
    pub p99: Duration,
}

/// Records transactions for so long.
pub fn record(address: SocketAddr, connections: usize, agents: usize, time: Duration, seed: u64) -> Outcome {
    let began = Instant::now();
    let clients: Vec<_> = (0..connections as u64)
        .map(|number| {
            thread::spawn(move || {
                let mut client = Client::new(Address::Tcp(address));
                let mut numbers = Numbers::seeded(seed * 1_000 + number + 1);
                let mut took = Vec::new();
                while began.elapsed() < time {
                    let (payer, provider) = (numbers.below(agents), numbers.below(agents));
                    let body = json!({
                        "payer_agent": format!("agent-{payer:06}"), "provider_agent": format!("agent-{provider:06}"),
                        "capability": "capability-01", "amount": "18.5",
                    });
                    let asked = Instant::now();
                    let answer = client.call(&Request::post("/v1/transactions", &body));
                    took.push(asked.elapsed());
                    assert_eq!(answer.status, 201, "a transaction is recorded");
                }
                took
            })
        })
        .collect();
    let mut took: Vec<Duration> =
        clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect();
    let elapsed = began.elapsed();
    Outcome { per_second: took.len() as f64 / elapsed.as_secs_f64(), p99: p99(&mut took) }
}
