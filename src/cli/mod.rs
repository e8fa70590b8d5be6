//! The command line: what the user typed becomes one call of the app, of a sidecar's API or of the store's tools, and
//! what came of it becomes output and an exit code.
//!
//! Output goes to stdout, everything else to stderr. Text from outside is escaped on both. A command that failed has
//! said why; one whose reader went away ends without a word.

mod agent;
mod api;
mod args;
mod batch;
mod central;
mod client;
mod discover;
mod export;
mod failure;
mod list;
mod logging;
mod offline;
mod output;
mod place;
mod printable;
mod progress;
mod serve;
mod status;
mod sync;
mod transaction;
mod units;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Command, CommandLine, GlobalArgs, Shell};
use client::Client;
use failure::{Exit, Failure};
use output::{Output, note};
use place::{Target, Typed};

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let typed = match CommandLine::try_parse() {
        Ok(typed) => typed,
        Err(error) => {
            // Where nobody reads help or the error, there is nothing left to do about it.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    match run(typed, &|name| std::env::var_os(name)) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            if let Failure::Because(_, words) | Failure::Problem { words, .. } = &failure {
                note(&format!("error: {words}"));
            }
            failure.exit().into()
        }
    }
}

fn run(typed: CommandLine, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<(), Failure> {
    let CommandLine { global, command } = typed;
    // It does not print, and must not hold standard output for weeks.
    if let Command::Serve(args) = command {
        return serve::serve(*args, &global, variable);
    }
    let mut output = Output::new(global.json);
    let result = print(command, &global, variable, &mut output);
    if let Err(Failure::Problem { json, .. }) = &result
        && output.is_json()
    {
        output.json(json)?;
    }
    match (result, output.flush()) {
        (Ok(()), flushed) => flushed,
        (Err(failure), _) => Err(failure),
    }
}

fn print(
    command: Command,
    global: &GlobalArgs,
    variable: &dyn Fn(&str) -> Option<OsString>,
    output: &mut Output,
) -> Result<(), Failure> {
    let client = || {
        let typed = Typed {
            url: global.url.as_deref(),
            socket: global.socket.as_deref(),
            token_file: global.token_file.as_deref(),
            ca_file: global.ca_file.as_deref(),
        };
        Client::new(Target::find(&typed, variable)?)
    };
    match command {
        Command::Serve(_) => unreachable!("was run before"),
        Command::Agent(command) => agent::run(command, &client()?, output),
        Command::Transaction(command) => transaction::run(command, &client()?, output),
        Command::Discover(command) => discover::run(command, &client()?, output),
        Command::Status => status::run(&client()?, output),
        Command::Sync(command) => sync::run(command, &client()?, output),
        Command::Verify(args) => offline::verify(&args, variable, output),
        Command::Compact(args) => offline::compact(&args, variable, output),
        Command::Central(command) => central::run(command, variable, output),
        Command::Config(args) => serve::config(*args, variable, output),
        Command::Openapi => output.json(crate::http::openapi_json().as_bytes()),
        Command::Completions { shell } => completions(shell, output),
    }
}

fn completions(shell: Shell, output: &mut Output) -> Result<(), Failure> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // Into memory first: the generator panics where output ends early.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "tradepost", &mut script);
    output.bytes(&script)
}
