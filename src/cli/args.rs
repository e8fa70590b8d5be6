//! The command line as typed: global flags, and one subcommand.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::agent::AgentCommand;
use super::central::CentralCommand;
use super::discover::DiscoverCommand;
use super::offline::DataDirectory;
use super::serve::ServeArgs;
use super::sync::SyncCommand;
use super::transaction::TransactionCommand;

/// A trading post for AI agents: registry, ledger and discovery in one binary and one file
///
/// Exit codes: 0 ok, 1 the server said no, 64 usage, 65 damaged data, 69 server not reachable, 74 I/O, 75 the file is
/// in use by another process, 78 bad configuration.
#[derive(Debug, Parser)]
#[command(name = "tradepost", version, max_term_width = 100, arg_required_else_help = true)]
pub struct CommandLine {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that may stand before or behind a subcommand.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Where the sidecar listens, such as http://127.0.0.1:7700 [env: TRADEPOST_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub url: Option<String>,
    /// Its Unix socket [env: TRADEPOST_SOCKET] [default: the one in the data directory, then 127.0.0.1:7700]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Connection")]
    pub socket: Option<PathBuf>,
    /// A file with the bearer token in its first line [env: TRADEPOST_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub token_file: Option<PathBuf>,
    /// A PEM file with the certificates to trust for https:// [env: TRADEPOST_CA_FILE] [default: the system's]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub ca_file: Option<PathBuf>,
    /// Print the API's own JSON instead of tables
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sidecar
    Serve(Box<ServeArgs>),
    /// Register agents and keep them registered
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Record transactions and carry them through to their end
    #[command(subcommand, name = "tx")]
    Transaction(TransactionCommand),
    /// Find agents by what they can do
    #[command(subcommand)]
    Discover(DiscoverCommand),
    /// Show in one screen what is healthy and what is not yet central
    Status,
    /// Look after replication to the central systems
    #[command(subcommand)]
    Sync(SyncCommand),
    /// Check the file of a stopped sidecar, everything in it
    Verify(DataDirectory),
    /// Give the unused space in the file of a stopped sidecar back
    Compact(DataDirectory),
    /// Look after the tables in PostgreSQL
    #[command(subcommand)]
    Central(CentralCommand),
    /// Show the settings that `serve` would use, and where each comes from
    Config(Box<ServeArgs>),
    /// Print the API's OpenAPI document
    Openapi,
    /// Print a completion script
    Completions {
        /// For this shell
        shell: Shell,
    },
}

/// The shells that completions exist for.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(missing_docs, reason = "each is the shell of its name")]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The name that a value has on the wire, which is the one it is typed with.
pub fn wire_name<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).expect("no value is skipped")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn global_flags_may_stand_on_either_side_of_a_subcommand() {
        for line in ["--json --socket /s tx get x", "tx get x --json --socket /s", "tx --socket /s get --json x"] {
            let parsed = CommandLine::try_parse_from(["tradepost"].into_iter().chain(line.split(' '))).expect(line);
            assert!(parsed.global.json, "{line}");
            assert_eq!(parsed.global.socket, Some(PathBuf::from("/s")), "{line}");
        }
    }

    #[test]
    fn mistakes_are_usage_errors_and_questions_are_not() {
        for (line, is_mistake) in [
            ("", true),
            ("tx", true),
            ("frobnicate", true),
            ("serve --frobnicate", true),
            ("serve --in-memory --data-dir /d", true),
            ("serve --redis-url redis://h --redis-url-file /f", true),
            ("agent update thon", true),
            ("agent outcome thon", true),
            ("agent outcome thon --success --failure", true),
            ("tx record --payer a", true),
            ("tx record --file f --payer a", true),
            ("tx list --status odd", true),
            ("tx list --all --limit 3", true),
            ("completions powershell", true),
            ("central", true),
            ("central schema --postgres-url postgres://h --postgres-url-file /f", true),
            ("--help", false),
            ("--version", false),
            ("tx record --help", false),
        ] {
            let typed = line.split(' ').filter(|word| !word.is_empty());
            let error = CommandLine::try_parse_from(["tradepost"].into_iter().chain(typed)).expect_err(line);
            assert_eq!(error.use_stderr(), is_mistake, "{line}");
        }
    }
}
