//! A node's wire to one central system: it can be down, and it can break at any exchange, before the request is heard or
//! after it was done. What was said last may reach the server once more, much later.
//!
//! It lives in the same runtime as the node, so that nothing passes but while the node waits for it.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The most that is taken off the wire at once.
const PIECE: usize = 64 * 1024;

/// How an exchange goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The request is lost.
    Request,
    /// The request is done, the answer is lost.
    Answer,
    /// Nobody hears of the request for now.
    Held,
}

/// A wire.
pub struct Wire {
    state: Rc<State>,
    path: PathBuf,
    listening: JoinHandle<()>,
}

struct State {
    server: PathBuf,
    is_up: Cell<bool>,
    /// In how many exchanges it breaks, and how.
    fault: Cell<Option<(u32, Break)>>,
    /// Rung when what is connected is cut.
    cut: Notify,
    open: Cell<usize>,
    /// What was said when it broke, for later.
    said: RefCell<Vec<Vec<u8>>>,
}

impl Wire {
    /// A wire from `path` to where a server listens.
    pub fn new(path: PathBuf, server: &Path) -> Self {
        let state = Rc::new(State {
            server: server.to_owned(),
            is_up: Cell::new(true),
            fault: Cell::new(None),
            cut: Notify::new(),
            open: Cell::new(0),
            said: RefCell::new(Vec::new()),
        });
        let listener = UnixListener::bind(&path).expect("the path is ours and free");
        let listening = tokio::task::spawn_local({
            let state = Rc::clone(&state);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    if state.is_up.get() {
                        state.open.set(state.open.get() + 1);
                        let state = Rc::clone(&state);
                        tokio::task::spawn_local(async move {
                            // An error ends the connection like everything else.
                            drop(carry(client, &state).await);
                            state.open.set(state.open.get() - 1);
                        });
                    }
                }
            }
        });
        Self { state, path, listening }
    }

    /// Where it begins.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes it down, or up again.
    pub fn set_up(&self, is_up: bool) {
        self.state.is_up.set(is_up);
        if !is_up {
            self.cut();
        }
    }

    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.state.is_up.get()
    }

    /// Cuts what is connected.
    pub fn cut(&self) {
        self.state.cut.notify_waiters();
    }

    /// Has it break after so many exchanges.
    pub fn set_fault(&self, after: u32, how: Break) {
        self.state.fault.set(Some((after, how)));
    }

    /// Has it break no more; whether it was still to.
    pub fn take_fault(&self) -> bool {
        self.state.fault.take().is_some()
    }

    /// How many connections stand.
    pub fn open(&self) -> usize {
        self.state.open.get()
    }

    /// What was said when it broke reaches the server once more.
    pub async fn say_again(&self) {
        let said = std::mem::take(&mut *self.state.said.borrow_mut());
        for words in said {
            let mut server = UnixStream::connect(&self.state.server).await.expect("the server listens");
            server.write_all(&words).await.expect("the server reads");
            server.read_buf(&mut Vec::with_capacity(PIECE)).await.expect("the server answers");
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

impl State {
    /// What becomes of the exchange that begins now.
    fn next(&self) -> Option<Break> {
        let (left, how) = self.fault.take()?;
        if left > 0 {
            self.fault.set(Some((left - 1, how)));
            return None;
        }
        Some(how)
    }
}

async fn carry(mut client: UnixStream, state: &State) -> io::Result<()> {
    let mut server = UnixStream::connect(&state.server).await?;
    let (mut asked, mut answered) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        tokio::select! { biased;
            () = state.cut.notified() => return Ok(()),
            length = client.read(&mut asked) => {
                let words = &asked[..length?];
                if words.is_empty() {
                    return Ok(());
                }
                match state.next() {
                    None => server.write_all(words).await?,
                    Some(Break::Request) => return Ok(()),
                    Some(Break::Held) => {
                        state.said.borrow_mut().push(words.to_vec());
                        return Ok(());
                    }
                    Some(Break::Answer) => {
                        server.write_all(words).await?;
                        server.readable().await?;
                        state.said.borrow_mut().push(words.to_vec());
                        return Ok(());
                    }
                }
            }
            length = server.read(&mut answered) => {
                let words = &answered[..length?];
                if words.is_empty() {
                    return Ok(());
                }
                client.write_all(words).await?;
            }
        }
    }
}
