//! `tx export`: a stream that either arrives whole or fails.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::api::success;
use super::client::{Call, Client};
use super::failure::{Exit, Failure};
use super::output::Output;

/// Writes the stream to standard output, line by line.
pub fn to_stdout(client: &Client, call: &Call, output: &mut Output) -> Result<(), Failure> {
    lines(client, call, &mut |lines| output.json_part(lines))
}

/// Writes the stream to a file that appears under its name, or replaces an older one, once all of it is on disk.
pub fn to_file(client: &Client, call: &Call, file: &Path) -> Result<(), Failure> {
    let failed = |error: &std::io::Error| Failure::io(format!("cannot write {}", file.display()), error);
    // A link's own target is replaced, not the link; a device or a pipe is written to, not replaced.
    let target = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    if target.metadata().is_ok_and(|found| !found.is_file()) {
        let mut device = File::options().write(true).open(&target).map_err(|error| failed(&error))?;
        return lines(client, call, &mut |lines| device.write_all(lines).map_err(|error| failed(&error)));
    }
    let unfinished = Unfinished::next_to(&target);
    let mut writer = BufWriter::new(File::create(&unfinished.path).map_err(|error| failed(&error))?);
    lines(client, call, &mut |lines| writer.write_all(lines).map_err(|error| failed(&error)))?;
    writer
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&unfinished.path, &target))
        .map_err(|error| failed(&error))
}

/// A file that is removed unless it was renamed before.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn next_to(target: &Path) -> Self {
        let mut path = target.as_os_str().to_owned();
        path.push(format!(".{}.unfinished", std::process::id()));
        Self { path: path.into() }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_file(&self.path);
    }
}

/// Hands whole lines on as they come in.
fn lines(client: &Client, call: &Call, sink: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut begun = Vec::new();
    let refusal = client.stream(call, &mut |chunk| {
        let Some(end) = chunk.iter().rposition(|byte| *byte == b'\n') else {
            begun.extend_from_slice(chunk);
            return Ok(());
        };
        let (ended, rest) = chunk.split_at(end + 1);
        if !begun.is_empty() {
            begun.extend_from_slice(ended);
            sink(&begun)?;
            begun.clear();
        } else {
            sink(ended)?;
        }
        begun.extend_from_slice(rest);
        Ok(())
    })?;
    if let Some(answer) = refusal {
        success(answer)?;
    }
    match begun.is_empty() {
        true => Ok(()),
        false => Err(Failure::Because(Exit::Io, "the stream ended within a line, so this is not all of it".to_owned())),
    }
}
