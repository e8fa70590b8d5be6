//! What a process stands in gives way: its log is read by nobody, its file is moved, its socket's name is taken, its files
//! may not grow, a credential cannot be read. It says so, goes on as far as it can, and ends when it is told to.

#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use common::http::{Address, Client, Request};
use common::sidecar::{Home, Sidecar, wait_for};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};

fn transaction(id: &str, context: &Value) -> Request {
    let body = json!({
        "transaction_id": id, "payer_agent": "genesis", "provider_agent": "thon", "capability": "python", "amount": "1",
        "context": context,
    });
    Request::post("/v1/transactions", &body)
}

fn record(client: &mut Client, id: &str) -> u16 {
    client.call(&transaction(id, &json!({}))).status
}

fn waits_until_ready_is(client: &mut Client, status: u16) {
    wait_for("readiness to change", || (client.get("/readyz").status == status).then_some(()));
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let home = Home::new();
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let blocking = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, blocking | OFlags::NONBLOCK).unwrap();
    let full = loop {
        if let Err(error) = writer.write_all(b"what was logged before\n") {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    fcntl_setfl(&writer, blocking).unwrap();
    let mut child = home.setup().command().stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    let mut client = Client::new(Address::Unix(home.data().join("tradepost.sock")));
    wait_for("readiness", || client.try_call(&Request::get("/readyz")).ok().filter(|answer| answer.status == 200));
    assert_eq!(record(&mut client, "t1"), 201);
    let pid = Pid::from_child(&child);
    // Each is logged.
    for _ in 0..3 {
        kill_process(pid, Signal::HUP).unwrap();
    }
    assert_eq!(record(&mut client, "t2"), 201);
    kill_process(pid, Signal::TERM).unwrap();
    let status = wait_for("the end of the process", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    home.assert_sound();
}

#[test]
fn nothing_is_acknowledged_into_a_file_that_was_moved_or_replaced() {
    let home = Home::new();
    let (file, elsewhere) = (home.file(), home.path().join("elsewhere"));
    let sidecar = home.setup().start();
    let mut client = sidecar.client();
    assert_eq!(record(&mut client, "before"), 201);

    // Nobody writes, and it is noticed all the same.
    fs::rename(&file, &elsewhere).unwrap();
    waits_until_ready_is(&mut client, 503);
    let answer = client.call(&transaction("refused", &json!({})));
    assert_eq!(answer.status, 503);
    assert!(answer.json()["detail"].as_str().unwrap().contains("was removed, moved or replaced"), "{}", answer.json());
    client.get("/v1/transactions/before").expect(200);
    fs::rename(&elsewhere, &file).unwrap();
    waits_until_ready_is(&mut client, 200);
    assert_eq!(record(&mut client, "after"), 201);

    // A write that comes first is refused as well.
    fs::copy(&file, &elsewhere).unwrap();
    fs::rename(&elsewhere, &file).unwrap();
    assert_eq!(record(&mut client, "into-nothing"), 503);
    sidecar.stop();
    let sidecar = home.setup().start();
    let mut client = sidecar.client();
    client.get("/v1/transactions/after").expect(200);
    client.get("/v1/transactions/refused").expect(404);
    sidecar.stop();
    home.assert_sound();
}

#[test]
fn a_socket_of_somebody_else_under_the_same_name_stays() {
    let home = Home::new();
    let path = home.path().join("socket");
    let sidecar = home.setup().flags(&["--socket", path.to_str().unwrap()]).start();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    sidecar.stop();
    assert!(path.exists(), "another's socket was removed");
}

#[test]
fn a_file_that_may_not_grow_is_like_a_full_disk() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let mut client = sidecar.client();
    let limited = |limit| {
        let limit = Rlimit { current: limit, maximum: None };
        prlimit(Some(sidecar.pid()), Resource::Fsize, limit).unwrap();
    };
    limited(Some(fs::metadata(home.file()).unwrap().len()));
    let context = json!({"x": "x".repeat(50_000)});
    let status = (0..500).map(|number| client.call(&transaction(&format!("t{number}"), &context)).status);
    let refused = status.into_iter().find(|status| *status != 201);
    assert_eq!(refused, Some(507));
    limited(None);
    waits_until_ready_is(&mut client, 200);
    assert_eq!(record(&mut client, "after"), 201);
    sidecar.stop();
    home.assert_sound();
}

#[test]
fn a_credential_that_blocks_whoever_reads_it_keeps_the_process_from_nothing() {
    let home = Home::new();
    let token = home.path().join("token");
    fs::write(&token, "a-token-that-is-long-enough-for-anybody").unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let sidecar: Sidecar = home.setup().flags(&["--token-file", token.to_str().unwrap()]).start();
    fs::remove_file(&token).unwrap();
    mknodat(CWD, &token, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    sidecar.signal(Signal::HUP);
    sidecar.signal(Signal::HUP);
    sidecar.stop();
    home.assert_sound();
}
