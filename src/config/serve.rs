//! `serve`'s settings as meant: typed, checked against each other, each with where it came from.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::directory::{default_directory, default_socket, store_file};
use super::layers::{Found, Layers, Setting};
use super::secret::{CentralUrl, Certificate, Token};
use super::values::{self, LogFormat, LogLevel};
use super::{ConfigError, Source};
use crate::domain::Ttl;

const DEFAULT_LISTEN: &str = "127.0.0.1:7700";
const DEFAULT_METRICS_LISTEN: &str = "127.0.0.1:8000";
const DEFAULT_STALE_FOR: Duration = Duration::from_secs(24 * 3_600);
const REDIS_SCHEMES: &[&str] = &["redis", "rediss"];
const POSTGRES_SCHEMES: &[&str] = &["postgres", "postgresql"];

/// Everything that `serve` needs to know. A value of this type keeps the rules of the command line: what is not on
/// loopback has a token, every path is given or known, every secret was readable.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// Where data is kept.
    pub store: StoreLocation,
    /// Where the API listens. Port 0: any.
    pub listen: SocketAddr,
    /// Where it listens besides, as a Unix socket.
    pub socket: Option<PathBuf>,
    /// Where metrics are served, if at all.
    pub metrics_listen: Option<SocketAddr>,
    /// The lease of an agent that does not say.
    pub agent_ttl: Ttl,
    /// What every request must carry.
    pub token: Option<Token>,
    /// What the API is encrypted with on TCP.
    pub certificate: Option<Certificate>,
    /// Names for `Host` besides loopback and the listener's own.
    pub allowed_hosts: Vec<String>,
    /// The central systems.
    pub replication: ReplicationSettings,
    /// What is logged.
    pub log: LogSettings,
}

/// Where data is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreLocation {
    /// Nowhere: it is gone after exit.
    Memory,
    /// In one file in this directory, which may not exist yet. The path is absolute.
    Directory(PathBuf),
}

impl StoreLocation {
    /// The store's file, if it has one.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Memory => None,
            Self::Directory(directory) => Some(store_file(directory)),
        }
    }
}

/// The central systems, and how to live with them.
#[derive(Debug, Clone)]
pub struct ReplicationSettings {
    /// Where the registry goes.
    pub redis: Option<CentralUrl>,
    /// Where the ledger goes.
    pub postgres: Option<CentralUrl>,
    /// How long remote agents stay discoverable while Redis is away.
    pub stale_for: Duration,
    /// Whether programs that know nothing of us write there too.
    pub legacy_writers: bool,
}

impl ReplicationSettings {
    /// Whether any central system is configured.
    pub fn is_configured(&self) -> bool {
        self.redis.is_some() || self.postgres.is_some()
    }
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSettings {
    /// How.
    pub format: LogFormat,
    /// How much.
    pub level: LogLevel,
}

/// One setting as it took effect, without secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which.
    pub setting: Setting,
    /// Its value; null where there is none.
    pub value: Value,
    /// Who said so.
    pub source: Source,
}

/// Settings, and how they came about.
#[derive(Debug)]
pub struct Resolved {
    /// As meant.
    pub settings: ServeSettings,
    /// One row per setting, in the order of [`Setting::ALL`].
    pub rows: Vec<Row>,
}

impl ServeSettings {
    /// Picks, reads and checks every setting. `variable` is the environment, for the home directory.
    ///
    /// # Errors
    /// The first setting that cannot be used, named the way it was given.
    pub fn resolve(layers: &Layers, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Resolved, ConfigError> {
        let mut picked = Picked { layers, rows: Vec::with_capacity(Setting::ALL.len()) };

        let store = picked.store(variable)?;
        let listen = picked.value(Setting::Listen, DEFAULT_LISTEN, values::address)?;
        let socket = picked.socket(&store)?;
        let metrics_listen = picked.value(Setting::MetricsListen, DEFAULT_METRICS_LISTEN, or_none(values::address))?;
        let agent_ttl = picked.value(Setting::AgentTtl, &Ttl::default().seconds().to_string(), values::ttl)?;
        let token = picked.token()?;
        let certificate = picked.certificate()?;
        let allowed_hosts = picked.value(Setting::AllowedHost, "", values::hosts)?;
        let redis = picked.central(Setting::RedisUrl, Setting::RedisUrlFile, REDIS_SCHEMES)?;
        let postgres = picked.central(Setting::PostgresUrl, Setting::PostgresUrlFile, POSTGRES_SCHEMES)?;
        let default_stale_for = DEFAULT_STALE_FOR.as_secs().to_string();
        let stale_for = picked.value(Setting::StaleFor, &default_stale_for, values::span)?;
        let legacy_writers = picked.value(Setting::LegacyWriters, "false", values::truth)?;
        let format = picked.value(Setting::LogFormat, "text", values::log_format)?;
        let level = picked.value(Setting::LogLevel, "info", values::log_level)?;

        if token.is_none() {
            picked.require_loopback(Setting::Listen, Some(listen))?;
            picked.require_loopback(Setting::MetricsListen, metrics_listen)?;
        }
        if listen.port() != 0 && metrics_listen == Some(listen) {
            let reason = format!("is {listen}, where the API listens already; give metrics another port, or `none`");
            return Err(picked.refuse(Setting::MetricsListen, reason));
        }

        let replication = ReplicationSettings { redis, postgres, stale_for, legacy_writers };
        let log = LogSettings { format, level };
        let settings = Self {
            store,
            listen,
            socket,
            metrics_listen,
            agent_ttl,
            token,
            certificate,
            allowed_hosts,
            replication,
            log,
        };
        let mut rows = picked.rows;
        rows.sort_by_key(|row| row.setting);
        Ok(Resolved { settings, rows })
    }
}

/// The URL of PostgreSQL alone, for commands that need nothing else.
///
/// # Errors
/// It cannot be used, or a flag holds a password.
pub fn postgres_url(layers: &Layers) -> Result<Option<CentralUrl>, ConfigError> {
    let mut picked = Picked { layers, rows: Vec::new() };
    picked.central(Setting::PostgresUrl, Setting::PostgresUrlFile, POSTGRES_SCHEMES)
}

/// The layers, and a row for every setting picked from them so far.
struct Picked<'a> {
    layers: &'a Layers,
    rows: Vec<Row>,
}

