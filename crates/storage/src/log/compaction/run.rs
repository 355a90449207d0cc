//! One cleaning, run without the log: first the keys of the dirty segments, then a copy of each group of segments without
//! what is out of date. It goes in steps of bounded work, so that the caller can pause, slow down or stop it.
//!
//! ```text
//!  first segment … first dirty … covered … end … active
//!                  └─ keys taken ─┘             (where the map is full before `end`, another cleaning goes on)
//!  └─── groups copied ───────────┘
//! ```
//!
//! Invariants: nothing that the log uses is touched; a copy stands under `.cleaned` names, whole and synced, before it is
//! given out. A segment of which nothing goes is not written again. Memory: the map, one batch, and two buffers.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use model::{BatchHeader, Offset};

use super::Cleaned;
use super::filter::{Filter, FilterStats, Kept};
use super::transactions::Outcomes;
use crate::config::LogConfig;
use crate::disk::{DiskFile, read_exact_at, write_all_at};
use crate::env::{FileKey, LogEnv};
use crate::log::LogError;
use crate::log::aborted::{self, Aborted, AbortedFile};
use crate::log::append::raise;
use crate::log::index::{self, Indexer};
use crate::log::segment::{FileKind, Segment, SegmentFiles};
use crate::log::walk::{Step, Walker};

/// The files that every copy has; that of the aborted transactions is there where a source has one.
const COPIED: [FileKind; 3] = [FileKind::Log, FileKind::Index, FileKind::TimeIndex];
/// Bytes copied at once where a segment's beginning stays as it is.
const CHUNK: usize = 256 << 10;

/// A cleaning that runs. See the module.
#[derive(Debug)]
pub struct Cleaning {
    pub(super) env: LogEnv,
    pub(super) dir: Arc<Path>,
    pub(super) config: Arc<LogConfig>,
    pub(super) first_dirty: Offset,
    /// Nothing at or above it is looked at.
    pub(super) end: Offset,
    /// Which truncations the log had seen.
    pub(super) truncations: u64,
    pub(super) sources: Vec<Source>,
    pub(super) filter: Filter,
    pub(super) io_buffer: usize,
    pub(super) phase: Phase,
    pub(super) stats: CleaningStats,
}

/// What a cleaning did.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct CleaningStats {
    /// Bytes read, of both passes.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes of the segments that were copied or left as they are, before.
    pub bytes_before: u64,
    /// The same after.
    pub bytes_after: u64,
    /// Keys in the map at its fullest.
    pub keys: usize,
    /// Bytes of the map at its fullest.
    pub key_bytes: usize,
    /// How full the map was, from 0 to 1.
    pub key_utilization: f64,
    /// Of the records.
    pub filter: FilterStats,
}

/// What to do after a step.
#[derive(Debug)]
pub enum CleaningStep {
    /// Take another step.
    More,
    /// Give this to [`crate::Log::swap_cleaned`], then take another step.
    Swap(Box<Cleaned>),
    /// Give the cleaning to [`crate::Log::finish_cleaning`].
    Done,
}

/// A segment to be cleaned, as it was when the cleaning began.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) files: SegmentFiles,
    pub(super) key: FileKey,
    pub(super) size: u32,
    /// Aborted transactions whose markers are in it.
    pub(super) aborted: u32,
    /// Where the next one begins.
    pub(super) end: Offset,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Asking which transactions were aborted; the first dirty source.
    Start {
        asked: Aborted,
        source: usize,
    },
    /// Taking keys from this source on.
    Keys {
        source: usize,
        walker: Option<Walker>,
    },
    /// Copying the first of these groups.
    Copy {
        groups: Vec<Range<usize>>,
        copy: Option<Box<Copy>>,
    },
    Done,
}

/// The copy of one group.
#[derive(Debug)]
pub(super) struct Copy {
    group: Range<usize>,
    source: usize,
    walker: Walker,
    writer: Writer,
    /// Bytes of the first source that stand in the copy as they are, and are still to be brought there.
    prefix: Range<u64>,
    removed_markers: BTreeSet<Offset>,
}

