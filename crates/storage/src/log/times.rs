//! Timestamps: the largest of each segment, and the first record since one.
//!
//! What is known in memory is answered there. What has to be read from files is read by whoever asks, without the log: it
//! gets the files, open, from the log ([`TimeRead`], [`TimeSearch`]), reads them, and comes back. The files stay those of the
//! moment, whatever retention and compaction do meanwhile; a truncation may show in them, as in a `ColdRead`.
//!
//! Invariants: the largest timestamp that is kept of a segment is of the batches that it has: what was read is taken only
//! where it was not cut since. The indexes are hints: what they say counts where the batches bear it out, and what is deleted,
//! or passed over, was either said by an index and a batch alike, or checked whole. A damaged batch says nothing (`R29`).

use std::io;
use std::sync::Arc;

use model::{BatchHeader, Codec, LeaderEpoch, Offset, RecordBatch, RecordIter, Time, TimestampType};

use super::index;
use super::segment::{FileKind, SegmentFiles, Stamp};
use super::walk::{FAR, NEAR, Order, Step, Walker};
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
    truncations: u64,
}

/// What a [`TimeRead`] found, for [`Log::note_time`].
#[derive(Debug)]
pub struct SegmentTime {
    key: FileKey,
    truncations: u64,
    /// The largest, or the damage.
    max: Result<Option<Stamp>, LogError>,
}

/// A search for a timestamp in one segment, without the log.
#[derive(Debug)]
pub struct TimeSearch {
    segment: OpenSegment,
    timestamp: i64,
    from: Offset,
    end: Offset,
}

/// A look at the batch that an offset is in, without the log.
#[derive(Debug)]
pub struct BatchTime {
    segment: OpenSegment,
    offset: Offset,
}

#[derive(Debug)]
struct OpenSegment {
    files: SegmentFiles,
    size: u32,
    log: Arc<dyn DiskFile>,
    index: Option<Arc<dyn DiskFile>>,
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
            if segment.has_unread_time() {
                return Ok(TimeLookup::Unread(self.time_read(i)?));
            }
            // In a damaged one it may stand before the damage, which the search meets else.
            if segment.newest().is_none_or(|newest| newest.timestamp >= timestamp) {
                let segment = self.open_segment(i)?;
                return Ok(TimeLookup::Search(TimeSearch { segment, timestamp, from, end }));
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
        Ok(Some(BatchTime { segment: self.open_segment(i)?, offset }))
    }

    /// A segment whose largest timestamp has to be read before `max_timestamp` is answered from memory.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn unread_time(&self) -> Result<Option<TimeRead>, LogError> {
        self.usable()?;
        let unread = self.segments.iter().position(super::segment::Segment::has_unread_time);
        unread.map(|i| self.time_read(i)).transpose()
    }

    /// The same, before `retain` can judge the age of segments at `wall` from memory.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn unread_time_for_retention(&self, wall: Time) -> Result<Option<TimeRead>, LogError> {
        self.usable()?;
        let kept =
            |segment: &super::segment::Segment| !segment.newest().is_some_and(|max| self.is_past_retention(max, wall));
        let first_kept = self.segments.iter().position(kept).filter(|_| self.retention_ms().is_some());
        first_kept.filter(|i| self.segments[*i].has_unread_time()).map(|i| self.time_read(i)).transpose()
    }

    /// Takes what was read, if the segment is still the one that it was read from.
    ///
    /// # Errors
    /// The damage that was found instead (`R29`).
    pub fn note_time(&mut self, read: &SegmentTime) -> Result<(), LogError> {
        if read.truncations != self.truncations {
            return Ok(());
        }
        let Some(segment) = self.segments.iter_mut().find(|segment| segment.key == read.key) else { return Ok(()) };
        match &read.max {
            Ok(max) => {
                segment.unread = 0;
                // The batch that came first, of those with the largest.
                segment.max = max.iter().chain(&segment.max).copied().reduce(Stamp::or_later);
                let newest = segment.max.filter(|_| self.segments.last().is_some_and(|active| active.key == read.key));
                if let Some((indexer, newest)) = self.indexer.as_mut().zip(newest) {
                    indexer.limit_time(newest);
                }
                Ok(())
            }
            Err(damage) => {
                segment.time_damage = Some(Box::new(damage.clone()));
                Err(damage.clone())
            }
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
                TimeLookup::Unread(read) => self.note_time(&read.run()?)?,
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
    /// `Corrupt`; an I/O error takes the directory offline.
    pub fn max_timestamp(&mut self) -> Result<Option<(i64, Offset)>, LogError> {
        while let Some(read) = self.unread_time()? {
            self.note_time(&read.run()?)?;
        }
        if let Some(damage) = self.segments.iter().find_map(|segment| segment.time_damage.as_deref()) {
            return Err(damage.clone());
        }
        let best = self.segments.iter().filter_map(|segment| segment.max).reduce(Stamp::or_later);
        Ok(best.map(|stamp| (stamp.timestamp, stamp.offset)))
    }

    /// The largest timestamp of segment number `i`; None where it has no batch. Blocks where it is not known.
    pub(super) fn segment_max(&mut self, i: usize) -> Result<Option<Stamp>, LogError> {
        if self.segments[i].has_unread_time() {
            let read = self.time_read(i)?.run()?;
            self.note_time(&read)?;
        }
        match &self.segments[i].time_damage {
            Some(damage) => Err(damage.as_ref().clone()),
            None => Ok(self.segments[i].max),
        }
    }

    fn time_read(&self, i: usize) -> Result<TimeRead, LogError> {
        let (key, truncations) = (self.segments[i].key, self.truncations);
        Ok(TimeRead { segment: self.open_segment(i)?, key, truncations })
    }

    fn open_segment(&self, i: usize) -> Result<OpenSegment, LogError> {
        let failed = self.failed("cannot open a segment in");
        let files = self.segments[i].files(&self.env, &self.dir);
        let log = files.open(FileKind::Log).map_err(&failed)?;
        let times = match files.open(FileKind::TimeIndex) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened.map_err(&failed)?),
        };
        let index = index::open(&files).map_err(&failed)?;
        Ok(OpenSegment { files, size: self.segments[i].size, log, index, times })
    }
}

