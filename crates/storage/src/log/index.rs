//! The sparse indexes of a segment, in Kafka's format: `.index` maps the last offset of a batch (relative to the
//! segment's base, 4 bytes) to its position (4 bytes); `.timeindex` a timestamp (8 bytes) to the offset of the batch that
//! raised the segment's largest timestamp to it (relative, 4 bytes).
//!
//! Invariants: an index is a hint. Whoever follows an entry checks that the batch it names stands there, and else walks
//! from the start of the segment. Entries of the active segment collect in memory and are written in groups, so that an
//! append is one write.

use std::io::{self, IoSlice};
use std::sync::Arc;

use model::{BatchHeader, Offset};

use super::segment::{FileKind, Segment, SegmentFiles, Stamp};
use super::walk::{NEAR, Step, Walker};
use crate::disk::{DiskFile, is_out_of_space, read_exact_at, write_all_at};

const ENTRY: usize = 8;
const TIME_ENTRY: usize = 12;
/// Entries that wait in memory at most.
const PENDING_MAX: usize = 64;

/// What an active segment needs to go on with its indexes. Made at the first append. The default is one of a new segment.
#[derive(Debug)]
pub(super) struct Indexer {
    pending: Vec<(u32, u32)>,
    pending_times: Vec<(i64, u32)>,
    /// Entries in the files.
    written: u32,
    times_written: u32,
    /// The timestamp of the last time entry.
    last_time: i64,
    bytes_since_entry: u32,
}

impl Default for Indexer {
    fn default() -> Self {
        Self {
            pending: Vec::new(),
            pending_times: Vec::new(),
            written: 0,
            times_written: 0,
            last_time: i64::MIN,
            bytes_since_entry: 0,
        }
    }
}

impl Indexer {
    /// Goes on behind what the segment's files hold.
    pub(super) fn open(files: &SegmentFiles) -> io::Result<Self> {
        let index = files.create(FileKind::Index)?;
        let times = files.create(FileKind::TimeIndex)?;
        let times_written = entries(&*times, TIME_ENTRY)?;
        let last_time = match times_written {
            0 => i64::MIN,
            n => read_time(&*times, n - 1)?.0,
        };
        Ok(Self { written: entries(&*index, ENTRY)?, times_written, last_time, ..Self::default() })
    }

    /// The segment has no batch that is newer than this one: a time entry that says so is damaged, and must not keep out
    /// those that follow.
    pub(super) fn limit_time(&mut self, newest: Stamp) {
        if self.last_time > newest.timestamp {
            self.last_time = i64::MIN;
        }
    }

    /// Bytes that the `.index` will have.
    pub(super) fn size(&self) -> u64 {
        (u64::from(self.written) + self.pending.len() as u64) * ENTRY as u64
    }

    /// A batch stands at `position` of `segment`, whose largest timestamp already counts it.
    pub(super) fn note(&mut self, segment: &Segment, header: &BatchHeader, position: u32, interval: u32) {
        if self.bytes_since_entry > interval {
            if let Some(relative) = relative(segment.base, header.last_offset()) {
                self.pending.push((relative, position));
            }
            self.note_time(segment);
            self.bytes_since_entry = 0;
        }
        self.bytes_since_entry = self.bytes_since_entry.saturating_add(u32::try_from(header.size).unwrap_or(u32::MAX));
    }

    /// Takes the segment's largest timestamp into the time index, if it is news.
    pub(super) fn note_time(&mut self, segment: &Segment) {
        let Some(stamp) = segment.max.filter(|stamp| stamp.timestamp > self.last_time) else { return };
        if let Some(relative) = relative(segment.base, stamp.offset) {
            self.pending_times.push((stamp.timestamp, relative));
            self.last_time = stamp.timestamp;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_MAX || self.pending_times.len() >= PENDING_MAX
    }

    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty() || !self.pending_times.is_empty()
    }

    /// Writes what waits, and gives its memory back. Where there is no descriptor or no space, entries wait for the next time.
    pub(super) fn flush(&mut self, files: &SegmentFiles) -> io::Result<()> {
        if !self.pending.is_empty() {
            let file = files.create(FileKind::Index)?;
            let pending = &self.pending;
            let bytes: Vec<u8> =
                pending.iter().flat_map(|(o, p)| [o.to_be_bytes(), p.to_be_bytes()].concat()).collect();
            let position = u64::from(self.written) * ENTRY as u64;
            write_all_at(&*file, &mut [IoSlice::new(&bytes)], position)?;
            self.written += u32::try_from(std::mem::take(&mut self.pending).len()).unwrap_or(0);
        }
        if !self.pending_times.is_empty() {
            let file = files.create(FileKind::TimeIndex)?;
            let mut bytes = Vec::with_capacity(self.pending_times.len() * TIME_ENTRY);
            for (timestamp, relative) in &self.pending_times {
                bytes.extend_from_slice(&timestamp.to_be_bytes());
                bytes.extend_from_slice(&relative.to_be_bytes());
            }
            let position = u64::from(self.times_written) * TIME_ENTRY as u64;
            write_all_at(&*file, &mut [IoSlice::new(&bytes)], position)?;
            self.times_written += u32::try_from(std::mem::take(&mut self.pending_times).len()).unwrap_or(0);
        }
        Ok(())
    }

