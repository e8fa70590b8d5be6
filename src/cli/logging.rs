//! The log: to stderr, as text or JSON, one line an event whatever text from outside is in it.
//!
//! tracing-subscriber escapes some control characters, but not line breaks in messages, nothing in fields recorded
//! with `%`, no direction marks, and in JSON only what JSON must. So every finished line is escaped here once more.
//! For that reason colours are off.
//!
//! Whoever logs never waits: a thread of its own writes to stderr, which may be a pipe that nobody empties. What finds too
//! many lines waiting is dropped and counted.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::printable::{printable, printable_json};
use crate::config::{LogFormat, LogLevel, LogSettings};

/// How many lines may wait for stderr.
const WAITING: usize = 1_024;
/// For how long the last lines are waited for.
const FLUSHING: Duration = Duration::from_secs(1);

/// What the thread that writes is told.
enum Message {
    Line(Vec<u8>),
    /// To say so when everything before this is written.
    Flush(Sender<()>),
}

/// Logging, for as long as this is held; when it goes, the last lines are written, if anybody takes them.
pub struct Logging(Sender<Message>);

/// Starts logging for the rest of the process. Only the first call counts.
///
/// # Errors
/// When the system has no thread for it.
pub fn start(log: LogSettings) -> io::Result<Logging> {
    let (lines, waiting) = crossbeam_channel::bounded(WAITING);
    let dropped = Arc::new(AtomicU64::new(0));
    let writing = {
        let dropped = Arc::clone(&dropped);
        move || write_lines(&waiting, &dropped, log.format)
    };
    thread::Builder::new().name("log".to_owned()).spawn(writing)?;
    let writer = Queue { format: log.format, lines: lines.clone(), dropped };
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).log_internal_errors(false);
    let layer = match log.format {
        LogFormat::Text => layer.with_writer(writer).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_writer(writer).boxed(),
    };
    let level = level_filter(log.level);
    // What the libraries below us find worth debugging is theirs.
    let targets = Targets::new().with_default(level.min(LevelFilter::INFO)).with_target("tradepost", level);
    if tracing_subscriber::registry().with(layer.with_filter(targets)).try_init().is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(Logging(lines))
}

/// Writes what comes in until nobody logs any more. A stderr that is closed or broken takes nothing, which is all there is
/// to it.
fn write_lines(waiting: &Receiver<Message>, dropped: &AtomicU64, format: LogFormat) {
    for message in waiting {
        match message {
            Message::Line(line) => {
                io::stderr().write_all(&line).ok();
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    io::stderr().write_all(loss(format, lost).as_bytes()).ok();
                }
            }
            // Whoever waited may have given up.
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

/// What is written in the place of lines that nobody took.
fn loss(format: LogFormat, lines: u64) -> String {
    let message = format!("{lines} lines of the log were dropped: stderr took none");
    match format {
        LogFormat::Text => format!("WARN {message}\n"),
        LogFormat::Json => format!("{}\n", serde_json::json!({"level": "WARN", "message": message})),
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let (done, flushed) = crossbeam_channel::bounded(1);
        if self.0.send_timeout(Message::Flush(done), FLUSHING).is_ok() {
            flushed.recv_timeout(FLUSHING).ok();
        }
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
struct Queue {
    format: LogFormat,
    lines: Sender<Message>,
    dropped: Arc<AtomicU64>,
}

/// Takes one finished line, which the subscriber writes with one call.
struct Line<'a>(&'a Queue);

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Queue { format, lines, dropped } = self.0;
        let text = escaped(*format, &String::from_utf8_lossy(line)).into_owned();
        if lines.try_send(Message::Line(text.into_bytes())).is_err() {
            dropped.fetch_add(1, Ordering::Relaxed);
        }
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

    #[test]
    fn a_stderr_that_takes_nothing_holds_up_nobody_and_what_it_missed_is_counted() {
        let (lines, waiting) = crossbeam_channel::bounded(2);
        let queue = Queue { format: LogFormat::Text, lines, dropped: Arc::default() };
        for number in 0..5 {
            queue.make_writer().write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        assert_eq!((waiting.len(), queue.dropped.load(Ordering::Relaxed)), (2, 3));
        let json: serde_json::Value = serde_json::from_str(&loss(LogFormat::Json, 3)).unwrap();
        assert_eq!(json["message"], "3 lines of the log were dropped: stderr took none");
    }

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
