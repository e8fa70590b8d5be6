//! tiny_http on a private Unix socket, and who replaces it when it is gone or hangs.
//!
//! Each instance has a directory of its own, 0700 and of a random name (an abstract socket would be open to every local
//! user, past the checks of Host, Origin and token), which goes with it. A thread that hangs cannot be ended, only left
//! behind, so there are at most [`MOST_THREADS`] of them.

use std::fs::Permissions;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tiny_http::{Header, Request, Response, Server, StatusCode};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::{Limits, upstream};
use crate::metrics::{self, Metrics, StateSource};

/// The page of metrics.
pub(super) const METRICS: &str = "/metrics";
/// Whether the listener lives.
pub(super) const LIVEZ: &str = "/livez";

/// tiny_http's threads of ours that may exist at once: the one in use, and those left behind hanging.
const MOST_THREADS: usize = 4;

/// Between two starts. It doubles while instances do not live long, so that a lasting fault (no descriptors left, say)
/// neither spins nor fills the log, and still heals within seconds of its end.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where the page comes from.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) metrics: Metrics,
    pub(super) state: Arc<dyn StateSource>,
}

/// The way to one instance of tiny_http. Its directory goes with the last one who knows it.
#[derive(Debug)]
pub(super) struct Door {
    socket: PathBuf,
    listener: UnixStream,
    _directory: TempDir,
}

impl Door {
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends tiny_http's accept thread, and refuses every further connection at once.
    pub(super) fn shut(&self) {
        if let Err(error) = self.listener.shutdown(Shutdown::Both) {
            tracing::debug!(%error, "shutting down the private socket");
        }
    }
}

/// Receives an error when the thread that holds the other end has ended, in whatever way.
pub(super) type Ended = oneshot::Receiver<()>;

struct Backend {
    door: Arc<Door>,
    server: Arc<Server>,
}

impl Backend {
    fn start(source: Source) -> io::Result<(Self, Ended)> {
        let (directory, socket, listener) = bind()?;
        // A socket's own methods are what std lacks for a listener: shutting it down is the one way to wake `accept`.
        let control = UnixStream::from(OwnedFd::from(listener.try_clone()?));
        let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
        let door = Arc::new(Door { socket, listener: control, _directory: directory });
        let backend = Self { door, server: Arc::clone(&server) };
        let (alive, ended) = oneshot::channel();
        thread::Builder::new().name("metrics".into()).spawn(move || {
            let _alive: oneshot::Sender<()> = alive;
            // An error is the accept thread's last message.
            while let Ok(request) = server.recv() {
                // Unwinding answers 500 by itself. What a panic of the page leaves half done is behind locks that
                // everybody takes over as they are.
                if catch_unwind(AssertUnwindSafe(|| answer(request, &source))).is_err() {
                    tracing::error!("the metrics could not be rendered");
                }
            }
        })?;
        Ok((backend, ended))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // In this order: tiny_http connects to itself when it is dropped, which must be refused, not wait.
        self.door.shut();
        self.server.unblock();
    }
}

/// Binds a socket in a new directory that only this user may enter, in the first place that has room for one.
fn bind() -> io::Result<(TempDir, PathBuf, UnixListener)> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = [Some(std::env::temp_dir()), runtime, Some("/dev/shm".into()), Some("/var/tmp".into())];
    let mut first_error = None;
    for place in places.into_iter().flatten() {
        let attempt = || {
            let directory = tempfile::Builder::new()
                .prefix("tradepost-")
                .permissions(Permissions::from_mode(0o700))
                .tempdir_in(&place)?;
            let socket = directory.path().join("metrics.sock");
            let listener = UnixListener::bind(&socket)?;
            Ok((directory, socket, listener))
        };
        match attempt() {
            Ok(bound) => return Ok(bound),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.expect("the list of places is not empty"))
}

/// Only the relay asks, in its own words; anything else is a mistake of ours.
fn answer(request: Request, source: &Source) {
    let response = match request.url() {
        METRICS => {
            let page = source.metrics.render(&*source.state);
            let kind = Header::from_bytes("Content-Type", metrics::CONTENT_TYPE).expect("a constant header is valid");
            // With a length, however long, so that the relay can tell a page that was cut short.
            Response::from_data(page).with_header(kind).with_chunked_threshold(usize::MAX)
        }
        LIVEZ => Response::from_string("ok\n"),
        _ => Response::from_data(Vec::new()).with_status_code(StatusCode(404)),
    };
    if let Err(error) = request.respond(response) {
        tracing::debug!(%error, "answering the relay");
    }
}

/// Keeps one instance of tiny_http running for ever, and its door known. `suspicion` brings the next probe forward.
///
/// When the future is dropped, `threads` are those that have not ended yet.
pub(super) async fn supervise(
    source: &Source,
    door: &watch::Sender<Option<Arc<Door>>>,
    suspicion: &Notify,
    limits: &Limits,
    threads: &mut Vec<Ended>,
) {
    let mut failing = false;
    let mut pause = SHORTEST_PAUSE;
    loop {
        threads.retain_mut(|thread| matches!(thread.try_recv(), Err(TryRecvError::Empty)));
        let started = if threads.len() < MOST_THREADS {
            Backend::start(source.clone())
        } else {
            Err(io::Error::other("too many of its threads hang"))
        };
        match started {
            Ok((backend, ended)) => {
                failing = false;
                threads.push(ended);
                let thread = threads.last_mut().expect("it was just pushed");
                door.send_replace(Some(Arc::clone(&backend.door)));
                let born = Instant::now();
                let fault = until_sick(&backend.door, thread, suspicion, limits).await;
                door.send_replace(None);
                tracing::warn!(fault, "the metrics server is being restarted");
                if born.elapsed() > limits.probe_every {
                    pause = SHORTEST_PAUSE;
                }
            }
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "the metrics server cannot be started; trying again");
            }
            Err(_) => {}
        }
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Returns when the instance behind the door has to be replaced, and why.
async fn until_sick(door: &Door, thread: &mut Ended, suspicion: &Notify, limits: &Limits) -> &'static str {
    loop {
        tokio::select! {
            _ = &mut *thread => return "its thread ended",
            () = suspicion.notified() => {}
            () = sleep(limits.probe_every) => {}
        }
        match timeout(limits.probe, upstream::get(door.socket(), LIVEZ)).await {
            Ok(Ok(page)) if page.status.is_success() => {}
            Ok(_) => return "it does not answer",
            Err(_) => return "it hangs",
        }
    }
}

/// Waits for threads that were told to end, but not for long: one that hangs must not hold up the process.
pub(super) async fn join(threads: Vec<Ended>) {
    let all = async {
        for mut thread in threads {
            // One that is known to have ended must not be awaited again.
            if matches!(thread.try_recv(), Err(TryRecvError::Empty)) {
                // The sender is never used: its end is the message.
                drop(thread.await);
            }
        }
    };
    if timeout(Duration::from_secs(1), all).await.is_err() {
        tracing::warn!("a thread of the metrics server hangs; leaving it behind");
    }
}