impl Picked<'_> {
    fn record(&mut self, setting: Setting, value: Value, source: Source) {
        self.rows.push(Row { setting, value, source });
    }

    fn source(&self, setting: Setting) -> Source {
        self.layers.find(setting).map_or(Source::Default, |found| found.source)
    }

    fn refuse(&self, setting: Setting, reason: impl Into<String>) -> ConfigError {
        ConfigError::of(setting, &self.source(setting), reason)
    }

    /// A setting that is text in every source, its default included.
    fn value<T: Shown>(
        &mut self,
        setting: Setting,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let default = OsString::from(default);
        let found = self.layers.find(setting).unwrap_or(Found { text: &default, source: Source::Default });
        let text = text(setting, &found)?;
        let value = parse(text.trim()).map_err(|reason| ConfigError::of(setting, &found.source, reason))?;
        let source = found.source;
        self.record(setting, value.shown(), source);
        Ok(value)
    }

    fn path(&self, setting: Setting) -> Result<Option<(PathBuf, Source)>, ConfigError> {
        let Some(found) = self.layers.find(setting) else { return Ok(None) };
        if found.text.is_empty() {
            return Err(ConfigError::of(setting, &found.source, "must not be empty"));
        }
        Ok(Some((PathBuf::from(found.text), found.source)))
    }

    /// `--in-memory` or `--data-dir`: two answers to one question, so the higher source wins.
    fn store(&mut self, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<StoreLocation, ConfigError> {
        let in_memory = self.value(Setting::InMemory, "false", values::truth)?;
        let directory = self.path(Setting::DataDir)?;
        let in_memory_source = self.source(Setting::InMemory);
        match directory {
            Some((_, source)) if in_memory && source == in_memory_source => {
                Err(self.refuse(Setting::DataDir, "cannot be given together with `in-memory`, which keeps no data"))
            }
            Some((directory, source)) if !in_memory || source < in_memory_source => {
                if in_memory {
                    self.rows.pop();
                    self.record(Setting::InMemory, json!(false), Source::Default);
                }
                self.directory(&directory, source)
            }
            _ if in_memory => {
                self.record(Setting::DataDir, Value::Null, in_memory_source);
                Ok(StoreLocation::Memory)
            }
            _ => {
                let directory = default_directory(variable)?;
                self.directory(&directory, Source::Default)
            }
        }
    }

    fn directory(&mut self, directory: &Path, source: Source) -> Result<StoreLocation, ConfigError> {
        let directory = std::path::absolute(directory)
            .map_err(|error| self.refuse(Setting::DataDir, format!("cannot be made absolute: {error}")))?;
        self.record(Setting::DataDir, path_value(&directory), source);
        Ok(StoreLocation::Directory(directory))
    }

    fn socket(&mut self, store: &StoreLocation) -> Result<Option<PathBuf>, ConfigError> {
        let (socket, source) = match self.path(Setting::Socket)? {
            Some((path, source)) => (Some(path).filter(|path| path != Path::new("none")), source),
            None => match store {
                StoreLocation::Memory => (None, Source::Default),
                StoreLocation::Directory(directory) => (Some(default_socket(directory)), Source::Default),
            },
        };
        if let Some(path) = &socket
            && std::os::unix::net::SocketAddr::from_pathname(path).is_err()
        {
            let reason = format!(
                "cannot be {}: a Unix socket's path has at most about 100 bytes; give a shorter one, or `none`",
                path.display()
            );
            return Err(self.refuse(Setting::Socket, reason));
        }
        self.record(Setting::Socket, socket.as_deref().map_or(Value::Null, path_value), source);
        Ok(socket)
    }

    fn token(&mut self) -> Result<Option<Token>, ConfigError> {
        let Some((file, source)) = self.path(Setting::TokenFile)? else {
            self.record(Setting::TokenFile, Value::Null, Source::Default);
            return Ok(None);
        };
        let token = Token::read(&file).map_err(|error| in_place(Setting::TokenFile, &source, error))?;
        self.record(Setting::TokenFile, path_value(&file), source);
        Ok(Some(token))
    }

    /// A certificate and its key; neither is of any use alone.
    fn certificate(&mut self) -> Result<Option<Certificate>, ConfigError> {
        let (certificate, key) = (self.path(Setting::TlsCert)?, self.path(Setting::TlsKey)?);
        for (setting, file) in [(Setting::TlsCert, &certificate), (Setting::TlsKey, &key)] {
            let (value, source) = match file {
                Some((file, source)) => (path_value(file), source.clone()),
                None => (Value::Null, Source::Default),
            };
            self.record(setting, value, source);
        }
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some((certificate, source)), Some((key, _))) => Certificate::read(&certificate, &key)
                .map(Some)
                .map_err(|error| in_place(Setting::TlsCert, &source, error)),
            (Some(_), None) => Err(self.refuse(Setting::TlsCert, "needs its key; give --tls-key as well")),
            (None, Some(_)) => Err(self.refuse(Setting::TlsKey, "needs its certificate; give --tls-cert as well")),
        }
    }

    /// A URL or a file that holds it: again two answers to one question.
    fn central(
        &mut self,
        direct: Setting,
        in_file: Setting,
        schemes: &'static [&'static str],
    ) -> Result<Option<CentralUrl>, ConfigError> {
        let file = self.path(in_file)?;
        let typed = self.layers.find(direct);
        if let (Some(typed), Some((_, source))) = (&typed, &file)
            && typed.source == *source
        {
            return Err(self.refuse(in_file, format!("cannot be given together with `{direct}`")));
        }
        let typed = typed.filter(|typed| file.as_ref().is_none_or(|(_, source)| typed.source < *source));
        if let Some(found) = typed {
            let url = CentralUrl::parse(text(direct, &found)?, schemes)
                .map_err(|reason| ConfigError::of(direct, &found.source, reason))?;
            if url.has_password() && found.source == Source::Flag {
                // Everybody on this machine can read a command line.
                let reason =
                    format!("holds a password, which other users could see; give --{in_file} or {}", direct.variable());
                return Err(ConfigError::of(direct, &found.source, reason));
            }
            let source = found.source;
            self.record(direct, json!(url.to_string()), source);
            self.record(in_file, Value::Null, Source::Default);
            return Ok(Some(url));
        }
        self.record(direct, Value::Null, Source::Default);
        let Some((file, source)) = file else {
            self.record(in_file, Value::Null, Source::Default);
            return Ok(None);
        };
        let url = CentralUrl::read(&file, schemes).map_err(|error| in_place(in_file, &source, error))?;
        self.record(in_file, path_value(&file), source);
        Ok(Some(url))
    }

    fn require_loopback(&self, setting: Setting, address: Option<SocketAddr>) -> Result<(), ConfigError> {
        match address {
            Some(address) if !address.ip().to_canonical().is_loopback() => {
                let reason = format!(
                    "{address} can be reached from other machines, and nothing asks them for a token; give --token-file, or \
                     listen on 127.0.0.1"
                );
                Err(self.refuse(setting, reason))
            }
            _ => Ok(()),
        }
    }
}

