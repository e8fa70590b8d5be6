//! Growth is written ahead: a file's new end holds zeros before data lands there.
//!
//! redb makes its file longer in large steps, and what it adds is a hole at first. Every commit that writes into a hole
//! makes the file system allocate blocks, and the sync that follows must wait for its journal as well. So the first write
//! beyond all written so far is preceded by [`AHEAD_BYTES`] of zeros. One sync in many then pays for the blocks, and the
//! others overwrite what is there. The file is never longer than redb asked for.
//!
//! Invariant: nothing at or behind `written` was ever written since the file was made that long. Zeros are written
//! nowhere else, so they cover nothing. What a file holds when it is opened counts as written.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// How much is written ahead at once. More would make the sync that carries it longer, less would make such syncs more
/// frequent.
pub const AHEAD_BYTES: u64 = 1024 * 1024;

/// A backend that writes ahead.
#[derive(Debug)]
pub struct WrittenAhead {
    backend: Arc<dyn StorageBackend>,
    written: Mutex<u64>,
}

impl WrittenAhead {
    /// Over a backend, of which everything up to its length is taken for written.
    pub fn new(backend: Arc<dyn StorageBackend>) -> io::Result<Self> {
        let written = Mutex::new(backend.len()?);
        Ok(Self { backend, written })
    }

    fn written(&self) -> MutexGuard<'_, u64> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before something is written that ends at `end`. Held is the lock, so that no other write lands where the zeros go.
    fn make_room(&self, written: &mut u64, offset: u64, end: u64) -> io::Result<()> {
        if end <= *written {
            return Ok(());
        }
        let ahead = end.saturating_add(AHEAD_BYTES).min(self.backend.len()?);
        // A leap leaves a hole behind, which is not filled: it may be large, and nobody may ever come back.
        let from = if offset.saturating_sub(*written) <= AHEAD_BYTES { *written } else { end };
        *written = end.max(ahead);
        if let Some(length) = ahead.checked_sub(from).filter(|length| *length > 0) {
            let zeros = vec![0; usize::try_from(length).expect("it is at most a few MiB")];
            // On a disk without room the zeros are not missed; the data that follows finds out by itself.
            self.backend.write(from, &zeros).ok();
        }
        Ok(())
    }
}

impl StorageBackend for WrittenAhead {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.written();
        self.backend.set_len(len)?;
        *written = (*written).min(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        self.make_room(&mut self.written(), offset, end)?;
        self.backend.write(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    use super::*;

    fn bytes(backend: &dyn StorageBackend) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(backend.len().unwrap()).unwrap()];
        backend.read(0, &mut bytes).unwrap();
        bytes
    }

    #[derive(Debug, Clone)]
    enum Act {
        Write(u64, usize),
        SetLen(u64),
    }

    const MIB: u64 = 1024 * 1024;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_written_is_what_a_plain_backend_would_hold(
            acts in prop::collection::vec(
                prop_oneof![
                    4 => (0..5 * MIB, 1_usize..9_000).prop_map(|(offset, length)| Act::Write(offset, length)),
                    1 => (0..5 * MIB).prop_map(Act::SetLen),
                ],
                1..12,
            ),
        ) {
            let plain = InMemoryBackend::new();
            let ahead = WrittenAhead::new(Arc::new(InMemoryBackend::new())).unwrap();
            for (number, act) in acts.into_iter().enumerate() {
                for backend in [&plain as &dyn StorageBackend, &ahead] {
                    match act {
                        Act::Write(offset, length) => {
                            // redb never writes behind the end.
                            let end = offset + length as u64;
                            if backend.len().unwrap() < end {
                                backend.set_len(end + 2 * MIB).unwrap();
                            }
                            backend.write(offset, &vec![number as u8 + 1; length]).unwrap();
                        }
                        Act::SetLen(len) => backend.set_len(len).unwrap(),
                    }
                }
                prop_assert!(bytes(&ahead) == bytes(&plain));
            }
        }
    }

    /// Takes a limited number of bytes, and counts them.
    #[derive(Debug)]
    struct Small {
        backend: InMemoryBackend,
        taken: AtomicU64,
        room: u64,
    }

    impl StorageBackend for Small {
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
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let more = data.len() as u64;
            if self.taken.load(Ordering::SeqCst) + more > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.taken.fetch_add(more, Ordering::SeqCst);
            self.backend.write(offset, data)
        }
    }

    fn small(room: u64) -> (Arc<Small>, WrittenAhead) {
        let small = Arc::new(Small { backend: InMemoryBackend::new(), taken: AtomicU64::new(0), room });
        let ahead = WrittenAhead::new(small.clone()).unwrap();
        (small, ahead)
    }

    #[test]
    fn zeros_are_written_once_and_never_behind_the_end() {
        let (small, ahead) = small(u64::MAX);
        ahead.set_len(MIB / 2).unwrap();
        ahead.write(0, &[1; 4_096]).unwrap();
        assert_eq!(small.taken.load(Ordering::SeqCst), MIB / 2 + 4_096);
        ahead.write(4_096, &[2; 4_096]).unwrap();
        assert_eq!(small.taken.load(Ordering::SeqCst), MIB / 2 + 2 * 4_096);
        assert_eq!(ahead.len().unwrap(), MIB / 2, "the file is as long as it was asked to be");
    }

    #[test]
    fn a_leap_leaves_a_hole() {
        let (small, ahead) = small(u64::MAX);
        ahead.set_len(64 * MIB).unwrap();
        ahead.write(60 * MIB, &[1; 4_096]).unwrap();
        assert_eq!(small.taken.load(Ordering::SeqCst), MIB + 4_096);
        ahead.write(0, &[2; 4_096]).unwrap();
        assert_eq!(small.taken.load(Ordering::SeqCst), MIB + 2 * 4_096);
    }

    #[test]
    fn without_room_for_zeros_data_is_still_written_and_without_room_for_data_that_is_said() {
        let (_, ahead) = small(5_000);
        ahead.set_len(4 * MIB).unwrap();
        ahead.write(0, &[1; 4_096]).unwrap();
        let error = ahead.write(4_096, &[1; 4_096]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
