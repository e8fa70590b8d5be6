//! The seal: what says of a file that nobody has touched it since it was closed in order, so that its pages need not be
//! checked again.
//!
//! It is a small file beside the store that names the store's file as the file system knows it: device, inode, length,
//! and the times of its last write and of its last change, the second of which no program can set. It is broken before
//! the store is written to, and put there when it is closed; after a crash there is none. What goes wrong with it leaves
//! none either, and costs no more than the check. So does another file under the store's name: a seal speaks of the one
//! that was opened.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use super::file::parent_of;

/// File systems tell times by the kernel's tick, of 10 ms at most: what comes so long after a write has another time. One
/// that tells whole seconds only is given no seal.
const TICK: Duration = Duration::from_millis(20);

/// Which file is open, whatever lies under its path by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// That of a file with this metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The seal of one store.
#[derive(Debug)]
pub struct Seal {
    path: PathBuf,
    store: PathBuf,
    file: FileId,
}

impl Seal {
    /// That of the store at `path`, whose open file is `file`.
    pub fn of(path: &Path, file: FileId) -> Self {
        Self { path: beside(path), store: path.to_owned(), file }
    }

    /// Whether it is there, and that of the file as it is.
    pub fn is_whole(&self) -> bool {
        let sealed = fs::read_to_string(&self.path);
        sealed.is_ok_and(|sealed| self.state().is_ok_and(|(state, _)| state == sealed))
    }

    /// Whether the store's name still leads to the file that was opened.
    pub fn is_in_its_place(&self) -> bool {
        fs::metadata(&self.store).is_ok_and(|metadata| FileId::of(&metadata) == self.file)
    }

    /// Breaks it, for the store is about to be written to. No crash brings it back.
    pub fn break_open(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| File::open(parent_of(&self.path))?.sync_all()),
        }
    }

    /// Seals the store, which was closed in order and is still locked.
    ///
    /// # Errors
    ///
    /// There is no seal then.
    pub fn put(&self) -> io::Result<()> {
        let (mut state, mut changed) = self.state()?;
        // Whoever writes within the same tick would leave no trace in the times.
        let age = SystemTime::now().duration_since(changed).unwrap_or_default();
        if age < TICK {
            thread::sleep(TICK - age);
            (state, changed) = self.state()?;
        }
        let is_coarse = changed.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since.subsec_nanos() == 0);
        if is_coarse || SystemTime::now().duration_since(changed).unwrap_or_default() < TICK {
            return Err(io::Error::other("a write from now on could leave no trace in the file's times"));
        }
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path);
        let written = written.and_then(|mut file| {
            file.write_all(state.as_bytes())?;
            file.sync_all()
        });
        if written.is_err() {
            fs::remove_file(&self.path).ok();
        }
        written
    }

    /// What is known of the file without reading it, in one line; and when it changed last.
    fn state(&self) -> io::Result<(String, SystemTime)> {
        let of = fs::metadata(&self.store)?;
        if FileId::of(&of) != self.file {
            return Err(io::Error::other("another file has taken the store's place"));
        }
        let FileId { device, inode } = self.file;
        let length = of.len();
        let (written, changed) = ((of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec()));
        let line = format!("{device} {inode} {length} {}.{:09} {}.{:09}\n", written.0, written.1, changed.0, changed.1);
        let since_1970 = Duration::new(u64::try_from(changed.0).unwrap_or(0), u32::try_from(changed.1).unwrap_or(0));
        Ok((line, SystemTime::UNIX_EPOCH + since_1970))
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".closed");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_seal_is_good_until_it_is_broken_and_only_for_the_file_as_it_was_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("post.redb");
        fs::write(&path, "as it was closed").unwrap();
        let seal = || Seal::of(&path, FileId::of(&fs::metadata(&path).unwrap()));
        assert!(!seal().is_whole(), "there is none yet");
        seal().put().unwrap();
        assert!(seal().is_whole() && seal().is_whole(), "looking does not break it");
        for _ in 0..2 {
            seal().break_open().unwrap();
            assert!(!seal().is_whole());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        // Whatever is done to the file, be it that its length and its time of writing are put back.
        let write = |at: u64, byte: &[u8]| {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(byte, at).unwrap();
            file.set_times(FileTimes::new().set_modified(before)).unwrap();
        };
        let replace = || {
            let copy = directory.path().join("copy");
            fs::copy(&path, &copy).unwrap();
            fs::rename(&copy, &path).unwrap();
        };
        let harms: [&dyn Fn(); 4] =
            [&|| write(3, b"X"), &|| write(0, b""), &replace, &|| fs::write(beside(&path), "no line of ours").unwrap()];
        for (number, harm) in harms.into_iter().enumerate() {
            seal().put().unwrap();
            harm();
            assert!(!seal().is_whole(), "{number}");
        }
        let seal = seal();
        seal.put().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!seal.is_whole());
        assert!(seal.put().is_err());
    }

    #[test]
    fn a_file_that_took_the_place_of_the_one_that_is_open_is_not_sealed_nor_taken_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("post.redb"), directory.path().join("other.redb"));
        fs::write(&path, "as it is served").unwrap();
        fs::write(&other, "what it becomes").unwrap();
        let _served = File::open(&path).unwrap();
        let seal = Seal::of(&path, FileId::of(&fs::metadata(&path).unwrap()));
        fs::rename(&other, &path).unwrap();
        assert!(seal.put().is_err());
        assert!(!beside(&path).exists());
        Seal::of(&path, FileId::of(&fs::metadata(&path).unwrap())).put().unwrap();
        assert!(!seal.is_whole());
    }
}
