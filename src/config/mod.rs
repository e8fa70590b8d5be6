//! What a process was told to do: flags, environment and file as typed, and the validated settings that they mean.
//!
//! A setting comes from the first of flag, environment (`TRADEPOST_` and the flag in capitals; empty counts as
//! unset), `--config` file and default that names it. Whatever its source, it is read by one parser and refused in
//! the same words. Deliberately absent: what the settings do; every component takes its own part of
//! [`ServeSettings`] as plain values.

mod directory;
mod file;
mod layers;
mod secret;
mod serve;
mod values;

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

pub use directory::{STORE_FILE, data_directory, default_socket, store_file};
pub use file::ConfigFile;
pub use layers::{Layers, Setting, Values};
pub use secret::{CentralUrl, Certificate, Token, read_token};
pub use serve::{LogSettings, ReplicationSettings, Resolved, Row, ServeSettings, StoreLocation, postgres_url};
pub use values::{LogFormat, LogLevel};

/// Where a value comes from; the first that names a setting wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The file of `--config`.
    File(PathBuf),
    /// Nobody named it.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment => f.write_str("environment"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Settings that nobody should run with. Every caller does the same about it: tell, and exit.
///
/// Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {reason}")]
pub struct ConfigError {
    /// The flag, variable or file at fault, as the user knows it.
    pub place: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl ConfigError {
    fn new(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { place: place.into(), reason: reason.into() }
    }

    fn of(setting: Setting, source: &Source, reason: impl Into<String>) -> Self {
        Self::new(setting.place(source), reason)
    }
}
