//! The seam between redb and the disk: a storage backend that can be taken away.
//!
//! redb latches on the first I/O error, and only a reopened database heals. Readers may still hold the old one then;
//! were its backend left working, they would read pages that the new one has reused. So each opening gets a
//! [`Revocable`] of its own over the one shared backend, and reopening revokes the old.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

/// One opening's use of a shared backend.
///
/// Locks and `close` are not passed on: the file stays locked by its owner across reopenings. Byte-range locks are
/// answered with the trait's default, "unsupported", which redb takes for "the caller sees to it".
#[derive(Debug)]
pub struct Revocable {
    backend: Arc<dyn StorageBackend>,
    state: Arc<State>,
}

/// What the owner of a [`Revocable`] keeps of it.
#[derive(Debug, Clone)]
pub struct Revoker(Arc<State>);

#[derive(Debug, Default)]
struct State {
    revoked: AtomicBool,
    failed_to_read: AtomicBool,
}

impl Revoker {
    /// From here on every access fails.
    pub fn revoke(&self) {
        self.0.revoked.store(true, Ordering::SeqCst);
    }

    /// Whether a read has failed. redb has latched it then, and reads only what it holds in memory.
    pub fn has_failed_to_read(&self) -> bool {
        self.0.failed_to_read.load(Ordering::SeqCst)
    }
}

impl Revocable {
    /// A new use of `backend`.
    pub fn new(backend: Arc<dyn StorageBackend>) -> (Self, Revoker) {
        let state = Arc::new(State::default());
        (Self { backend, state: Arc::clone(&state) }, Revoker(state))
    }

    fn backend(&self) -> io::Result<&dyn StorageBackend> {
        if self.state.revoked.load(Ordering::SeqCst) {
            Err(io::Error::other("the store was reopened; this view of it is gone"))
        } else {
            Ok(&*self.backend)
        }
    }
}

impl StorageBackend for Revocable {
    fn len(&self) -> io::Result<u64> {
        self.backend()?.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend()?.read(offset, out).inspect_err(|_| self.state.failed_to_read.store(true, Ordering::SeqCst))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.backend()?.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend()?.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend()?.write(offset, data)
    }
}
