//! `ottla log`: the files of a data directory, without a broker. What they hold, and whether they are what they should be.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::{Args, Subcommand};
use model::{BatchHeader, EndMarker, Record, RecordBatch, RecordIter, TimestampType};
use replication::producers::{ProducerState, ProducerTable};
use serde_json::{Value, json};
use storage::disk::{Disk, RealDisk};
use storage::log::inspect::verify::{Report, Severity, verify};
use storage::log::inspect::{Piece, dump};

use super::output::{Output, counted};

/// What to do with files.
#[derive(Debug, Args)]
pub(crate) struct LogOptions {
    #[command(subcommand)]
    command: LogCommand,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Show what files hold: segments, indexes, producer snapshots, checkpoints
    Dump {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Show the records of batches, too
        #[arg(long)]
        records: bool,
    },
    /// Check a data directory, or one partition's, that no broker uses; exit code 0 if all of it is as it was written
    Verify {
        /// The directory
        dir: PathBuf,
    },
}

pub(crate) fn run(options: LogOptions) -> Result<()> {
    let output = Output { json: options.json };
    match options.command {
        LogCommand::Dump { files, records } => files.iter().try_for_each(|file| dump_file(output, file, records)),
        LogCommand::Verify { dir } => {
            let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let report = verify(&disk, &dir)?;
            tell(output, &report)?;
            ensure!(!report.is_damaged(), "{} is damaged", dir.display());
            Ok(())
        }
    }
}

fn tell(output: Output, report: &Report) -> Result<()> {
    let Report { partitions, segments, batches, bytes, findings, more } = report;
    if output.json {
        let findings: Vec<Value> = findings
            .iter()
            .map(|finding| {
                json!({
                    "severity": finding.severity.to_string(), "file": finding.path, "position": finding.position,
                    "what": finding.what, "at_start": finding.at_start,
                })
            })
            .collect();
        let report = json!({
            "damaged": report.is_damaged(), "partitions": partitions, "segments": segments, "batches": batches,
            "bytes": bytes, "findings": findings, "more_findings": more,
        });
        return output.text(&report.to_string());
    }
    for finding in findings {
        let place = finding.position.map(|position| format!(" at byte {position}")).unwrap_or_default();
        let (severity, path, what) = (finding.severity, finding.path.display(), &finding.what);
        output.text(&format!("{severity}: {path}{place}: {what}\n    at a start: {}", finding.at_start))?;
    }
    if *more > 0 {
        output.text(&format!("and {more} more in these files"))?;
    }
    let counted = |count: usize, what| counted(i64::try_from(count).unwrap_or(i64::MAX), what);
    let damages = findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
    let batches = counted(usize::try_from(*batches).unwrap_or(usize::MAX), "batch").replace("batchs", "batches");
    output.text(&format!(
        "{}, {}, {batches}, {bytes} bytes: {}, {}",
        counted(*partitions, "partition"),
        counted(*segments, "segment"),
        counted(damages + more, "damage"),
        counted(findings.len() - damages, "note"),
    ))
}

fn dump_file(output: Output, file: &Path, records: bool) -> Result<()> {
    let mut outcome = Ok(());
    output.lines(|out| {
        let mut written = if output.json { Ok(()) } else { writeln!(out, "{}", file.display()) };
        outcome = dump(&RealDisk, file, &mut |piece| {
            written = print(out, output, file, &piece, records);
            written.is_ok()
        });
        written
    })?;
    Ok(outcome?)
}

