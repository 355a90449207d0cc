//! Appends: one vectored write for all batches that go into one segment, and rolling to the next one.

use std::io::IoSlice;

use metadata::configs::FlushPolicy;
use model::{BatchHeader, LeaderEpoch, Offset, RecordBatch, Time};

use super::index::Indexer;
use super::segment::{FileKind, Segment, SegmentFiles, Stamp};
use super::walk::{NEAR, Step, Walker};
use super::{Condition, Log, LogError, Names, identity};
use crate::disk::write_all_at;

/// What an append did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Base offset of the first batch.
    pub first: Offset,
    /// Offset of the last record.
    pub last: Offset,
    /// Bytes written.
    pub bytes: u64,
}

impl Log {
    /// Writes batches behind the log's end, in order, holes allowed: all or none. Blocks on the page cache only.
    ///
    /// # Errors
    /// `OutOfOrder`, `OutOfRange` behind the last offset there is, `Lossy`, `NoSpace` and `NoDescriptor` leave the log as it was; anything else took the directory offline
    /// (`R30`). Where batches that were written could not be taken back for want of a descriptor or of space, the log is
    /// unfinished.
    pub fn append(&mut self, batches: &[RecordBatch]) -> Result<Appended, LogError> {
        self.usable()?;
        if let Condition::Lossy(first_bad) = self.condition {
            return Err(LogError::Lossy { first_bad });
        }
        self.check_order(batches)?;
        if self.env.health.refuses(self.config.may_use_reserve) {
            return Err(LogError::NoSpace(self.dir.to_path_buf()));
        }
        let before = self.log_end;
        let written = self.write(batches);
        if let Err(error) = written {
            // An open that found no descriptor was before the first write.
            if self.log_end > before || !matches!(error, LogError::NoDescriptor(_)) {
                let undone = self.undo(before);
                self.begun(undone)?;
            }
            return Err(error);
        }
        self.tail.append(batches);
        let bytes = batches.iter().map(|batch| batch.bytes().len() as u64).sum();
        self.env.health.space.spend(bytes);
        Ok(Appended {
            first: batches.first().map_or(before, |batch| batch.header().base_offset),
            last: self.log_end + -1,
            bytes,
        })
    }

    /// Whether the newest batches are kept in memory for those who read at the end of the log: a leader serves its
    /// followers from there, a follower needs none.
    pub fn keep_tail(&mut self, keep: bool) {
        self.tail.set_keeps(keep);
    }

    /// Starts a new segment if the active one is old enough (`segment.ms`) by this wall clock; says whether it did. Gives back
    /// what was reserved for it where `preallocate` has been switched off since.
    ///
    /// # Errors
    /// `NoSpace` leaves the log as it was; anything else took the directory offline.
    pub fn maybe_roll(&mut self, wall: Time) -> Result<bool, LogError> {
        self.usable()?;
        if self.preallocated && !self.config.preallocate {
            self.free_preallocated()?;
        }
        let due = match self.segments.last() {
            Some(active) if active.size > 0 && self.condition == Condition::Usable => self.is_due(wall)?,
            _ => false,
        };
        if due {
            self.roll(self.log_end)?;
        }
        Ok(due)
    }

    fn check_order(&self, batches: &[RecordBatch]) -> Result<(), LogError> {
        let (mut last_epoch, mut log_end) = self.epoch_and_end();
        for batch in batches {
            let header = batch.header();
            if header.base_offset < log_end || header.leader_epoch < last_epoch {
                let (offset, epoch) = (header.base_offset, header.leader_epoch);
                return Err(LogError::OutOfOrder { offset, epoch, log_end, last_epoch });
            }
            if !header.fits_at(header.base_offset) {
                return Err(LogError::OutOfRange { offset: header.base_offset, log_start: self.log_start, log_end });
            }
            (last_epoch, log_end) = (header.leader_epoch, header.next_offset());
        }
        Ok(())
    }

    fn write(&mut self, batches: &[RecordBatch]) -> Result<(), LogError> {
        let mut rest = batches;
        while let Some(first) = rest.first() {
            if self.must_roll(first.header())? {
                // The name tells where the segment before ended, so that recovery notices when its end is missing.
                let base =
                    if in_reach(self.log_end, first.header()) { self.log_end } else { first.header().base_offset };
                self.roll(base)?;
            }
            let group = self.fitting(rest);
            self.write_group(&rest[..group])?;
            rest = &rest[group..];
        }
        Ok(())
    }

