//! Who calls whom: one connection each, with one call under way, whatever the server.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{NoTls, Statement};

use crate::common::http::Client;
use crate::common::load::Caller;
use crate::common::{Numbers, facts_as_json};
use crate::grpc::{Channel, bytes_field, number_field};

/// What a user does over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Record,
    Heartbeat,
    Get,
    /// All of these, and searches, by turns.
    Everything,
}

/// A user of the sidecar, or of a server that looks like it.
pub struct User {
    client: Client,
    doing: Doing,
    numbers: Numbers,
    agents: usize,
}

impl User {
    pub async fn connect_many(to: SocketAddr, count: usize, doing: Doing, agents: usize, seed: u64) -> Vec<Self> {
        let mut users = Vec::new();
        for number in 0..count as u64 {
            let client = Client::connect(to).await;
            users.push(Self { client, doing, numbers: Numbers::seeded(seed * 1_000 + number + 1), agents });
        }
        users
    }
}

impl Caller for User {
    async fn call(&mut self) -> bool {
        let agent = self.numbers.below(self.agents);
        let turn = if self.doing == Doing::Everything { self.numbers.below(4) } else { 0 };
        let answer = match (self.doing, turn) {
            (Doing::Record, _) | (Doing::Everything, 0) => {
                let body = format!("{{{}}}", facts_as_json(agent, self.numbers.below(self.agents)));
                self.client.post("/v1/transactions", &body, 201).await
            }
            (Doing::Heartbeat, _) | (Doing::Everything, 1) => {
                self.client.post(&format!("/v1/agents/agent-{agent:06}/heartbeat"), "", 200).await
            }
            (Doing::Get, _) | (Doing::Everything, 2) => self.client.get(&format!("/v1/agents/agent-{agent:06}")).await,
            (Doing::Everything, _) => {
                let path = "/v1/discovery/search?limit=10&max_cost=48.5&capability=capability-";
                self.client.get(&format!("{path}{:02}", agent % crate::common::CAPABILITIES)).await
            }
        };
        !answer.is_empty()
    }
}

/// What is asked of Redis.
#[derive(Debug, Clone, Copy)]
pub enum Command {
    /// SET of a new key to 300 bytes.
    Set,
    /// PEXPIRE of one of so many agents' documents.
    Renew { agents: usize },
}

/// A connection to Redis.
pub struct RedisUser {
    stream: TcpStream,
    received: Vec<u8>,
    command: Command,
    numbers: Numbers,
}

impl RedisUser {
    pub async fn connect_many(port: u16, count: usize, command: Command) -> Vec<Self> {
        let mut users = Vec::new();
        for number in 0..count as u64 {
            let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("Redis accepts");
            stream.set_nodelay(true).expect("loopback takes TCP_NODELAY");
            let numbers = Numbers::seeded(number + 1);
            users.push(Self { stream, received: Vec::with_capacity(1_024), command, numbers });
        }
        users
    }
}

/// As much as a transaction's JSON has.
const VALUE: [u8; 300] = [b'v'; 300];

impl Caller for RedisUser {
    async fn call(&mut self) -> bool {
        let (command, expected) = match self.command {
            Command::Set => {
                let mut command = redis::cmd("SET");
                command.arg(new_key(&mut self.numbers)).arg(&VALUE);
                (command, "+OK\r\n")
            }
            Command::Renew { agents } => {
                let mut command = redis::cmd("PEXPIRE");
                command.arg(format!("agent:agent-{:06}", self.numbers.below(agents))).arg(3_600_000);
                (command, ":1\r\n")
            }
        };
        self.stream.write_all(&command.get_packed_command()).await.expect("Redis reads");
        self.received.clear();
        while !self.received.ends_with(b"\n") {
            let read = self.stream.read_buf(&mut self.received).await.expect("Redis answers");
            assert!(read > 0, "Redis closed the connection");
        }
        assert_eq!(String::from_utf8_lossy(&self.received), expected);
        true
    }
}

/// What is asked of etcd.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    /// A new key with 300 bytes.
    Put,
    /// Keeping one of so many leases alive, on one stream, as its clients do.
    KeepAlive { leases: usize },
}

/// A connection to etcd.
pub struct EtcdUser {
    channel: Channel,
    call: Call,
    stream: Option<u32>,
    numbers: Numbers,
}

