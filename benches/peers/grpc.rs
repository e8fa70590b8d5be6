//! Just enough of gRPC over HTTP/2 for etcd: one connection with one call under way, or one stream of messages.
//!
//! etcd's clients speak gRPC; its gateway for JSON passes every request on to the same port and costs about as much again.
//! A library would be the better client, and take more of the processors that the server needs.
//!
//! Deliberately absent: reading headers (an answer without a message is a failure, and there is no other question), and
//! counting what may still be sent (a server has read a small message when it answers it).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
/// As much as the protocol allows, so that nothing that is received ever needs to be acknowledged.
const WIDEST_WINDOW: u32 = 0x7fff_ffff;
const INITIAL_WINDOW: u32 = 65_535;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection.
pub struct Channel {
    stream: TcpStream,
    received: Vec<u8>,
    /// The number of the stream that the next call opens.
    next: u32,
}

/// What was received.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Channel {
    pub async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("etcd accepts");
        stream.set_nodelay(true).expect("loopback takes TCP_NODELAY");
        let window: [u8; 6] = {
            let [a, b, c, d] = WIDEST_WINDOW.to_be_bytes();
            [0, 4, a, b, c, d]
        };
        let mut hello = PREFACE.to_vec();
        frame(&mut hello, SETTINGS, 0, 0, &window);
        frame(&mut hello, WINDOW_UPDATE, 0, 0, &(WIDEST_WINDOW - INITIAL_WINDOW).to_be_bytes());
        stream.write_all(&hello).await.expect("etcd reads");
        Self { stream, received: Vec::with_capacity(16 * 1024), next: 1 }
    }

    /// Asks once, and waits for the whole answer.
    pub async fn call(&mut self, path: &str, message: &[u8]) {
        let stream = self.open();
        let mut bytes = Vec::with_capacity(256 + message.len());
        frame(&mut bytes, HEADERS, END_HEADERS, stream, &head(path));
        frame(&mut bytes, DATA, END_STREAM, stream, &with_length(message));
        self.stream.write_all(&bytes).await.expect("etcd reads");
        let mut is_answered = false;
        loop {
            let frame = self.next_frame_of(stream).await;
            is_answered |= frame.kind == DATA && !frame.payload.is_empty();
            if frame.flags & END_STREAM != 0 {
                assert!(is_answered, "etcd refuses {path}");
                return;
            }
        }
    }

    /// Opens a stream of messages both ways.
    pub async fn open_stream(&mut self, path: &str) -> u32 {
        let stream = self.open();
        let mut bytes = Vec::new();
        frame(&mut bytes, HEADERS, END_HEADERS, stream, &head(path));
        self.stream.write_all(&bytes).await.expect("etcd reads");
        stream
    }

    /// Sends a message on a stream, and waits for one; its bytes.
    pub async fn exchange(&mut self, stream: u32, message: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        frame(&mut bytes, DATA, 0, stream, &with_length(message));
        self.stream.write_all(&bytes).await.expect("etcd reads");
        loop {
            let frame = self.next_frame_of(stream).await;
            assert!(frame.flags & END_STREAM == 0, "etcd ends the stream");
            if frame.kind == DATA && !frame.payload.is_empty() {
                return frame.payload;
            }
        }
    }

    fn open(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        stream
    }

    async fn next_frame_of(&mut self, stream: u32) -> Frame {
        loop {
            let received = self.next_frame().await;
            let mut reply = Vec::new();
            match received.kind {
                SETTINGS if received.flags & ACK == 0 => frame(&mut reply, SETTINGS, ACK, 0, &[]),
                PING if received.flags & ACK == 0 => frame(&mut reply, PING, ACK, 0, &received.payload),
                RST_STREAM | GOAWAY => panic!("etcd breaks off: {:?}", String::from_utf8_lossy(&received.payload)),
                DATA | HEADERS if received.stream == stream => return received,
                _ => {}
            }
            if !reply.is_empty() {
                self.stream.write_all(&reply).await.expect("etcd reads");
            }
        }
    }

    async fn next_frame(&mut self) -> Frame {
        loop {
            if let Some(&[a, b, c, kind, flags, s0, s1, s2, s3]) = self.received.first_chunk::<FRAME_HEAD>() {
                let end = FRAME_HEAD + u32::from_be_bytes([0, a, b, c]) as usize;
                if self.received.len() >= end {
                    let payload = self.received[FRAME_HEAD..end].to_vec();
                    self.received.drain(..end);
                    return Frame { kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]), payload };
                }
            }
            let read = self.stream.read_buf(&mut self.received).await.expect("etcd answers");
            assert!(read > 0, "etcd closed the connection");
        }
    }
}

fn frame(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("messages are short");
    to.extend_from_slice(&length.to_be_bytes()[1..]);
    to.extend_from_slice(&[kind, flags]);
    to.extend_from_slice(&stream.to_be_bytes());
    to.extend_from_slice(payload);
}

/// The header block of a call (RFC 7541): two fields of the static table whole, three names of it, one spelt out.
fn head(path: &str) -> Vec<u8> {
    const POST: u8 = 0x80 | 3;
    const SCHEME_HTTP: u8 = 0x80 | 6;
    let mut block = vec![POST, SCHEME_HTTP];
    let mut text = |name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(u8::try_from(value.len()).expect("headers are short"));
        block.extend_from_slice(value.as_bytes());
    };
    text(&[4], path);
    text(&[1], "localhost");
    text(&[0x0f, 31 - 0x0f], "application/grpc");
    text(b"\x00\x02te", "trailers");
    block
}

/// A message as gRPC frames it: not compressed, its length, itself.
fn with_length(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("messages are short");
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// A field of bytes of a Protocol Buffers message.
pub fn bytes_field(to: &mut Vec<u8>, number: u8, value: &[u8]) {
    to.push(number << 3 | 2);
    varint(to, value.len() as u64);
    to.extend_from_slice(value);
}

/// A field of a whole number.
pub fn number_field(to: &mut Vec<u8>, number: u8, value: u64) {
    to.push(number << 3);
    varint(to, value);
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}