impl TimeRead {
    /// Reads. Blocks.
    ///
    /// # Errors
    /// `Gone` where the log was cut meanwhile; an I/O error takes the directory offline.
    pub fn run(&self) -> Result<SegmentTime, LogError> {
        let max = match self.segment.newest() {
            Err(error) if !matches!(error, LogError::Corrupt { .. }) => return Err(error),
            max => max,
        };
        Ok(SegmentTime { key: self.key, truncations: self.truncations, max })
    }
}

impl OpenSegment {
    /// The largest timestamp: as the time index says where the batches bear it out, else as all batches say.
    fn newest(&self) -> Result<Option<Stamp>, LogError> {
        match self.newest_indexed()? {
            None => self.newest_of_all(),
            indexed => Ok(indexed),
        }
    }

    /// That of the last entry of the time index, or of what is newer behind it.
    fn newest_indexed(&self) -> Result<Option<Stamp>, LogError> {
        let failed = |e: io::Error| self.files.read_failed(FileKind::Log, &e);
        let Some(times) = &self.times else { return Ok(None) };
        let last = index::last_time_in(&**times, self.files.base());
        let Some(last) = last.map_err(|e| self.files.read_failed(FileKind::TimeIndex, &e))? else { return Ok(None) };
        let Some(position) = self.batch_of(last).map_err(failed)? else { return Ok(None) };
        let mut walker = self.walker(position, NEAR);
        let mut newest = Some(last);
        let mut expected = last.offset;
        loop {
            let header = match walker.peek().map_err(failed)? {
                Step::End => return Ok(newest),
                Step::Bad(what) => return Err(self.corrupt(walker.position(), expected, what)),
                Step::Batch(header) => header,
            };
            if header.max_timestamp > last.timestamp {
                // The index does not say so: it is incomplete, or the batch is damaged.
                self.check(&mut walker, &header, expected)?;
                super::append::raise(&mut newest, &header);
            }
            walker.skip(&header);
            expected = header.next_offset();
        }
    }

    /// That of all batches, each of them checked: what is kept, or deleted, by it must not hang on a bit.
    fn newest_of_all(&self) -> Result<Option<Stamp>, LogError> {
        let mut walker = self.walker(0, FAR);
        let (mut newest, mut order) = (None, Order::from(self.files.base()));
        loop {
            let header = match walker.peek().map_err(|e| self.files.read_failed(FileKind::Log, &e))? {
                Step::End => return Ok(newest),
                Step::Bad(what) => return Err(self.corrupt(walker.position(), order.expected, what)),
                Step::Batch(header) => header,
            };
            if !order.allows(self.files.base(), &header) {
                return Err(self.corrupt(walker.position(), order.expected, "a batch is out of order"));
            }
            self.check(&mut walker, &header, order.expected)?;
            super::append::raise(&mut newest, &header);
            order.pass(&header);
            walker.skip(&header);
        }
    }

