//! A link that can be cut: a TCP proxy that stands before a server, and breaks connections where a test says.
//!
//! This kernel has no netem, and a real link breaks in the middle of a sentence, so the proxy looks at what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What becomes of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// They pass.
    Up,
    /// They are cut, and new ones are closed at once.
    Cut,
    /// They stay open, and nothing passes.
    Silent,
    /// Each piece is held up for so long.
    Slow(Duration),
    /// They pass until the client says this, and are cut then; afterwards all is as with `Up`.
    CutAt { word: &'static str, moment: Moment },
}

/// Where in the exchange the link breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The server never hears the word.
    Before,
    /// It hears the first half of it.
    Within,
    /// It hears and does it; its answer is lost.
    After,
}

/// The proxy; the connections end with it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    link: Mutex<Link>,
    ended: AtomicBool,
    /// How many connections were cut at a word.
    cuts: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy before a port of this machine.
    pub fn before(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            target: Mutex::new(([127, 0, 0, 1], port).into()),
            link: Mutex::new(Link::Up),
            ended: AtomicBool::new(false),
            cuts: AtomicU64::new(0),
            streams: Mutex::default(),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Stands before another port from here on, as an address does that has moved.
    pub fn aim(&self, port: u16) {
        *self.shared.target.lock().expect("no holder panics") = ([127, 0, 0, 1], port).into();
    }

    /// From here on. `Cut` also ends the connections that there are.
    pub fn set(&self, link: Link) {
        let cut = link == Link::Cut;
        *self.shared.link.lock().expect("no holder panics") = link;
        if cut {
            self.shared.end_streams();
        }
    }

    /// How many connections were cut at a word so far.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.end_streams();
        // Wakes the acceptor, which then sees that it is over.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
    }
}

impl Shared {
    fn link(&self) -> Link {
        self.link.lock().expect("no holder panics").clone()
    }

    fn target(&self) -> SocketAddr {
        *self.target.lock().expect("no holder panics")
    }

    fn end_streams(&self) {
        for stream in self.streams.lock().expect("no holder panics").drain(..) {
            // It may have ended by itself.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    fn keep(&self, stream: &TcpStream) {
        let copy = stream.try_clone().expect("there are descriptors");
        self.streams.lock().expect("no holder panics").push(copy);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if shared.link() == Link::Cut {
            continue;
        }
        let Ok(server) = TcpStream::connect(shared.target()) else { continue };
        for stream in [&client, &server] {
            stream.set_nodelay(true).ok();
            shared.keep(stream);
        }
        for (from, to, says) in [(&client, &server, Side::Client), (&server, &client, Side::Server)] {
            let from = from.try_clone().expect("there are descriptors");
            let to = to.try_clone().expect("there are descriptors");
            let shared = Arc::clone(shared);
            thread::spawn(move || pass(from, to, says, &shared));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// Until either end closes, or the link is cut.
fn pass(mut from: TcpStream, mut to: TcpStream, side: Side, shared: &Shared) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let mut piece = &buffer[..read];
        let mut cut = false;
        match shared.link() {
            Link::Cut => break,
            Link::Silent => {
                while shared.link() == Link::Silent && !shared.ended.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            Link::Slow(pause) => thread::sleep(pause),
            Link::CutAt { word, moment } if side == Side::Client => {
                if let Some(at) = piece.windows(word.len()).position(|window| window == word.as_bytes()) {
                    cut = true;
                    shared.cuts.fetch_add(1, Ordering::SeqCst);
                    *shared.link.lock().expect("no holder panics") = Link::Up;
                    match moment {
                        Moment::Before => piece = &[],
                        Moment::Within => piece = &piece[..at + word.len() / 2],
                        Moment::After => {
                            // What comes back from now on is not to reach the client.
                            drop(from.shutdown(Shutdown::Both));
                        }
                    }
                }
            }
            Link::Up | Link::CutAt { .. } => {}
        }
        if to.write_all(piece).is_err() {
            break;
        }
        if cut {
            // Time for the server to hear it.
            thread::sleep(Duration::from_millis(50));
            break;
        }
    }
    // Either may be gone already.
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
