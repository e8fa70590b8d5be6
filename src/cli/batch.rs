//! `tx record --file`: any number of transactions from a file or standard input, a durable batch at a time.
//!
//! A line without a `transaction_id` gets one here, so that a batch whose answer was lost can be sent again and
//! nothing is recorded twice.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::api::{not_ours, parse, problem_in_words};
use super::client::{Call, Client};
use super::failure::{Exit, Failure};
use super::output::{Output, note};
use super::progress::Progress;

const BATCH_LINES: usize = 2_000;
/// Half of what the server takes.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// What the server takes in a request of one.
const LONGEST_LINE: u64 = 1024 * 1024;
/// Refused lines that are told one by one.
const TOLD_REFUSALS: u64 = 100;

/// Records every line of `file`; `-` is standard input.
pub fn record(client: &Client, file: &Path, output: &mut Output) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io(format!("cannot read {}", file.display()), &error);
    let mut source: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(file).map_err(failed)?))
    };
    let bytes_total = file.metadata().map_or(0, |found| found.len());
    let mut progress = Progress::new();
    let mut tally = Tally::default();
    let mut lines = Lines { number: 0, bytes: 0 };
    if output.is_json() {
        output.json_part(b"{\"results\":[")?;
    }
    loop {
        let batch = lines.next_batch(&mut *source, file)?;
        if batch.numbers.is_empty() {
            break;
        }
        let sent = batch.numbers.len();
        let call = Call::post_repeatable("/v1/transactions/batch").ndjson(batch.body);
        let results = client.ask(&call).and_then(|answer| parse::<Results>(&answer));
        let results = match results {
            Ok(Results { results }) if results.len() == sent => results,
            Ok(_) => return Err(tally.interrupted(&batch.numbers, not_ours())),
            Err(failure) => {
                progress.end();
                return Err(tally.interrupted(&batch.numbers, failure));
            }
        };
        for (number, result) in batch.numbers.into_iter().zip(&results) {
            if output.is_json() {
                output.json_part(if tally.total() > 0 { b"," } else { b"" })?;
                output.json_part(result.get().as_bytes())?;
            }
            tally.count(number, result)?;
        }
        let share = lines.bytes.min(bytes_total) * 100;
        match share.checked_div(bytes_total) {
            Some(percent) => progress.show(&format!("recorded ({percent} % of the file)"), tally.recorded, 0),
            None => progress.show("recorded", tally.recorded, 0),
        }
    }
    progress.end();
    tally.end(output)
}

#[derive(Deserialize)]
struct Results {
    results: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct ItemResult {
    status: u16,
    problem: Option<Value>,
}

/// Lines that go out together, and their numbers in the file.
struct Batch {
    body: Vec<u8>,
    numbers: Vec<u64>,
}

/// How far a file has been read.
struct Lines {
    number: u64,
    bytes: u64,
}

impl Lines {
    /// The next lines that are not blank; none at the end.
    fn next_batch(&mut self, source: &mut dyn BufRead, file: &Path) -> Result<Batch, Failure> {
        let mut batch = Batch { body: Vec::new(), numbers: Vec::new() };
        let mut line = Vec::new();
        while batch.numbers.len() < BATCH_LINES && batch.body.len() < BATCH_BYTES {
            line.clear();
            let read = (&mut *source)
                .take(LONGEST_LINE + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| Failure::io(format!("cannot read {}", file.display()), &error))?;
            if read == 0 {
                break;
            }
            self.number += 1;
            self.bytes += read as u64;
            if read as u64 > LONGEST_LINE {
                let words = format!("line {} of {} is longer than any transaction can be", self.number, file.display());
                return Err(Failure::Because(Exit::Damaged, words));
            }
            let text = line.trim_ascii();
            if !text.is_empty() {
                push_with_id(text, &mut batch.body);
                batch.numbers.push(self.number);
            }
        }
        Ok(batch)
    }
}

/// Adds a line, with a new id in front if it is an object that has none. The rest of it stays byte for byte: its
/// numbers keep their digits, and what is wrong with it is the server's to say.
fn push_with_id(line: &[u8], body: &mut Vec<u8>) {
    #[derive(Deserialize)]
    struct Id<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        transaction_id: Option<&'a RawValue>,
    }

    /// Unlike serde's own reading, null is something: the line has the key already.
    fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
        Deserialize::deserialize(value).map(Some)
    }

    let inside = line
        .strip_prefix(b"{")
        .filter(|_| serde_json::from_slice::<Id>(line).is_ok_and(|id| id.transaction_id.is_none()));
    match inside {
        Some(inside) => {
            let comma = if inside.trim_ascii_start().starts_with(b"}") { "" } else { "," };
            body.extend_from_slice(format!("{{\"transaction_id\":\"{}\"{comma}", Uuid::now_v7().simple()).as_bytes());
            body.extend_from_slice(inside);
        }
        None => body.extend_from_slice(line),
    }
    body.push(b'\n');
}