    /// How many of `batches` go into the active segment: one at least.
    fn fitting(&self, batches: &[RecordBatch]) -> usize {
        let Some(active) = self.segments.last() else { return 1 };
        let mut size = u64::from(active.size);
        let fits = batches.iter().take_while(|batch| {
            size += batch.bytes().len() as u64;
            size <= u64::from(self.config.segment_bytes) && in_reach(active.base, batch.header())
        });
        fits.count().max(1)
    }

    fn must_roll(&mut self, next: &BatchHeader) -> Result<bool, LogError> {
        let Some(active) = self.segments.last() else { return Ok(true) };
        let size = u64::from(active.size) + next.size as u64;
        if !in_reach(active.base, next) || size > u64::from(i32::MAX.unsigned_abs()) {
            return Ok(true);
        }
        if active.size == 0 {
            return Ok(false);
        }
        let index = self.indexer.as_ref().map_or(0, |indexer| indexer.size());
        if size > u64::from(self.config.segment_bytes) || index + 8 > u64::from(self.config.segment_index_bytes) {
            return Ok(true);
        }
        self.is_older_than_segment_ms(next.max_timestamp)
    }

    /// Whether the active segment is older than `segment.ms` by the wall clock. One whose first batch has no timestamp cannot
    /// tell: it is as old as it was seen to be, as in Kafka.
    fn is_due(&mut self, wall: Time) -> Result<bool, LogError> {
        if self.first_timestamp()? >= 0 {
            return self.is_older_than_segment_ms(i64::try_from(wall.0).unwrap_or(i64::MAX));
        }
        let limit = u64::try_from(self.max_age_ms()).unwrap_or(0);
        let Some(active) = self.segments.last_mut() else { return Ok(false) };
        Ok(wall.since(*active.aged_from.get_or_insert(wall)) > limit)
    }

    /// `segment.ms` of the active segment, less its share of the jitter.
    fn max_age_ms(&self) -> i64 {
        self.config.max_segment_ms().saturating_sub(self.jitter_ms())
    }

    /// Whether the first batch of the active segment is `segment.ms` (less its share of the jitter) older than `now`.
    fn is_older_than_segment_ms(&mut self, now: i64) -> Result<bool, LogError> {
        let first = self.first_timestamp()?;
        Ok(first >= 0 && now.saturating_sub(first) > self.max_age_ms())
    }

    /// A share of `segment.jitter.ms` that differs from log to log and from segment to segment, and stays the same for one:
    /// the partitions of a topic do not all roll at once.
    fn jitter_ms(&self) -> i64 {
        let limit = self.config.segment_jitter_ms.min(self.config.segment_ms);
        let Some(limit) = u64::try_from(limit).ok().filter(|limit| *limit > 0) else { return 0 };
        let base = self.segments.last().map_or(0, |active| active.base.0.unsigned_abs());
        let name = self.dir.as_os_str().as_encoded_bytes();
        let share = u64::from(model::batch::crc32c(name)) << 32 | u64::from(model::batch::crc32c(&base.to_be_bytes()));
        i64::try_from(share % limit).unwrap_or(0)
    }

    /// Largest timestamp of the active segment's first batch.
    fn first_timestamp(&mut self) -> Result<i64, LogError> {
        let failed = self.failed("cannot read in");
        let (env, dir) = (&self.env, &self.dir);
        let Some(active) = self.segments.last_mut() else { return Ok(-1) };
        if let Some(known) = active.first_timestamp {
            return Ok(known);
        }
        let log = active.files(env, dir).open(FileKind::Log).map_err(&failed)?;
        let first = match Walker::new(log, 0, u64::from(active.size), NEAR).peek().map_err(&failed)? {
            Step::Batch(header) => header.max_timestamp,
            Step::End | Step::Bad(_) => -1,
        };
        active.first_timestamp = Some(first);
        Ok(first)
    }

    /// Seals the active segment and starts one at `base`. Where the disk is nearly full, nothing is reserved for it.
    pub(super) fn roll(&mut self, base: Offset) -> Result<(), LogError> {
        self.start_segment(base, self.config.preallocate && !self.env.health.is_full())
    }

