//! Timestamps: the largest of each segment, and the first record since one.
//!
//! What is known in memory is answered there. What has to be read from files is read by whoever asks, without the log: it
//! gets the files, open, from the log ([`TimeRead`], [`TimeSearch`]), reads them, and comes back. The files stay those of the
//! moment, whatever retention and compaction do meanwhile; a truncation may show in them, as in a `ColdRead`.
//!
//! Invariant: the largest timestamp that is kept of a segment is of the batches that it had when it was read: it is taken
//! only where the segment is the same still.

use std::io;
use std::sync::Arc;

use model::{Codec, LeaderEpoch, Offset, RecordBatch, RecordIter, Time, TimestampType};

use super::index;
use super::segment::{FileKind, SegmentFiles, Stamp};
use super::walk::{FAR, Step, Walker};
use super::{Log, LogError};
use crate::disk::DiskFile;
use crate::env::FileKey;

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

/// The answer to [`Log::search_time`].
#[derive(Debug)]
pub enum TimeLookup {
    /// No record is that new.
    Nothing,
    /// First the largest timestamp of a segment has to be read: ask again once it is noted.
    Unread(TimeRead),
    /// To be looked for in a segment.
    Search(TimeSearch),
}

/// The largest timestamp of a segment, to be read from its files without the log.
#[derive(Debug)]
pub struct TimeRead {
    segment: OpenSegment,
    key: FileKey,
}

/// What a [`TimeRead`] found, for [`Log::note_time`].
#[derive(Debug)]
pub struct SegmentTime {
    key: FileKey,
    size: u32,
    max: Stamp,
}

/// A search for a timestamp in one segment, without the log.
#[derive(Debug)]
pub struct TimeSearch {
    segment: OpenSegment,
    index: Option<Arc<dyn DiskFile>>,
    timestamp: i64,
    from: Offset,
    end: Offset,
}

/// A look at the batch that an offset is in, without the log.
#[derive(Debug)]
pub struct BatchTime {
    segment: OpenSegment,
    index: Option<Arc<dyn DiskFile>>,
    offset: Offset,
}

#[derive(Debug)]
struct OpenSegment {
    files: SegmentFiles,
    size: u32,
    log: Arc<dyn DiskFile>,
    times: Option<Arc<dyn DiskFile>>,
}