/// What became of the lines.
#[derive(Default)]
struct Tally {
    recorded: u64,
    known: u64,
    refused: u64,
}

impl Tally {
    fn total(&self) -> u64 {
        self.recorded + self.known + self.refused
    }

    fn count(&mut self, line: u64, result: &RawValue) -> Result<(), Failure> {
        let result: ItemResult = serde_json::from_str(result.get()).map_err(|_| not_ours())?;
        match result.status {
            201 => self.recorded += 1,
            200 => self.known += 1,
            status => {
                self.refused += 1;
                if self.refused <= TOLD_REFUSALS {
                    let words = result.problem.as_ref().and_then(problem_in_words);
                    note(&format!("line {line}: {}", words.unwrap_or_else(|| format!("status {status}"))));
                }
            }
        }
        Ok(())
    }

    fn words(&self) -> String {
        format!("{} recorded, {} known before, {} refused", self.recorded, self.known, self.refused)
    }

    /// The failure of a whole batch, with what that means for the file.
    fn interrupted(&self, numbers: &[u64], failure: Failure) -> Failure {
        let (first, last) = (numbers.first().copied().unwrap_or(0), numbers.last().copied().unwrap_or(0));
        let exit = failure.exit();
        let (why, these) = match failure {
            Failure::Problem { words, .. } => (words, "were not recorded"),
            Failure::Because(_, words) => (words, "may be recorded or not"),
            quiet => return quiet,
        };
        let words =
            format!("stopped at line {first}: {why}; before it: {}; lines {first} to {last} {these}", self.words());
        Failure::Because(exit, words)
    }

    fn end(self, output: &mut Output) -> Result<(), Failure> {
        if output.is_json() {
            output.json(b"]}")?;
        } else {
            output.line(&self.words())?;
        }
        if self.refused == 0 {
            return Ok(());
        }
        if self.refused > TOLD_REFUSALS {
            note(&format!("and {} more lines were refused", self.refused - TOLD_REFUSALS));
        }
        Err(Failure::Told(Exit::Refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_without_an_id_get_one_and_keep_every_other_byte() {
        for line in [
            r#"{"transaction_id":"x","amount":1}"#,
            r#"{"amount":1,"transaction_id":null}"#,
            r#"{"amount":1"#,
            "[1]",
            "nonsense",
        ] {
            let mut body = Vec::new();
            push_with_id(line.as_bytes(), &mut body);
            assert_eq!(String::from_utf8(body).unwrap(), format!("{line}\n"));
        }
        for (line, rest) in
            [(r#"{ "amount":1.10,"a":1,"a":2}"#, r#", "amount":1.10,"a":1,"a":2}"#), ("{}", "}"), ("{ }", " }")]
        {
            let mut body = Vec::new();
            push_with_id(line.as_bytes(), &mut body);
            let text = String::from_utf8(body).unwrap();
            let (start, id_and_rest) = text.split_at("{\"transaction_id\":\"".len());
            assert_eq!(start, "{\"transaction_id\":\"");
            let (id, found_rest) = id_and_rest.split_at(32);
            assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
            assert_eq!(found_rest, format!("\"{rest}\n"));
        }
    }

    #[test]
    fn batches_skip_blank_lines_and_keep_the_files_numbers() {
        let mut text = "\n{\"transaction_id\":\"a\"}\r\n   \n{\"transaction_id\":\"b\"}".to_owned();
        let mut lines = Lines { number: 0, bytes: 0 };
        let batch = lines.next_batch(&mut text.as_bytes(), Path::new("f")).unwrap();
        assert_eq!(batch.numbers, [2, 4]);
        assert_eq!(batch.body, b"{\"transaction_id\":\"a\"}\n{\"transaction_id\":\"b\"}\n");

        text = "{}\n".repeat(BATCH_LINES + 1);
        let mut source = text.as_bytes();
        let mut lines = Lines { number: 0, bytes: 0 };
        let sizes = [(); 3].map(|()| lines.next_batch(&mut source, Path::new("f")).unwrap().numbers.len());
        assert_eq!(sizes, [BATCH_LINES, 1, 0]);
    }

    #[test]
    fn a_line_beyond_all_measure_is_refused_without_reading_on() {
        let text = "x".repeat(3 * 1024 * 1024);
        let refusal = Lines { number: 0, bytes: 0 }.next_batch(&mut text.as_bytes(), Path::new("f"));
        assert_eq!(refusal.err().map(|failure| failure.exit()), Some(Exit::Damaged));
    }
}
