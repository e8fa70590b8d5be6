//! The server: accepting connections within a limit, and letting go of them at shutdown.
//!
//! Invariants: every connection is a task of its listener's task, which waits for it or ends it. Nothing that a client
//! does, and no lack of descriptors, ends the accepting.

mod connection;
mod slots;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::connection::Connection;
use self::slots::{Slots, allowed_connections};
use super::gate::{Gate, OTHER, Peer};
use super::problem::{Code, Problem};
use super::{Api, Limits};
use crate::metrics::Metrics;
use crate::tls::server::CurrentTls;

/// How long accepting rests when the system refuses, for want of descriptors as a rule.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// How many surplus clients are told so at once; more are just let go.
const POLITE_REFUSALS: usize = 32;

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// TCP, encrypted.
    Tls(TcpListener, CurrentTls),
    /// A Unix socket.
    Unix(UnixListener),
}

/// Serves the API on all listeners until `shutdown` turns true or its sender is gone.
///
/// Then it stops accepting, lets running requests finish, closes idle connections, and returns when all are closed or
/// [`Limits::shutdown_deadline`] has passed; what is still open then is cut off.
pub async fn serve(listeners: Vec<Listener>, api: Api, shutdown: watch::Receiver<bool>, limits: Limits) {
    let shared = Arc::new(Shared {
        gate: Arc::new(Gate::new(api.clone(), &limits)),
        metrics: api.metrics,
        slots: Slots::new(limits.connections.unwrap_or_else(allowed_connections)),
        refusals: Arc::new(Semaphore::new(POLITE_REFUSALS)),
        limits,
    });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, Arc::clone(&shared), shutdown.clone()));
    }
    while let Some(ended) = accepting.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a listener's task failed");
        }
    }
}

/// What all connections share.
struct Shared {
    gate: Arc<Gate>,
    metrics: Metrics,
    slots: Slots,
    refusals: Arc<Semaphore>,
    limits: Limits,
}

async fn accept(listener: Listener, shared: Arc<Shared>, shutdown: watch::Receiver<bool>) {
    let mut stop = shutdown.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = accept_one(&listener) => match accepted {
                Ok((accepted, local)) => admit(accepted, local, &shared, &shutdown, &mut connections),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    shared.slots.evict_oldest_idle();
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    let deadline = Instant::now() + shared.limits.shutdown_deadline;
    while let Ok(Some(_)) = tokio::time::timeout_at(deadline, connections.join_next()).await {}
    if !connections.is_empty() {
        tracing::warn!(connections = connections.len(), "connections were cut off at shutdown");
        connections.shutdown().await;
    }
}

/// Waits for the server to stop; a sender that is gone is a stop too, since nobody could ask for one later.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // What comes back holds the channel's lock, and goes at once.
    drop(shutdown.wait_for(|stop| *stop).await);
}

/// A stream of any kind that needs nothing more.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What was accepted.
enum Accepted {
    Plain(Box<dyn Stream>),
    /// To be encrypted first.
    Tls(TcpStream, Arc<ServerConfig>),
}

async fn accept_one(listener: &Listener) -> io::Result<(Accepted, Option<SocketAddr>)> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, local) = accept_tcp(listener).await?;
            Ok((Accepted::Plain(Box::new(stream)), Some(local)))
        }
        Listener::Tls(listener, config) => {
            let (stream, local) = accept_tcp(listener).await?;
            Ok((Accepted::Tls(stream, config.load_full()), Some(local)))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            Ok((Accepted::Plain(Box::new(stream)), None))
        }
    }
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, _) = listener.accept().await?;
    // Answers are written whole; only slower without.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    let local = stream.local_addr()?;
    Ok((stream, local))
}

fn admit(
    accepted: Accepted,
    local: Option<SocketAddr>,
    shared: &Arc<Shared>,
    shutdown: &watch::Receiver<bool>,
    connections: &mut JoinSet<()>,
) {
    let Some(slot) = shared.slots.take() else {
        let problem = Problem::new(Code::Overloaded, "all connections are busy; try again shortly");
        shared.metrics.http_request(OTHER, OTHER, problem.status().as_u16(), Duration::ZERO);
        // Encrypting just to refuse would be work for whoever wants to make some.
        if let (Accepted::Plain(stream), Ok(permit)) = (accepted, Arc::clone(&shared.refusals).try_acquire_owned()) {
            connections.spawn(async move {
                connection::refuse(stream, &problem).await;
                drop(permit);
            });
        }
        return;
    };
    let connection = Connection {
        gate: Arc::clone(&shared.gate),
        metrics: shared.metrics.clone(),
        limits: shared.limits.clone(),
        peer: Arc::new(Peer::new(local)),
        slot,
        shutdown: shutdown.clone(),
    };
    match accepted {
        Accepted::Plain(stream) => connections.spawn(connection.run(stream)),
        Accepted::Tls(stream, config) => connections.spawn(connection.run_encrypted(stream, config)),
    };
}
