//! What leaves at the log's start: by time, by size, by DeleteRecords. Whole segments, never at or above the high
//! watermark (`R39`), renamed first and freed later (`file.delete.delay.ms`), so that no reader loses a file at hand.

use std::io;
use std::path::{Path, PathBuf};

use model::{Offset, Time};

use super::segment::{FILE_KINDS, FileKind, Segment, Stamp, beside};
use super::{Log, LogError};
use crate::disk::Disk;
use crate::env::LogEnv;

/// What retention did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deleted {
    /// Segments deleted.
    pub segments: usize,
    /// Bytes of their batches.
    pub bytes: u64,
    /// What the log start rose to, if it did.
    pub log_start: Option<Offset>,
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
    /// the checkpoint. Segments go with the next `retain`.
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

    /// Deletes segments that lie whole below the log start, or that `retention.ms` and `retention.bytes` let go, all of
    /// them below the high watermark; without a time of the wall clock the age plays no part. An active segment that is to
    /// go is sealed first. `now` is of the monotonic clock: when files may be freed does not hang on the other one. Blocks.
    ///
    /// # Errors
    /// `NoSpace`; anything else took the directory offline.
    pub fn retain(&mut self, wall: Option<Time>, high_watermark: Offset, now: Time) -> Result<Deleted, LogError> {
        self.usable()?;
        let mut deleted = Deleted::default();
        let mut excess = match u64::try_from(self.config.retention_bytes) {
            Ok(limit) if self.config.cleanup_policy.delete => self.size_bytes().saturating_sub(limit),
            _ => 0,
        };
        while let Some(first) = self.segments.first() {
            let (size, end) = (u64::from(first.size), self.segments.get(1).map_or(self.log_end, |next| next.base));
            let is_last = self.segments.len() == 1;
            if size == 0 && is_last || end > high_watermark {
                break;
            }
            // The active one, too, where nothing at all is to be kept.
            let too_much = size > 0 && excess >= size;
            let too_old = match wall {
                Some(wall) if end > self.log_start && !too_much => self.is_too_old(wall)?,
                _ => false,
            };
            if end > self.log_start && !too_much && !too_old {
                break;
            }
            if is_last {
                // Space for what is to come may be what is missing; this makes some.
                self.start_segment(self.log_end, false)?;
                // Its name says where the log ends: without it, a log whose records all went would have lost them.
                self.sync_new_names()?;
            }
            self.delete_first(now)?;
            if self.size_bytes() == 0 {
                // What a start would find: no record that has an epoch (R57).
                self.last_batch = None;
            }
            excess = excess.saturating_sub(size);
            deleted = Deleted { segments: deleted.segments + 1, bytes: deleted.bytes + size, ..deleted };
            if end > self.log_start {
                self.advance_log_start(end)?;
                deleted.log_start = Some(end);
            }
        }
        if deleted.segments > 0 {
            self.forget_snapshots_below(self.log_start)?;
        }
        Ok(deleted)
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

    /// Whether the first segment's newest record is older than `retention.ms`. Records without a timestamp are as old as their
    /// file, as in Kafka; so are those of a segment of which some are damaged.
    fn is_too_old(&mut self, wall: Time) -> Result<bool, LogError> {
        let Some(limit) = self.retention_ms() else { return Ok(false) };
        // Of damaged records nobody knows the times; whoever met them has told.
        let newest = match self.segments[0].time_damage {
            None => self.segment_max(0)?,
            Some(_) => None,
        };
        let newest = match newest.and_then(|max| u64::try_from(max.timestamp).ok()) {
            Some(newest) => Time(newest),
            None => {
                let log = self.segments[0].files(&self.env, &self.dir).open(FileKind::Log);
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
