//! A real browser with pages that mean harm, on the machine of a sidecar: they store nothing and read nothing.
//!
//! Three kinds of page: one of another origin; one without an origin, in a sandbox; and one whose name pointed elsewhere when
//! it was loaded and points to the sidecar now, with its very port (DNS rebinding): to the browser that page and the
//! sidecar are one origin. For the last, the test serves a page at a port, leaves the port, and starts the sidecar there.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use common::central::register;
use common::sidecar::{PATIENCE, Setup};
use serde_json::{Value, json};

const PAGE: &str = include_str!("browser/page.html");

/// What the pages and the test tell each other.
#[derive(Default)]
struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Pages that wait for the sidecar.
    waiting: BTreeSet<String>,
    may_go: bool,
    reports: BTreeMap<String, Value>,
}

impl Board {
    /// Waits until something holds that may change whenever a page calls.
    #[track_caller]
    fn wait_until(&self, what: &str, mut holds: impl FnMut(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock().expect("no holder panics");
        while !holds(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; so far {:?}, {:?}", state.waiting, state.reports);
            state = self.changed.wait_timeout(state, left).expect("no holder panics").0;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no holder panics"));
        self.changed.notify_all();
    }
}

/// A web server of somebody else, until it is dropped; then its port is free.
struct Site {
    address: SocketAddr,
    closing: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Site {
    /// Answers each request with what `answer` says to its target and body.
    fn serve(listener: TcpListener, answer: impl Fn(&str, &str) -> String + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("it listens");
        let (closing, streams) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let answer = Arc::new(answer);
        let thread = thread::spawn({
            let (closing, streams) = (Arc::clone(&closing), Arc::clone(&streams));
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if closing.load(Ordering::SeqCst) {
                        break;
                    }
                    streams.lock().expect("no holder panics").push(stream.try_clone().expect("it can be held twice"));
                    let answer = Arc::clone(&answer);
                    // A browser opens connections that it may need later, so each has a thread.
                    thread::spawn(move || serve_one(stream, &*answer));
                }
            }
        });
        Self { address, closing, streams, thread: Some(thread) }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // Wakes it.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("serving does not panic");
        }
        for stream in self.streams.lock().expect("no holder panics").drain(..) {
            stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

fn serve_one(stream: TcpStream, answer: &dyn Fn(&str, &str) -> String) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let target = head.split(' ').nth(1)?.to_owned();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let page = answer(&target, &String::from_utf8_lossy(&body));
    write!(
        &stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{page}",
        page.len()
    )
    .ok()
}

/// A headless Chromium with a profile of its own.
struct Browser {
    child: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().expect("there is room for a profile");
        let child = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg("--host-resolver-rules=MAP evil.test 127.0.0.1")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium is there: tests/install-servers.sh installs it");
        Self { child, _profile: profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("there is a free port")
}

fn page(frame: &str, home: SocketAddr, api: SocketAddr, metrics: SocketAddr) -> String {
    PAGE.replace("{{FRAME}}", frame)
        .replace("{{HOME}}", &home.port().to_string())
        .replace("{{API}}", &api.port().to_string())
        .replace("{{METRICS}}", &metrics.port().to_string())
}

const FRAMES: [&str; 4] = ["other-origin", "no-origin", "rebound-api", "rebound-metrics"];
/// How many things a page tries at one listener, but for a beacon, of which it learns nothing.
const TRIED: usize = 15;

/// Whether a page has learned no more than it could from a server that is not there.
fn is_nothing(frame: &str, attempt: &str, came: &str) -> bool {
    if frame.starts_with("rebound") {
        // One origin with the sidecar, the page may read what it is told: that its name is not served.
        let refusal = |text: &str| text.contains(r#""code":"forbidden_host""#) || text.contains(r#""status":403"#);
        return refusal(came) || came == "error" || came == "opaque";
    }
    let kind = attempt.split_once(' ').expect("a target and more").1;
    let kind = kind.split_once(' ').expect("an attempt").1;
    match kind {
        "read" | "read with credentials" | "write" | "write as text" | "replace" | "delete" => came == "TypeError",
        "read blindly" | "write blindly" => came == "opaque" || came == "TypeError",
        "form" | "form in parts" | "form as text" => came == "nothing" || came == "SecurityError",
        // What a script was answered with is no script, and its text is nobody's.
        "script" => came == "error" || came == "load",
        "image" | "events" | "socket" => came == "error",
        other => panic!("{other:?} is no attempt"),
    }
}

#[test]
fn no_page_in_a_browser_stores_or_reads_anything() {
    let (home, api, metrics) = (port(), port(), port());
    let [home_address, api_address, metrics_address] =
        [&home, &api, &metrics].map(|listener| listener.local_addr().expect("it listens"));
    let board = Arc::new(Board::default());
    let fill = move |frame: &str| page(frame, home_address, api_address, metrics_address);
    let rebound = [("rebound-api", api), ("rebound-metrics", metrics)]
        .map(|(frame, listener)| Site::serve(listener, move |_, _| fill(frame)));
    let _home = Site::serve(home, {
        let board = Arc::clone(&board);
        move |target, body| match target.split_once('?').unwrap_or((target, "")) {
            ("/", _) => {
                fill("other-origin")
                    + &format!(
                        "<iframe sandbox='allow-scripts allow-forms' src='/sandboxed'></iframe>\
                         <iframe src='http://evil.test:{}/'></iframe><iframe src='http://evil.test:{}/'></iframe>",
                        api_address.port(),
                        metrics_address.port()
                    )
            }
            ("/sandboxed", _) => fill("no-origin"),
            ("/go", frame) => {
                board.change(|state| state.waiting.extend([frame.to_owned()]));
                board.wait_until("the test", |state| state.may_go);
                String::new()
            }
            ("/report", _) => {
                let report: Value = serde_json::from_str(body).expect("a report is JSON");
                let frame = report["frame"].as_str().expect("it is named").to_owned();
                board.change(|state| state.reports.extend([(frame, report)]));
                String::new()
            }
            _ => String::new(),
        }
    });
    let _browser = Browser::open(&format!("http://evil.test:{}/", home_address.port()));
    board.wait_until("the pages", |state| state.waiting.len() == FRAMES.len());

    // The name leads to the sidecar from here on.
    drop(rebound);
    let sidecar = Setup::in_memory().listen(api_address.to_string()).metrics(metrics_address.to_string()).start();
    assert_eq!(sidecar.metrics_address(), metrics_address);
    let mut client = sidecar.client();
    register(&mut client, "precious", "c");
    let before = client.get("/v1/agents/precious").expect(200).json();
    board.change(|state| state.may_go = true);
    board.wait_until("their reports", |state| state.reports.len() == FRAMES.len());

    let reports = board.state.lock().expect("no holder panics").reports.clone();
    for frame in FRAMES {
        let report = &reports[frame];
        assert_eq!(report["origin"] == "null", frame == "no-origin", "{report}");
        let results = report["results"].as_object().expect("results by attempt");
        let listeners = if frame.starts_with("rebound") { 1 } else { 6 };
        assert_eq!(results.len(), TRIED * listeners, "{report:#}");
        for (attempt, came) in results {
            let came = came.as_str().expect("a text");
            assert!(!came.contains("precious") && !came.contains("marketplace_"), "{frame}, {attempt}: {came}");
            assert!(is_nothing(frame, attempt, came), "{frame}, {attempt}: {came}");
        }
    }
    // The attempts have arrived, and were refused by the sidecar, not by a browser that did not try.
    let metrics = client.get("/metrics").expect(200).text().to_owned();
    let posts = metrics.lines().filter(|line| {
        line.starts_with("tradepost_http_requests_total{") && line.contains("POST") && line.contains(r#""403""#)
    });
    let refused: f64 = posts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    assert!(refused >= 20.0, "only {refused} writes were refused");
    assert_eq!(client.get("/v1/transactions").expect(200).json()["items"], json!([]));
    let agents = client.get("/v1/agents").expect(200).json();
    assert_eq!(agents["items"], json!([before]));
    sidecar.stop();
}
