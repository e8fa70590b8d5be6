//! The listener over real sockets: what it answers, whom it refuses, and what it survives.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Nothing here waits for longer; what takes longer has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// A state that can be made to hang, or to panic, when it is read.
#[derive(Default)]
struct Fake {
    hangs: AtomicBool,
    panics: AtomicBool,
}

impl StateSource for Fake {
    fn agents_online(&self) -> u64 {
        assert!(!self.panics.load(Ordering::SeqCst), "as the test wants it");
        while self.hangs.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        7
    }
    fn capability_agents(&self, _: &str) -> Option<u64> {
        None
    }
    fn visit_capabilities(&self, _: &mut dyn FnMut(&str, u64) -> ControlFlow<()>) {}
    fn capability_agents_total(&self) -> u64 {
        0
    }
    fn reputation_score(&self, _: &str) -> Option<f64> {
        None
    }
    fn visit_reputations(&self, _: &mut dyn FnMut(&str, f64) -> ControlFlow<()>) {}
    fn reputation_totals(&self) -> (u64, f64) {
        (0, 0.0)
    }
    fn transactions_by_status(&self) -> Option<[u64; 4]> {
        Some([0; 4])
    }
    fn is_ready(&self) -> bool {
        true
    }

    fn file_bytes(&self) -> u64 {
        0
    }
    fn writer_queue_depth(&self) -> usize {
        0
    }

    fn sink_gauges(&self) -> Vec<crate::metrics::SinkGauges> {
        Vec::new()
    }
}

struct Running {
    handle: ExporterHandle,
    metrics: Metrics,
    state: Arc<Fake>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

const ANY_PORT: &str = "127.0.0.1:0";

async fn start(limits: Limits) -> Running {
    start_with(limits, Access::new(Vec::new(), None)).await
}

async fn start_with(limits: Limits, access: Access) -> Running {
    let state = Arc::new(Fake::default());
    let (stop, shutdown) = watch::channel(false);
    let metrics = Metrics::default();
    let options = ExporterOptions {
        listen: ANY_PORT.parse().unwrap(),
        metrics: metrics.clone(),
        state: Arc::clone(&state) as Arc<dyn StateSource>,
        access: Arc::new(access),
    };
    let handle = spawn_with(options, limits, shutdown);
    let address = bound(&handle).await;
    Running { handle, metrics, state, address, stop }
}

async fn bound(handle: &ExporterHandle) -> SocketAddr {
    let mut bound = handle.bound();
    timeout(DEADLINE, bound.wait_for(Option::is_some)).await.expect("bound in time").unwrap().unwrap()
}

impl Running {
    /// Sends bytes and reads all that comes back.
    async fn exchange(&self, request: &str) -> String {
        exchange(self.address, request).await.expect("an exchange")
    }

    async fn get(&self, path: &str) -> String {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)).await
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.handle.join().await;
        assert!(TcpStream::connect(self.address).await.is_err(), "the port is free again");
    }
}

async fn exchange(address: SocketAddr, request: &str) -> std::io::Result<String> {
    timeout(DEADLINE, async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
    .await
    .expect("an answer in time")
}

/// Repeats until it holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < DEADLINE, "{what}: not in time");
        sleep_a_little().await;
    }
}

async fn sleep_a_little() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"))
}

