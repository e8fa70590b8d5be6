//! `serve` and `config`: from flags to settings, and what is done with them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::args::GlobalArgs;
use super::failure::{Exit, Failure};
use super::logging;
use super::output::Output;
use crate::app;
use crate::config::{Layers, Resolved, ServeSettings, Setting, Source, Values};

/// What `serve` can be told, as typed: every value is text until settings are made of it, so that it is read alike
/// whether it comes from here, from the environment or from a file.
///
/// `--socket`, `--token-file` and `--url` are the global ones, told here in `serve`'s own words or, as it has no use
/// for the last, not at all.
#[derive(Debug, Args)]
#[command(
    after_help = "Every flag but --config has an environment variable, TRADEPOST_ and the flag in capitals (such as \
                        TRADEPOST_DATA_DIR; lists with commas), and a key of its own name in the --config file. A flag \
                        wins over the environment, that over the file."
)]
pub struct ServeArgs {
    /// Keep everything in memory: it is gone after exit
    #[arg(long, conflicts_with = "data_dir")]
    pub in_memory: bool,
    /// Keep everything in one file in this directory [default: $XDG_DATA_HOME/tradepost]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Serve the API here; port 0 takes any free one [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<OsString>,
    /// Serve it on this Unix socket too, or `none` [default: tradepost.sock in the data directory]
    #[arg(long, value_name = "PATH|none")]
    pub socket: Option<PathBuf>,
    /// Serve metrics here, or `none` [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR|none")]
    pub metrics_listen: Option<OsString>,
    /// How long agents live without a sign of life, in seconds, unless they say [default: 3600]
    #[arg(long, value_name = "S")]
    pub agent_ttl: Option<OsString>,
    /// Ask every request for the bearer token in this file's first line; reread on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve the API over TLS with the certificate chain in this PEM file; reread on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, in a PEM file that nobody else can read
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Also answer to this Host (may be repeated)
    #[arg(long, value_name = "HOST")]
    pub allowed_host: Vec<OsString>,
    /// Replicate the registry to this Redis; a URL with a password belongs into the environment or a file
    #[arg(long, value_name = "URL", conflicts_with = "redis_url_file")]
    pub redis_url: Option<OsString>,
    /// The same, from this file's first line
    #[arg(long, value_name = "FILE")]
    pub redis_url_file: Option<PathBuf>,
    /// Replicate the ledger to this PostgreSQL; a URL with a password belongs into the environment or a file
    #[arg(long, value_name = "URL", conflicts_with = "postgres_url_file")]
    pub postgres_url: Option<OsString>,
    /// The same, from this file's first line
    #[arg(long, value_name = "FILE")]
    pub postgres_url_file: Option<PathBuf>,
    /// How long remote agents stay discoverable while Redis is away, such as 90s, 15m, 24h [default: 24h]
    #[arg(long, value_name = "D")]
    pub stale_for: Option<OsString>,
    /// Expect programs that know nothing of Tradepost to write to the central systems too
    #[arg(long)]
    pub legacy_writers: bool,
    /// Read settings from this TOML file [env: TRADEPOST_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write logs as `text` or `json` [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<OsString>,
    #[arg(long, hide = true)]
    url: Option<String>,
    /// Log this and worse: error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<OsString>,
}

