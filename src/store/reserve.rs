//! Room that is kept back on the disk, for the little that must still fit when the disk is full.
//!
//! It is a file beside the store, taken when the store is opened and given up while the disk is full. A small commit mostly
//! fits into what the one before it has freed; but not after every failure, and never on a file system that writes nothing
//! in its place. The bytes do not compress, so that one that compresses keeps as much room.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How much is kept back: room for hundreds of small commits, each of which frees what the one before took.
pub const RESERVE_BYTES: usize = 1024 * 1024;

/// The reserve of one store.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// That of the store at `path`.
    pub fn of(path: &Path) -> Self {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".reserve");
        Self { path: path.with_file_name(name) }
    }

    /// Keeps the room back, unless that is done already. What there is no room for leaves nothing behind.
    pub fn take(&self) -> io::Result<()> {
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() == RESERVE_BYTES as u64) {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let taken = options.open(&self.path).and_then(|mut file| {
            io::copy(&mut blake3::Hasher::new().finalize_xof().take(RESERVE_BYTES as u64), &mut file)?;
            file.sync_data()
        });
        if taken.is_err() {
            self.release()?;
        }
        taken
    }

    /// Gives the room up.
    pub fn release(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_taken_once_and_given_up_whole() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(&directory.path().join("post.redb"));
        let path = directory.path().join(".post.redb.reserve");
        reserve.release().unwrap();
        reserve.take().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), RESERVE_BYTES as u64);
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        reserve.take().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written, "it is not written again");
        reserve.release().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn where_there_is_no_place_for_it_that_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(&directory.path().join("missing").join("post.redb"));
        assert_eq!(reserve.take().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