fn print(out: &mut dyn Write, output: Output, file: &Path, piece: &Piece, records: bool) -> io::Result<()> {
    if !output.json {
        return print_text(out, piece, records);
    }
    let mut value = piece_json(piece);
    if let (Value::Object(fields), Piece::Batch { header, checked: Ok(batch), .. }) = (&mut value, piece)
        && records
    {
        let rows = match contents(batch) {
            Ok(Contents::Marker(marker)) => marker_json(marker),
            Ok(Contents::Records(records)) => records.iter().map(|record| record_json(header, record)).collect(),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        fields.insert("records".to_owned(), rows);
    }
    if let Value::Object(fields) = &mut value {
        fields.insert("file".to_owned(), json!(file));
    }
    writeln!(out, "{value}")
}

/// What a batch has inside.
enum Contents {
    Marker(Option<EndMarker>),
    Records(Vec<Record>),
}

fn contents(batch: &RecordBatch) -> Result<Contents> {
    if batch.header().is_control() {
        return Ok(Contents::Marker(EndMarker::of(batch)));
    }
    let payload = storage::compression::decompress(batch).context("the records cannot be decompressed")?;
    let records: Result<Vec<Record>, _> = RecordIter::new(payload, batch.header().record_count).collect();
    Ok(Contents::Records(records.context("the records cannot be read")?))
}

fn print_text(out: &mut dyn Write, piece: &Piece, records: bool) -> io::Result<()> {
    match piece {
        Piece::Batch { position, header, checked } => {
            let state = checked.as_ref().map_or_else(String::as_str, |_| "sound");
            writeln!(out, "  at byte {position}: {}: {state}", batch_text(header))?;
            match checked {
                Ok(batch) if records => print_contents(out, batch),
                _ => Ok(()),
            }
        }
        Piece::Unreadable { position, end, what } => {
            writeln!(out, "  at byte {position}: {} bytes are nothing that belongs there: {what}", end - position)
        }
        Piece::OffsetEntry { offset, position } => writeln!(out, "  offset {offset} at byte {position}"),
        Piece::TimeEntry { timestamp, offset } => writeln!(out, "  timestamp {timestamp} at offset {offset}"),
        Piece::Aborted(aborted) => writeln!(
            out,
            "  producer {}: offsets {} to {}, last stable offset {}",
            aborted.producer_id, aborted.first_offset, aborted.last_offset, aborted.last_stable_offset
        ),
        Piece::Producers(state) => match ProducerTable::restore(state) {
            Err(error) => writeln!(out, "  {error}"),
            Ok((offset, table)) => {
                writeln!(out, "  as of offset {offset}")?;
                table.iter().try_for_each(|(id, state)| writeln!(out, "  producer {id}: {}", producer_text(state)))
            }
        },
        Piece::Line(line) => writeln!(out, "  {line}"),
    }
}

fn batch_text(header: &BatchHeader) -> String {
    let mut text = format!(
        "offsets {} to {}, {} bytes, {} records, leader epoch {}, {}, {} to {}",
        header.base_offset,
        header.last_offset(),
        header.size,
        header.record_count,
        header.leader_epoch,
        codec(header),
        header.base_timestamp,
        header.max_timestamp,
    );
    if header.has_producer_id() {
        let (id, epoch) = (header.producer_id, header.producer_epoch);
        text += &format!(", producer {id} epoch {epoch} sequence {}", header.base_sequence);
    }
    for (flag, name) in [(header.is_transactional(), "transactional"), (header.is_control(), "control")] {
        if flag {
            text += &format!(", {name}");
        }
    }
    text
}

fn codec(header: &BatchHeader) -> String {
    header.codec().map_or_else(|| "unknown codec".to_owned(), |codec| format!("{codec:?}").to_lowercase())
}

fn producer_text(state: &ProducerState) -> String {
    let mut text = format!(
        "epoch {}, coordinator epoch {}, last append {}",
        state.epoch, state.coordinator_epoch, state.last_append.0
    );
    if let Some(start) = state.transaction_start {
        text += &format!(", open transaction from offset {start}");
    }
    for batch in state.batches() {
        let (first, last) = (batch.first_sequence, batch.last_sequence);
        text += &format!(", sequences {first} to {last} at offsets {} to {}", batch.base_offset, batch.last_offset);
    }
    text
}

fn print_contents(out: &mut dyn Write, batch: &RecordBatch) -> io::Result<()> {
    match contents(batch) {
        Err(error) => writeln!(out, "    {error:#}"),
        Ok(Contents::Marker(Some(marker))) => {
            let what = if marker.commit { "commit" } else { "abort" };
            writeln!(out, "    {what} by a coordinator of epoch {}", marker.coordinator_epoch)
        }
        Ok(Contents::Marker(None)) => writeln!(out, "    no marker of a transaction"),
        Ok(Contents::Records(records)) => records.iter().try_for_each(|record| {
            let (offset, timestamp) = place(batch.header(), record);
            let text = |bytes: &Option<Bytes>| {
                bytes.as_ref().map_or_else(|| "null".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
            };
            let (key, value) = (text(&record.key), text(&record.value));
            writeln!(out, "    offset {offset}, timestamp {timestamp}, key {key}, value {value}")?;
            record
                .headers
                .iter()
                .try_for_each(|header| writeln!(out, "      header {}: {}", header.key, text(&header.value)))
        }),
    }
}

/// Offset and timestamp of a record.
fn place(header: &BatchHeader, record: &Record) -> (i64, i64) {
    let timestamp = match header.timestamp_type() {
        TimestampType::CreateTime => header.base_timestamp.saturating_add(record.timestamp_delta),
        TimestampType::LogAppendTime => header.max_timestamp,
    };
    (header.base_offset.0 + i64::from(record.offset_delta), timestamp)
}

fn piece_json(piece: &Piece) -> Value {
    match piece {
        Piece::Batch { position, header, checked } => json!({
            "kind": "batch", "position": position, "size": header.size, "base_offset": header.base_offset.0,
            "last_offset": header.last_offset().0, "records_count": header.record_count,
            "leader_epoch": header.leader_epoch.0, "codec": codec(header), "base_timestamp": header.base_timestamp,
            "max_timestamp": header.max_timestamp, "timestamp_type": format!("{:?}", header.timestamp_type()),
            "producer_id": header.producer_id.0, "producer_epoch": header.producer_epoch.0,
            "base_sequence": header.base_sequence, "transactional": header.is_transactional(),
            "control": header.is_control(), "delete_horizon": header.delete_horizon(), "crc": header.crc,
            "error": checked.as_ref().err(),
        }),
        Piece::Unreadable { position, end, what } => {
            json!({ "kind": "unreadable", "position": position, "end": end, "what": what })
        }
        Piece::OffsetEntry { offset, position } => {
            json!({ "kind": "offset_entry", "offset": offset.0, "position": position })
        }
        Piece::TimeEntry { timestamp, offset } => {
            json!({ "kind": "time_entry", "timestamp": timestamp, "offset": offset.0 })
        }
        Piece::Aborted(aborted) => json!({
            "kind": "aborted_transaction", "producer_id": aborted.producer_id.0,
            "first_offset": aborted.first_offset.0, "last_offset": aborted.last_offset.0,
            "last_stable_offset": aborted.last_stable_offset.0,
        }),
        Piece::Producers(state) => match ProducerTable::restore(state) {
            Err(error) => json!({ "kind": "producers", "error": error.to_string() }),
            Ok((offset, table)) => {
                let producers: Vec<Value> = table.iter().map(|(id, state)| producer_json(id.0, state)).collect();
                json!({ "kind": "producers", "offset": offset.0, "producers": producers })
            }
        },
        Piece::Line(line) => json!({ "kind": "line", "line": line }),
    }
}

fn producer_json(id: i64, state: &ProducerState) -> Value {
    let batches: Vec<Value> = state
        .batches()
        .map(|batch| {
            json!({
                "first_sequence": batch.first_sequence, "last_sequence": batch.last_sequence,
                "base_offset": batch.base_offset.0, "last_offset": batch.last_offset.0, "timestamp": batch.timestamp.0,
            })
        })
        .collect();
    json!({
        "producer_id": id, "producer_epoch": state.epoch.0, "coordinator_epoch": state.coordinator_epoch,
        "last_append": state.last_append.0, "transaction_start": state.transaction_start.map(|start| start.0),
        "batches": batches,
    })
}

fn record_json(header: &BatchHeader, record: &Record) -> Value {
    let text = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let (offset, timestamp) = place(header, record);
    let headers: Vec<Value> =
        record.headers.iter().map(|header| json!({ "key": header.key, "value": text(&header.value) })).collect();
    let (key, value) = (text(&record.key), text(&record.value));
    json!({ "offset": offset, "timestamp": timestamp, "key": key, "value": value, "headers": headers })
}

fn marker_json(marker: Option<EndMarker>) -> Value {
    marker
        .map_or(Value::Null, |marker| json!({ "commit": marker.commit, "coordinator_epoch": marker.coordinator_epoch }))
}
