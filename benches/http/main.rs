//! `cargo bench --bench http`: the operations over HTTP, on the real server and durable, as ratios.
//!
//! Keep-alive connections, each with one request under way. What more connections must not do is make the server slower;
//! for writes they must make it faster, since group commit reaches through to the clients. The clients run in this
//! process and take their share of the processors. `TRADEPOST_BENCH_QUICK=1` makes a short run.

#[path = "../common/mod.rs"]
mod common;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::http::Client;
use common::load::{self, Caller};
use common::{Bound, Numbers, Report, median, note};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tradepost::access::Access;
use tradepost::http::{Api, Limits, Listener, ServerInfo, serve};

const CONNECTIONS: [usize; 3] = [1, 16, 64];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Record,
    Settle,
    Heartbeat,
    Get,
    Search,
}

use Operation::{Get, Heartbeat, Record, Search, Settle};

fn main() -> ExitCode {
    if !common::is_bench_run() {
        return ExitCode::SUCCESS;
    }
    let quick = common::is_quick();
    let agents = if quick { 1_000 } else { 10_000 };
    let (rounds, round) = if quick { (3, Duration::from_millis(200)) } else { (5, Duration::from_secs(1)) };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(directory.path(), agents);
    let clients = load::runtime();
    let mut report = Report::default();
    for operation in [Record, Settle, Heartbeat, Get, Search] {
        let mut rates = CONNECTIONS.map(|_| Vec::new());
        for number in 0..rounds {
            for (rates, connections) in rates.iter_mut().zip(CONNECTIONS) {
                rates.push(server.measure(&clients, operation, connections, number, round));
            }
        }
        let rates = rates.map(median);
        for (rate, connections) in rates.iter().zip(CONNECTIONS) {
            note(&format!("{operation:?}, {connections} connections"), *rate as usize, Duration::from_secs(1));
        }
        for index in [1, 2] {
            let what = format!("HTTP {operation:?}: {} connections / 1 connection", CONNECTIONS[index]);
            let least = match (operation, index) {
                (Record | Settle, 1) => 3.0,
                (Record | Settle, _) => 5.0,
                (Heartbeat | Get | Search, _) => 1.0,
            };
            report.ratio(
                what.to_lowercase().replacen("http", "HTTP", 1),
                rates[index] / rates[0],
                Bound::AtLeast(least),
            );
        }
    }
    server.stop();
    report.finish()
}

struct Server {
    runtime: Runtime,
    address: std::net::SocketAddr,
    engine: tradepost::Engine,
    agents: usize,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(directory: &std::path::Path, agents: usize) -> Self {
        let (engine, metrics) = common::open_file(directory);
        common::register_agents(&engine, agents);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime starts");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port of loopback is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let info = ServerInfo { version: "bench", started: Instant::now(), listen: arc_swap::ArcSwap::default() };
        let access = Arc::new(Access::new(Vec::new(), None));
        let api = Api::new(engine.clone(), metrics, access, Arc::new(info));
        let (stop, stopped) = watch::channel(false);
        let serving = runtime.spawn(serve(vec![Listener::Tcp(listener)], api, stopped, Limits::default()));
        Self { runtime, address, engine, agents, stop, serving }
    }

    fn stop(self) {
        self.stop.send_replace(true);
        self.runtime.block_on(self.serving).expect("the server ends");
        self.engine.close();
    }

    /// Requests per second.
    fn measure(&self, clients: &Runtime, operation: Operation, connections: usize, number: u64, time: Duration) -> f64 {
        let mut callers = clients.block_on(async {
            let mut callers = Vec::new();
            for worker in 0..connections {
                let client = Client::connect(self.address).await;
                let numbers = Numbers::seeded(number * 1_000 + worker as u64 + 1);
                let mut caller = User { client, operation, numbers, agents: self.agents, ids: Vec::new() };
                if operation == Settle {
                    caller.record_some(connections).await;
                }
                callers.push(caller);
            }
            callers
        });
        load::run(clients, &mut callers, connections, time).per_second
    }
}

/// One connection that does one thing.
struct User {
    client: Client,
    operation: Operation,
    numbers: Numbers,
    agents: usize,
    /// What there is to settle.
    ids: Vec<String>,
}

impl Caller for User {
    async fn call(&mut self) -> bool {
        let agent = self.numbers.below(self.agents);
        let answer = match self.operation {
            Record => {
                let body = format!("{{{}}}", self.facts());
                self.client.post("/v1/transactions", &body, 201).await
            }
            Settle => {
                let Some(id) = self.ids.pop() else { return false };
                self.client.post(&format!("/v1/transactions/{id}/settle"), "", 200).await
            }
            Heartbeat => self.client.post(&format!("/v1/agents/agent-{agent:06}/heartbeat"), "", 200).await,
            Get => self.client.get(&format!("/v1/agents/agent-{agent:06}")).await,
            Search => {
                let path = "/v1/discovery/search?limit=20&capability=capability-";
                self.client.get(&format!("{path}{:02}", agent % common::CAPABILITIES)).await
            }
        };
        !answer.is_empty()
    }
}

impl User {
    /// Enough transactions to settle for a second, more or less; recorded in batches.
    async fn record_some(&mut self, connections: usize) {
        let mut items = Vec::new();
        for _ in 0..24_000 / (connections + 7) {
            let id = format!("{:08x}{:08x}", self.numbers.below(1 << 32), self.numbers.below(1 << 32));
            items.push(format!(r#"{{"transaction_id":"{id}",{}}}"#, self.facts()));
            self.ids.push(id);
        }
        self.client.post("/v1/transactions/batch", &format!("[{}]", items.join(",")), 200).await;
    }

    fn facts(&mut self) -> String {
        common::facts_as_json(self.numbers.below(self.agents), self.numbers.below(self.agents))
    }
}
