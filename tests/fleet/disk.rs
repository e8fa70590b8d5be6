//! A disk in memory whose content can be looked at while it is used: what a kill, a copy or a backup finds there.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use redb::StorageBackend;

/// One file.
#[derive(Debug, Default)]
pub struct Disk(Mutex<Vec<u8>>);

impl Disk {
    /// A file with this content.
    pub fn with(content: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(content)))
    }

    /// What it holds now.
    pub fn content(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> io::Result<T> {
        Ok(work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("a file of a test fits into memory")
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.locked(|content| content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = place(offset);
        self.locked(|content| match content.get(from..from + out.len()) {
            Some(found) => {
                out.copy_from_slice(found);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        })?
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.locked(|content| content.resize(place(len), 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (from, to) = (place(offset), place(offset) + data.len());
        self.locked(|content| {
            if content.len() < to {
                content.resize(to, 0);
            }
            content[from..to].copy_from_slice(data);
        })
    }
}
