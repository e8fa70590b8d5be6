//! Clients that mean harm, against the real binary: whatever they do, others are answered, and when they are gone
//! nothing of them is left.

mod common;

use std::fs::Permissions;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;

use common::http::{Client, Request};
use common::sidecar::{Home, PATIENCE, Setup, Sidecar, tradepost, wait_for};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    stream.set_write_timeout(Some(PATIENCE)).expect("it can be set");
    stream
}

fn raw_pid(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().cast_unsigned()
}

fn open_files(sidecar: &Sidecar) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", raw_pid(sidecar.pid()))).expect("it runs").count()
}

/// The most that it ever held.
/// All that comes until the server closes.
fn read_to_end(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset ends it as well.
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Ends a connection by a reset, whatever has been read and sent of it.
fn reset(stream: TcpStream) {
    let socket = tokio::net::TcpSocket::from_std_stream(stream);
    socket.set_zero_linger().expect("it can be set");
}

/// Everybody else is served: a read, and a write that is durable.
#[track_caller]
fn assert_serves(client: &mut Client, round: &str) {
    let body =
        json!({"payer_agent": "a", "provider_agent": "b", "capability": "c", "amount": "1", "transaction_id": round});
    client.post("/v1/transactions", &body).expect(201);
    client.get(format!("/v1/transactions/{round}")).expect(200);
}

#[test]
fn slow_heads_and_bodies_by_the_hundred_keep_nobody_waiting_and_are_given_up() {
    let sidecar = Setup::in_memory().start();
    let before = open_files(&sidecar);
    let slow: Vec<TcpStream> = (0..400)
        .map(|number| {
            let mut stream = connect(sidecar.address);
            let part = match number % 2 {
                0 => "GET /v1/agents HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".to_owned(),
                _ => "POST /v1/transactions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                     Content-Length: 1000\r\n\r\n{"
                    .to_owned(),
            };
            stream.write_all(part.as_bytes()).expect("the server takes it");
            stream
        })
        .collect();
    let mut client = sidecar.client();
    for round in 0..20 {
        assert_serves(&mut client, &format!("beside-{round}"));
    }
    for stream in slow {
        let answer = read_to_end(stream);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    }
    wait_for("what they held to be given back", || (open_files(&sidecar) <= before + 2).then_some(()));
    sidecar.stop();
}

#[test]
fn whoever_holds_up_the_metrics_listener_is_cut_off_and_a_scrape_gets_its_turn() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let metrics = sidecar.metrics_address();
    let before = open_files(&sidecar);
    // More than it serves at once: slow heads, slow bodies, silence, and answers that nobody reads.
    let hung: Vec<TcpStream> = (0..100)
        .map(|number| {
            let mut stream = connect(metrics);
            let part = match number % 4 {
                0 => "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
                1 => "GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
                2 => "",
                _ => "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
            };
            stream.write_all(part.as_bytes()).expect("the kernel takes it");
            stream
        })
        .collect();
    let mut client = sidecar.client();
    for round in 0..20 {
        assert_serves(&mut client, &format!("beside-{round}"));
    }
    let mut scraper = sidecar.metrics_client();
    wait_for("a scrape", || scraper.try_call(&Request::get("/metrics")).ok().filter(|answer| answer.status == 200));
    for (number, mut stream) in hung.into_iter().enumerate() {
        let ended = std::io::copy(&mut stream, &mut std::io::sink());
        let waits = |error: std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        assert!(!ended.is_err_and(waits), "client {number} is still there");
    }
    wait_for("what they held to be given back", || (open_files(&sidecar) <= before + 2).then_some(()));
    sidecar.stop();
}

#[test]
fn a_head_that_never_ends_is_cut_off() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    for address in [sidecar.address, sidecar.metrics_address()] {
        assert_cuts_off_a_head(address);
    }
    assert_serves(&mut sidecar.client(), "after");
    sidecar.metrics_client().get("/metrics").expect(200);
    sidecar.stop();
}