    /// The position of the last waiting entry at or below `offset`, if one is.
    pub(super) fn floor_pending(&self, base: Offset, offset: Offset) -> Option<u32> {
        let wanted = offset - base;
        let after = self.pending.partition_point(|(relative, _)| i64::from(*relative) <= wanted);
        after.checked_sub(1).map(|i| self.pending[i].1)
    }
}

/// Where a walk to `offset` starts: the position of a batch that ends at or below `offset`, or 0, as the index file says,
/// checked against the segment. `end` is the size of the segment.
pub(super) fn floor(files: &SegmentFiles, offset: Offset, end: u64) -> io::Result<u64> {
    Ok(floor_entry(files, offset, end)?.map_or(0, |entry| u64::from(entry.position)))
}

/// An entry of the offset index that was checked against its batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// Its place in the index.
    pub(super) number: u32,
    pub(super) position: u32,
    pub(super) header: BatchHeader,
}

/// The last entry at or below `offset`, if there is one and its batch stands where it says.
pub(super) fn floor_entry(files: &SegmentFiles, offset: Offset, end: u64) -> io::Result<Option<Entry>> {
    match open(files)? {
        Some(index) => entry_in(&*index, files.open(FileKind::Log)?, files.base(), offset, end),
        None => Ok(None),
    }
}

/// The index file, if it is there.
pub(super) fn open(files: &SegmentFiles) -> io::Result<Option<Arc<dyn DiskFile>>> {
    open_kind(files, FileKind::Index)
}