    /// The same, with space reserved for what is to be appended, or without.
    pub(super) fn start_segment(&mut self, base: Offset, preallocate: bool) -> Result<(), LogError> {
        self.make_directory()?;
        self.seal()?;
        if self.segments.len() == 1 && self.synced_end <= self.segments[0].base {
            // A first segment that is lost while its successor is kept would look like one that retention deleted. Once
            // in a log's life this waits for the disk, unless a sync came before.
            let synced = identity::sync(&*self.env.disk, &self.dir);
            synced.map_err(|e| self.fatal(&self.dir, "cannot sync the directory", &e))?;
            self.names = Names::Durable;
        }
        let segment = Segment::new(&self.env, base, 0);
        let files = segment.files(&self.env, &self.dir);
        let reserved = if preallocate { u64::from(self.config.segment_bytes) } else { 0 };
        let made = files.create(FileKind::Log).and_then(|log| match reserved {
            0 => Ok(()),
            reserved => log.preallocate(reserved),
        });
        if let Err(error) = made {
            let error = LogError::write(&self.env.health, &files.path(FileKind::Log), &error);
            // What a file system had given before it gave up would be missing for everything else.
            files.remove().map_err(|e| self.fatal(&files.path(FileKind::Log), "cannot take back", &e))?;
            return Err(error);
        }
        if self.names == Names::Durable {
            self.names = Names::NewFiles;
        }
        self.segments.push(segment);
        self.indexer = None;
        self.preallocated = reserved > 0;
        Ok(())
    }

    /// The directory, durably, before something in it is to be durable by itself.
    pub(super) fn make_directory_durable(&mut self) -> Result<(), LogError> {
        self.make_directory()?;
        if self.names == Names::NewDirectory {
            let disk = &*self.env.disk;
            let synced = identity::sync(disk, &self.dir);
            synced.map_err(|e| self.fatal(&self.dir, "cannot sync the directory", &e))?;
            self.names = Names::Durable;
        }
        Ok(())
    }

    /// The directory with its `partition.metadata`, at the first append.
    fn make_directory(&mut self) -> Result<(), LogError> {
        if self.names == Names::Absent {
            let disk = &*self.env.disk;
            let made = disk.create_dir_all(&self.dir).and_then(|()| identity::write(disk, &self.dir, self.topic_id));
            made.map_err(|e| LogError::write(&self.env.health, &self.dir, &e))?;
            self.names = Names::NewDirectory;
        }
        Ok(())
    }

    /// Completes the indexes of the active segment.
    pub(super) fn seal(&mut self) -> Result<(), LogError> {
        self.open_indexer()?;
        let Some(active) = self.segments.last_mut() else { return Ok(()) };
        let Some(indexer) = &mut self.indexer else { return Ok(()) };
        indexer.note_time(active);
        active.indexes_dirty = true;
        if self.config.preallocate || self.preallocated {
            self.free_preallocated()?;
        }
        self.flush_indexes()?;
        self.flush_aborted()
    }

    /// What was reserved behind the end of the active segment is given back.
    fn free_preallocated(&mut self) -> Result<(), LogError> {
        self.preallocated = false;
        let Some(active) = self.segments.last() else { return Ok(()) };
        let files = active.files(&self.env, &self.dir);
        let freed = files.open(FileKind::Log).and_then(|log| log.truncate(u64::from(active.size)));
        freed.map_err(|e| self.fatal(&files.path(FileKind::Log), "cannot free what was preallocated for", &e))
    }

    fn open_indexer(&mut self) -> Result<(), LogError> {
        if self.indexer.is_none()
            && let Some(files) = self.active_files()
        {
            let opened = Indexer::open(&files);
            let mut opened = opened.map_err(|e| LogError::write(&self.env.health, &files.path(FileKind::Index), &e))?;
            if let Some(newest) = self.segments.last().and_then(Segment::newest) {
                opened.limit_time(newest);
            }
            self.indexer = Some(Box::new(opened));
        }
        Ok(())
    }