impl EtcdUser {
    pub async fn connect_many(address: SocketAddr, count: usize, call: Call) -> Vec<Self> {
        let mut users = Vec::new();
        for number in 0..count as u64 {
            let mut channel = Channel::connect(address).await;
            let stream = match call {
                Call::Put => None,
                Call::KeepAlive { .. } => Some(channel.open_stream("/etcdserverpb.Lease/LeaseKeepAlive").await),
            };
            users.push(Self { channel, call, stream, numbers: Numbers::seeded(number + 1) });
        }
        users
    }

    /// Grants leases `1..=leases`, of an hour each.
    pub async fn grant(address: SocketAddr, leases: usize) {
        let mut channel = Channel::connect(address).await;
        for lease in 1..=leases as u64 {
            let mut message = Vec::new();
            number_field(&mut message, 1, 3_600);
            number_field(&mut message, 2, lease);
            channel.call("/etcdserverpb.Lease/LeaseGrant", &message).await;
        }
    }
}

impl Caller for EtcdUser {
    async fn call(&mut self) -> bool {
        let mut message = Vec::with_capacity(400);
        match (self.call, self.stream) {
            (Call::KeepAlive { leases }, Some(stream)) => {
                number_field(&mut message, 1, self.numbers.below(leases) as u64 + 1);
                let answer = self.channel.exchange(stream, &message).await;
                // The time that it has left comes last, and is left out where there is no such lease.
                let mut granted = Vec::new();
                number_field(&mut granted, 3, 3_600);
                assert!(answer.ends_with(&granted), "etcd has lost a lease");
            }
            _ => {
                bytes_field(&mut message, 1, new_key(&mut self.numbers).as_bytes());
                bytes_field(&mut message, 2, &VALUE);
                self.channel.call("/etcdserverpb.KV/Put", &message).await;
            }
        }
        true
    }
}

/// A connection to etcd's gateway for HTTP and JSON, which passes requests on to its own port.
pub struct GatewayUser {
    client: Client,
    numbers: Numbers,
}

impl GatewayUser {
    pub async fn connect_many(address: SocketAddr, count: usize) -> Vec<Self> {
        let mut users = Vec::new();
        for number in 0..count as u64 {
            users.push(Self { client: Client::connect(address).await, numbers: Numbers::seeded(number + 1) });
        }
        users
    }
}

impl Caller for GatewayUser {
    async fn call(&mut self) -> bool {
        // Both are base64 as they stand: digits in fours, and `vvv` a hundred times.
        let (key, value) = (new_key(&mut self.numbers), "dnZ2".repeat(VALUE.len() / 3));
        let body = format!(r#"{{"key":"{key}","value":"{value}"}}"#);
        !self.client.post("/v3/kv/put", &body, 200).await.is_empty()
    }
}

/// A connection to PostgreSQL that inserts transactions, each a transaction of its own.
pub struct PostgresUser {
    client: tokio_postgres::Client,
    insert: Statement,
    numbers: Numbers,
    agents: usize,
}

impl PostgresUser {
    pub async fn connect_many(url: &str, count: usize, agents: usize) -> Vec<Self> {
        let mut users = Vec::new();
        for number in 0..count as u64 {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("PostgreSQL accepts");
            tokio::spawn(connection);
            let insert = client.prepare(INSERT).await.expect("the table is there");
            users.push(Self { client, insert, numbers: Numbers::seeded(number + 1), agents });
        }
        users
    }
}

const INSERT: &str = "INSERT INTO marketplace_transactions
    (transaction_id, created_at, payer_agent, provider_agent, capability, amount, currency, status, context, evidence)
    VALUES ($1, now() AT TIME ZONE 'utc', $2, $3, 'capability-01', 18.5, 'USD', 'pending', '{}', '[]')";

impl Caller for PostgresUser {
    async fn call(&mut self) -> bool {
        let id = new_key(&mut self.numbers);
        let [payer, provider] = [(); 2].map(|()| format!("agent-{:06}", self.numbers.below(self.agents)));
        let inserted = self.client.execute(&self.insert, &[&id, &payer, &provider]).await;
        assert_eq!(inserted.expect("the row is new"), 1);
        true
    }
}

/// 32 hexadecimal digits that begin with the time, as the ids do that we mint: the next one goes behind the last in every
/// index, which suits the peers as well.
fn new_key(numbers: &mut Numbers) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    format!("{:016x}{:016x}", now.as_micros(), numbers.below(usize::MAX))
}
