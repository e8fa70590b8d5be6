//! Opening a file without touching it until it has proved to be a store of ours.
//!
//! redb writes as soon as it opens a file: a mark that it is in use, repairs after a crash and, when it closes the file
//! again, what makes the next opening quick. None of that may happen to a file that turns out to be foreign or newer. So a
//! [`Trial`] keeps what redb writes in memory until it is adopted; one that is dropped instead leaves no trace.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

const BLOCK_BYTES: usize = 4_096;

/// A backend whose writes are kept back at first.
#[derive(Debug)]
pub struct Trial {
    backend: Arc<dyn StorageBackend>,
    adopted: AtomicBool,
    kept: Mutex<Kept>,
}

/// What was written so far. Openings write little: headers, and after a crash the record of free pages.
#[derive(Debug)]
struct Kept {
    len: u64,
    /// From here on the backend's own bytes do not count.
    len_of_backend: u64,
    /// What reads see, by block number.
    blocks: BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>,
    /// What adoption does. The order, syncs included, is what makes redb's commits safe against a crash.
    steps: Vec<Step>,
    /// Adoption has failed, and its steps are gone.
    broken: bool,
}

#[derive(Debug)]
enum Step {
    Write(u64, Box<[u8]>),
    SetLen(u64),
    Sync,
}

impl Trial {
    /// A trial of what is in `backend`.
    pub fn of(backend: Arc<dyn StorageBackend>) -> io::Result<Self> {
        let len = backend.len()?;
        let kept = Kept { len, len_of_backend: len, blocks: BTreeMap::new(), steps: Vec::new(), broken: false };
        Ok(Self { backend, adopted: AtomicBool::new(false), kept: Mutex::new(kept) })
    }

    /// Writes what was kept back, and from here on everything at once. One that is adopted already stays so.
    ///
    /// # Errors
    ///
    /// A part of it may have been written, in order. It can be read still, and never be adopted.
    pub fn adopt(&self) -> io::Result<()> {
        let Some(mut kept) = self.kept() else { return Ok(()) };
        if kept.broken {
            return Err(io::Error::other("writing what was kept back has failed before"));
        }
        kept.broken = true;
        for step in std::mem::take(&mut kept.steps) {
            match step {
                Step::Write(offset, data) => self.backend.write(offset, &data)?,
                Step::SetLen(len) => self.backend.set_len(len)?,
                Step::Sync => self.backend.sync_data()?,
            }
        }
        kept.broken = false;
        kept.blocks.clear();
        self.adopted.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether nothing is kept back any more.
    pub fn is_adopted(&self) -> bool {
        self.adopted.load(Ordering::Acquire)
    }

    /// What is kept back, or `None` once nothing is.
    fn kept(&self) -> Option<MutexGuard<'_, Kept>> {
        if self.adopted.load(Ordering::Acquire) {
            return None;
        }
        let kept = self.lock();
        // It may have been adopted while we waited.
        (!self.adopted.load(Ordering::Acquire)).then_some(kept)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn read(&self, backend: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let own = self.len_of_backend.clamp(offset, end) - offset;
        let (from_backend, beyond) = out.split_at_mut(usize::try_from(own).expect("it is within a slice"));
        if !from_backend.is_empty() {
            backend.read(offset, from_backend)?;
        }
        beyond.fill(0);
        for (start, part) in parts(offset, out.len()) {
            if let Some(block) = self.blocks.get(&(start / BLOCK_BYTES as u64)) {
                let within = usize::try_from(start % BLOCK_BYTES as u64).expect("it is within a block");
                let length = part.len();
                out[part].copy_from_slice(&block[within..within + length]);
            }
        }
        Ok(())
    }

    fn write(&mut self, backend: &dyn StorageBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        for (start, part) in parts(offset, data.len()) {
            let number = start / BLOCK_BYTES as u64;
            let within = usize::try_from(start % BLOCK_BYTES as u64).expect("it is within a block");
            if !self.blocks.contains_key(&number) {
                let block = self.block(backend, number)?;
                self.blocks.insert(number, block);
            }
            let block = self.blocks.get_mut(&number).expect("it was inserted");
            block[within..within + part.len()].copy_from_slice(&data[part]);
        }
        self.len = self.len.max(offset + data.len() as u64);
        self.steps.push(Step::Write(offset, data.into()));
        Ok(())
    }

    /// A block as the backend has it.
    fn block(&self, backend: &dyn StorageBackend, number: u64) -> io::Result<Box<[u8; BLOCK_BYTES]>> {
        let mut block = Box::new([0; BLOCK_BYTES]);
        let start = number * BLOCK_BYTES as u64;
        let own = self.len_of_backend.saturating_sub(start).min(BLOCK_BYTES as u64);
        if own > 0 {
            backend.read(start, &mut block[..usize::try_from(own).expect("it is within a block")])?;
        }
        Ok(block)
    }

    fn set_len(&mut self, backend: &dyn StorageBackend, len: u64) -> io::Result<()> {
        if len < self.len {
            // What is cut off must read as zeros should the file grow again.
            let number = len / BLOCK_BYTES as u64;
            let within = usize::try_from(len % BLOCK_BYTES as u64).expect("it is within a block");
            let mut cut = match self.blocks.remove(&number) {
                Some(block) => block,
                None => self.block(backend, number)?,
            };
            cut[within..].fill(0);
            self.blocks.split_off(&number);
            self.blocks.insert(number, cut);
            self.len_of_backend = self.len_of_backend.min(len);
        }
        self.len = len;
        self.steps.push(Step::SetLen(len));
        Ok(())
    }
}

/// The parts of `offset..offset + length` that lie in one block each: where each starts, and its place in the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let start = offset + done as u64;
        let room = BLOCK_BYTES - usize::try_from(start % BLOCK_BYTES as u64).expect("it is within a block");
        let part = done..length.min(done + room);
        done = part.end;
        (!part.is_empty()).then_some((start, part))
    })
}

