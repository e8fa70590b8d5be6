//! `tradepost sync`: how replication goes, and a push for what was set aside.

use clap::{Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::api::{Query, parse};
use super::args::wire_name;
use super::client::{Call, Client};
use super::failure::Failure;
use super::output::{Output, cell};
use super::status::sinks;

/// Replication's commands.
#[derive(Debug, Subcommand)]
pub enum SyncCommand {
    /// Show how far the sinks are; of one sink also what it has parked (which is what --json prints of it)
    Status {
        /// Only of this one
        sink: Option<Sink>,
    },
    /// Try a sink's parked entries again
    Retry {
        /// Which
        sink: Sink,
    },
    /// Compare everything with a sink again, and repair what differs
    Resync {
        /// Which
        sink: Sink,
    },
}

/// A central system.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(missing_docs, reason = "each is the system of its name")]
pub enum Sink {
    Redis,
    Postgres,
}

#[derive(Deserialize)]
struct StatusBody {
    sinks: Box<RawValue>,
}

/// Runs one of them.
pub fn run(command: SyncCommand, client: &Client, output: &mut Output) -> Result<(), Failure> {
    match command {
        SyncCommand::Status { sink: None } => {
            let answer = client.ask(&Call::get("/v1/status"))?;
            if output.is_json() {
                return output.json(parse::<StatusBody>(&answer)?.sinks.get().as_bytes());
            }
            sinks(&parse(&answer)?, None, output)
        }
        SyncCommand::Status { sink: Some(sink) } => {
            let sink = wire_name(&sink);
            let parked = Call::get(Query::default().with("limit", Some(1_000)).on(&format!("/v1/sync/{sink}/parked")));
            if output.is_json() {
                return output.json(&client.ask(&parked)?.body);
            }
            let status: Value = parse(&client.ask(&Call::get("/v1/status"))?)?;
            sinks(&status, Some(&sink), output)?;
            if status["sinks"][&sink]["parked"].as_u64().is_none_or(|parked| parked == 0) {
                return Ok(());
            }
            let parked: Value = parse(&client.ask(&parked)?)?;
            output.bytes(b"\n")?;
            any_rows(parked["items"].as_array().map_or(&[], Vec::as_slice), output)
        }
        SyncCommand::Retry { sink } => ask_for(client, sink, "retry", output),
        SyncCommand::Resync { sink } => ask_for(client, sink, "resync", output),
    }
}

fn ask_for(client: &Client, sink: Sink, what: &str, output: &mut Output) -> Result<(), Failure> {
    let sink = wire_name(&sink);
    let answer = client.ask(&Call::post_repeatable(format!("/v1/sync/{sink}/{what}")))?;
    if output.is_json() {
        output.json(&answer.body)
    } else {
        output.line(&format!("{what} of {sink} was asked for; `tradepost sync status {sink}` shows how it goes"))
    }
}

/// Entries whose shape is theirs to decide: a column for each field of the first.
fn any_rows(items: &[Value], output: &mut Output) -> Result<(), Failure> {
    let Some(names) = items.first().and_then(Value::as_object).map(|first| first.keys().cloned().collect::<Vec<_>>())
    else {
        return Ok(());
    };
    let header: Vec<&str> = names.iter().map(String::as_str).collect();
    let rows = items.iter().map(|item| names.iter().map(|name| cell(&item[name], "")).collect());
    output.table(&header, &[], rows.collect())
}
