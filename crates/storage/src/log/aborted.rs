//! The aborted transactions of a log, so that readers can leave their records out (`R43`): Kafka's `.txnindex` beside each
//! segment that holds markers of them, made when the first is written.
//!
//! Entry, 34 bytes, big endian: `version i16 (0), producer id i64, first offset i64, last offset i64 (the marker's), last
//! stable offset i64`.
//!
//! What is aborted follows from the log and from the producers' state, so the owner of that state tells the log of each
//! aborted transaction, and after a start again of those that follow the newest producer snapshot (`R41`).
//!
//! Invariants: an entry stands in the file of the segment that holds its marker, and entries ascend by their markers. The
//! files are synced before a producer snapshot is written: below a snapshot they miss nothing, whatever crashed. The newest
//! entries are in memory, too, and those that no file has yet nowhere else: reads near the log's end touch no file.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;

use model::{Offset, ProducerId};

use super::segment::{FileKind, Segment, SegmentFiles, parse_name};
use super::{Log, LogError, Names};
use crate::disk::{DiskFile, read_exact_at, write_all_at};

pub(super) const ENTRY: usize = 34;
const VERSION: i16 = 0;
/// Entries kept in memory at most, once files have them.
const RECENT_MAX: usize = 256;
/// Entries that wait to be written at most, while there is space.
const UNWRITTEN_MAX: usize = 64;
/// Entries read at once.
const CHUNK: u32 = 1024;

/// One aborted transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AbortedTransaction {
    /// Whose.
    pub producer_id: ProducerId,
    /// Where it began.
    pub first_offset: Offset,
    /// Where its marker stands.
    pub last_offset: Offset,
    /// No transaction that ended after it began below.
    pub last_stable_offset: Offset,
}

/// What a log keeps of its aborted transactions in memory.
#[derive(Debug)]
pub(super) struct AbortedIndex {
    /// The newest entries, ascending.
    recent: VecDeque<AbortedTransaction>,
    /// Every entry with a marker from here on is in `recent`.
    recent_from: Offset,
    /// So many of the last of `recent` are in no file.
    unwritten: usize,
    /// Files are known to be right for markers below this.
    sound_to: Offset,
}

/// What a segment's file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AbortedFile {
    /// Entries in it.
    entries: u32,
    /// The last stable offset of the last of them.
    stable: Offset,
    /// No sync has covered the last write.
    dirty: bool,
}

impl AbortedFile {
    pub(super) const NONE: AbortedFile = AbortedFile { entries: 0, stable: Offset::NONE, dirty: false };
}

/// The answer to [`Log::aborted`].
#[derive(Debug)]
pub enum Aborted {
    /// These, ascending by their markers.
    Memory(Vec<AbortedTransaction>),
    /// To be executed with [`ColdAborted::run`], on the `DiskPool`.
    Cold(ColdAborted),
}

/// A question about aborted transactions that needs files.
#[derive(Debug)]
pub struct ColdAborted {
    files: Vec<(SegmentFiles, u32)>,
    recent: Vec<AbortedTransaction>,
    recent_from: Offset,
    range: Overlap,
}

/// Which entries are asked for: those of transactions with offsets in `from..end`.
#[derive(Clone, Copy, Debug)]
struct Overlap {
    from: Offset,
    end: Offset,
}

impl AbortedIndex {
    pub(super) fn new() -> Self {
        let from = Offset::ZERO;
        Self { recent: VecDeque::new(), recent_from: from, unwritten: 0, sound_to: Offset(i64::MAX) }
    }

    /// Nothing is left of it; the log goes on at `offset`.
    pub(super) fn start_over(&mut self, offset: Offset) {
        *self = Self { recent_from: offset, ..Self::new() };
    }

    /// Forgets what files have, but for the newest.
    fn trim(&mut self) {
        while self.recent.len() > RECENT_MAX.max(self.unwritten) {
            if let Some(oldest) = self.recent.pop_front() {
                self.recent_from = oldest.last_offset + 1;
            }
        }
    }

