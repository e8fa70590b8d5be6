//! The metrics listener: Prometheus' page on a port of its own, served by tiny_http.
//!
//! tiny_http has no limits and no timeouts, and its accept thread may end for good. So two parts stand between it and
//! the network:
//! - the relay owns the TCP port. It reads and checks each client's request itself and asks tiny_http in words of its
//!   own, so that no byte of a client ever reaches it and no slow client ever holds it;
//! - the backend runs tiny_http on a private Unix socket, probes it, and replaces it when it is gone or hangs.
//!
//! Invariants: at most 64 clients at once, each for at most 10 s whatever it does; nothing that happens here stops the
//! API. Deliberately absent: keep-alive, compression, TLS, problem documents for requests that are not HTTP.

mod backend;
mod gate;
mod problem;
mod relay;
#[cfg(test)]
mod tests;
mod upstream;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::access::Access;
use crate::metrics::{Metrics, StateSource};

use backend::{Door, Source};
use gate::Gate;

/// What a metrics listener needs.
pub struct ExporterOptions {
    /// Where to listen; port 0 takes any.
    pub listen: SocketAddr,
    /// What was counted.
    pub metrics: Metrics,
    /// What the gauges show.
    pub state: Arc<dyn StateSource>,
    /// Who may ask.
    pub access: Arc<Access>,
}

impl fmt::Debug for ExporterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExporterOptions").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// A running metrics listener. Dropping the handle leaves it running until it is told to shut down.
#[derive(Debug)]
pub struct ExporterHandle {
    bound: watch::Receiver<Option<SocketAddr>>,
    task: JoinHandle<()>,
    #[cfg(test)]
    door: watch::Receiver<Option<Arc<Door>>>,
}

impl ExporterHandle {
    /// The address that it listens on; `None` until the port was free. It changes once at most.
    pub fn bound(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.bound.clone()
    }

    /// Waits until it has shut down, which begins when its shutdown watch turns true or loses its sender. Takes at most
    /// 5 s, then ends it where it stands.
    pub async fn join(mut self) {
        match timeout(Duration::from_secs(5), &mut self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the metrics listener failed"),
            Err(_) => {
                tracing::warn!("the metrics listener did not shut down in time");
                self.task.abort();
            }
        }
    }
}

/// How much, how long, how often.
#[derive(Debug, Clone)]
struct Limits {
    /// Clients at once.
    connections: usize,
    /// Pages on their way to clients at once, which bounds the memory that slow readers hold.
    scrapes: usize,
    /// How long one client may take for everything.
    connection: Duration,
    /// How long tiny_http may take to answer a client before the client is told that it does not.
    answer: Duration,
    /// How often tiny_http is probed.
    probe_every: Duration,
    /// How long it may take to answer a probe. Together with `probe_every`, a fault is seen within 10 s.
    probe: Duration,
    /// Between two attempts to take the port.
    bind_retry: Duration,
    /// How long clients may go on after the shutdown began.
    grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            scrapes: 8,
            connection: Duration::from_secs(10),
            answer: Duration::from_secs(8),
            probe_every: Duration::from_secs(5),
            probe: Duration::from_secs(5),
            bind_retry: Duration::from_secs(3),
            grace: Duration::from_secs(1),
        }
    }
}

/// Starts a metrics listener. It cannot fail: a taken port or a broken backend is logged and tried again until
/// `shutdown` turns true or loses its sender.
///
/// # Panics
/// Outside a Tokio runtime with I/O and time.
pub fn spawn(options: ExporterOptions, shutdown: watch::Receiver<bool>) -> ExporterHandle {
    spawn_with(options, Limits::default(), shutdown)
}

fn spawn_with(options: ExporterOptions, limits: Limits, shutdown: watch::Receiver<bool>) -> ExporterHandle {
    let (bound_sender, bound) = watch::channel(None);
    let (door_sender, door) = watch::channel(None);
    let exporter = Exporter {
        listen: options.listen,
        source: Source { metrics: options.metrics, state: options.state },
        gate: Arc::new(Gate {
            access: options.access,
            door: door.clone(),
            suspicion: Notify::new(),
            scrapes: Arc::new(Semaphore::new(limits.scrapes)),
            answer_within: limits.answer,
        }),
        limits,
        bound: bound_sender,
        door: door_sender,
    };
    ExporterHandle {
        bound,
        task: tokio::spawn(exporter.run(shutdown)),
        #[cfg(test)]
        door,
    }
}

struct Exporter {
    listen: SocketAddr,
    source: Source,
    gate: Arc<Gate>,
    limits: Limits,
    bound: watch::Sender<Option<SocketAddr>>,
    door: watch::Sender<Option<Arc<Door>>>,
}

impl Exporter {
    async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let mut threads = Vec::new();
        let supervisor = backend::supervise(&self.source, &self.door, &self.gate.suspicion, &self.limits, &mut threads);
        // The supervisor goes on until the clients that were let in have had their answers.
        let serve = async {
            let mut clients = JoinSet::new();
            tokio::select! {
                // A lost sender is a shutdown too.
                _ = shutdown.wait_for(|stop| *stop) => {}
                () = relay::run(self.listen, &self.gate, &self.limits, &self.bound, &mut clients) => {}
            }
            if timeout(self.limits.grace, async { while clients.join_next().await.is_some() {} }).await.is_err() {
                clients.shutdown().await;
            }
        };
        tokio::select! {
            () = serve => {}
            () = supervisor => {}
        }
        backend::join(threads).await;
    }
}
