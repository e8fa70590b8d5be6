//! How much memory a sidecar holds: little while it is idle, and bounded by its cache while the file grows.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const MIB: u64 = 1024 * 1024;
/// An idle sidecar with an empty store.
const IDLE_LIMIT: u64 = 20 * MIB;

/// The real binary; killed when dropped.
struct Sidecar(Child);

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.0.kill().expect("a child that was not waited for can be killed");
        self.0.wait().expect("a killed child ends");
    }
}

impl Sidecar {
    /// Starts it, and waits until it answers.
    fn start(directory: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_tradepost"))
            .args(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir"])
            .arg(directory)
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let sidecar = Self(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !UnixStream::connect(directory.join("tradepost.sock")).is_ok_and(is_ready) {
            assert!(Instant::now() < deadline, "the sidecar does not answer");
            thread::sleep(Duration::from_millis(20));
        }
        sidecar
    }

    /// What it holds of the machine's memory, in bytes.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        kib * 1024
    }
}

fn is_ready(mut connection: UnixStream) -> bool {
    let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    connection.write_all(request).is_ok()
        && connection.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

#[test]
fn an_idle_sidecar_with_an_empty_store_holds_at_most_20_mib() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let sidecar = Sidecar::start(directory.path());
    let resident = sidecar.resident();
    assert!(resident <= IDLE_LIMIT, "{} KiB are resident", resident / 1024);
}
