//! A real redis-server in a directory of its own, on a port that is free: killed, restarted with or without its data,
//! stalled, emptied, made a replica, guarded by users or TLS.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ::redis::Client;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::authority::{Authority, Certified};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server; killed when dropped.
pub struct RedisServer {
    directory: TempDir,
    port: u16,
    arguments: Vec<String>,
    /// Whom those have to trust who speak TLS with it, if it speaks nothing else.
    authority: Option<PathBuf>,
    child: Option<Child>,
}

impl RedisServer {
    /// A server that keeps what it acknowledged through a kill, as an append-only file in the page cache.
    pub fn start() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "no"])
    }

    /// A server with these arguments besides the necessary ones.
    #[track_caller]
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::launch(arguments, None)
    }

    /// A server that speaks only TLS, with a certificate for `localhost` from this authority. The test itself reaches it
    /// through a socket.
    #[track_caller]
    pub fn start_with_tls(authority: &Authority) -> Self {
        Self::launch(&[], Some(authority))
    }

    #[track_caller]
    fn launch(arguments: &[&str], authority: Option<&Authority>) -> Self {
        let directory = TempDir::new().expect("a directory for the server");
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let authority_file = authority.map(|authority| authority.file.clone());
        let mut server = Self { directory, port: 0, arguments, authority: authority_file, child: None };
        if let Some(authority) = authority {
            server.write_certificate(&authority.sign("localhost"));
        }
        // Between the question for a free port and the server's bind another program may take it.
        for _ in 0..5 {
            server.port = free_port();
            if server.try_start() {
                return server;
            }
        }
        panic!("redis-server does not start; its log: {}", server.log());
    }

    /// Where it listens, with neither user nor password.
    pub fn url(&self) -> String {
        self.url_with("")
    }

    /// Where it listens, for a user: `name:password@`.
    pub fn url_with(&self, userinfo: &str) -> String {
        match &self.authority {
            None => format!("redis://{userinfo}127.0.0.1:{}", self.port),
            Some(file) => format!("rediss://{userinfo}localhost:{}/?sslrootcert={}", self.port, file.display()),
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Ends it at once; what it holds in its files stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child that was not waited for can be killed");
            child.wait().expect("a killed child ends");
        }
    }

    /// Starts it again on the same port, with its data.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let deadline = Instant::now() + PATIENCE;
        while !self.try_start() {
            assert!(Instant::now() < deadline, "redis-server does not start again; its log: {}", self.log());
        }
    }

    /// Kills it and starts it again, with its data.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Kills it and starts it again on the same port with nothing in it.
    #[track_caller]
    pub fn restart_empty(&mut self) {
        self.kill();
        self.start_empty();
    }

    /// Starts it again on the same port with nothing in it.
    #[track_caller]
    pub fn start_empty(&mut self) {
        for entry in fs::read_dir(self.directory.path()).expect("its directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if name.starts_with("appendonly") {
                fs::remove_dir_all(&path).expect("its append-only files can be removed");
            } else if name.ends_with(".rdb") {
                fs::remove_file(&path).expect("its snapshot can be removed");
            }
        }
        self.start_again();
    }

    /// Stalls it: connections stand, nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends the stall.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.child.as_ref().expect("it runs"));
        kill_process(pid, signal).expect("a child can be signalled");
    }

    /// Runs a command as the default user and returns its answer.
    #[track_caller]
    pub fn command<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.connection();
        let mut command = ::redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query(&mut connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// A connection as the default user.
    #[track_caller]
    pub fn connection(&self) -> ::redis::Connection {
        let client = self.client();
        client.get_connection_with_timeout(PATIENCE).expect("the server can be reached")
    }

    fn client(&self) -> Client {
        let url = match &self.authority {
            None => self.url(),
            Some(_) => format!("unix://{}", self.socket().display()),
        };
        Client::open(url).expect("a URL of our own")
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Where its certificate and its key lie.
    fn certificate_files(&self) -> [PathBuf; 2] {
        ["server.pem", "server.key"].map(|name| self.directory.path().join(name))
    }

    fn write_certificate(&self, certified: &Certified) {
        let [certificate, key] = self.certificate_files();
        fs::write(certificate, &certified.certificate).expect("there is room");
        fs::write(key, &certified.key).expect("there is room");
    }

    /// Has it show another certificate from here on.
    pub fn show_certificate(&self, certified: &Certified) {
        self.write_certificate(certified);
        let [certificate, key] = self.certificate_files().map(|path| path.display().to_string());
        self.command::<()>(&["CONFIG", "SET", "tls-cert-file", &certificate, "tls-key-file", &key]);
    }

    /// Empties it.
    pub fn flush_all(&self) {
        self.command::<()>(&["FLUSHALL"]);
    }

    /// Makes it follow another, read-only, and waits until it has what the other has.
    #[track_caller]
    pub fn follow(&self, leader: &RedisServer) {
        self.command::<()>(&["REPLICAOF", "127.0.0.1", &leader.port.to_string()]);
        let deadline = Instant::now() + PATIENCE;
        while !self.command::<String>(&["INFO", "replication"]).contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "the replica never caught up");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes a replica a primary again.
    pub fn promote(&self) {
        self.command::<()>(&["REPLICAOF", "NO", "ONE"]);
    }

    /// Creates or replaces a user by the words of `ACL SETUSER`.
    pub fn set_user(&self, name: &str, rules: &[&str]) {
        let words: Vec<&str> = ["ACL", "SETUSER", name, "reset"].into_iter().chain(rules.iter().copied()).collect();
        self.command::<()>(&words);
    }

    /// Whether it answers within a short while after being started.
    fn try_start(&mut self) -> bool {
        let log = fs::File::create(self.directory.path().join("log")).expect("a log file");
        let mut command = Command::new("redis-server");
        let port = self.port.to_string();
        command.args(["--bind", "127.0.0.1", "--save", "", "--dir"]).arg(self.directory.path());
        if let Some(authority) = &self.authority {
            let [certificate, key] = self.certificate_files();
            command.args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"]);
            command.arg("--tls-cert-file").arg(certificate).arg("--tls-key-file").arg(key);
            command.arg("--tls-ca-cert-file").arg(authority).arg("--unixsocket").arg(self.socket());
        } else {
            command.args(["--port", &port]);
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("redis-server cannot be started ({error}); tests/install-servers.sh installs what the tests need")
        });
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let ended = self.child.as_mut().expect("just started").try_wait().expect("a child can be asked");
            if ended.is_some() {
                self.child = None;
                return false;
            }
            if self.answers() {
                return true;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        false
    }

    /// A server that wants a password answers too, and so does one that is still loading, but later.
    fn answers(&self) -> bool {
        let Ok(mut connection) = self.client().get_connection_with_timeout(Duration::from_secs(1)) else {
            return false;
        };
        match ::redis::cmd("PING").query::<String>(&mut connection) {
            Ok(_) => true,
            Err(error) => error.code() == Some("NOAUTH"),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}
