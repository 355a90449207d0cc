//! One result, two shapes: a table for people, JSON for programs.

use std::io::{BufWriter, ErrorKind, Write};

use anyhow::Result;
use comfy_table::presets;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Map, Value};

/// Standard output was closed by whoever read it (`| head`): the command ends, and nothing is wrong.
#[derive(thiserror::Error, Clone, Copy, Debug)]
#[error("standard output is closed")]
pub(crate) struct OutputClosed;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints rows under `columns`; as JSON, an array of objects with the columns' names.
    pub(crate) fn rows(self, columns: &[&str], rows: Vec<Vec<Value>>) -> Result<()> {
        if self.json {
            let all: Vec<Value> = rows.into_iter().map(|row| object(columns, row)).collect();
            return self.text(&serde_json::to_string_pretty(&all)?);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|c| c.replace('_', " ").to_uppercase()));
        for row in rows {
            table.add_row(row.iter().map(text));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        self.text(&lines.join("\n"))
    }

    /// Prints one fact: a sentence, or an object.
    pub(crate) fn fact(self, sentence: &str, object: &Value) -> Result<()> {
        if self.json { self.text(&object.to_string()) } else { self.text(sentence) }
    }

    /// Prints a line.
    pub(crate) fn text(self, line: &str) -> Result<()> {
        self.lines(|out| writeln!(out, "{line}"))
    }

    /// Prints many lines in few writes.
    pub(crate) fn lines(self, print: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
        let mut out = BufWriter::new(std::io::stdout().lock());
        match print(&mut out).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputClosed.into()),
            other => Ok(other?),
        }
    }
}

/// Tells something on the way; a reader who is gone misses it.
pub(crate) fn say(line: &str) {
    // Whoever runs a cluster runs it on, listened to or not.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// An object with the columns' names.
pub(crate) fn object(columns: &[&str], row: Vec<Value>) -> Value {
    Value::Object(columns.iter().map(|c| (*c).to_owned()).zip(row).collect::<Map<_, _>>())
}

/// `1 node`, `2 nodes`.
pub(crate) fn counted(count: impl Into<i64>, what: &str) -> String {
    let count = count.into();
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
