//! Where data lies on this machine when nobody says otherwise, and what lies there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::ConfigError;

/// The store's file in a data directory.
pub const STORE_FILE: &str = "tradepost.redb";
const SOCKET_FILE: &str = "tradepost.sock";

/// The store's file in `directory`.
pub fn store_file(directory: &Path) -> PathBuf {
    directory.join(STORE_FILE)
}

/// The socket of a sidecar whose data lies in `directory`, unless it was told another.
pub fn default_socket(directory: &Path) -> PathBuf {
    directory.join(SOCKET_FILE)
}

/// The data directory for commands that take no configuration file: flag, else `TRADEPOST_DATA_DIR`, else default.
///
/// # Errors
/// Nothing names one, and there is no home directory.
pub fn data_directory(
    flag: Option<&Path>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, ConfigError> {
    match flag {
        Some(flag) => Ok(flag.to_owned()),
        None => match variable("TRADEPOST_DATA_DIR").filter(|value| !value.is_empty()) {
            Some(named) => Ok(PathBuf::from(named)),
            None => default_directory(variable),
        },
    }
}

/// `$XDG_DATA_HOME/tradepost`, else `~/.local/share/tradepost`.
pub(super) fn default_directory(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf, ConfigError> {
    // Relative paths in these two count as unset: the XDG specification says so.
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("tradepost"))
        .ok_or_else(|| {
            ConfigError::new("--data-dir", "is needed, because neither XDG_DATA_HOME nor HOME names a directory")
        })
}
