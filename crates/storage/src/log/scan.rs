//! Looking through the log outside of the data path: headers for producer state (`R41`), offsets for timestamps.

use std::sync::Arc;

use model::RecordIter;
use model::{BatchHeader, Codec, LeaderEpoch, Offset, RecordBatch};

use super::index;
use super::segment::{FileKind, Stamp};
use super::walk::{FAR, Step, Walker};
use super::{Log, LogError};

/// The first record that is not older than a timestamp.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TimeMatch {
    /// This one.
    Record {
        /// Its timestamp.
        timestamp: i64,
        /// Its offset.
        offset: Offset,
        /// The leader epoch that it was appended in.
        leader_epoch: LeaderEpoch,
    },
    /// It is in this batch, which is compressed: whoever can decode it finds it there.
    Compressed(RecordBatch),
}

impl Log {
    /// Shows each batch that ends at `from` or above, in order: its header, and whole where it is a control batch. Blocks.
    ///
    /// # Errors
    /// `Corrupt`; an I/O error takes the directory offline.
    pub fn scan(&self, from: Offset, mut see: impl FnMut(&BatchHeader, Option<&RecordBatch>)) -> Result<(), LogError> {
        self.walk(from, |walker, header| {
            if header.is_control() {
                see(header, Some(&walker.checked_batch(header)?));
            } else {
                see(header, None);
            }
            Ok(None::<()>)
        })
        .map(|_| ())
    }

    /// The first record with a timestamp of at least `timestamp`, at or above the log start. Blocks.
    ///
    /// # Errors
    /// As `scan`.
    pub fn offset_for_time(&mut self, timestamp: i64) -> Result<Option<TimeMatch>, LogError> {
        for i in 0..self.segments.len() {
            if self.segment_max(i)?.is_none_or(|max| max.timestamp < timestamp) {
                continue;
            }
            let files = self.segments[i].files(&self.env, &self.dir);
            let from = index::floor_time(&files, timestamp).map_err(self.failed("cannot read in"))?;
            let log_start = self.log_start;
            let found = self.walk(from.max(log_start), |walker, header| {
                if header.max_timestamp < timestamp {
                    return Ok(None);
                }
                first_since(walker.checked_batch(header)?, timestamp, log_start)
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The largest timestamp in the log and the last offset of the batch that has it; None in a log without records.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn max_timestamp(&mut self) -> Result<Option<(i64, Offset)>, LogError> {
        let mut best: Option<Stamp> = None;
        for i in 0..self.segments.len() {
            let max = self.segment_max(i)?;
            if let Some(max) = max
                && best.is_none_or(|best| best.timestamp < max.timestamp)
            {
                best = Some(max);
            }
        }
        Ok(best.map(|stamp| (stamp.timestamp, stamp.offset)))
    }

    /// The largest timestamp of segment number `i`; None where it has no batch.
    pub(super) fn segment_max(&mut self, i: usize) -> Result<Option<Stamp>, LogError> {
        let segment = &self.segments[i];
        if segment.size == 0 || segment.max.is_some() {
            return Ok(segment.max);
        }
        let failed = self.failed("cannot read in");
        let files = segment.files(&self.env, &self.dir);
        let mut max = index::last_time(&files).map_err(&failed)?;
        if max.is_none() {
            // The index is lost: only the batches know.
            let log = files.open(FileKind::Log).map_err(&failed)?;
            let mut walker = Walker::new(log, 0, u64::from(segment.size), FAR);
            while let Step::Batch(header) = walker.next().map_err(&failed)? {
                super::append::raise(&mut max, &header);
            }
        }
        self.segments[i].max = max;
        Ok(max)
    }

    /// Walks the batches that end at `from` or above, until `see` gives something.
    pub(super) fn walk<T>(
        &self,
        from: Offset,
        mut see: impl FnMut(&mut LogWalker<'_>, &BatchHeader) -> Result<Option<T>, LogError>,
    ) -> Result<Option<T>, LogError> {
        self.usable()?;
        let failed = self.failed("cannot read in");
        let first = self.segments.partition_point(|segment| segment.base <= from).saturating_sub(1);
        for segment in &self.segments[first.min(self.segments.len())..] {
            if segment.size == 0 {
                continue;
            }
            let files = segment.files(&self.env, &self.dir);
            let log = files.open(FileKind::Log).map_err(&failed)?;
            let end = u64::from(segment.size);
            let start = index::floor(&files, from, end).map_err(&failed)?;
            let mut walker = LogWalker {
                log: self,
                base: segment.base,
                expected: segment.base,
                walker: Walker::new(log, start, end, FAR),
            };
            loop {
                match walker.walker.peek().map_err(&failed)? {
                    Step::End => break,
                    Step::Bad(what) => return Err(walker.corrupt(what)),
                    Step::Batch(header) => {
                        if header.last_offset() >= from
                            && let Some(found) = see(&mut walker, &header)?
                        {
                            return Ok(Some(found));
                        }
                        walker.walker.skip(&header);
                        walker.expected = header.next_offset();
                    }
                }
            }
        }
        Ok(None)
    }
}

/// A walker that knows where it is.
pub(super) struct LogWalker<'a> {
    log: &'a Log,
    base: Offset,
    /// The batches before end there.
    expected: Offset,
    walker: Walker,
}

impl LogWalker<'_> {
    /// The batch with this header, at which the walk is, checked whole.
    fn checked_batch(&mut self, header: &BatchHeader) -> Result<RecordBatch, LogError> {
        let read = self.walker.batch(header).map_err(self.log.failed("cannot read in"))?;
        let mut bytes = read;
        RecordBatch::split_off(&mut bytes).map_err(|e| self.corrupt(&e.to_string()))
    }

    fn corrupt(&self, what: &str) -> LogError {
        let path = super::segment::file_path(&Arc::clone(&self.log.dir), self.base, FileKind::Log);
        LogError::Corrupt { path, position: self.walker.position(), offset: self.expected, what: what.to_owned() }
    }
}

/// The first record of the batch at or above `log_start` that is not older than `timestamp`.
fn first_since(batch: RecordBatch, timestamp: i64, log_start: Offset) -> Result<Option<TimeMatch>, LogError> {
    let header = *batch.header();
    if header.codec() != Some(Codec::None) {
        return Ok(Some(TimeMatch::Compressed(batch)));
    }
    let leader_epoch = header.leader_epoch;
    for record in RecordIter::new(batch.payload(), header.record_count) {
        // Records that do not decode end the batch: a reader cannot get past them either.
        let Ok(record) = record else { break };
        let own = match header.timestamp_type() {
            model::TimestampType::CreateTime => header.base_timestamp.saturating_add(record.timestamp_delta),
            model::TimestampType::LogAppendTime => header.max_timestamp,
        };
        let offset = header.base_offset + i64::from(record.offset_delta);
        if own >= timestamp && offset >= log_start {
            return Ok(Some(TimeMatch::Record { timestamp: own, offset, leader_epoch }));
        }
    }
    Ok(None)
}