    fn cut(&mut self, offset: Offset) {
        while self.recent.back().is_some_and(|entry| entry.last_offset >= offset) {
            self.recent.pop_back();
            self.unwritten = self.unwritten.saturating_sub(1);
        }
        // There is nothing at or above it.
        self.recent_from = self.recent_from.min(offset);
    }
}

impl Overlap {
    fn wants(self, entry: &AbortedTransaction) -> bool {
        entry.last_offset >= self.from && entry.first_offset < self.end
    }

    /// Whether nothing behind `entry` is wanted.
    fn ends_with(self, entry: &AbortedTransaction) -> bool {
        entry.last_stable_offset >= self.end
    }
}

impl Log {
    /// A transaction was aborted, by a marker that is in this log. One that the log was told of before is left alone.
    ///
    /// # Errors
    /// Took the directory offline. Where there is no space or no descriptor, the entry waits in memory.
    pub fn note_aborted(&mut self, entry: AbortedTransaction) -> Result<(), LogError> {
        self.usable()?;
        assert!(entry.last_offset < self.log_end, "a marker at {} in a log to {}", entry.last_offset, self.log_end);
        // Below `recent_from` the files have them all.
        let newest = self.aborted.recent.back().map_or(self.aborted.recent_from + -1, |newest| newest.last_offset);
        if entry.last_offset <= newest {
            return Ok(());
        }
        self.aborted.recent.push_back(entry);
        self.aborted.unwritten += 1;
        if self.aborted.unwritten >= UNWRITTEN_MAX {
            match self.flush_aborted() {
                Err(error) if !error.is_shortage() => return Err(error),
                _ => {}
            }
        }
        self.aborted.trim();
        Ok(())
    }

    /// Below this the index misses nothing, if it missed nothing below a snapshot: whoever replays producers begins at a
    /// snapshot that is not above.
    #[must_use]
    pub fn aborted_sound_to(&self) -> Offset {
        self.aborted.sound_to
    }

    /// After a start: forgets the transactions with markers from `offset` on; they are told again, from the log. Blocks.
    ///
    /// # Errors
    /// Took the directory offline.
    pub fn replay_aborted_from(&mut self, offset: Offset) -> Result<(), LogError> {
        self.usable()?;
        self.cut_aborted(offset)?;
        self.aborted.start_over(offset);
        // A snapshot above would say that the files miss nothing below it; so it would of a log that is lossy, once the loss
        // is accepted.
        self.forget_snapshots_above(offset)
    }

    /// The aborted transactions that have offsets in `from..end`.
    ///
    /// # Errors
    /// `OutOfRange` where `from` is below the log start or above the log end.
    pub fn aborted(&self, from: Offset, end: Offset) -> Result<Aborted, LogError> {
        self.usable()?;
        self.in_range(from)?;
        let range = Overlap { from, end };
        let recent = self.aborted.recent_in(range);
        if from >= self.aborted.recent_from {
            return Ok(Aborted::Memory(recent));
        }
        let mut files = Vec::new();
        let first = self.segments.partition_point(|segment| segment.base <= from).saturating_sub(1);
        for segment in self.segments[first.min(self.segments.len())..].iter().filter(|s| s.aborted.entries > 0) {
            files.push((segment.files(&self.env, &self.dir), segment.aborted.entries));
            if segment.aborted.stable >= end {
                break;
            }
        }
        if files.is_empty() {
            return Ok(Aborted::Memory(recent));
        }
        Ok(Aborted::Cold(ColdAborted { files, recent, recent_from: self.aborted.recent_from, range }))
    }

    /// Writes the entries that wait in memory.
    pub(super) fn flush_aborted(&mut self) -> Result<(), LogError> {
        while self.aborted.unwritten > 0 {
            let from = self.aborted.recent.len() - self.aborted.unwritten;
            let marker = self.aborted.recent[from].last_offset;
            let Some(number) = self.segments.partition_point(|segment| segment.base <= marker).checked_sub(1) else {
                // Retention has taken its segment.
                self.aborted.unwritten -= 1;
                continue;
            };
            let limit = self.segments.get(number + 1).map_or(Offset(i64::MAX), |next| next.base);
            let group: Vec<AbortedTransaction> =
                self.aborted.recent.range(from..).take_while(|entry| entry.last_offset < limit).copied().collect();
            self.write_aborted(number, &group)?;
            self.aborted.unwritten -= group.len();
        }
        Ok(())
    }

