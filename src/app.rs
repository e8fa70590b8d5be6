//! The composition root: builds the parts of a sidecar, wires them, and takes them down in order.
//!
//! Up: engine, listeners, replication, metrics, API. Down: the listeners stop accepting, requests in flight finish,
//! replication flushes what it can, what is queued is committed, the file is closed, the socket is removed.

use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use thiserror::Error;
use tokio::sync::watch;

use crate::access::Access;
use crate::clock::{Clock, SystemClock};
use crate::config::{CentralUrl, Certificate, ReplicationSettings, ServeSettings, StoreLocation, Token, read_token};
use crate::engine::{Engine, Location, OpenError, Options};
use crate::exporter::{self, ExporterOptions};
use crate::http::{self, Api, Limits, Listener, ServerInfo};
use crate::metrics::Metrics;
use crate::store::FileId;
use crate::sync::{self, CurrentUrl, SyncOptions};
use crate::tls::server::CurrentTls;

/// When shutting down has taken this long, the disk hangs and the process leaves it.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(9_400);
/// How often it is asked whether the disk hangs.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What the log is given before a process that hangs is left.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// Threads for reads that take longer: lists, searches, exports. None of them waits for a client, so there are only as many
/// as keep the disk and the processors busy: each keeps some megabytes in the allocator once it has made a large answer.
const BLOCKING_THREADS: usize = 8;

/// Why serving did not start, or did not end well.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An address, a socket or a thread was refused by the system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, and for what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl ServeError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Serves until SIGTERM or SIGINT.
pub fn serve(settings: ServeSettings) -> Result<(), ServeError> {
    // Before anything listens, so that a signal from here on ends it in order.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(ServeError::io("cannot watch for signals"))?;
    // A file that may not grow is like a full disk, once the signal does not end the process.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .map_err(ServeError::io("cannot watch for signals"))?;
    let started = Instant::now();
    let metrics = Metrics::default();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let engine = open_engine(&settings, metrics.clone(), Arc::clone(&clock))?;
    let tcp = bind_tcp(settings.listen)?;
    let (unix, socket) = settings.socket.as_deref().map(bind_socket).transpose()?.unzip();

    let secret = settings.token.as_ref().map(|token| token.secret.clone());
    let access = Arc::new(Access::new(settings.allowed_hosts.clone(), secret));
    let (stop, stopped) = watch::channel(false);
    let (credentials, reloaded) = Credentials::new(&settings, Arc::clone(&access));
    let tls = credentials.certificate.as_ref().map(|(_, current)| Arc::clone(current));
    if tls.is_none() && !settings.listen.ip().to_canonical().is_loopback() {
        tracing::warn!(
            listen = %settings.listen,
            "the token travels in plain text to whoever is on the way; --tls-cert and --tls-key encrypt it"
        );
    }
    let sync = settings.replication.is_configured().then(|| SyncOptions {
        engine: engine.clone(),
        metrics: metrics.clone(),
        clock,
        redis: credentials.redis.as_ref().map(|central| Arc::clone(&central.current)),
        postgres: credentials.postgres.as_ref().map(|central| Arc::clone(&central.current)),
        stale_for: settings.replication.stale_for,
        legacy_writers: settings.replication.legacy_writers,
        stopped: stopped.clone(),
        reloaded,
    });
    let reload = spawn_reloading(credentials).map_err(ServeError::io("cannot start a thread"))?;
    let signal_handle = signals.handle();
    let signal_thread = thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || watch_signals(&mut signals, &stop, &reload))
        .map_err(ServeError::io("cannot start a thread"))?;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("http")
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(ServeError::io("cannot start the runtime"))?;
    let info = Arc::new(ServerInfo { version: env!("CARGO_PKG_VERSION"), started, listen: ArcSwap::default() });
    let api = Api::new(engine.clone(), metrics.clone(), Arc::clone(&access), info);
    let sync_thread = sync.map(sync::spawn).transpose().map_err(ServeError::io("cannot start replication"))?;
    let served = runtime.block_on(run(api, settings.metrics_listen, tcp, tls, unix.zip(socket), stopped));
    // Reads that still run on the runtime's threads end with their process; they hold nothing that must be closed.
    runtime.shutdown_background();
    if sync_thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("the sync thread panicked");
    }
    engine.close();
    signal_handle.close();
    if signal_thread.join().is_err() {
        tracing::error!("the signal thread panicked");
    }
    if served.is_ok() {
        tracing::info!("stopped");
    }
    served
}