impl Log {
    /// Looks for the first record with a timestamp of at least `timestamp` at or above `from` and the log start. Where a
    /// search finds nothing, the next one begins at its end.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn search_time(&self, timestamp: i64, from: Offset) -> Result<TimeLookup, LogError> {
        self.usable()?;
        let from = from.max(self.log_start);
        for (i, segment) in self.segments.iter().enumerate() {
            let end = self.segments.get(i + 1).map_or(self.log_end, |next| next.base);
            if segment.size == 0 || end <= from {
                continue;
            }
            match segment.max {
                None => return Ok(TimeLookup::Unread(self.time_read(i)?)),
                Some(max) if max.timestamp < timestamp => {}
                Some(_) => {
                    let segment = self.open_segment(i)?;
                    let index = index::open(&segment.files).map_err(self.failed("cannot open an index in"))?;
                    return Ok(TimeLookup::Search(TimeSearch { segment, index, timestamp, from, end }));
                }
            }
        }
        Ok(TimeLookup::Nothing)
    }

    /// What has to be read to know the largest timestamp of the first batch that has a record at or above `offset`; None
    /// where there is no such record.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn batch_time(&self, offset: Offset) -> Result<Option<BatchTime>, LogError> {
        self.usable()?;
        let offset = offset.max(self.log_start);
        let end = |i: usize| self.segments.get(i + 1).map_or(self.log_end, |next| next.base);
        let Some(i) = (0..self.segments.len()).find(|i| self.segments[*i].size > 0 && end(*i) > offset) else {
            return Ok(None);
        };
        let segment = self.open_segment(i)?;
        let index = index::open(&segment.files).map_err(self.failed("cannot open an index in"))?;
        Ok(Some(BatchTime { segment, index, offset }))
    }

    /// A segment whose largest timestamp has to be read before `max_timestamp` is answered from memory.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn unread_time(&self) -> Result<Option<TimeRead>, LogError> {
        self.usable()?;
        let unread = self.segments.iter().position(|segment| segment.size > 0 && segment.max.is_none());
        unread.map(|i| self.time_read(i)).transpose()
    }

    /// The same, before `retain` can judge the age of segments at `wall` from memory.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn unread_time_for_retention(&self, wall: Time) -> Result<Option<TimeRead>, LogError> {
        self.usable()?;
        let kept =
            |segment: &super::segment::Segment| !segment.max.is_some_and(|max| self.is_past_retention(max, wall));
        let first_kept = self.segments.iter().position(kept).filter(|_| self.retention_ms().is_some());
        let unread = first_kept.filter(|i| self.segments[*i].size > 0 && self.segments[*i].max.is_none());
        unread.map(|i| self.time_read(i)).transpose()
    }

    /// Takes what was read, if the segment is still the one that it was read from.
    pub fn note_time(&mut self, read: &SegmentTime) {
        let same = |segment: &&mut super::segment::Segment| segment.key == read.key && segment.size == read.size;
        if let Some(segment) = self.segments.iter_mut().find(same) {
            segment.max.get_or_insert(read.max);
        }
    }

    /// The first record with a timestamp of at least `timestamp`, at or above the log start. Blocks.
    ///
    /// # Errors
    /// `Corrupt`; an I/O error takes the directory offline.
    pub fn offset_for_time(&mut self, timestamp: i64) -> Result<Option<TimeMatch>, LogError> {
        let mut from = Offset::ZERO;
        loop {
            match self.search_time(timestamp, from)? {
                TimeLookup::Nothing => return Ok(None),
                TimeLookup::Unread(read) => self.note_time(&read.run()?),
                TimeLookup::Search(search) => match search.run()? {
                    None => from = search.end(),
                    found => return Ok(found),
                },
            }
        }
    }

    /// The largest timestamp in the log and the last offset of the batch that has it; None in a log without records. Blocks
    /// where [`Log::unread_time`] has something to read.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn max_timestamp(&mut self) -> Result<Option<(i64, Offset)>, LogError> {
        while let Some(read) = self.unread_time()? {
            self.note_time(&read.run()?);
        }
        let mut best: Option<Stamp> = None;
        for max in self.segments.iter().filter_map(|segment| segment.max).filter(|max| max.timestamp != i64::MIN) {
            if best.is_none_or(|best| best.timestamp < max.timestamp) {
                best = Some(max);
            }
        }
        Ok(best.map(|stamp| (stamp.timestamp, stamp.offset)))
    }

    /// The largest timestamp of segment number `i`; None where it has no batch. Blocks where it is not known.
    pub(super) fn segment_max(&mut self, i: usize) -> Result<Option<Stamp>, LogError> {
        let segment = &self.segments[i];
        if segment.size > 0 && segment.max.is_none() {
            let read = self.time_read(i)?.run()?;
            self.note_time(&read);
        }
        Ok(self.segments[i].max)
    }

    fn time_read(&self, i: usize) -> Result<TimeRead, LogError> {
        Ok(TimeRead { segment: self.open_segment(i)?, key: self.segments[i].key })
    }

    fn open_segment(&self, i: usize) -> Result<OpenSegment, LogError> {
        let failed = self.failed("cannot open a segment in");
        let files = self.segments[i].files(&self.env, &self.dir);
        let log = files.open(FileKind::Log).map_err(&failed)?;
        let times = match files.open(FileKind::TimeIndex) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened.map_err(&failed)?),
        };
        Ok(OpenSegment { files, size: self.segments[i].size, log, times })
    }
}

impl TimeRead {
    /// Reads. Blocks.
    ///
    /// # Errors
    /// `Gone` where the log was cut meanwhile; an I/O error takes the directory offline.
    pub fn run(&self) -> Result<SegmentTime, LogError> {
        let OpenSegment { files, size, log, times } = &self.segment;
        let last = times.as_deref().map(|times| index::last_time_in(times, files.base())).transpose();
        let mut max = last.map_err(|e| files.read_failed(FileKind::TimeIndex, &e))?.flatten();
        if max.is_none() {
            // The index is lost: only the batches know.
            let mut walker = Walker::new(Arc::clone(log), 0, u64::from(*size), FAR);
            while let Step::Batch(header) = walker.next().map_err(|e| files.read_failed(FileKind::Log, &e))? {
                super::append::raise(&mut max, &header);
            }
        }
        // One whose first batch cannot be read is older than everything.
        let max = max.unwrap_or(Stamp { timestamp: i64::MIN, offset: files.base() });
        Ok(SegmentTime { key: self.key, size: *size, max })
    }
}