/// The copy's files.
#[derive(Debug)]
struct Writer {
    segment: Segment,
    files: SegmentFiles,
    indexer: Indexer,
    /// The file, and where the buffer's bytes go in it. None as long as nothing differs from the source.
    out: Option<(Arc<dyn DiskFile>, u64)>,
    buffer: Vec<u8>,
    last: Option<BatchHeader>,
}

impl Cleaning {
    /// Works until about `budget` bytes were read and written. Blocks.
    ///
    /// # Errors
    /// `Gone`, where the log changed meanwhile; `NoSpace`; `Corrupt`, where a batch is not what was written: the log stays
    /// as it is, and the cleaning is to be abandoned. Anything else took the directory offline (`R30`).
    pub fn step(&mut self, budget: u64) -> Result<CleaningStep, LogError> {
        if let Some(reason) = self.env.health.failure() {
            return Err(LogError::DirectoryOffline(reason.to_owned()));
        }
        let until = self.done_bytes().saturating_add(budget.max(1));
        loop {
            let step = match std::mem::replace(&mut self.phase, Phase::Done) {
                Phase::Start { asked, source } => {
                    let aborted = match asked {
                        Aborted::Memory(aborted) => aborted,
                        Aborted::Cold(cold) => cold.run()?,
                    };
                    self.filter.outcomes = Outcomes::new(&aborted);
                    self.phase = Phase::Keys { source, walker: None };
                    None
                }
                Phase::Keys { source, walker } => self.take_keys(source, walker, until)?,
                Phase::Copy { groups, copy } => self.copy(groups, copy, until)?,
                Phase::Done => Some(CleaningStep::Done),
            };
            match step {
                Some(step) => return Ok(step),
                None if self.done_bytes() >= until => return Ok(CleaningStep::More),
                None => {}
            }
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> CleaningStats {
        CleaningStats { filter: self.filter.stats, ..self.stats }
    }

    /// Removes what a cleaning that is given up has written. Blocks.
    ///
    /// # Errors
    /// Took the directory offline.
    pub fn abandon(mut self) -> Result<(), LogError> {
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Copy { copy: Some(copy), .. } => {
                copy.writer.files.remove().map_err(|e| self.failed(&copy.writer.files, &e))
            }
            _ => Ok(()),
        }
    }

    /// So many bytes of a copy were written: they take space until the sources are freed.
    fn wrote(&mut self, bytes: u64) {
        self.stats.bytes_written += bytes;
        self.env.health.space.spend(bytes);
    }

    fn done_bytes(&self) -> u64 {
        self.stats.bytes_read + self.stats.bytes_written
    }

    fn take_keys(
        &mut self,
        source: usize,
        walker: Option<Walker>,
        until: u64,
    ) -> Result<Option<CleaningStep>, LogError> {
        let Some(from) = self.sources.get(source).cloned() else {
            // Where the last batch ends before the next segment begins, there is nothing between them.
            self.filter.covered = self.end;
            self.start_copies();
            return Ok(None);
        };
        let mut walker = match walker {
            Some(walker) => walker,
            None => self.walker(&from, self.first_dirty)?,
        };
        while self.done_bytes() < until {
            let Some(header) = next_batch(&mut walker, &from)? else {
                self.phase = Phase::Keys { source: source + 1, walker: None };
                return Ok(None);
            };
            let position = walker.position();
            let bytes = walker.raw(&header).map_err(|e| self.failed(&from.files, &e))?;
            check(bytes, &from, position)?;
            self.stats.bytes_read += header.size as u64;
            let dirty = header.last_offset() >= self.first_dirty;
            if dirty && !self.filter.note_keys(&header, bytes, self.first_dirty) {
                self.start_copies();
                return Ok(None);
            }
            walker.skip(&header);
        }
        self.phase = Phase::Keys { source, walker: Some(walker) };
        Ok(None)
    }

    /// The keys are taken: what is copied follows from how far that went.
    fn start_copies(&mut self) {
        self.stats.keys = self.filter.keys.len();
        self.stats.key_bytes = self.filter.keys.bytes();
        self.stats.key_utilization = self.filter.keys.utilization();
        let covered = self.filter.covered;
        let count = self.sources.partition_point(|source| source.files.base() < covered);
        let copied = if covered > self.first_dirty { &self.sources[..count] } else { &[] };
        let mut groups = group(copied, &self.config);
        groups.reverse();
        self.phase = Phase::Copy { groups, copy: None };
    }

    /// `groups` has the next one last.
    fn copy(
        &mut self,
        mut groups: Vec<Range<usize>>,
        copy: Option<Box<Copy>>,
        until: u64,
    ) -> Result<Option<CleaningStep>, LogError> {
        let mut copy = match copy {
            Some(copy) => copy,
            None => match groups.pop() {
                None => return Ok(None),
                Some(group) => Box::new(self.start_copy(group)?),
            },
        };
        let worked = self.copy_on(&mut copy, until);
        if matches!(worked, Ok(true)) {
            self.phase = Phase::Copy { groups, copy: None };
            return Ok(self.finish_copy(*copy)?.map(|cleaned| CleaningStep::Swap(Box::new(cleaned))));
        }
        self.phase = Phase::Copy { groups, copy: Some(copy) };
        worked.map(|_| None)
    }

    fn start_copy(&self, group: Range<usize>) -> Result<Copy, LogError> {
        let first = &self.sources[group.start];
        let segment = Segment::new(&self.env, first.files.base(), 0);
        let files = segment.files(&self.env, &self.dir).cleaned();
        // What an earlier cleaning that was given up may have left.
        files.remove().map_err(|e| self.failed(&files, &e))?;
        let (indexer, buffer) = (Indexer::default(), Vec::new());
        let writer = Writer { segment, files, indexer, out: None, buffer, last: None };
        let walker = self.walker(first, Offset(-1))?;
        let source = group.start;
        let mut copy = Copy { group, source, walker, writer, prefix: 0..0, removed_markers: BTreeSet::new() };
        if copy.group.len() > 1 {
            self.begin_output(&mut copy)?;
        }
        Ok(copy)
    }

    /// Goes on with a copy; true when all its sources are through.
    fn copy_on(&mut self, copy: &mut Copy, until: u64) -> Result<bool, LogError> {
        while self.done_bytes() < until {
            if !copy.prefix.is_empty() {
                self.copy_prefix(copy)?;
                continue;
            }
            let from = &self.sources[copy.source];
            let Some(header) = next_batch(&mut copy.walker, from)? else {
                copy.source += 1;
                if copy.source == copy.group.end {
                    return Ok(true);
                }
                copy.walker = self.walker(&self.sources[copy.source], Offset(-1))?;
                continue;
            };
            self.copy_batch(copy, &header)?;
            copy.walker.skip(&header);
        }
        Ok(false)
    }

    fn copy_batch(&mut self, copy: &mut Copy, header: &BatchHeader) -> Result<(), LogError> {
        let from = &self.sources[copy.source];
        let position = copy.walker.position();
        let bytes = copy.walker.raw(header).map_err(|e| failed(&from.files, &e))?;
        check(bytes, from, position)?;
        let (source, is_last) = (copy.source, position + header.size as u64 == u64::from(from.size));
        self.stats.bytes_read += header.size as u64;
        self.stats.bytes_before += header.size as u64;
        // The end of a segment is the name of the next one: recovery takes a gap between them for a loss.
        let must_stay = is_last && source + 1 == copy.group.end;
        let start = copy.writer.buffer.len();
        let kept = self.filter.filter(header, bytes, must_stay, &mut copy.writer.buffer);
        let new = match kept {
            Kept::Whole => {
                if copy.writer.out.is_some() {
                    copy.writer.buffer.extend_from_slice(bytes);
                }
                Some(*header)
            }
            Kept::Rewritten(new) => Some(new),
            Kept::Nothing => None,
        };
        if header.is_control() && header.record_count > 0 && new.is_none_or(|new| new.record_count == 0) {
            copy.removed_markers.insert(header.base_offset);
        }
        if kept != Kept::Whole && copy.writer.out.is_none() {
            let changed = copy.writer.buffer.split_off(start);
            self.begin_output(copy)?;
            copy.writer.buffer = changed;
        }
        if let Some(new) = new {
            self.stats.bytes_after += new.size as u64;
            copy.writer.count(&new, self.config.index_interval_bytes);
        }
        if copy.writer.buffer.len() >= self.io_buffer {
            self.write(copy)?;
        }
        Ok(())
    }

    /// From here on the copy differs from its source: makes its files. What was passed so far is to be brought there.
    fn begin_output(&self, copy: &mut Copy) -> Result<(), LogError> {
        let files = &copy.writer.files;
        let made = COPIED.iter().try_for_each(|kind| files.create(*kind).map(drop));
        let log = made.and_then(|()| files.open(FileKind::Log)).map_err(|e| self.write_failed(files, &e))?;
        let length = u64::from(copy.writer.segment.size);
        copy.prefix = 0..length;
        copy.writer.out = Some((log, length));
        Ok(())
    }

    fn copy_prefix(&mut self, copy: &mut Copy) -> Result<(), LogError> {
        let from = &self.sources[copy.group.start].files;
        let source = from.open(FileKind::Log).map_err(|e| self.failed(from, &e))?;
        let left = copy.prefix.end - copy.prefix.start;
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
        read_exact_at(&*source, &mut chunk, copy.prefix.start).map_err(|e| self.failed(from, &e))?;
        let (log, _) = copy.writer.out.as_ref().expect("a prefix is copied once the copy's files are there");
        let written = write_all_at(&**log, &mut [IoSlice::new(&chunk)], copy.prefix.start);
        written.map_err(|e| self.write_failed(&copy.writer.files, &e))?;
        copy.prefix.start += chunk.len() as u64;
        self.stats.bytes_read += chunk.len() as u64;
        self.wrote(chunk.len() as u64);
        Ok(())
    }

    /// Writes what waits in the buffer.
    fn write(&mut self, copy: &mut Copy) -> Result<(), LogError> {
        let Writer { files, indexer, out, buffer, .. } = &mut copy.writer;
        let Some((log, position)) = out else { return Ok(()) };
        let written = write_all_at(&**log, &mut [IoSlice::new(buffer)], *position);
        let flushed = written.and_then(|()| if indexer.is_full() { indexer.flush(files) } else { Ok(()) });
        flushed.map_err(|e| LogError::write(&self.env.health, &files.path(FileKind::Log), &e))?;
        *position += buffer.len() as u64;
        self.wrote(buffer.len() as u64);
        buffer.clear();
        Ok(())
    }

    /// Completes the copy of a group and syncs it; None where the group stays as it is.
    fn finish_copy(&mut self, mut copy: Copy) -> Result<Option<Cleaned>, LogError> {
        self.write(&mut copy)?;
        let Copy { group, mut writer, removed_markers, .. } = copy;
        if writer.out.is_none() {
            return Ok(None);
        }
        let files = &writer.files;
        if writer.segment.size > i32::MAX.unsigned_abs() {
            return Err(corrupt(&self.sources[group.start], 0, "its cleaned copy has more than 2 GiB".to_owned()));
        }
        writer.indexer.note_time(&writer.segment);
        writer.segment.aborted = self.copy_aborted(&group, files, &removed_markers)?;
        let done = writer.indexer.flush(files).and_then(|()| {
            for kind in COPIED {
                files.open(kind)?.sync_data()?;
            }
            // The names too: once a swap has begun, a file that is not there counts as one that is in place already.
            self.env.disk.sync_dir(&self.dir)
        });
        done.map_err(|e| self.write_failed(files, &e))?;
        Ok(Some(Cleaned {
            segment: writer.segment,
            files: writer.files,
            last: writer.last.expect("the last batch of a segment stays"),
            sources: self.sources[group].iter().map(|source| (source.key, source.size)).collect(),
            truncations: self.truncations,
            removed_markers,
        }))
    }

    /// The aborted transactions of a group but for those whose markers went. The file is there, if empty, where a source
    /// has one: it must not keep its own.
    fn copy_aborted(
        &self,
        group: &Range<usize>,
        files: &SegmentFiles,
        removed: &BTreeSet<Offset>,
    ) -> Result<AbortedFile, LogError> {
        let sources = &self.sources[group.clone()];
        if sources.iter().all(|source| source.aborted == 0) {
            return Ok(AbortedFile::NONE);
        }
        let mut entries = Vec::new();
        for source in sources {
            let read = aborted::entries_of(&source.files, source.aborted);
            entries.extend(read.map_err(|e| self.failed(&source.files, &e))?);
        }
        entries.retain(|entry| !removed.contains(&entry.last_offset));
        aborted::write_copy(files, &entries).map_err(|e| self.write_failed(files, &e))
    }

    /// Over a source, from a place at or before the batch that ends at `from` or above.
    fn walker(&self, source: &Source, from: Offset) -> Result<Walker, LogError> {
        let end = u64::from(source.size);
        let start = if from > source.files.base() { index::floor(&source.files, from, end) } else { Ok(0) };
        let opened = start.and_then(|start| Ok((start, source.files.open(FileKind::Log)?)));
        let (start, log) = opened.map_err(|e| self.failed(&source.files, &e))?;
        Ok(Walker::new(log, start, end, self.io_buffer))
    }

    fn failed(&self, files: &SegmentFiles, error: &io::Error) -> LogError {
        failed(files, error)
    }

    fn write_failed(&self, files: &SegmentFiles, error: &io::Error) -> LogError {
        LogError::write(&self.env.health, &files.path(FileKind::Log), error)
    }
}

impl Writer {
    /// A batch stands at the copy's end.
    fn count(&mut self, header: &BatchHeader, interval: u32) {
        let position = self.segment.size;
        self.segment.size = position.saturating_add(u32::try_from(header.size).unwrap_or(u32::MAX));
        self.segment.first_timestamp.get_or_insert(header.max_timestamp);
        raise(&mut self.segment.max, header);
        self.indexer.note(&self.segment, header, position, interval);
        self.last = Some(*header);
    }
}

/// The batch at which the walker stands; None at the end.
fn next_batch(walker: &mut Walker, from: &Source) -> Result<Option<BatchHeader>, LogError> {
    match walker.peek().map_err(|e| failed(&from.files, &e))? {
        Step::Batch(header) => Ok(Some(header)),
        Step::End => Ok(None),
        Step::Bad(what) => Err(corrupt(from, walker.position(), what.to_owned())),
    }
}

fn check(bytes: &[u8], from: &Source, position: u64) -> Result<(), LogError> {
    model::batch::check(bytes).map(drop).map_err(|e| corrupt(from, position, e.to_string()))
}

fn corrupt(from: &Source, position: u64, what: String) -> LogError {
    // A cleaning does not keep count: a start looks at the whole segment.
    LogError::Corrupt { path: from.files.path(FileKind::Log), position, offset: from.files.base(), what }
}

/// An error of a read: a file that was removed or cut was so by the log.
fn failed(files: &SegmentFiles, error: &io::Error) -> LogError {
    files.read_failed(FileKind::Log, error)
}

/// Neighbours that make one segment, by their sizes as they are: never more than `segment.bytes`, `segment.index.bytes`,
/// or offsets than an index can name.
fn group(sources: &[Source], config: &LogConfig) -> Vec<Range<usize>> {
    let interval = u64::from(config.index_interval_bytes.max(1));
    let index_bytes = |size: u64| (size / interval + 1) * 8;
    let mut groups: Vec<Range<usize>> = Vec::new();
    let (mut size, mut base) = (0, Offset::ZERO);
    for (i, source) in sources.iter().enumerate() {
        let grown = size + u64::from(source.size);
        let fits = grown <= u64::from(config.segment_bytes)
            && index_bytes(grown) <= u64::from(config.segment_index_bytes)
            && source.end - base <= i64::from(i32::MAX);
        match groups.last_mut() {
            Some(last) if fits => {
                last.end = i + 1;
                size = grown;
            }
            _ => {
                groups.push(i..i + 1);
                (size, base) = (u64::from(source.size), source.files.base());
            }
        }
    }
    groups
}
