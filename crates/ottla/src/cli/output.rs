//! One result, two shapes: a table for people, JSON for programs.

use std::io::Write;

use anyhow::Result;
use comfy_table::presets;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Map, Value};

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints rows under `columns`; as JSON, an array of objects with the columns' names.
    pub(crate) fn rows(self, columns: &[&str], rows: Vec<Vec<Value>>) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let object = |row: Vec<Value>| {
                Value::Object(columns.iter().map(|c| (*c).to_owned()).zip(row).collect::<Map<_, _>>())
            };
            let all: Vec<Value> = rows.into_iter().map(object).collect();
            return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|c| c.replace('_', " ").to_uppercase()));
        for row in rows {
            table.add_row(row.iter().map(text));
        }
        for line in table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// Prints one fact: a sentence, or an object.
    pub(crate) fn fact(self, sentence: &str, object: &Value) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{object}")?
        } else {
            writeln!(out, "{sentence}")?
        }
        Ok(())
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
