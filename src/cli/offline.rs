//! `verify` and `compact`: work on the file of a sidecar that does not run.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::failure::{Exit, Failure, exit_of_open_error};
use super::output::Output;
use super::progress::Progress;
use super::units::size;
use crate::config::{data_directory, store_file};
use crate::store::{self, OpenError};

/// Whose file.
#[derive(Debug, Args)]
pub struct DataDirectory {
    /// The data directory [env: TRADEPOST_DATA_DIR] [default: $XDG_DATA_HOME/tradepost]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

impl DataDirectory {
    fn file(&self, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf, Failure> {
        Ok(store_file(&data_directory(self.data_dir.as_deref(), variable)?))
    }
}

/// `tradepost verify`. Findings are damage.
pub fn verify(
    args: &DataDirectory,
    variable: &dyn Fn(&str) -> Option<OsString>,
    output: &mut Output,
) -> Result<(), Failure> {
    let file = args.file(variable)?;
    let mut progress = Progress::new();
    let result = store::verify(&file, &mut |stage, done, total| progress.show(stage, done, total));
    progress.end();
    let report = result.map_err(|error| failure(&error))?;

    if output.is_json() {
        let json = json!({
            "path": file.to_string_lossy(),
            "findings": report.findings,
            "agents": report.agents,
            "transactions": report.transactions,
            "events": report.events,
            "bytes": report.bytes,
        });
        output.json(json.to_string().as_bytes())?;
    } else {
        for finding in &report.findings {
            output.line(&format!("damaged: {finding}"))?;
        }
        let verdict = match report.findings.len() {
            0 => "sound".to_owned(),
            1 => "1 finding".to_owned(),
            count => format!("{count} findings"),
        };
        let (agents, transactions, events) = (report.agents, report.transactions, report.events);
        output.line(&format!(
            "{}: {verdict}; {agents} agents, {transactions} transactions, {events} events, {}",
            file.display(),
            size(report.bytes)
        ))?;
    }
    if report.findings.is_empty() {
        return Ok(());
    }
    output.flush()?;
    let words = format!("{} is damaged; keep a copy of it, and restore it from a backup", file.display());
    Err(Failure::Because(Exit::Damaged, words))
}

/// `tradepost compact`.
pub fn compact(
    args: &DataDirectory,
    variable: &dyn Fn(&str) -> Option<OsString>,
    output: &mut Output,
) -> Result<(), Failure> {
    let file = args.file(variable)?;
    let report = store::compact(&file).map_err(|error| failure(&error))?;
    if output.is_json() {
        let json = json!({
            "path": file.to_string_lossy(),
            "before_bytes": report.before_bytes,
            "after_bytes": report.after_bytes,
        });
        return output.json(json.to_string().as_bytes());
    }
    let (before, after) = (size(report.before_bytes), size(report.after_bytes));
    output.line(&format!("{}: {before} before, {after} now", file.display()))
}

/// The error's own words, and what to do.
fn failure(error: &OpenError) -> Failure {
    let advice = match error {
        OpenError::InUse(_) => "; stop the sidecar that serves it first",
        OpenError::Damaged { .. } => "; keep a copy of it, and restore it from a backup",
        OpenError::NotFound(_) => "; --data-dir says where a sidecar keeps its data",
        OpenError::Newer { .. } | OpenError::Older { .. } | OpenError::Io { .. } => "",
    };
    Failure::Because(exit_of_open_error(error), format!("{error}{advice}"))
}
