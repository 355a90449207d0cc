//! What leaves at the log's start: by time, by size, by DeleteRecords. Whole segments, never at or above the high
//! watermark (`R39`), renamed first and freed later (`file.delete.delay.ms`), so that no reader loses a file at hand.
//!
//! First the log start rises, then the caller writes it into its checkpoint, then segments go: what a crash brings back of them
//! lies below that log start, and the next start drops it unread.

use std::io;
use std::path::{Path, PathBuf};

use model::{Offset, Time};

use super::segment::{FILE_KINDS, FileKind, Segment, Stamp, beside};
use super::{Log, LogError};
use crate::disk::Disk;
use crate::env::LogEnv;

/// What was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deleted {
    /// Segments deleted.
    pub segments: usize,
    /// Bytes of their batches.
    pub bytes: u64,
}

/// Files that were renamed and wait for their delay, which is that of the time when they were.
#[derive(Debug)]
pub(super) struct PendingDeletion {
    /// By the monotonic clock.
    due: Time,
    paths: Vec<PathBuf>,
}

/// Files that nobody needs any more.
#[derive(Debug)]
pub struct Removal {
    env: LogEnv,
    paths: Vec<PathBuf>,
}

impl Removal {
    /// Removes them. Blocks.
    ///
    /// # Errors
    /// Took the directory offline.
    pub fn run(&self) -> Result<(), LogError> {
        for path in &self.paths {
            match self.env.disk.remove_file(path) {
                // A segment that was cleaned twice has one such name: the later file took the earlier one's place.
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(LogError::fatal(&self.env.health, path, "cannot remove the deleted segment", &e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Log {
    /// Raises the log start (DeleteRecords, or a follower taking its leader's); it never falls. The caller writes it into
    /// the checkpoint. Segments go with the next `delete_below`.
    ///
    /// # Errors
    /// `OutOfRange` above the log end.
    pub fn advance_log_start(&mut self, offset: Offset) -> Result<Offset, LogError> {
        self.usable()?;
        if offset > self.log_end {
            return Err(LogError::OutOfRange { offset, log_start: self.log_start, log_end: self.log_end });
        }
        if offset > self.log_start {
            self.log_start = offset;
            self.tail.forget_below(offset);
        }
        Ok(self.log_start)
    }

    /// Raises the log start over the segments that `retention.ms` and `retention.bytes` let go, all of them below the high
    /// watermark; says whether it rose. Without a time of the wall clock the age plays no part. `delete_below` takes them.
    /// Blocks.
    ///
    /// # Errors
    /// `Corrupt` where the age of a segment cannot be told; anything else took the directory offline. What was decided before is
    /// in force.
    pub fn expire(&mut self, wall: Option<Time>, high_watermark: Offset) -> Result<bool, LogError> {
        self.usable()?;
        let before = self.log_start;
        let mut excess = match u64::try_from(self.config.retention_bytes) {
            Ok(limit) if self.config.cleanup_policy.delete => self.size_bytes().saturating_sub(limit),
            _ => 0,
        };
        for i in 0..self.segments.len() {
            let (size, end) = (u64::from(self.segments[i].size), self.end_of(i));
            if size == 0 && i + 1 == self.segments.len() || end > high_watermark {
                break;
            }
            // The active one, too, where nothing at all is to be kept.
            let too_much = size > 0 && excess >= size;
            let goes = end <= self.log_start || too_much || wall.map_or(Ok(false), |wall| self.is_too_old(i, wall))?;
            if !goes {
                break;
            }
            excess = excess.saturating_sub(size);
            self.advance_log_start(end.max(self.log_start))?;
        }
        Ok(self.log_start > before)
    }

    /// Whether `delete_below` finds something below the log start.
    #[must_use]
    pub fn has_expired(&self, high_watermark: Offset) -> bool {
        self.first_goes(self.log_start, high_watermark)
    }

    /// Deletes the segments that lie whole below `start`, the log start, and below the high watermark. An active segment that is
    /// to go is sealed first. `now` is of the monotonic clock: when files may be freed does not hang on the other one.
    ///
    /// A crash may undo some of the deletions and not those after them. The checkpoint that holds `start` then says what is dead,
    /// so `is_written` says whether it does; where it could not be written, each deletion is synced before the next one. Blocks.
    ///
    /// # Errors
    /// `NoSpace`; anything else took the directory offline.
    pub fn delete_below(
        &mut self,
        start: Offset,
        is_written: bool,
        high_watermark: Offset,
        now: Time,
    ) -> Result<Deleted, LogError> {
        self.usable()?;
        let mut deleted = Deleted::default();
        let start = start.min(self.log_start);
        while self.first_goes(start, high_watermark) {
            if self.segments.len() == 1 {
                // Space for what is to come may be what is missing; this makes some.
                self.start_segment(self.log_end, false)?;
                // Its name says where the log ends: without it, a log whose records all went would have lost them.
                self.sync_new_names()?;
            }
            let bytes = u64::from(self.segments[0].size);
            self.delete_first(now)?;
            if !is_written {
                self.env.disk.sync_dir(&self.dir).map_err(self.failed("cannot sync"))?;
            }
            if self.size_bytes() == 0 {
                // What a start would find: no record that has an epoch (R57).
                self.last_batch = None;
            }
            deleted = Deleted { segments: deleted.segments + 1, bytes: deleted.bytes + bytes };
        }
        if deleted.segments > 0 {
            self.forget_snapshots_below(self.log_start)?;
        }
        Ok(deleted)
    }

    fn first_goes(&self, start: Offset, high_watermark: Offset) -> bool {
        let is_empty = self.segments.len() == 1 && self.segments[0].size == 0;
        !self.segments.is_empty() && !is_empty && self.end_of(0) <= start.min(high_watermark)
    }

    /// Where a segment ends.
    fn end_of(&self, segment: usize) -> Offset {
        self.segments.get(segment + 1).map_or(self.log_end, |next| next.base)
    }

    /// Removes files whose delay is over by the monotonic clock; says how many deletions wait still. Blocks.
    ///
    /// # Errors
    /// Took the directory offline.
    pub fn free_deleted(&mut self, now: Time) -> Result<usize, LogError> {
        if let Some(removal) = self.start_freeing(now)? {
            removal.run()?;
        }
        Ok(self.deletions.len())
    }

    /// When the next delay is over, by the monotonic clock.
    #[must_use]
    pub fn freeing_due(&self) -> Option<Time> {
        self.deletions.first().map(|deletion| deletion.due)
    }

    /// The files whose delay is over, to be removed without the log.
    ///
    /// # Errors
    /// Where the directory is offline.
    pub fn start_freeing(&mut self, now: Time) -> Result<Option<Removal>, LogError> {
        self.usable()?;
        // They are in the order of their times.
        let due = self.deletions.partition_point(|deletion| deletion.due <= now);
        let paths: Vec<PathBuf> = self.deletions.drain(..due).flat_map(|deletion| deletion.paths).collect();
        if self.deletions.is_empty() {
            self.deletions = Vec::new();
        }
        Ok((!paths.is_empty()).then(|| Removal { env: self.env.clone(), paths }))
    }

    /// Whether a segment's newest record is older than `retention.ms`. Records without a timestamp are as old as their
    /// file, as in Kafka; so are those of a segment of which some are damaged.
    fn is_too_old(&mut self, segment: usize, wall: Time) -> Result<bool, LogError> {
        let Some(limit) = self.retention_ms() else { return Ok(false) };
        // Of damaged records nobody knows the times; whoever met them has told.
        let newest = match self.segments[segment].time_damage {
            None => self.segment_max(segment)?,
            Some(_) => None,
        };
        let newest = match newest.and_then(|max| u64::try_from(max.timestamp).ok()) {
            Some(newest) => Time(newest),
            None => {
                let log = self.segments[segment].files(&self.env, &self.dir).open(FileKind::Log);
                log.and_then(|log| log.modified()).map_err(self.failed("cannot read in"))?
            }
        };
        Ok(wall.since(newest) > limit)
    }

    /// How old records may become; None where their age plays no part.
    pub(super) fn retention_ms(&self) -> Option<u64> {
        let limit = u64::try_from(self.config.retention_ms).ok();
        limit.filter(|_| self.config.cleanup_policy.delete)
    }

    /// Whether a segment with this newest record is to go by its age.
    pub(super) fn is_past_retention(&self, newest: Stamp, wall: Time) -> bool {
        let age = u64::try_from(newest.timestamp).ok().map(|newest| wall.since(Time(newest)));
        self.retention_ms().zip(age).is_some_and(|(limit, age)| age > limit)
    }

    fn delete_first(&mut self, now: Time) -> Result<(), LogError> {
        let failed = self.failed("cannot rename a segment in");
        let segment: Segment = self.segments.remove(0);
        let files = segment.files(&self.env, &self.dir);
        files.close_all();
        let mut paths = Vec::new();
        for kind in FILE_KINDS {
            paths.extend(put_away(&*self.env.disk, &files.path(kind)).map_err(&failed)?);
        }
        self.delete_later(now, paths);
        Ok(())
    }

    /// Takes files that were put away for `free_deleted`. The delay may be another one than for those before.
    pub(super) fn delete_later(&mut self, now: Time, paths: Vec<PathBuf>) {
        let due = now + self.config.file_delete_delay_ms;
        let place = self.deletions.partition_point(|deletion| deletion.due <= due);
        self.deletions.insert(place, PendingDeletion { due, paths });
    }
}

/// Gives a file a name that nobody opens, and tells it; None where there is no file.
pub(super) fn put_away(disk: &dyn Disk, path: &Path) -> io::Result<Option<PathBuf>> {
    let away = beside(path, ".deleted");
    match disk.rename(path, &away) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        renamed => renamed.map(|()| Some(away)),
    }
}
