//! Settings as typed: one text per setting and source, and which source wins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use super::{ConfigError, ConfigFile, Source};

/// One thing that `serve` can be told. The order is that of `tradepost config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the flag of its name")]
pub enum Setting {
    InMemory,
    DataDir,
    Listen,
    Socket,
    MetricsListen,
    AgentTtl,
    TokenFile,
    TlsCert,
    TlsKey,
    AllowedHost,
    RedisUrl,
    RedisUrlFile,
    PostgresUrl,
    PostgresUrlFile,
    StaleFor,
    LegacyWriters,
    LogFormat,
    LogLevel,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::InMemory,
        Self::DataDir,
        Self::Listen,
        Self::Socket,
        Self::MetricsListen,
        Self::AgentTtl,
        Self::TokenFile,
        Self::TlsCert,
        Self::TlsKey,
        Self::AllowedHost,
        Self::RedisUrl,
        Self::RedisUrlFile,
        Self::PostgresUrl,
        Self::PostgresUrlFile,
        Self::StaleFor,
        Self::LegacyWriters,
        Self::LogFormat,
        Self::LogLevel,
    ];

    /// Its name in a file and, behind `--`, on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::InMemory => "in-memory",
            Self::DataDir => "data-dir",
            Self::Listen => "listen",
            Self::Socket => "socket",
            Self::MetricsListen => "metrics-listen",
            Self::AgentTtl => "agent-ttl",
            Self::TokenFile => "token-file",
            Self::TlsCert => "tls-cert",
            Self::TlsKey => "tls-key",
            Self::AllowedHost => "allowed-host",
            Self::RedisUrl => "redis-url",
            Self::RedisUrlFile => "redis-url-file",
            Self::PostgresUrl => "postgres-url",
            Self::PostgresUrlFile => "postgres-url-file",
            Self::StaleFor => "stale-for",
            Self::LegacyWriters => "legacy-writers",
            Self::LogFormat => "log-format",
            Self::LogLevel => "log-level",
        }
    }

    /// Its environment variable.
    pub fn variable(self) -> String {
        format!("TRADEPOST_{}", self.name().replace('-', "_").to_ascii_uppercase())
    }

    /// How an error names it, given where its value came from.
    pub(super) fn place(self, source: &Source) -> String {
        match source {
            Source::Flag | Source::Default => format!("--{}", self.name()),
            Source::Environment => self.variable(),
            Source::File(path) => format!("`{}` in {}", self.name(), path.display()),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The values of one source as typed; several of one setting are joined by commas. May hold secrets, so it cannot be
/// shown.
#[derive(Default)]
pub struct Values(BTreeMap<Setting, OsString>);

impl Values {
    /// Adds a value; an absent one changes nothing.
    pub fn set(&mut self, setting: Setting, value: Option<impl Into<OsString>>) {
        if let Some(value) = value {
            self.0.insert(setting, value.into());
        }
    }

    pub(super) fn get(&self, setting: Setting) -> Option<&OsString> {
        self.0.get(&setting)
    }
}

/// All sources that may name a setting.
pub struct Layers {
    flags: Values,
    environment: Values,
    file: Option<ConfigFile>,
}

/// A value as typed, and where.
pub(super) struct Found<'a> {
    pub(super) text: &'a OsString,
    pub(super) source: Source,
}

impl Layers {
    /// Reads the environment through `variable`, and the file if the flag or `TRADEPOST_CONFIG` names one.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key, or holds a password that others can read.
    pub fn read(
        flags: Values,
        config: Option<&Path>,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let present = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut environment = Values::default();
        for setting in Setting::ALL {
            environment.set(setting, present(&setting.variable()));
        }
        let from_environment = present("TRADEPOST_CONFIG");
        let path = config.or(from_environment.as_ref().map(Path::new));
        let file = path.map(ConfigFile::read).transpose()?;
        Ok(Self { flags, environment, file })
    }

    pub(super) fn find(&self, setting: Setting) -> Option<Found<'_>> {
        if let Some(text) = self.flags.get(setting) {
            return Some(Found { text, source: Source::Flag });
        }
        if let Some(text) = self.environment.get(setting) {
            return Some(Found { text, source: Source::Environment });
        }
        let file = self.file.as_ref()?;
        let text = file.values.get(setting)?;
        Some(Found { text, source: Source::File(file.path.clone()) })
    }
}