impl ServeArgs {
    fn resolve(self, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Resolved, Failure> {
        let config = self.config.clone();
        let layers = Layers::read(self.into_values(), config.as_deref(), variable)?;
        Ok(ServeSettings::resolve(&layers, variable)?)
    }

    fn into_values(self) -> Values {
        let mut values = Values::default();
        values.set(Setting::InMemory, self.in_memory.then_some("true"));
        values.set(Setting::DataDir, self.data_dir);
        values.set(Setting::Listen, self.listen);
        values.set(Setting::Socket, self.socket);
        values.set(Setting::MetricsListen, self.metrics_listen);
        values.set(Setting::AgentTtl, self.agent_ttl);
        values.set(Setting::TokenFile, self.token_file);
        values.set(Setting::TlsCert, self.tls_cert);
        values.set(Setting::TlsKey, self.tls_key);
        let hosts = Some(self.allowed_host.join(",".as_ref())).filter(|hosts| !hosts.is_empty());
        values.set(Setting::AllowedHost, hosts);
        values.set(Setting::RedisUrl, self.redis_url);
        values.set(Setting::RedisUrlFile, self.redis_url_file);
        values.set(Setting::PostgresUrl, self.postgres_url);
        values.set(Setting::PostgresUrlFile, self.postgres_url_file);
        values.set(Setting::StaleFor, self.stale_for);
        values.set(Setting::LegacyWriters, self.legacy_writers.then_some("true"));
        values.set(Setting::LogFormat, self.log_format);
        values.set(Setting::LogLevel, self.log_level);
        values
    }
}

/// `tradepost serve`.
pub fn serve(args: ServeArgs, global: &GlobalArgs, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<(), Failure> {
    if global.url.is_some() {
        return Err(Failure::usage("--url says where to reach a sidecar; `serve` runs one, and --listen says where"));
    }
    if global.ca_file.is_some() {
        return Err(Failure::usage(
            "--ca-file says whom a client trusts; `serve` shows a certificate, that of --tls-cert",
        ));
    }
    if global.json {
        return Err(Failure::usage("--json is for commands that print something; for logs there is --log-format json"));
    }
    let settings = args.resolve(variable)?.settings;
    let logging = logging::start(settings.log);
    let _logging = logging.map_err(|error| Failure::Because(Exit::Io, format!("cannot start a thread: {error}")))?;
    app::serve(settings).map_err(|error| {
        // Into the log, in the log's format: whoever reads that wants to know why it ends here.
        tracing::error!("{error}");
        Failure::Told(Failure::from(error).exit())
    })
}

/// `tradepost config`.
pub fn config(
    args: ServeArgs,
    variable: &dyn Fn(&str) -> Option<OsString>,
    output: &mut Output,
) -> Result<(), Failure> {
    let rows = args.resolve(variable)?.rows;
    if output.is_json() {
        let mut settings = Map::new();
        for row in rows {
            let mut entry = json!({ "value": row.value, "source": row.source.to_string() });
            if let Source::File(path) = &row.source {
                entry["source"] = json!("file");
                entry["path"] = json!(path.to_string_lossy());
            }
            settings.insert(row.setting.name().to_owned(), entry);
        }
        return output.json(Value::Object(settings).to_string().as_bytes());
    }
    let rows = rows.into_iter().map(|row| {
        let value = match row.value {
            Value::Null => "none".to_owned(),
            Value::String(text) => text,
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            other => other.to_string(),
        };
        vec![row.setting.to_string(), value, row.source.to_string()]
    });
    output.table(&["setting", "value", "source"], &[], rows.collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Command, CommandLine};
    use super::*;

    fn typed(line: &str) -> ServeArgs {
        match CommandLine::try_parse_from(line.split(' ')).expect(line).command {
            Command::Serve(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn resolved(line: &str) -> Result<Resolved, Failure> {
        typed(line).resolve(&|name| (name == "HOME").then(|| OsString::from("/home/op")))
    }

    #[test]
    fn every_flag_reaches_its_setting() {
        let line = "tradepost --socket /s serve --data-dir /d --listen 127.0.0.1:1 --metrics-listen none --agent-ttl 9 \
                    --allowed-host a --allowed-host b --redis-url redis://h --postgres-url postgres://h --stale-for 1h \
                    --legacy-writers --log-format json --log-level debug";
        let rows = resolved(line).unwrap().rows;
        // Those that are files have to be there.
        let untouched = [
            Setting::InMemory,
            Setting::TokenFile,
            Setting::TlsCert,
            Setting::TlsKey,
            Setting::RedisUrlFile,
            Setting::PostgresUrlFile,
        ];
        for row in rows {
            let expected = if untouched.contains(&row.setting) { Source::Default } else { Source::Flag };
            assert_eq!(row.source, expected, "{}", row.setting);
        }
    }
}
