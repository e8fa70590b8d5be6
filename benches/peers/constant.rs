//! The constant server: hyper and tokio as in the sidecar, axum's router, and nothing behind it. What a request costs there
//! is what these, the kernel and the clients take; the rest is ours.
//!
//! It is a process of its own, as the sidecar is: this program, started once more.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tower::ServiceExt;

/// Set for the process that is the server: the answers to a look-up and to a heartbeat, one a line.
const ANSWERS: &str = "PEERS_CONSTANT_ANSWERS";

/// A running one; killed when dropped.
pub struct ConstantServer {
    child: Child,
    pub address: SocketAddr,
}

impl ConstantServer {
    /// One that gives these answers, in the order of the routes.
    pub fn start(profile: &str, heartbeat: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"))
            .arg("--bench")
            .env(ANSWERS, format!("{profile}\n{heartbeat}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for ConstantServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Serves for ever, if this process is to be the server.
pub fn serve_if_asked() {
    let Ok(answers) = std::env::var(ANSWERS) else { return };
    let (profile, heartbeat) = answers.split_once('\n').expect("two answers");
    let (profile, heartbeat): (&'static str, &'static str) = (profile.to_owned().leak(), heartbeat.to_owned().leak());
    let router = Router::new()
        .route("/v1/agents/{agent_id}", get(move |_: Path<String>| async move { answer(profile) }))
        .route("/v1/agents/{agent_id}/heartbeat", post(move |_: Path<String>| async move { answer(heartbeat) }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(serve(router));
}

async fn serve(router: Router) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of loopback is free");
    let address = listener.local_addr().expect("it is bound");
    writeln!(std::io::stdout(), "{address}").expect("whoever started it listens");
    loop {
        let (stream, _) = listener.accept().await.expect("a client connects");
        stream.set_nodelay(true).expect("loopback takes TCP_NODELAY");
        let router = router.clone();
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let router = router.clone();
            async move { Ok::<_, Infallible>(router.oneshot(request.map(Body::new)).await.unwrap_or_else(|n| match n {})) }
        });
        // A client that goes away is no matter.
        tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok() });
    }
}

fn answer(body: &'static str) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