    /// Writes the index entries that wait in memory.
    pub(super) fn flush_indexes(&mut self) -> Result<(), LogError> {
        let Some(files) = self.active_files() else { return Ok(()) };
        let Some(indexer) = self.indexer.as_mut().filter(|indexer| indexer.has_pending()) else { return Ok(()) };
        let flushed = indexer.flush(&files);
        flushed.map_err(|e| LogError::write(&self.env.health, &files.path(FileKind::Index), &e))
    }

    pub(super) fn active_files(&self) -> Option<SegmentFiles> {
        self.segments.last().map(|active| active.files(&self.env, &self.dir))
    }

    fn write_group(&mut self, group: &[RecordBatch]) -> Result<(), LogError> {
        self.open_indexer()?;
        let files = self.active_files().expect("a segment was made before this write");
        let path_failed = |e| LogError::write(&self.env.health, &files.path(FileKind::Log), &e);
        let log = files.open(FileKind::Log).map_err(path_failed)?;
        let position = u64::from(self.segments.last().map_or(0, |active| active.size));
        match group {
            [one] => write_all_at(&*log, &mut [IoSlice::new(one.bytes())], position),
            many => {
                let mut slices: Vec<IoSlice<'_>> = many.iter().map(|batch| IoSlice::new(batch.bytes())).collect();
                write_all_at(&*log, &mut slices, position)
            }
        }
        .map_err(path_failed)?;
        for batch in group {
            self.count(batch.header());
        }
        // A full buffer of index entries, or a policy that leaves the disk in peace: then memory is worth more.
        if self.indexer.as_ref().is_some_and(|indexer| indexer.is_full()) {
            match self.flush_indexes() {
                // The records are there, and the entries wait for the next time.
                Ok(()) | Err(LogError::NoDescriptor(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The batch was written at the end of the active segment.
    fn count(&mut self, header: &BatchHeader) {
        let active = self.segments.last_mut().expect("a segment was made before this write");
        let position = active.size;
        active.size += u32::try_from(header.size).expect("a segment is smaller than 2 GiB");
        active.dirty = true;
        self.written += header.size as u64;
        if position == 0 {
            active.first_timestamp = Some(header.max_timestamp);
            active.aged_from = None;
            (active.max, active.unread, active.time_damage) = (None, 0, None);
        }
        raise(&mut active.max, header);
        if let Some(indexer) = &mut self.indexer {
            indexer.note(active, header, position, self.config.index_interval_bytes);
        }
        self.note_epoch(header.leader_epoch, header.base_offset);
        self.last_batch = Some(*header);
        self.log_end = header.next_offset();
    }

    /// A record whose epoch the checkpoint on disk does not give holds the recovery point (`R25`).
    pub(super) fn note_epoch(&mut self, epoch: LeaderEpoch, offset: Offset) {
        let told = self.persisted_epoch.is_some_and(|entry| entry.epoch == epoch && entry.start <= offset);
        if !told && self.unpersisted_from.is_none() {
            self.unpersisted_from = Some(offset);
        }
    }

    /// Takes back what a failed append left behind `end`, durably: by the next power cut the segment may be sealed, and below
    /// the recovery point nobody looks for a part of a batch (`R31`).
    fn undo(&mut self, end: Offset) -> Result<(), LogError> {
        self.usable()?;
        if self.log_end > end {
            self.truncate_to(end)?;
        }
        let Some(active) = self.segments.last() else { return Ok(()) };
        let files = active.files(&self.env, &self.dir);
        let cut = files.open(FileKind::Log).and_then(|log| {
            log.truncate(u64::from(active.size))?;
            log.sync_data()
        });
        cut.map_err(|e| self.fatal(&files.path(FileKind::Log), "cannot take back a failed append in", &e))
    }

    /// Whether a sync also writes the index entries that wait: not where each append waits for its sync.
    pub(super) fn sync_flushes_indexes(&self) -> bool {
        self.flush_policy() != FlushPolicy::BeforeAck
    }
}

/// Whether an index entry of a segment with this base can name the batch.
fn in_reach(base: Offset, header: &BatchHeader) -> bool {
    header.last_offset() - base <= i64::from(i32::MAX)
}

/// The batch counts for the largest timestamp.
pub(super) fn raise(max: &mut Option<Stamp>, header: &BatchHeader) {
    if max.is_none_or(|max| max.timestamp < header.max_timestamp) {
        *max = Some(Stamp { timestamp: header.max_timestamp, offset: header.last_offset() });
    }
}