fn assert_cuts_off_a_head(address: SocketAddr) {
    let mut stream = connect(address);
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n").expect("the server takes it");
    let mut reader = stream.try_clone().expect("it can be read beside");
    let writer = std::thread::spawn(move || {
        let line = format!("X-{}: {}\r\n", "a".repeat(20), "b".repeat(1_000));
        (0..100_000).find(|_| stream.write_all(line.as_bytes()).is_err())
    });
    let mut answer = [0; 12];
    reader.read_exact(&mut answer).expect("there is an answer before the head ends");
    assert_eq!(&answer, b"HTTP/1.1 431");
    drop(reader);
    let cut = writer.join().expect("writing does not panic");
    assert!(cut.is_some(), "it took 100 MB of a head");
}

/// Requests that two servers in a row would read differently, each with another hidden in it. They begin with `post`, a
/// head that lacks its framing and its end.
fn smuggling_shapes(post: &str) -> Vec<(&'static str, String)> {
    let smuggled = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    vec![
        ("both framings", format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        (
            "framings the other way",
            format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        ("two lengths", format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}{smuggled}")),
        ("a list of lengths", format!("{post}Content-Length: 2, 3\r\n\r\n{{}}{smuggled}")),
        ("a signed length", format!("{post}Content-Length: +2\r\n\r\n{{}}{smuggled}")),
        ("a negative length", format!("{post}Content-Length: -2\r\n\r\n{{}}{smuggled}")),
        ("a length in hex", format!("{post}Content-Length: 0x2\r\n\r\n{{}}{smuggled}")),
        ("a length beyond all", format!("{post}Content-Length: 99999999999999999999999\r\n\r\n{{}}{smuggled}")),
        ("a folded header", format!("{post}X-A: b\r\n Content-Length: 2\r\nContent-Length: 0\r\n\r\n{smuggled}")),
        ("a space before the colon", format!("{post}Content-Length : 2\r\n\r\n{{}}{smuggled}")),
        ("another coding", format!("{post}Transfer-Encoding: gzip, chunked, identity\r\n\r\n0\r\n\r\n{smuggled}")),
        (
            "a coding twice",
            format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        ("a chunk size that is none", format!("{post}Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n{smuggled}")),
        ("a bare CR", format!("{post}X-A: b\rContent-Length: 2\r\n\r\n{smuggled}")),
        ("a null byte", format!("{post}X-A: b\0\r\nContent-Length: 0\r\n\r\n{smuggled}")),
        // A bare LF ends a line, so that what others may take for a part of the value is seen.
        (
            "a length behind a bare LF",
            format!("{post}X-A: b\nContent-Length: 40\r\nContent-Length: 2\r\n\r\n{{}}{smuggled}"),
        ),
        (
            "a coding behind a bare LF",
            format!("{post}X-A: b\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        ("chunks with a bare LF", format!("{post}Transfer-Encoding: chunked\r\n\r\n2\n{{}}\n0\n\n{smuggled}")),
        (
            "a chunk that is longer than its size",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\n{{}}\r\n0\r\n\r\n{smuggled}"),
        ),
        (
            "a chunk size beyond all",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{{}}\r\n0\r\n\r\n{smuggled}"),
        ),
    ]
}

#[test]
fn requests_that_could_smuggle_another_are_refused_and_end_the_connection() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let post = "POST /v1/transactions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    for (what, request) in smuggling_shapes(post) {
        let mut stream = connect(sidecar.address);
        stream.write_all(request.as_bytes()).expect("the server takes it");
        stream.shutdown(Shutdown::Write).expect("it is connected");
        let answer = read_to_end(stream);
        let statuses: Vec<&str> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
        assert_eq!(statuses, ["400"], "{what}: {answer}");
    }
    let stored = sidecar.client().get("/v1/transactions").expect(200).json();
    assert_eq!(stored["items"], json!([]));

    // Whatever it makes of the first, there is no second.
    for (what, request) in smuggling_shapes("GET /metrics HTTP/1.1\r\nHost: localhost\r\n") {
        let mut stream = connect(sidecar.metrics_address());
        stream.write_all(request.as_bytes()).expect("the server takes it");
        drop(stream.shutdown(Shutdown::Write));
        let answer = read_to_end(stream);
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{what}: {answer}");
    }
    sidecar.metrics_client().get("/metrics").expect(200);
    sidecar.stop();
}

/// What a page can have a browser send without asking first: forms in their three encodings, with what it says of itself.
#[test]
fn forms_are_refused_whatever_origin_they_name() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let body = r#"{"payer_agent":"a","provider_agent":"b","capability":"c","amount":"1","context":{"=":""}}"#;
    for origin in [None, Some("null"), Some("http://evil.test"), Some("http://localhost:1")] {
        for encoding in ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"] {
            let request = |method: &str, target: &str| {
                let request = Request::new(method, target).text(encoding, body);
                origin.iter().fold(request, |request, origin| request.header("Origin", *origin))
            };
            let code = if origin.is_some() { (403, "forbidden_origin") } else { (415, "unsupported_media_type") };
            for target in ["/v1/transactions", "/v1/transactions/batch", "/v1/agents"] {
                let answer = sidecar.client().call(&request("POST", target));
                assert_eq!(
                    (answer.status, answer.json()["code"].as_str()),
                    (code.0, Some(code.1)),
                    "{origin:?} {encoding}"
                );
                assert_eq!(answer.header("access-control-allow-origin"), None);
            }
            let answer = sidecar.metrics_client().call(&request("POST", "/metrics"));
            let expected = if origin.is_some() { 403 } else { 405 };
            assert_eq!(answer.status, expected, "{origin:?} {encoding}");
        }
    }
    for list in ["/v1/transactions", "/v1/agents"] {
        assert_eq!(sidecar.client().get(list).expect(200).json()["items"], json!([]));
    }
    sidecar.stop();
}

/// A program of a user that nobody else is.
fn as_another_user(program: &std::path::Path) -> std::process::Command {
    let is_root = rustix::process::geteuid().is_root();
    let mut command = std::process::Command::new(if is_root { "setpriv" } else { "sudo" });
    if !is_root {
        command.args(["-n", "setpriv"]);
    }
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program).env_clear();
    command
}

