//! The files of a log directory for people: what stands in one of them here, and in [`verify`] whether all of them are what
//! they should be.
//!
//! Invariants: nothing is written, and every file is opened for reading only. Memory is bounded by the largest batch, and
//! by what the limits of the small files allow.

mod directory;
mod segment;
pub mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use model::{BatchHeader, Offset, RecordBatch};

use super::aborted::AbortedTransaction;
use super::recover::Search;
use super::segment::parse_name;
use super::walk::{FAR, Order, Step, Walker};
use super::{aborted, index, snapshots};
use crate::checkpoint;
use crate::disk::{Disk, DiskFile, OpenMode, read_exact_at};

/// Text files are small.
const TEXT_MAX: usize = 64 << 20;
/// Read at once of files of entries.
const CHUNK: usize = 64 << 10;

/// What a file holds, as its name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileContent {
    /// Batches of the segment with this base.
    Batches(Offset),
    /// Its offset index.
    OffsetIndex(Offset),
    /// Its time index.
    TimeIndex(Offset),
    /// Its index of aborted transactions.
    AbortedIndex(Offset),
    /// What producers had written below this offset.
    Producers(Offset),
    /// Lines, as Kafka's checkpoints have them.
    Checkpoint,
    /// Text without a checksum.
    Text,
}

/// One piece of a file.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A batch that stands whole in the file.
    Batch {
        /// Where.
        position: u64,
        /// What its header says.
        header: BatchHeader,
        /// The batch, or what is wrong with it.
        checked: Result<RecordBatch, String>,
    },
    /// Bytes that are nothing that belongs there.
    Unreadable {
        /// Where they begin.
        position: u64,
        /// Where they end.
        end: u64,
        /// Why.
        what: String,
    },
    /// The last offset of a batch, and where it stands.
    OffsetEntry {
        /// The offset.
        offset: Offset,
        /// The position in the segment.
        position: u32,
    },
    /// A timestamp, and the last offset of the batch that raised the segment's largest to it.
    TimeEntry {
        /// The timestamp.
        timestamp: i64,
        /// The offset.
        offset: Offset,
    },
    /// An aborted transaction.
    Aborted(AbortedTransaction),
    /// The producers' state, as whoever owns it wrote it.
    Producers(Bytes),
    /// A line of a text.
    Line(String),
}

/// Why a file cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Nothing of that name is known.
    #[error("{} has no name of a file of a log directory", .0.display())]
    UnknownName(PathBuf),
    /// It is not what its name says.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In which way.
        what: &'static str,
    },
    /// The disk.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl FileContent {
    /// By a file's name, also of one that was put away or not put in use yet.
    #[must_use]
    pub fn of(name: &str) -> Option<FileContent> {
        let name = [".deleted", ".cleaned"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        let of_segment = |suffix| parse_name(name, suffix);
        let found = of_segment("log").map(FileContent::Batches);
        let found = found.or_else(|| of_segment("index").map(FileContent::OffsetIndex));
        let found = found.or_else(|| of_segment("timeindex").map(FileContent::TimeIndex));
        let found = found.or_else(|| of_segment("txnindex").map(FileContent::AbortedIndex));
        let found = found.or_else(|| of_segment("snapshot").map(FileContent::Producers));
        if found.is_some() {
            return found;
        }
        match name {
            "partition.metadata" | "meta.properties" | ".kafka_cleanshutdown" => Some(FileContent::Text),
            _ => name.ends_with("-checkpoint").then_some(FileContent::Checkpoint),
        }
    }
}

