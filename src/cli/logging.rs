//! The log: to stderr, as text or JSON, one line an event whatever text from outside is in it.
//!
//! tracing-subscriber escapes some control characters, but not line breaks in messages, nothing in fields recorded
//! with `%`, no direction marks, and in JSON only what JSON must. So every finished line is escaped here once more.
//! For that reason colours are off.

use std::borrow::Cow;
use std::io::{self, Write};

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::printable::{printable, printable_json};
use crate::config::{LogFormat, LogLevel, LogSettings};

/// Starts logging for the rest of the process. Only the first call counts.
pub fn start(log: LogSettings) {
    let writer = Stderr(log.format);
    // A stderr that nobody reads must not end the process, which reporting the failure to stderr would.
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).log_internal_errors(false);
    let lines = match log.format {
        LogFormat::Text => lines.with_writer(writer).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_writer(writer).boxed(),
    };
    let level = level_filter(log.level);
    // What the libraries below us find worth debugging is theirs.
    let targets = Targets::new().with_default(level.min(LevelFilter::INFO)).with_target("tradepost", level);
    if tracing_subscriber::registry().with(lines.with_filter(targets)).try_init().is_err() {
        tracing::debug!("logging was started before");
    }
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Gives each event a writer of its own.
struct Stderr(LogFormat);

/// Takes one finished line, which the subscriber writes with one call.
struct Line(LogFormat);

impl MakeWriter<'_> for Stderr {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(self.0)
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(escaped(self.0, &String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn escaped(format: LogFormat, line: &str) -> Cow<'_, str> {
    match format {
        LogFormat::Json => printable_json(line),
        LogFormat::Text => {
            let event = line.strip_suffix('\n').unwrap_or(line);
            match printable(event) {
                Cow::Borrowed(_) => Cow::Borrowed(line),
                Cow::Owned(event) => Cow::Owned(event + "\n"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects what would have gone to stderr.
    #[derive(Clone)]
    struct Collected(LogFormat, Arc<Mutex<String>>);

    impl Write for Collected {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.1.lock().unwrap().push_str(&escaped(self.0, std::str::from_utf8(line).unwrap()));
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, hostile: &str) -> String {
        let collected = Collected(format, Arc::default());
        let writer = {
            let collected = collected.clone();
            move || collected.clone()
        };
        let lines = tracing_subscriber::fmt::layer().with_ansi(false);
        let lines = match format {
            LogFormat::Text => lines.with_writer(writer).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).with_writer(writer).boxed(),
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let error = io::Error::other(hostile.to_owned());
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::info!(shown = %hostile, debugged = ?hostile, text = hostile, error, "message: {hostile}");
        });
        collected.1.lock().unwrap().clone()
    }

    #[test]
    fn an_event_is_one_line_without_raw_control_characters() {
        let hostile = "a\x1b[31m\r\nERROR forged\u{9b}2J\u{202e}\u{7f}\t\u{2028}";
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = logged(format, hostile);
            let event = line.strip_suffix('\n').expect("ends with a line feed");
            assert!(!event.chars().any(|c| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}')), "{event:?}");
        }
        let json: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json, hostile)).unwrap();
        assert_eq!(json["shown"], hostile);
        assert_eq!(json["message"], format!("message: {hostile}"));
    }
}
