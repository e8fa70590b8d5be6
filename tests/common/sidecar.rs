//! The real binary in a directory of its own, on ports that are free: started, awaited, killed, stopped, started again.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::http::{Address, Client};

/// Longer than anything takes that is waited for here, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, with nothing of the surrounding environment that could change what it does.
pub fn tradepost() -> Command {
    tradepost_by(&[])
}

/// The same, started by another program, of which these are the words in front of it.
pub fn tradepost_by(launcher: &[String]) -> Command {
    let binary = env!("CARGO_BIN_EXE_tradepost");
    let mut command = match launcher {
        [] => Command::new(binary),
        [program, words @ ..] => {
            let mut command = Command::new(program);
            command.args(words).arg(binary);
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRADEPOST_") {
            command.env_remove(name);
        }
    }
    command.env("XDG_DATA_HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// Asks until there is an answer.
///
/// # Panics
/// After a minute without one.
#[track_caller]
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, ask)
}

/// Asks until there is an answer, for which a promise leaves less time.
///
/// # Panics
/// When that is over without one.
#[track_caller]
pub fn wait_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How to start one.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `None`: in memory.
    pub directory: Option<PathBuf>,
    pub listen: String,
    pub metrics: String,
    pub flags: Vec<String>,
    /// What starts it; nothing: the test itself.
    pub launcher: Vec<String>,
}

impl Setup {
    pub fn in_memory() -> Self {
        let (listen, metrics) = ("127.0.0.1:0".to_owned(), "none".to_owned());
        Self { directory: None, listen, metrics, flags: Vec::new(), launcher: Vec::new() }
    }

    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()), ..Self::in_memory() }
    }

    /// Started by another program, which becomes it.
    pub fn launched_by(mut self, launcher: Vec<String>) -> Self {
        self.launcher = launcher;
        self
    }

    /// With the API at this address.
    pub fn listen(mut self, listen: impl Into<String>) -> Self {
        self.listen = listen.into();
        self
    }

    /// With a metrics listener.
    pub fn metrics(mut self, listen: impl Into<String>) -> Self {
        self.metrics = listen.into();
        self
    }

    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// The command that serves this way.
    pub fn command(&self) -> Command {
        let mut command = tradepost_by(&self.launcher);
        command.args(["serve", "--listen", &self.listen, "--log-format", "json", "--metrics-listen", &self.metrics]);
        match &self.directory {
            Some(directory) => command.arg("--data-dir").arg(directory),
            None => command.arg("--in-memory"),
        };
        command.args(&self.flags);
        command
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(&self) -> Sidecar {
        let mut child =
            self.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary can be started");
        let stderr = child.stderr.take().expect("it is piped");
        let log = Arc::new(Log::default());
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            move || log.read(stderr)
        });
        let mut sidecar = Sidecar {
            setup: self.clone(),
            child: Some(child),
            log,
            reader: Some(reader),
            address: ([0, 0, 0, 0], 0).into(),
            socket: None,
        };
        let line = sidecar.log_line("serving the API");
        let mut is_encrypted = false;
        for address in line["listen"].as_str().expect("the addresses are logged").split(' ') {
            if let Some(path) = address.strip_prefix("unix:") {
                sidecar.socket = Some(PathBuf::from(path));
                continue;
            }
            let tcp = address.strip_prefix("https://");
            is_encrypted = tcp.is_some();
            sidecar.address = tcp.unwrap_or(address).parse().expect("an address is logged");
        }
        let mut client = if is_encrypted { sidecar.socket_client() } else { sidecar.client() };
        wait_for("readiness", || {
            client.try_call(&super::http::Request::get("/readyz")).ok().filter(|a| a.status == 200)
        });
        sidecar
    }

    /// Runs it where it is expected to refuse to start.
    pub fn refused(&self) -> Output {
        let mut child =
            self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be started");
        wait_for("a refusal to start", || child.try_wait().expect("it can be waited for"));
        child.wait_with_output().expect("its output can be read")
    }
}

/// A temporary directory and, in it, the data directory that a sidecar will make.
pub struct Home {
    directory: TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("there is room for a temporary directory") }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn file(&self) -> PathBuf {
        self.data().join("tradepost.redb")
    }

    pub fn setup(&self) -> Setup {
        Setup::in_directory(self.data())
    }

    /// `tradepost verify` finds nothing wrong.
    #[track_caller]
    pub fn assert_sound(&self) {
        let output = tradepost().args(["verify", "--json", "--data-dir"]).arg(self.data()).output().expect("it runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{out}{err}");
        let report: Value = serde_json::from_str(&out).expect("a report");
        assert_eq!(report["findings"], serde_json::json!([]), "{report}");
    }
}

/// What a sidecar wrote to stderr, one JSON object a line.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Log {
    fn read(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).lines() {
            let Ok(line) = line else { break };
            self.lines.lock().expect("no holder panics").0.push(line);
            self.changed.notify_all();
        }
        self.lines.lock().expect("no holder panics").1 = true;
        self.changed.notify_all();
    }

    /// The lines behind the first `seen`, waited for, and whether they are the last.
    fn beyond(&self, seen: usize, deadline: Instant) -> (Vec<String>, bool) {
        let guard = self.lines.lock().expect("no holder panics");
        let left = deadline.saturating_duration_since(Instant::now());
        let more = self.changed.wait_timeout_while(guard, left, |(lines, ended)| lines.len() == seen && !*ended);
        let (guard, _) = more.expect("no holder panics");
        (guard.0[seen..].to_vec(), guard.1)
    }
}

/// A running sidecar; killed when dropped.
pub struct Sidecar {
    setup: Setup,
    child: Option<Child>,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    pub address: SocketAddr,
    pub socket: Option<PathBuf>,
}

impl Sidecar {
    pub fn client(&self) -> Client {
        Client::new(Address::Tcp(self.address))
    }

    pub fn socket_client(&self) -> Client {
        Client::new(Address::Unix(self.socket.clone().expect("it has a socket")))
    }

    /// Where metrics are served, once they are.
    #[track_caller]
    pub fn metrics_address(&self) -> SocketAddr {
        let line = self.log_line("serving metrics");
        line["listen"].as_str().and_then(|text| text.parse().ok()).expect("the address is logged")
    }

    pub fn metrics_client(&self) -> Client {
        Client::new(Address::Tcp(self.metrics_address()))
    }

    /// The first log line with this message, waited for.
    #[track_caller]
    pub fn log_line(&self, message: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            let (lines, has_ended) = self.log.beyond(seen, deadline);
            seen += lines.len();
            let found = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(line) = found.into_iter().find(|line| line["message"] == message) {
                return line;
            }
            let in_vain = has_ended || Instant::now() >= deadline;
            assert!(!in_vain, "waited in vain for {message:?} in the log:\n{}", self.log());
        }
    }

    /// All that it logged; whole once it has ended.
    pub fn log(&self) -> String {
        self.log.lines.lock().expect("no holder panics").0.join("\n")
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it has not been waited for"))
    }

    /// The most memory that it has held so far.
    pub fn peak_mib(&self) -> usize {
        let pid = self.pid().as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is told");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") / 1024
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it is our own child");
    }

    /// Waits until it has ended by itself or by a signal.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it has not been waited for");
        let status = wait_for("the end of the process", || child.try_wait().expect("it is our own child"));
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading the log does not panic");
        }
        status
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// SIGTERM, and a good end.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
            if thread::panicking() {
                // What it had to say may be why.
                eprintln!("the log of the sidecar at {}:\n{}", self.address, self.log());
            }
        }
    }
}