/// Shows the pieces of a file in order, until `see` has enough and says false. Blocks.
///
/// # Errors
/// Where it is not one of a log directory, or damaged as a whole; what is wrong with a part of it is shown.
pub fn dump(disk: &dyn Disk, path: &Path, see: &mut dyn FnMut(Piece) -> bool) -> Result<(), InspectError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let content = FileContent::of(name).ok_or_else(|| InspectError::UnknownName(path.to_owned()))?;
    let failed = |source| InspectError::Io { path: path.to_owned(), source };
    let damaged = |what| InspectError::Damaged { path: path.to_owned(), what };
    let file = disk.open(path, OpenMode::ReadOnly).map_err(failed)?;
    match content {
        FileContent::Batches(_) => batches(&file, see).map_err(failed),
        FileContent::OffsetIndex(base) => each_entry(&*file, see, |bytes| {
            let (relative, position) = index::decode_entry(bytes);
            Piece::OffsetEntry { offset: base + i64::from(relative), position }
        })
        .map_err(failed),
        FileContent::TimeIndex(base) => each_entry(&*file, see, |bytes| {
            let (timestamp, relative) = index::decode_time(bytes);
            Piece::TimeEntry { timestamp, offset: base + i64::from(relative) }
        })
        .map_err(failed),
        FileContent::AbortedIndex(_) => {
            each_entry(&*file, see, |bytes: [u8; aborted::ENTRY]| Piece::Aborted(aborted::decode(&bytes)))
                .map_err(failed)
        }
        FileContent::Producers(_) => {
            let bytes = whole(&*file, snapshots::SIZE_MAX).map_err(failed)?;
            let state = snapshots::decode(bytes).ok_or_else(|| damaged("it fails its checksum"))?;
            see(Piece::Producers(state));
            Ok(())
        }
        FileContent::Checkpoint => {
            let bytes = whole(&*file, TEXT_MAX).map_err(failed)?;
            let lines = checkpoint::parse(&bytes).map_err(damaged)?;
            let _ = lines.into_iter().all(|line| see(Piece::Line(line.to_owned())));
            Ok(())
        }
        FileContent::Text => {
            let bytes = whole(&*file, TEXT_MAX).map_err(failed)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is not text"))?;
            let _ = text.lines().all(|line| see(Piece::Line(line.to_owned())));
            Ok(())
        }
    }
}

/// A small file whole.
fn whole(file: &dyn DiskFile, limit: usize) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.size()?).unwrap_or(usize::MAX);
    if size > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {limit} bytes")));
    }
    let mut content = vec![0; size];
    read_exact_at(file, &mut content, 0)?;
    Ok(content)
}

/// The batches of a segment, and what stands between them.
fn batches(file: &Arc<dyn DiskFile>, see: &mut dyn FnMut(Piece) -> bool) -> io::Result<()> {
    let size = file.size()?;
    let mut walker = Walker::new(Arc::clone(file), 0, size, FAR);
    loop {
        let position = walker.position();
        match walker.peek()? {
            Step::End => return Ok(()),
            Step::Batch(header) => {
                let checked = RecordBatch::split_off(&mut walker.batch(&header)?).map_err(|e| e.to_string());
                if !see(Piece::Batch { position, header, checked }) {
                    return Ok(());
                }
                walker.skip(&header);
            }
            Step::Bad(what) => {
                // Of whatever base the segment is.
                let next = Search::new(Order::from(Offset::ZERO)).find(&**file, Offset(i64::MAX), position + 1)?;
                let end = next.unwrap_or(size);
                if !see(Piece::Unreadable { position, end, what: what.to_owned() }) || next.is_none() {
                    return Ok(());
                }
                walker = Walker::new(Arc::clone(file), end, size, FAR);
            }
        }
    }
}

/// The entries of an index, and what is left behind them.
fn each_entry<const N: usize>(
    file: &dyn DiskFile,
    see: &mut dyn FnMut(Piece) -> bool,
    piece: impl Fn([u8; N]) -> Piece,
) -> io::Result<()> {
    let size = file.size()?;
    let mut position = 0;
    while position + (N as u64) <= size {
        let rest = usize::try_from(size - position).unwrap_or(usize::MAX);
        let mut chunk = vec![0; rest.min(CHUNK) / N * N];
        read_exact_at(file, &mut chunk, position)?;
        for entry in chunk.chunks_exact(N) {
            let entry = entry.try_into().expect("chunks of this size");
            if !see(piece(entry)) {
                return Ok(());
            }
        }
        position += chunk.len() as u64;
    }
    if position < size {
        see(Piece::Unreadable { position, end: size, what: "less than an entry".to_owned() });
    }
    Ok(())
}