/// An error about a file, told as one about the setting that names it.
fn in_place(setting: Setting, source: &Source, error: ConfigError) -> ConfigError {
    ConfigError::of(setting, source, error.to_string())
}

fn text<'a>(setting: Setting, found: &Found<'a>) -> Result<&'a str, ConfigError> {
    found.text.to_str().ok_or_else(|| ConfigError::of(setting, &found.source, "must be UTF-8"))
}

fn or_none<T>(parse: impl Fn(&str) -> Result<T, String>) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| match text {
        "none" => Ok(None),
        text => parse(text).map(Some).map_err(|reason| format!("{reason} (or `none`)")),
    }
}

fn path_value(path: &Path) -> Value {
    json!(AsRef::<OsStr>::as_ref(path).to_string_lossy())
}

/// How a value looks in `tradepost config`.
trait Shown {
    fn shown(&self) -> Value;
}

impl Shown for bool {
    fn shown(&self) -> Value {
        json!(self)
    }
}

impl Shown for SocketAddr {
    fn shown(&self) -> Value {
        json!(self.to_string())
    }
}

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::shown)
    }
}

impl Shown for Ttl {
    fn shown(&self) -> Value {
        json!(self.seconds())
    }
}

impl Shown for Duration {
    fn shown(&self) -> Value {
        json!(self.as_secs())
    }
}

impl Shown for Vec<String> {
    fn shown(&self) -> Value {
        json!(self)
    }
}

impl Shown for LogFormat {
    fn shown(&self) -> Value {
        json!(self.to_string())
    }
}

impl Shown for LogLevel {
    fn shown(&self) -> Value {
        json!(self.to_string())
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
