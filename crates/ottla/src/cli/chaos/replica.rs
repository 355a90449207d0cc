//! `ottla chaos replica`: the files of one replica as lines of a history. A batch that is being written ends them.

use std::path::{Path, PathBuf};

use ::chaos::event::{Event, Replica};
use anyhow::{Context, Result, ensure};
use clap::Args;
use model::{BatchHeader, RecordBatch, RecordIter};
use storage::disk::RealDisk;
use storage::log::inspect::{Piece, dump};

use crate::cli::output::Output;

/// Of what.
#[derive(Debug, Args)]
pub(super) struct ReplicaOptions {
    /// The directory of one partition
    dir: PathBuf,
    /// Of which node it is
    #[arg(long)]
    node: i32,
    /// Of which topic
    #[arg(long, default_value = "")]
    topic: String,
    /// Which partition
    #[arg(long)]
    partition: i32,
    /// It is not in the ISR
    #[arg(long)]
    out_of_sync: bool,
}

pub(super) fn run(options: &ReplicaOptions, output: Output) -> Result<()> {
    let ReplicaOptions { dir, node, topic, partition, out_of_sync } = options;
    let read = read(dir, *node, (topic, *partition), !out_of_sync)?;
    let lines: Vec<String> = read.into_iter().map(|replica| Event::Replica(replica).line()).collect();
    output.text(&lines.join("\n"))
}

/// One event a segment.
pub(super) fn read(dir: &Path, node: i32, (topic, partition): (&str, i32), in_sync: bool) -> Result<Vec<Replica>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut segments: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.sort();
    ensure!(!segments.is_empty(), "{} holds no segment", dir.display());
    let mut out = Vec::new();
    for segment in segments {
        let (batches, records, markers) = (Vec::new(), Vec::new(), Vec::new());
        let mut replica = Replica { node, topic: topic.to_owned(), partition, in_sync, batches, records, markers };
        dump(&RealDisk, &segment, &mut |piece| match piece {
            Piece::Batch { header, checked, .. } => {
                add(&mut replica, &header, checked);
                true
            }
            _ => false,
        })?;
        out.push(replica);
    }
    Ok(out)
}

/// A batch that is not sound is unlike every sound one.
fn add(replica: &mut Replica, header: &BatchHeader, checked: Result<RecordBatch, String>) {
    let (first, last) = (header.base_offset.0, header.last_offset().0);
    let digest = match checked.and_then(|batch| add_records(replica, &batch)) {
        Ok(digest) => digest,
        Err(error) => format!("node {}: {error}", replica.node),
    };
    replica.batches.push((first, last, digest));
}

/// Its digest.
fn add_records(replica: &mut Replica, batch: &RecordBatch) -> Result<String, String> {
    let header = batch.header();
    let first = header.base_offset.0;
    if header.is_control() {
        replica.markers.extend(first..=header.last_offset().0);
    } else {
        let payload = storage::compression::decompress(batch).map_err(|error| error.to_string())?;
        for record in RecordIter::new(payload, header.record_count) {
            let record = record.map_err(|error| error.to_string())?;
            let value = record.value.as_deref().unwrap_or_default();
            let offset = first + i64::from(record.offset_delta);
            replica.records.push((offset, String::from_utf8_lossy(value).into_owned()));
        }
    }
    Ok(format!("{:08x}-{}", model::batch::crc32c(batch.bytes()), batch.bytes().len()))
}
