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

use common::{Bound, Numbers, Report, median, note};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
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
    let clients = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
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
        let api = Api { engine: engine.clone(), metrics, access, info: Arc::new(info) };
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
        clients.block_on(async {
            let mut open = Vec::new();
            for worker in 0..connections {
                let mut client = Client::connect(self.address).await;
                let mut numbers = Numbers::seeded(number * 1_000 + worker as u64 + 1);
                let ids = if operation == Settle {
                    client.record_some(&mut numbers, self.agents, connections).await
                } else {
                    Vec::new()
                };
                open.push((client, numbers, ids));
            }
            let began = Instant::now();
            let tasks: Vec<_> = open
                .into_iter()
                .map(|(mut client, mut numbers, mut ids)| {
                    let agents = self.agents;
                    tokio::spawn(async move {
                        let mut done = 0_usize;
                        while began.elapsed() < time {
                            let agent = numbers.below(agents);
                            match operation {
                                Record => drop(client.record(&mut numbers, agents).await),
                                Settle => match ids.pop() {
                                    Some(id) => {
                                        drop(client.post(&format!("/v1/transactions/{id}/settle"), "", 200).await)
                                    }
                                    None => break,
                                },
                                Heartbeat => {
                                    drop(client.post(&format!("/v1/agents/agent-{agent:06}/heartbeat"), "", 200).await);
                                }
                                Get => client.get(&format!("/v1/agents/agent-{agent:06}")).await,
                                Search => {
                                    let path = "/v1/discovery/search?limit=20&capability=capability-";
                                    client.get(&format!("{path}{:02}", agent % common::CAPABILITIES)).await;
                                }
                            }
                            done += 1;
                        }
                        (done, began.elapsed())
                    })
                })
                .collect();
            let (mut done, mut took) = (0, Duration::ZERO);
            for task in tasks {
                let (more, until) = task.await.expect("a client ends");
                (done, took) = (done + more, took.max(until));
            }
            done as f64 / took.as_secs_f64()
        })
    }
}

/// One keep-alive connection, with as little of an HTTP client as will do.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: std::net::SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server accepts");
        stream.set_nodelay(true).expect("loopback takes TCP_NODELAY");
        Self { stream, buffer: Vec::with_capacity(64 * 1024) }
    }

    async fn record(&mut self, numbers: &mut Numbers, agents: usize) -> String {
        let (payer, provider) = (numbers.below(agents), numbers.below(agents));
        let body = format!(
            r#"{{"payer_agent":"agent-{payer:06}","provider_agent":"agent-{provider:06}","capability":"capability-01","amount":"18.5"}}"#
        );
        self.post("/v1/transactions", &body, 201).await
    }

    /// Enough transactions to settle for a second, more or less; recorded in batches.
    async fn record_some(&mut self, numbers: &mut Numbers, agents: usize, connections: usize) -> Vec<String> {
        let count = 24_000 / (connections + 7);
        let ids: Vec<String> =
            (0..count).map(|_| format!("{:08x}{:08x}", numbers.below(1 << 32), numbers.below(1 << 32))).collect();
        let items: Vec<String> = ids
            .iter()
            .map(|id| {
                let (payer, provider) = (numbers.below(agents), numbers.below(agents));
                format!(r#"{{"transaction_id":"{id}","payer_agent":"agent-{payer:06}","provider_agent":"agent-{provider:06}","capability":"capability-01","amount":"18.5"}}"#)
            })
            .collect();
        self.post("/v1/transactions/batch", &format!("[{}]", items.join(",")), 200).await;
        ids
    }

    async fn post(&mut self, path: &str, body: &str, expected: u16) -> String {
        let length = body.len();
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{kind}content-length: {length}\r\n\r\n");
        self.exchange(&format!("{head}{body}"), expected).await
    }

    async fn get(&mut self, path: &str) {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"), 200).await;
    }

    async fn exchange(&mut self, request: &str, expected: u16) -> String {
        self.stream.write_all(request.as_bytes()).await.expect("the server reads");
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await.expect("the server answers");
            assert!(read > 0, "the server closed the connection");
            let Some(end) = find(&self.buffer, b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.buffer[..end]).expect("a head is ASCII");
            let length: usize = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .expect("the answer says how long it is");
            if self.buffer.len() >= end + 4 + length {
                let body = String::from_utf8_lossy(&self.buffer[end + 4..]).into_owned();
                assert_eq!(head.split(' ').nth(1), Some(expected.to_string().as_str()), "{request}: {body}");
                return body;
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
