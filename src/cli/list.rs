//! Lists longer than a page: follows cursors, and holds one page at a time however many there are.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::api::{Query, not_ours, parse};
use super::client::{Call, Client};
use super::failure::Failure;
use super::output::{Field, Output, note};

const LARGEST_PAGE: u64 = 1_000;

/// How much of a list to show.
#[derive(Debug, clap::Args)]
pub struct Range {
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,
    /// Show all, however many there are
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "CURSOR")]
    pub cursor: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

/// Shows what `query` on `path` lists.
pub fn show(
    client: &Client,
    path: &str,
    query: &Query,
    range: &Range,
    fields: &[Field],
    output: &mut Output,
) -> Result<(), Failure> {
    let mut remaining = if range.all { u64::MAX } else { range.limit };
    let mut next_page = |cursor: Option<&String>| {
        let query = query.clone().with("limit", Some(remaining.min(LARGEST_PAGE))).with("cursor", cursor);
        let answer = client.ask(&Call::get(query.on(path)))?;
        let page: Page = parse(&answer)?;
        remaining = remaining.saturating_sub(page.items.len() as u64);
        let is_last = remaining == 0 || page.next_cursor.is_none();
        Ok::<_, Failure>((answer.body, page, is_last))
    };

    let (body, mut page, mut is_last) = next_page(range.cursor.as_ref())?;
    if output.is_json() && is_last {
        return output.json(&body);
    }
    let mut shown = Shown::new(fields, output)?;
    loop {
        shown.page(&page.items)?;
        if is_last {
            return shown.end(page.next_cursor.as_deref());
        }
        (_, page, is_last) = next_page(page.next_cursor.as_ref())?;
    }
}

/// A list on its way out. As JSON it has the form of one page, its items byte for byte as they came; if it breaks off
/// halfway, so does the JSON.
struct Shown<'a> {
    fields: &'a [Field],
    output: &'a mut Output,
    rows: Vec<Value>,
    separator: &'static [u8],
}

impl<'a> Shown<'a> {
    fn new(fields: &'a [Field], output: &'a mut Output) -> Result<Self, Failure> {
        if output.is_json() {
            output.json_part(b"{\"items\":[")?;
        }
        Ok(Self { fields, output, rows: Vec::new(), separator: b"" })
    }

    fn page(&mut self, items: &[Box<RawValue>]) -> Result<(), Failure> {
        for item in items {
            if self.output.is_json() {
                self.output.json_part(self.separator)?;
                self.output.json_part(item.get().as_bytes())?;
                self.separator = b",";
            } else {
                self.rows.push(serde_json::from_str(item.get()).map_err(|_| not_ours())?);
            }
        }
        if self.rows.len() as u64 >= LARGEST_PAGE {
            self.output.rows(self.fields, &self.rows)?;
            self.rows.clear();
        }
        Ok(())
    }

    fn end(self, next_cursor: Option<&str>) -> Result<(), Failure> {
        if self.output.is_json() {
            let next_cursor = Value::from(next_cursor);
            return self.output.json(format!("],\"next_cursor\":{next_cursor}}}").as_bytes());
        }
        self.output.rows(self.fields, &self.rows)?;
        if let Some(cursor) = next_cursor {
            self.output.flush()?;
            note(&format!("there are more: --cursor {cursor} goes on here, --all shows everything"));
        }
        Ok(())
    }
}