/// A file, if it is there.
fn open_kind(files: &SegmentFiles, kind: FileKind) -> io::Result<Option<Arc<dyn DiskFile>>> {
    match files.open(kind) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// The last entry at or below `offset` of this index, if there is one and its batch stands there in this log file.
pub(super) fn entry_in(
    index: &dyn DiskFile,
    log: Arc<dyn DiskFile>,
    base: Offset,
    offset: Offset,
    end: u64,
) -> io::Result<Option<Entry>> {
    let wanted = offset - base;
    let after = partition_point(entries(index, ENTRY)?, |n| Ok(i64::from(read_entry(index, n)?.0) <= wanted))?;
    let Some(number) = after.checked_sub(1) else { return Ok(None) };
    let (relative, position) = read_entry(index, number)?;
    let mut walker = Walker::new(log, u64::from(position), end, NEAR);
    match walker.peek()? {
        Step::Batch(header) if header.last_offset() == base + i64::from(relative) => {
            Ok(Some(Entry { number, position, header }))
        }
        _ => Ok(None),
    }
}

/// The last entry of this time index of the segment with that base: its largest timestamp, if the index is whole. To be
/// checked against the batches.
pub(super) fn last_time_in(times: &dyn DiskFile, base: Offset) -> io::Result<Option<Stamp>> {
    let Some(last) = entries(times, TIME_ENTRY)?.checked_sub(1) else { return Ok(None) };
    let (timestamp, relative) = read_time(times, last)?;
    Ok(Some(Stamp { timestamp, offset: base + i64::from(relative) }))
}

/// The last entry before `timestamp`: all batches up to the one that it names are older, if the index is whole. To be
/// checked against the batches.
pub(super) fn floor_time_in(times: &dyn DiskFile, base: Offset, timestamp: i64) -> io::Result<Option<Stamp>> {
    let count = entries(times, TIME_ENTRY)?;
    let after = partition_point(count, |n| Ok(read_time(times, n)?.0 < timestamp))?;
    let Some(n) = after.checked_sub(1) else { return Ok(None) };
    let (found, relative) = read_time(times, n)?;
    if after < count && read_time(times, after)?.1 <= relative {
        // Another batch may have the same timestamp, behind newer ones.
        return Ok(None);
    }
    Ok(Some(Stamp { timestamp: found, offset: base + i64::from(relative) }))
}

/// Cuts both indexes, where they are there: entries of the offset index from number `keep` on go, and time entries of offsets
/// above `last`. Needs no space.
pub(super) fn cut(files: &SegmentFiles, keep: u32, last: Offset) -> io::Result<()> {
    if let Some(index) = open_kind(files, FileKind::Index)? {
        index.truncate(u64::from(keep) * ENTRY as u64)?;
    }
    let Some(times) = open_kind(files, FileKind::TimeIndex)? else { return Ok(()) };
    let limit = last - files.base();
    let keep = partition_point(entries(&*times, TIME_ENTRY)?, |n| Ok(i64::from(read_time(&*times, n)?.1) <= limit))?;
    times.truncate(u64::from(keep) * TIME_ENTRY as u64)
}

/// The indexes of a segment as a start makes them anew behind the last entry that it believes. On a disk without space they
/// stay as they were cut: what has no entry is found by reading.
pub(super) struct Rebuild {
    keep: u32,
    last: Offset,
    /// None where there was no space.
    indexer: Option<Box<Indexer>>,
}

impl Rebuild {
    /// Behind `floor`, or from the start.
    pub(super) fn begin(files: &SegmentFiles, floor: Option<&Entry>) -> io::Result<Self> {
        let (keep, last) = floor.map_or((0, files.base() + -1), |e| (e.number + 1, e.header.last_offset()));
        cut(files, keep, last)?;
        let mut rebuild = Self { keep, last, indexer: None };
        rebuild.indexer = rebuild.unless_full(files, Indexer::open(files).map(Box::new))?;
        Ok(rebuild)
    }

    /// As [`Indexer::note`].
    pub(super) fn note(
        &mut self,
        segment: &Segment,
        header: &BatchHeader,
        (position, interval): (u32, u32),
        files: &SegmentFiles,
    ) -> io::Result<()> {
        let Some(indexer) = self.indexer.as_deref_mut() else { return Ok(()) };
        indexer.note(segment, header, position, interval);
        if indexer.is_full() { self.flush(files) } else { Ok(()) }
    }

    /// All batches were noted.
    pub(super) fn end(mut self, segment: &Segment, files: &SegmentFiles) -> io::Result<Option<Box<Indexer>>> {
        if let Some(indexer) = self.indexer.as_deref_mut() {
            indexer.note_time(segment);
            self.flush(files)?;
        }
        Ok(self.indexer)
    }

    fn flush(&mut self, files: &SegmentFiles) -> io::Result<()> {
        let Some(indexer) = self.indexer.as_deref_mut() else { return Ok(()) };
        let flushed = indexer.flush(files);
        if self.unless_full(files, flushed)?.is_none() {
            self.indexer = None;
        }
        Ok(())
    }

    /// None where there was no space: then both indexes end where they did before, so that neither tells of more than the
    /// other.
    fn unless_full<T>(&self, files: &SegmentFiles, outcome: io::Result<T>) -> io::Result<Option<T>> {
        match outcome {
            Err(error) if is_out_of_space(&error) => {
                tracing::warn!(path = %files.path(FileKind::Index).display(), "there is no space to rebuild this index: what it does not tell is read");
                cut(files, self.keep, self.last).map(|()| None)
            }
            other => other.map(Some),
        }
    }
}

fn relative(base: Offset, offset: Offset) -> Option<u32> {
    u32::try_from(offset - base).ok()
}

fn entries(file: &dyn DiskFile, entry: usize) -> io::Result<u32> {
    Ok(u32::try_from(file.size()? / entry as u64).unwrap_or(u32::MAX))
}

fn read_entry(index: &dyn DiskFile, number: u32) -> io::Result<(u32, u32)> {
    let mut bytes = [0u8; ENTRY];
    read_exact_at(index, &mut bytes, u64::from(number) * ENTRY as u64)?;
    Ok(decode_entry(bytes))
}

fn read_time(times: &dyn DiskFile, number: u32) -> io::Result<(i64, u32)> {
    let mut bytes = [0u8; TIME_ENTRY];
    read_exact_at(times, &mut bytes, u64::from(number) * TIME_ENTRY as u64)?;
    Ok(decode_time(bytes))
}

/// The relative offset and the position of an entry of an offset index.
pub(super) fn decode_entry(bytes: [u8; ENTRY]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// The timestamp and the relative offset of an entry of a time index.
pub(super) fn decode_time(bytes: [u8; TIME_ENTRY]) -> (i64, u32) {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    (i64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]))
}

/// The first number in `0..count` of which `is_before` does not hold.
fn partition_point(count: u32, is_before: impl Fn(u32) -> io::Result<bool>) -> io::Result<u32> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
