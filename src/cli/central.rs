//! `tradepost central`: the tables in PostgreSQL, for those who look after them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use secrecy::ExposeSecret;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::output::Output;
use crate::config::{CentralUrl, Layers, Setting, Values, postgres_url};
use crate::sync::postgres::config::Target;
use crate::sync::postgres::errors::{Kind, Trouble};
use crate::sync::postgres::schema;
use crate::sync::postgres::session::Session;

/// The commands about central tables.
#[derive(Debug, Subcommand)]
pub enum CentralCommand {
    /// Print the SQL that makes the tables and indexes; with a URL, of those only that are missing there. Changes
    /// nothing
    Schema(PostgresArgs),
    /// Create what is missing, and widen the amounts of an older table from DECIMAL(10,2) to NUMERIC(28,9). The table is
    /// rewritten, and locked meanwhile
    Migrate(PostgresArgs),
}

/// Which PostgreSQL.
#[derive(Debug, Args)]
pub struct PostgresArgs {
    /// Where it is; a URL with a password belongs into the environment or a file [env: TRADEPOST_POSTGRES_URL]
    #[arg(long, value_name = "URL", conflicts_with = "postgres_url_file")]
    pub postgres_url: Option<OsString>,
    /// The same, from this file's first line [env: TRADEPOST_POSTGRES_URL_FILE]
    #[arg(long, value_name = "FILE")]
    pub postgres_url_file: Option<PathBuf>,
}

impl PostgresArgs {
    fn resolve(self, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<CentralUrl>, Failure> {
        let mut flags = Values::default();
        flags.set(Setting::PostgresUrl, self.postgres_url);
        flags.set(Setting::PostgresUrlFile, self.postgres_url_file);
        Ok(postgres_url(&Layers::read(flags, None, variable)?)?)
    }
}

/// Runs one of them.
pub fn run(
    command: CentralCommand,
    variable: &dyn Fn(&str) -> Option<OsString>,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        CentralCommand::Schema(args) => {
            let Some(url) = args.resolve(variable)? else {
                return show(&schema::PARTS, output);
            };
            let missing = with_session(&url, async |session| schema::missing(session).await)?;
            if missing.is_empty() && !output.is_json() {
                return output.line("-- nothing is missing");
            }
            show(&missing, output)
        }
        CentralCommand::Migrate(args) => {
            let Some(url) = args.resolve(variable)? else {
                return Err(Failure::usage("which PostgreSQL? give --postgres-url, or set TRADEPOST_POSTGRES_URL"));
            };
            let done = with_session(&url, async |session| schema::migrate(session).await)?;
            if output.is_json() {
                return output.json(json!({"created": done.created, "widened": done.widened}).to_string().as_bytes());
            }
            for name in &done.created {
                output.line(&format!("created {name}"))?;
            }
            if done.widened {
                output.line("marketplace_transactions.amount is NUMERIC(28,9) now")?;
            }
            if done.created.is_empty() && !done.widened { output.line("nothing had to be done") } else { Ok(()) }
        }
    }
}

fn show(parts: &[schema::Part], output: &mut Output) -> Result<(), Failure> {
    let script = schema::script(parts);
    if output.is_json() {
        output.json(json!({"sql": script}).to_string().as_bytes())
    } else {
        output.bytes(script.as_bytes())
    }
}

/// Connects, and does one thing.
fn with_session<T>(url: &CentralUrl, work: impl AsyncFnOnce(&mut Session) -> Result<T, Trouble>) -> Result<T, Failure> {
    let target = Target::parse(url.secret().expose_secret())
        .map_err(|error| Failure::Because(Exit::Configuration, error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the runtime", &error))?;
    runtime
        .block_on(async {
            let mut session = target.connect().await?;
            work(&mut session).await
        })
        .map_err(|trouble| {
            let exit = if trouble.kind == Kind::Lost { Exit::Unreachable } else { Exit::Refused };
            Failure::Because(exit, format!("{url}: {}", trouble.words))
        })
}