fn is_page(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200") && answer.contains("\nmarketplace_agents_online 7\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_gets_the_whole_page() {
    let exporter = start(Limits::default()).await;
    let answer = exporter.get("/metrics").await;
    assert!(is_page(&answer), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{head}");
    assert!(head.contains("\r\nconnection: close"), "{head}");
    assert!(body.contains("tradepost_build_info{version="));

    let answer = exporter.exchange(&format!("HEAD /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", exporter.address)).await;
    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("\r\n\r\n"), "no body: {answer}");
    assert!(answer.to_ascii_lowercase().contains("content-length: "), "{answer}");

    assert_eq!(status(&exporter.get("/livez").await), 200);
    assert!(is_page(&exporter.get("/metrics?format=prometheus").await));
    assert!(is_page(
        &exporter.exchange("GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await.replace("1.0", "1.1")
    ));
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_refused_in_the_api_s_words() {
    let exporter = start(Limits::default()).await;
    let host = format!("Host: {}\r\n", exporter.address);
    for (request, expected, code) in [
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(), 403, "forbidden_host"),
        ("GET /livez HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(), 403, "forbidden_host"),
        (format!("GET http://evil.example/metrics HTTP/1.1\r\n{host}\r\n"), 403, "forbidden_host"),
        (format!("GET /metrics HTTP/1.1\r\n{host}Origin: http://evil.example\r\n\r\n"), 403, "forbidden_origin"),
        (format!("GET /metrics HTTP/1.1\r\n{host}Origin: null\r\n\r\n"), 403, "forbidden_origin"),
        ("GET /metrics HTTP/1.1\r\n\r\n".to_owned(), 400, "invalid_request"),
        (format!("GET /metrics HTTP/1.1\r\n{host}{host}\r\n"), 400, "invalid_request"),
        (format!("GET / HTTP/1.1\r\n{host}\r\n"), 404, "not_found"),
        (format!("GET /metrics/ HTTP/1.1\r\n{host}\r\n"), 404, "not_found"),
        (format!("POST /v1/agents HTTP/1.1\r\n{host}Content-Length: 2\r\n\r\n{{}}"), 404, "not_found"),
        (format!("POST /metrics HTTP/1.1\r\n{host}Content-Length: 2\r\n\r\n{{}}"), 405, "method_not_allowed"),
        (format!("DELETE /livez HTTP/1.1\r\n{host}\r\n"), 405, "method_not_allowed"),
    ] {
        let answer = exporter.exchange(&request).await;
        assert_eq!(status(&answer), expected, "{request}{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("application/problem+json"), "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["code"], code, "{request}");
        assert_eq!(problem["status"].as_u64(), Some(expected.into()), "{request}");
        assert_eq!(head.contains("allow: GET, HEAD"), expected == 405, "{head}");
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_client_reaches_the_server_behind() {
    let exporter = start(Limits::default()).await;
    let host = format!("Host: {}\r\n", exporter.address);
    // A body that a careless relay would hand on as a second request, and lengths that two parsers read differently.
    let smuggled = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = smuggled.len();
    for request in [
        format!("GET /metrics HTTP/1.1\r\n{host}Content-Length: {length}\r\n\r\n{smuggled}"),
        format!("GET /metrics HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("GET /metrics HTTP/1.1\r\n{host}\r\n{smuggled}"),
    ] {
        // With bytes left unread the connection may also end in a reset.
        let Ok(answer) = exchange(exporter.address, &request).await else { continue };
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    for request in [
        format!("GET /metrics HTTP/1.1\r\n{host}Content-Length: 0\r\nContent-Length: 5\r\n\r\n"),
        format!("GET /metrics HTTP/1.1\r\n{host}X: {}\r\n\r\n", "x".repeat(100 << 10)),
        format!("GET /metrics HTTP/1.1\r\n{host}{}\r\n", "X: y\r\n".repeat(200)),
        "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(),
    ] {
        let Ok(answer) = exchange(exporter.address, &request).await else { continue };
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    assert!(is_page(&exporter.get("/metrics").await));
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_required_for_all_but_livez() {
    let exporter = start_with(Limits::default(), Access::new(Vec::new(), Some("s3cret".to_owned().into()))).await;
    let host = format!("Host: {}\r\n", exporter.address);
    for (path, authorization, expected) in [
        ("/metrics", "", 401),
        ("/nowhere", "", 401),
        ("/livez", "", 200),
        ("/metrics", "Authorization: Bearer wrong\r\n", 401),
        ("/metrics", "Authorization: Bearer s3cret\r\n", 200),
        ("/metrics", "Authorization: Bearer s3cret\r\nAuthorization: Bearer s3cret\r\n", 401),
        ("/nowhere", "Authorization: Bearer s3cret\r\n", 404),
    ] {
        let answer = exporter.exchange(&format!("GET {path} HTTP/1.1\r\n{host}{authorization}\r\n")).await;
        assert_eq!(status(&answer), expected, "{path} {authorization}{answer}");
        assert_eq!(answer.to_ascii_lowercase().contains("www-authenticate: bearer"), expected == 401, "{answer}");
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_leave_it_running() {
    let exporter = start(Limits::default()).await;
    for i in 0..500 {
        let mut stream = TcpStream::connect(exporter.address).await.unwrap();
        match i % 4 {
            // A reset instead of an orderly end.
            0 => stream.set_zero_linger().unwrap(),
            1 => stream.write_all(b"GET /metrics HT").await.unwrap(),
            2 => stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap(),
            _ => {}
        }
    }
    assert!(is_page(&exporter.get("/metrics").await));
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hang_are_cut_off_and_the_next_gets_its_turn() {
    let limits = Limits { connection: Duration::from_millis(500), ..Limits::default() };
    let exporter = start(limits.clone()).await;
    let mut hung = Vec::new();
    for i in 0..limits.connections {
        let mut stream = TcpStream::connect(exporter.address).await.unwrap();
        if i % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Never-").await.unwrap();
        }
        hung.push(stream);
    }
    assert!(is_page(&exporter.get("/metrics").await));
    // All of them were cut off, though none did anything.
    for mut stream in hung {
        let mut rest = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("cut off").ok();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_trickle_does_not_buy_time() {
    let exporter = start(Limits { connection: Duration::from_millis(300), ..Limits::default() }).await;
    let mut stream = TcpStream::connect(exporter.address).await.unwrap();
    let start = Instant::now();
    while stream.write_all(b"x").await.is_ok() {
        assert!(start.elapsed() < DEADLINE, "a trickle keeps the connection");
        sleep_a_little().await;
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_accept_thread_died_is_replaced() {
    let exporter = start(Limits { probe_every: Duration::from_millis(50), ..Limits::default() }).await;
    for _ in 0..3 {
        let mut doors = exporter.handle.door.clone();
        let old = doors.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        old.shut();
        // Clients may ask at once: they wait for the new one.
        assert!(is_page(&exporter.get("/metrics").await));
        let new = doors.wait_for(|door| door.as_ref().is_some_and(|new| !Arc::ptr_eq(new, &old)));
        drop(timeout(DEADLINE, new).await.expect("a new server"));
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_socket_was_removed_is_replaced() {
    let exporter = start(Limits { probe_every: Duration::from_millis(50), ..Limits::default() }).await;
    let door = exporter.handle.door.clone().wait_for(Option::is_some).await.unwrap().clone().unwrap();
    std::fs::remove_dir_all(door.socket().parent().unwrap()).unwrap();
    assert!(is_page(&exporter.get("/metrics").await));
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_replaced_but_not_for_ever() {
    let exporter = start(Limits {
        probe_every: Duration::from_millis(20),
        probe: Duration::from_millis(200),
        answer: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    exporter.state.hangs.store(true, Ordering::SeqCst);
    eventually("all threads hang", async || {
        exporter.get("/metrics").await;
        exporter.handle.door.borrow().is_none() && status(&exporter.get("/livez").await) == 503
    })
    .await;
    exporter.state.hangs.store(false, Ordering::SeqCst);
    eventually("it serves again", async || is_page(&exporter.get("/metrics").await)).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_panics_is_one_failed_scrape() {
    let exporter = start(Limits::default()).await;
    exporter.state.panics.store(true, Ordering::SeqCst);
    let answer = exporter.get("/metrics").await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("retry-after: 1"), "{answer}");
    assert_eq!(status(&exporter.get("/livez").await), 200);
    exporter.state.panics.store(false, Ordering::SeqCst);
    assert!(is_page(&exporter.get("/metrics").await));
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_tried_again_until_it_is_free() {
    let squatter = TcpListener::bind(ANY_PORT).await.unwrap();
    let (stop, shutdown) = watch::channel(false);
    let options = ExporterOptions {
        listen: squatter.local_addr().unwrap(),
        metrics: Metrics::default(),
        state: Arc::new(Fake::default()),
        access: Arc::new(Access::new(Vec::new(), None)),
    };
    let address = options.listen;
    let limits = Limits { bind_retry: Duration::from_millis(20), ..Limits::default() };
    let handle = spawn_with(options, limits, shutdown);
    for _ in 0..5 {
        sleep_a_little().await;
        assert_eq!(*handle.bound().borrow(), None);
    }
    drop(squatter);
    assert_eq!(bound(&handle).await, address);
    let answer = exchange(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(is_page(&answer), "{answer}");
    // A lost sender is a shutdown too.
    drop(stop);
    handle.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_while_clients_and_the_page_hang() {
    let exporter = start(Limits { grace: Duration::from_millis(50), ..Limits::default() }).await;
    let idle = TcpStream::connect(exporter.address).await.unwrap();
    exporter.state.hangs.store(true, Ordering::SeqCst);
    let mut scraper = TcpStream::connect(exporter.address).await.unwrap();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    sleep_a_little().await;
    let state = Arc::clone(&exporter.state);
    timeout(DEADLINE, exporter.stop()).await.expect("it stops");
    state.hangs.store(false, Ordering::SeqCst);
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_socket_is_private_and_goes_with_it() {
    use std::os::unix::fs::PermissionsExt;
    let exporter = start(Limits::default()).await;
    let door = exporter.handle.door.clone().wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let directory = door.socket().parent().unwrap().to_owned();
    drop(door);
    assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    exporter.stop().await;
    eventually("the directory is gone", async || !directory.exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_hold_up_nobody_for_longer_than_their_time() {
    let limits = Limits { connection: Duration::from_secs(2), ..Limits::default() };
    let exporter = start(limits.clone()).await;
    // More than the buffers of both sockets take, so that whoever does not read is in the way.
    for i in 0..1_000 {
        let agent = format!("{i}-{}", "\\".repeat(4_000));
        exporter.metrics.outcome_observed(&agent, true);
    }
    let mut deaf = Vec::new();
    for _ in 0..limits.connections {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(exporter.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        deaf.push(stream);
    }
    eventually("it serves again", async || {
        exchange(exporter.address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .is_ok_and(|answer| is_page(&answer) && answer.len() > 8_000_000)
    })
    .await;
    drop(deaf);
    exporter.stop().await;
}