fn open_engine(settings: &ServeSettings, metrics: Metrics, clock: Arc<dyn Clock>) -> Result<Engine, ServeError> {
    let location = match &settings.store {
        StoreLocation::Memory => Location::Memory,
        StoreLocation::Directory(directory) => {
            crate::store::create_directory(directory)?;
            settings.store.file().map_or(Location::Memory, Location::File)
        }
    };
    let options = Options { agent_ttl: settings.agent_ttl, metrics, clock, ..Options::new(location) };
    Ok(Engine::open(options)?)
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address).map_err(ServeError::io(format!("cannot listen on {address}")))?;
    listener.set_nonblocking(true).map_err(ServeError::io(format!("cannot listen on {address}")))?;
    Ok(listener)
}

async fn run(
    api: Api,
    metrics_listen: Option<SocketAddr>,
    tcp: TcpListener,
    tls: Option<CurrentTls>,
    socket: Option<(UnixListener, SocketFile)>,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let address = tcp.local_addr().map_err(ServeError::io("cannot tell the address that was bound"))?;
    let tcp = tokio::net::TcpListener::from_std(tcp).map_err(ServeError::io(format!("cannot listen on {address}")))?;
    let (listener, shown) = match tls {
        Some(tls) => (Listener::Tls(tcp, tls), format!("https://{address}")),
        None => (Listener::Tcp(tcp), address.to_string()),
    };
    let (mut listeners, mut addresses) = (vec![listener], vec![shown]);
    let mut socket_file = None;
    if let Some((unix, file)) = socket {
        let refused = ServeError::io(format!("cannot listen on {}", file.path.display()));
        listeners.push(Listener::Unix(tokio::net::UnixListener::from_std(unix).map_err(refused)?));
        addresses.push(format!("unix:{}", file.path.display()));
        socket_file = Some(file);
    }
    tracing::info!(listen = %addresses.join(" "), node_id = %api.engine.node_id(), "serving the API");
    api.info.listen.store(Arc::new(addresses.clone()));

    let exporter = metrics_listen.map(|listen| {
        let state = Arc::new(api.engine.clone());
        let options = ExporterOptions { listen, metrics: api.metrics.clone(), state, access: Arc::clone(&api.access) };
        exporter::spawn(options, stopped.clone())
    });
    if let Some(exporter) = &exporter {
        let (mut bound, info) = (exporter.bound(), Arc::clone(&api.info));
        tokio::spawn(async move {
            // The port may be taken for now; it is shown once it is ours.
            if let Ok(address) = bound.wait_for(Option::is_some).await.map(|address| *address)
                && let Some(address) = address
            {
                addresses.push(format!("metrics:{address}"));
                info.listen.store(Arc::new(addresses));
            }
        });
    }
    let watching = tokio::spawn(watch_disk(api.engine.clone()));
    notify_service_manager(&[sd_notify::NotifyState::Ready]);
    http::serve(listeners, api, stopped, Limits::default()).await;
    notify_service_manager(&[sd_notify::NotifyState::Stopping]);
    watching.abort();
    // While the store's file is still locked: whoever opens it next makes a socket of its own under this name.
    drop(socket_file);
    if let Some(exporter) = exporter {
        exporter.join().await;
    }
    Ok(())
}

/// A disk that hangs is in the log also where nobody asks for anything. Until the task is aborted.
async fn watch_disk(engine: Engine) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        engine.look_at_disk();
    }
}

