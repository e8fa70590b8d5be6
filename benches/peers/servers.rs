//! The peers' servers, as durable as ours, each in a directory of its own and on ports that are free.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::servers_of_tests::postgres::Postgres;
use crate::servers_of_tests::redis::RedisServer;
use crate::servers_of_tests::sidecar::wait_for;

/// The server programs that are not there.
pub fn missing() -> Vec<&'static str> {
    let mut places = vec![PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    for version in fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        places.push(version.path().join("bin"));
    }
    let is_there = |program: &&str| places.iter().any(|place| place.join(program).is_file());
    ["redis-server", "etcd", "initdb", "psql"].into_iter().filter(|program| !is_there(program)).collect()
}

/// A Redis that has synced a write before it answers. It never rewrites its file meanwhile, which would slow it down.
pub fn durable_redis() -> RedisServer {
    RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"])
}

/// A Redis that keeps nothing, which is as fast as it gets.
pub fn forgetful_redis() -> RedisServer {
    RedisServer::start_with(&[])
}

/// A PostgreSQL that has synced a transaction before it says that it is committed, with the defaults of the server's
/// own configuration where the tests have smaller ones.
pub fn durable_postgres(connections: usize) -> Postgres {
    let connections = format!("max_connections={}", connections + 20);
    Postgres::start_with(&["fsync=on", "synchronous_commit=on", "shared_buffers=128MB", &connections])
}

/// An etcd of one member; killed when dropped.
pub struct Etcd {
    child: Child,
    pub address: SocketAddr,
    _directory: TempDir,
}

impl Etcd {
    pub fn start() -> Self {
        let directory = TempDir::new().expect("a directory for the server");
        let [client, peer] = free_addresses();
        let [client_url, peer_url] = [client, peer].map(|address| format!("http://{address}"));
        let log = fs::File::create(directory.path().join("log")).expect("a log file");
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}"), "--logger", "zap", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd can be started");
        let etcd = Self { child, address: client, _directory: directory };
        // It listens only once it has a leader.
        wait_for("etcd", || TcpStream::connect(client).ok());
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_addresses() -> [SocketAddr; 2] {
    // Both are held until both are known, so that they differ.
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free"));
    listeners.map(|listener| listener.local_addr().expect("it is bound"))
}
