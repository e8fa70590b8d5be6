//! The server from outside, byte for byte: what a client sends and what it then reads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Listener, serve};
use crate::access::Access;
use crate::clock::{Clock, SystemClock};
use crate::domain::Timestamp;
use crate::engine::{Engine, Location, Options};
use crate::http::{Api, Limits, ServerInfo};
use crate::metrics::Metrics;

/// A clock that can be broken: from then on it panics for everybody but the writer.
#[derive(Debug, Default)]
struct FragileClock {
    clock: SystemClock,
    broken: AtomicBool,
}

impl Clock for FragileClock {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        let asked_by_writer = std::thread::current().name() == Some("writer");
        assert!(asked_by_writer || !self.broken.load(Ordering::SeqCst), "the clock is broken");
        self.clock.monotonic()
    }
}

struct Server {
    clock: Arc<FragileClock>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn quick() -> Limits {
    Limits {
        head_deadline: Duration::from_millis(300),
        request_deadline: Duration::from_millis(600),
        ..Limits::default()
    }
}

async fn start(limits: Limits, token: Option<&str>) -> Server {
    let metrics = Metrics::default();
    let clock = Arc::new(FragileClock::default());
    let options = Options { metrics: metrics.clone(), clock: clock.clone(), ..Options::new(Location::Memory) };
    let info = ServerInfo { version: "0", started: Instant::now(), listen: ArcSwap::default() };
    let access = Access::new(Vec::new(), token.map(Into::into));
    let api = Api::new(Engine::open(options).unwrap(), metrics, Arc::new(access), Arc::new(info));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(serve(vec![Listener::Tcp(listener)], api, stopped, limits));
    Server { clock, address, stop, task }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends the bytes and reads until the server closes.
    async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        read_all(stream).await
    }

    /// Sends one request and closes after it.
    async fn request(&self, line: &str, headers: &str, body: &str) -> String {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.exchange(format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}{headers}\r\n{body}"))
            .await
    }
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    read.expect("the server closes").expect("the server does not reset");
    String::from_utf8(answer).unwrap()
}

/// The status and the problem's code; checks the shape of the answer too.
fn problem(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").expect(answer);
    assert!(head.to_lowercase().contains("content-type: application/problem+json"), "{answer}");
    let document: serde_json::Value = serde_json::from_str(body).expect(answer);
    let status = head[9..12].parse().unwrap();
    assert_eq!(document["status"], status, "{answer}");
    for member in ["type", "title", "detail"] {
        assert!(document[member].is_string(), "{answer}");
    }
    (status, document["code"].as_str().unwrap().to_owned())
}

fn expect(answer: &str, status: u16, code: &str) {
    assert_eq!(problem(answer), (status, code.to_owned()), "{answer}");
}

const JSON: &str = "Content-Type: application/json\r\n";