/// Tells systemd, where it runs us and asked to be told.
fn notify_service_manager(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// The first SIGTERM or SIGINT ends the process in order, the second at once. SIGHUP rereads the credentials.
fn watch_signals(signals: &mut Signals, stop: &watch::Sender<bool>, reload: &Sender<()>) {
    for signal in signals.forever() {
        if signal == SIGHUP {
            // One that waits already will read what is there by then.
            reload.try_send(()).ok();
        } else if *stop.borrow() {
            tracing::warn!("a second signal; leaving at once");
            leave(128 + signal);
        } else {
            tracing::info!("stopping");
            stop.send_replace(true);
            leave_if_stuck();
        }
    }
}

/// Rereads credentials whenever it is told to. On a thread of its own, for a file may block its reader: on a file system
/// that hangs, or as a pipe.
fn spawn_reloading(credentials: Credentials) -> io::Result<Sender<()>> {
    let (reload, asked) = crossbeam_channel::bounded(1);
    let run = move || asked.iter().for_each(|()| credentials.reload());
    thread::Builder::new().name("reload".to_owned()).spawn(run)?;
    Ok(reload)
}

/// The secrets that may change while we run.
struct Credentials {
    token: Option<Token>,
    access: Arc<Access>,
    certificate: Option<(Certificate, CurrentTls)>,
    redis: Option<Central>,
    postgres: Option<Central>,
    reloaded: watch::Sender<u64>,
}

/// A central system's URL: as it was configured, and as it is now.
struct Central {
    configured: CentralUrl,
    current: CurrentUrl,
}

impl Central {
    fn new(configured: &CentralUrl) -> Self {
        let current = Arc::new(ArcSwap::from_pointee(configured.secret().clone()));
        Self { configured: configured.clone(), current }
    }
}

impl Credentials {
    /// Also what moves whenever they were read again.
    fn new(settings: &ServeSettings, access: Arc<Access>) -> (Self, watch::Receiver<u64>) {
        let ReplicationSettings { redis, postgres, .. } = &settings.replication;
        let (redis, postgres) = (redis.as_ref().map(Central::new), postgres.as_ref().map(Central::new));
        let (reloaded, watched) = watch::channel(0);
        let certificate = settings.certificate.clone().map(|certificate| {
            let current = Arc::new(ArcSwap::new(Arc::clone(&certificate.config)));
            (certificate, current)
        });
        (Self { token: settings.token.clone(), access, certificate, redis, postgres, reloaded }, watched)
    }

    /// Rereads every file that a secret came from, and lets the sinks connect anew.
    fn reload(&self) {
        if let Some(token) = &self.token {
            match read_token(&token.file) {
                Ok(secret) => {
                    self.access.replace_token(Some(secret));
                    tracing::info!(file = %token.file.display(), "the token was reread");
                }
                Err(error) => tracing::error!(%error, "the token was not reread; the old one stays"),
            }
        }
        if let Some((certificate, current)) = &self.certificate {
            match certificate.reread() {
                Ok(certificate) => {
                    current.store(certificate.config);
                    tracing::info!("the certificate of the API was reread");
                }
                Err(error) => tracing::error!(%error, "the certificate was not reread; the old one stays"),
            }
        }
        for central in self.redis.iter().chain(&self.postgres) {
            match central.configured.reread() {
                Ok(Some(url)) => {
                    central.current.store(Arc::new(url.secret().clone()));
                    tracing::info!(%url, "the URL was reread");
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "a URL was not reread; the old one stays"),
            }
        }
        if self.token.is_none() && self.certificate.is_none() && self.redis.is_none() && self.postgres.is_none() {
            tracing::info!("SIGHUP: no credential file is configured, there is nothing to reread");
        }
        self.reloaded.send_modify(|times| *times += 1);
    }
}

/// Ends the process, whatever hangs. The log's own thread is given a moment for the last words.
fn leave(code: i32) -> ! {
    thread::sleep(LAST_WORDS);
    std::process::exit(code)
}

/// A disk that hangs must not keep the process from ending.
fn leave_if_stuck() {
    let watchdog = thread::Builder::new().name("watchdog".to_owned()).spawn(|| {
        thread::sleep(SHUTDOWN_LIMIT);
        tracing::error!("shutting down took too long; what was not acknowledged may be lost");
        leave(74);
    });
    if let Err(error) = watchdog {
        tracing::warn!(%error, "shutting down without a time limit");
    }
}

/// The name of a bound Unix socket, removed when dropped, unless it is another's by then.
struct SocketFile {
    path: PathBuf,
    /// Which one it is, whatever lies under its name by then.
    id: FileId,
}

/// Binds with mode 0600. A socket that nobody answers on is a leftover and replaced; anything else is left alone.
fn bind_socket(path: &Path) -> Result<(UnixListener, SocketFile), ServeError> {
    let error = |source| ServeError::Io { what: format!("cannot listen on {}", path.display()), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(error(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file of another kind")));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(error(io::ErrorKind::AddrInUse.into())),
        Ok(_) => fs::remove_file(path).map_err(error)?,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
        Err(other) => return Err(error(other)),
    }
    // The mask makes it private from its first moment; the mode is set again in case the system ignores masks here.
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = bound.map_err(error)?;
    let file = SocketFile { path: path.to_owned(), id: id_of(path).map_err(error)? };
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    Ok((listener, file))
}

/// Whatever has this name.
fn id_of(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|metadata| FileId::of(&metadata))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id != self.id) {
            tracing::warn!(path = %self.path.display(), "the socket is another process's by now, and stays");
        } else if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}