impl BatchTime {
    /// Reads headers, of a few batches. Blocks. None where compaction left nothing from the offset on in its segment.
    ///
    /// # Errors
    /// `Gone` where the log was cut meanwhile; an I/O error takes the directory offline.
    pub fn run(&self) -> Result<Option<i64>, LogError> {
        let OpenSegment { files, size, log, .. } = &self.segment;
        let failed = |e: io::Error| files.read_failed(FileKind::Log, &e);
        let end = u64::from(*size);
        let entry = match &self.index {
            Some(index) => {
                index::entry_in(&**index, Arc::clone(log), files.base(), self.offset, end).map_err(failed)?
            }
            None => None,
        };
        let position = entry.map_or(0, |entry| u64::from(entry.position));
        let mut walker = Walker::new(Arc::clone(log), position, end, FAR);
        while let Step::Batch(header) = walker.next().map_err(failed)? {
            if header.last_offset() >= self.offset {
                return Ok(Some(header.max_timestamp));
            }
        }
        Ok(None)
    }
}

impl TimeSearch {
    /// Where the next search begins.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.end
    }

    /// Searches. Blocks.
    ///
    /// # Errors
    /// `Corrupt`; `Gone` where the log was cut meanwhile; an I/O error takes the directory offline.
    pub fn run(&self) -> Result<Option<TimeMatch>, LogError> {
        let OpenSegment { files, size, log, .. } = &self.segment;
        let failed = |e: io::Error| files.read_failed(FileKind::Log, &e);
        let (from, position) = self.start().map_err(failed)?;
        let mut walker = Walker::new(Arc::clone(log), position, u64::from(*size), FAR);
        let mut expected = files.base();
        loop {
            let header = match walker.peek().map_err(failed)? {
                Step::End => return Ok(None),
                Step::Bad(what) => return Err(self.corrupt(walker.position(), expected, what.to_owned())),
                Step::Batch(header) => header,
            };
            if header.last_offset() >= from && header.max_timestamp >= self.timestamp {
                let mut bytes = walker.batch(&header).map_err(failed)?;
                let batch = RecordBatch::split_off(&mut bytes);
                let batch = batch.map_err(|e| self.corrupt(walker.position(), expected, e.to_string()))?;
                let found = first_since(batch, self.timestamp, from);
                if found.is_some() {
                    return Ok(found);
                }
            }
            walker.skip(&header);
            expected = header.next_offset();
        }
    }

    /// From which offset on, and where in the file the walk to it begins.
    fn start(&self) -> io::Result<(Offset, u64)> {
        let OpenSegment { files, size, log, times } = &self.segment;
        let (base, end) = (files.base(), u64::from(*size));
        let floor = times.as_deref().map(|times| index::floor_time_in(times, base, self.timestamp)).transpose()?;
        let from = floor.unwrap_or(base).max(self.from);
        let entry = match &self.index {
            Some(index) => index::entry_in(&**index, Arc::clone(log), base, from, end)?,
            None => None,
        };
        Ok((from, entry.map_or(0, |entry| u64::from(entry.position))))
    }

    fn corrupt(&self, position: u64, offset: Offset, what: String) -> LogError {
        LogError::Corrupt { path: self.segment.files.path(FileKind::Log), position, offset, what }
    }
}

/// The first record of the batch at or above `from` that is not older than `timestamp`.
fn first_since(batch: RecordBatch, timestamp: i64, from: Offset) -> Option<TimeMatch> {
    let header = *batch.header();
    if header.codec() != Some(Codec::None) {
        return Some(TimeMatch::Compressed(batch));
    }
    let leader_epoch = header.leader_epoch;
    for record in RecordIter::new(batch.payload(), header.record_count) {
        // Records that do not decode end the batch: a reader cannot get past them either.
        let Ok(record) = record else { break };
        let own = match header.timestamp_type() {
            TimestampType::CreateTime => header.base_timestamp.saturating_add(record.timestamp_delta),
            TimestampType::LogAppendTime => header.max_timestamp,
        };
        let offset = header.base_offset + i64::from(record.offset_delta);
        if own >= timestamp && offset >= from {
            return Some(TimeMatch::Record { timestamp: own, offset, leader_epoch });
        }
    }
    None
}