/// Whatever lies above the data directory, it and what is in it are its owner's.
#[test]
fn another_user_reaches_neither_the_socket_nor_the_file_nor_the_token() {
    let home = Home::new();
    std::fs::set_permissions(home.path(), Permissions::from_mode(0o755)).expect("it is ours");
    // The binary may lie where others cannot go.
    let program = home.path().join("tradepost");
    std::fs::copy(env!("CARGO_BIN_EXE_tradepost"), &program).expect("it can be copied");
    let token = home.path().join("token");
    std::fs::write(&token, "s3cret\n").expect("it can be written");
    std::fs::set_permissions(&token, Permissions::from_mode(0o600)).expect("it is ours");
    let sidecar = home.setup().flags(&["--token-file", token.to_str().expect("it is text")]).start();
    let (socket, url) = (sidecar.socket.clone().expect("it has one"), format!("http://{}", sidecar.address));

    let able = as_another_user(&program).arg("--version").output().expect("setpriv or sudo is there");
    assert!(
        able.status.success(),
        "this test runs programs as another user: run it as root, or let sudo do it without asking: {}",
        String::from_utf8_lossy(&able.stderr)
    );
    let run = |arguments: &[&std::ffi::OsStr]| {
        let output = as_another_user(&program).args(arguments).output().expect("it ran before");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let words = |text: &'static str| std::ffi::OsStr::new(text);
    // First the directory keeps others out, then, opened wide, each thing in it does.
    for mode in [0o700, 0o755] {
        std::fs::set_permissions(home.data(), Permissions::from_mode(mode)).expect("it is ours");
        let (code, said) = run(&[words("--socket"), socket.as_os_str(), words("status")]);
        assert!(code == Some(69) && said.contains("Permission denied"), "socket, {mode:o}: {code:?} {said}");
        for command in ["verify", "compact"] {
            let (code, said) = run(&[words(command), words("--data-dir"), home.data().as_os_str()]);
            assert!(code == Some(74) && said.contains("Permission denied"), "{command}, {mode:o}: {code:?} {said}");
        }
    }
    let (code, said) =
        run(&[words("--url"), std::ffi::OsStr::new(&url), words("--token-file"), token.as_os_str(), words("status")]);
    assert!(code == Some(78) && said.contains("Permission denied"), "token: {code:?} {said}");
    // Over TCP there is no saying who it is: the token is what keeps others out.
    let refused = sidecar.client().get("/v1/status").expect(401);
    assert_eq!(refused.json()["code"], "unauthorized");
    sidecar.stop();
}

#[test]
fn thousands_that_connect_send_and_reset_leave_nothing_behind() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let metrics = sidecar.metrics_address();
    let before = open_files(&sidecar);
    for number in 0..10_000 {
        let address = if number % 10 == 0 { metrics } else { sidecar.address };
        let mut stream = connect(address);
        let part: &[u8] = match number % 3 {
            0 => b"GET /v1/agents HTTP/1.1\r\nHost: localhost\r\n\r\n",
            1 => b"POST /v1/transactions HTTP/1.1\r\nContent-Le",
            _ => b"",
        };
        drop(stream.write_all(part));
        // Some have been answered by then, some are in the middle, and some have not even been accepted.
        if number % 6 == 0 {
            drop(stream.peek(&mut [0]));
        }
        reset(stream);
    }
    assert_serves(&mut sidecar.client(), "after");
    wait_for("what they held to be given back", || (open_files(&sidecar) <= before + 2).then_some(()));
    sidecar.metrics_client().get("/metrics").expect(200);
    sidecar.stop();
}

