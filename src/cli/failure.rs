//! How a command ends: the exit codes, and what is said about an end that is not well.

use std::io;
use std::process::ExitCode;

use hyper::body::Bytes;

use crate::app::ServeError;
use crate::config::ConfigError;
use crate::store::OpenError;

/// Exit codes, a part of the contract; the numbers from 64 on are those of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The server said no.
    Refused = 1,
    /// The command line makes no sense.
    Usage = 64,
    /// Data is damaged.
    Damaged = 65,
    /// No server answered.
    Unreachable = 69,
    /// A file, an address or the disk did not work.
    Io = 74,
    /// Another process has the file.
    InUse = 75,
    /// Settings that nobody should run with.
    Configuration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Nobody reads our output any more. As other Unix tools do, stop without a word.
    NobodyReads,
    /// All has been said already.
    Told(Exit),
    /// To be said on stderr.
    Because(Exit, String),
    /// A problem document from the server: words for stderr, and its own bytes for `--json`.
    Problem { words: String, json: Bytes },
}

impl Failure {
    /// The command line makes no sense.
    pub fn usage(words: impl Into<String>) -> Self {
        Self::Because(Exit::Usage, words.into())
    }

    /// No server answered.
    pub fn unreachable(words: impl Into<String>) -> Self {
        Self::Because(Exit::Unreachable, words.into())
    }

    /// A file could not be read or written; `what` says which and how.
    pub fn io(what: impl Into<String>, error: &io::Error) -> Self {
        Self::Because(Exit::Io, format!("{}: {error}", what.into()))
    }

    /// Something went wrong while writing to stdout.
    pub fn stdout(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::io("cannot write to standard output", error),
        }
    }

    /// The code to exit with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NobodyReads => Exit::Ok,
            Self::Told(exit) | Self::Because(exit, _) => *exit,
            Self::Problem { .. } => Exit::Refused,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Because(Exit::Configuration, error.to_string())
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let exit = match &error {
            ServeError::Open(error) => exit_of_open_error(error),
            ServeError::Io { .. } => Exit::Io,
        };
        Self::Because(exit, error.to_string())
    }
}

/// The code for a store's file that cannot be opened.
pub fn exit_of_open_error(error: &OpenError) -> Exit {
    match error {
        OpenError::InUse(_) => Exit::InUse,
        // To this program a newer file is as good as damaged: it must not be touched.
        OpenError::Damaged { .. } | OpenError::Newer { .. } | OpenError::Older { .. } => Exit::Damaged,
        OpenError::NotFound(_) | OpenError::Io { .. } => Exit::Io,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn every_end_has_the_exit_code_of_the_contract() {
        let config = ConfigError { place: "--listen".to_owned(), reason: "no".to_owned() };
        let broken_pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        for (failure, code) in [
            (Failure::stdout(&broken_pipe), 0),
            (Failure::Problem { words: String::new(), json: Bytes::new() }, 1),
            (Failure::usage("?"), 64),
            (Failure::unreachable("?"), 69),
            (Failure::stdout(&full), 74),
            (ServeError::Open(OpenError::InUse(PathBuf::from("f"))).into(), 75),
            (config.into(), 78),
        ] {
            assert_eq!(failure.exit() as u8, code, "{failure:?}");
        }
        let path = || PathBuf::from("f");
        for (error, code) in [
            (OpenError::Damaged { path: path(), reason: String::new() }, 65),
            (OpenError::Newer { path: path(), found: 9, known: 1 }, 65),
            (OpenError::Older { path: path(), found: 1, known: 2 }, 65),
            (OpenError::NotFound(path()), 74),
            (OpenError::Io { path: path(), source: full }, 74),
            (OpenError::InUse(path()), 75),
        ] {
            assert_eq!(exit_of_open_error(&error) as u8, code, "{error:?}");
        }
    }
}
