//! Log compaction (`R39`): the last value of each key stays, what is older goes; offsets and batch ranges never change.
//!
//! ```text
//!  Log::cleanable ─► Log::start_cleaning ─► Cleaning::step … ─► Log::swap_cleaned … ─► Log::finish_cleaning
//!  what there is     which segments, keys   without the log     a group of segments     how far the log
//!  to do             and producers          on the disk pool    gets another content    is clean now
//! ```
//!
//! Reading order: here what a log offers; `run` (one cleaning), `filter` (what stays), `keys` (the map),
//! `transactions` (aborted records, spent markers), `swap` (what a crash may leave).
//!
//! Invariants (`R39`): only segments that lie whole below the bound given (high watermark and last stable offset), the
//! recovery point and the active segment are touched. A segment that was cut, deleted or replaced since is not swapped. The
//! last batch of each segment stays, empty if need be: recovery takes a gap between segments for a loss. Reads that began
//! before a swap go on with the files that they hold.

mod filter;
mod keys;
mod run;
pub(super) mod swap;
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use model::{BatchHeader, Offset, ProducerId, Time};

pub use filter::{FilterStats, LastOfProducer};
pub use keys::{ENTRY_BYTES, HashKey};
pub use run::{Cleaning, CleaningStats, CleaningStep};
pub use swap::SwapEnd;

use super::segment::{FileKind, Segment, SegmentFiles};
use super::walk::{NEAR, Step, Walker};
use super::{Condition, Log, LogError, Names};
use crate::env::FileKey;
use filter::Filter;
use keys::KeyMap;
use run::{Phase, Source};

/// What there is to clean in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cleanable {
    /// Below it, everything was seen by a cleaning.
    pub first_dirty: Offset,
    /// Nothing at or above it may be cleaned now; `first_dirty` where there is nothing to clean.
    pub end: Offset,
    /// Bytes of the segments below `first_dirty`.
    pub clean_bytes: u64,
    /// Bytes of the segments from there to `end`.
    pub dirty_bytes: u64,
    /// By how much the oldest dirty record is past `max.compaction.lag.ms`; 0 where it is not.
    pub overdue_ms: u64,
}

impl Cleanable {
    /// The share of dirty bytes, from 0 to 1: what `min.cleanable.dirty.ratio` is compared with.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share needs no exact bytes")]
    pub fn dirty_ratio(&self) -> f64 {
        let all = self.clean_bytes + self.dirty_bytes;
        if all == 0 { 0.0 } else { self.dirty_bytes as f64 / all as f64 }
    }
}

/// What a cleaning is started with.
#[derive(Clone, Debug)]
pub struct CleaningOptions {
    /// The wall clock, as far as it is believed.
    pub now: Time,
    /// The lower of high watermark and last stable offset (`R39`).
    pub bound: Offset,
    /// The batch that each active producer needs.
    pub producers: BTreeMap<ProducerId, LastOfProducer>,
    /// Memory for keys, [`ENTRY_BYTES`] each.
    pub dedupe_bytes: usize,
    /// How full that may be.
    pub load_factor: f64,
    /// Bytes of each of the two buffers for files.
    pub io_buffer_bytes: usize,
    /// Another one each time.
    pub hash_key: HashKey,
}

/// The copy of a group of segments without what is out of date, on disk, not in use yet.
#[derive(Debug)]
pub struct Cleaned {
    segment: Segment,
    files: SegmentFiles,
    last: BatchHeader,
    /// Key and size of each segment that it is of.
    sources: Vec<(FileKey, u32)>,
    truncations: u64,
    removed_markers: BTreeSet<Offset>,
}

/// What became of a cleaned copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CleanedSwap {
    /// It is in use.
    Done,
    /// The log has changed since: the copy is removed, and the cleaning must be abandoned.
    Outdated,
}