#[test]
fn without_descriptors_it_waits_for_some_and_goes_on() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let metrics = sidecar.metrics_address();
    let limit = Rlimit { current: Some(64), maximum: Some(64) };
    prlimit(Some(sidecar.pid()), Resource::Nofile, limit).expect("it is our own child");
    let greedy: Vec<TcpStream> =
        (0..200).map(|number| connect(if number % 4 == 0 { metrics } else { sidecar.address })).collect();
    // Those in the queue of the socket are as good as connected. They go only once there was nothing left for them.
    for message in ["a connection could not be accepted", "metrics: accepting a connection; trying again"] {
        let line = sidecar.log_line(message);
        assert!(line["error"].as_str().is_some_and(|error| error.contains("Too many open files")), "{line}");
    }
    drop(greedy);
    let mut client = sidecar.client();
    wait_for("an answer", || client.try_call(&Request::get("/readyz")).ok().filter(|answer| answer.status == 200));
    assert_serves(&mut client, "after");
    let mut scraper = Client::new(common::http::Address::Tcp(metrics));
    wait_for("a scrape", || scraper.try_call(&Request::get("/metrics")).ok().filter(|answer| answer.status == 200));
    sidecar.stop();
}

#[test]
fn clients_that_never_read_cost_little_and_are_let_go() {
    let sidecar = Setup::in_memory().start();
    let mut client = sidecar.client();
    let context = json!({"x": "x".repeat(60_000)});
    for _ in 0..10 {
        let batch: Vec<_> = (0..20)
            .map(|_| json!({"payer_agent": "a", "provider_agent": "b", "capability": "c", "amount": "1", "context": context}))
            .collect();
        client.post("/v1/transactions/batch", &json!(batch)).expect(200);
    }
    let before = open_files(&sidecar);
    let greedy: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = connect(sidecar.address);
            let path = ["/v1/transactions?limit=1000", "/v1/export/transactions"][number % 2];
            let request = |more: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
            // They do not wait for their turn either. One that is refused every time has room for all its answers: it
            // says itself that it is done then, or it would count as idle, which it may be for longer than we wait.
            let requests = request("").repeat(49) + &request("Connection: close\r\n");
            stream.write_all(requests.as_bytes()).expect("the server takes it");
            stream
        })
        .collect();
    for round in 0..20 {
        assert_serves(&mut client, &format!("beside-{round}"));
    }
    for stream in &greedy {
        assert!(stream.peek(&mut [0]).is_ok_and(|came| came == 1), "each has begun to be answered");
    }
    assert!(sidecar.peak_mib() < 400, "{} MiB", sidecar.peak_mib());
    wait_for("them to be let go", || (open_files(&sidecar) <= before + 2).then_some(()));
    drop(greedy);
    sidecar.stop();
}