    fn write_aborted(&mut self, number: usize, group: &[AbortedTransaction]) -> Result<(), LogError> {
        let segment = &mut self.segments[number];
        let files = segment.files(&self.env, &self.dir);
        let bytes: Vec<u8> = group.iter().flat_map(encode).collect();
        let position = u64::from(segment.aborted.entries) * ENTRY as u64;
        let written = files
            .create(FileKind::TxnIndex)
            .and_then(|file| write_all_at(&*file, &mut [IoSlice::new(&bytes)], position));
        written.map_err(|e| LogError::write(&self.env.health, &files.path(FileKind::TxnIndex), &e))?;
        segment.aborted.entries += u32::try_from(group.len()).expect("a group is small");
        segment.aborted.stable = group.last().map_or(segment.aborted.stable, |last| last.last_stable_offset);
        segment.aborted.dirty = true;
        if self.names == Names::Durable {
            self.names = Names::NewFiles;
        }
        Ok(())
    }

    /// Makes the index durable as it is, before a snapshot of the producers relies on it.
    pub(super) fn sync_aborted(&mut self) -> Result<(), LogError> {
        self.flush_aborted()?;
        let failed = self.failed("cannot sync the aborted transactions in");
        let dirty = || self.segments.iter().filter(|segment| segment.aborted.dirty);
        for segment in dirty() {
            let file = segment.files(&self.env, &self.dir).open(FileKind::TxnIndex).map_err(&failed)?;
            file.sync_data().map_err(&failed)?;
        }
        if dirty().next().is_some() {
            self.sync_names()?;
            self.segments.iter_mut().for_each(|segment| segment.aborted.dirty = false);
        }
        Ok(())
    }

    /// The files of the index that have to be synced before a snapshot of the producers relies on them.
    pub(super) fn take_unsynced_aborted(&mut self) -> Result<Vec<Arc<dyn DiskFile>>, LogError> {
        self.flush_aborted()?;
        let failed = self.failed("cannot open the aborted transactions in");
        let dirty = self.segments.iter().filter(|segment| segment.aborted.dirty);
        let open = |segment: &Segment| segment.files(&self.env, &self.dir).open(FileKind::TxnIndex).map_err(&failed);
        let files = dirty.map(open).collect::<Result<Vec<_>, _>>()?;
        self.segments.iter_mut().for_each(|segment| segment.aborted.dirty = false);
        Ok(files)
    }

    /// What was taken could not be synced, for want of a descriptor.
    pub(super) fn put_back_unsynced_aborted(&mut self) {
        let written = self.segments.iter_mut().filter(|segment| segment.aborted.count() > 0);
        written.for_each(|segment| segment.aborted.dirty = true);
    }

    /// Removes the entries with markers from `offset` on.
    pub(super) fn cut_aborted(&mut self, offset: Offset) -> Result<(), LogError> {
        self.aborted.cut(offset);
        let failed = self.failed("cannot cut the aborted transactions of");
        for number in 0..self.segments.len() {
            let next = self.segments.get(number + 1).map_or(Offset(i64::MAX), |next| next.base);
            let segment = &mut self.segments[number];
            if next <= offset || segment.aborted.entries == 0 {
                continue;
            }
            let file = segment.files(&self.env, &self.dir).open(FileKind::TxnIndex).map_err(&failed)?;
            let keep = partition_point(&*file, segment.aborted.entries, offset).map_err(&failed)?;
            file.truncate(u64::from(keep) * ENTRY as u64).map_err(&failed)?;
            let last = keep.checked_sub(1).map(|last| read(&*file, last, 1)).transpose().map_err(&failed)?;
            let stable = last.and_then(|last| last.first().map(|last| last.last_stable_offset));
            segment.aborted = AbortedFile { entries: keep, stable: stable.unwrap_or(Offset::NONE), dirty: true };
        }
        Ok(())
    }

