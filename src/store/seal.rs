//! The seal: what says of a file that nobody has touched it since it was closed in order, so that its pages need not be
//! checked again.
//!
//! It is a small file beside the store that names the store's file as the file system knows it: device, inode, length,
//! and the times of its last write and of its last change, the second of which no program can set. It is broken before
//! the store is written to, and put there when it is closed; after a crash there is none. What goes wrong with it leaves
//! none either, and costs no more than the check.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

/// File systems tell times by the kernel's tick, of 10 ms at most: what comes so long after a write has another time.
const TICK: Duration = Duration::from_millis(20);

/// Whether the store at `path` has a seal, and it is that of the file as it is.
pub fn is_whole(path: &Path) -> bool {
    let sealed = fs::read_to_string(beside(path));
    sealed.is_ok_and(|sealed| state_of(path).is_ok_and(|(state, _)| state == sealed))
}

/// Breaks the seal of the store at `path`, which is about to be written to. No crash brings it back.
pub fn break_open(path: &Path) -> io::Result<()> {
    let seal = beside(path);
    match fs::remove_file(&seal) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| File::open(seal.parent().unwrap_or(path))?.sync_all()),
    }
}

/// Seals the store at `path`, which was closed in order and is still locked.
///
/// # Errors
///
/// There is no seal then.
pub fn put(path: &Path) -> io::Result<()> {
    let (mut state, mut changed) = state_of(path)?;
    // Whoever writes within the same tick would leave no trace in the times.
    let age = SystemTime::now().duration_since(changed).unwrap_or_default();
    if age < TICK {
        thread::sleep(TICK - age);
        (state, changed) = state_of(path)?;
    }
    if SystemTime::now().duration_since(changed).unwrap_or_default() < TICK {
        return Err(io::Error::other("the file is being written to"));
    }
    let seal = beside(path);
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&seal);
    let written = written.and_then(|mut file| {
        file.write_all(state.as_bytes())?;
        file.sync_all()
    });
    if written.is_err() {
        fs::remove_file(&seal).ok();
    }
    written
}

/// What is known of the file without reading it, in one line; and when it changed last.
fn state_of(path: &Path) -> io::Result<(String, SystemTime)> {
    let of = fs::metadata(path)?;
    let (device, inode, length) = (of.dev(), of.ino(), of.len());
    let (written, changed) = ((of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec()));
    let line = format!("{device} {inode} {length} {}.{:09} {}.{:09}\n", written.0, written.1, changed.0, changed.1);
    let since_1970 = Duration::new(u64::try_from(changed.0).unwrap_or(0), u32::try_from(changed.1).unwrap_or(0));
    Ok((line, SystemTime::UNIX_EPOCH + since_1970))
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
        assert!(!is_whole(&path), "there is none yet");
        put(&path).unwrap();
        assert!(is_whole(&path) && is_whole(&path), "looking does not break it");
        for _ in 0..2 {
            break_open(&path).unwrap();
            assert!(!is_whole(&path));
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
            put(&path).unwrap();
            harm();
            assert!(!is_whole(&path), "{number}");
        }
        put(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!is_whole(&path));
        assert!(put(&path).is_err());
    }
}
