//! What a failed sync may have lost is written again.
//!
//! A kernel tells of a page that it could not write once, to the sync that comes next, and may hold it for written from then
//! on: the sync after that succeeds without it. Reads show the page all the same, so nobody would notice until the power
//! goes. So every place that was written since the last good sync is remembered, and after a failed one written again
//! before the next.
//!
//! Deliberately absent: memory beyond the process. One that was killed between a failed sync and the next knows nothing of
//! it when it starts again.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// A backend that writes again.
#[derive(Debug)]
pub struct WrittenAgain {
    backend: Arc<dyn StorageBackend>,
    since: Mutex<Since>,
}

/// What happened since the last good sync.
#[derive(Debug, Default)]
struct Since {
    /// Where something was written, and how much. As many as a commit has pages; where syncs go on failing, as many as
    /// there are places.
    places: Vec<(u64, usize)>,
    /// Whether a sync has failed.
    failed: bool,
}

impl WrittenAgain {
    /// Over a backend that holds nothing that is not synced.
    pub fn new(backend: Arc<dyn StorageBackend>) -> Self {
        Self { backend, since: Mutex::default() }
    }

    fn since(&self) -> MutexGuard<'_, Since> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_again(&self, places: &[(u64, usize)]) -> io::Result<()> {
        let end = self.backend.len()?;
        for (offset, length) in places {
            // The file may be shorter by now.
            let left = usize::try_from(end.saturating_sub(*offset)).unwrap_or(usize::MAX);
            let mut bytes = vec![0; left.min(*length)];
            self.backend.read(*offset, &mut bytes)?;
            self.backend.write(*offset, &bytes)?;
        }
        Ok(())
    }
}

impl StorageBackend for WrittenAgain {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.backend.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Held to the end, so that no write slips in between.
        let mut since = self.since();
        let again = if since.failed {
            // Every attempt to heal writes much the same places.
            since.places.sort_unstable();
            since.places.dedup();
            self.write_again(&since.places)
        } else {
            Ok(())
        };
        let synced = again.and_then(|()| self.backend.sync_data());
        since.failed = synced.is_err();
        if synced.is_ok() {
            since.places.clear();
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.since().places.push((offset, data.len()));
        self.backend.write(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use redb::backends::InMemoryBackend;

    use super::*;

    /// A disk whose syncs fail for as long as they are told to, and which counts what is written.
    #[derive(Debug, Default)]
    struct Failing {
        backend: InMemoryBackend,
        fails: AtomicBool,
        writes: AtomicUsize,
    }

    impl StorageBackend for Failing {
        fn len(&self) -> io::Result<u64> {
            self.backend.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.backend.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.backend.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            if self.fails.load(Ordering::SeqCst) { Err(io::Error::other("injected")) } else { Ok(()) }
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.writes.fetch_add(1, Ordering::SeqCst);
            self.backend.write(offset, data)
        }
    }

    #[test]
    fn however_often_a_sync_fails_each_place_is_written_again_once() {
        let disk = Arc::new(Failing::default());
        let again = WrittenAgain::new(disk.clone());
        again.set_len(8_192).unwrap();
        disk.fails.store(true, Ordering::SeqCst);
        for _ in 0..1_000 {
            again.write(0, &[1; 4_096]).unwrap();
            again.write(4_096, &[2; 4_096]).unwrap();
            again.sync_data().unwrap_err();
        }
        let before = disk.writes.swap(0, Ordering::SeqCst);
        disk.fails.store(false, Ordering::SeqCst);
        again.sync_data().unwrap();
        assert_eq!(disk.writes.swap(0, Ordering::SeqCst), 2);
        assert!(before <= 4 * 1_000 + 2, "{before} writes for 1000 attempts");
        again.sync_data().unwrap();
        assert_eq!(disk.writes.load(Ordering::SeqCst), 0, "there is nothing more to be written again");
    }
}