    /// Looks at the files that are there, once, when the log is opened. What is not sound is cut off, and not missed: the
    /// replay of the producers begins below it.
    pub(super) fn load_aborted(&mut self) -> Result<(), LogError> {
        let failed = self.failed("cannot read the aborted transactions in");
        let names = self.env.disk.list(&self.dir).map_err(&failed)?;
        for base in names.iter().filter_map(|entry| parse_name(&entry.name, "txnindex")) {
            let Ok(number) = self.segments.binary_search_by_key(&base, |segment| segment.base) else { continue };
            let limit = self.segments.get(number + 1).map_or(Offset(i64::MAX), |next| next.base);
            let segment = &mut self.segments[number];
            let file = segment.files(&self.env, &self.dir).open(FileKind::TxnIndex).map_err(&failed)?;
            let found = check(&*file, base, limit).map_err(&failed)?;
            segment.aborted = found;
            if file.size().map_err(&failed)? != u64::from(found.entries) * ENTRY as u64 {
                tracing::warn!(dir = %self.dir.display(), %base, "the index of aborted transactions is torn; it is made again");
                file.truncate(u64::from(found.entries) * ENTRY as u64).map_err(&failed)?;
                self.aborted.sound_to = self.aborted.sound_to.min(base);
            }
        }
        // The files have whatever there is.
        self.aborted.recent_from = self.log_end;
        Ok(())
    }
}

impl Log {
    /// Compaction has taken these markers, and no record of their transactions was left: an entry that stayed would make
    /// readers take the producer's later records for aborted ones.
    pub(super) fn forget_aborted(&mut self, markers: &BTreeSet<Offset>) {
        self.aborted.recent.retain(|entry| !markers.contains(&entry.last_offset));
    }
}

/// The entries of a segment's file, for a copy of the segment.
pub(super) fn entries_of(files: &SegmentFiles, count: u32) -> io::Result<Vec<AbortedTransaction>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    read(&*files.open(FileKind::TxnIndex)?, 0, count)
}

/// Writes the file of a copy, durably.
pub(super) fn write_copy(files: &SegmentFiles, entries: &[AbortedTransaction]) -> io::Result<AbortedFile> {
    let bytes: Vec<u8> = entries.iter().flat_map(encode).collect();
    let file = files.create(FileKind::TxnIndex)?;
    write_all_at(&*file, &mut [IoSlice::new(&bytes)], 0)?;
    file.sync_data()?;
    let stable = entries.last().map_or(Offset::NONE, |last| last.last_stable_offset);
    Ok(AbortedFile { entries: u32::try_from(entries.len()).unwrap_or(u32::MAX), stable, dirty: false })
}

impl AbortedFile {
    pub(super) fn count(&self) -> u32 {
        self.entries
    }
}

impl AbortedIndex {
    fn recent_in(&self, range: Overlap) -> Vec<AbortedTransaction> {
        let first = self.recent.partition_point(|entry| entry.last_offset < range.from);
        let mut found = Vec::new();
        for entry in self.recent.range(first..) {
            if range.wants(entry) {
                found.push(*entry);
            }
            if range.ends_with(entry) {
                break;
            }
        }
        found
    }
}

impl ColdAborted {
    /// Only those with offsets below `end`.
    pub(super) fn up_to(mut self, end: Offset) -> Self {
        self.range.end = self.range.end.min(end);
        self.recent.retain(|entry| self.range.wants(entry));
        self
    }

    /// Reads: ascending by their markers. Blocks.
    ///
    /// # Errors
    /// `Gone` where a deletion or truncation came in between, `Corrupt` where the files are damaged; an I/O error takes the
    /// directory offline (`R30`).
    pub fn run(&self) -> Result<Vec<AbortedTransaction>, LogError> {
        let mut found = Vec::new();
        for (files, entries) in &self.files {
            let last = self.read_file(files, *entries, &mut found)?;
            if last.is_some_and(|last| self.range.ends_with(&last)) {
                return Ok(found);
            }
        }
        found.extend(&self.recent);
        Ok(found)
    }

