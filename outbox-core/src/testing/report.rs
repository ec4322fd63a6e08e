use std::fmt;

use super::difference::Differences;
use super::{Emitted, Expected};
use crate::Record;

/// How many characters of a payload, or bytes of one that is no text, a report shows.
const SHOWN: usize = 300;

/// What a failed assertion says of the events that were emitted.
pub(super) struct Report<'a> {
    emitted: &'a [Record],
    comparison: String,
}

impl<'a> Report<'a> {
    pub(super) fn of(emitted: &'a Emitted) -> Self {
        Self { emitted: &emitted.records, comparison: String::new() }
    }

    /// Adds in what the nearest event differs.
    pub(super) fn nearest_to(mut self, expected: &Expected) -> Self {
        let differences =
            self.emitted.iter().map(|record| Differences::between(expected, record)).enumerate();
        self.comparison = format!("expected    {expected}\n");
        if let Some((position, nearest)) = differences.min_by_key(|(_, found)| found.weight) {
            self.comparison += &format!("nearest     event {}\n", position + 1);
            self.push(&nearest);
        }
        self.comparison.push('\n');
        self
    }

    /// Adds in what this event differs.
    pub(super) fn difference(mut self, expected: &Expected, record: &Record) -> Self {
        self.comparison = format!("expected    {expected}\n");
        self.push(&Differences::between(expected, record));
        self.comparison.push('\n');
        self
    }

    fn push(&mut self, differences: &Differences) {
        for (position, line) in differences.lines.iter().enumerate() {
            let title = if position == 0 { "difference" } else { "" };
            self.comparison += &format!("{title:<12}{line}\n");
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}emitted", self.comparison)?;
        if self.emitted.is_empty() {
            return writeln!(f, "  nothing");
        }
        let rows: Vec<[String; 5]> =
            self.emitted.iter().enumerate().map(|(position, record)| row(position + 1, record)).collect();
        let width =
            |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths = [0, 1, 2, 3].map(width);
        for (row, record) in rows.iter().zip(self.emitted) {
            let mut line = String::from("  ");
            for (cell, width) in row.iter().zip(widths) {
                line += &format!("{cell:<width$}  ");
            }
            line += &row[4];
            for (name, value) in record.headers() {
                line += &format!("  {name}={value}");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn row(number: usize, record: &Record) -> [String; 5] {
    [
        number.to_string(),
        record.event_type().to_owned(),
        record.aggregate_type().to_owned(),
        record.aggregate_id().to_owned(),
        shown_payload(record.payload()),
    ]
}

/// Returns the payload as text, on one line, as far as it is short.
pub(super) fn shown_payload(payload: Option<&[u8]>) -> String {
    let Some(payload) = payload else { return "no payload".to_owned() };
    let text = match str::from_utf8(payload) {
        Ok(text) => text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"),
        Err(_) => {
            return format!("{} bytes {}", payload.len(), payload[..payload.len().min(SHOWN)].escape_ascii());
        }
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}
