//! Owns the TCP port: takes it, however long that takes, and gives each client its time and no more.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Limits;
use super::gate::{Client, Gate};

/// What accept needs to recover from, above all a want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// As on the API. hyper compares after each read, so a head may be up to twice as long before it is refused.
const LONGEST_HEAD: usize = 32 << 10;
const MOST_HEADERS: usize = 100;

/// Takes the port and serves whoever comes, for ever. Each client has a task in `clients`.
pub(super) async fn run(
    listen: SocketAddr,
    gate: &Arc<Gate>,
    limits: &Limits,
    bound: &watch::Sender<Option<SocketAddr>>,
    clients: &mut JoinSet<()>,
) {
    let listener = bind(listen, limits.bind_retry).await;
    let address = listener.local_addr().unwrap_or(listen);
    tracing::info!(listen = %address, "serving metrics");
    bound.send_replace(Some(address));
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut failing = false;
    loop {
        // A place first: who does not get one waits in the kernel's queue, at no cost to us.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !gone(&error) {
                    if !failing {
                        failing = true;
                        tracing::warn!(%error, "metrics: accepting a connection; trying again");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        failing = false;
        while let Some(ended) = clients.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "metrics: serving a connection");
            }
        }
        let (gate, within) = (Arc::clone(gate), limits.connection);
        clients.spawn(async move {
            let _place = place;
            if timeout(within, serve(stream, gate)).await.is_err() {
                tracing::debug!("metrics: a client took too long");
            }
        });
    }
}

async fn bind(listen: SocketAddr, retry: Duration) -> TcpListener {
    let mut warned = false;
    loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => return listener,
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(%error, address = %listen, "metrics are not served: cannot listen; trying again");
            }
            Err(_) => {}
        }
        sleep(retry).await;
    }
}

/// Whether it was the client that failed, before it was accepted.
fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionReset)
}

/// One request, one answer. What is not HTTP is turned away by the parser.
async fn serve(stream: TcpStream, gate: Arc<Gate>) {
    let Ok(local) = stream.local_addr() else { return };
    let client = Client::new(gate, local);
    let service = service_fn(|request| async { Ok::<_, Infallible>(client.answer(request).await) });
    let served = http1::Builder::new()
        .keep_alive(false)
        // A client that has sent all it will send still wants its answer.
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(LONGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "metrics: a client's connection failed");
    }
}