    /// Collects what one file has, up to where memory goes on; gives the last entry looked at.
    fn read_file(
        &self,
        files: &SegmentFiles,
        entries: u32,
        found: &mut Vec<AbortedTransaction>,
    ) -> Result<Option<AbortedTransaction>, LogError> {
        let failed = |e: io::Error| files.read_failed(FileKind::TxnIndex, &e);
        let file = files.open(FileKind::TxnIndex).map_err(failed)?;
        let mut number = partition_point(&*file, entries, self.range.from).map_err(failed)?;
        let mut last = None;
        while number < entries {
            let chunk = read(&*file, number, CHUNK.min(entries - number)).map_err(failed)?;
            for entry in &chunk {
                if entry.last_offset >= self.recent_from {
                    return Ok(last);
                }
                if self.range.wants(entry) {
                    found.push(*entry);
                }
                last = Some(*entry);
                if self.range.ends_with(entry) {
                    return Ok(last);
                }
            }
            number += u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        }
        Ok(last)
    }
}

/// How many entries of a file are sound, from the first on.
pub(super) fn check(file: &dyn DiskFile, base: Offset, limit: Offset) -> io::Result<AbortedFile> {
    let whole = u32::try_from(file.size()? / ENTRY as u64).unwrap_or(u32::MAX);
    let mut found = AbortedFile::NONE;
    let mut last = base + -1;
    while found.entries < whole {
        for entry in read(file, found.entries, CHUNK.min(whole - found.entries))? {
            let in_place = entry.last_offset > last && entry.last_offset < limit;
            let makes_sense = entry.first_offset >= Offset::ZERO
                && entry.first_offset <= entry.last_offset
                && entry.last_stable_offset <= entry.last_offset + 1
                && entry.last_stable_offset >= found.stable
                && entry.producer_id.0 >= 0;
            if !in_place || !makes_sense {
                return Ok(found);
            }
            last = entry.last_offset;
            found.entries += 1;
            found.stable = entry.last_stable_offset;
        }
    }
    Ok(found)
}

/// The number of the first entry with a marker at `offset` or above, of `count`.
fn partition_point(file: &dyn DiskFile, count: u32, offset: Offset) -> io::Result<u32> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        let below = read(file, middle, 1)?.first().is_some_and(|entry| entry.last_offset < offset);
        if below { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

/// `count` entries from number `first` on. One of another version reads as one that makes no sense.
pub(super) fn read(file: &dyn DiskFile, first: u32, count: u32) -> io::Result<Vec<AbortedTransaction>> {
    let mut bytes = vec![0; count as usize * ENTRY];
    read_exact_at(file, &mut bytes, u64::from(first) * ENTRY as u64)?;
    Ok(bytes.chunks_exact(ENTRY).map(decode).collect())
}

fn encode(entry: &AbortedTransaction) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[0..2].copy_from_slice(&VERSION.to_be_bytes());
    bytes[2..10].copy_from_slice(&entry.producer_id.0.to_be_bytes());
    bytes[10..18].copy_from_slice(&entry.first_offset.0.to_be_bytes());
    bytes[18..26].copy_from_slice(&entry.last_offset.0.to_be_bytes());
    bytes[26..34].copy_from_slice(&entry.last_stable_offset.0.to_be_bytes());
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> AbortedTransaction {
    let field = |at: usize| {
        let mut field = [0; 8];
        field.copy_from_slice(&bytes[at..at + 8]);
        i64::from_be_bytes(field)
    };
    let known = bytes[0..2] == VERSION.to_be_bytes();
    AbortedTransaction {
        producer_id: ProducerId(if known { field(2) } else { -1 }),
        first_offset: Offset(field(10)),
        last_offset: Offset(field(18)),
        last_stable_offset: Offset(field(26)),
    }
}
