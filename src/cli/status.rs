//! `tradepost status`: one screen that tells what is healthy and what is not yet central.

use serde_json::Value;

use super::api::{not_ours, parse, problem_in_words};
use super::client::{Call, Client};
use super::failure::{Exit, Failure};
use super::output::{Field, Output, cell, number, text};
use super::units::{size, span};

const SINKS: &[Field] = &[
    text("sink", "/sink"),
    text("state", "/state"),
    number("backlog", "/backlog"),
    number("lag", "/lag"),
    number("parked", "/parked"),
    text("last success", "/last_success_at"),
    text("last error", "/last_error"),
];

/// Shows the status. Fails when the store is not ready, after saying so.
pub fn run(client: &Client, output: &mut Output) -> Result<(), Failure> {
    let answer = client.ask(&Call::get("/v1/status"))?;
    let ready = client.call(&Call::probe("/readyz"))?;
    let is_ready = (200..300).contains(&ready.status);
    if output.is_json() {
        output.json(&answer.body)?;
    } else {
        let health = match is_ready {
            true => "ready".to_owned(),
            false => match parse(&ready).ok().as_ref().and_then(problem_in_words) {
                Some(words) => format!("NOT READY: {words}"),
                None => "NOT READY".to_owned(),
            },
        };
        screen(&parse(&answer)?, health, output)?;
    }
    if is_ready { Ok(()) } else { Err(Failure::Told(Exit::Refused)) }
}

fn screen(status: &Value, health: String, output: &mut Output) -> Result<(), Failure> {
    let uptime = status["uptime_seconds"].as_f64().ok_or_else(not_ours)?;
    let store = &status["store"];
    let kept = match store["path"].as_str() {
        Some(path) => format!("{path} ({})", size(store["bytes"].as_u64().unwrap_or(0))),
        None => "in memory, gone after exit".to_owned(),
    };
    let counts =
        ["agents", "transactions", "events"].map(|what| format!("{} {what}", cell(store, &format!("/{what}"))));
    let mut rows = vec![
        vec!["health".to_owned(), health],
        vec!["version".to_owned(), cell(status, "/version")],
        vec!["node".to_owned(), cell(status, "/node_id")],
        vec!["up".to_owned(), span(uptime)],
        vec!["listening".to_owned(), cell(status, "/listen")],
        vec!["store".to_owned(), kept],
        vec![String::new(), counts.join(", ")],
    ];
    rows.retain(|row| row[1] != "-");
    output.table(&[], &[], rows)?;
    output.bytes(b"\n")?;
    sinks(status, None, output)
}

/// The sinks of a status, or one of them, one a line.
pub fn sinks(status: &Value, only: Option<&str>, output: &mut Output) -> Result<(), Failure> {
    let all = status["sinks"].as_object().ok_or_else(not_ours)?;
    let rows = all.iter().filter(|(name, _)| only.is_none_or(|only| only == name.as_str())).map(|(name, sink)| {
        let mut row = sink.clone();
        if let Some(row) = row.as_object_mut() {
            row.insert("sink".to_owned(), name.as_str().into());
            if let Some(seconds) = sink["lag_seconds"].as_f64() {
                row.insert("lag".to_owned(), span(seconds).into());
            }
        }
        row
    });
    output.rows(SINKS, &rows.collect::<Vec<_>>())?;
    let notes =
        all.iter().filter(|(name, _)| only.is_none_or(|only| only == name.as_str())).flat_map(|(name, sink)| {
            let notes = sink["notes"].as_array().map_or(&[][..], Vec::as_slice);
            notes.iter().filter_map(Value::as_str).map(|note| vec![name.clone(), note.to_owned()])
        });
    let notes: Vec<Vec<String>> = notes.collect();
    if notes.is_empty() {
        return Ok(());
    }
    output.bytes(b"\n")?;
    output.table(&["sink", "note"], &[], notes)
}
