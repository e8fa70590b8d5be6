//! What the client does when a server breaks off, is overloaded, or sends half a stream.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread;

use super::*;
use crate::tls::client::Roots;

/// Answers one connection after the other with the given bytes, and returns the heads of the requests.
fn serve(answers: Vec<&'static str>) -> (Client, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let answer = |answer: &str| {
            let mut reader = BufReader::new(listener.accept().unwrap().0);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            reader.read_exact(&mut vec![0; length]).unwrap();
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            head
        };
        answers.into_iter().map(answer).collect()
    });
    let places = vec![
        Place::Unix("/nowhere/tradepost.sock".into()),
        Place::Tcp { host: "127.0.0.1".to_owned(), port, encrypted: false },
    ];
    let token = Some(SecretString::from("t0ken"));
    (Client::new(Target { places, token, roots: Roots::System }).unwrap(), server)
}

const BREAK_OFF: &str = "";
const OVERLOADED: &str = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n";
const CREATED: &str = "HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}";

#[test]
fn a_keyed_request_is_repeated_under_one_key_until_it_is_answered() {
    let (client, server) = serve(vec![BREAK_OFF, OVERLOADED, CREATED]);
    let answer = client.call(&Call::post_once("/v1/transactions", None).json("{}")).unwrap();
    assert_eq!((answer.status, &answer.body[..]), (201, &b"{}"[..]));
    let heads = server.join().unwrap();
    assert_eq!(heads.len(), 3);
    assert!(heads.iter().all(|head| *head == heads[0]), "{heads:?}");
    for line in ["POST /v1/transactions HTTP/1.1", "authorization: Bearer t0ken", "content-type: application/json"] {
        assert!(heads[0].lines().any(|found| found == line), "{line} in {}", heads[0]);
    }
    assert!(heads[0].contains("\r\nidempotency-key: ") && heads[0].contains("\r\nhost: 127.0.0.1:"));
}

#[test]
fn what_must_not_be_repeated_is_sent_once_and_its_outcome_called_unknown() {
    let (client, server) = serve(vec![BREAK_OFF]);
    let failure = client.call(&Call::delete("/v1/agents/a").if_match(Some(7))).unwrap_err();
    assert_eq!(failure.exit(), Exit::Unreachable);
    assert!(format!("{failure:?}").contains("is unknown"), "{failure:?}");
    assert!(server.join().unwrap()[0].contains("if-match: \"7\"\r\n"));

    // The listener is gone with its thread: now nothing can have been done.
    let failure = client.call(&Call::delete("/v1/agents/a")).unwrap_err();
    assert_eq!(failure.exit(), Exit::Unreachable);
    let words = format!("{failure:?}");
    assert!(words.contains("/nowhere/tradepost.sock") && words.contains("127.0.0.1") && !words.contains("unknown"));
}

#[test]
fn a_lost_answer_to_a_keyed_request_says_how_to_go_on() {
    let (client, server) = serve(vec![BREAK_OFF, BREAK_OFF, BREAK_OFF]);
    let failure = client.call(&Call::post_once("/v1/agents", Some("k1".to_owned()))).unwrap_err();
    assert!(format!("{failure:?}").contains("--idempotency-key k1"), "{failure:?}");
    assert_eq!(server.join().unwrap().len(), 3);
}

#[test]
fn a_stream_ends_properly_or_fails() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n1\n\r\n";
    const WHOLE: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n1\n\r\n0\r\n\r\n";
    let (client, server) = serve(vec![WHOLE, HEAD, OVERLOADED]);
    let mut received = Vec::new();
    let mut stream = || {
        let mut sink = |chunk: &Bytes| {
            received.extend_from_slice(chunk);
            Ok(())
        };
        client.stream(&Call::get("/v1/export/transactions"), &mut sink)
    };
    assert!(stream().unwrap().is_none());
    assert_eq!(stream().unwrap_err().exit(), Exit::Io);
    assert_eq!(stream().unwrap().map(|answer| answer.status), Some(503));
    assert_eq!(received, b"1\n1\n");
    server.join().unwrap();
}