#[tokio::test]
async fn faults_are_answered_in_their_order_of_precedence() {
    let server = start(Limits::default(), Some("s3cret")).await;
    let token = "Authorization: Bearer s3cret\r\n";
    let big = "x".repeat(2 * 1024 * 1024);
    let with = |headers: &str| format!("{token}{headers}");
    for (line, headers, body, status, code) in [
        ("GET /nowhere", "Origin: http://evil.example\r\n".to_owned(), "", 403, "forbidden_origin"),
        ("GET /nowhere", String::new(), "", 401, "unauthorized"),
        ("PUT /v1/agents", String::new(), "", 401, "unauthorized"),
        ("GET /nowhere", with(""), "", 404, "not_found"),
        ("GET /v1/agents/", with(""), "", 404, "not_found"),
        ("GET /v1/agents/a/", with(""), "", 404, "not_found"),
        ("OPTIONS *", with(""), "", 404, "not_found"),
        ("CONNECT localhost:80", with(""), "", 404, "not_found"),
        ("PUT /v1/agents", with("Content-Type: text/plain\r\n"), "x", 405, "method_not_allowed"),
        ("BREW /v1/agents", with(""), "", 405, "method_not_allowed"),
        ("POST /v1/agents?x=1", with("Content-Type: text/plain\r\n"), &big, 415, "unsupported_media_type"),
        ("POST /v1/agents", with(""), "", 415, "unsupported_media_type"),
        ("POST /v1/transactions/t/settle", with("Content-Type: text/plain\r\n"), "{}", 415, "unsupported_media_type"),
        ("POST /v1/agents?x=1", with(JSON), &big, 413, "body_too_large"),
        ("POST /v1/agents?x=1", with(JSON), "{}", 400, "invalid_request"),
        ("POST /v1/agents", with(JSON), "{", 400, "invalid_request"),
        ("POST /v1/agents", with(JSON), "{}", 400, "invalid_request"),
        ("PATCH /v1/agents/a", with(&format!("{JSON}If-Match: 7\r\n")), "{}", 400, "invalid_request"),
        ("PATCH /v1/agents/a%20b", with(JSON), r#"{"name":""}"#, 422, "invalid_name"),
        ("PATCH /v1/agents/a%20b", with(JSON), r#"{"name":"x"}"#, 404, "agent_not_found"),
        ("GET /v1/agents/%ff", with(""), "", 404, "agent_not_found"),
        ("GET /v1/transactions/a%2Fb", with(""), "", 404, "transaction_not_found"),
        ("GET /v1/agents?limit=0", with(""), "", 422, "invalid_limit"),
        ("GET /v1/agents?limit=0&limit=0", with(""), "", 400, "invalid_request"),
        ("GET /v1/transactions?role=payer", with(""), "", 422, "invalid_role"),
        ("POST /v1/agents/a/heartbeat", with("Idempotency-Key: k\r\n"), "", 400, "invalid_request"),
        ("POST /v1/transactions/t/settle", with(JSON), r#"{"a":1}"#, 400, "invalid_request"),
        ("POST /v1/transactions/t/settle", with("Idempotency-Key: k\u{e9}\r\n"), "", 422, "invalid_idempotency_key"),
        ("POST /v1/transactions/t/evidence", with(JSON), r#"{"evidence":[]}"#, 422, "invalid_evidence"),
        ("POST /v1/sync/redis/retry", with(""), "", 404, "not_found"),
        ("POST /v1/sync/mongo/retry", with(""), "", 404, "not_found"),
        ("GET /v1/discovery/recommend", with(""), "", 400, "invalid_request"),
    ] {
        let answer = server.request(line, &headers, body).await;
        assert_eq!(problem(&answer), (status, code.to_owned()), "{line} {headers}");
        assert_eq!(answer.to_lowercase().contains("\r\nallow: "), status == 405, "{answer}");
        assert_eq!(answer.to_lowercase().contains("\r\nwww-authenticate: bearer"), status == 401, "{answer}");
    }
    let answer = server.request("HEAD /v1/agents?limit=0", token, "").await;
    assert!(answer.starts_with("HTTP/1.1 422") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn probes_need_no_token_and_head_is_as_get() {
    let server = start(Limits::default(), Some("s3cret")).await;
    assert!(server.request("GET /livez", "", "").await.ends_with(r#"{"status":"alive"}"#));
    let head = server.request("HEAD /livez", "", "").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 18") && head.ends_with("\r\n\r\n"));
    assert!(server.request("GET /readyz?sync=1", "", "").await.starts_with("HTTP/1.1 200"));
    let answer = server.exchange("GET /livez HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    expect(&answer, 403, "forbidden_host");
}

#[tokio::test]
async fn hosts_that_are_missing_or_repeated_are_malformed() {
    let server = start(Limits::default(), None).await;
    for head in [
        "GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /livez HTTP/1.0\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ] {
        expect(&server.exchange(head).await, 400, "invalid_request");
    }
    let absolute = "GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    expect(&server.exchange(absolute).await, 403, "forbidden_host");
}

#[tokio::test]
async fn heads_that_hyper_refuses_become_problems() {
    let server = start(Limits::default(), None).await;
    let many: String = (0..120).map(|n| format!("X-{n}: y\r\n")).collect();
    let wide = format!("X-Wide: {}\r\n", "y".repeat(40_000));
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "y".repeat(40_000));
    let head = "GET /livez HTTP/1.1\r\nHost: localhost\r\n";
    for size in [1, 8, 16, 30, 31] {
        let fits = format!("X-Wide: {}\r\nConnection: close\r\n", "y".repeat(size * 1024));
        assert!(server.exchange(format!("{head}{fits}\r\n")).await.starts_with("HTTP/1.1 200"), "{size} KiB");
    }
    for size in [33, 34, 40, 48, 60, 63] {
        let wide = format!("X-Wide: {}\r\nConnection: close\r\n", "y".repeat(size * 1024));
        expect(&server.exchange(format!("{head}{wide}\r\n")).await, 431, "headers_too_large");
    }
    for (bytes, status, code) in [
        (format!("{head}{many}\r\n"), 431, "headers_too_large"),
        (format!("{head}{wide}\r\n"), 431, "headers_too_large"),
        (long, 431, "headers_too_large"),
        ("nonsense\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET / HTTP/3.0\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400, "invalid_request"),
        (format!("{head}bad header\r\n\r\n"), 400, "invalid_request"),
        (format!("{head}Content-Length: x\r\n\r\n"), 400, "invalid_request"),
    ] {
        let answer = server.exchange(&bytes).await;
        assert_eq!(problem(&answer), (status, code.to_owned()), "{}", &bytes[..bytes.len().min(80)]);
        assert!(answer.contains("connection: close"), "{answer}");
    }
    // An answer before it on the same connection is not lost.
    let answer = server.exchange(format!("{head}\r\nnonsense\r\n\r\n")).await;
    let (first, second) = answer.split_once(r#"{"status":"alive"}"#).expect(&answer);
    assert!(first.starts_with("HTTP/1.1 200"));
    expect(second, 400, "invalid_request");
}

#[tokio::test]
async fn a_head_or_a_body_that_does_not_come_is_a_408_and_silence_is_closed_silently() {
    let server = start(quick(), None).await;
    expect(&server.exchange("GET /livez HT").await, 408, "request_timeout");
    assert_eq!(server.exchange("").await, "");
    let body =
        "POST /v1/agents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    expect(&server.exchange(body).await, 408, "request_timeout");
    let after = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /li";
    let mut stream = server.connect().await;
    stream.write_all(&after.as_bytes()[..after.len() - 7]).await.unwrap();
    let mut first = [0; 1024];
    let count = stream.read(&mut first).await.unwrap();
    assert!(first[..count].starts_with(b"HTTP/1.1 200"));
    stream.write_all(b"GET /li").await.unwrap();
    expect(&read_all(stream).await, 408, "request_timeout");
}

#[tokio::test]
async fn a_refused_body_is_read_so_that_the_answer_arrives() {
    let server = start(Limits::default(), None).await;
    let body = "x".repeat(8 * 1024 * 1024);
    expect(&server.request("POST /nowhere", "", &body).await, 404, "not_found");
    expect(&server.request("POST /v1/agents", JSON, &body).await, 413, "body_too_large");
    let body = "x".repeat(24 * 1024 * 1024);
    expect(&server.request("POST /v1/agents", JSON, &body).await, 413, "body_too_large");
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_its_refusal_at_once() {
    let server = start(Limits::default(), None).await;
    let head = "POST /v1/agents HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n";
    let before = Instant::now();
    expect(&server.exchange(format!("{head}Content-Type: text/plain\r\n\r\n")).await, 415, "unsupported_media_type");
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());

    let mut stream = server.connect().await;
    stream.write_all(format!("{head}Connection: close\r\n{JSON}\r\n").as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"[        ").await.unwrap();
    expect(&read_all(stream).await, 400, "invalid_request");
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room_and_busy_ones_do_not() {
    let server = start(Limits { connections: Some(2), ..Limits::default() }, None).await;
    let idle = server.connect().await;
    let mut busy = server.connect().await;
    let head =
        "POST /v1/agents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n";
    busy.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut third = server.connect().await;
    assert_eq!(read_all(idle).await, "");
    third.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = server.exchange("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    expect(&answer, 503, "overloaded");
    assert!(answer.contains("retry-after: 1"));
    busy.write_all(b"{        ").await.unwrap();
    let mut start = [0; 12];
    busy.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 400");
}

#[tokio::test]
async fn stopping_closes_idle_connections_and_finishes_running_requests() {
    let server = start(Limits::default(), None).await;
    let idle = server.connect().await;
    let mut busy = server.connect().await;
    let head =
        "POST /v1/agents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n";
    busy.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop.send(true).unwrap();
    assert_eq!(read_all(idle).await, "");
    assert!(TcpStream::connect(server.address).await.is_err());
    busy.write_all(b"{}").await.unwrap();
    expect(&read_all(busy).await, 400, "invalid_request");
    tokio::time::timeout(Duration::from_secs(2), server.task).await.expect("the server stops").unwrap();
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off_at_the_deadline() {
    let server = start(Limits { shutdown_deadline: Duration::from_millis(200), ..Limits::default() }, None).await;
    let mut busy = server.connect().await;
    let head =
        "POST /v1/agents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n";
    busy.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(2), server.task).await.expect("the server stops").unwrap();
}

#[tokio::test]
async fn a_panic_is_a_503_and_the_connection_lives_on() {
    let server = start(Limits::default(), None).await;
    server.clock.broken.store(true, Ordering::SeqCst);
    let one = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let panics = "GET /v1/discovery/random HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = server.exchange(format!("{panics}{one}")).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with(r#"{"status":"alive"}"#), "{answer}");
}

#[tokio::test]
async fn a_client_that_has_said_all_it_will_still_gets_its_answer() {
    let server = start(Limits::default(), None).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(read_all(stream).await.ends_with(r#"{"status":"alive"}"#));
}
