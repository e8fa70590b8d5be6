//! One node of a fleet: a real engine on a disk in memory, and the real work of both sinks, a call at a time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use secrecy::SecretString;
use tempfile::TempDir;
use tokio::sync::Notify;
use tradepost::domain::Ttl;
use tradepost::sync::CurrentUrl;
use tradepost::sync::driver::Destination;
use tradepost::sync::postgres::Postgres;
use tradepost::sync::redis::Redis;
use tradepost::sync::state::Failure;
use tradepost::{Engine, Location, Options};

use super::centre::{Servers, directory};
use super::disk::Disk;
use super::time::{NodeClock, TrueTime};
use super::wire::{Break, Wire};

/// The lease of every agent.
pub const LEASE: Duration = Duration::from_secs(30);
/// How long remote agents stay discoverable while Redis is away.
const STALE_FOR: Duration = Duration::from_secs(24 * 3_600);
/// The most rounds that are worked through at once.
const ROUNDS: usize = 40;

/// What a node works with one central system through.
pub struct Line<D: Destination> {
    pub wire: Wire,
    destination: D,
    session: Option<D::Session>,
}

impl<D: Destination> Line<D> {
    fn new(wire: Wire, destination: D) -> Self {
        Self { wire, destination, session: None }
    }

    /// Round after round until there is no more to do, connecting first if need be.
    pub async fn work(&mut self) -> Result<(), Failure> {
        let done = self.rounds().await;
        if done.is_err() {
            self.hang_up();
        }
        done
    }

    async fn rounds(&mut self) -> Result<(), Failure> {
        if self.session.is_none() {
            self.session = Some(self.destination.connect().await?);
        }
        let session = self.session.as_mut().expect("it was just made, or stands");
        for _ in 0..ROUNDS {
            if !self.destination.round(session, &[]).await?.more {
                return Ok(());
            }
        }
        panic!("{} rounds with {} came to no end", ROUNDS, D::SINK.as_str());
    }

    /// Works until the wire breaks as said, if it does by then.
    pub async fn work_and_break(&mut self, after: u32, how: Break) {
        self.wire.set_fault(after, how);
        // Whatever came of it: what is left is to be done by the next rounds.
        drop(self.work().await);
        if !self.wire.take_fault() {
            self.hang_up();
        }
    }

    /// Takes the wire down.
    pub fn part(&mut self) {
        self.wire.set_up(false);
        self.hang_up();
    }

    /// The connection is gone.
    pub fn hang_up(&mut self) {
        if self.session.take().is_some() {
            self.destination.lost();
        }
        self.wire.cut();
    }
}

/// One node.
pub struct Node {
    pub engine: Engine,
    pub clock: Arc<NodeClock>,
    pub redis: Line<Redis>,
    pub postgres: Line<Postgres>,
    disk: Arc<Disk>,
    /// Whose file it has a copy of, or its own number.
    pub family: usize,
    /// A copy of its file.
    pub backup: Option<Vec<u8>>,
    random: StdRng,
    _sockets: TempDir,
}

impl Node {
    /// A node on a file with this content.
    pub fn new(servers: &Servers, time: &Arc<TrueTime>, content: Vec<u8>, seed: u64, family: usize) -> Self {
        let sockets = directory();
        let directory = sockets.path();
        let to_redis = Wire::new(directory.join("redis"), &servers.redis_socket());
        let to_postgres = Wire::new(directory.join(".s.PGSQL.5432"), &servers.postgres_socket());
        let (clock, mut random) = (NodeClock::new(time), StdRng::seed_from_u64(seed));
        let disk = Disk::with(content);
        let engine = open(&disk, &clock, &mut random);
        let redis = redis(&engine, &clock, &mut random, to_redis.path());
        let postgres = postgres(&engine, &clock, &mut random, to_postgres.path());
        let (redis, postgres) = (Line::new(to_redis, redis), Line::new(to_postgres, postgres));
        Self { engine, clock, redis, postgres, disk, family, backup: None, random, _sockets: sockets }
    }

    /// What a kill would leave.
    pub fn file(&self) -> Vec<u8> {
        self.disk.content()
    }

    /// Kills it, and starts it on a file with this content.
    pub fn start_on(&mut self, content: Vec<u8>) {
        self.redis.hang_up();
        self.postgres.hang_up();
        self.disk = Disk::with(content);
        self.engine = open(&self.disk, &self.clock, &mut self.random);
        self.redis.destination = redis(&self.engine, &self.clock, &mut self.random, self.redis.wire.path());
        self.postgres.destination = postgres(&self.engine, &self.clock, &mut self.random, self.postgres.wire.path());
    }

    /// Ends it in order; what its file holds then.
    pub fn close(&mut self) -> Vec<u8> {
        self.redis.hang_up();
        self.postgres.hang_up();
        self.engine.close();
        self.disk.content()
    }
}

fn open(disk: &Arc<Disk>, clock: &Arc<NodeClock>, random: &mut StdRng) -> Engine {
    let backend: Arc<dyn redb::StorageBackend> = Arc::<Disk>::clone(disk);
    let options = Options {
        clock: Arc::<NodeClock>::clone(clock),
        seed: Some(random.random()),
        agent_ttl: Ttl::parse(i128::from(LEASE.as_secs())).expect("it is in range"),
        ..Options::new(Location::Backend(backend))
    };
    Engine::open(options).expect("the file is sound")
}

fn redis(engine: &Engine, clock: &Arc<NodeClock>, random: &mut StdRng, wire: &Path) -> Redis {
    let (clock, random) = (Arc::<NodeClock>::clone(clock), StdRng::seed_from_u64(random.random()));
    let url = url(&format!("unix://{}", wire.display()));
    Redis::new(engine.clone(), clock, random, url, STALE_FOR, Arc::new(Notify::new()))
}

fn postgres(engine: &Engine, clock: &Arc<NodeClock>, random: &mut StdRng, wire: &Path) -> Postgres {
    let (clock, random) = (Arc::<NodeClock>::clone(clock), StdRng::seed_from_u64(random.random()));
    let directory = wire.parent().expect("a socket is in a directory").display().to_string().replace('/', "%2F");
    let url = url(&format!("postgres://postgres@{directory}/market"));
    Postgres::new(engine.clone(), clock, random, url, false)
}

fn url(text: &str) -> CurrentUrl {
    Arc::new(ArcSwap::from_pointee(SecretString::from(text)))
}