    /// Where the batch stands that a time entry names, if there is one and it says the same.
    fn batch_of(&self, entry: Stamp) -> io::Result<Option<u64>> {
        let mut walker = self.walker(self.floor(entry.offset)?, NEAR);
        while let Step::Batch(header) = walker.peek()? {
            if header.last_offset() >= entry.offset {
                let same = Stamp { timestamp: header.max_timestamp, offset: header.last_offset() } == entry;
                return Ok(same.then_some(walker.position()));
            }
            walker.skip(&header);
        }
        Ok(None)
    }

    /// Where a walk to `offset` begins.
    fn floor(&self, offset: Offset) -> io::Result<u64> {
        let Some(index) = &self.index else { return Ok(0) };
        let end = u64::from(self.size);
        let entry = index::entry_in(&**index, Arc::clone(&self.log), self.files.base(), offset, end)?;
        Ok(entry.map_or(0, |entry| u64::from(entry.position)))
    }

    fn walker(&self, position: u64, buffer: usize) -> Walker {
        Walker::new(Arc::clone(&self.log), position, u64::from(self.size), buffer)
    }

    /// The batch at which the walk is, is what was written.
    fn check(&self, walker: &mut Walker, header: &BatchHeader, expected: Offset) -> Result<(), LogError> {
        if walker.has_good_crc(header).map_err(|e| self.files.read_failed(FileKind::Log, &e))? {
            return Ok(());
        }
        Err(self.corrupt(walker.position(), expected, "the checksum of a batch is wrong"))
    }

    fn corrupt(&self, position: u64, offset: Offset, what: impl Into<String>) -> LogError {
        LogError::Corrupt { path: self.files.path(FileKind::Log), position, offset, what: what.into() }
    }
}

impl BatchTime {
    /// Reads headers, of a few batches. Blocks. None where compaction left nothing from the offset on in its segment.
    ///
    /// # Errors
    /// `Gone` where the log was cut meanwhile; an I/O error takes the directory offline.
    pub fn run(&self) -> Result<Option<i64>, LogError> {
        let failed = |e: io::Error| self.segment.files.read_failed(FileKind::Log, &e);
        let mut walker = self.segment.walker(self.segment.floor(self.offset).map_err(failed)?, FAR);
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
        let segment = &self.segment;
        let failed = |e: io::Error| segment.files.read_failed(FileKind::Log, &e);
        let (from, position) = self.start().map_err(failed)?;
        let mut walker = segment.walker(position, FAR);
        let mut expected = segment.files.base();
        loop {
            let header = match walker.peek().map_err(failed)? {
                Step::End => return Ok(None),
                Step::Bad(what) => return Err(segment.corrupt(walker.position(), expected, what)),
                Step::Batch(header) => header,
            };
            if header.base_offset < expected {
                return Err(segment.corrupt(walker.position(), expected, "a batch is out of order"));
            }
            if header.last_offset() >= from && header.max_timestamp >= self.timestamp {
                let mut bytes = walker.batch(&header).map_err(failed)?;
                let batch = RecordBatch::split_off(&mut bytes);
                let batch = batch.map_err(|e| segment.corrupt(walker.position(), expected, e.to_string()))?;
                let found = first_since(batch, self.timestamp, from);
                if found.is_some() {
                    walker.skip(&header);
                    return self.check_offset(&mut walker, &header, expected).map(|()| found);
                }
            } else if header.last_offset() >= from {
                // That it is older is for it to say: it is passed over.
                segment.check(&mut walker, &header, expected)?;
            }
            walker.skip(&header);
            expected = header.next_offset();
        }
    }

    /// The batch that the walk has just passed reaches over nothing that follows: its offset, which no checksum covers, is right.
    fn check_offset(&self, walker: &mut Walker, header: &BatchHeader, expected: Offset) -> Result<(), LogError> {
        let next = match walker.peek().map_err(|e| self.segment.files.read_failed(FileKind::Log, &e))? {
            Step::Batch(next) => next.base_offset,
            Step::End | Step::Bad(_) => self.end,
        };
        if header.next_offset() <= next {
            return Ok(());
        }
        Err(self.segment.corrupt(walker.position(), expected, "a batch reaches over what follows"))
    }

    /// From which offset on, and where in the file the walk to it begins.
    fn start(&self) -> io::Result<(Offset, u64)> {
        let (segment, base) = (&self.segment, self.segment.files.base());
        let times = segment.times.as_deref();
        let entry = times.map(|times| index::floor_time_in(times, base, self.timestamp)).transpose()?.flatten();
        let named = match entry {
            Some(entry) => segment.batch_of(entry)?.map(|position| (entry.offset, position)),
            None => None,
        };
        let (floor, position) = named.unwrap_or((base, 0));
        if self.from <= floor {
            return Ok((floor, position));
        }
        Ok((self.from, segment.floor(self.from)?))
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