impl Log {
    /// What there is to clean below `bound`, the lower of high watermark and last stable offset (`R39`); None in a log that
    /// is not compacted. May read the disk.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn cleanable(&mut self, now: Time, bound: Offset) -> Result<Option<Cleanable>, LogError> {
        self.usable()?;
        let compacted = self.config.cleanup_policy.compact && self.condition == Condition::Usable;
        if !compacted || self.names == Names::Absent || self.segments.is_empty() {
            return Ok(None);
        }
        let first_dirty = self.first_dirty()?;
        let end_number = self.first_uncleanable(now, bound)?;
        let dirty_number = self.number_of(first_dirty).min(end_number);
        let bytes = |segments: &[Segment]| segments.iter().map(|segment| u64::from(segment.size)).sum();
        let end = self.segments[end_number].base.max(first_dirty);
        let dirty_bytes = if end > first_dirty { bytes(&self.segments[dirty_number..end_number]) } else { 0 };
        Ok(Some(Cleanable {
            first_dirty,
            end,
            clean_bytes: bytes(&self.segments[..dirty_number]),
            dirty_bytes,
            overdue_ms: if dirty_bytes > 0 { self.overdue_ms(now, dirty_number..end_number)? } else { 0 },
        }))
    }

    /// A cleaning of what there is to clean, to be run without the log; None where there is nothing.
    ///
    /// # Errors
    /// As `cleanable`.
    pub fn start_cleaning(&mut self, options: CleaningOptions) -> Result<Option<Cleaning>, LogError> {
        let Some(found) = self.cleanable(options.now, options.bound)?.filter(|found| found.dirty_bytes > 0) else {
            return Ok(None);
        };
        // What is aborted is asked of the files: the copy takes their entries over.
        self.flush_aborted()?;
        let asked = self.aborted(self.log_start, found.end)?;
        let end_number = self.segments.partition_point(|segment| segment.base < found.end);
        let sources: Vec<Source> = self.segments[..end_number]
            .iter()
            .zip(&self.segments[1..])
            .map(|(segment, next)| Source {
                files: segment.files(&self.env, &self.dir),
                key: segment.key,
                size: segment.size,
                aborted: segment.aborted.count(),
                end: next.base,
            })
            .collect();
        let keys = KeyMap::new(options.hash_key, options.dedupe_bytes, options.load_factor);
        let mut filter = Filter::new(keys, found.first_dirty);
        filter.producers = options.producers;
        filter.now_ms = i64::try_from(options.now.0).unwrap_or(i64::MAX);
        filter.delete_retention_ms = self.config.delete_retention_ms;
        filter.levels = self.config.compression_levels;
        Ok(Some(Cleaning {
            env: self.env.clone(),
            dir: self.dir.clone(),
            config: self.config.clone(),
            first_dirty: found.first_dirty,
            end: found.end,
            truncations: self.truncations,
            phase: Phase::Start { asked, source: self.number_of(found.first_dirty) },
            sources,
            filter,
            io_buffer: options.io_buffer_bytes.max(NEAR),
            stats: CleaningStats::default(),
        }))
    }

    /// Puts a copy in the place of the segments that it is of; files of those are freed by `free_deleted`, for which `now`
    /// is of the monotonic clock. Blocks for one sync of the directory; the rest is
    /// [`start_swap_end`](Log::start_swap_end)'s.
    ///
    /// # Errors
    /// `NoSpace` and `NoDescriptor` leave the log as it was, unless it is unfinished; anything else took the directory offline.
    pub fn swap_cleaned(&mut self, cleaned: Cleaned, now: Time) -> Result<CleanedSwap, LogError> {
        self.usable()?;
        self.complete_swap()?;
        let files = cleaned.files.clone();
        let failed = self.failed("cannot remove a cleaned segment in");
        let Some(sources) = self.sources_of(&cleaned) else {
            files.remove().map_err(&failed)?;
            return Ok(CleanedSwap::Outdated);
        };
        match self.put_in_place(cleaned, sources, now) {
            Ok(()) => Ok(CleanedSwap::Done),
            Err(error) => {
                if error.is_shortage() && !self.is_unfinished() {
                    files.remove().map_err(&failed)?;
                }
                Err(error)
            }
        }
    }

    /// Whether the log's end was not cut since the cleaning began: where it was, what the cleaning met means nothing.
    #[must_use]
    pub fn is_current(&self, cleaning: &Cleaning) -> bool {
        cleaning.truncations == self.truncations
    }

    /// A cleaning is through: remembers, durably, how far. False where another one must go on at once, because its map
    /// was full.
    ///
    /// # Errors
    /// `NoSpace`, `NoDescriptor`: then it is forgotten, and done again. Anything else took the directory offline.
    pub fn finish_cleaning(&mut self, cleaning: &Cleaning) -> Result<bool, LogError> {
        self.usable()?;
        let covered = cleaning.filter.covered.min(cleaning.end);
        if !self.is_current(cleaning) {
            return Ok(true);
        }
        if covered > self.cleaned_to()? {
            self.write_cleaned_to(covered)?;
        }
        let stuck = covered == cleaning.first_dirty;
        Ok(covered == cleaning.end || stuck)
    }

    /// Where the segments of a copy stand now, all of them as they were and none of them active.
    fn sources_of(&self, cleaned: &Cleaned) -> Option<Range<usize>> {
        let (key, _) = cleaned.sources.first()?;
        let first = self.segments.iter().position(|segment| segment.key == *key)?;
        let end = first + cleaned.sources.len();
        let now = self.segments.get(first..end)?.iter().map(|segment| (segment.key, segment.size));
        let same = now.eq(cleaned.sources.iter().copied());
        (same && end < self.segments.len() && cleaned.truncations == self.truncations).then_some(first..end)
    }

    fn first_dirty(&mut self) -> Result<Offset, LogError> {
        let cleaned_to = self.cleaned_to()?;
        let first = self.segments.first().map_or(self.log_start, |first| first.base.max(self.log_start));
        // A checkpoint that does not belong to this log says nothing of it.
        Ok(if cleaned_to > self.log_end { first } else { cleaned_to.max(first) })
    }

    /// The number of the segment that an offset is in.
    fn number_of(&self, offset: Offset) -> usize {
        self.segments.partition_point(|segment| segment.base <= offset).saturating_sub(1)
    }

    /// The number of the first segment that must not be cleaned: the active one at the latest.
    fn first_uncleanable(&mut self, now: Time, bound: Offset) -> Result<usize, LogError> {
        let bound = bound.min(self.recovery_point());
        let active = self.segments.len() - 1;
        let below = self.segments[1..].partition_point(|next| next.base <= bound).min(active);
        let lag = self.config.min_compaction_lag_ms;
        if lag <= 0 {
            return Ok(below);
        }
        let oldest = i64::try_from(now.0).unwrap_or(i64::MAX).saturating_sub(lag);
        let dirty = self.first_dirty()?;
        for number in self.number_of(dirty)..below {
            if self.segment_max(number)?.is_some_and(|max| max.timestamp > oldest) {
                return Ok(number);
            }
        }
        Ok(below)
    }

    /// By how much the oldest first batch of these segments is past `max.compaction.lag.ms`.
    fn overdue_ms(&mut self, now: Time, segments: Range<usize>) -> Result<u64, LogError> {
        let limit = self.config.max_compaction_lag_ms;
        if limit == i64::MAX {
            return Ok(0);
        }
        let mut oldest = None;
        for number in segments {
            let first = self.first_timestamp_of(number)?;
            oldest = oldest.into_iter().chain(first).min();
        }
        let now = i64::try_from(now.0).unwrap_or(i64::MAX);
        let overdue = oldest.map_or(0, |oldest| now.saturating_sub(limit).saturating_sub(oldest));
        Ok(u64::try_from(overdue).unwrap_or(0))
    }

    /// Largest timestamp of a segment's first batch; None where it has none.
    fn first_timestamp_of(&mut self, number: usize) -> Result<Option<i64>, LogError> {
        if let Some(known) = self.segments[number].first_timestamp {
            return Ok((known >= 0).then_some(known));
        }
        let failed = self.failed("cannot read in");
        let segment = &self.segments[number];
        let log = segment.files(&self.env, &self.dir).open(FileKind::Log).map_err(&failed)?;
        let first = match Walker::new(log, 0, u64::from(segment.size), NEAR).peek().map_err(&failed)? {
            Step::Batch(header) => header.max_timestamp,
            Step::End | Step::Bad(_) => -1,
        };
        self.segments[number].first_timestamp = Some(first);
        Ok((first >= 0).then_some(first))
    }
}
