//! The stream beneath hyper: watched for progress, and kept from saying what the API would say otherwise.
//!
//! hyper answers a head that it cannot read with an empty 400, 414 or 431 of its own. The wire recognizes that answer,
//! swallows it, and remembers its status, so that the connection can send a problem document in its place. Our handlers
//! never write such a head: their errors have bodies.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest head of hyper's own errors: a status line, three short headers.
const LONGEST_BARE_HEAD: usize = 256;

/// What the connection sees of its wire. Written and read by one task.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Whether a request is being handled or answered.
    pub(super) busy: AtomicBool,
    /// Whether bytes have come since the last request was handed over: the beginning of a head.
    pub(super) head_started: AtomicBool,
    /// How many requests have been handed over.
    pub(super) requests: AtomicU64,
    /// The status of a swallowed answer; 0 for none.
    pub(super) swallowed: AtomicU16,
    /// Whether the client takes no more bytes at present.
    pub(super) write_blocked: AtomicBool,
    /// How many bytes the client has taken.
    pub(super) written: AtomicU64,
    /// Whether the client has closed its side.
    pub(super) ended: AtomicBool,
}

/// A stream and its watch.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    watch: Arc<Watch>,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, watch: Arc<Watch>) -> Self {
        Self { stream, watch }
    }

    pub(super) fn into_stream(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let room = buffer.remaining();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = polled {
            if buffer.filled().len() > before {
                if !self.watch.busy.load(Ordering::Relaxed) {
                    self.watch.head_started.store(true, Ordering::Relaxed);
                }
            } else if room > 0 {
                self.watch.ended.store(true, Ordering::Relaxed);
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let keep = match bare_error(bytes) {
            Some((0, status)) => {
                self.watch.swallowed.store(status, Ordering::Relaxed);
                return Poll::Ready(Ok(bytes.len()));
            }
            // The rest of the answer before it goes out first; what is left comes here again.
            Some((start, _)) => &bytes[..start],
            None => bytes,
        };
        let polled = Pin::new(&mut self.stream).poll_write(cx, keep);
        match &polled {
            Poll::Pending => self.watch.write_blocked.store(true, Ordering::Relaxed),
            Poll::Ready(Ok(count)) => {
                self.watch.write_blocked.store(false, Ordering::Relaxed);
                self.watch.written.fetch_add(*count as u64, Ordering::Relaxed);
            }
            Poll::Ready(Err(_)) => {}
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        self.poll_write(cx, first)
    }

    /// hyper then puts an answer into one buffer, whose end can be looked at.
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Left to the connection, which may have something to say yet.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where in `bytes` a bare error head begins that ends with them, and its status.
fn bare_error(bytes: &[u8]) -> Option<(usize, u16)> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail = bytes.len().saturating_sub(LONGEST_BARE_HEAD);
    let start = tail + bytes[tail..].windows(9).rposition(|window| window == b"HTTP/1.1 " || window == b"HTTP/1.0 ")?;
    let head = std::str::from_utf8(&bytes[start..]).ok()?;
    let status = head.get(9..12)?.parse().ok()?;
    let empty = head.split("\r\n").any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    (matches!(status, 400 | 414 | 431) && empty).then_some((start, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\
                        date: Mon, 23 Nov 2026 01:02:03 GMT\r\n\r\n";

    #[test]
    fn a_bare_error_head_is_recognized_at_the_end_only() {
        assert_eq!(bare_error(BARE.as_bytes()), Some((0, 431)));
        let after = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{{}}{BARE}");
        assert_eq!(bare_error(after.as_bytes()), Some((after.len() - BARE.len(), 431)));
        for other in [
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 12\r\n\r\n",
            "0\r\n\r\n",
            "{}",
            "",
        ] {
            assert_eq!(bare_error(other.as_bytes()), None, "{other:?}");
        }
    }
}