impl StorageBackend for Trial {
    fn len(&self) -> io::Result<u64> {
        match self.kept() {
            Some(kept) => Ok(kept.len),
            None => self.backend.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.kept() {
            Some(kept) => kept.read(&*self.backend, offset, out),
            None => self.backend.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.kept() {
            Some(mut kept) => kept.set_len(&*self.backend, len),
            None => self.backend.set_len(len),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.kept() {
            Some(mut kept) => {
                kept.steps.push(Step::Sync);
                Ok(())
            }
            None => self.backend.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.kept() {
            Some(mut kept) => kept.write(&*self.backend, offset, data),
            None => self.backend.write(offset, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Sync,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => (0_u64..12_000, proptest::collection::vec(1_u8.., 1..9_000)).prop_map(|(offset, data)| Act::Write(offset, data)),
            2 => (0_u64..25_000).prop_map(Act::SetLen),
            1 => Just(Act::Sync),
        ];
        proptest::collection::vec(act, 0..12)
    }

    fn bytes(backend: &dyn StorageBackend) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(backend.len().unwrap()).unwrap()];
        backend.read(0, &mut bytes).unwrap();
        bytes
    }

    fn filled() -> Arc<InMemoryBackend> {
        let backend = InMemoryBackend::new();
        backend.set_len(10_000).unwrap();
        backend.write(0, &[0xee; 10_000]).unwrap();
        Arc::new(backend)
    }

    proptest! {
        #[test]
        fn a_trial_reads_like_its_backend_would_leaves_no_trace_and_is_adopted_whole(acts in acts()) {
            let (plain, tried) = (filled(), filled());
            let trial = Trial::of(tried.clone()).unwrap();
            for act in acts {
                for backend in [&*plain as &dyn StorageBackend, &trial] {
                    match &act {
                        Act::Write(offset, data) => {
                            let end = offset + data.len() as u64;
                            if end > backend.len().unwrap() {
                                backend.set_len(end).unwrap();
                            }
                            backend.write(*offset, data).unwrap();
                        }
                        Act::SetLen(len) => backend.set_len(*len).unwrap(),
                        Act::Sync => backend.sync_data().unwrap(),
                    }
                }
                prop_assert!(bytes(&trial) == bytes(&*plain));
            }
            prop_assert!(bytes(&*tried) == bytes(&*filled()));
            trial.adopt().unwrap();
            prop_assert!(bytes(&*tried) == bytes(&*plain));
            trial.set_len(1).unwrap();
            prop_assert_eq!(tried.len().unwrap(), 1);
        }
    }
}
