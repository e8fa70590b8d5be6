//! Standard output: tables for people, the API's own JSON for programs.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use super::failure::Failure;
use super::printable::{printable, printable_json};

const NARROWEST_TABLE: u16 = 40;

/// Standard output, with how it was asked for.
pub struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
    terminal: bool,
    json: bool,
}

/// One value of an entity, by its JSON pointer.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    label: &'static str,
    pointer: &'static str,
    right: bool,
}

/// A field that reads from the left.
pub const fn text(label: &'static str, pointer: &'static str) -> Field {
    Field { label, pointer, right: false }
}

/// A field that lines up on the right, as numbers do.
pub const fn number(label: &'static str, pointer: &'static str) -> Field {
    Field { label, pointer, right: true }
}

impl Output {
    /// Takes standard output for this process.
    pub fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { stdout: BufWriter::new(stdout.lock()), terminal, json }
    }

    /// Whether programs read this.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The API's JSON as it came. Only on a terminal, where no program reads it, is anything in it escaped.
    pub fn json(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.json_part(bytes)?;
        if bytes.ends_with(b"\n") || bytes.is_empty() { Ok(()) } else { self.bytes(b"\n") }
    }

    /// A piece of JSON, with nothing added to it.
    pub fn json_part(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.terminal {
            let text = String::from_utf8_lossy(bytes);
            self.bytes(printable_json(&text).as_bytes())
        } else {
            self.bytes(bytes)
        }
    }

    /// Bytes that are ours, or that no terminal sees.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(bytes).map_err(|error| Failure::stdout(&error))
    }

    /// One line, escaped.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.bytes(printable(text).as_bytes())?;
        self.bytes(b"\n")
    }

    /// One row an item, under a header.
    pub fn rows(&mut self, fields: &[Field], items: &[Value]) -> Result<(), Failure> {
        let cells = items.iter().map(|item| fields.iter().map(|field| cell(item, field.pointer)).collect());
        let right: Vec<bool> = fields.iter().map(|field| field.right).collect();
        self.table(&fields.iter().map(|field| field.label).collect::<Vec<_>>(), &right, cells.collect())
    }

    /// One row a field.
    pub fn entity(&mut self, fields: &[Field], entity: &Value) -> Result<(), Failure> {
        let rows = fields.iter().map(|field| vec![field.label.to_owned(), cell(entity, field.pointer)]);
        self.table(&[], &[], rows.collect())
    }

    /// A table of escaped cells; an empty header is left out.
    pub fn table(&mut self, header: &[&str], right: &[bool], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        // A terminal that does not know its width says 0; no table would be readable in that.
        if !self.terminal || table.width().is_none_or(|width| width < NARROWEST_TABLE) {
            table.force_no_tty();
        }
        if !header.is_empty() {
            table.set_header(header.iter().map(|label| label.to_uppercase()).collect::<Vec<_>>());
        }
        for row in rows {
            table.add_row(row.iter().map(|cell| printable(cell).into_owned()).collect::<Vec<_>>());
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if right.get(index) == Some(&true) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for line in table.lines() {
            self.bytes(line.trim_end().as_bytes())?;
            self.bytes(b"\n")?;
        }
        Ok(())
    }

    /// Hands everything to the operating system. To be called before exit: what is lost there must not end well.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.stdout.flush().map_err(|error| Failure::stdout(&error))
    }
}

/// Says something beside the output, on stderr: one line, escaped.
pub fn note(words: &str) {
    // A stderr that nobody reads changes nothing about what was done.
    let _ = writeln!(io::stderr().lock(), "{}", printable(words));
}

/// What people read for a value somewhere in an entity: text as it is, numbers by their digits, lists with commas,
/// nothing as `-`.
pub fn cell(entity: &Value, pointer: &str) -> String {
    entity.pointer(pointer).map_or_else(|| "-".to_owned(), words)
}

fn words(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_keep_digits_and_show_nothing_as_a_dash() {
        let entity: Value =
            serde_json::from_str(r#"{"a":{"n":1.10},"l":["x","y"],"e":[],"z":null,"s":"","o":{"k":1},"b":true}"#)
                .unwrap();
        for (pointer, shown) in [
            ("/a/n", "1.10"),
            ("/l", "x, y"),
            ("/e", "-"),
            ("/z", "-"),
            ("/s", "-"),
            ("/o", r#"{"k":1}"#),
            ("/b", "yes"),
            ("/absent", "-"),
        ] {
            assert_eq!(cell(&entity, pointer), shown, "{pointer}");
        }
    }
}
