//! One request to tiny_http, in our own words, and its whole answer.
//!
//! The answer is read at once and kept, for tiny_http's thread waits while it writes.

use std::error::Error;
use std::path::Path;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Longer than any page: 1 000 series in each of the families by an outside label, with the longest of names.
const LONGEST: usize = 16 << 20;

/// What tiny_http answered, complete.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) body: Bytes,
}

/// Gets one page. The connection ends with the future, however that ends.
pub(super) async fn get(socket: &Path, path: &'static str) -> Result<Page, Box<dyn Error + Send + Sync>> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let request = Request::get(path)
            .header(HOST, "localhost")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .expect("a request of constants is valid");
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, LONGEST).collect().await?.to_bytes();
        let content_type = head.headers.get(CONTENT_TYPE).cloned();
        Ok(Page { status: head.status, content_type, body })
    };
    // Whatever ends the connection early ends the exchange with an error that says so.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}