#[test]
fn a_hundred_requests_at_once_are_answered_in_their_order() {
    let sidecar = Setup::in_memory().start();
    let mut client = sidecar.client();
    for number in 0..100 {
        assert_serves(&mut client, &format!("t{number}"));
    }
    let mut stream = connect(sidecar.address);
    let requests: String = (0..100)
        .map(|number| format!("GET /v1/transactions/t{number}/settlement HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .collect();
    stream.write_all(requests.as_bytes()).expect("the server takes it");
    stream.shutdown(Shutdown::Write).expect("it is connected");
    let answers = read_to_end(stream);
    let named: Vec<usize> = (0..100).filter_map(|number| answers.find(&format!(r#""t{number}""#))).collect();
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 100);
    assert!(named.len() == 100 && named.is_sorted(), "{answers}");
    sidecar.stop();
}

#[test]
fn a_thousand_idle_connections_keep_nobody_out() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let metrics = sidecar.metrics_address();
    let idle: Vec<TcpStream> = (0..1_000)
        .map(|number| {
            let mut stream = connect(if number % 5 == 0 { metrics } else { sidecar.address });
            if number % 2 == 0 {
                stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the server takes it");
                let mut line = String::new();
                // The metrics listener has no such page, and may have let go of it for those that came after.
                drop(BufReader::new(stream.try_clone().expect("it can be read")).read_line(&mut line));
            }
            stream
        })
        .collect();
    assert_serves(&mut sidecar.client(), "beside");
    let mut scraper = Client::new(common::http::Address::Tcp(metrics));
    wait_for("a scrape", || scraper.try_call(&Request::get("/metrics")).ok().filter(|answer| answer.status == 200));
    drop(idle);
    sidecar.stop();
}

/// Names and evidence with markup, terminal sequences and line breaks stay text, wherever they are shown.
#[test]
fn what_people_are_shown_cannot_act() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let mut client = sidecar.client();
    let url = format!("http://{}", sidecar.address);
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[31m<script>alert(1)</script>\r\nSet-Cookie: a=b\u{202e}\u{9b}2J";
    let agent = |notes: &str| {
        json!({"agent_id": "thon", "name": "thon", "capabilities": ["sql"], "cost_per_task": "1",
            "metadata": {"note": evil}, "billing_notes": notes})
    };
    if client.post("/v1/agents", &agent(evil)).status != 201 {
        client.post("/v1/agents", &agent("<script>alert(1)</script>")).expect(201);
    }
    for name in [evil, "two\nlines", "tab\there"] {
        let agent = json!({"agent_id": "other", "name": name, "capabilities": [name], "cost_per_task": "1"});
        let refused = client.post("/v1/agents", &agent);
        assert_eq!(refused.status, 422, "{}", refused.text());
        assert!(!refused.text().contains('\u{1b}'));
    }
    let new = json!({"payer_agent": "a", "provider_agent": "thon", "capability": "sql", "amount": "1",
        "transaction_id": "t", "context": {"note": evil}});
    client.post("/v1/transactions", &new).expect(201);
    client.post("/v1/transactions/t/dispute", &json!({"reason": evil, "evidence": [evil]})).expect(200);
    for arguments in [
        &["agent", "get", "thon"][..],
        &["agent", "list"],
        &["tx", "get", "t"],
        &["tx", "list"],
        &["tx", "events", "t"],
    ] {
        let output = tradepost().args(["--url", &url]).args(arguments).output().expect("it runs");
        let shown = String::from_utf8(output.stdout).expect("it is text");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let acts = |character: char| character.is_control() && character != '\n' || character == '\u{202e}';
        assert!(!shown.contains(acts), "{arguments:?}: {shown:?}");
        assert!(!shown.lines().any(|line| line.trim_start().starts_with("Set-Cookie")), "{arguments:?}: {shown:?}");
    }
    let answer = client.get("/v1/transactions/t").expect(200);
    assert_eq!(answer.header("set-cookie"), None);
    assert_eq!(answer.json()["evidence"], json!([evil]), "it is kept as it was given");
    let scraped = sidecar.metrics_client().get("/metrics").expect(200);
    assert!(!scraped.text().contains(['\u{1b}', '\r']));
    let log = sidecar.log();
    assert!(!log.contains('\u{1b}') && log.lines().all(|line| line.starts_with('{')), "{log}");
    sidecar.stop();
}
