//! One keep-alive connection, with as little of an HTTP client as will do.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection with at most one request under way.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server accepts");
        stream.set_nodelay(true).expect("loopback takes TCP_NODELAY");
        Self { stream, buffer: Vec::with_capacity(64 * 1024) }
    }

    /// The body of the answer.
    pub async fn post(&mut self, path: &str, body: &str, expected: u16) -> &[u8] {
        let length = body.len();
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{kind}content-length: {length}\r\n\r\n");
        self.exchange(&(head + body), expected).await
    }

    /// The body of the answer.
    pub async fn get(&mut self, path: &str) -> &[u8] {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"), 200).await
    }

    async fn exchange(&mut self, request: &str, expected: u16) -> &[u8] {
        self.stream.write_all(request.as_bytes()).await.expect("the server reads");
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await.expect("the server answers");
            assert!(read > 0, "the server closed the connection");
            let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&self.buffer[..end]).expect("a head is ASCII");
            let length = head.lines().find_map(content_length).expect("the answer says how long it is");
            let body = end + 4..end + 4 + length;
            if self.buffer.len() >= body.end {
                let status = head.get(9..12).and_then(|status| status.parse().ok());
                assert_eq!(status, Some(expected), "{request}: {}", String::from_utf8_lossy(&self.buffer));
                return &self.buffer[body];
            }
        }
    }
}

fn content_length(line: &str) -> Option<usize> {
    let (name, value) = line.split_once(": ")?;
    if name.eq_ignore_ascii_case("content-length") { value.parse().ok() } else { None }
}
